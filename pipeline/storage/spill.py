"""An external sort: records spilled by the chunks of a corpus, read back by key range.

Each chunk writes one file, sorted by key. A shard is a range of keys: it takes
that range out of every file, sorts it and has its records, in an order that
does not depend on how the corpus was cut or who cut it. A spill file is

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
from pipeline.base.json_text import shown
from pipeline.base.location import Location
from pipeline.storage import arrays

KEY_SPACE = 2**64
# Keys are the first 8 bytes of an example id, big-endian, so that their order
# is that of the ids; the other 8 settle ties.
_INDEX = np.dtype(
    [
        *((name, "<u8") for name in ("key", "tie", "group", "start")),
        *((name, "<u4") for name in ("size", "document")),
    ]
)
# What one step of a sorted reading holds in memory, roughly.
_STEP_BYTES = 32 * 2**20
_MAX_HEADER_BYTES = 2**20
DAMAGED = "a damaged temporary file; delete it, and the same command makes it again"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A record on its way to a shard.

    Attributes:
        example_id: 16 bytes; the sort key.
        group: 64 bits by which a reader selects, such as a document's hash.
        record: the serialised example.
        document: the number of its document within the chunk.
    """

    example_id: bytes
    group: int
    record: bytes
    document: int = 0


@dataclasses.dataclass(frozen=True)
class KeyRange:
    """Keys from `low` to below `high`, and groups from `min_group` to below `max_group`."""

    low: int
    high: int
    min_group: int
    max_group: int


def keys_and_ties(example_ids: Sequence[bytes]) -> np.ndarray:
    """Returns the halves of example ids, uint64 [2, n]: the keys, and what settles ties."""
    return np.frombuffer(b"".join(example_ids), ">u8").reshape(-1, 2).T


def write_spill(
    path: Location,
    entries: Sequence[Entry],
    header: Mapping[str, Any],
    *,
    is_only_writer: bool = True,
) -> None:
    """Writes a spill file of entries in any order, atomically.

    `header` has small JSON values, for `read_header`. With `is_only_writer`, another process
    that writes the same file is a mistake.
    """
    ordered = sorted(entries, key=lambda entry: entry.example_id)
    index = np.zeros(len(ordered), _INDEX)
    index["key"], index["tie"] = keys_and_ties([entry.example_id for entry in ordered])
    index["group"] = [entry.group for entry in ordered]
    index["size"] = [len(entry.record) for entry in ordered]
    index["document"] = [entry.document for entry in ordered]
    index["start"][1:] = np.cumsum(index["size"][:-1], dtype=np.uint64)
    temporary = path.temporary() if is_only_writer else path.own_temporary()
    with path.atomic_write(temporary=temporary), open(temporary, "wb") as file:
        file.write(json.dumps(header).encode("utf-8") + b"\n")
        np.save(file, index, allow_pickle=False)
        file.writelines(entry.record for entry in ordered)


def read_header(path: Location) -> dict[str, Any] | None:
    """Returns a spill file's header, or None where there is no such file, or a damaged one."""
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
    """Returns a spill file's index, mapped, and the offset of its first record."""
    with open(path, "rb") as file:
        file.readline(_MAX_HEADER_BYTES)
        try:
            shape, dtype = arrays.read_npy_header(file)
        except ValueError as error:
            raise InputError(path, received=f"{DAMAGED} ({error})") from error
        offset = file.tell()
    size = path.stat().st_size - offset
    if dtype != _INDEX or len(shape) != 1 or not 0 <= shape[0] <= size // _INDEX.itemsize:
        raise InputError(path, received=f"{DAMAGED} (an index of {shown(shape)} entries)")
    if not shape[0]:
        return np.zeros(0, _INDEX), offset
    index = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
    return index, offset + index.nbytes


def _read_range(path: pathlib.Path, low: int, high: int) -> tuple[np.ndarray, bytes]:
    index, base = _open_index(path)
    keys = np.array(index["key"])
    # The last key that is wanted, as what follows it may not fit 64 bits.
    first, last = np.uint64(low), np.uint64(high - 1)
    part = np.array(index[keys.searchsorted(first) : keys.searchsorted(last, side="right")])
    if not len(part):
        return part, b""
    begin, end = int(part["start"][0]), int(part["start"][-1]) + int(part["size"][-1])
    size, starts = path.stat().st_size, part["start"]
    # No sum of a start within the file and a size overflows.
    ends = starts + part["size"]
    if starts.max() > size or base + end > size or (starts[1:] != ends[:-1]).any():
        raise InputError(path, received=f"{DAMAGED} (records that do not follow each other)")
    with open(path, "rb") as file:
        file.seek(base + begin)
        content = file.read(end - begin)
    part["start"] -= np.uint64(begin)
    return part, content


@dataclasses.dataclass(frozen=True)
class Step:
    """The entries of a range of keys, of one file after another.

    Attributes:
        index: of all entries, `_INDEX` [n]; `start` counts within the content of the file.
        files: int [n], the number of each entry's file.
        contents: the records of each file, in the order of the index.
    """

    index: np.ndarray
    files: np.ndarray
    contents: tuple[bytes, ...]


def read_steps(
    paths: Sequence[Location], low: int, high: int, *, expected_bytes: int
) -> Iterator[Step]:
    """Yields the entries of spill files with keys from `low` to below `high`, range by range.

    `expected_bytes` is roughly what they hold. A step is of 32 MB, so that memory does not
    grow with it.

    Raises:
        InputError: a spill file is damaged.
    """
    steps = max(1, -(-expected_bytes // _STEP_BYTES))
    bounds = [low + (high - low) * step // steps for step in range(steps + 1)]
    for first, last in itertools.pairwise(bounds):
        parts, contents = zip(
            *(_read_range(pathlib.Path(path), first, last) for path in paths), strict=True
        )
        files = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        yield Step(np.concatenate(parts), files, contents)


def read_sorted(
    paths: Sequence[Location],
    keys: KeyRange,
    *,
    expected_bytes: int,
    left_out: Sequence[np.ndarray] | None = None,
) -> Iterator[bytes]:
    """Yields the records of a range of spill files, in the order of their keys.

    Args:
        paths: the spill files.
        keys: the range.
        expected_bytes: see `read_steps`.
        left_out: for each file bool [documents], whose records are left out; None for none.

    Raises:
        InputError: a spill file is damaged.
    """
    for step in read_steps(paths, keys.low, keys.high, expected_bytes=expected_bytes):
        index, number = step.index, step.files
        groups, last_group = index["group"], np.uint64(keys.max_group - 1)
        wanted = (groups >= np.uint64(keys.min_group)) & (groups <= last_group)
        if left_out is not None:
            wanted &= ~_is_left_out(paths, step, left_out)
        index, number = index[wanted], number[wanted]
        order = np.lexsort((index["tie"], index["key"]))
        columns = (values[order].tolist() for values in (number, index["start"], index["size"]))
        for part, start, size in zip(*columns, strict=True):
            yield step.contents[part][start : start + size]


def _is_left_out(
    paths: Sequence[Location], step: Step, left_out: Sequence[np.ndarray]
) -> np.ndarray:
    bounds = np.searchsorted(step.files, np.arange(len(paths) + 1))
    marks = [np.zeros(0, bool)]
    for path, flags, (begin, end) in zip(paths, left_out, itertools.pairwise(bounds), strict=True):
        documents = step.index["document"][begin:end]
        if len(documents) and documents.max() >= len(flags):
            raise InputError(path, received=f"{DAMAGED} (document {documents.max()})")
        marks.append(flags[documents])
    return np.concatenate(marks)
