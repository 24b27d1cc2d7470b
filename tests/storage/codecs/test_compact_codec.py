"""Tests of the compact codec: stored order, long gaps, ties, quantized logits, damaged bytes."""

import math
import zlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from data_specs import records
from pipeline.storage.codecs.base import NO_ID, NO_ID_LOGIT
from pipeline.storage.codecs.compact import CompactCodec, LogitQuantizer

V = 1_000


def _codec(k: int, vocab_size: int = V, **options) -> CompactCodec:
    """Returns a codec whose token v has the count V − v, except that 0 and 1 are swapped."""
    counts = np.arange(vocab_size, 0, -1)
    counts[[0, 1]] = counts[[1, 0]]
    return CompactCodec(vocab_size, k, token_counts=counts, **options)


def _encode(codec: CompactCodec, ids: list[list[int]], logits: list[list[float]]):
    splits = np.array([0, len(ids)])
    (features,) = codec.encode(np.array(ids), np.array(logits, np.float32), splits)
    return features


def _unpacked(features: dict[str, bytes]) -> tuple[bytes, bytes]:
    return tuple(
        zlib.decompress(features[name]) for name in (records.TOPK_IDS, records.TOPK_LOGITS)
    )


def test_compact_golden_bytes() -> None:
    codec = _codec(3)
    features = _encode(codec, [[5, 0, 300], [999, 1, 2]], [[2.0, 1.25, 0.5], [1.0, 1.0, 1.0]])
    gaps, steps = _unpacked(features)
    # Ranks 1, 5, 300 and 0, 2, 999: gaps 1, 3, 294 and 0, 1, 996.
    assert gaps == bytes([1, 3, 255, 0, 1, 255]) + b"\x26\x01\xe4\x03"
    # With bend 1.5, half of the range is (1 − e^−0.75) / (1 − e^−1.5) = 0.679 of 225 steps.
    assert steps == bytes([153, 0, 225, 0, 0, 0])
    assert features[records.TOPK_RANGES] == b"\x00\x3e\x00\x00"  # 1.5 and 0 in float16
    ids, logits = codec.decode(features, 2)
    # Ids with equal logits are in the order of their ranks.
    assert ids.tolist() == [[5, 0, 300], [1, 2, 999]]
    np.testing.assert_allclose(logits, [[0.0, -0.75, -1.5], [0.0, 0.0, 0.0]], atol=0.01)


def test_record_of_an_older_zlib_is_read() -> None:
    # Versions of zlib compress the same bytes differently.
    features = {
        records.TOPK_IDS: bytes.fromhex("78016364fecfc0f85f8df10933000f8e0312"),
        records.TOPK_LOGITS: bytes.fromhex("78019bc9f090818101000720017b"),
        records.TOPK_RANGES: b"\x00\x3e\x00\x00",
    }
    codec = _codec(3)
    assert codec.decode(features, 2)[0].tolist() == [[5, 0, 300], [1, 2, 999]]


def test_padding_of_rows_is_not_stored() -> None:
    codec = _codec(3, variable=True)
    features = _encode(
        codec, [[5, NO_ID, NO_ID], [999, 2, NO_ID]], [[2.0, *[NO_ID_LOGIT] * 2], [1.0, 0.0, -1e30]]
    )
    assert _unpacked(features) == (bytes([5, 2, 255]) + b"\xe4\x03", bytes([0, 225, 0]))
    assert features[records.TOPK_COUNTS] == b"\x01\x00\x02\x00"
    ids, logits = codec.decode(features, 2)
    assert ids.tolist() == [[5, NO_ID, NO_ID], [999, 2, NO_ID]]
    assert logits[1].tolist() == [0.0, -1.0, np.float32(NO_ID_LOGIT)]


def test_long_gaps_of_a_large_vocabulary_are_int32() -> None:
    """The records of the batch have different numbers of long gaps."""
    codec = CompactCodec(70_000, 4, token_counts=np.zeros(70_000, np.int64))
    ids = np.array([[69_999, 300, 600, 900], [0, 1, 2, 3], [255, 511, 1_022, 66_000]])
    rows = codec.encode(ids, np.zeros((3, 4), np.float32), np.array([0, 1, 2, 3]))
    assert [len(_unpacked(row)[0]) for row in rows] == [4 + 16, 4, 4 + 16]
    tensors = {name: tf.constant([row[name] for row in rows]) for name in rows[0]}
    decoded, _ = codec.decode_tensors(tf, tensors, [1, 1, 1], 2)
    np.testing.assert_array_equal(decoded[:, 0], np.sort(ids, axis=-1))
    assert not np.any(decoded[:, 1])


def _reference_decode(codec: CompactCodec, features: dict[str, bytes], counts: list[int]):
    """Decodes a record id by id: for each position, pairs of an id and its step."""
    gaps, steps = _unpacked(features)
    dtype = "<u2" if codec.vocab_size <= 65_536 else "<i4"
    long = iter(np.frombuffer(gaps[sum(counts) :], dtype).tolist())
    by_frequency = sorted(range(codec.vocab_size), key=lambda v: (-codec.token_counts[v], v))
    start, rows = 0, []
    for count in counts:
        rank, row = -1, []
        for gap, step in zip(gaps[start : start + count], steps[start:], strict=False):
            rank += 1 + (next(long) if gap == 255 else gap)
            row.append((by_frequency[rank], step))
        # Python's sort is stable, so that ids with equal steps stay in the order of ranks.
        rows.append(sorted(row, key=lambda pair: pair[1]))
        start += count
    return rows


@given(st.integers(0, 10**6), st.sampled_from([(9, 9), (600, 3), (70_000, 40)]), st.booleans())
def test_decoding_equals_a_reference_decoder(
    seed: int, size: tuple[int, int], variable: bool
) -> None:
    (vocab_size, k), rng = size, np.random.default_rng(seed)
    counts = np.full(4, k) if not variable else rng.integers(1, k + 1, 4)
    ids = np.stack([rng.permutation(vocab_size)[:k] for _ in range(4)])
    # Few distinct logits give many ties, and some logits have no mass.
    logits = -np.sort(rng.choice([0.0, 1.0, 1.5, 3.0, 100.0], (4, k)), axis=-1)
    is_padding = np.arange(k) >= counts[:, np.newaxis]
    codec = CompactCodec(vocab_size, k, variable, rng.integers(0, 5, vocab_size))
    ids, logits = np.where(is_padding, NO_ID, ids), np.where(is_padding, NO_ID_LOGIT, logits)
    features = _encode(codec, ids.tolist(), logits.tolist())
    expected = _reference_decode(codec, features, counts.tolist())
    tensors = {name: tf.constant([value]) for name, value in features.items()}
    batch = [values[0, :4].numpy() for values in codec.decode_tensors(tf, tensors, [4], 5)]
    ranges = np.frombuffer(features[records.TOPK_RANGES], "<f2").astype(np.float32)
    for decoded_ids, decoded_logits in (codec.decode(features, 4), batch):
        for row, pairs in enumerate(expected):
            assert decoded_ids[row, : counts[row]].tolist() == [token for token, _ in pairs]
            steps = np.array([step for _, step in pairs])
            expected_logits = np.where(
                steps == 255, -65504, codec.steps.distances[steps] * -ranges[row]
            )
            np.testing.assert_array_equal(decoded_logits[row, : counts[row]], expected_logits)
            assert (decoded_ids[row, counts[row] :] == NO_ID).all()
            assert (decoded_logits[row, counts[row] :] == np.float32(NO_ID_LOGIT)).all()


def test_ranks_and_steps_beyond_32_bits_are_decoded() -> None:
    vocab_size = 2**22 + 1
    codec = CompactCodec(vocab_size, 3, True, np.zeros(vocab_size, np.int64))
    ids = [[2**22, 5, 2**21], [7, 2**22, NO_ID]]
    features = _encode(codec, ids, [[0.0, -1.0, -80.0], [0.0, -80.0, NO_ID_LOGIT]])
    decoded, logits = codec.decode(features, 2)
    assert decoded.tolist() == ids
    assert logits[1].tolist() == [0.0, -65504.0, np.float32(NO_ID_LOGIT)]


@pytest.mark.parametrize("gap", [-1, 70_000, 2**31 - 1, -(2**31)])
def test_long_gaps_whose_sums_overflow_are_refused(gap: int) -> None:
    codec = CompactCodec(70_000, 3, token_counts=np.zeros(70_000, np.int64))
    features = _encode(codec, [[0, 300, 69_999]], [[3.0, 2.0, 1.0]])
    long_gaps = np.array([gap, 2**31 - 1], "<i4").tobytes()
    features[records.TOPK_IDS] = zlib.compress(bytes([0, 255, 255]) + long_gaps)
    with pytest.raises(ValueError, match="expected ranks from 0 to 69999"):
        codec.decode(features, 1)
    tensors = {name: tf.constant([value]) for name, value in features.items()}
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected ranks from 0 to 69999"):
        tf.function(lambda: codec.decode_tensors(tf, tensors, [1], 1))()


def test_records_of_frequent_tokens_are_small() -> None:
    rng = np.random.default_rng(0)
    frequencies = np.arange(1.0, 21_129.0) ** -2.0
    shuffled = rng.permutation(21_128)
    ids = np.stack([np.argsort(-rng.gumbel(np.log(frequencies)))[:128] for _ in range(20)])
    logits = -np.sort(rng.exponential(1.5, (20, 128)), axis=-1).astype(np.float32)
    sizes = {}
    for name, counts in (("true", frequencies), ("shuffled", frequencies[shuffled])):
        codec = CompactCodec(21_128, 128, token_counts=counts)
        (row,) = codec.encode(ids, logits, np.array([0, 20]))
        sizes[name] = sum(map(len, row.values())) / 20
    assert sizes["true"] < 190 < 270 < sizes["shuffled"]


def _packed(content: bytes) -> bytes:
    return zlib.compress(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (records.TOPK_IDS, b"", "expected a complete zlib stream of at most 9 bytes"),
        (records.TOPK_IDS, b"none", "broken zlib stream"),
        (
            records.TOPK_IDS,
            _packed(bytes(9))[:-4],
            "expected a complete zlib stream of at most 9 bytes",
        ),
        (
            records.TOPK_IDS,
            _packed(bytes(9)) + b"1",
            "expected a complete zlib stream of at most 9 bytes",
        ),
        # A decompression bomb is not unpacked.
        (
            records.TOPK_IDS,
            _packed(bytes(10**6)),
            "expected a complete zlib stream of at most 9 bytes",
        ),
        (
            records.TOPK_LOGITS,
            _packed(bytes(4)),
            "expected a complete zlib stream of at most 3 bytes",
        ),
        (records.TOPK_LOGITS, _packed(bytes(2)), "top-k of 3 ids, 3 at each position, received 2"),
        (records.TOPK_IDS, _packed(bytes(2)), "top-k of 3 ids, 3 at each position, received 2"),
        (
            records.TOPK_IDS,
            _packed(bytes([0, 255, 0])),
            "expected 1 long gaps of ranks, received 0",
        ),
        (records.TOPK_IDS, _packed(bytes(5)), "expected 0 long gaps of ranks, received 1"),
        (
            records.TOPK_IDS,
            _packed(bytes([0, 255, 0, 0xE6, 0x03])),
            "expected ranks from 0 to 999",
        ),
    ],
)
def test_damaged_streams_are_refused(name: str, content: bytes, message: str) -> None:
    codec = _codec(3)
    features = _encode(codec, [[0, 1, 2]], [[3.0, 2.0, 1.0]])
    with pytest.raises(ValueError, match=message):
        codec.decode({**features, name: content}, 1)


def test_compact_codec_requires_token_counts() -> None:
    with pytest.raises(ValueError, match="token_counts: expected the counts of all tokens"):
        CompactCodec(10, 2)


@pytest.mark.parametrize("name", [records.TOPK_IDS, records.TOPK_LOGITS])
def test_decompression_bombs_are_refused_in_tensorflow(name: str) -> None:
    codec = _codec(3)
    features = _encode(codec, [[0, 1, 2]], [[3.0, 2.0, 1.0]])
    batch = {key: tf.constant([value]) for key, value in features.items()}
    ids, _ = codec.decode_tensors(tf, batch, [1], 1)
    assert ids.numpy().tolist() == [[[0, 1, 2]]]
    batch[name] = tf.constant([zlib.compress(bytes(10**5))])
    message = "expected a complete zlib stream of at most"
    with pytest.raises(ValueError, match=message):
        codec.decode_tensors(tf, batch, [1], 1)


@pytest.mark.parametrize(("bend", "last"), [(1.0, 254), (1.5, 225), (1e-6, 10)])
def test_distances_follow_the_formula(bend: float, last: int) -> None:
    steps = LogitQuantizer(bend, last)
    for number in (0, 1, last // 2, last - 1, last):
        fraction = (1.0 - math.exp(-bend)) * number / last
        expected = -math.log(1.0 - fraction) / bend
        assert steps.distances[number] == pytest.approx(expected, rel=1e-6)
    assert (steps.distances[0], steps.distances[last], steps.distances[255]) == (0, 1, 1)
    lengths = np.diff(steps.distances[: last + 1].astype(np.float64))
    assert lengths[-1] / lengths[0] == pytest.approx(math.exp(bend), rel=0.02)
    assert steps.half_step == pytest.approx(lengths.max() / 2)


@pytest.mark.parametrize(
    ("bend", "last"), [(1.0, 254), (1.5, 225), (1e-6, 10), (9.0, 254), (1.0, 1)]
)
def test_distances_are_rounded_to_the_nearest_step(bend: float, last: int) -> None:
    """A midpoint is rounded down, and the next float32 above it is rounded up."""
    steps = LogitQuantizer(bend, last)
    distances = steps.distances[: last + 1]
    midpoints = (distances[1:] + distances[:-1]) / 2
    above = np.nextafter(midpoints, np.float32(2.0))
    # The range is 1, so that distances equal fractions of the range.
    shifted = -np.concatenate([[0.0], midpoints, above, distances, [1.0]]).astype(np.float32)[
        np.newaxis
    ]
    numbers, ranges = steps.encode(shifted, np.ones(shifted.shape, bool))
    steps_in_order = np.arange(last + 1)
    expected = [0, *steps_in_order[:-1], *steps_in_order[1:], *steps_in_order, last]
    assert ranges.tolist() == [1.0]
    assert numbers[0].tolist() == expected


def test_logits_without_mass_do_not_widen_the_range() -> None:
    steps = LogitQuantizer(1.0, 254)
    shifted = np.array([[0.0, -1.0, -2.0, -64.5, -np.inf, -1e30]], np.float32)
    present = np.array([[True] * 5 + [False]])
    numbers, ranges = steps.encode(shifted, present)
    assert numbers.tolist() == [[0, 158, 254, 255, 255, 0]] and ranges.tolist() == [2.0]
    decoded = steps.decode(numbers.astype(np.int64), ranges)
    np.testing.assert_allclose(decoded[0, :3], shifted[0, :3], atol=0.007)
    assert decoded[0, 3:5].tolist() == [-65504.0, -65504.0]


def test_a_range_below_float16_is_zero() -> None:
    numbers, ranges = LogitQuantizer(1.0, 254).encode(
        np.array([[0.0, -1e-9]], np.float32), np.ones((1, 2), bool)
    )
    assert numbers.tolist() == [[0, 0]] and ranges.tolist() == [0.0]
