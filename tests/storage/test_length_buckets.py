"""The few sizes that batches are padded to, and windows of batches."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage import length_buckets


@given(st.integers(1, 2048), st.integers(1, 40))
def test_sizes_are_few_and_reach_the_largest(max_seq_length: int, count: int) -> None:
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
def test_lengths_by_hand(max_seq_length: int, count: int, expected: tuple[int, ...]) -> None:
    assert length_buckets.bucket_lengths(max_seq_length, count) == expected


def test_widths_by_hand() -> None:
    assert length_buckets.bucket_widths(20) == (5, 10, 15, 20)
    assert length_buckets.bucket_widths(77) == (20, 40, 60, 77)
    assert length_buckets.bucket_widths(2) == (1, 2)


@given(st.integers(1, 512), st.data())
def test_an_input_gets_the_next_length(max_seq_length: int, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, max_seq_length))
    padded = length_buckets.padded_length(length, max_seq_length)
    lengths = length_buckets.bucket_lengths(max_seq_length)
    assert padded in lengths
    assert padded >= length
    assert not [size for size in lengths if length <= size < padded]


def test_a_window_is_no_longer_than_an_epoch_or_the_buffer() -> None:
    assert length_buckets.window_batches(10**6, 32, 10_000) == 32
    assert length_buckets.window_batches(10**6, 384, 10_000) == 26
    assert length_buckets.window_batches(100, 32, 10_000) == 3
    assert length_buckets.window_batches(10, 32, 10_000) == 1
    assert length_buckets.window_batches(10**6, 32, 1) == 1


def test_orders_are_permutations_keyed_by_the_window() -> None:
    first = list(itertools.islice(length_buckets.batch_orders(7, seed=3, start=0), 20))
    assert all(sorted(order) == list(range(7)) for order in first)
    assert len({tuple(order) for order in first}) > 15
    rest = list(itertools.islice(length_buckets.batch_orders(7, seed=3, start=6), 14))
    assert [order.tolist() for order in rest] == [order.tolist() for order in first[6:]]
    other = list(itertools.islice(length_buckets.batch_orders(7, seed=4, start=0), 20))
    assert [order.tolist() for order in other] != [order.tolist() for order in first]
