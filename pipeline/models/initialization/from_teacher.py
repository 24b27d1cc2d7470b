"""Initial weights of a student, taken from a teacher: some of its layers and dimensions."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.base.errors import InputError, Setting
from pipeline.models.config import EncoderConfig
from pipeline.models.families import FAMILIES
from pipeline.models.weight_names import SEGMENTS, weight_table

Weights = dict[str, np.ndarray]

_LAYER_MAP = Setting("layer_map")
_LAYER = re.compile(r"encoder/layer_(\d+)/")
_POSITIONS = "encoder/embeddings/position_embeddings"


def expect_tied(config: EncoderConfig) -> None:
    """Raises InputError, without a subject, for a model that no student can start from.

    Every recipe requires that a student's output layer is its word embeddings.
    """
    if not config.tie_word_embeddings:
        expected = "a model whose output layer is its word embeddings"
        received = "a model with a separate output layer (tie_word_embeddings: false)"
        hint = "start from another model, and use this model as the teacher"
        raise InputError(None, expected, received, hint)


def default_layer_map(teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """Returns evenly spaced layers of the teacher, from which the student starts.

    Layer i of N comes from layer round(i·(L − 1)/(N − 1)) of L, so the first and
    the last are always taken; a single layer comes from the teacher's first.

    Raises:
        InputError: N is not between 1 and L.

    Example:
        `default_layer_map(12, 6)` is `(0, 2, 4, 7, 9, 11)`, DistilBERT's choice.
    """
    if not 1 <= student_layers <= teacher_layers:
        expected = f"1 to {teacher_layers}, the teacher's number of layers"
        raise InputError(Setting("student_layers"), expected, student_layers)
    step = (teacher_layers - 1) / max(1, student_layers - 1)
    return tuple(round(index * step) for index in range(student_layers))


def choose_layers(
    teacher: EncoderConfig, student_layers: int | None, layer_map: str | None
) -> tuple[int, ...]:
    """Returns the teacher's layers that the settings `student_layers` and `layer_map` name.

    Args:
        teacher: the teacher's configuration.
        student_layers: the number of layers; None for the number in `layer_map`.
        layer_map: `even`, evenly spaced layers; `first` or `last`, `student_layers`
            consecutive layers; `every:k`, the layers k − 1, 2k − 1, …; or ascending teacher
            layers from 0, separated by commas, for example `0,2,4,7,9,11`; None for `even`.

    Returns:
        one teacher layer for each student layer. If the teacher has local layers, `even`
        takes the matching layers that are nearest to evenly spaced ones.

    Raises:
        InputError: `layer_map` is neither a preset nor `student_layers` ascending integers, a
            layer is out of range, or a local layer would become a global one or the reverse.

    Example:
        `choose_layers(teacher, None, "every:4")` is `(3, 7, 11)` for a BERT of 12 layers.
    """
    layers = _named_layers(teacher.num_hidden_layers, student_layers, layer_map)
    if teacher.global_attn_every_n_layers is None:
        return layers
    if layer_map is None or layer_map.strip() == "even":
        return _nearest_layers(teacher, layers)
    _expect_same_kinds(teacher, layers, layer_map)
    return layers


def _fits(teacher: EncoderConfig, teacher_layer: int, student_layer: int) -> bool:
    """Returns whether a layer of a teacher with local layers can become a student's layer.

    Both must be local, or both global. Only the first layer lacks the normalization before
    attention, so layer 0 can come only from layer 0.
    """
    kinds = (teacher.is_global_layer(index) for index in (teacher_layer, student_layer))
    return len(set(kinds)) == 1 and (teacher_layer == 0) == (student_layer == 0)


def _nearest_layers(teacher: EncoderConfig, targets: Sequence[int]) -> tuple[int, ...]:
    """Returns the matching layers with the smallest sum of distances to the targets."""
    # Best choice so far for each possible last teacher layer: its distance and its layers.
    best: dict[int, tuple[int, tuple[int, ...]]] = {-1: (0, ())}
    for student_layer, target in enumerate(targets):
        best = {
            layer: min(
                (distance + abs(layer - target), (*before, layer))
                for last, (distance, before) in best.items()
                if last < layer
            )
            for layer in range(student_layer, teacher.num_hidden_layers)
            if layer > min(best) and _fits(teacher, layer, student_layer)
        }
    return min(best.values())[1]


def _expect_same_kinds(teacher: EncoderConfig, layers: Sequence[int], layer_map: str) -> None:
    for student_layer, layer in enumerate(layers):
        if _fits(teacher, layer, student_layer):
            continue
        every = teacher.global_attn_every_n_layers
        matching = "layer 0"
        if student_layer:
            matching = f"a local layer of the teacher (not a multiple of {every})"
        if student_layer and teacher.is_global_layer(student_layer):
            matching = f"a global layer of the teacher (a multiple of {every}, not 0)"
        expected = f"{matching} for student layer {student_layer}"
        nearest = ",".join(map(str, _nearest_layers(teacher, layers)))
        hint = f"the nearest layers that match are {nearest}"
        raise InputError(_LAYER_MAP, expected, f"{layer}: {layer_map!r}", hint)


def _named_layers(
    teacher_layers: int, student_layers: int | None, layer_map: str | None
) -> tuple[int, ...]:
    """Returns the teacher's layers that the settings name, without a check of their types."""
    if layer_map is None:
        return default_layer_map(teacher_layers, student_layers or teacher_layers)
    name = layer_map.strip()
    if name in ("even", "first", "last"):
        if student_layers is None:
            raise InputError(_LAYER_MAP, "used together with `student_layers`", f"{name!r}")
        # This call also checks `student_layers`.
        even = default_layer_map(teacher_layers, student_layers)
        first = 0 if name == "first" else teacher_layers - student_layers
        return even if name == "even" else tuple(range(first, first + student_layers))
    every = re.fullmatch(r"every:([1-9]\d{0,3})", name)
    if every is None:
        layers = _explicit_layers(layer_map, teacher_layers)
    else:
        layers = tuple(range(int(every[1]) - 1, teacher_layers, int(every[1])))
    if not layers:
        expected = f"every:1 to every:{teacher_layers}, the teacher's number of layers"
        raise InputError(_LAYER_MAP, expected, f"{name!r}")
    if student_layers is not None and len(layers) != student_layers:
        expected = f"{student_layers} layers, one for each student layer"
        raise InputError(_LAYER_MAP, expected, f"{len(layers)}: {layer_map!r}")
    return layers


def _explicit_layers(text: str, teacher_layers: int) -> tuple[int, ...]:
    if not re.fullmatch(r"\s*[0-9]+\s*(,\s*[0-9]+\s*)*", text):
        expected = "even, first, last, every:k, or integers separated by commas"
        raise InputError(_LAYER_MAP, expected, f"{text!r}")
    layers = tuple(map(int, text.split(",")))
    if list(layers) != sorted(set(layers)):
        raise InputError(_LAYER_MAP, "ascending layers", f"{text!r}")
    if layers[-1] >= teacher_layers:
        raise InputError(_LAYER_MAP, f"layers from 0 to {teacher_layers - 1}", f"{text!r}")
    return layers


def student_weights(
    teacher_weights: Mapping[str, np.ndarray],
    teacher_config: EncoderConfig,
    *,
    layer_map: Sequence[int],
) -> tuple[EncoderConfig, Weights]:
    """Copies embeddings, head and chosen layers of a teacher.

    Args:
        teacher_weights: all of the teacher's weights by our names.
        teacher_config: the teacher's configuration.
        layer_map: the teacher layer for each student layer, each in range.

    Returns:
        the student's configuration (the teacher's except for the number of layers)
        and all of its weights by our names: copies, not views.

    Example:
        with `layer_map=(0, 3)`, the student's `encoder/layer_1/…` is the teacher's
        `encoder/layer_3/…`. An ALBERT applies its one layer `len(layer_map)` times.
    """
    config = dataclasses.replace(teacher_config, num_hidden_layers=len(layer_map))
    layers = (0,) if config.family.shares_layers else layer_map
    weights = {}
    for row in weight_table(config):
        source = _LAYER.sub(lambda match: f"encoder/layer_{layers[int(match[1])]}/", row.ours)
        weights[row.ours] = np.array(teacher_weights[source])
    return config, weights


def narrow_config(
    config: EncoderConfig,
    *,
    hidden_size: int | None = None,
    num_attention_heads: int | None = None,
    intermediate_size: int | None = None,
) -> EncoderConfig:
    """Returns the configuration of a narrower student.

    Args:
        config: the teacher's configuration.
        hidden_size: D of the student; by default the teacher's.
        num_attention_heads: H; by default the teacher's.
        intermediate_size: width inside the feed-forward block; by default it shrinks with D.

    Raises:
        InputError: a size is above the teacher's, the number of heads does not divide D, or
            heads would be larger than the teacher's. Also if the family would not project
            embeddings at this D.
    """
    size = hidden_size or config.hidden_size
    heads = num_attention_heads or config.num_attention_heads
    inner = intermediate_size or max(1, config.intermediate_size * size // config.hidden_size)
    for name, value, largest in (
        ("student_hidden_size", size, config.hidden_size),
        ("student_attention_heads", heads, config.num_attention_heads),
        ("student_intermediate_size", inner, config.intermediate_size),
    ):
        if value > largest:
            expected = f"at most {largest}, the teacher's value"
            raise InputError(Setting(name), expected, value)
    rotated = config.global_rope_theta is not None
    if size % (heads * (2 if rotated else 1)):
        expected = f"a multiple of {'twice ' if rotated else ''}its {heads} attention heads"
        hint = "set `student_attention_heads` to change the number of heads"
        raise InputError(Setting("student_hidden_size"), expected, size, hint)
    largest = config.hidden_size // config.num_attention_heads
    if size // heads > largest:
        expected = (
            f"at least {-(-size // largest)}, so that a head has at most {largest} dimensions, the "
            "size of a teacher head"
        )
        received = f"{heads} for a hidden size of {size}"
        raise InputError(Setting("student_attention_heads"), expected, received)
    # Embeddings without a projection have the hidden size.
    width = config.embedding_size if config.has_projection else config.embedding_size and size
    student = dataclasses.replace(
        config,
        hidden_size=size,
        num_attention_heads=heads,
        intermediate_size=inner,
        embedding_size=width,
    )
    if config.has_projection and not student.has_projection:
        title = config.family.title
        expected = f"a size other than {width}, because {title} projects embeddings of this size"
        raise InputError(Setting("student_hidden_size"), expected, size)
    return student


def narrow_weights(
    weights: Mapping[str, np.ndarray], config: EncoderConfig, student: EncoderConfig
) -> Weights:
    """Cuts a narrower model out of a model's weights.

    The student keeps the first dimensions of hidden states and of the feed-forward block, the
    first heads, and the first dimensions of each head. If a head's dimensions are rotated in
    pairs, it keeps evenly spaced pairs, so that their angles stay as in the teacher.

    Args:
        weights: arrays by our names.
        config: the configuration of these weights.
        student: the result of `narrow_config`, with the same number of layers.

    Returns:
        the student's weights by our names: copies.

    Example:
        from 2 heads of 3 dimensions to 2 heads of 2, the student keeps the columns
        0, 1, 3, 4 of a query's kernel.
    """
    columns = _attention_columns(config, student)
    narrowed = {}
    for row in weight_table(student):
        value = weights[row.ours]
        # Concatenated blocks are cut separately.
        value = value.reshape(*value.shape[:-1], row.blocks, -1) if row.blocks > 1 else value
        if row.ours.split("/")[-2] in ("query", "key", "value", "query_key_value"):
            value = value[..., columns]
        elif row.ours.endswith("attention/output/kernel"):
            value = value[columns]
        shape = row.shape
        if row.blocks > 1:
            shape = (*row.shape[:-1], row.blocks, row.shape[-1] // row.blocks)
        # On the other axes, the first elements are kept.
        value = np.array(value[tuple(slice(0, size) for size in shape)])
        narrowed[row.ours] = value.reshape(row.shape)
    return narrowed


def _attention_columns(config: EncoderConfig, student: EncoderConfig) -> np.ndarray:
    """Returns the columns of the teacher's queries, keys and values to keep, int [D']."""
    numbers = np.arange(config.hidden_size).reshape(config.num_attention_heads, -1)
    size = student.hidden_size // student.num_attention_heads
    dimensions = np.arange(size)
    if config.global_rope_theta is not None:
        half, teacher_half = size // 2, numbers.shape[1] // 2
        pairs = np.arange(half) * teacher_half // half
        dimensions = np.concatenate([pairs, pairs + teacher_half])
    return numbers[: student.num_attention_heads, dimensions].ravel()


def config_without_segments(config: EncoderConfig) -> EncoderConfig:
    """Returns the configuration of the DistilBERT that a BERT becomes without segments.

    Raises:
        InputError: the family has no counterpart without segments.
    """
    if config.family.without_segments is None:
        supported = (name for name, family in FAMILIES.items() if family.without_segments)
        expected = f"a teacher of model_type {' or '.join(supported)}"
        raise InputError(Setting("drop_segments"), expected, config.model_type)
    return dataclasses.replace(config, model_type=config.family.without_segments, type_vocab_size=0)


def without_segments(
    weights: Mapping[str, np.ndarray], config: EncoderConfig
) -> tuple[EncoderConfig, Weights]:
    """Turns a BERT into a DistilBERT, which has no segments (Sanh et al., 2019).

    The first segment's embedding is added to every position's embedding, so that outputs for
    inputs of a single segment do not change.

    Raises:
        InputError: see `config_without_segments`.
    """
    student = config_without_segments(config)
    remaining = {row.ours: np.array(weights[row.ours]) for row in weight_table(student)}
    remaining[_POSITIONS] += weights[SEGMENTS][0]
    return student, remaining
