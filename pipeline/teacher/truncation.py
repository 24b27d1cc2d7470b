"""What is kept of the teacher's distribution at a masked position."""

from collections.abc import Sequence
from typing import Any

from keras import ops

from data_specs import records
from pipeline.models import topk
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
    top = topk.top_k(logits, truncation_factor, temperatures=temperatures, mass=truncation_mass)
    ids, values = top.ids, top.logits
    if top.kept is not None:
        ids, values = ops.where(top.kept, ids, NO_ID), ops.where(top.kept, values, NO_ID_LOGIT)
    result = {
        records.TOPK_IDS: ids,
        records.TOPK_LOGITS: values,
        records.LOG_TAIL_MASSES: top.log_tail_masses,
    }
    if labels is not None:
        result[records.LABEL_LOG_PROBS] = _log_weights(logits, labels, values) - top.log_total
    return result


def _log_weights(logits: Any, labels: Any, values: Any) -> Any:
    """Returns the log of each label's weight, float32 [...]; that of the largest logit is 0."""
    label_logits = ops.take_along_axis(logits, ops.expand_dims(labels, -1), axis=-1)
    return (label_logits - values[..., :1])[..., 0]
