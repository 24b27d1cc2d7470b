"""Tests of padded lengths and of the division of an update into microbatches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage import length_buckets
from pipeline.storage.length_buckets import MicrobatchPlan


@given(st.integers(1, 2048), st.integers(1, 40))
def test_bucket_sizes_are_few_and_end_with_the_largest(max_seq_length: int, count: int) -> None:
    lengths = length_buckets.bucket_lengths(max_seq_length, count)
    assert 1 <= len(lengths) <= count
    assert list(lengths) == sorted(set(lengths))
    assert lengths[-1] == max_seq_length
    assert all(length % 8 == 0 for length in lengths[:-1])
    widths = length_buckets.bucket_widths(max_seq_length)
    assert 1 <= len(widths) <= 4
    assert list(widths) == sorted(set(widths))
    assert widths[-1] == max_seq_length


@pytest.mark.parametrize(
    ("max_seq_length", "count", "expected"),
    [
        (512, 8, (64, 128, 192, 256, 320, 384, 448, 512)),
        (128, 8, (16, 32, 48, 64, 80, 96, 112, 128)),
        (100, 8, (16, 32, 48, 64, 80, 96, 100)),
        (48, 8, (8, 16, 24, 32, 40, 48)),
        (5, 8, (5,)),
        (512, 1, (512,)),
        (512, 3, (176, 352, 512)),
    ],
)
def test_bucket_lengths_of_known_maxima(
    max_seq_length: int, count: int, expected: tuple[int, ...]
) -> None:
    assert length_buckets.bucket_lengths(max_seq_length, count) == expected


@pytest.mark.parametrize(
    ("devices", "expected"),
    [(["cpu:0"], 8), (["gpu:0", "gpu:1"], 8), (["tpu:0", "tpu:1"], 4), ([], 8)],
)
def test_tpus_get_fewer_padded_lengths(devices: list[str], expected: int) -> None:
    assert length_buckets.choose_num_lengths(devices) == expected


def test_bucket_widths_of_known_maxima() -> None:
    assert length_buckets.bucket_widths(20) == (5, 10, 15, 20)
    assert length_buckets.bucket_widths(77) == (20, 40, 60, 77)
    assert length_buckets.bucket_widths(2) == (1, 2)


@given(st.integers(1, 512), st.data())
def test_an_input_is_padded_to_the_next_length(max_seq_length: int, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, max_seq_length))
    padded = length_buckets.padded_length(length, max_seq_length)
    lengths = length_buckets.bucket_lengths(max_seq_length)
    assert padded in lengths
    assert padded >= length
    assert not [size for size in lengths if length <= size < padded]


def test_groups_divide_an_update() -> None:
    """A group has at most 512 examples, unless a batch has more."""
    assert length_buckets.group_batches(32, 1) == 1
    assert length_buckets.group_batches(4, 6) == 6
    assert length_buckets.group_batches(32, 128) == 16
    assert length_buckets.group_batches(8, 512) == 64
    assert length_buckets.group_batches(100, 9) == 3
    assert length_buckets.group_batches(384, 2) == 1
    assert length_buckets.group_batches(1000, 3) == 1


def _plan(lengths: list[int], **changes: int) -> MicrobatchPlan:
    settings = {
        "batch_size": 32,
        "num_batches": 1,
        "max_seq_length": 512,
        "num_lengths": 8,
        "microbatch_cost": 128,
    }
    return length_buckets.plan_microbatches(np.array(lengths), **settings | changes)


def test_equal_lengths_give_one_chunk_per_batch() -> None:
    for length in (10, 512):
        assert _plan([length] * 50) == MicrobatchPlan(32, 1, 8)
        assert _plan([length] * 50, num_batches=4) == MicrobatchPlan(128, 4, 8)


def test_different_lengths_and_cheap_chunks_give_more_chunks() -> None:
    mixed = [60] * 90 + [500] * 10
    counts = [_plan(mixed, microbatch_cost=cost).num_microbatches for cost in (0, 100, 1000, 10**6)]
    assert counts[0] == 32
    assert counts == sorted(counts, reverse=True)
    assert counts[1] > counts[2] > counts[3] == 1
    assert _plan(mixed, num_batches=4, microbatch_cost=10**6).num_microbatches == 4


def test_one_length_or_no_inputs_give_one_chunk_per_batch() -> None:
    mixed = [60] * 90 + [500] * 10
    assert _plan(mixed, num_lengths=1) == MicrobatchPlan(32, 1, 1)
    assert _plan(mixed, num_lengths=1, num_batches=2) == MicrobatchPlan(64, 2, 1)
    assert _plan([], num_batches=2) == MicrobatchPlan(64, 2, 1)


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=30),
    st.integers(1, 40),
    st.integers(1, 6),
    st.integers(0, 300),
)
def test_chunks_have_equal_size_of_at_most_a_batch(
    lengths: list[int], batch_size: int, num_batches: int, cost: int
) -> None:
    plan = _plan(
        lengths,
        batch_size=batch_size,
        num_batches=num_batches,
        max_seq_length=60,
        microbatch_cost=cost,
    )
    assert batch_size * num_batches % plan.group_size == 0
    assert plan.group_size % plan.num_microbatches == 0
    assert plan.group_size // plan.num_microbatches <= batch_size


@pytest.mark.parametrize(("cost", "expected"), [(0, 4), (500, 2), (3000, 1)])
def test_number_of_chunks_in_the_documented_example(cost: int, expected: int, monkeypatch) -> None:
    """One microbatch has 4 · 512 tokens, two have 2 · 64 + 2 · 512, four have 3 · 64 + 512."""

    class FixedChoice:
        def choice(self, lengths: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
            return np.tile(lengths, (shape[0], 1))

    monkeypatch.setattr(length_buckets.seeding, "keyed_rng", lambda *key: FixedChoice())
    plan = _plan([10, 500, 10, 10], batch_size=4, microbatch_cost=cost)
    assert plan == MicrobatchPlan(4, expected, 8)
