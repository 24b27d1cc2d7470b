"""Preparation of fine-tuning: the checked model, tokenizer, data and teacher of a run.

The runs of a grid share one preparation.
"""

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
    """The examples of a split and their features; a long example has several windows.

    Attributes:
        name: the split's name, for example `dev`.
        examples: the examples of the files.
        features: at least one for each example.
        notes: lines about irregular rows of its files.
    """

    name: str
    examples: Sequence[TaskExample]
    features: Sequence[Feature]
    notes: tuple[str, ...] = ()

    def sha256(self) -> str:
        """Returns a digest of all inputs, labels and right answers."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(repr((example.key, example.label, example.answers)).encode())
        for feature in self.features:
            digest.update(input_digest(feature))
        return digest.hexdigest()

    def targets(self, head: Head) -> Sequence[np.ndarray]:
        """Returns the targets of each input for a head; see `TaskKind.targets`."""
        return KINDS[head.kind].targets(self.examples, self.features, head.labels)


@dataclasses.dataclass(frozen=True)
class Preparation:
    """The checked inputs of fine-tuning runs.

    Attributes:
        spec: the task, with the labels of its head.
        source: the model.
        head: the head that the task needs.
        own_head: the head in the model directory; None if it has no task head.
        tokenizer: the model's tokenizer.
        max_seq_length: maximum number of tokens of an input.
        train: the training split; None if nothing is trained.
        evaluation: the split that is scored.
        handed_in: the split whose predictions are submitted; None if there is no such split.
        teacher: a teacher that was fine-tuned on the task; None without one.
        cached_teacher: the run configuration of a complete teacher cache, if only the
            cache is given; otherwise empty.
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
        """Whether the model directory has a head that fits the task."""
        return self.own_head is not None and self.head.fits(self.own_head)

    def _describe_head(self) -> str:
        if not self.source.has_weights:
            return "head and encoder: new, because the model has no weights"
        if not self.keep_head:
            return f"head: new, {self.head}; the model has {self.own_head or 'none for a task'}"
        if self.own_head.labels != self.head.labels:
            names = ", ".join(self.head.labels)
            return f"head: the model's; its unnamed labels are taken as {names}, in this order"
        return f"head: the model's, {self.head}"

    def inputs(self, split: Split, config: FinetuneConfig) -> TaskInputs:
        """Returns the inputs of a split."""
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
        """Yields lines that summarize what was read."""
        yield from self.tokenizer.notes
        yield self._describe_head()
        for split in self._splits():
            count, windows = len(split.examples), len(split.features)
            more = f" in {windows:,} windows" if windows != count else ""
            yield f"{split.name}: {count:,} examples{more}"
            yield from split.notes

    def run_config(self, config: FinetuneConfig) -> dict[str, Any]:
        """Returns the run configuration: JSON values that decide its model and scores."""
        run_config = {
            "kind": "finetuned",
            # The path of the declaration is not part of the configuration, only its content.
            "task": self.spec.reading(),
            "model": self.source.sha256(),
            "vocab": self.tokenizer.info.sha256,
            "max_seq_length": self.max_seq_length,
            **self._teacher_run_config(config),
            **config.output_settings(),
            **{f"{split.name}_split": split.sha256() for split in self._splits()},
        }
        if hub := config.hub_models():
            run_config[manifests.HUB] = hub
        return json.loads(json.dumps(run_config))

    def _teacher_run_config(self, config: FinetuneConfig) -> dict[str, Any]:
        """Returns the identity of the teacher, equal for the teacher and for its cache."""
        if self.teacher is not None:
            return {"teacher": self.teacher.sha256(), "teacher_dtype": config.compute_dtype}
        cached = self.cached_teacher
        return {"teacher": cached.get("teacher"), "teacher_dtype": cached.get("compute_dtype")}


def prepare(config: FinetuneConfig) -> Preparation:
    """Finds and checks the model, the data and the teacher of the settings, and reads the data.

    The learning rate, the seed and the output directory are not used.

    Raises:
        InputError: an input is missing or does not match the others.
    """
    try:
        spec = load_task(config.task)
    except ValueError as error:
        raise InputError(Setting("task"), received=error) from error
    source = model_directory.find_model(config.model)
    model_head = read_head(source)
    spec = _name_labels(config, spec, model_head)
    head = Head(spec.kind, spec.labels)
    if not (config.do_train or (model_head is not None and head.fits(model_head))):
        expected = f"a model with {head}, for `task`={spec.name}"
        received = f"{config.model} with {model_head or 'none'}"
        raise InputError(Setting("model"), expected, received)
    max_seq_length = _find_length(config, spec, source)
    tokenizer = loading.load_tokenizer(source.directory, do_lower_case=None)
    run = Preparation(
        spec=spec,
        source=source,
        head=head,
        own_head=model_head,
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


def _name_labels(config: FinetuneConfig, spec: TaskSpec, model_head: Head | None) -> TaskSpec:
    """Returns the task with the labels of its head, for kinds whose labels come from the data.

    The labels are those of the declaration, otherwise of the training file. Without training,
    they are the model's labels in its order, unless the declaration has different ones.
    """
    kind = KINDS[spec.kind]
    if not kind.finds_labels:
        return spec
    is_own = not config.do_train and model_head is not None and model_head.kind == spec.kind
    if is_own and (not spec.labels or set(spec.labels) == set(model_head.labels)):
        try:
            return msgspec.structs.replace(spec, labels=model_head.labels)
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
        expected = f"at most {limit}, the positions of {config.model}"
        raise InputError(Setting("max_seq_length"), expected, config.max_seq_length)
    return config.max_seq_length


def _read_splits(run: Preparation, config: FinetuneConfig) -> Preparation:
    names = {config.eval_split, config.predict_split} - {None}
    splits = {name: _read_split(run, config, name) for name in sorted(names)}
    examples = splits[config.eval_split].examples
    unlabeled = [
        example.key for example in examples if example.label is None and not example.answers
    ]
    if unlabeled:
        expected = f"a split of `task`={run.spec.name} with labels"
        received = f"{config.eval_split}, whose example {unlabeled[0]} has none"
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
        drawn = seeding.keyed_rng(0, "train examples").choice(len(examples), limit, replace=False)
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
        yield f"{name}: {data.num_left_out} rows are left out because their label is in skip_labels"
    if data.num_relocated:
        yield f"{name}: {data.num_relocated} answers begin at another position than the file states"
    for remark, count in data.remarks.items():
        yield f"{name}: {count:,} {remark}"
    if data.bad_rows:
        yield f"{name}: {len(data.bad_rows)} bad rows are left out, the first: {data.bad_rows[0]}"
