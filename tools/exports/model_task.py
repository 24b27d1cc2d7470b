"""What a model's head is for: masked tokens, or the task that `finetune` made it for."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from pipeline.base.errors import InputError
from pipeline.models.config import EncoderConfig
from pipeline.models.formats.model_directory import ModelSource
from pipeline.models.weight_names import count_parameters, encoder_table
from pipeline.storage.manifest import REQUEST_FILE
from tools.finetuning.head_layout import (
    CLASSIFICATION,
    REGRESSION,
    SPAN,
    Head,
    head_table,
    read_head,
)
from tools.report.text_width import visible

# What a finished run of `finetune` writes, beside the folder of its model.
_METRICS_FILE = "metrics.json"


@dataclasses.dataclass(frozen=True)
class _Names:
    """What others call models with a kind of head."""

    auto_class: str
    pipeline_tag: str
    tag: str


_SEQUENCE = _Names(
    "AutoModelForSequenceClassification", "text-classification", "text-classification"
)
_NAMES: Mapping[str | None, _Names] = {
    None: _Names("AutoModelForMaskedLM", "fill-mask", "masked-lm"),
    CLASSIFICATION: _SEQUENCE,
    REGRESSION: _SEQUENCE,
    SPAN: _Names("AutoModelForQuestionAnswering", "question-answering", "question-answering"),
}


@dataclasses.dataclass(frozen=True)
class Finetuning:
    """How a model was fine-tuned.

    Attributes:
        task: its name.
        num_texts: texts of an input, one or two.
        making: what it was made from and how, in words, by what each is.
        scores: on the evaluated split, by their names, from 0 to 1.
        distilled: whether it learned from a teacher's logits, too.
    """

    task: str
    num_texts: int
    making: Mapping[str, str]
    scores: Mapping[str, float]
    distilled: bool


@dataclasses.dataclass(frozen=True)
class ModelTask:
    """What a model does.

    Attributes:
        head: of its task; None for a masked LM.
        finetuning: how it got that; None where it is not known.
    """

    head: Head | None = None
    finetuning: Finetuning | None = None

    @property
    def num_texts(self) -> int:
        """Texts of an input: 2 for questions and pairs, 1 where nothing tells of pairs."""
        if self.head is not None and self.head.kind == SPAN:
            return 2
        return 1 if self.finetuning is None else self.finetuning.num_texts

    @property
    def _names(self) -> _Names:
        return _NAMES[None if self.head is None else self.head.kind]

    @property
    def auto_class(self) -> str:
        """The class of `transformers` that loads it."""
        return self._names.auto_class

    @property
    def pipeline_tag(self) -> str:
        """What hubs call the task."""
        return self._names.pipeline_tag

    @property
    def tag(self) -> str:
        """A tag for a model of this kind."""
        return self._names.tag

    def count_parameters(self, config: EncoderConfig) -> int:
        """Returns how many numbers the weights of encoder and head are."""
        if self.head is None:
            return count_parameters(config)
        head = head_table(config, self.head.kind, self.head.num_outputs)
        return sum(math.prod(row.shape) for row in (*encoder_table(config), *head))

    def rows(self) -> list[tuple[str, str]]:
        """Returns what it does in words, by what each is; nothing for a masked LM."""
        if self.head is None:
            return []
        known = [] if self.finetuning is None else [("task", self.finetuning.task)]
        given = "one text" if self.num_texts == 1 else "two texts"
        if self.head.kind == SPAN:
            given, found = "a question and its context", "the answer's first and last token"
        elif self.head.kind == REGRESSION:
            found = "a number"
        else:
            # Within a cell of a table in Markdown.
            shown = (visible(label).replace("|", "\\|") for label in self.head.labels)
            labels = ", ".join(f"`{label}`" for label in shown)
            found = f"one of {len(self.head.labels)} labels: {labels}"
        return [*known, ("input", given), ("output", found)]


def find_task(source: ModelSource) -> ModelTask:
    """Returns what a model directory's model is for.

    Its `config.json` tells the head; the files of the run, where the directory still
    lies beside them, tell the rest.

    Raises:
        InputError: a file that is not as `finetune` writes it.
    """
    head = read_head(source)
    if head is None:
        return ModelTask()
    path = source.directory.resolve().parent / REQUEST_FILE
    request = path.read_json() if path.is_file() else {}
    if request.get("kind") != "finetuned":
        return ModelTask(head)
    report_path = path.with_name(_METRICS_FILE)
    report = report_path.read_json() if report_path.is_file() else {}
    try:
        spec = request["task"]
        if not Head(spec["kind"], tuple(spec["labels"])).fits(head):
            return ModelTask(head)
        found = _read_finetuning(request, report)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(path, received=f"missing or misshapen field {error}") from error
    return ModelTask(head, found)


def _read_finetuning(request: Mapping[str, Any], report: Mapping[str, Any]) -> Finetuning:
    task, split = request["task"]["name"], request["eval_split"]
    scores = report.get("metrics", {})
    return Finetuning(
        task=task,
        num_texts=max(1, len(request["task"]["text_fields"])),
        making=_describe_making(request, report.get("counts", {})),
        scores={f"{name} on {task}, {split}": float(value) for name, value in scores.items()},
        distilled="distill_weight" in request,
    )


def _describe_making(request: Mapping[str, Any], counts: Mapping[str, int]) -> dict[str, str]:
    making = {"started from": f"a model with SHA-256 `{request['model']}`"}
    if not request["do_train"]:
        return making
    if "distill_weight" in request:
        teacher = request["teacher"]
        place = "in a cache of logits" if teacher is None else f"SHA-256 `{teacher}`"
        making["teacher"] = (
            f"fine-tuned on the task, {place}; weight {request['distill_weight']:g}, "
            f"temperature {request['distill_temperature']:g}"
        )
    if counts:
        making["trained on"] = (
            f"{counts['num_train_examples']:,} examples, inputs of at most "
            f"{request['max_seq_length']} tokens"
        )
        making["updates"] = (
            f"{counts['num_train_steps']:,} of {request['train_batch_size']} inputs, learning "
            f"rate {request['learning_rate']:g} after {request['warmup_proportion']:.0%} of warm-up"
        )
        making["passes over the examples"] = f"{request['num_train_epochs']:g}"
    return making | {"seed": str(request["random_seed"]), "computed": request["compute_dtype"]}
