"""Steps of a range: their lengths, and what each logit is read as."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage.codecs.compact import LogitSteps


@pytest.mark.parametrize(("bend", "last"), [(1.0, 254), (1.5, 225), (1e-6, 10)])
def test_distances_by_the_formula(bend: float, last: int) -> None:
    steps = LogitSteps(bend, last)
    for number in (0, 1, last // 2, last - 1, last):
        part = (1.0 - math.exp(-bend)) * number / last
        assert steps.distances[number] == pytest.approx(-math.log(1.0 - part) / bend, rel=1e-6)
    assert (steps.distances[0], steps.distances[last], steps.distances[255]) == (0, 1, 1)
    lengths = np.diff(steps.distances[: last + 1].astype(np.float64))
    assert lengths[-1] / lengths[0] == pytest.approx(math.exp(bend), rel=0.02)
    assert steps.half_step == pytest.approx(lengths.max() / 2)


@given(st.integers(0, 10**6), st.sampled_from([0.01, 1.0, 15.0, 60.0]))
def test_the_nearest_number_is_taken(seed: int, scale: float) -> None:
    steps = LogitSteps(1.0, 254)
    shifted = -np.sort(np.random.default_rng(seed).random((3, 40)) * scale).astype(np.float32)
    shifted -= shifted[:, :1]
    numbers, ranges = steps.encode(shifted, np.ones(shifted.shape, bool))
    got = steps.decode(numbers.astype(np.int64), ranges)
    every = -steps.distances[:255][None, :, None] * ranges.astype(np.float32)[:, None, None]
    best = np.abs(every - shifted[:, None, :]).min(axis=1)
    np.testing.assert_allclose(np.abs(got - shifted), best, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("bend", "last"), [(1.0, 254), (1.5, 225), (1e-6, 10), (9.0, 254), (1.0, 1)]
)
def test_between_two_numbers_the_middle_decides(bend: float, last: int) -> None:
    """At each middle the smaller one, and the next float32 above it is the larger one's."""
    steps = LogitSteps(bend, last)
    known = steps.distances[: last + 1]
    middles = (known[1:] + known[:-1]) / 2
    above = np.nextafter(middles, np.float32(2.0))
    # A range of 1, so that distances are parts of it as they are.
    shifted = -np.concatenate([[0.0], middles, above, known, [1.0]]).astype(np.float32)[np.newaxis]
    numbers, ranges = steps.encode(shifted, np.ones(shifted.shape, bool))
    every = np.arange(last + 1)
    assert ranges.tolist() == [1.0]
    assert numbers[0].tolist() == [0, *every[:-1], *every[1:], *every, last]


def test_far_logits_do_not_coarsen_the_others() -> None:
    steps = LogitSteps(1.0, 254)
    shifted = np.array([[0.0, -1.0, -2.0, -64.5, -np.inf, -1e30]], np.float32)
    present = np.array([[True] * 5 + [False]])
    numbers, ranges = steps.encode(shifted, present)
    assert numbers.tolist() == [[0, 158, 254, 255, 255, 0]] and ranges.tolist() == [2.0]
    got = steps.decode(numbers.astype(np.int64), ranges)
    np.testing.assert_allclose(got[0, :3], shifted[0, :3], atol=0.007)
    assert got[0, 3:5].tolist() == [-65504.0, -65504.0]


def test_a_range_below_float16_is_none() -> None:
    numbers, ranges = LogitSteps(1.0, 254).encode(
        np.array([[0.0, -1e-9]], np.float32), np.ones((1, 2), bool)
    )
    assert numbers.tolist() == [[0, 0]] and ranges.tolist() == [0.0]
