"""A student's first weights: the teacher's embeddings, head and some of its layers or tokens."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.base.errors import InputError, Setting
from pipeline.models.config import ALBERT, EncoderConfig
from pipeline.models.weight_names import weight_table

_LAYER_MAP = Setting("layer_map")
LAYER_MAP_PRESETS = ("even", "first", "last", "every:k")
_LAYER = re.compile(r"encoder/layer_(\d+)/")
_WORDS = "encoder/embeddings/word_embeddings"
_POSITIONS = "encoder/embeddings/position_embeddings"
_OUTPUT_BIAS = "head/bias"


def default_layer_map(teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """Returns the teacher's layers, evenly spaced, that the student starts from.

    Layer i of N comes from layer round(i·(L − 1)/(N − 1)) of L, so the first and
    the last are always taken; a single layer comes from the teacher's first.

    Args:
        teacher_layers: L, at least 1.
        student_layers: N, at least 1.

    Returns:
        N teacher layers, ascending.

    Raises:
        InputError: N is not between 1 and L.

    Example:
        `default_layer_map(12, 6)` is `(0, 2, 4, 7, 9, 11)`, DistilBERT's choice.
    """
    if not 1 <= student_layers <= teacher_layers:
        raise InputError(
            Setting("student_layers"),
            f"1 to {teacher_layers}, the teacher's number of layers",
            student_layers,
        )
    if student_layers == 1:
        return (0,)
    step = (teacher_layers - 1) / (student_layers - 1)
    return tuple(round(index * step) for index in range(student_layers))


def _preset_layer_map(
    name: str, teacher_layers: int, student_layers: int | None
) -> tuple[int, ...] | None:
    """Returns the layers of a preset; None where the text is no preset."""
    if name in ("even", "first", "last"):
        if student_layers is None:
            raise InputError(_LAYER_MAP, f"`student_layers` beside {name}", "none")
        # Checks the number, too.
        even = default_layer_map(teacher_layers, student_layers)
        first = 0 if name == "first" else teacher_layers - student_layers
        return even if name == "even" else tuple(range(first, first + student_layers))
    match = re.fullmatch(r"every:([1-9]\d{0,3})", name)
    if match is None:
        return None
    layers = tuple(range(int(match[1]) - 1, teacher_layers, int(match[1])))
    if not layers:
        raise InputError(
            _LAYER_MAP,
            f"every:1 to every:{teacher_layers}, the teacher's number of layers",
            f"{name!r}",
        )
    return layers


def parse_layer_map(
    text: str, teacher_layers: int, student_layers: int | None = None
) -> tuple[int, ...]:
    """Reads the value of `--layer_map`.

    Args:
        text: `even`, evenly spaced; `first` or `last`, so many consecutive ones;
            `every:k`, each k-th, the k-th first; or teacher layers from 0,
            ascending, separated by commas, such as `0,2,4,7,9,11`.
        teacher_layers: layers of the teacher.
        student_layers: layers of the student; None for as many as the text says.

    Returns:
        one teacher layer for each student layer.

    Raises:
        InputError: no preset and not that many ascending integers, or one is out
            of range.

    Example:
        `parse_layer_map("every:4", 12)` is `(3, 7, 11)`.
    """
    layers = _preset_layer_map(text.strip(), teacher_layers, student_layers)
    if layers is None:
        layers = _explicit_layer_map(text, teacher_layers)
    if student_layers is not None and len(layers) != student_layers:
        raise InputError(
            _LAYER_MAP,
            f"{student_layers} layers, one for each of the student's",
            f"{len(layers)}: {text!r}",
        )
    return layers


def _explicit_layer_map(text: str, teacher_layers: int) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise InputError(
            _LAYER_MAP,
            f"{', '.join(LAYER_MAP_PRESETS)}, or integers separated by commas",
            f"{text!r}",
        )
    layers = tuple(int(part) for part in parts)
    if list(layers) != sorted(set(layers)):
        raise InputError(_LAYER_MAP, "ascending layers", f"{text!r}")
    if layers[-1] >= teacher_layers:
        raise InputError(_LAYER_MAP, f"layers from 0 to {teacher_layers - 1}", f"{text!r}")
    return layers


def choose_layers(
    teacher_layers: int, student_layers: int | None, layer_map: str | None
) -> tuple[int, ...]:
    """Returns the teacher's layers that `--student_layers` and `--layer_map` name.

    Args:
        teacher_layers: layers of the teacher.
        student_layers: how many; None for as many as `layer_map` has.
        layer_map: as `parse_layer_map` reads it; None for `default_layer_map`'s.

    Raises:
        InputError: they do not fit the teacher or each other.
    """
    if layer_map is None:
        return default_layer_map(teacher_layers, student_layers or teacher_layers)
    return parse_layer_map(layer_map, teacher_layers, student_layers)


def student_weights(
    teacher_weights: Mapping[str, np.ndarray],
    teacher_config: EncoderConfig,
    *,
    layer_map: Sequence[int],
) -> tuple[EncoderConfig, dict[str, np.ndarray]]:
    """Takes over embeddings, head and chosen layers of a teacher.

    Args:
        teacher_weights: all of the teacher's weights by our names.
        teacher_config: its configuration.
        layer_map: the teacher layer for each student layer, each in range.

    Returns:
        the student's configuration (the teacher's but for the number of layers)
        and all of its weights by our names: copies, not views.

    Example:
        with `layer_map=(0, 3)`, the student's `encoder/layer_1/…` is the teacher's
        `encoder/layer_3/…`. An ALBERT applies its one layer as often as there are
        numbers.
    """
    config = dataclasses.replace(teacher_config, num_hidden_layers=len(layer_map))

    def source(ours: str) -> str:
        if config.model_type == ALBERT:
            # Its one layer is all of the teacher's.
            return ours
        return _LAYER.sub(lambda match: f"encoder/layer_{layer_map[int(match[1])]}/", ours)

    weights = {
        name.ours: np.array(teacher_weights[source(name.ours)]) for name in weight_table(config)
    }
    return config, weights


def reduce_vocabulary(
    weights: Mapping[str, np.ndarray], config: EncoderConfig, kept_ids: np.ndarray
) -> tuple[EncoderConfig, dict[str, np.ndarray]]:
    """Keeps the word embeddings and output biases of some tokens.

    On inputs of kept tokens the logits at these are the old ones.

    Args:
        weights: all weights of a model by our names.
        config: its configuration.
        kept_ids: int [n], ascending, with the padding's.

    Returns:
        the configuration with n tokens, and all weights by our names.

    Example:
        with `kept_ids` 0, 1, 4 the embedding of token 4 becomes row 2. Where the
        padding of a RoBERTa moves from id 3 to id 1, its positions, which are counted
        from there, begin two rows earlier: the first two rows are left out.
    """
    pad_id = int(np.searchsorted(kept_ids, config.pad_token_id))
    if pad_id == len(kept_ids) or kept_ids[pad_id] != config.pad_token_id:
        raise ValueError(f"kept_ids: expected the padding's id {config.pad_token_id} among them")
    reduced = dataclasses.replace(config, pad_token_id=pad_id)
    moved = config.position_offset - reduced.position_offset
    reduced = dataclasses.replace(
        reduced,
        vocab_size=len(kept_ids),
        max_position_embeddings=config.max_position_embeddings - moved,
    )
    gathered = {name: weights[name][kept_ids] for name in (_WORDS, _OUTPUT_BIAS)}
    positions = {_POSITIONS: weights[_POSITIONS][moved:]}
    return reduced, {**weights, **gathered, **positions}
