"""Tests of keyed random generators, one at a time and many in turn."""

import numpy as np

from pipeline.base import seeding


def _draw(rng: np.random.Generator) -> list:
    """Returns numbers of all kinds, among them an odd number of 32-bit numbers."""
    return [
        rng.permutation(7).tolist(),
        rng.standard_exponential(3).tolist(),
        rng.random(2).tolist(),
        rng.integers(1000, size=5).tolist(),
    ]


def test_generators_of_many_keys_equal_separate_generators() -> None:
    keys = [(b"one", 0), (b"one", 1), (b"two", 0), (b"one", 0), ()]
    expected = [_draw(seeding.keyed_rng(5, "mask", *key)) for key in keys]
    assert [_draw(rng) for rng in seeding.keyed_rngs(5, "mask", keys)] == expected
    assert expected[0] == expected[3] != expected[1]
    # The first generator is not used and the second one is used for many numbers. Neither
    # changes the numbers of the others.
    drawn = []
    for number, rng in enumerate(seeding.keyed_rngs(5, "mask", keys)):
        if number == 1:
            rng.random(1001)
        if number > 1:
            drawn.append(_draw(rng))
    assert drawn == expected[2:]


def test_a_digest_may_be_finished_for_many_keys() -> None:
    finish = seeding.prefixed_digest(5, "example", b"key")
    for key in ((), (0, 1), ("text", b"bytes", 7)):
        assert finish(*key) == seeding.digest(5, "example", b"key", *key)
