"""What is kept of the teacher's distribution at a masked position."""

from collections.abc import Sequence
from typing import Any

from keras import ops

from data_specs import records


def truncate(
    logits: Any,
    labels: Any | None = None,
    *,
    truncation_factor: int,
    temperatures: Sequence[float],
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

    Returns:
        `topk_ids` int32 [..., K] and `topk_logits` float32 [..., K] in
        descending order, `log_tail_masses` float32 [..., T] (−inf where nothing
        is left out), `label_log_probs` float32 [...] at temperature 1.
    """
    values, ids = ops.top_k(logits, truncation_factor)
    smallest, largest = values[..., -1:], values[..., :1]
    outside = logits < smallest
    # Logits equal to the smallest one kept, of which not all fitted.
    ties = _count(logits == smallest) - _count(values == smallest)
    log_tails, log_total = [], None
    for temperature in temperatures:
        weights = ops.exp((logits - largest) / temperature)
        tail = ops.sum(ops.where(outside, weights, 0.0), axis=-1)
        tail += ties * ops.exp((smallest - largest)[..., 0] / temperature)
        total = ops.sum(ops.exp((values - largest) / temperature), axis=-1) + tail
        log_tails.append(ops.log(tail) - ops.log(total))
        log_total = ops.log(total) if log_total is None else log_total
    kept = {
        records.TOPK_IDS: ids,
        records.TOPK_LOGITS: values,
        records.LOG_TAIL_MASSES: ops.stack(log_tails, axis=-1),
    }
    if labels is not None:
        label_logits = ops.take_along_axis(logits, ops.expand_dims(labels, -1), axis=-1)
        kept[records.LABEL_LOG_PROBS] = (label_logits - largest)[..., 0] - log_total
    return kept


def _count(condition: Any) -> Any:
    return ops.sum(ops.cast(condition, "float32"), axis=-1)
