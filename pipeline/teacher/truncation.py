"""What is kept of the teacher's distribution at a masked position."""

from collections.abc import Sequence
from typing import Any

from keras import ops

from data_specs import records
from pipeline.storage.codecs.base import NO_ID, NO_ID_LOGIT


def truncate(
    logits: Any,
    labels: Any | None = None,
    *,
    truncation_factor: int,
    temperatures: Sequence[float],
    truncation_mass: float | None = None,
) -> dict[str, Any]:
    """Keeps the exact top-k, the mass of the rest and the label's probability.

    The tail's mass is summed from the logits outside the top-k themselves. As
    1 − Σ of the top-k's probabilities it would cancel to nothing, or below
    zero, wherever the teacher is sure.

    Args:
        logits: float32 [..., V].
        labels: int [...], the true tokens; without them, no label's probability.
        truncation_factor: K, at most V.
        temperatures: T values; with labels, the first of them 1.
        truncation_mass: above 0; a position's ids end where they have this mass at
            temperature 1. There is at least one, and what is dropped is in the tail.

    Returns:
        `topk_ids` int32 and `topk_logits` float32 [..., K] in descending order, where
        there are no more `NO_ID` and its logit; `log_tail_masses` float32 [..., T] (−inf
        where nothing is left out), `label_log_probs` float32 [...] at temperature 1.
    """
    values, ids = ops.top_k(logits, truncation_factor)
    kept = None if truncation_mass is None else _needed(logits, values, truncation_mass)
    masses = [_masses(logits, values, kept, temperature) for temperature in temperatures]
    if kept is not None:
        ids, values = ops.where(kept, ids, NO_ID), ops.where(kept, values, NO_ID_LOGIT)
    tails = [ops.log(tail) - ops.log(total) for tail, total in masses]
    result = {
        records.TOPK_IDS: ids,
        records.TOPK_LOGITS: values,
        records.LOG_TAIL_MASSES: ops.stack(tails, axis=-1),
    }
    if labels is not None:
        weights = _log_weights(logits, labels, values)
        result[records.LABEL_LOG_PROBS] = weights - ops.log(masses[0][1])
    return result


def _log_weights(logits: Any, labels: Any, values: Any) -> Any:
    """Returns the log of each label's weight, float32 [...]; that of the largest logit is 0."""
    label_logits = ops.take_along_axis(logits, ops.expand_dims(labels, -1), axis=-1)
    return (label_logits - values[..., :1])[..., 0]


def _masses(logits: Any, values: Any, kept: Any | None, temperature: float) -> tuple[Any, Any]:
    """Returns the tail's weight and all weight, float32 [...]; that of the largest logit is 1.

    Args:
        logits: float32 [..., V].
        values: float32 [..., K], the largest of them.
        kept: bool [..., K], which of these are no tail; None for all.
        temperature: T.
    """
    smallest, largest = values[..., -1:], values[..., :1]
    weights = ops.exp((logits - largest) / temperature)
    tail = ops.sum(ops.where(logits < smallest, weights, 0.0), axis=-1)
    # Logits equal to the smallest one in the list, of which not all fitted.
    ties = _count(logits == smallest) - _count(values == smallest)
    tail += ties * ops.exp((smallest - largest)[..., 0] / temperature)
    inside = ops.exp((values - largest) / temperature)
    if kept is not None:
        tail += ops.sum(ops.where(kept, 0.0, inside), axis=-1)
        inside = ops.where(kept, inside, 0.0)
    return tail, ops.sum(inside, axis=-1) + tail


def _needed(logits: Any, values: Any, mass: float) -> Any:
    """Returns which of the top-k are needed for a mass: bool [..., K], the first always.

    Args:
        logits: float32 [..., V].
        values: float32 [..., K], the largest of them.
        mass: at temperature 1.

    Example: for 0.8 of the probabilities [0.5, 0.25, 0.125] all three are; for 0.75 the
    first two.
    """
    largest = values[..., :1]
    total = ops.sum(ops.exp(logits - largest), axis=-1, keepdims=True)
    probabilities = ops.exp(values - largest) / total
    before = ops.cumsum(probabilities, axis=-1) - probabilities
    # The first whatever it is: NaN must be seen by who reads it.
    first = ops.arange(probabilities.shape[-1]) == 0
    return ops.logical_or(before < mass, first)


def _count(condition: Any) -> Any:
    return ops.sum(ops.cast(condition, "float32"), axis=-1)
