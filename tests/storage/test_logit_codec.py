"""The codec: what comes back is the teacher's distribution, within float16's error."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from data_specs import records
from pipeline.storage.logit_codec import CODECS, Float16Codec, topk_probabilities

TEMPERATURES = (1.0, 2.0)


def _dense(seed: int, positions: int, vocab_size: int, scale: float) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, scale, (positions, vocab_size))


def _top(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    return ids, np.take_along_axis(logits, ids, axis=-1)


def _log_tail(logits: np.ndarray, ids: np.ndarray, temperature: float) -> np.ndarray:
    weights = np.exp((logits - logits.max(-1, keepdims=True)) / temperature)
    total = weights.sum(-1)
    np.put_along_axis(weights, ids, 0.0, axis=-1)
    with np.errstate(divide="ignore"):
        return np.log(weights.sum(-1) / total)


@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([0.5, 3.0, 12.0]))
def test_decoded_probabilities_at_each_temperature_and_prefix(
    seed: int, positions: int, scale: float
) -> None:
    vocab_size, k = 300, 32
    logits = _dense(seed, positions, vocab_size, scale)
    ids, values = _top(logits, k)
    codec = Float16Codec(vocab_size, k)
    (features,) = codec.encode(ids, values.astype(np.float32), np.array([0, positions]))
    decoded_ids, decoded = codec.decode(features, positions)
    np.testing.assert_array_equal(decoded_ids, ids)
    assert (np.diff(decoded, axis=-1) <= 0).all()
    assert (decoded[:, 0] == 0).all()
    for temperature in TEMPERATURES:
        scaled = logits / temperature
        exact = np.exp(scaled - scaled.max(-1, keepdims=True))
        exact = np.take_along_axis(exact / exact.sum(-1, keepdims=True), ids, axis=-1)
        tail = _log_tail(logits, ids, temperature)
        for kept in (1, 2, 5, 31, 32):
            p, rest = topk_probabilities(decoded, tail, temperature, k=kept)
            # Half a unit in float16's last place of each logit, on both sides of the softmax.
            steps = np.maximum(-decoded[:, :kept], 2.0**-14) * 2.0**-11 / temperature
            bound = 2.0 * steps.max(-1, keepdims=True) + 2.0**-10
            assert (np.abs(p - exact[:, :kept]) <= bound * exact[:, :kept] + 1e-12).all()
            np.testing.assert_allclose(p.sum(-1) + rest, 1.0, atol=1e-12)


@given(st.integers(0, 10**6), st.sampled_from([100, 70_000]))
def test_numpy_and_tensorflow_decode_the_same(seed: int, vocab_size: int) -> None:
    random = np.random.default_rng(seed)
    counts = random.integers(0, 5, 3)
    k, padded = 7, 5
    row_splits = np.concatenate([[0], np.cumsum(counts)])
    total = int(row_splits[-1])
    ids = random.integers(0, vocab_size, (total, k))
    values = -np.sort(random.exponential(5.0, (total, k)), axis=-1).astype(np.float32)
    codec = Float16Codec(vocab_size, k)
    rows = codec.encode(ids, values, row_splits)
    tensors = {
        name: tf.constant([row[name] for row in rows])
        for name in (records.TOPK_IDS, records.TOPK_LOGITS)
    }
    got_ids, got_logits = codec.decode_tensors(tf, tensors, padded)
    for row, count in enumerate(counts):
        if not count:
            continue
        want_ids, want_logits = codec.decode(rows[row], int(count))
        np.testing.assert_array_equal(got_ids[row, :count], want_ids)
        np.testing.assert_array_equal(got_logits[row, :count], want_logits)
        assert not np.any(got_ids[row, count:]) and not np.any(got_logits[row, count:])


def test_golden_bytes() -> None:
    codec = Float16Codec(300, 2)
    (row,) = codec.encode(
        np.array([[258, 3]]), np.array([[2.0, 0.5]], np.float32), np.array([0, 1])
    )
    assert row == {
        records.TOPK_IDS: b"\x02\x01\x03\x00",
        records.TOPK_LOGITS: b"\x00\x00\x00\xbe",  # 0 and −1.5 in float16
    }


def test_four_bytes_an_id_with_its_value() -> None:
    codec = Float16Codec(21_128, 128)
    (row,) = codec.encode(np.zeros((20, 128)), np.zeros((20, 128), np.float32), np.array([0, 20]))
    assert sum(map(len, row.values())) == 20 * 128 * 4


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_takes_logits_far_below_the_largest(name: str) -> None:
    codec = CODECS[name](10, 3, token_counts=np.ones(10, np.int64))
    values = np.array([[1e6, -1e6, -np.inf]], np.float32)
    (row,) = codec.encode(np.array([[1, 2, 3]]), values, np.array([0, 1]))
    _, logits = codec.decode(row, 1)
    p, rest = topk_probabilities(logits, np.array([-np.inf]), 1.0, k=3)
    np.testing.assert_allclose(p, [[1.0, 0.0, 0.0]])
    assert rest == 0.0
