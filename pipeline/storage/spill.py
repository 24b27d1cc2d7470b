"""An external sort: document blocks of a corpus write records, shards read them by key range.

Each document block writes one file, sorted by key. A shard is a range of keys: it reads that
range from every file and sorts it. The order does not depend on the division of the corpus into
blocks. A spill file is

    a line of JSON (the header) | a NumPy array of `_INDEX` | the records' bytes
"""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.base import json_text
from pipeline.base.errors import InputError
from pipeline.base.json_text import format_value
from pipeline.base.location import Location
from pipeline.storage import arrays

KEY_SPACE = 2**64
# A key is the first 8 bytes of an example id, big-endian, so that keys sort as ids do. The other
# 8 bytes break ties.
_INDEX = np.dtype(
    [
        *((name, "<u8") for name in ("key", "tie", "group", "start")),
        *((name, "<u4") for name in ("size", "document")),
    ]
)
# Approximate memory for the records of one step of reading.
_STEP_BYTES = 32 * 2**20
_MAX_HEADER_BYTES = 2**20
DAMAGED = "a damaged temporary file; delete it and re-run the command"


@dataclasses.dataclass(frozen=True)
class Entries:
    """n records to sort into shards.

    Attributes:
        example_ids: 16 bytes each, concatenated; the sort keys.
        groups: uint64 [n], by which a reader selects records, for example hashes of documents.
        contents: the serialized examples.
        documents: int [n], the index of each record's document within the document block.
    """

    example_ids: bytes
    groups: Sequence[int] | np.ndarray
    contents: Sequence[bytes]
    documents: Sequence[int] | np.ndarray


@dataclasses.dataclass(frozen=True)
class KeyRange:
    """Keys from `low` to below `high`, and groups from `min_group` to below `max_group`."""

    low: int
    high: int
    min_group: int
    max_group: int


def keys_and_ties(example_ids: bytes) -> np.ndarray:
    """Returns the halves of concatenated ids, uint64 [2, n]: the keys and the tie-breakers."""
    return np.frombuffer(example_ids, ">u8").reshape(-1, 2).T


def write_spill(
    path: Location,
    entries: Entries,
    header: Mapping[str, Any],
    *,
    is_only_writer: bool = True,
) -> None:
    """Writes a spill file atomically.

    Args:
        path: of the file.
        entries: in any order.
        header: small JSON values for `read_header`.
        is_only_writer: false if another process may write the same file at the same time.
    """
    keys, ties = keys_and_ties(entries.example_ids)
    order = np.lexsort((ties, keys))
    index = np.zeros(len(order), _INDEX)
    index["key"], index["tie"] = keys[order], ties[order]
    index["group"] = np.asarray(entries.groups, np.uint64)[order]
    index["document"] = np.asarray(entries.documents, np.uint32)[order]
    contents = [entries.contents[row] for row in order.tolist()]
    index["size"] = [*map(len, contents)]
    index["start"][1:] = np.cumsum(index["size"][:-1], dtype=np.uint64)
    temporary = path.temporary() if is_only_writer else path.unique_temporary()
    with path.atomic_write(temporary=temporary), open(temporary, "wb") as file:
        file.write(json.dumps(header).encode("utf-8") + b"\n")
        np.save(file, index, allow_pickle=False)
        file.write(b"".join(contents))


def read_header(path: Location) -> dict[str, Any] | None:
    """Returns a spill file's header; None if the file is missing or damaged."""
    if not pathlib.Path(path).is_file():
        return None
    with open(path, "rb") as file:
        line = file.readline(_MAX_HEADER_BYTES)
    try:
        header = json_text.load(line)
    except ValueError:
        return None
    return header if isinstance(header, dict) else None


def _open_index(path: pathlib.Path) -> tuple[np.ndarray, int]:
    """Returns a spill file's memory-mapped index, and the offset of its first record."""
    with open(path, "rb") as file:
        file.readline(_MAX_HEADER_BYTES)
        try:
            shape, dtype = arrays.read_npy_header(file)
        except ValueError as error:
            raise InputError(path, received=f"{DAMAGED} ({error})") from error
        offset = file.tell()
    size = path.stat().st_size - offset
    if dtype != _INDEX or len(shape) != 1 or not 0 <= shape[0] <= size // _INDEX.itemsize:
        raise InputError(path, received=f"{DAMAGED} (an index of {format_value(shape)} entries)")
    if not shape[0]:
        return np.zeros(0, _INDEX), offset
    index = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
    return index, offset + index.nbytes


def _read_range(path: pathlib.Path, low: int, high: int) -> tuple[np.ndarray, bytes]:
    index, base = _open_index(path)
    keys = np.array(index["key"])
    # The range is searched by its last key, as `high` may exceed 64 bits.
    first, last = np.uint64(low), np.uint64(high - 1)
    rows = np.array(index[keys.searchsorted(first) : keys.searchsorted(last, side="right")])
    if not len(rows):
        return rows, b""
    begin, end = int(rows["start"][0]), int(rows["start"][-1]) + int(rows["size"][-1])
    size, starts = path.stat().st_size, rows["start"]
    # A start that passes the check below is within the file, so its sum does not overflow.
    ends = starts + rows["size"]
    if starts.max() > size or base + end > size or (starts[1:] != ends[:-1]).any():
        raise InputError(path, received=f"{DAMAGED} (records that do not follow each other)")
    with open(path, "rb") as file:
        file.seek(base + begin)
        content = file.read(end - begin)
    rows["start"] -= np.uint64(begin)
    return rows, content


@dataclasses.dataclass(frozen=True)
class KeyRangeEntries:
    """The entries of a range of keys, file by file.

    Attributes:
        index: of all entries, `_INDEX` [n]; `start` is relative to the file's content.
        files: int [n], the index of each entry's file.
        contents: the concatenated records of each file, in the order of the index.
    """

    index: np.ndarray
    files: np.ndarray
    contents: tuple[bytes, ...]


def read_key_ranges(
    paths: Sequence[Location], low: int, high: int, *, expected_bytes: int
) -> Iterator[KeyRangeEntries]:
    """Yields the entries of spill files with keys from `low` to below `high`, range by range.

    `expected_bytes` is the approximate size of the entries. It decides the number of steps of
    about 32 MB, so that memory stays bounded.

    Raises:
        InputError: a spill file is damaged.
    """
    steps = max(1, -(-expected_bytes // _STEP_BYTES))
    bounds = [low + (high - low) * step // steps for step in range(steps + 1)]
    for first, last in itertools.pairwise(bounds):
        indices, contents = zip(
            *(_read_range(pathlib.Path(path), first, last) for path in paths), strict=True
        )
        files = np.repeat(np.arange(len(indices)), [len(index) for index in indices])
        yield KeyRangeEntries(np.concatenate(indices), files, contents)


def read_sorted(
    paths: Sequence[Location],
    keys: KeyRange,
    *,
    expected_bytes: int,
    left_out: Sequence[np.ndarray] | None = None,
) -> Iterator[bytes]:
    """Yields the records of spill files in a range of keys, in the order of their keys.

    Args:
        paths: the spill files.
        keys: the range.
        expected_bytes: see `read_key_ranges`.
        left_out: for each file bool [documents], true for the documents whose records are left
            out; None to read all documents.

    Raises:
        InputError: a spill file is damaged.
    """
    for step in read_key_ranges(paths, keys.low, keys.high, expected_bytes=expected_bytes):
        index, files = step.index, step.files
        groups, last_group = index["group"], np.uint64(keys.max_group - 1)
        is_selected = (groups >= np.uint64(keys.min_group)) & (groups <= last_group)
        if left_out is not None:
            is_selected &= ~_is_left_out(paths, step, left_out)
        index, files = index[is_selected], files[is_selected]
        order = np.lexsort((index["tie"], index["key"]))
        columns = (values[order].tolist() for values in (files, index["start"], index["size"]))
        for file, start, size in zip(*columns, strict=True):
            yield step.contents[file][start : start + size]


def _is_left_out(
    paths: Sequence[Location], step: KeyRangeEntries, left_out: Sequence[np.ndarray]
) -> np.ndarray:
    bounds = np.searchsorted(step.files, np.arange(len(paths) + 1))
    marks = [np.zeros(0, bool)]
    for path, flags, (begin, end) in zip(paths, left_out, itertools.pairwise(bounds), strict=True):
        documents = step.index["document"][begin:end]
        if len(documents) and documents.max() >= len(flags):
            raise InputError(path, received=f"{DAMAGED} (document {documents.max()})")
        marks.append(flags[documents])
    return np.concatenate(marks)
