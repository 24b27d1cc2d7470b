"""Truncation of the teacher's distribution at a masked position: its top-k, or random draws.

Random draws follow Anshumann et al., "Sparse Logit Sampling: Accelerating Knowledge
Distillation in LLMs" (ACL 2025). From a top-k, a student learns a distribution that is too
sharp. The shares of N independent draws are an unbiased estimate of the teacher's distribution,
and a cross-entropy with them has unbiased gradients. This module draws from the distribution
itself, so that each draw has the importance weight 1 / N. The paper draws from p^t with weights
p / p^t; this is t = 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from data_specs import records
from pipeline.base import seeding
from pipeline.models import topk
from pipeline.storage.codecs.base import NO_ID, NO_ID_LOGIT
from pipeline.storage.records import MaskedExample

_PURPOSE = "sampled logits"


def truncate(
    logits: Any,
    labels: Any | None = None,
    *,
    truncation_factor: int,
    temperatures: Sequence[float],
    truncation_mass: float | None = None,
) -> dict[str, Any]:
    """Returns the exact top-k, the mass outside it and the label's log-probability.

    Args:
        logits: float32 [..., V].
        labels: int [...], the true tokens; without them, `label_log_probs` is left out.
        truncation_factor: K, at most V.
        temperatures: T values; with labels, the first must be 1.
        truncation_mass: above 0; a position's ids end when their mass at temperature 1 reaches
            it. At least one id is stored. The mass of dropped ids is part of the tail.

    Returns:
        `topk_ids` int32 and `topk_logits` float32 [..., K] in descending order, padded with
        `NO_ID` and its logit; `log_tail_masses` float32 [..., T] (−inf where the top-k holds
        all tokens); `label_log_probs` float32 [...] at temperature 1.
    """
    top = topk.top_k(logits, truncation_factor, temperatures=temperatures, mass=truncation_mass)
    ids, values = top.ids, top.logits
    if top.is_needed is not None:
        ids, values = (
            ops.where(top.is_needed, ids, NO_ID),
            ops.where(top.is_needed, values, NO_ID_LOGIT),
        )
    result = {
        records.TOPK_IDS: ids,
        records.TOPK_LOGITS: values,
        records.LOG_TAIL_MASSES: top.log_tail_masses,
    }
    if labels is not None:
        label_logits = ops.take_along_axis(logits, ops.expand_dims(labels, -1), axis=-1)
        # The labels' logits relative to the largest logit, as `log_total` is.
        log_weights = (label_logits - values[..., :1])[..., 0]
        result[records.LABEL_LOG_PROBS] = log_weights - top.log_total
    return result


def entropies(logits: Any) -> Any:
    """Returns the entropy at each example's first position, in nats, for all its positions.

    One position per example is enough to estimate the mean over a shard. It takes 0.5% of the
    forward pass of a teacher of 4 layers of 256 dimensions; all positions would take 2%.

    Args:
        logits: float32 [B, P, V].

    Returns:
        float32 [B, P].
    """
    first = logits[:, :1]
    shifted = first - ops.max(first, axis=-1, keepdims=True)
    weights = ops.exp(shifted)
    total = ops.sum(weights, axis=-1)
    entropy = ops.log(total) - ops.sum(weights * shifted, axis=-1) / total
    return ops.broadcast_to(entropy, ops.shape(logits)[:2])


def sample(logits: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws tokens at one position.

    Args:
        logits: float [V].
        uniform: float64 [N], a number from 0 to below 1 for each draw.

    Returns:
        the distinct ids, int64 [n], and the number of draws of each, int64 [n]; the most
        frequent first, ties by the smaller id.

    Example: from p = [0.5, 0.25, 0.25], the numbers 0.1, 0.8, 0.4 draw the ids 0, 2, 0. The
    result is ids [0, 2], counts [2, 1].
    """
    weights = np.exp(logits.astype(np.float64) - logits.max())
    cumulative = np.cumsum(weights)
    # `right` skips ids without mass. Rounding may give an index after the last id with mass.
    drawn = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    ids, counts = np.unique(np.minimum(drawn, np.flatnonzero(weights)[-1]), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return ids[order], counts[order]


def sample_positions(
    logits: np.ndarray, examples: Sequence[MaskedExample], *, seed: int, num_draws: int
) -> Mapping[str, np.ndarray]:
    """Draws tokens at all masked positions of several examples.

    The draws at a position depend only on the seed, the example and the position, never on the
    batch.

    Args:
        logits: float32 [positions, V], example by example.
        examples: each with its `example_id` and masked positions.
        seed: of the masked examples.
        num_draws: N.

    Returns:
        `topk_ids` int32 [positions, N]: the distinct ids, then `NO_ID`s;
        `topk_logits` float32 [positions, N]: the log of each id's share of the
        draws; `log_tail_masses` float32 [positions, 1]: −inf, no tail.
    """
    all_ids = np.full((len(logits), num_draws), NO_ID, np.int32)
    all_logits = np.full((len(logits), num_draws), NO_ID_LOGIT, np.float32)
    masked_positions = (
        (example.example_id, int(position))
        for example in examples
        for position in example.masked_lm_positions
    )
    for row, (example_id, position) in enumerate(masked_positions):
        rng = seeding.keyed_rng(seed, _PURPOSE, example_id, position)
        ids, counts = sample(logits[row], rng.random(num_draws))
        all_ids[row, : len(ids)] = ids
        all_logits[row, : len(ids)] = np.log(counts / num_draws)
    return {
        records.TOPK_IDS: all_ids,
        records.TOPK_LOGITS: all_logits,
        records.LOG_TAIL_MASSES: np.full((len(logits), 1), -np.inf, np.float32),
    }
