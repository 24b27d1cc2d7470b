"""Names and shapes of weights in models, Hugging Face directories and Google's checkpoints."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.base import json_text
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.models.config import EncoderConfig
from pipeline.models.families.base import rename

Shape = tuple[int, ...]
# Layouts of files: the names and shapes of Hugging Face, and of Google's TensorFlow 1 code.
HF, TF1 = "hf", "tf1"
SEGMENTS = "encoder/embeddings/segment_embeddings"
# Hugging Face's name of the layer from the embeddings' width to the hidden size.
_PROJECTION = "bert.encoder.embedding_hidden_mapping_in"


@dataclasses.dataclass(frozen=True)
class WeightName:
    """The names and the shape of one weight.

    Attributes:
        ours: the variable's path relative to the model.
        hf: its name in `model.safetensors`.
        tf1: its name in a TensorFlow 1 checkpoint.
        shape: the variable's shape, which is also the shape in TensorFlow 1.
        transpose_hf: whether `transformers` stores the transpose. Dense kernels are [in, out]
            in our models and [out, in] in `transformers`.
        blocks: the number of equal blocks that are concatenated along the last axis.
    """

    ours: str
    hf: str
    tf1: str
    shape: Shape
    transpose_hf: bool = False
    blocks: int = 1

    def stored(self, layout: str) -> tuple[str, Shape]:
        """Returns name and shape in a layout, `HF` or `TF1`."""
        if layout == TF1:
            return self.tf1, self.shape
        return self.hf, self.shape[::-1] if self.transpose_hf else self.shape

    def convert(self, value: np.ndarray, layout: str) -> np.ndarray:
        """Converts a value from the variable's shape to a layout's, or back."""
        return np.ascontiguousarray(value.T if self.transpose_hf and layout == HF else value)


def _tf1_scope(hf: str) -> str:
    """Returns TensorFlow 1's scope of a Hugging Face name.

    Example: `bert.encoder.layer.3.output.dense` gives `bert/encoder/layer_3/output/dense`.
    """
    return re.sub(r"\.layer\.(\d+)\.", r"/layer_\1/", hf).replace(".", "/")


def dense_weights(
    ours: str, hf: str, *, inputs: int, units: int, has_bias: bool = True, blocks: int = 1
) -> Iterator[WeightName]:
    """Yields kernel and bias of a dense layer, given its name in our models and in BERT."""
    tf1, shape = _tf1_scope(hf), (inputs, units)
    yield WeightName(f"{ours}/kernel", f"{hf}.weight", f"{tf1}/kernel", shape, True, blocks)
    if has_bias:
        yield WeightName(f"{ours}/bias", f"{hf}.bias", f"{tf1}/bias", (units,))


def norm_weights(ours: str, hf: str, *, size: int, has_bias: bool = True) -> Iterator[WeightName]:
    """Yields the weights of a normalization, given its name in our models and in BERT."""
    tf1 = _tf1_scope(hf)
    yield WeightName(f"{ours}/gamma", f"{hf}.weight", f"{tf1}/gamma", (size,))
    if has_bias:
        yield WeightName(f"{ours}/beta", f"{hf}.bias", f"{tf1}/beta", (size,))


def _embeddings(config: EncoderConfig) -> Iterator[WeightName]:
    size = config.embedding_width
    for ours, theirs, rows in (
        ("word_embeddings", "word_embeddings", config.vocab_size),
        ("position_embeddings", "position_embeddings", config.max_position_embeddings),
        ("segment_embeddings", "token_type_embeddings", config.type_vocab_size),
    ):
        hf, tf1 = f"bert.embeddings.{theirs}.weight", f"bert/embeddings/{theirs}"
        if rows:
            yield WeightName(f"encoder/embeddings/{ours}", hf, tf1, (rows, size))
    yield from norm_weights("encoder/embeddings/layer_norm", "bert.embeddings.LayerNorm", size=size)
    if config.has_projection:
        ours = "encoder/embeddings/projection"
        yield from dense_weights(ours, _PROJECTION, inputs=size, units=config.hidden_size)


def _relative_positions(config: EncoderConfig) -> Iterator[WeightName]:
    if buckets := config.family.relative_position_buckets:
        hf, tf1 = "bert.encoder.relative_attention_bias", "bert/encoder/relative_attention_bias"
        shape = (buckets, config.num_attention_heads)
        yield WeightName("encoder/relative_positions/bias", f"{hf}.weight", tf1, shape)


def _bert_layer(index: int, config: EncoderConfig) -> Iterator[WeightName]:
    ours, hf = f"encoder/layer_{index}", f"bert.encoder.layer.{index}"
    size, inner = config.hidden_size, config.intermediate_size
    for layer, bert_name, inputs, units in (
        ("attention/query", "attention.self.query", size, size),
        ("attention/key", "attention.self.key", size, size),
        ("attention/value", "attention.self.value", size, size),
        ("attention/output", "attention.output.dense", size, size),
        ("feed_forward/intermediate", "intermediate.dense", size, inner),
        ("feed_forward/output", "output.dense", inner, size),
    ):
        yield from dense_weights(f"{ours}/{layer}", f"{hf}.{bert_name}", inputs=inputs, units=units)
        if layer.endswith("/output"):
            norm = f"{hf}.{bert_name.removesuffix('dense')}LayerNorm"
            block = layer.removesuffix("/output")
            yield from norm_weights(f"{ours}/{block}/layer_norm", norm, size=size)


def _bert_encoder(config: EncoderConfig) -> Iterator[WeightName]:
    yield from _embeddings(config)
    yield from _relative_positions(config)
    for index in range(config.num_distinct_layers):
        yield from _bert_layer(index, config)


def _modernbert_layer(index: int, config: EncoderConfig) -> Iterator[WeightName]:
    ours, hf = f"encoder/layer_{index}", f"bert.encoder.layer.{index}"
    size, inner = config.hidden_size, config.intermediate_size
    for block, bert_block in (("attention", "attention.output"), ("feed_forward", "output")):
        # The embeddings are normalized before the first layer.
        if index or block != "attention":
            norm = f"{hf}.{bert_block}.LayerNorm"
            yield from norm_weights(f"{ours}/{block}/layer_norm", norm, size=size, has_bias=False)
    for layer, bert_name, inputs, units, blocks in (
        ("attention/query_key_value", "attention.self.query_key_value", size, size, 3),
        ("attention/output", "attention.output.dense", size, size, 1),
        ("feed_forward/intermediate", "intermediate.dense", size, inner, 2),
        ("feed_forward/output", "output.dense", inner, size, 1),
    ):
        shape = {"inputs": inputs, "units": blocks * units, "blocks": blocks}
        yield from dense_weights(f"{ours}/{layer}", f"{hf}.{bert_name}", has_bias=False, **shape)


def _modernbert_encoder(config: EncoderConfig) -> Iterator[WeightName]:
    size, words = config.hidden_size, "embeddings/word_embeddings"
    hf, shape = "bert.embeddings.word_embeddings.weight", (config.vocab_size, size)
    yield WeightName(f"encoder/{words}", hf, f"bert/{words}", shape)
    for index in range(config.num_hidden_layers):
        yield from _modernbert_layer(index, config)
    # The normalizations of the embeddings and of the last layer's output.
    for ours, hf in (("encoder/embeddings", "bert.embeddings"), ("encoder", "bert.encoder")):
        norm = f"{ours}/layer_norm", f"{hf}.LayerNorm"
        yield from norm_weights(*norm, size=size, has_bias=False)


# By `Family.architecture`.
_ENCODERS = {"bert": _bert_encoder, "modernbert": _modernbert_encoder}


def _head(config: EncoderConfig) -> Iterator[WeightName]:
    hf, inputs, size = "cls.predictions.transform", config.hidden_size, config.embedding_width
    has_bias = config.family.has_biases
    dense, norm = f"{hf}.dense", f"{hf}.LayerNorm"
    yield from dense_weights("head/transform", dense, inputs=inputs, units=size, has_bias=has_bias)
    yield from norm_weights("head/layer_norm", norm, size=size, has_bias=has_bias)
    yield WeightName(
        "head/bias", "cls.predictions.bias", "cls/predictions/output_bias", (config.vocab_size,)
    )
    if not config.tie_word_embeddings:
        hf = "cls.predictions.decoder"
        tf1, shape = f"{_tf1_scope(hf)}/kernel", (config.vocab_size, size)
        yield WeightName("head/decoder", f"{hf}.weight", tf1, shape)


def weight_table(config: EncoderConfig) -> tuple[WeightName, ...]:
    """Returns every weight of a model, each once."""
    rows = (*_ENCODERS[config.family.architecture](config), *_head(config))
    names = config.family.hf_names
    return tuple(dataclasses.replace(row, hf=rename(row.hf, names)) for row in rows)


# Weights whose rows are the vocabulary's tokens.
VOCABULARY_ROWS = ("encoder/embeddings/word_embeddings", "head/bias", "head/decoder")


def encoder_table(config: EncoderConfig) -> tuple[WeightName, ...]:
    """Returns every weight of a model except those of its head."""
    return tuple(row for row in weight_table(config) if row.ours.startswith("encoder/"))


def folded_table(
    config: EncoderConfig, settings: Mapping[str, Any], *, where: Location
) -> tuple[WeightName, ...]:
    """Returns the embeddings of a checkpoint that are added to the segment embeddings.

    Args:
        config: the model's configuration.
        settings: the content of the checkpoint's `config.json`.
        where: the path of that file, for messages.

    Raises:
        InputError: the number of rows is not an integer.
    """
    folded = config.family.folded_embeddings
    if folded is None or not settings.get(folded.key):
        return ()
    rows = settings.get(*folded.rows)
    if not isinstance(rows, int):
        raise InputError(
            f"{where}: {folded.rows[0]}", "a positive integer", json_text.format_value(rows)
        )
    shape = (rows, config.embedding_width)
    return (WeightName(f"folded/{folded.key}", folded.hf, folded.hf, shape),)


def fold_embeddings(weights: dict[str, np.ndarray], folded: Sequence[WeightName]) -> None:
    """Replaces folded embeddings by adding their first rows to the segment embeddings.

    Args:
        weights: arrays by our names, changed in place.
        folded: the result of `folded_table`.
    """
    for row in folded:
        weights[SEGMENTS] = weights[SEGMENTS] + weights.pop(row.ours)[0]


def count_parameters(config: EncoderConfig) -> int:
    """Returns the number of parameters of a masked LM; tied weights count once."""
    return sum(math.prod(row.shape) for row in weight_table(config))


# Second copies that some Hugging Face checkpoints store, and their originals.
_TIED_MATRIX = ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight")
_TIED_BIAS = ("cls.predictions.decoder.bias", "cls.predictions.bias")


def tied_hf_names(config: EncoderConfig) -> dict[str, str]:
    """Returns the tensors that a checkpoint may hold twice: names of copies and originals.

    If the output layer is not tied, `transformers` computes with the copy of the bias.
    """
    names = config.family.hf_names
    pairs = (_TIED_MATRIX, _TIED_BIAS) if config.tie_word_embeddings else (_TIED_BIAS,)
    tied = {rename(copy, names): rename(original, names) for copy, original in pairs}
    return {copy: original for copy, original in tied.items() if copy != original}


# The name of the pooler within an encoder, which a masked LM does not use.
POOLER = "pooler"
_BUFFER = re.compile(r".*\.(position|token_type)_ids")
_OPTIMIZER_STATE = re.compile(
    r".*/(adam_[mv]|lamb_[mv]|adamw_[mv])(_\d+)?|.*/(Adam|Adam_1|LAMB|LAMB_1)"
    r"|.*/ExponentialMovingAverage|global_step"
)


def base_prefix(table: Sequence[WeightName], layout: str) -> str:
    """Returns the prefix of the encoder's names in a layout, for example `bert.` or `bert/`."""
    name = next(row.stored(layout)[0] for row in table if row.ours.startswith("encoder/"))
    separator = separator_of(layout)
    return name.partition(separator)[0] + separator


def separator_of(layout: str) -> str:
    """Returns the separator between the levels of a name in a layout."""
    return "/" if layout == TF1 else "."


def is_optimizer_state(name: str) -> bool:
    """Returns whether a tensor of a checkpoint belongs to the optimizer that trained it."""
    return _OPTIMIZER_STATE.fullmatch(name) is not None


def check_tensors(
    shapes: Mapping[str, Shape], table: Sequence[WeightName], *, layout: str, where: Location
) -> None:
    """Checks that a checkpoint has the tensors of a configuration.

    Args:
        shapes: the shape of every tensor in the checkpoint, by its name in the checkpoint.
        table: the weights that the checkpoint must have.
        layout: `HF` or `TF1`.
        where: the checkpoint, for messages.

    Raises:
        InputError: tensors are missing or have the wrong shape, or belong to layers or
            embeddings that the configuration does not have.
    """
    expected = dict(row.stored(layout) for row in table)
    base = base_prefix(table, layout)
    problems = {
        "missing": [
            f"{name} {list(shape)}" for name, shape in expected.items() if name not in shapes
        ],
        "of the wrong shape": [
            f"{name}: expected {list(shape)}, received {list(shapes[name])}"
            for name, shape in expected.items()
            if name in shapes and tuple(shapes[name]) != shape
        ],
        "not in the configuration": [
            name
            for name in sorted(set(shapes) - set(expected))
            if name.startswith(base) and not name.startswith(f"{base}{POOLER}")
            if not _BUFFER.fullmatch(name) and not is_optimizer_state(name)
        ],
    }
    for problem, entries in problems.items():
        if entries:
            rest = f" and {len(entries) - 3} more" if len(entries) > 3 else ""
            plural = "" if len(entries) == 1 else "s"
            shown = "; ".join(entries[:3])
            received = f"{len(entries)} tensor{plural} {problem}: {shown}{rest}"
            raise InputError(where, received=received)
