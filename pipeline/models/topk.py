"""The top-k of a distribution, and the mass outside it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


@dataclasses.dataclass(frozen=True)
class TopK:
    """The largest logits, and the masses outside them.

    Attributes:
        ids: int32 [..., K], in descending order of their logits.
        logits: float32 [..., K].
        kept: bool [..., K], the ids that are needed for the mass asked for; None for all.
        log_tail_masses: float32 [..., T], of the rest; −inf where there is none.
        log_total: float32 [...], the log of all weights at the first temperature, where
            that of the largest logit is 1.
    """

    ids: Any
    logits: Any
    kept: Any | None
    log_tail_masses: Any
    log_total: Any


def top_k(logits: Any, k: int, *, temperatures: Sequence[float], mass: float | None = None) -> TopK:
    """Returns the k largest logits and the exact mass of the rest.

    The tail's mass is summed from the logits outside the top-k themselves. As 1 − Σ of the
    top-k's probabilities it would cancel to nothing, or below zero, wherever the
    distribution is peaked.

    Args:
        logits: float32 [..., V].
        k: K, at most V.
        temperatures: T values.
        mass: above 0; a position's ids end where they have this mass at temperature 1.
            There is at least one, and the dropped ones are in the tail.
    """
    values, ids = _largest(logits, k)
    kept = None if mass is None else _needed(logits, values, mass)
    masses = [_masses(logits, values, kept, temperature) for temperature in temperatures]
    tails = [ops.log(tail) - ops.log(total) for tail, total in masses]
    return TopK(ids, values, kept, ops.stack(tails, axis=-1), ops.log(masses[0][1]))


def _largest(logits: Any, k: int) -> tuple[Any, Any]:
    """Returns the k largest logits and their ids.

    XLA recognises a top-k as a sort followed by a slice. Without the barrier it merges later
    slices of the values into that one, recognises no top-k, and sorts the whole vocabulary.
    """
    if keras.config.backend() != "jax":
        return ops.top_k(logits, k)
    import jax

    values, ids = ops.top_k(logits, k)
    # Not of both: where a batch is divided among devices, XLA for CPUs ends with a failed check.
    return jax.lax.optimization_barrier(values), ids


def _masses(logits: Any, values: Any, kept: Any | None, temperature: float) -> tuple[Any, Any]:
    """Returns the tail's weight and all weight, float32 [...]; that of the largest logit is 1.

    `values` are the largest logits, of which `kept`, bool [..., K], are no tail; None for all.
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
