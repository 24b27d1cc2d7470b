"""Narrower students cut from a teacher's weights, and models without segments."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from pipeline.base.errors import InputError, Setting
from pipeline.models.config import BERT, DISTILBERT, EncoderConfig
from pipeline.models.weight_names import weight_table

Weights = dict[str, np.ndarray]
_SEGMENTS = "encoder/embeddings/segment_embeddings"
_POSITIONS = "encoder/embeddings/position_embeddings"


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
        InputError: a size above the teacher's, or heads that do not divide D or
            would be larger than the teacher's.
    """
    size = config.hidden_size if hidden_size is None else hidden_size
    heads = config.num_attention_heads if num_attention_heads is None else num_attention_heads
    inner = intermediate_size
    if inner is None:
        inner = max(1, config.intermediate_size * size // config.hidden_size)
    for name, value, largest in (
        ("student_hidden_size", size, config.hidden_size),
        ("student_attention_heads", heads, config.num_attention_heads),
        ("student_intermediate_size", inner, config.intermediate_size),
    ):
        if value > largest:
            raise InputError(
                Setting(name), f"at most the teacher's {largest}, from which it is cut", value
            )
    if size % heads:
        raise InputError(
            Setting("student_hidden_size"),
            f"a multiple of its {heads} attention heads",
            size,
            hint="`student_attention_heads` sets these",
        )
    if size // heads > config.hidden_size // config.num_attention_heads:
        raise InputError(
            Setting("student_attention_heads"),
            f"heads of at most {config.hidden_size // config.num_attention_heads} dimensions, "
            "as the teacher's",
            f"{heads} for a hidden size of {size}",
        )
    return dataclasses.replace(
        config, hidden_size=size, num_attention_heads=heads, intermediate_size=inner
    )


def narrow_weights(
    weights: Mapping[str, np.ndarray], config: EncoderConfig, student: EncoderConfig
) -> Weights:
    """Cuts a narrower model out of a model's weights: the first dimensions of each.

    Of hidden states and of the feed-forward block the first numbers are kept, of
    attention the first heads and of each its first dimensions.

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
    heads, head_size = (
        student.num_attention_heads,
        student.hidden_size // student.num_attention_heads,
    )
    old_size = config.hidden_size // config.num_attention_heads

    def cut_heads(value: np.ndarray, axis: int) -> np.ndarray:
        """Keeps some of the numbers of an axis that holds [H, D / H]."""
        value = np.moveaxis(value, axis, 0)
        split = value.reshape(config.num_attention_heads, old_size, *value.shape[1:])
        kept = split[:heads, :head_size]
        return np.moveaxis(kept.reshape(heads * head_size, *value.shape[1:]), 0, axis)

    cuts: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "attention/output/kernel": lambda value: cut_heads(value, 0)
    }
    for name in ("query", "key", "value"):
        cuts[f"attention/{name}/kernel"] = lambda value: cut_heads(value, 1)
        cuts[f"attention/{name}/bias"] = lambda value: cut_heads(value, 0)
    narrowed = {}
    for row in weight_table(student):
        value = weights[row.ours]
        for ending, cut in cuts.items():
            if row.ours.endswith(ending):
                value = cut(value)
        # The remaining axes keep their first numbers.
        narrowed[row.ours] = np.array(value[tuple(slice(0, size) for size in row.shape)])
    return narrowed


def config_without_segments(config: EncoderConfig) -> EncoderConfig:
    """Returns the configuration of a BERT made into a DistilBERT.

    Raises:
        InputError: another family.
    """
    if config.model_type != BERT:
        raise InputError(
            Setting("drop_segments"), f"a teacher of model_type {BERT}", config.model_type
        )
    return dataclasses.replace(config, model_type=DISTILBERT, type_vocab_size=0)


def without_segments(
    weights: Mapping[str, np.ndarray], config: EncoderConfig
) -> tuple[EncoderConfig, Weights]:
    """Turns a BERT into a DistilBERT, which has no segments (Sanh et al., 2019).

    The first segment's embedding is added to every position's, so that nothing
    changes for inputs of a single segment.

    Args:
        weights: by our names.
        config: a BERT's.

    Raises:
        InputError: another family.
    """
    student = config_without_segments(config)
    kept = {row.ours: np.array(weights[row.ours]) for row in weight_table(student)}
    kept[_POSITIONS] += weights[_SEGMENTS][0]
    return student, kept
