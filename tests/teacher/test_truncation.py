"""The top-k equals a dense float64 computation; random draws equal it in expectation."""

import importlib.util
import json

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs import records
from pipeline.storage.codecs.base import NO_ID, NO_ID_LOGIT
from pipeline.storage.records import MaskedExample
from pipeline.teacher.truncation import sample, sample_positions, truncate
from tests.conftest import run_python

TEMPERATURES = (1.0, 2.0)
ON_JAX = """
import json, sys
import jax, numpy as np
from pipeline.teacher.truncation import truncate

with np.load(sys.argv[1]) as file:
    logits, labels = file["logits"], file["labels"]
settings = dict(truncation_factor=50, temperatures=(1.0, 2.0), **json.loads(sys.argv[2]))
program = jax.jit(lambda *arrays: truncate(*arrays, **settings)).lower(logits, labels).compile()
np.savez(sys.argv[1], **program(logits, labels))
text = program.as_text()
print(json.dumps({"sorts": text.count(" sort("), "top-k calls": text.count('"TopK"')}))
"""


def _truncate(
    logits: np.ndarray, labels: np.ndarray | None, k: int, **changes
) -> dict[str, np.ndarray]:
    settings = {"truncation_factor": k, "temperatures": TEMPERATURES, **changes}
    truncated = truncate(logits.astype(np.float32), labels, **settings)
    return {name: np.asarray(value) for name, value in truncated.items()}


def _log_softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    scaled = logits.astype(np.float64) / temperature
    scaled = scaled - scaled.max(-1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))


@given(st.integers(0, 10**6), st.sampled_from([0.3, 2.0, 8.0]), st.sampled_from([1, 4, 50]))
def test_top_k_tails_and_labels_equal_the_dense_distribution(seed: int, scale: float, k: int):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.0, scale, (6, 200)).astype(np.float32)
    labels = rng.integers(0, 200, 6)
    truncated = _truncate(logits, labels, k)
    order = np.argsort(-logits, axis=-1, kind="stable")
    np.testing.assert_array_equal(truncated[records.TOPK_IDS], order[:, :k])
    np.testing.assert_array_equal(
        truncated[records.TOPK_LOGITS], np.take_along_axis(logits, order[:, :k], -1)
    )
    for column, temperature in enumerate(TEMPERATURES):
        rest = np.take_along_axis(_log_softmax(logits, temperature), order[:, k:], -1)
        exact = np.log(np.exp(rest).sum(-1))
        np.testing.assert_allclose(
            truncated[records.LOG_TAIL_MASSES][:, column], exact, rtol=1e-5, atol=2e-5
        )
    exact = _log_softmax(logits)[np.arange(6), labels]
    np.testing.assert_allclose(truncated[records.LABEL_LOG_PROBS], exact, rtol=1e-5, atol=2e-5)


def test_tail_of_a_confident_teacher_is_not_rounded_to_zero() -> None:
    # The tail has 2 · e^-30 of the mass, while 1 − Σ of rounded probabilities is 0 or less.
    logits = np.array([[30.0, 0.0, 0.0, -40.0]])
    truncated = _truncate(logits, np.array([1]), 1)
    np.testing.assert_allclose(
        truncated[records.LOG_TAIL_MASSES][0, 0], np.log(2.0) - 30.0, rtol=1e-6
    )
    np.testing.assert_allclose(truncated[records.LABEL_LOG_PROBS], [-30.0], rtol=1e-6)


def test_tied_logits_outside_the_top_k_are_in_the_tail() -> None:
    # Two of four equal logits are in the top-k, so that the tail is half of the mass.
    truncated = _truncate(np.zeros((1, 4)), np.array([0]), 2)
    np.testing.assert_allclose(truncated[records.LOG_TAIL_MASSES], np.log([[0.5, 0.5]]), rtol=1e-6)


def test_tail_is_empty_if_k_is_the_vocabulary_size() -> None:
    logits = np.random.default_rng(0).normal(0.0, 2.0, (3, 7))
    truncated = _truncate(logits, np.array([0, 1, 2]), 7)
    assert (truncated[records.LOG_TAIL_MASSES] == -np.inf).all()


@pytest.mark.parametrize("shape", [(2, 3), (4,)])
def test_truncate_accepts_any_leading_shape(shape: tuple[int, ...]) -> None:
    logits, labels = np.zeros((*shape, 9)), np.zeros(shape, np.int32)
    truncated = _truncate(logits, labels, 5, temperatures=(1.0, 2.0, 4.0))
    assert tuple(truncated[records.TOPK_IDS].shape) == (*shape, 5)
    assert tuple(truncated[records.LOG_TAIL_MASSES].shape) == (*shape, 3)
    assert tuple(truncated[records.LABEL_LOG_PROBS].shape) == shape


@given(
    st.integers(0, 10**6),
    st.sampled_from([0.3, 2.0, 8.0]),
    st.sampled_from([1, 4, 50, 200]),
    st.sampled_from([0.01, 0.5, 0.9, 0.999, 1.0]),
)
def test_ids_end_when_they_reach_the_mass(seed: int, scale: float, k: int, mass: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.0, scale, (6, 200)).astype(np.float32)
    truncated = _truncate(logits, np.zeros(6, int), k, truncation_mass=mass)
    order = np.argsort(-logits, axis=-1, kind="stable")
    p = np.take_along_axis(np.exp(_log_softmax(logits)), order, -1)
    for row, ids in enumerate(truncated[records.TOPK_IDS]):
        count = int((ids >= 0).sum())
        assert ids.tolist() == [*order[row, :count], *[NO_ID] * (k - count)]
        values = truncated[records.TOPK_LOGITS][row]
        np.testing.assert_array_equal(values[:count], logits[row, order[row, :count]])
        assert (values[count:] == np.float32(NO_ID_LOGIT)).all()
        # The ids reach the mass, and one id fewer would not, within float32's rounding.
        assert count >= 1 and p[row, : count - 1].sum() < mass + 2e-6
        assert count == k or p[row, :count].sum() > mass - 2e-6
        for column, temperature in enumerate(TEMPERATURES):
            rest = _log_softmax(logits, temperature)[row, order[row, count:]]
            exact = np.log(np.exp(rest).sum()) if len(rest) else -np.inf
            np.testing.assert_allclose(
                truncated[records.LOG_TAIL_MASSES][row, column], exact, rtol=1e-5, atol=2e-5
            )


def test_truncation_mass_of_a_known_distribution() -> None:
    p = np.array([0.125, 0.5, 0.0625, 0.25, 0.0625])
    logits = np.log(p)[None]
    for mass, count in ((0.4, 1), (0.5, 1), (0.7, 2), (0.75, 2), (0.76, 3), (1.0, 4)):
        truncated = _truncate(logits, None, 4, truncation_mass=mass - 1e-6)
        ids = truncated[records.TOPK_IDS][0]
        assert ids.tolist() == [*[1, 3, 0, 2][:count], *[NO_ID] * (4 - count)]
        tail = np.exp(truncated[records.LOG_TAIL_MASSES])[0, 0]
        np.testing.assert_allclose(tail, 1.0 - p[[1, 3, 0, 2][:count]].sum(), rtol=1e-5)


def test_truncation_mass_does_not_hide_nan_logits() -> None:
    truncated = _truncate(np.full((1, 4), np.nan), None, 2, truncation_mass=0.5)
    assert np.isnan(truncated[records.TOPK_LOGITS]).any()


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="compares with TensorFlow")
@pytest.mark.parametrize("mass", [{}, {"truncation_mass": 0.9}])
def test_jax_equals_tensorflow_and_sorts_no_vocabulary(tmp_path, mass: dict[str, float]) -> None:
    rng = np.random.default_rng(3)
    # Logits in steps of 0.25 have many ties, also at the boundary of the top-k.
    logits = np.round(rng.normal(0.0, 2.0, (4, 5, 2_000)) * 4).astype(np.float32) / 4
    labels = rng.integers(0, 2_000, (4, 5)).astype(np.int32)
    path = tmp_path / "arrays.npz"
    np.savez(path, logits=logits, labels=labels)
    environment = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    run = run_python("-c", ON_JAX, str(path), json.dumps(mass), **environment)
    assert json.loads(run.stdout) == {"sorts": 0, "top-k calls": 1}
    expected = _truncate(logits, labels, 50, **mass)
    with np.load(path) as on_jax:
        assert on_jax.keys() == expected.keys()
        for name in (records.TOPK_IDS, records.TOPK_LOGITS):
            np.testing.assert_array_equal(on_jax[name], expected[name])
        for name in (records.LOG_TAIL_MASSES, records.LABEL_LOG_PROBS):
            np.testing.assert_allclose(on_jax[name], expected[name], rtol=1e-6, atol=1e-6)


# Random draws.

DRAWS = 8


def _example(name: str, positions: list[int]) -> MaskedExample:
    masked = np.array(positions)
    return MaskedExample(name.encode(), np.zeros(9, int), np.array([9, 0]), masked, masked)


def _shares(drawn, row: int, vocab_size: int) -> np.ndarray:
    """Returns the distribution that the losses use: the softmax of the stored logits."""
    ids, logits = drawn[records.TOPK_IDS][row], drawn[records.TOPK_LOGITS][row].astype(np.float64)
    weights = np.exp(logits - logits.max())
    shares = np.zeros(vocab_size)
    shares[ids[ids >= 0]] = (weights / weights.sum())[ids >= 0]
    return shares


def test_the_most_frequent_draws_come_first() -> None:
    logits = np.log([0.5, 0.25, 0.25])
    ids, counts = sample(logits, np.array([0.1, 0.8, 0.4]))
    assert (ids.tolist(), counts.tolist()) == ([0, 2], [2, 1])
    # Ties are ordered by id. A number on the boundary of two ids belongs to the next id.
    ids, counts = sample(logits, np.array([0.99, 0.5, 0.0, 0.75]))
    assert (ids.tolist(), counts.tolist()) == ([2, 0, 1], [2, 1, 1])
    # A token without mass is never drawn.
    logits = np.array([-np.inf, 0.0, -1e9, 0.0, -1e9])
    ids, _ = sample(logits, np.array([0.0, 0.5, 1.0 - 2.0**-53]))
    assert sorted(ids) == [1, 3]


@given(st.integers(0, 10**6), st.sampled_from([0.5, 3.0]))
def test_the_mean_over_seeds_is_the_dense_distribution(seed: int, scale: float) -> None:
    """The tolerance is 4.5 standard errors for each token."""
    vocab_size, seeds = 12, 400
    logits = np.random.default_rng(seed).normal(0.0, scale, (2, vocab_size)).astype(np.float32)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    examples = [_example("a", [3]), _example("b", [3])]
    sums = np.zeros((2, vocab_size))
    for number in range(seeds):
        drawn = sample_positions(logits, examples, seed=number, num_draws=DRAWS)
        sums += [_shares(drawn, row, vocab_size) for row in range(2)]
    error = np.sqrt(p * (1.0 - p) / (DRAWS * seeds))
    assert (np.abs(sums / seeds - p) <= 4.5 * error + 1.0 / (DRAWS * seeds)).all()


def test_rows_are_weights_of_distinct_ids_without_a_tail() -> None:
    logits = np.random.default_rng(0).normal(0.0, 1.0, (3, 50)).astype(np.float32)
    drawn = sample_positions(
        logits, [_example("a", [1, 7]), _example("b", [1])], seed=5, num_draws=DRAWS
    )
    for ids, values in zip(drawn[records.TOPK_IDS], drawn[records.TOPK_LOGITS], strict=True):
        count = (ids >= 0).sum()
        assert len(set(ids[:count])) == count and (ids[count:] == NO_ID).all()
        assert (values[count:] == np.float32(NO_ID_LOGIT)).all()
        assert (np.diff(values) <= 0).all()
        shares = np.exp(values[:count].astype(np.float64)) * DRAWS
        np.testing.assert_allclose(shares, np.rint(shares), atol=1e-5)
        assert np.rint(shares).sum() == DRAWS
    assert drawn[records.LOG_TAIL_MASSES].tolist() == [[-np.inf]] * 3


def test_draws_depend_on_seed_example_and_position_alone() -> None:
    logits = np.tile(np.random.default_rng(0).normal(0.0, 1.0, 500), (3, 1)).astype(np.float32)
    a, b = _example("a", [1, 7]), _example("b", [1])
    together = sample_positions(logits, [a, b], seed=5, num_draws=DRAWS)[records.TOPK_IDS]
    alone = sample_positions(logits[:1], [b], seed=5, num_draws=DRAWS)[records.TOPK_IDS]
    other = sample_positions(logits[:1], [b], seed=6, num_draws=DRAWS)[records.TOPK_IDS]
    np.testing.assert_array_equal(together[2:], alone)
    rows = {tuple(row) for row in [*together, *other]}
    assert len(rows) == 4
