"""Serialization of records as `tf.train.Example` messages in TFRecord framing, in plain Python.

Each feature of this project is a single bytes value. Therefore the wire format consists only of
nested length-delimited fields (protocol buffers, wire type 2):

    Example  { Features features = 1 }
    Features { map<string, Feature> feature = 1 }      entries: key = 1, value = 2
    Feature  { BytesList bytes_list = 1 }
    BytesList{ repeated bytes value = 1 }

Features are written sorted by name, as in TensorFlow's deterministic serialization. A TFRecord is

    uint64 length | uint32 masked crc32c(length) | data | uint32 masked crc32c(data)
"""

import dataclasses
import functools
import hashlib
import itertools
import pathlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import google_crc32c

from pipeline.base.errors import InputError
from pipeline.base.json_text import format_value
from pipeline.base.location import Location
from pipeline.storage.manifest import ShardInfo, sidecar_path

_BYTES_FIELD_1 = b"\x0a"
_BYTES_FIELD_2 = b"\x12"
_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_CRC_MASK_DELTA = 0xA282EAD8

# For comparison: a record of 512 masked tokens with k = 1,024 has less than 3 MB.
MAX_RECORD_BYTES = 256 * 2**20
# Number of records that are written at a time.
_WRITTEN_RECORDS = 16
# Records of this project have at most a dozen features.
_MAX_FEATURES = 64
# A function that returns fields of `ShardInfo`, after all records of the shard are written.
Sums = Callable[[], Mapping[str, Any]]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@functools.lru_cache(maxsize=16_384)
def _entry_prefix(name: str, length: int) -> bytes:
    """Returns the bytes before a feature's value.

    The results are cached, as records have few different names and lengths.
    """
    value = _BYTES_FIELD_1 + _varint(length)
    bytes_list = _BYTES_FIELD_1 + _varint(len(value) + length) + value
    feature = _BYTES_FIELD_2 + _varint(len(bytes_list) + length) + bytes_list
    text = name.encode("utf-8")
    key = _BYTES_FIELD_1 + _varint(len(text)) + text
    return _BYTES_FIELD_1 + _varint(len(key) + len(feature) + length) + key + feature


def encode_example(features: Mapping[str, bytes]) -> bytes:
    """Serializes one or more features, a single bytes value each, as a `tf.train.Example`.

    The bytes equal those of TensorFlow's deterministic serialization.
    """
    [record] = encode_examples({name: [value] for name, value in features.items()})
    return record


def encode_examples(columns: Mapping[str, Sequence[bytes]]) -> Iterator[bytes]:
    """Yields the serialized examples of n records with the same features, see `encode_example`.

    `columns` has n values for each feature.
    """
    names = tuple(sorted(columns))
    contents: list[bytes] = [b""] * (2 * len(names))
    for values in zip(*(columns[name] for name in names), strict=True):
        contents[::2] = _prefixes(names, tuple(map(len, values)))
        contents[1::2] = values
        # A single join copies each value only once.
        yield b"".join(contents)


@functools.lru_cache(maxsize=2**12)
def _prefixes(names: tuple[str, ...], lengths: tuple[int, ...]) -> tuple[bytes, ...]:
    """Returns the bytes before each value of an Example, from the names and lengths of all."""
    entries = [_entry_prefix(name, size) for name, size in zip(names, lengths, strict=True)]
    message = _BYTES_FIELD_1 + _varint(sum(map(len, entries)) + sum(lengths))
    return (message + entries[0], *entries[1:])


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    if position < len(data) and (byte := data[position]) < 0x80:
        return byte, position + 1
    value = shift = 0
    while position < len(data) and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("a broken varint")


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yields (field number, content) of a message whose fields are all length-delimited."""
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        if tag & 7 != 2:
            raise ValueError(f"a field of wire type {tag & 7}")
        length, position = _read_varint(data, position)
        if position + length > len(data):
            raise ValueError("a field that ends outside its message")
        yield tag >> 3, data[position : position + length]
        position += length


def _only_field(data: memoryview, description: str) -> memoryview:
    # At most two fields are read. A list of all fields could take many times the record's memory.
    fields = _fields(data)
    number, content = next(fields, (0, data))
    if number != 1 or next(fields, None) is not None:
        raise ValueError(f"{description} without exactly one bytes value")
    return content


def _key_and_value(entry: memoryview) -> tuple[memoryview, memoryview]:
    # At most three fields are read, as in `_only_field`.
    fields = list(itertools.islice(_fields(entry), 3))
    by_number = dict(fields)
    if len(fields) != 2 or by_number.keys() != {1, 2}:
        raise ValueError("a map entry of other fields than key and value")
    return by_number[1], by_number[2]


def decode_example(record: bytes) -> dict[str, bytes]:
    """Decodes a record of `encode_example` to each feature's bytes value, by name.

    Raises:
        ValueError: the record is malformed, has too many or repeated features, or a feature is
            not a single bytes value.
    """
    features: dict[str, bytes] = {}
    for entry_number, entry in _fields(_only_field(memoryview(record), "an Example")):
        if entry_number != 1:
            raise ValueError("a map entry without key and value")
        key, value = _key_and_value(entry)
        name = bytes(key).decode("utf-8")
        description = f"the feature {format_value(name)}"
        if name in features:
            raise ValueError(f"{description} twice")
        if len(features) == _MAX_FEATURES:
            raise ValueError(f"more than {_MAX_FEATURES} features")
        features[name] = bytes(_only_field(_only_field(value, description), description))
    return features


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _CRC_MASK_DELTA) & 0xFFFFFFFF


def frame_record(record: bytes) -> bytes:
    """Returns a record in TFRecord framing, with both checksums."""
    return b"".join((_frame_header(len(record)), record, _FOOTER.pack(_masked_crc(record))))


@functools.lru_cache(maxsize=2**12)
def _frame_header(length: int) -> bytes:
    return _HEADER.pack(length, _masked_crc(length.to_bytes(8, "little")))


def read_records(path: Location) -> Iterator[bytes]:
    """Yields the records of a TFRecord file; checks both checksums of each.

    Raises:
        InputError: the file is truncated or damaged; the message names it and the byte offset.
    """
    offset = 0
    with path.mirrored() as copy, open(copy, "rb") as file:
        while header := file.read(_HEADER.size):
            problem = f"{path}: broken record at byte {offset}"
            if len(header) < _HEADER.size:
                raise InputError(problem, received="the file ends inside a header")
            length, length_crc = _HEADER.unpack(header)
            if length_crc != _masked_crc(header[:8]):
                raise InputError(problem, received="the checksum of its length does not match")
            if length > MAX_RECORD_BYTES:
                raise InputError(problem, f"at most {MAX_RECORD_BYTES} bytes", length)
            record, footer = file.read(length), file.read(_FOOTER.size)
            if len(record) < length or len(footer) < _FOOTER.size:
                raise InputError(problem, received="the file ends inside it")
            if _FOOTER.unpack(footer)[0] != _masked_crc(record):
                raise InputError(problem, received="the checksum of its data does not match")
            yield record
            offset += _HEADER.size + length + _FOOTER.size


@dataclasses.dataclass(frozen=True)
class StagedShard:
    """A complete shard that is not published yet, in a file with a unique temporary name.

    Attributes:
        info: of the published shard.
        temporary: name of the temporary file.
    """

    info: ShardInfo
    temporary: str


def write_shard(
    directory: Location, file: str, records: Iterable[bytes], sums: Sums | None = None
) -> ShardInfo:
    """Writes one shard and its sidecar.

    The sidecar is written first, so that a shard under its final name always has a sidecar. If
    `records` raises, neither file appears.

    Args:
        directory: the shard directory.
        file: the shard's name.
        records: serialized examples, in order; consumed as they are written.
        sums: see `Sums`; None if there are no such fields.

    Returns:
        the shard's count, size and checksum.
    """
    with (directory / file).atomic_write() as temporary:
        shard = _write_records(temporary, file, records, sums)
        sidecar_path(directory, file).write_json(shard.to_json())
    return shard


def stage_shard(
    directory: Location, file: str, records: Iterable[bytes], sums: Sums | None = None
) -> StagedShard:
    """Writes a shard for another process to publish; arguments as of `write_shard`.

    Some runners may run a job twice at the same time, perhaps on machines that round differently.
    Each copy has its own file and checksum, and only one is published.
    """
    path = (directory / file).unique_temporary()
    with path.stage() as temporary:
        shard = _write_records(temporary, file, records, sums)
    return StagedShard(shard, path.name)


def publish_shard(directory: Location, staged: StagedShard) -> ShardInfo:
    """Writes the sidecar of a staged shard, and renames the shard; returns its `ShardInfo`."""
    shard = staged.info
    sidecar_path(directory, shard.file).write_json(shard.to_json())
    (directory / staged.temporary).publish(directory / shard.file)
    return shard


def _write_records(
    path: pathlib.Path, file: str, records: Iterable[bytes], sums: Sums | None
) -> ShardInfo:
    checksum = hashlib.sha256()
    num_examples = num_bytes = 0
    records = iter(records)
    with open(path, "wb") as output:
        # Several records at a time take half the time of one.
        while framed := [*map(frame_record, itertools.islice(records, _WRITTEN_RECORDS))]:
            content = b"".join(framed)
            checksum.update(content)
            output.write(content)
            num_examples += len(framed)
            num_bytes += len(content)
    fields = {} if sums is None else sums()
    return ShardInfo(file, num_examples, num_bytes, checksum.hexdigest(), **fields)
