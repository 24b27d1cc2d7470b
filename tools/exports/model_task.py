"""The task of a model's head: predicting masked tokens, or a task of `finetune`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated

import msgspec

from pipeline.base import json_text
from pipeline.models.config import EncoderConfig
from pipeline.models.formats.model_directory import ModelSource
from pipeline.models.weight_names import count_parameters, encoder_table
from pipeline.storage.manifest import RUN_CONFIG_FILE, HubSource
from tools.finetuning.head_layout import Head, head_table, read_head
from tools.finetuning.kinds import KINDS
from tools.report.text_width import escape_unprintable

# The file that a finished run of `finetune` writes next to the folder of its model.
_METRICS_FILE = "metrics.json"


@dataclasses.dataclass(frozen=True)
class HubNames:
    """Names for models with one kind of head: a class of `transformers`, and names on hubs."""

    auto_class: str
    pipeline_tag: str
    tag: str


_MASKED_LM = HubNames("AutoModelForMaskedLM", "fill-mask", "masked-lm")


@dataclasses.dataclass(frozen=True)
class Finetuning:
    """The fine-tuning of a model.

    Attributes:
        task: name of the task.
        num_texts: number of texts of an input, one or two.
        training: facts on the training for the model card, by name.
        scores: scores on the evaluated split, by name, from 0 to 1.
        distilled: whether the model was also trained on a teacher's logits.
    """

    task: str
    num_texts: int
    training: Mapping[str, str]
    scores: Mapping[str, float]
    distilled: bool


class _Task(msgspec.Struct):
    name: str
    kind: str
    labels: tuple[str, ...]
    text_fields: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]


class _RunConfig(msgspec.Struct):
    """The run configuration of `finetune`; only a run with a teacher has `distill_` settings."""

    task: _Task
    model: str
    eval_split: str
    do_train: bool
    max_seq_length: int
    train_batch_size: int
    learning_rate: float
    warmup_proportion: float
    num_train_epochs: float
    random_seed: int
    compute_dtype: str
    teacher: str | None = None
    distill_weight: float | None = None
    distill_temperature: float | None = None
    hub: dict[str, HubSource] = {}


class _Report(msgspec.Struct):
    metrics: dict[str, float] = {}
    # If a run did not train, these counts are of the evaluation only.
    counts: dict[str, int | float] = {}


@dataclasses.dataclass(frozen=True)
class ModelTask:
    """The task of a model.

    Attributes:
        head: head for the task; None for a masked LM.
        finetuning: the fine-tuning of the model; None if it is not known.
    """

    head: Head | None = None
    finetuning: Finetuning | None = None

    @property
    def num_texts(self) -> int:
        """Number of texts of an input: 2 for questions and for known pairs, otherwise 1."""
        fixed = None if self.head is None else KINDS[self.head.kind].num_texts
        if fixed is not None:
            return fixed
        return 1 if self.finetuning is None else self.finetuning.num_texts

    @property
    def hub(self) -> HubNames:
        """Names for models with this kind of head."""
        if self.head is None:
            return _MASKED_LM
        kind = KINDS[self.head.kind]
        return HubNames(f"AutoModel{kind.architecture}", kind.pipeline_tag, kind.pipeline_tag)

    def count_parameters(self, config: EncoderConfig) -> int:
        """Returns the number of parameters of the encoder and the head."""
        if self.head is None:
            return count_parameters(config)
        rows = (*encoder_table(config), *head_table(config, self.head))
        return sum(math.prod(row.shape) for row in rows)

    def rows(self) -> list[tuple[str, str]]:
        """Returns the rows on the task, each a name and a text; none for a masked LM."""
        if self.head is None:
            return []
        known = [] if self.finetuning is None else [("task", self.finetuning.task)]
        kind = KINDS[self.head.kind]
        model_input = kind.given or ("one text" if self.num_texts == 1 else "two texts")
        # A pipe would end a cell of a table in Markdown.
        escaped = (escape_unprintable(label).replace("|", "\\|") for label in self.head.labels)
        names = ", ".join(f"`{label}`" for label in escaped)
        output = kind.output.format(labels=f"{len(self.head.labels)} labels: {names}")
        return [*known, ("input", model_input), ("output", output)]


def find_task(source: ModelSource) -> ModelTask:
    """Returns the task of the model in a directory.

    The head comes from its `config.json`. Everything else comes from the files of the run, if
    they are still next to the directory.

    Raises:
        InputError: a file is malformed.
    """
    head = read_head(source)
    if head is None:
        return ModelTask()
    path = source.directory.resolve().parent / RUN_CONFIG_FILE
    run_config = path.read_json() if path.is_file() else {}
    if run_config.get("kind") != "finetuned":
        return ModelTask(head)
    run_config = json_text.convert(run_config, _RunConfig, path)
    report_path = path.with_name(_METRICS_FILE)
    report = report_path.read_json() if report_path.is_file() else {}
    report = json_text.convert(report, _Report, report_path)
    if not Head(run_config.task.kind, run_config.task.labels).fits(head):
        return ModelTask(head)
    finetuning = Finetuning(
        task=run_config.task.name,
        num_texts=len(run_config.task.text_fields),
        training=_describe_training(run_config, report.counts),
        scores={
            f"{name} on {run_config.task.name}, {run_config.eval_split}": value
            for name, value in report.metrics.items()
        },
        distilled=run_config.distill_weight is not None,
    )
    return ModelTask(head, finetuning)


def hub_names(sources: Mapping[str, HubSource], *settings: str) -> str:
    """Returns the models of the hub for some settings, each as ` ID@COMMIT` in code font."""
    return "".join(f" `{sources[name]}`" for name in settings if name in sources)


def _describe_training(run_config: _RunConfig, counts: Mapping[str, float]) -> dict[str, str]:
    start = f"a model{hub_names(run_config.hub, 'model')}"
    training = {"initial weights": f"{start} with SHA-256 `{run_config.model}`"}
    if not run_config.do_train:
        return training
    if run_config.distill_weight is not None:
        teacher = run_config.teacher
        identity = "in a cache of logits" if teacher is None else f"SHA-256 `{teacher}`"
        identity += hub_names(run_config.hub, "finetune_teacher")
        training["teacher"] = (
            f"fine-tuned on the task, {identity}; weight {run_config.distill_weight:g}, "
            f"temperature {run_config.distill_temperature:g}"
        )
    if "num_train_steps" in counts:
        training["trained on"] = (
            f"{counts['num_train_examples']:,} examples, inputs of at most "
            f"{run_config.max_seq_length} tokens"
        )
        training["steps"] = (
            f"{counts['num_train_steps']:,} of {run_config.train_batch_size} inputs, learning "
            f"rate {run_config.learning_rate:g} after {run_config.warmup_proportion:.0%} of warm-up"
        )
        training["epochs"] = f"{run_config.num_train_epochs:g}"
    return training | {"seed": str(run_config.random_seed), "precision": run_config.compute_dtype}
