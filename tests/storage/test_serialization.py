"""Serialized records equal TensorFlow's bytes, and malformed bytes are refused."""

import itertools
import pathlib
import tracemalloc

import pytest
import tensorflow as tf
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.base.errors import InputError
from pipeline.storage import serialization

FEATURES = st.dictionaries(
    st.text(min_size=1, max_size=20), st.binary(max_size=300), min_size=1, max_size=64
)


def _tensorflow_bytes(features: dict[str, bytes]) -> bytes:
    example = tf.train.Example()
    for name, value in features.items():
        example.features.feature[name].bytes_list.value.append(value)
    return example.SerializeToString(deterministic=True)


@given(FEATURES)
def test_examples_are_tensorflows_deterministic_bytes(features: dict[str, bytes]) -> None:
    # If a name is a prefix of another, implementations of Protocol Buffers order them
    # differently. The features of a record have no such names.
    names = sorted(features)
    assume(not any(longer.startswith(name) for name, longer in itertools.pairwise(names)))
    assert serialization.encode_example(features) == _tensorflow_bytes(features)


@pytest.mark.parametrize("limit", [2**7, 2**14, 2**21])
def test_length_fields_have_the_bytes_of_tensorflow(limit: int) -> None:
    """The lengths are those at which a length field of a nested message gets another byte."""
    for length in range(limit - 32, limit + 2):
        features = {"logits": bytes(length), "b": b"1"}
        assert serialization.encode_example(features) == _tensorflow_bytes(features)


@given(FEATURES)
def test_decoding_inverts_encoding_of_examples(features: dict[str, bytes]) -> None:
    assert serialization.decode_example(serialization.encode_example(features)) == features


def test_encoded_example_has_golden_bytes() -> None:
    record = serialization.encode_example({"b": b"\x01\x02", "a": b""})
    # The message is Example{Features{a: BytesList{""}, b: BytesList{"\x01\x02"}}}.
    first = b"\x0a\x01a" + b"\x12\x04" + b"\x0a\x02" + b"\x0a\x00"
    second = b"\x0a\x01b" + b"\x12\x06" + b"\x0a\x04" + b"\x0a\x02\x01\x02"
    entries = b"\x0a\x09" + first + b"\x0a\x0b" + second
    assert record == b"\x0a\x18" + entries


@given(st.binary(max_size=200))
def test_random_bytes_are_decoded_or_refused(record: bytes) -> None:
    try:
        features = serialization.decode_example(record)
    except (ValueError, UnicodeDecodeError):
        return
    assert all(isinstance(value, bytes) for value in features.values())


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + serialization._varint(len(content)) + content


_VALUE = _field(2, _field(1, _field(1, b"x")))
_KEY = _field(1, b"a")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([_KEY + _VALUE] * 2, "the feature 'a' twice"),
        ([_KEY + _VALUE + _field(3, b"")], "a map entry of other fields than key and value"),
        ([_KEY + _VALUE + _VALUE], "a map entry of other fields than key and value"),
        ([_KEY], "a map entry of other fields than key and value"),
        (
            [_field(1, f"{number}".encode()) + _VALUE for number in range(65)],
            "more than 64 features",
        ),
    ],
)
def test_malformed_map_entries_are_refused(entries: list[bytes], message: str) -> None:
    record = _field(1, b"".join(_field(1, entry) for entry in entries))
    with pytest.raises(ValueError, match=f"^{message}$"):
        serialization.decode_example(record)


def _empty_fields(depth: int, size: int) -> bytes:
    """Returns a record of only empty fields: of the example, of an entry, or of a value list."""
    content = b"\x0a\x00" * (size // 2)
    if depth == 0:
        return content
    return _field(1, _field(1, content if depth == 1 else _KEY + _field(2, content)))


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_record_of_only_empty_fields_is_refused_without_much_memory(depth: int) -> None:
    record = _empty_fields(depth, 2**20)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="exactly one bytes value|other fields than key"):
            serialization.decode_example(record)
        assert tracemalloc.get_traced_memory()[1] < 2**16
    finally:
        tracemalloc.stop()


@given(st.lists(st.binary(max_size=100), max_size=5))
def test_tensorflow_reads_framed_records(
    tmp_path_factory: pytest.TempPathFactory, rows: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("framing") / "rows.tfrecord"
    path.write_bytes(b"".join(map(serialization.frame_record, rows)))
    assert [row.numpy() for row in tf.data.TFRecordDataset(str(path))] == rows
    assert list(serialization.read_records(path)) == rows


def _damaged_file(path: pathlib.Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        list(serialization.read_records(path))
    return str(error.value)


def test_every_truncation_and_every_flipped_bit_is_detected(tmp_path: pathlib.Path) -> None:
    whole = serialization.frame_record(b"first") + serialization.frame_record(b"second")
    boundary = len(serialization.frame_record(b"first"))
    path = tmp_path / "shard.tfrecord"
    for length in range(1, len(whole)):
        if length != boundary:
            assert str(path) in _damaged_file(path, whole[:length])
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        _damaged_file(path, bytes(flipped))


def test_error_about_a_broken_record_names_file_and_offset(tmp_path: pathlib.Path) -> None:
    frame = serialization.frame_record(b"0123456789")
    damaged = frame + frame[:-6] + b"?" + frame[-5:]
    message = _damaged_file(tmp_path / "x.tfrecord", damaged)
    assert message == (
        f"{tmp_path / 'x.tfrecord'}: broken record at byte 26: "
        "the checksum of its data does not match"
    )
