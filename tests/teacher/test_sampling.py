"""Random draws are the teacher's distribution on average."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_specs import records
from pipeline.storage.codecs.base import NO_ID, NO_ID_LOGIT
from pipeline.storage.records import MaskedExample
from pipeline.teacher.truncation import sample, sample_positions

DRAWS = 8


def _example(name: str, positions: list[int]) -> MaskedExample:
    places = np.array(positions)
    return MaskedExample(name.encode(), np.zeros(9, int), np.array([9, 0]), places, places)


def _shares(drawn, row: int, vocab_size: int) -> np.ndarray:
    """Returns the distribution that the losses see: softmax of the kept logits."""
    ids, logits = drawn[records.TOPK_IDS][row], drawn[records.TOPK_LOGITS][row].astype(np.float64)
    weights = np.exp(logits - logits.max())
    shares = np.zeros(vocab_size)
    shares[ids[ids >= 0]] = (weights / weights.sum())[ids >= 0]
    return shares


def test_by_hand() -> None:
    logits = np.log([0.5, 0.25, 0.25])
    ids, counts = sample(logits, np.array([0.1, 0.8, 0.4]))
    assert (ids.tolist(), counts.tolist()) == ([0, 2], [2, 1])
    # Of equals the smaller id comes first; the edge of an id belongs to the next.
    ids, counts = sample(logits, np.array([0.99, 0.5, 0.0, 0.75]))
    assert (ids.tolist(), counts.tolist()) == ([2, 0, 1], [2, 1, 1])
    # What has no mass is never drawn.
    logits = np.array([-np.inf, 0.0, -1e9, 0.0, -1e9])
    ids, _ = sample(logits, np.array([0.0, 0.5, 1.0 - 2.0**-53]))
    assert sorted(ids) == [1, 3]


@given(st.integers(0, 10**6), st.sampled_from([0.5, 3.0]))
def test_the_mean_over_seeds_is_the_dense_distribution(seed: int, scale: float) -> None:
    """Within four and a half standard errors, for every token."""
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
