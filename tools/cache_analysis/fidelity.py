"""Divergence of a cached distribution from the teacher's, in float64.

Letters as in `data_specs.records`. A cached distribution consists of K ids and the total mass of
all other tokens, the tail. Divergences are in nats. A tail can be compared in two ways:

- as a single class, which measures the error of the stored values;
- spread evenly over the tokens that are not stored, which also measures the loss of their values.

By the chain rule of the divergence (Cover and Thomas, 2006, theorem 2.5.3) the second is the
first plus `Tail.spread_divergence`.
"""

import dataclasses

import numpy as np

# The log of the smallest mass in float32, the dtype of a cache's tails. A smaller mass counts
# as 0.
_NO_MASS = float(np.log(np.finfo(np.float32).tiny))


def log_softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Returns the log-probabilities, float64 [..., V], of logits [..., V]."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=-1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True))


@dataclasses.dataclass(frozen=True)
class Tail:
    """The part of a full distribution p outside some ids.

    Attributes:
        log_mass: float64 [positions], log t; −inf for an empty tail.
        negative_entropy: float64 [positions], Σ p log p over the tail's tokens.
        num_tokens: int64 [positions], n, the number of the tail's tokens.
    """

    log_mass: np.ndarray
    negative_entropy: np.ndarray
    num_tokens: np.ndarray

    def spread_divergence(self) -> np.ndarray:
        """Returns t · KL(p within the tail ‖ uniform), float64 [positions].

        It is Σ p log p − t log t + t log n, which is 0 if the tail is uniform.
        """
        mass = np.exp(self.log_mass)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = self.negative_entropy + mass * (np.log(self.num_tokens) - self.log_mass)
        return np.where(mass > 0.0, terms, 0.0)


def measure_tail(log_probs: np.ndarray, ids: np.ndarray) -> Tail:
    """Returns the tail outside some ids, summed token by token: 1 − Σ would lose precision.

    Args:
        log_probs: float64 [positions, V].
        ids: int [positions, K], distinct; negative at padding.

    Example: the probabilities are [0.5, 0.25, 0.125, 0.125] and the ids [0, 1]. The tail has two
    tokens of total mass 0.25 with Σ p log p = 0.25 · log 0.125.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        masses = np.exp(log_probs)
        rows, columns = np.nonzero(ids >= 0)
        masses[rows, ids[rows, columns]] = 0.0
        log_mass = np.log(masses.sum(axis=-1))
        entropy = np.where(masses > 0.0, masses * log_probs, 0.0).sum(axis=-1)
    return Tail(
        log_mass=np.where(log_mass < _NO_MASS, -np.inf, log_mass),
        negative_entropy=entropy,
        num_tokens=log_probs.shape[-1] - (ids >= 0).sum(axis=-1),
    )


def take_log_probs(log_probs: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Returns the log-probabilities [positions, K] of ids; −inf at padding."""
    taken = np.take_along_axis(log_probs, np.maximum(ids, 0), axis=-1)
    return np.where(ids >= 0, taken, -np.inf)


def cached_log_probs(
    ids: np.ndarray, topk_logits: np.ndarray, log_tail_masses: np.ndarray, temperature: float = 1.0
) -> np.ndarray:
    """Returns a cache's log-probabilities of its ids: log((1 − tail_T) · softmax_K(logits / T)).

    Args:
        ids: int [positions, K]; negative at padding.
        topk_logits: float [positions, K], decoded.
        log_tail_masses: float [positions], at T.
        temperature: T.

    Returns:
        float64 [positions, K]; −inf at padding.
    """
    logits = np.where(ids >= 0, topk_logits.astype(np.float64), -np.inf)
    # A tail that is rounded to 1 still leaves a tiny mass, which keeps the order of the ids.
    tails = np.minimum(log_tail_masses.astype(np.float64), -np.finfo(np.float64).tiny)
    return log_softmax(logits, temperature) + np.log(-np.expm1(tails))[:, np.newaxis]


def bucket_divergence(
    log_p: np.ndarray, log_tail_p: np.ndarray, log_q: np.ndarray, log_tail_q: np.ndarray
) -> np.ndarray:
    """Returns KL(p ‖ q) over the same ids, with each tail as a single class.

    Args:
        log_p: float64 [positions, K].
        log_tail_p: float64 [positions], the log of the mass of p outside the ids.
        log_q: float64 [positions, K].
        log_tail_q: float64 [positions], the log of the mass of q outside the ids.

    Returns:
        float64 [positions], Σ p log(p / q), where 0 log 0 is 0. It is infinite if q is 0 where
        p is not.

    Example: for p = [0.5, tail 0.5] and q = [0.25, tail 0.75] it is
    0.5 · log 2 + 0.5 · log(2/3) = 0.1438.
    """
    log_p = np.concatenate([log_p, log_tail_p[:, np.newaxis]], axis=-1)
    log_q = np.concatenate([log_q, log_tail_q[:, np.newaxis]], axis=-1)
    with np.errstate(invalid="ignore"):
        terms = np.exp(log_p) * (log_p - log_q)
    return np.where(log_p == -np.inf, 0.0, terms).sum(axis=-1)


def largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the largest |a − b|; 0 for equal infinities and for empty arrays."""
    with np.errstate(invalid="ignore"):
        differences = np.where(a == b, 0.0, np.abs(a - b))
    return float(differences.max(initial=0.0))


def calibration_error(
    confidences: np.ndarray, is_right: np.ndarray, *, num_bins: int = 15
) -> float:
    """Returns the expected calibration error (Guo et al., 2017).

    Args:
        confidences: float [n], the probability of each top-1 prediction.
        is_right: bool [n], whether the prediction is the label.
        num_bins: number of bins of equal width; a confidence of 1 is in the last bin.

    Returns:
        Σ_bins (n_bin / n) · |accuracy − mean confidence|.

    Example: with two bins and the confidences 0.6 (right), 0.8 (wrong) and 0.2 (right), it is
    (2 · |0.5 − 0.7| + 1 · |1 − 0.2|) / 3 = 0.4.
    """
    bins = np.minimum((confidences * num_bins).astype(np.int64), num_bins - 1)
    gaps = np.bincount(bins, weights=is_right - confidences, minlength=num_bins)
    return float(np.abs(gaps).sum() / max(1, len(confidences)))
