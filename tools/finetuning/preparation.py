"""Everything that fine-tuning finds, checks and reads first; the runs of a grid share it."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from data_specs.tasks import TaskSpec, load_task
from pipeline.base import seeding
from pipeline.base.errors import InputError, Setting
from pipeline.models.formats import model_directory
from pipeline.models.formats.model_directory import ModelSource
from pipeline.storage import manifest as manifests
from pipeline.tokenizers import loading
from pipeline.tokenizers.tokens import Tokenizer
from tools.finetuning.head_layout import Head, read_head
from tools.finetuning.inputs import Feature, input_digest
from tools.finetuning.kinds import KINDS, build_features
from tools.finetuning.settings import FinetuneConfig
from tools.finetuning.task_data import read_split
from tools.finetuning.task_files import SplitData, TaskExample
from tools.finetuning.task_inputs import TaskInputs, expect_reader, expect_teacher

TRAIN_SPLIT = "train"


@dataclasses.dataclass(frozen=True)
class Split:
    """A split's examples and what a model reads of them: of a long one several windows.

    Attributes:
        name: such as `dev`.
        examples: as read.
        features: at least one of each example.
        notes: lines on what was odd in its files.
    """

    name: str
    examples: Sequence[TaskExample]
    features: Sequence[Feature]
    notes: tuple[str, ...] = ()

    def sha256(self) -> str:
        """Returns a digest of all that is read and of all that is right."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(repr((example.key, example.label, example.answers)).encode())
        for feature in self.features:
            digest.update(input_digest(feature))
        return digest.hexdigest()

    def targets(self, head: Head) -> Sequence[np.ndarray]:
        """Returns what a head has to say of each input; see `TaskKind.targets`."""
        return KINDS[head.kind].targets(self.examples, self.features, head.labels)


@dataclasses.dataclass(frozen=True)
class Preparation:
    """Runs that may begin.

    Attributes:
        spec: the task, with the labels of its head.
        source: the model.
        head: what the task needs.
        own_head: the model's own head; None where it has none for a task.
        tokenizer: the model's.
        max_seq_length: tokens of the longest input.
        train: the training split; None where nothing is trained.
        evaluation: what is scored.
        handed_in: what is predicted beside; None for nothing.
        teacher: fine-tuned on the task; None without.
        cached_teacher: what a complete cache says of the teacher that it was made by,
            where the cache alone was named; else empty.
    """

    spec: TaskSpec
    source: ModelSource
    head: Head
    own_head: Head | None
    tokenizer: Tokenizer
    max_seq_length: int
    train: Split | None
    evaluation: Split
    handed_in: Split | None
    teacher: ModelSource | None
    cached_teacher: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def keep_head(self) -> bool:
        """Whether the model's own head is one that fits."""
        return self.own_head is not None and self.head.fits(self.own_head)

    def _describe_head(self) -> str:
        if not self.source.has_weights:
            return "head and encoder: new, as the model has no weights"
        if not self.keep_head:
            return f"head: new, {self.head}; the model has {self.own_head or 'none for a task'}"
        if self.own_head.labels != self.head.labels:
            names = ", ".join(self.head.labels)
            return (
                f"head: the model's, whose labels have no names; taken for {names}, in this order"
            )
        return f"head: the model's, {self.head}"

    def inputs(self, split: Split, config: FinetuneConfig) -> TaskInputs:
        """Returns what a model reads of a split."""
        return TaskInputs(
            task=self.spec.name,
            head=self.head,
            vocab=self.tokenizer.info,
            special_ids=self.tokenizer.special_ids,
            max_seq_length=self.max_seq_length,
            doc_stride=config.doc_stride if KINDS[self.head.kind].has_windows else None,
            features=split.features,
        )

    def _splits(self) -> list[Split]:
        splits = (self.train, self.evaluation, self.handed_in)
        return [split for split in splits if split is not None]

    def describe(self) -> Iterator[str]:
        """Yields lines on what was read."""
        yield from self.tokenizer.notes
        yield self._describe_head()
        for split in self._splits():
            count, windows = len(split.examples), len(split.features)
            more = f" in {windows:,} windows" if windows != count else ""
            yield f"{split.name}: {count:,} examples{more}"
            yield from split.notes

    def request(self, config: FinetuneConfig) -> dict[str, Any]:
        """Returns what decides a run's model and scores, as JSON values."""
        request = {
            "kind": "finetuned",
            # A declaration's place is no part of it.
            "task": self.spec.reading(),
            "model": self.source.sha256(),
            "vocab": self.tokenizer.info.sha256,
            "max_seq_length": self.max_seq_length,
            **self._teacher_request(config),
            **config.deciding(),
            **{f"{split.name}_split": split.sha256() for split in self._splits()},
        }
        if hub := config.hub_models():
            request[manifests.HUB] = hub
        return json.loads(json.dumps(request))

    def _teacher_request(self, config: FinetuneConfig) -> dict[str, Any]:
        """Returns whose word is learned from: the same where the teacher or its cache is named."""
        if self.teacher is not None:
            return {"teacher": self.teacher.sha256(), "teacher_dtype": config.compute_dtype}
        cached = self.cached_teacher
        return {"teacher": cached.get("teacher"), "teacher_dtype": cached.get("compute_dtype")}


def prepare(config: FinetuneConfig) -> Preparation:
    """Finds and checks everything that the settings name, and reads the data.

    Of the configuration, the rate, the seed and the output directory are left alone.

    Raises:
        InputError: something is missing or does not fit.
    """
    try:
        spec = load_task(config.task)
    except ValueError as error:
        raise InputError(Setting("task"), received=error) from error
    source = model_directory.find_model(config.model)
    own = read_head(source)
    spec = _name_labels(config, spec, own)
    head = Head(spec.kind, spec.labels)
    if not (config.do_train or (own is not None and head.fits(own))):
        received = f"{config.model} with {own or 'none'}"
        raise InputError(Setting("model"), f"{head} for `task`={spec.name}", received)
    max_seq_length = _find_length(config, spec, source)
    tokenizer = loading.load_tokenizer(source.directory, do_lower_case=None)
    run = Preparation(
        spec=spec,
        source=source,
        head=head,
        own_head=own,
        tokenizer=tokenizer,
        max_seq_length=max_seq_length,
        train=None,
        evaluation=Split(config.eval_split, (), ()),
        handed_in=None,
        teacher=None,
    )
    expect_reader(source, run.inputs(run.evaluation, config))
    if config.finetune_teacher is not None:
        teacher = model_directory.find_model(config.finetune_teacher)
        expect_teacher(teacher, run.inputs(run.evaluation, config))
        run = dataclasses.replace(run, teacher=teacher)
    elif config.teacher_cache is not None:
        manifest = manifests.load(config.teacher_cache)
        run = dataclasses.replace(run, cached_teacher=manifest.flags)
    return _read_splits(run, config)


def _name_labels(config: FinetuneConfig, spec: TaskSpec, own: Head | None) -> TaskSpec:
    """Returns the task with the labels of its head, where names alone tell what they mean.

    They are those of the declaration, else of the training file. Where nothing is trained they
    are the model's, in its order, unless the declaration has others.
    """
    kind = KINDS[spec.kind]
    if not kind.finds_labels:
        return spec
    is_own = not config.do_train and own is not None and own.kind == spec.kind
    if is_own and (not spec.labels or set(spec.labels) == set(own.labels)):
        try:
            return msgspec.structs.replace(spec, labels=own.labels)
        except ValueError as error:
            raise InputError(Setting("model"), received=error) from error
    if spec.labels:
        return spec
    data = read_split(spec, config.data_dir, TRAIN_SPLIT, skip_bad_rows=config.skip_bad_rows)
    return msgspec.structs.replace(spec, labels=kind.find_labels(spec, data.examples))


def _find_length(config: FinetuneConfig, spec: TaskSpec, source: ModelSource) -> int:
    limit = source.config.max_input_length
    if config.max_seq_length is None:
        return min(limit, KINDS[spec.kind].max_seq_length)
    if config.max_seq_length > limit:
        expected = f"at most {limit}, as {config.model} has positions"
        raise InputError(Setting("max_seq_length"), expected, config.max_seq_length)
    return config.max_seq_length


def _read_splits(run: Preparation, config: FinetuneConfig) -> Preparation:
    names = {config.eval_split, config.predict_split} - {None}
    splits = {name: _read_split(run, config, name) for name in sorted(names)}
    examples = splits[config.eval_split].examples
    unlabelled = [one.key for one in examples if one.label is None and not one.answers]
    if unlabelled:
        expected = f"a split of `task`={run.spec.name} with labels"
        received = f"{config.eval_split}, whose example {unlabelled[0]} has none"
        raise InputError(Setting("eval_split"), expected, received)
    return dataclasses.replace(
        run,
        train=_read_split(run, config, TRAIN_SPLIT) if config.makes_steps else None,
        evaluation=splits[config.eval_split],
        handed_in=splits.get(config.predict_split),
    )


def _read_split(run: Preparation, config: FinetuneConfig, name: str) -> Split:
    data = read_split(run.spec, config.data_dir, name, skip_bad_rows=config.skip_bad_rows)
    examples = data.examples
    limit = config.max_train_examples
    if name == TRAIN_SPLIT and limit is not None and limit < len(examples):
        drawn = seeding.stream(0, "train examples").choice(len(examples), limit, replace=False)
        examples = [examples[index] for index in np.sort(drawn)]
    features = build_features(
        examples,
        run.tokenizer,
        kind=run.spec.kind,
        max_seq_length=run.max_seq_length,
        doc_stride=config.doc_stride,
        max_query_length=config.max_query_length,
        double_separator=run.source.config.family.doubles_separator,
    )
    return Split(name, examples, features, tuple(_notes(name, data)))


def _notes(name: str, data: SplitData) -> Iterator[str]:
    if data.num_left_out:
        yield f"{name}: {data.num_left_out} rows without a label to learn are left out"
    if data.num_relocated:
        yield f"{name}: {data.num_relocated} answers stood elsewhere than the file says"
    for remark, count in data.remarks.items():
        yield f"{name}: {count:,} {remark}"
    if data.bad_rows:
        yield f"{name}: {len(data.bad_rows)} bad rows are left out, the first: {data.bad_rows[0]}"
