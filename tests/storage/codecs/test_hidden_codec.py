"""Hidden states are decoded within the stated error, equally in NumPy and in TensorFlow."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from data_specs import records
from pipeline.storage.codecs import HIDDEN_CODECS

GROUPS, SIZE = 2, 5


def _states(seed: int, positions: int, scale: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(0.0, scale, (positions, GROUPS, SIZE)).astype("float32")


@pytest.mark.parametrize("encoding", HIDDEN_CODECS)
@given(
    seed=st.integers(0, 10**6),
    counts=st.tuples(st.integers(0, 3), st.integers(1, 3)),
    scale=st.sampled_from([1e-3, 1.0, 300.0]),
)
def test_round_trip_is_within_the_stated_bound(
    encoding: str, seed: int, counts: tuple[int, int], scale: float
) -> None:
    states = _states(seed, sum(counts), scale)
    codec = HIDDEN_CODECS[encoding](GROUPS, SIZE)
    splits = np.array([0, counts[0], sum(counts)])
    packed = codec.encode(states, splits)
    largest = np.abs(states).max(axis=-1, keepdims=True)
    bound = largest / 254 * 1.001 if encoding == "int8" else np.abs(states) * 2**-11 + 6e-8
    for features, count, begin in zip(packed, counts, splits, strict=False):
        expected = states[begin : begin + count]
        received = codec.decode(features, count)
        assert received.shape == expected.shape
        assert (np.abs(received - expected) <= bound[begin : begin + count]).all()
    batch = {name: tf.constant([features[name] for features in packed]) for name in packed[0]}
    tensors = codec.decode_tensors(tf, batch, 4).numpy()
    for row, (features, count) in enumerate(zip(packed, counts, strict=True)):
        np.testing.assert_array_equal(tensors[row, :count], codec.decode(features, count))
        assert not tensors[row, count:].any()


def test_hidden_codecs_store_golden_bytes_zeros_and_clipped_states() -> None:
    states = np.array([[[127.0, -63.5, 0.0]]], "float32")
    (features,) = HIDDEN_CODECS["int8"](1, 3).encode(states, np.array([0, 1]))
    assert features[records.HIDDEN_STATES] == bytes([127, 0xC0, 0])
    assert features[records.HIDDEN_SCALES] == np.float32(1.0).tobytes()
    zeros = np.zeros((1, 1, 3), "float32")
    (features,) = HIDDEN_CODECS["int8"](1, 3).encode(zeros, np.array([0, 1]))
    assert not HIDDEN_CODECS["int8"](1, 3).decode(features, 1).any()
    (features,) = HIDDEN_CODECS["float16"](1, 3).encode(states * 1e6, np.array([0, 1]))
    assert np.isfinite(HIDDEN_CODECS["float16"](1, 3).decode(features, 1)).all()
