"""Records as bytes: `tf.train.Example` messages in TFRecord framing, without TensorFlow.

Every feature of ours is a single bytes value, so the wire format comes down to
nested length-delimited fields (protocol buffers, wire type 2):

    Example  { Features features = 1 }
    Features { map<string, Feature> feature = 1 }      entries: key = 1, value = 2
    Feature  { BytesList bytes_list = 1 }
    BytesList{ repeated bytes value = 1 }

and features are written sorted by name, as TensorFlow's deterministic
serialisation does. A TFRecord is

    uint64 length | uint32 masked crc32c(length) | data | uint32 masked crc32c(data)
"""

import dataclasses
import functools
import hashlib
import itertools
import pathlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import google_crc32c

from pipeline.base.errors import InputError
from pipeline.base.json_text import shown
from pipeline.base.location import Location
from pipeline.storage.manifest import ShardInfo, sidecar_path

_BYTES_FIELD_1 = b"\x0a"
_BYTES_FIELD_2 = b"\x12"
_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_CRC_MASK_DELTA = 0xA282EAD8

# A record of 512 tokens with every token masked and k = 1,024 is below 3 MB.
MAX_RECORD_BYTES = 256 * 2**20
# A record of ours has at most a dozen.
_MAX_FEATURES = 64
# Returns fields of `ShardInfo`, sums over the records of a shard, when all are written.
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
    """Returns what stands before a feature's value: a record has few names and lengths."""
    value = _BYTES_FIELD_1 + _varint(length)
    bytes_list = _BYTES_FIELD_1 + _varint(len(value) + length) + value
    feature = _BYTES_FIELD_2 + _varint(len(bytes_list) + length) + bytes_list
    text = name.encode("utf-8")
    key = _BYTES_FIELD_1 + _varint(len(text)) + text
    return _BYTES_FIELD_1 + _varint(len(key) + len(feature) + length) + key + feature


def encode_example(features: Mapping[str, bytes]) -> bytes:
    """Serialises features, each one bytes value, as a `tf.train.Example`.

    These are the bytes that TensorFlow's deterministic serialisation gives.
    """
    parts = []
    for name in sorted(features):
        value = features[name]
        parts += (_entry_prefix(name, len(value)), value)
    # Values are copied once only.
    length = sum(map(len, parts))
    return b"".join((_BYTES_FIELD_1, _varint(length), *parts))


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


def _only_field(data: memoryview, what: str) -> memoryview:
    # One after another: of nothing but fields a record would take its size many times over.
    fields = _fields(data)
    number, content = next(fields, (0, data))
    if number != 1 or next(fields, None) is not None:
        raise ValueError(f"{what} without exactly one bytes value")
    return content


def _key_and_value(entry: memoryview) -> tuple[memoryview, memoryview]:
    # One after another, as in `_only_field`.
    fields = list(itertools.islice(_fields(entry), 3))
    parts = dict(fields)
    if len(fields) != 2 or parts.keys() != {1, 2}:
        raise ValueError("a map entry of other fields than key and value")
    return parts[1], parts[2]


def decode_example(record: bytes) -> dict[str, bytes]:
    """Reads back what `encode_example` wrote: each feature's bytes value, by name.

    Raises:
        ValueError: the record is broken, has too many features, one of them twice, or
            one that is not one bytes value.
    """
    features: dict[str, bytes] = {}
    for entry_number, entry in _fields(_only_field(memoryview(record), "an Example")):
        if entry_number != 1:
            raise ValueError("a map entry without key and value")
        key, value = _key_and_value(entry)
        name = bytes(key).decode("utf-8")
        what = f"the feature {shown(name)}"
        if name in features:
            raise ValueError(f"{what} twice")
        if len(features) == _MAX_FEATURES:
            raise ValueError(f"more than {_MAX_FEATURES} features")
        features[name] = bytes(_only_field(_only_field(value, what), what))
    return features


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _CRC_MASK_DELTA) & 0xFFFFFFFF


def frame_record(record: bytes) -> bytes:
    """Returns a record in TFRecord framing, with both checksums."""
    length = len(record).to_bytes(8, "little")
    length_crc, data_crc = (_FOOTER.pack(_masked_crc(data)) for data in (length, record))
    return b"".join((length, length_crc, record, data_crc))


def read_records(path: Location) -> Iterator[bytes]:
    """Yields the records of a TFRecord file, checking both checksums of each.

    Raises:
        InputError: the file is truncated or damaged; names it and the byte offset.
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
    """A shard that is written, under a name of its writer's own.

    Attributes:
        info: what it will be.
        temporary: its file name until then.
    """

    info: ShardInfo
    temporary: str


def write_shard(
    directory: Location, file: str, records: Iterable[bytes], sums: Sums | None = None
) -> ShardInfo:
    """Writes one shard and its sidecar.

    The sidecar is renamed first and the shard last, so that a shard under its
    final name always has one. If `records` raises, neither appears.

    Args:
        directory: the cache directory.
        file: the shard's name.
        records: serialised examples, in order; consumed as they are written.
        sums: what else `ShardInfo` tells of them; None for nothing.

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
    """Writes one shard for another process to publish.

    For runners that may do a job twice at once, perhaps on machines that round
    differently: whichever is published, its checksum is its own. Arguments are those
    of `write_shard`.
    """
    place = (directory / file).own_temporary()
    with place.stage() as temporary:
        shard = _write_records(temporary, file, records, sums)
    return StagedShard(shard, place.name)


def publish_shard(directory: Location, staged: StagedShard) -> ShardInfo:
    """Gives a staged shard its name, its sidecar first; returns what it is."""
    shard = staged.info
    sidecar_path(directory, shard.file).write_json(shard.to_json())
    (directory / staged.temporary).publish(directory / shard.file)
    return shard


def _write_records(
    path: pathlib.Path, file: str, records: Iterable[bytes], sums: Sums | None
) -> ShardInfo:
    checksum = hashlib.sha256()
    num_examples = num_bytes = 0
    with open(path, "wb") as output:
        for record in records:
            framed = frame_record(record)
            checksum.update(framed)
            output.write(framed)
            num_examples += 1
            num_bytes += len(framed)
    fields = {} if sums is None else sums()
    return ShardInfo(file, num_examples, num_bytes, checksum.hexdigest(), **fields)
