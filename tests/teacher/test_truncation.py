"""What is kept of the teacher equals a dense float64 computation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs import records
from pipeline.teacher.truncation import truncate

TEMPERATURES = (1.0, 2.0)


def _truncate(logits: np.ndarray, labels: np.ndarray, k: int) -> dict[str, np.ndarray]:
    kept = truncate(
        logits.astype(np.float32), labels, truncation_factor=k, temperatures=TEMPERATURES
    )
    return {name: np.asarray(value) for name, value in kept.items()}


def _log_softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    scaled = logits.astype(np.float64) / temperature
    scaled = scaled - scaled.max(-1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))


@given(st.integers(0, 10**6), st.sampled_from([0.3, 2.0, 8.0]), st.sampled_from([1, 4, 50]))
def test_top_k_tails_and_labels_equal_the_dense_distribution(seed: int, scale: float, k: int):
    random = np.random.default_rng(seed)
    logits = random.normal(0.0, scale, (6, 200)).astype(np.float32)
    labels = random.integers(0, 200, 6)
    kept = _truncate(logits, labels, k)
    order = np.argsort(-logits, axis=-1, kind="stable")
    np.testing.assert_array_equal(kept[records.TOPK_IDS], order[:, :k])
    np.testing.assert_array_equal(
        kept[records.TOPK_LOGITS], np.take_along_axis(logits, order[:, :k], -1)
    )
    for column, temperature in enumerate(TEMPERATURES):
        rest = np.take_along_axis(_log_softmax(logits, temperature), order[:, k:], -1)
        exact = np.log(np.exp(rest).sum(-1))
        np.testing.assert_allclose(
            kept[records.LOG_TAIL_MASSES][:, column], exact, rtol=1e-5, atol=2e-5
        )
    exact = _log_softmax(logits)[np.arange(6), labels]
    np.testing.assert_allclose(kept[records.LABEL_LOG_PROBS], exact, rtol=1e-5, atol=2e-5)


def test_a_sure_teacher_keeps_its_tail() -> None:
    # The rest has 2 · e^-30 of the mass: 1 − Σ of rounded probabilities would be 0 or less.
    logits = np.array([[30.0, 0.0, 0.0, -40.0]])
    kept = _truncate(logits, np.array([1]), 1)
    np.testing.assert_allclose(kept[records.LOG_TAIL_MASSES][0, 0], np.log(2.0) - 30.0, rtol=1e-6)
    np.testing.assert_allclose(kept[records.LABEL_LOG_PROBS], [-30.0], rtol=1e-6)


def test_ties_at_the_edge_are_counted_once() -> None:
    # Four equal logits, two of them kept: the other two are the tail, half of the mass.
    kept = _truncate(np.zeros((1, 4)), np.array([0]), 2)
    np.testing.assert_allclose(kept[records.LOG_TAIL_MASSES], np.log([[0.5, 0.5]]), rtol=1e-6)


def test_nothing_is_left_where_k_is_the_vocabulary() -> None:
    logits = np.random.default_rng(0).normal(0.0, 2.0, (3, 7))
    kept = _truncate(logits, np.array([0, 1, 2]), 7)
    assert (kept[records.LOG_TAIL_MASSES] == -np.inf).all()


@pytest.mark.parametrize("shape", [(2, 3), (4,)])
def test_any_leading_shape(shape: tuple[int, ...]) -> None:
    kept = truncate(
        np.zeros((*shape, 9), np.float32),
        np.zeros(shape, np.int32),
        truncation_factor=5,
        temperatures=(1.0, 2.0, 4.0),
    )
    assert tuple(kept[records.TOPK_IDS].shape) == (*shape, 5)
    assert tuple(kept[records.LOG_TAIL_MASSES].shape) == (*shape, 3)
    assert tuple(kept[records.LABEL_LOG_PROBS].shape) == shape
