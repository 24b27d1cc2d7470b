"""Divergences, tails and calibration errors equal known values and plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage.codecs.base import NO_ID, NO_ID_LOGIT
from tools.cache_analysis import fidelity

LOGITS = st.lists(st.floats(-20.0, 20.0, width=32), min_size=2, max_size=12)


def _plain_softmax(logits: list[float], temperature: float) -> list[float]:
    weights = [math.exp(value / temperature) for value in logits]
    return [weight / math.fsum(weights) for weight in weights]


@given(LOGITS, st.sampled_from([1.0, 2.0, 5.0]))
def test_log_softmax_equals_a_plain_loop(logits: list[float], temperature: float) -> None:
    received = fidelity.log_softmax(np.array([logits], np.float32), temperature)
    assert received.dtype == np.float64
    np.testing.assert_allclose(np.exp(received[0]), _plain_softmax(logits, temperature), rtol=1e-12)


def test_tail_of_a_known_distribution() -> None:
    log_probs = np.log([[0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4]])
    tail = fidelity.measure_tail(log_probs, np.array([[0, 1], [3, NO_ID]]))
    np.testing.assert_allclose(np.exp(tail.log_mass), [0.25, 0.6])
    assert tail.num_tokens.tolist() == [2, 3]
    plain = 0.1 * math.log(0.1) + 0.2 * math.log(0.2) + 0.3 * math.log(0.3)
    np.testing.assert_allclose(tail.negative_entropy, [0.25 * math.log(0.125), plain])
    # The divergence is 0 for a uniform tail, and t · KL(tail ‖ uniform) otherwise.
    shares = [1 / 6, 2 / 6, 3 / 6]
    lost = 0.6 * sum(share * math.log(share * 3) for share in shares)
    np.testing.assert_allclose(tail.spread_divergence(), [0.0, lost], atol=1e-15)


def test_a_tail_without_tokens_or_below_float32_has_no_mass() -> None:
    log_probs = np.array([[math.log(0.5), math.log(0.5)], [0.0, -90.0]])
    tail = fidelity.measure_tail(log_probs, np.array([[1, 0], [0, NO_ID]]))
    assert tail.log_mass.tolist() == [-np.inf, -np.inf]
    assert tail.spread_divergence().tolist() == [0.0, 0.0]


def test_a_small_tail_keeps_its_precision() -> None:
    log_probs = fidelity.log_softmax(np.array([[0.0, -60.0, -61.0]]))
    tail = fidelity.measure_tail(log_probs, np.array([[0]]))
    expected = -60.0 + math.log1p(math.exp(-1.0))
    assert tail.log_mass[0] == pytest.approx(expected, abs=1e-12)


def test_bucket_divergence_of_known_distributions() -> None:
    half = np.log([0.5])
    received = fidelity.bucket_divergence(half[:, None], half, np.log([[0.25]]), np.log([0.75]))
    assert received[0] == pytest.approx(0.5 * math.log(2.0) + 0.5 * math.log(2.0 / 3.0))
    assert received[0] == pytest.approx(0.1438, abs=5e-5)


def test_bucket_divergence_with_classes_without_mass() -> None:
    all_mass, no_mass = np.array([0.0]), np.array([-np.inf])
    divergence = fidelity.bucket_divergence(all_mass[:, None], no_mass, all_mass[:, None], no_mass)
    assert divergence[0] == 0.0
    half = np.log([0.5])
    divergence = fidelity.bucket_divergence(half[:, None], half, all_mass[:, None], no_mass)
    assert divergence[0] == np.inf
    # A position with fewer ids has padding.
    ids = np.array([[0, NO_ID]])
    log_p = fidelity.take_log_probs(np.log([[0.5, 0.3, 0.2]]), ids)
    assert log_p.tolist() == [[math.log(0.5), -np.inf]]
    log_q = fidelity.cached_log_probs(ids, np.array([[0.0, NO_ID_LOGIT]]), np.log([0.5]))
    np.testing.assert_allclose(log_q, log_p)
    assert fidelity.bucket_divergence(log_p, np.log([0.5]), log_q, np.log([0.5]))[0] == (
        pytest.approx(0.0, abs=1e-15)
    )


def test_cached_log_probs_of_known_targets() -> None:
    logits = np.array([[0.0, -math.log(3.0)]], np.float32)
    ids, tails = np.array([[4, 2]]), np.log([0.2])
    received = fidelity.cached_log_probs(ids, logits, tails)
    np.testing.assert_allclose(np.exp(received), [[0.6, 0.2]], rtol=1e-6)
    at_two = np.exp(fidelity.cached_log_probs(ids, logits, tails, 2.0))[0]
    assert at_two[0] / at_two[1] == pytest.approx(math.sqrt(3.0))
    assert at_two.sum() == pytest.approx(0.8)
    # A tail of 1 leaves a tiny mass.
    assert np.isfinite(fidelity.cached_log_probs(ids, logits, np.array([0.0]))).all()


@given(LOGITS, st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_bucket_and_spread_divergence_add_up_to_the_dense_divergence(
    logits: list[float], k: int, seed: int
) -> None:
    """The reference sums p log(p / q) over all tokens, with the tail of q spread evenly."""
    k = min(k, len(logits))
    rng = np.random.default_rng(seed)
    log_probs = fidelity.log_softmax(np.array([logits]))
    ids = np.argsort(-log_probs, axis=-1)[:, :k]
    tail = fidelity.measure_tail(log_probs, ids)
    exact = fidelity.take_log_probs(log_probs, ids)
    moved = exact + rng.normal(0.0, 0.1, exact.shape)
    cached = fidelity.cached_log_probs(ids, moved, tail.log_mass)
    bucket = fidelity.bucket_divergence(exact, tail.log_mass, cached, tail.log_mass)
    received = bucket + tail.spread_divergence()
    outside = math.exp(tail.log_mass[0]) / max(1, len(logits) - k)
    q = dict(zip(ids[0].tolist(), np.exp(cached[0]).tolist(), strict=True))
    p = np.exp(log_probs[0]).tolist()
    plain = math.fsum(
        share * math.log(share / q.get(token, outside)) for token, share in enumerate(p)
    )
    assert received[0] == pytest.approx(plain, abs=1e-9)
    assert received[0] >= bucket[0] - 1e-12
    assert bucket[0] >= -1e-12


def test_calibration_error_of_known_predictions() -> None:
    confidences, is_right = np.array([0.6, 0.8, 0.2]), np.array([True, False, True])
    assert fidelity.calibration_error(confidences, is_right, num_bins=2) == pytest.approx(0.4)
    # With fifteen bins, 0.05 and 0.06 are in the first bin, 0.95 and 1 in the last.
    confidences = np.array([0.05, 0.06, 1.0, 0.95])
    is_right = np.array([False, True, True, False])
    expected = (abs(1 - 0.11) + abs(1 - 1.95)) / 4
    assert fidelity.calibration_error(confidences, is_right) == pytest.approx(expected)


def test_largest_difference_with_infinities() -> None:
    a, b = np.array([-np.inf, 1.0, -2.0]), np.array([-np.inf, 1.5, -2.25])
    assert fidelity.largest_difference(a, b) == 0.5
    assert fidelity.largest_difference(a, np.zeros(3)) == np.inf
    assert fidelity.largest_difference(a[:0], b[:0]) == 0.0
