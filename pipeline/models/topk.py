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
        is_needed: bool [..., K], true for the ids that are needed to reach the requested mass;
            None for all.
        log_tail_masses: float32 [..., T], the log of the mass outside these ids; −inf for no
            mass.
        log_total: float32 [...], the log of the sum of all weights at the first temperature,
            where the weight of the largest logit is 1.
    """

    ids: Any
    logits: Any
    is_needed: Any | None
    log_tail_masses: Any
    log_total: Any


def top_k(logits: Any, k: int, *, temperatures: Sequence[float], mass: float | None = None) -> TopK:
    """Returns the k largest logits and the exact mass of the tail.

    The tail's mass is the sum over the logits outside the top-k. For a peaked distribution,
    1 − Σ of the top-k's probabilities would round to zero or below.

    Args:
        logits: float32 [..., V].
        k: K, at most V.
        temperatures: T values.
        mass: a mass above 0. A position needs only its first ids that reach this mass at
            temperature 1, at least one. The mass of the other ids joins the tail.
    """
    values, ids = _largest(logits, k)
    is_needed = None if mass is None else _is_needed(logits, values, mass)
    masses = [_masses(logits, values, is_needed, temperature) for temperature in temperatures]
    tails = [ops.log(tail) - ops.log(total) for tail, total in masses]
    return TopK(ids, values, is_needed, ops.stack(tails, axis=-1), ops.log(masses[0][1]))


def _largest(logits: Any, k: int) -> tuple[Any, Any]:
    """Returns the k largest logits and their ids.

    XLA recognizes a top-k as a sort followed by a slice. Without the barrier it would merge
    later slices of the values into this slice, not recognize the top-k, and sort the whole
    vocabulary.
    """
    if keras.config.backend() != "jax":
        return ops.top_k(logits, k)
    import jax

    values, ids = ops.top_k(logits, k)
    # The ids get no barrier: if a batch is divided among devices, XLA for CPUs would abort.
    return jax.lax.optimization_barrier(values), ids


def _masses(logits: Any, values: Any, is_needed: Any | None, temperature: float) -> tuple[Any, Any]:
    """Returns the tail's weight and the total weight, float32 [...].

    The weight of the largest logit is 1.

    Args:
        logits: all logits.
        values: the largest logits.
        is_needed: bool [..., K], false for values that join the tail; None if all are needed.
        temperature: T.
    """
    smallest, largest = values[..., -1:], values[..., :1]
    weights = ops.exp((logits - largest) / temperature)
    tail = ops.sum(ops.where(logits < smallest, weights, 0.0), axis=-1)
    # The number of logits that equal the smallest value but are outside the top-k.
    ties = _count(logits == smallest) - _count(values == smallest)
    tail += ties * ops.exp((smallest - largest)[..., 0] / temperature)
    inside = ops.exp((values - largest) / temperature)
    if is_needed is not None:
        tail += ops.sum(ops.where(is_needed, 0.0, inside), axis=-1)
        inside = ops.where(is_needed, inside, 0.0)
    return tail, ops.sum(inside, axis=-1) + tail


def _is_needed(logits: Any, values: Any, mass: float) -> Any:
    """Returns whether each of the top-k is needed to reach a mass: bool [..., K].

    The first is always needed.

    Example: of the probabilities [0.5, 0.25, 0.125], a mass of 0.8 needs all three and a mass
    of 0.75 the first two.
    """
    largest = values[..., :1]
    total = ops.sum(ops.exp(logits - largest), axis=-1, keepdims=True)
    probabilities = ops.exp(values - largest) / total
    before = ops.cumsum(probabilities, axis=-1) - probabilities
    # The first is needed even if it is NaN, so that the caller sees the NaN.
    first = ops.arange(probabilities.shape[-1]) == 0
    return ops.logical_or(before < mass, first)


def _count(condition: Any) -> Any:
    return ops.sum(ops.cast(condition, "float32"), axis=-1)
