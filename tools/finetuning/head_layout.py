"""The layout of task heads in a model directory, as `transformers` writes them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pipeline.base.errors import InputError
from pipeline.base.json_text import format_value
from pipeline.base.location import Location
from pipeline.models.config import EncoderConfig
from pipeline.models.formats.model_directory import HF_CONFIG, ModelSource
from pipeline.models.weight_names import HF, WeightName, dense_weights, norm_weights
from tools.finetuning.kinds import KINDS

_LABELS_KEY = "id2label"
_COUNT_KEY = "num_labels"
_PROBLEM_KEY = "problem_type"
# The prefix of labels to which `transformers` gave no other name.
_UNNAMED = "LABEL_"
# Above the class count of every declared task: a head with more labels does not belong to a
# declared task.
_MAX_LABELS = 10_000

_DENSE, _NORM, _OUTPUT = "head/dense", "head/layer_norm", "head/output"


@dataclasses.dataclass(frozen=True)
class Head:
    """The kind and the labels of a task head.

    Attributes:
        kind: a key of `kinds.KINDS`.
        labels: the labels of a sequence or token classification, in the order of the
            outputs; empty for other kinds.
    """

    kind: str
    labels: tuple[str, ...] = ()

    @property
    def num_outputs(self) -> int:
        """The number of outputs per input, or per token for a head over tokens."""
        return KINDS[self.kind].num_outputs(self.labels)

    def fits(self, other: "Head") -> bool:
        """Returns whether a stored head fits this task: its labels are the same or unnamed."""
        unnamed = tuple(f"{_UNNAMED}{index}" for index in range(len(self.labels)))
        return other.kind == self.kind and other.labels in (self.labels, unnamed)

    def __str__(self) -> str:
        kind = self.kind.replace("_", " ")
        if not self.labels:
            return f"a {kind} head"
        # A label from a file may contain line breaks; the message is one line.
        names = ", ".join(format_value(label).strip("'\"") for label in self.labels[:5])
        names += ", …" if len(self.labels) > 5 else ""
        return f"a {kind} head with {len(self.labels)} labels ({names})"


def read_head(source: ModelSource) -> Head | None:
    """Returns the head of a model directory; None if it has no head or one of an unknown kind.

    Raises:
        InputError: the label names in its configuration are invalid.
    """
    path = source.directory / HF_CONFIG
    if source.layout != HF or not path.is_file():
        return None
    settings = path.read_json()
    names = settings.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    kinds = [kind for kind in KINDS.values() if name.endswith(kind.architecture)]
    if not kinds:
        return None
    has_names = any(kind.names_labels for kind in kinds)
    labels = _read_labels(settings, path) if has_names else ()
    kind = next(kind for kind in kinds if kind.is_meant_by(settings, labels))
    # A regression has one label, which only names its number.
    return Head(kind.name, () if kind.predicts_number else labels)


def _read_labels(settings: Mapping[str, Any], path: Location) -> tuple[str, ...]:
    # `transformers` omits two unnamed labels from the file. `num_labels` is an older key.
    count = settings.get(_COUNT_KEY, 2)
    unnamed = range(min(count, _MAX_LABELS) if isinstance(count, int) else 0)
    labels = settings.get(_LABELS_KEY) or {str(index): f"{_UNNAMED}{index}" for index in unnamed}
    count = min(len(labels), _MAX_LABELS) if isinstance(labels, dict) else 0
    numbers = [str(index) for index in range(count)]
    if not numbers or set(labels) != set(numbers):
        raise InputError(
            path,
            received=f"{_LABELS_KEY}: expected names of 0, 1, …, received {format_value(labels)}",
        )
    return tuple(str(labels[index]) for index in numbers)


def head_table(config: EncoderConfig, head: Head) -> tuple[WeightName, ...]:
    """Returns the weights of a head.

    The pooler of Google's checkpoints is the first layer of BERT's head. Those checkpoints
    hold no other layer of a head.
    """
    size, family = config.hidden_size, config.family
    if is_one_layer(config, head.kind):
        layer = KINDS[head.kind].output_layer
        return tuple(dense_weights(_OUTPUT, layer, inputs=size, units=head.num_outputs))
    layout, has_bias = family.sequence_head, family.has_biases
    norm = ()
    if layout.norm is not None:
        norm = norm_weights(_NORM, layout.norm, size=size, has_bias=has_bias)
    return (
        *dense_weights(_DENSE, layout.dense, inputs=size, units=size, has_bias=has_bias),
        *norm,
        *dense_weights(_OUTPUT, layout.output, inputs=size, units=head.num_outputs),
    )


def is_one_layer(config: EncoderConfig, kind: str) -> bool:
    """Returns whether a head is one dense layer over each token."""
    return KINDS[kind].is_over_tokens and not config.family.has_sequence_head_over_tokens


def pooler_table(config: EncoderConfig, head: Head) -> tuple[WeightName, ...]:
    """Returns the weights of a head that a pre-trained model may contain."""
    if is_one_layer(config, head.kind) or not config.family.sequence_head.is_pretrained:
        return ()
    return tuple(row for row in head_table(config, head) if not row.ours.startswith(_OUTPUT))


def dropout_rate(config: EncoderConfig, kind: str) -> float:
    """Returns the dropout before a head's outputs; 0 for none."""
    dropout = KINDS[kind].dropout(config.family)
    if dropout is not None:
        return dropout[1]
    return config.hidden_dropout_prob if KINDS[kind].drops_hidden_rate else 0.0


def head_settings(config: EncoderConfig, head: Head) -> Mapping[str, Any]:
    """Returns the `config.json` from which `transformers` makes the same model."""
    kind = KINDS[head.kind]
    architecture = config.family.class_prefix + kind.architecture
    settings = {**config.to_hf(), "architectures": [architecture]}
    dropout = kind.dropout(config.family)
    if dropout is not None:
        settings |= dict([dropout])
    if not kind.names_labels:
        return settings
    labels = head.labels or (f"{_UNNAMED}0",)
    settings |= {
        _LABELS_KEY: {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    if kind.problem_type is not None:
        settings[_PROBLEM_KEY] = kind.problem_type
    return settings
