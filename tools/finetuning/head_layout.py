"""What the heads of tasks are called in a model directory, as `transformers` lays them out."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pipeline.base.errors import InputError
from pipeline.base.json_text import shown
from pipeline.models.config import EncoderConfig
from pipeline.models.formats.model_directory import HF_CONFIG, ModelSource
from pipeline.models.weight_names import HF, WeightName, dense_weights, norm_weights

CLASSIFICATION = "classification"
REGRESSION = "regression"
SPAN = "span"

_SEQUENCE = "ForSequenceClassification"
_QUESTION = "ForQuestionAnswering"
_LABELS_KEY = "id2label"
_COUNT_KEY = "num_labels"
_PROBLEM_KEY = "problem_type"
# What `transformers` calls labels that nobody named.
_UNNAMED = "LABEL_"
# More classes than any task here has: a larger number is no head of ours.
_MAX_LABELS = 10_000

_SPAN_LAYER = "qa_outputs"
_DENSE, _NORM, _OUTPUT = "head/dense", "head/layer_norm", "head/output"


@dataclasses.dataclass(frozen=True)
class Head:
    """What a head tells apart.

    Attributes:
        kind: `CLASSIFICATION`, `REGRESSION` or `SPAN`.
        labels: of a classification, in the order of its outputs; else empty.
    """

    kind: str
    labels: tuple[str, ...] = ()

    @property
    def num_outputs(self) -> int:
        """Numbers for an input, or of a span head for a token: its start and its end."""
        return {REGRESSION: 1, SPAN: 2}.get(self.kind, len(self.labels))

    def fits(self, other: "Head") -> bool:
        """Returns whether a head on disk answers a task: its labels are the same or unnamed."""
        unnamed = tuple(f"{_UNNAMED}{index}" for index in range(len(self.labels)))
        return other.kind == self.kind and other.labels in (self.labels, unnamed)

    def __str__(self) -> str:
        if self.kind != CLASSIFICATION:
            return f"a {self.kind} head"
        # In one line, whatever a file calls them.
        names = ", ".join(shown(label).strip("'\"") for label in self.labels[:5])
        names += ", …" if len(self.labels) > 5 else ""
        return f"a {self.kind} head with {len(self.labels)} labels ({names})"


def read_head(source: ModelSource) -> Head | None:
    """Returns the head of a model directory; None where it is another one, or none.

    Raises:
        InputError: its configuration names labels that cannot be such.
    """
    path = source.directory / HF_CONFIG
    if source.layout != HF or not path.is_file():
        return None
    settings = path.read_json()
    names = settings.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    if name.endswith(_QUESTION):
        return Head(SPAN)
    if not name.endswith(_SEQUENCE):
        return None
    # `transformers` leaves unnamed labels out where there are two; `num_labels` is an older key.
    count = settings.get(_COUNT_KEY, 2)
    unnamed = range(min(count, _MAX_LABELS) if isinstance(count, int) else 0)
    labels = settings.get(_LABELS_KEY) or {str(index): f"{_UNNAMED}{index}" for index in unnamed}
    count = min(len(labels), _MAX_LABELS) if isinstance(labels, dict) else 0
    numbers = [str(index) for index in range(count)]
    if not numbers or set(labels) != set(numbers):
        raise InputError(
            path, received=f"{_LABELS_KEY}: expected names of 0, 1, …, received {shown(labels)}"
        )
    if settings.get(_PROBLEM_KEY) == REGRESSION or len(labels) == 1:
        return Head(REGRESSION)
    return Head(CLASSIFICATION, tuple(str(labels[index]) for index in numbers))


def head_table(config: EncoderConfig, head: Head) -> tuple[WeightName, ...]:
    """Returns the weights of a head.

    A pooler in Google's checkpoints is BERT's first layer here; nothing else of a
    head is ever in one.
    """
    size, family = config.hidden_size, config.family
    if _is_plain_span(config, head.kind):
        return tuple(dense_weights(_OUTPUT, _SPAN_LAYER, inputs=size, units=head.num_outputs))
    layout, has_bias = family.sequence_head, family.has_biases
    norm = ()
    if layout.norm is not None:
        norm = norm_weights(_NORM, layout.norm, size=size, has_bias=has_bias)
    return (
        *dense_weights(_DENSE, layout.dense, inputs=size, units=size, has_bias=has_bias),
        *norm,
        *dense_weights(_OUTPUT, layout.output, inputs=size, units=head.num_outputs),
    )


def _is_plain_span(config: EncoderConfig, kind: str) -> bool:
    """Returns whether a head is one dense layer that finds spans."""
    return kind == SPAN and not config.family.finds_spans_with_sequence_head


def pooler_table(config: EncoderConfig, head: Head) -> tuple[WeightName, ...]:
    """Returns the weights of a head that a pre-trained model may hold."""
    if _is_plain_span(config, head.kind) or not config.family.sequence_head.is_pretrained:
        return ()
    return tuple(row for row in head_table(config, head) if not row.ours.startswith(_OUTPUT))


def _find_dropout(config: EncoderConfig, kind: str) -> tuple[str, float] | None:
    family = config.family
    is_plain = _is_plain_span(config, kind)
    return family.span_dropout if is_plain else family.sequence_head.dropout


def dropout_rate(config: EncoderConfig, kind: str) -> float:
    """Returns the dropout before a head's outputs; 0 for none."""
    dropout = _find_dropout(config, kind)
    if dropout is not None:
        return dropout[1]
    return 0.0 if kind == SPAN else config.hidden_dropout_prob


def head_settings(config: EncoderConfig, head: Head) -> Mapping[str, Any]:
    """Returns the `config.json` from which `transformers` makes the same model."""
    is_span = head.kind == SPAN
    architecture = config.family.class_prefix + (_QUESTION if is_span else _SEQUENCE)
    settings = {**config.to_hf(), "architectures": [architecture]}
    dropout = _find_dropout(config, head.kind)
    if dropout is not None:
        settings |= dict([dropout])
    if is_span:
        return settings
    labels = head.labels or (f"{_UNNAMED}0",)
    return {
        **settings,
        _LABELS_KEY: {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        _PROBLEM_KEY: REGRESSION if head.kind == REGRESSION else f"single_label_{CLASSIFICATION}",
    }
