"""Streams by their key: one, and many in turn."""

import numpy as np

from pipeline.base import seeding


def _numbers(random: np.random.Generator) -> list:
    """Numbers of all kinds, an odd number of them of 32 bits."""
    return [
        random.permutation(7).tolist(),
        random.standard_exponential(3).tolist(),
        random.random(2).tolist(),
        random.integers(1000, size=5).tolist(),
    ]


def test_many_streams_are_the_same_as_one_at_a_time() -> None:
    keys = [(b"one", 0), (b"one", 1), (b"two", 0), (b"one", 0), ()]
    expected = [_numbers(seeding.stream(5, "mask", *key)) for key in keys]
    assert [_numbers(random) for random in seeding.streams(5, "mask", keys)] == expected
    assert expected[0] == expected[3] != expected[1]
    # One that is left unused changes nothing, nor does one that is used long.
    used = []
    for number, random in enumerate(seeding.streams(5, "mask", keys)):
        if number == 1:
            random.random(1001)
        if number > 1:
            used.append(_numbers(random))
    assert used == expected[2:]
