"""Tests of keyed random numbers against the results of others, and of their independence."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base import seeding
from pipeline.base.seeding import KeyedStreams, key_words

KEYS = [seeding.digest(number) for number in range(4)]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_numbers(counter, key, expected: str) -> None:
    """The known answers of philox4x32 in Random123, the implementation of the paper's authors."""
    words = [np.array([word], np.uint32) for word in (*counter, *key)]
    [drawn] = seeding.philox4x32(words[:4], words[4:])
    assert [f"{word:08x}" for word in drawn] == expected.split()


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**63), st.integers(1, 40))
def test_philox_equals_that_of_tensorflow(key: int, counter: int, size: int) -> None:
    import tensorflow as tf

    expected = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[4 * size],
        key=tf.constant([key], tf.uint64),
        counter=tf.constant([counter, 0], tf.uint64),
        alg=1,
        dtype=tf.uint32,
    )
    counters = counter + np.arange(size, dtype=np.uint64)
    zeros = np.zeros(size, np.uint64)
    words = [counters, counters >> np.uint64(32), zeros, zeros]
    keys = [np.full(size, key >> shift & 0xFFFFFFFF, np.uint32) for shift in (0, 32)]
    drawn = seeding.philox4x32([word.astype(np.uint32) for word in words], keys)
    assert drawn.ravel().tolist() == expected.numpy().tolist()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 30))))
def test_a_stream_depends_only_on_its_own_row(rows: list[tuple[int, int, int]]) -> None:
    index, numbers, counts = np.array(rows, int).reshape(-1, 3).T
    keys = key_words(KEYS)[index]
    drawn = KeyedStreams.of(7, "mask", keys, numbers, 2 * numbers).bits(counts, 3)
    alone = [
        KeyedStreams.of(7, "mask", keys[[row]], number, 2 * number).bits(count, 3).tolist()
        for row, (_, number, count) in enumerate(rows)
    ]
    assert drawn.tolist() == list(itertools.chain(*alone))
    assert drawn.dtype == np.uint32


def test_streams_differ_in_every_part_of_their_key() -> None:
    def drawn(seed=1, purpose="mask", key=KEYS[0], first=0, second=0, stream=0) -> tuple[int, ...]:
        streams = KeyedStreams.of(seed, purpose, key_words([key]), first, second)
        return tuple(streams.bits(4, stream).tolist())

    others = [
        drawn(seed=2),
        drawn(purpose="eval mask"),
        drawn(key=KEYS[1]),
        drawn(first=1),
        drawn(second=1),
        drawn(stream=1),
    ]
    assert len({drawn(), *others}) == 7
    assert drawn() == drawn()
    # Every byte of the key counts, and streams do not overlap.
    for index in range(16):
        key = bytearray(KEYS[0])
        key[index] ^= 1
        assert drawn(key=bytes(key)) != drawn()
    streams = KeyedStreams.of(1, "mask", key_words(KEYS[:1]))
    numbers = [streams.bits(40, stream) for stream in range(3)]
    assert len(set(np.concatenate(numbers).tolist())) == 120


def test_a_longer_part_of_a_stream_begins_with_the_shorter_one() -> None:
    streams = KeyedStreams.of(1, "mask", key_words(KEYS[:1]))
    numbers = streams.bits(11).tolist()
    assert [streams.bits(count).tolist() for count in range(12)] == [
        numbers[:count] for count in range(12)
    ]


def test_random_numbers_are_below_their_limits() -> None:
    bits = KeyedStreams.of(1, "mask", key_words(KEYS)).bits(10_000)
    limits = np.resize([1, 2, 7, 1000, 2**31], len(bits))
    drawn = seeding.below(limits, bits)
    assert (drawn >= 0).all() and (drawn < limits).all()
    sevens = np.bincount(drawn[limits == 7], minlength=7) / 8000
    np.testing.assert_allclose(sevens, 1 / 7, atol=4 * np.sqrt(6 / 49 / 8000))
    assert seeding.below(5, np.array([0, 2**32 - 1], np.uint32)).tolist() == [0, 4]
