"""Head states are decoded within half a step, and give the teacher's logits."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from data_specs import records
from pipeline.storage.codecs.base import MAX_RECORD_IDS
from pipeline.storage.codecs.states import (
    BLOCK_SIZE,
    STATE_PACKINGS,
    OutputTable,
    StatesCodec,
    rotate,
)

# Half a step relative to a block's largest number, and float16's rounding of the scale.
ERRORS = {16: 2.0**-11, 8: 0.5 / 127 + 2.0**-11, 4: 0.5 / 7.5 + 2.0**-11}


def _codec(bits: int, size: int, vocab_size: int = 11) -> StatesCodec:
    rng = np.random.default_rng(3)
    table = rng.normal(size=(vocab_size, size)).astype(np.float32)
    output = OutputTable.of(table, rng.normal(size=vocab_size))
    return StatesCodec(vocab_size, STATE_PACKINGS[bits](size), output)


def test_every_packing_has_its_declared_features() -> None:
    declared = {bits: packing.stored for bits, packing in STATE_PACKINGS.items()}
    assert declared == records.HEAD_STATE_FEATURES


@pytest.mark.parametrize("size", [1, 2, 7, 32, 312])
def test_rotation_keeps_products_and_spreads_one_large_number(size) -> None:
    rng = np.random.default_rng(size)
    states, table = (rng.normal(size=(n, size)).astype(np.float32) for n in (5, 9))
    np.testing.assert_allclose(rotate(states) @ rotate(table).T, states @ table.T, atol=2e-5)
    unit_vector = np.zeros(size, np.float32)
    unit_vector[size // 3] = 1.0
    assert np.abs(rotate(unit_vector)).max() <= np.sqrt(2.0 / size) + 1e-6


@given(
    st.sampled_from(sorted(STATE_PACKINGS)),
    st.sampled_from([1, 5, 32, 33, 64]),
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
    st.sampled_from([0.0, 1e-3, 1.0, 300.0]),
)
def test_decoded_states_are_within_half_a_step(bits, size, counts, scale) -> None:
    codec, splits = _codec(bits, size), np.concatenate([[0], np.cumsum(counts)])
    states = np.random.default_rng(sum(counts)).normal(0.0, 1.0, (splits[-1], size)) * scale
    states = states.astype(np.float32)
    packed = codec.encode(states, splits)
    decoded = [codec.packing.decode(*pair) for pair in zip(packed, counts, strict=True)]
    rotated = rotate(states)
    padding = -(-size // BLOCK_SIZE) * BLOCK_SIZE - size
    blocks = np.pad(np.abs(rotated), [(0, 0), (0, padding)])
    blocks = blocks.reshape(len(states), (size + padding) // BLOCK_SIZE, BLOCK_SIZE)
    largest = blocks.max(axis=-1).repeat(BLOCK_SIZE, axis=-1)[:, :size]
    errors = np.abs(np.concatenate(decoded) - rotated)
    assert (errors <= ERRORS[bits] * largest + 1e-6 * scale + 2.0**-24).all()


@pytest.mark.parametrize("bits", STATE_PACKINGS)
def test_tensors_equal_numpy_padded_with_zeros(bits) -> None:
    codec, counts = _codec(bits, 37), [2, 0, 3]
    states = np.random.default_rng(1).normal(size=(5, 37)).astype(np.float32)
    packed = codec.encode(states, np.array([0, 2, 2, 5]))
    names = [feature.name for feature in codec.packing.stored]
    features = {name: tf.constant([record[name] for record in packed]) for name in names}
    batch = codec.target_tensors(tf, features, tf.constant(counts), 4)
    assert set(batch) == {records.HEAD_STATES}
    for row, (record, count) in enumerate(zip(packed, counts, strict=True)):
        decoded = batch[records.HEAD_STATES][row].numpy()
        expected = codec.packing.decode(record, count)
        np.testing.assert_allclose(decoded[:count], expected, rtol=1e-6)
        assert (decoded[count:] == 0.0).all() and decoded.shape == (4, 37)


def test_state_packings_store_golden_bytes() -> None:
    """The rotation of two numbers is their sum and difference, divided by the root of 2."""
    states = np.array([[3.0, 1.0]], np.float32) / np.float32(np.sqrt(2.0))
    splits = np.array([0, 1])
    expected = {
        16: {records.HEAD_STATES: np.array([2.0, 1.0], "<f2").tobytes()},
        8: {records.HEAD_STATES: b"\x7f\x40", records.HEAD_SCALES: b"\x00\x40"},
        # The steps are 15 and 11 on a scale from 0 to 15, the first in the low bits.
        4: {records.HEAD_STATES: b"\xbf", records.HEAD_SCALES: b"\x00\x40"},
    }
    for bits, features in expected.items():
        (packed,) = _codec(bits, 2).encode(states, splits)
        assert packed == features


def test_decoded_tokens_are_all_tokens_in_descending_order() -> None:
    codec = _codec(16, 8)
    states = np.random.default_rng(2).normal(size=(3, 8)).astype(np.float32)
    (packed,) = codec.encode(states, np.array([0, 3]))
    ids, logits = codec.decode(packed, 3)
    assert ids.shape == logits.shape == (3, codec.truncation_factor) == (3, codec.vocab_size)
    assert (np.sort(ids, axis=-1) == np.arange(11)).all()
    assert (np.diff(logits, axis=-1) <= 0.0).all() and (logits[:, 0] == 0.0).all()
    exact = codec.output.logits(codec.packing.decode(packed, 3))
    np.testing.assert_allclose(
        logits, np.take_along_axis(exact, ids, axis=-1) - exact.max(-1, keepdims=True), atol=1e-6
    )


@pytest.mark.parametrize("bits", STATE_PACKINGS)
def test_malformed_state_features_are_refused(bits) -> None:
    codec = _codec(bits, 8)
    (packed,) = codec.encode(np.ones((2, 8), np.float32), np.array([0, 2]))
    for name, content in packed.items():
        with pytest.raises(ValueError):
            codec.decode({**packed, name: content + content[:2]}, 2)
        with pytest.raises(KeyError):
            codec.decode({key: value for key, value in packed.items() if key != name}, 2)
    name = codec.packing.stored[-1].name
    infinite = np.full(len(packed[name]) // 2, np.inf, "<f2").tobytes()
    with pytest.raises(ValueError, match="finite"):
        codec.decode({**packed, name: infinite}, 2)
    with pytest.raises(ValueError, match=f"at most {MAX_RECORD_IDS}"):
        codec.decode(packed, MAX_RECORD_IDS)
