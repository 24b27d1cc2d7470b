"""Truncation of the teacher's distribution at a masked position: its top-k, or random draws.

Random draws follow Anshumann et al., "Sparse Logit Sampling: Accelerating Knowledge
Distillation in LLMs" (ACL 2025): from a top-k a student learns a distribution that is too
sharp; the shares of N independent draws are the teacher's distribution on average, and so
are the gradients of a cross-entropy with them. The draws are from the distribution itself,
so that each has the importance weight 1 / N (theirs are from p^t with weights p / p^t; this
is t = 1).
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
        label_logits = ops.take_along_axis(logits, ops.expand_dims(labels, -1), axis=-1)
        # The log of each label's weight, where that of the largest logit is 0.
        log_weights = (label_logits - values[..., :1])[..., 0]
        result[records.LABEL_LOG_PROBS] = log_weights - top.log_total
    return result


def entropies(logits: Any) -> Any:
    """Returns the entropy at each example's first position, in nats, for all its positions.

    One position an example tells as much of a shard as all do, and takes half a percent of the
    forward pass of a teacher of 4 layers of 256 dimensions; all take 2%.

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
        uniform: float64 [N], numbers from 0 to below 1, one for each draw.

    Returns:
        the distinct ids, int64 [n], and how often each was drawn, int64 [n]; the
        most frequent first, of equals the smaller id.

    Example: of p = [0.5, 0.25, 0.25] the numbers 0.1, 0.8, 0.4 draw the ids 0, 2, 0:
    ids [0, 2], counts [2, 1].
    """
    weights = np.exp(logits.astype(np.float64) - logits.max())
    heights = np.cumsum(weights)
    # `right`: an id without mass has no width. The last height may be rounded down to.
    drawn = np.searchsorted(heights, uniform * heights[-1], side="right")
    ids, counts = np.unique(np.minimum(drawn, np.flatnonzero(weights)[-1]), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return ids[order], counts[order]


def sample_positions(
    logits: np.ndarray, examples: Sequence[MaskedExample], *, seed: int, num_draws: int
) -> Mapping[str, np.ndarray]:
    """Draws tokens at all masked positions of several examples.

    The draws at a position depend on the seed, the example and the position
    alone, never on the batch.

    Args:
        logits: float32 [positions, V], of one example after another.
        examples: each with its `example_id` and masked positions.
        seed: of the cache.
        num_draws: N.

    Returns:
        `topk_ids` int32 [positions, N]: the distinct ids, then `NO_ID`s;
        `topk_logits` float32 [positions, N]: the log of each id's share of the
        draws; `log_tail_masses` float32 [positions, 1]: −inf, no tail.
    """
    all_ids = np.full((len(logits), num_draws), NO_ID, np.int32)
    all_logits = np.full((len(logits), num_draws), NO_ID_LOGIT, np.float32)
    places = (
        (example.example_id, int(position))
        for example in examples
        for position in example.masked_lm_positions
    )
    for row, (example_id, position) in enumerate(places):
        stream = seeding.stream(seed, _PURPOSE, example_id, position)
        ids, counts = sample(logits[row], stream.random(num_draws))
        all_ids[row, : len(ids)] = ids
        all_logits[row, : len(ids)] = np.log(counts / num_draws)
    return {
        records.TOPK_IDS: all_ids,
        records.TOPK_LOGITS: all_logits,
        records.LOG_TAIL_MASSES: np.full((len(logits), 1), -np.inf, np.float32),
    }
