"""All top-k codecs decode the teacher's distribution within the stated error."""

import importlib
import pkgutil

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from data_specs import records
from pipeline.storage import codecs
from pipeline.storage.codecs import CODECS, HIDDEN_CODECS, HiddenCodec
from pipeline.storage.codecs.base import NO_ID, NO_ID_LOGIT, TopKCodec
from pipeline.storage.codecs.float16 import Float16Codec
from pipeline.storage.records import TeacherTargets

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


@pytest.mark.parametrize(
    ("table", "base", "declared"),
    [
        (CODECS, TopKCodec, records.TOPK_FEATURES),
        (HIDDEN_CODECS, HiddenCodec, records.HIDDEN_FEATURES),
    ],
    ids=["top-k", "hidden states"],
)
def test_every_codec_class_is_in_its_table_with_declared_features(table, base, declared) -> None:
    for module in pkgutil.iter_modules(codecs.__path__, f"{codecs.__name__}."):
        importlib.import_module(module.name)
    classes = base.__subclasses__()
    in_package = {cls for cls in classes if cls.__module__.startswith(codecs.__name__)}
    assert set(table.values()) == in_package
    assert {name: codec.stored for name, codec in table.items()} == declared


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
        for size in (1, 2, 5, 31, 32):
            targets = TeacherTargets(ids, decoded, tail[:, np.newaxis], None, (temperature,))
            p, rest = targets.probabilities(temperature, size)
            # Float16's rounding error of a logit counts in the numerator and in the denominator.
            steps = np.maximum(-decoded[:, :size], 2.0**-14) * 2.0**-11 / temperature
            bound = 2.0 * steps.max(-1, keepdims=True) + 2.0**-10
            assert (np.abs(p - exact[:, :size]) <= bound * exact[:, :size] + 1e-12).all()
            np.testing.assert_allclose(p.sum(-1) + rest, 1.0, atol=1e-12)


def _codec(name: str, vocab_size: int, k: int, *, variable: bool = False) -> TopKCodec:
    """Returns a codec with random token counts, among them many ties."""
    counts = np.random.default_rng(vocab_size).integers(0, vocab_size // 3 + 1, vocab_size)
    return CODECS[name](vocab_size, k, variable, counts)


def _rows(rng: np.random.Generator, counts: list[int], vocab_size: int, k: int, variable: bool):
    """Returns the distinct ids and descending float32 logits of several records; row splits."""
    total = sum(counts)
    ids = np.stack([rng.permutation(vocab_size)[:k] for _ in range(total)] or [np.zeros(k)])
    scale = rng.choice([0.1, 3.0, 20.0], (max(total, 1), 1))
    logits = -np.sort(rng.exponential(1.0, ids.shape), axis=-1) * scale + 5.0
    # Each row has some ties, and in some rows all logits are equal.
    logits[:, k // 2 :: 2] = logits[:, k // 2 : k // 2 + 1]
    logits[rng.random(len(logits)) < 0.2] = 3.0
    logits = -np.sort(-logits, axis=-1)
    if variable:
        is_padding = np.arange(k) >= rng.integers(1, k + 1, (len(ids), 1))
        ids, logits = np.where(is_padding, NO_ID, ids), np.where(is_padding, NO_ID_LOGIT, logits)
    splits = np.concatenate([[0], np.cumsum(counts)])
    return ids[:total].astype(np.int64), logits[:total].astype(np.float32), splits


CASES = st.tuples(
    st.integers(0, 10**6),
    st.sampled_from([(100, 7), (1_000, 128), (70_000, 9), (9, 9), (5, 1)]),
    st.booleans(),
)


@pytest.mark.parametrize("name", CODECS)
@given(CASES)
def test_numpy_and_tensorflow_decode_the_same(name: str, case) -> None:
    seed, (vocab_size, k), variable = case
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 5, 3).tolist()
    ids, values, row_splits = _rows(rng, counts, vocab_size, k, variable)
    codec = _codec(name, vocab_size, k, variable=variable)
    rows = codec.encode(ids, values, row_splits)
    tensors = {feature: tf.constant([row[feature] for row in rows]) for feature in rows[0]}
    decoded_ids, decoded_logits = codec.decode_tensors(tf, tensors, counts, 5)
    assert decoded_ids.shape == decoded_logits.shape == (3, 5, k)
    assert (decoded_ids.dtype, decoded_logits.dtype) == (tf.int32, tf.float32)
    for row, count in enumerate(counts):
        expected_ids, expected_logits = codec.decode(rows[row], count)
        assert (expected_ids.dtype, expected_logits.dtype) == (np.int32, np.float32)
        np.testing.assert_array_equal(decoded_ids[row, :count], expected_ids)
        np.testing.assert_array_equal(decoded_logits[row, :count], expected_logits)
        assert not np.any(decoded_ids[row, count:]) and not np.any(decoded_logits[row, count:])


@pytest.mark.parametrize("name", CODECS)
@given(CASES)
def test_round_trip_keeps_ids_and_logits_within_the_stated_bound(name: str, case) -> None:
    """Decoded ids are the same, and their logits descend and are within the stated error."""
    seed, (vocab_size, k), variable = case
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 5, 3).tolist()
    ids, values, row_splits = _rows(rng, counts, vocab_size, k, variable)
    codec = _codec(name, vocab_size, k, variable=variable)
    for record, features in enumerate(codec.encode(ids, values, row_splits)):
        rows = slice(row_splits[record], row_splits[record + 1])
        decoded_ids, decoded = codec.decode(features, counts[record])
        assert decoded_ids.shape == (counts[record], k)
        assert (np.diff(decoded, axis=-1) <= 0).all() and (decoded[:, :1] == 0).all()
        np.testing.assert_array_equal(decoded_ids == NO_ID, ids[rows] == NO_ID)
        np.testing.assert_array_equal(decoded == np.float32(NO_ID_LOGIT), ids[rows] == NO_ID)
        for position, row in enumerate(decoded_ids):
            real = ids[rows][position] >= 0
            expected = dict(
                zip(ids[rows][position][real], values[rows][position][real], strict=True)
            )
            assert set(row[real]) == set(expected)
            exact = np.array([expected[token] for token in row[real]]) - max(expected.values())
            largest_distance = max(np.abs(exact[exact >= -64.0]).max(), 2.0**-14)
            # The range itself is rounded, by at most 1 / 2,048.
            bound = largest_distance * (_half_step(codec) + 2.0**-11) + 1e-6
            has_mass = exact >= -64.0
            assert (np.abs(decoded[position][real] - exact)[has_mass] <= bound).all()
            assert (decoded[position][real][~has_mass] <= -64.0).all()


def _half_step(codec: TopKCodec) -> float:
    return codec.steps.half_step if hasattr(codec, "steps") else 2.0**-11


@pytest.mark.parametrize("name", CODECS)
def test_bytes_of_a_record_do_not_depend_on_other_records(name: str) -> None:
    rng = np.random.default_rng(0)
    for variable in (False, True):
        ids, values, splits = _rows(rng, [3, 0, 2], 300, 20, variable)
        codec = _codec(name, 300, 20, variable=variable)
        together = codec.encode(ids, values, splits)
        alone = codec.encode(ids[3:], values[3:], np.array([0, 2]))
        assert together[2] == alone[0]
        assert codec.decode(together[1], 0)[0].shape == (0, 20)


@pytest.mark.parametrize("name", CODECS)
def test_equal_logits_and_single_ids_are_decoded(name: str) -> None:
    codec = _codec(name, 9, 9)
    ids = np.array([[4, 0, 8, 1, 2, 3, 5, 6, 7]])
    (row,) = codec.encode(ids, np.full((1, 9), 7.5, np.float32), np.array([0, 1]))
    got, logits = codec.decode(row, 1)
    assert sorted(got[0]) == list(range(9)) and not logits.any()
    codec = _codec(name, 9, 1)
    (row,) = codec.encode(np.array([[8]]), np.array([[-3.0]], np.float32), np.array([0, 1]))
    assert [value.tolist() for value in codec.decode(row, 1)] == [[[8]], [[0.0]]]


@pytest.mark.parametrize("name", CODECS)
def test_encode_refuses_rows_without_enough_ids(name: str) -> None:
    ids, values, splits = np.array([[3, NO_ID]]), np.zeros((1, 2), np.float32), np.array([0, 1])
    with pytest.raises(ValueError, match="topk_ids: expected at least 2 at each position"):
        _codec(name, 9, 2).encode(ids, values, splits)
    with pytest.raises(ValueError, match="topk_ids: expected at least 1 at each position"):
        _codec(name, 9, 2, variable=True).encode(ids - 4, values, splits)


@pytest.mark.parametrize("name", CODECS)
@given(st.integers(0, 10**6), st.booleans())
def test_damaged_bytes_are_refused_or_decode_to_valid_ids(
    name: str, seed: int, variable: bool
) -> None:
    """A flipped bit may give bytes that another record could have."""
    rng = np.random.default_rng(seed)
    ids, values, splits = _rows(rng, [3], 1_000, 8, variable)
    codec = _codec(name, 1_000, 8, variable=variable)
    (row,) = codec.encode(ids, values, splits)
    feature = rng.choice(sorted(row))
    content = bytearray(row[feature])
    offset = rng.integers(0, len(content))
    action = rng.integers(0, 3)
    if action == 0:
        content[offset] ^= 1 << rng.integers(0, 8)
    elif action == 1:
        del content[offset:]
    else:
        content += bytes(rng.integers(0, 256, 4).tolist())
    try:
        decoded_ids, logits = codec.decode({**row, feature: bytes(content)}, 3)
    except ValueError:
        return
    assert action == 0
    assert (
        decoded_ids.shape == logits.shape == (3, 8)
        and decoded_ids.min() >= NO_ID
        and decoded_ids.max() < 1_000
    )


def test_error_about_damaged_topk_names_the_feature() -> None:
    """The record has one position with three ids."""
    for name in CODECS:
        codec = _codec(name, 1_000, 3, variable=True)
        (row,) = codec.encode(np.array([[1, 2, 999]]), np.zeros((1, 3), "f4"), np.array([0, 1]))
        for counts in (b"", b"\x00\x00", b"\x04\x00", b"\x03\x00\x03\x00"):
            with pytest.raises(ValueError, match="topk_counts: expected 1 numbers from 1 to 3"):
                codec.decode({**row, records.TOPK_COUNTS: counts}, 1)
        if name != "float16":
            for ranges in (b"", b"\x00\xfc", b"\x00\x7e"):
                with pytest.raises(ValueError, match="expected 1 ranges of at least 0, received"):
                    codec.decode({**row, records.TOPK_RANGES: ranges}, 1)
    plain = Float16Codec(1_000, 3)
    (row,) = plain.encode(np.array([[1, 2, 999]]), np.zeros((1, 3), "f4"), np.array([0, 1]))
    with pytest.raises(ValueError, match="topk_ids: expected ids from 0 to 999, .* from 1 to 1000"):
        plain.decode({**row, records.TOPK_IDS: b"\x01\x00\x02\x00\xe8\x03"}, 1)
    with pytest.raises(ValueError, match="top-k of 3 ids, 3 at each position, received 2"):
        plain.decode({**row, records.TOPK_LOGITS: b"\x00\x00\x00\x00"}, 1)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("variable", [False, True])
def test_static_shapes_are_known_in_a_tensorflow_graph(name: str, variable: bool) -> None:
    codec = _codec(name, 300, 20, variable=variable)
    ids, values, splits = _rows(np.random.default_rng(0), [3], 300, 20, variable)
    (row,) = codec.encode(ids, values, splits)
    traced = tf.function(
        lambda features: codec.decode_tensors(tf, features, tf.constant([3]), 5)
    ).get_concrete_function({feature: tf.TensorSpec([None], tf.string) for feature in row})
    for spec, dtype in zip(traced.structured_outputs, (tf.int32, tf.float32), strict=True):
        assert (spec.shape.as_list(), spec.dtype) == ([None, 5, 20], dtype)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("counts", [[3, 3], [3, 1], [1, 1], [65_535, 2], [0, 0]])
def test_a_batch_with_damaged_counts_is_refused(name: str, counts: list[int]) -> None:
    """Bytes beyond the record are never read."""
    codec = _codec(name, 1_000, 3, variable=True)
    ids = np.array([[1, 2, NO_ID], [999, NO_ID, NO_ID]])
    (row,) = codec.encode(ids, np.zeros((2, 3), np.float32), np.array([0, 2]))
    row[records.TOPK_COUNTS] = np.array(counts, "<u2").tobytes()
    tensors = {feature: tf.constant([value]) for feature, value in row.items()}
    decode = tf.function(lambda: codec.decode_tensors(tf, tensors, [2], 4))
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode()


def test_float16_golden_bytes() -> None:
    codec = Float16Codec(300, 2)
    (row,) = codec.encode(
        np.array([[258, 3]]), np.array([[2.0, 0.5]], np.float32), np.array([0, 1])
    )
    assert row == {
        records.TOPK_IDS: b"\x02\x01\x03\x00",
        records.TOPK_LOGITS: b"\x00\x00\x00\xbe",  # 0 and −1.5 in float16
    }


def test_float16_takes_four_bytes_an_id() -> None:
    codec = Float16Codec(21_128, 128)
    (row,) = codec.encode(np.zeros((20, 128)), np.zeros((20, 128), np.float32), np.array([0, 20]))
    assert sum(map(len, row.values())) == 20 * 128 * 4


@pytest.mark.parametrize("name", CODECS)
def test_logits_far_below_the_largest_get_no_mass(name: str) -> None:
    codec = CODECS[name](10, 3, token_counts=np.ones(10, np.int64))
    values = np.array([[1e6, -1e6, -np.inf]], np.float32)
    (row,) = codec.encode(np.array([[1, 2, 3]]), values, np.array([0, 1]))
    ids, logits = codec.decode(row, 1)
    p, rest = TeacherTargets(ids, logits, np.array([[-np.inf]]), None, (1.0,)).probabilities(1.0)
    np.testing.assert_allclose(p, [[1.0, 0.0, 0.0]])
    assert rest == 0.0
