"""A student's first weights, made from a teacher's: some of its layers, dimensions or tokens."""

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

    A student's output layer is its word embeddings, as every recipe here has it.
    """
    if not config.tie_word_embeddings:
        expected = "a model whose output layer is its word embeddings"
        received = "one with an output layer of its own (tie_word_embeddings: false)"
        hint = "start from another model and capture targets with this one, as the teacher"
        raise InputError(None, expected, received, hint)


def default_layer_map(teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """Returns the teacher's layers, evenly spaced, that the student starts from.

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
        teacher: its configuration.
        student_layers: how many; None for as many as `layer_map` has.
        layer_map: `even`, evenly spaced; `first` or `last`, so many consecutive ones;
            `every:k`, each k-th, the k-th first; or teacher layers from 0, ascending,
            separated by commas, such as `0,2,4,7,9,11`; None for `even`.

    Returns:
        one teacher layer for each student layer. Where the teacher has local layers, `even`
        takes the layers nearest to evenly spaced ones that the student can have.

    Raises:
        InputError: no preset and not that many ascending integers, or one is out
            of range, or a local layer would become a global one or the reverse.

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
    """Returns whether a layer of a teacher that has local ones can be a layer of a student.

    Both must be local, or both global. The first layer has no normalisation of its own where
    others have one, so that only the first can take its place.
    """
    kinds = (teacher.is_global_layer(index) for index in (teacher_layer, student_layer))
    return len(set(kinds)) == 1 and (teacher_layer == 0) == (student_layer == 0)


def _nearest_layers(teacher: EncoderConfig, wanted: Sequence[int]) -> tuple[int, ...]:
    """Returns the layers that fit with the least sum of distances to the wanted ones."""
    # The best choice up to a student's layer by its last teacher layer, and its distance.
    best: dict[int, tuple[int, tuple[int, ...]]] = {-1: (0, ())}
    for student_layer, target in enumerate(wanted):
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
        wanted = "layer 0"
        if student_layer:
            wanted = f"a local layer of the teacher (no multiple of {every})"
        if student_layer and teacher.is_global_layer(student_layer):
            wanted = f"a global layer of the teacher (a multiple of {every}, not 0)"
        expected = f"{wanted} for student layer {student_layer}"
        nearest = ",".join(map(str, _nearest_layers(teacher, layers)))
        hint = f"the nearest layers that fit are {nearest}"
        raise InputError(_LAYER_MAP, expected, f"{layer}: {layer_map!r}", hint)


def _named_layers(
    teacher_layers: int, student_layers: int | None, layer_map: str | None
) -> tuple[int, ...]:
    """Returns what `choose_layers` does for a teacher whose layers are all of one kind."""
    if layer_map is None:
        return default_layer_map(teacher_layers, student_layers or teacher_layers)
    name = layer_map.strip()
    if name in ("even", "first", "last"):
        if student_layers is None:
            raise InputError(_LAYER_MAP, "used together with `student_layers`", f"{name!r}")
        # Checks the number, too.
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
        expected = f"{student_layers} layers, one for each of the student's"
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
    """Takes over embeddings, head and chosen layers of a teacher.

    Args:
        teacher_weights: all of the teacher's weights by our names.
        teacher_config: its configuration.
        layer_map: the teacher layer for each student layer, each in range.

    Returns:
        the student's configuration (the teacher's except for the number of layers)
        and all of its weights by our names: copies, not views.

    Example:
        with `layer_map=(0, 3)`, the student's `encoder/layer_1/…` is the teacher's
        `encoder/layer_3/…`. An ALBERT applies its one layer as often as there are
        numbers.
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
        config: the teacher's.
        hidden_size: D of the student; the teacher's unless given.
        num_attention_heads: H; the teacher's unless given.
        intermediate_size: width inside the feed-forward block; shrunk with D unless given.

    Raises:
        InputError: a size above the teacher's, heads that do not divide D or would be
            larger than the teacher's, or a D at which the family projects no embeddings.
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
            expected = f"at most the teacher's {largest}, from which it is cut"
            raise InputError(Setting(name), expected, value)
    rotated = config.global_rope_theta is not None
    if size % (heads * (2 if rotated else 1)):
        expected = f"a multiple of {'twice ' if rotated else ''}its {heads} attention heads"
        hint = "`student_attention_heads` sets these"
        raise InputError(Setting("student_hidden_size"), expected, size, hint)
    largest = config.hidden_size // config.num_attention_heads
    if size // heads > largest:
        expected = f"heads of at most {largest} dimensions, as the teacher's"
        received = f"{heads} for a hidden size of {size}"
        raise InputError(Setting("student_attention_heads"), expected, received)
    # Embeddings without a projection are as wide as what they become.
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
        expected = f"another size than the {width} of its embeddings, which {title} projects to it"
        raise InputError(Setting("student_hidden_size"), expected, size)
    return student


def narrow_weights(
    weights: Mapping[str, np.ndarray], config: EncoderConfig, student: EncoderConfig
) -> Weights:
    """Cuts a narrower model out of a model's weights: the first dimensions of each.

    Of hidden states and of the feed-forward block the first numbers are kept, of
    attention the first heads and of each its first dimensions. Where a head's dimensions are
    rotated in pairs, evenly spaced pairs are kept, so that they turn as in the teacher.

    Args:
        weights: by our names.
        config: of these weights.
        student: from `narrow_config`, with as many layers.

    Returns:
        the student's weights by our names: copies.

    Example:
        from 2 heads of 3 dimensions to 2 of 2, columns 0, 1, 3, 4 of a query's
        kernel are kept.
    """
    kept = _kept_of_attention(config, student)
    narrowed = {}
    for row in weight_table(student):
        value = weights[row.ours]
        # Parts that lie side by side are cut each for itself.
        value = value.reshape(*value.shape[:-1], row.blocks, -1) if row.blocks > 1 else value
        if row.ours.split("/")[-2] in ("query", "key", "value", "query_key_value"):
            value = value[..., kept]
        elif row.ours.endswith("attention/output/kernel"):
            value = value[kept]
        shape = row.shape
        if row.blocks > 1:
            shape = (*row.shape[:-1], row.blocks, row.shape[-1] // row.blocks)
        # The remaining axes keep their first numbers.
        value = np.array(value[tuple(slice(0, size) for size in shape)])
        narrowed[row.ours] = value.reshape(row.shape)
    return narrowed


def _kept_of_attention(config: EncoderConfig, student: EncoderConfig) -> np.ndarray:
    """Returns which of the teacher's D numbers of queries, keys and values are kept, int [D']."""
    numbers = np.arange(config.hidden_size).reshape(config.num_attention_heads, -1)
    size = student.hidden_size // student.num_attention_heads
    dimensions = np.arange(size)
    if config.global_rope_theta is not None:
        half, teacher_half = size // 2, numbers.shape[1] // 2
        pairs = np.arange(half) * teacher_half // half
        dimensions = np.concatenate([pairs, pairs + teacher_half])
    return numbers[: student.num_attention_heads, dimensions].ravel()


def config_without_segments(config: EncoderConfig) -> EncoderConfig:
    """Returns the configuration of a BERT made into a DistilBERT.

    Raises:
        InputError: the family has no relative without segments.
    """
    if config.family.without_segments is None:
        having = (name for name, family in FAMILIES.items() if family.without_segments)
        expected = f"a teacher of model_type {' or '.join(having)}"
        raise InputError(Setting("drop_segments"), expected, config.model_type)
    return dataclasses.replace(config, model_type=config.family.without_segments, type_vocab_size=0)


def without_segments(
    weights: Mapping[str, np.ndarray], config: EncoderConfig
) -> tuple[EncoderConfig, Weights]:
    """Turns a BERT into a DistilBERT, which has no segments (Sanh et al., 2019).

    The first segment's embedding is added to every position's, so that nothing
    changes for inputs of a single segment.

    Raises:
        InputError: see `config_without_segments`.
    """
    student = config_without_segments(config)
    kept = {row.ours: np.array(weights[row.ours]) for row in weight_table(student)}
    kept[_POSITIONS] += weights[SEGMENTS][0]
    return student, kept
