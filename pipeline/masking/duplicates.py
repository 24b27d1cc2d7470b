"""Exact duplicates: one of several documents with the same text is kept, the others are left out.

Each document block writes a table of its documents next to its spill file, sorted by key.
The tables of all blocks are read together, one range of keys at a time, so equal keys stand
next to each other. Memory grows by one byte for each document.

The document with the most masked copies is kept, that is, the one of the corpus with the greatest
weight. Of several such documents, the first in the order of corpora, files and documents is kept.

Most duplicates are left out without being masked. A process that has masked the same text in an
earlier document of the corpus knows that the later one is not kept.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.storage import spill

# Why documents have no examples.
LEFT_OUT = "left out by the weight of their corpus"
UNMASKABLE = "without a word to mask"
DUPLICATES = "duplicates of another document"
# Names of the counts of windows: first of those without a word to mask, then of those with one.
WINDOWS = (f"windows {UNMASKABLE}", "windows")
STATISTICS = ("tokens", "unknown_tokens", *WINDOWS, "masked_positions", "examples")
SKIPPED = (LEFT_OUT, UNMASKABLE)
_NUMBERS = ("copies", "corpus", "bytes", *STATISTICS, *SKIPPED)
_GROUPS = ("lowest", "highest")
# Number of texts that a process remembers. Each takes the bytes of its key and one byte for its
# number of masked copies, up to 255.
_MEMORY_SLOTS = 2**20
_KEY_BYTES = 16
_SLOT_BYTES = _KEY_BYTES + 1
ROW = np.dtype([*((name, "<u8") for name in _GROUPS), *((name, "<i8") for name in _NUMBERS)])


@dataclasses.dataclass(frozen=True, eq=False)
class DocumentTable:
    """The documents of a block.

    Attributes:
        keys: 16 bytes for each document, concatenated; equal for two documents if one is a
            duplicate of the other.
        numbers: int [n], the index of each document within the block.
        rows: `ROW` [n]: the smallest and the largest group of each document's examples, which
            decide the split; the number of masked copies of each of its windows; the index of its
            corpus; the size of its examples in bytes; `STATISTICS`; and for each of `SKIPPED` 1
            if it has no examples for this reason. A duplicate that was not masked has none of
            these reasons.
    """

    keys: bytes
    numbers: np.ndarray
    rows: np.ndarray

    def write(self, path: Location, *, is_only_writer: bool = True) -> None:
        """Writes the table, see `write_spill`."""
        content, size = self.rows.tobytes(), ROW.itemsize
        entries = spill.Entries(
            self.keys,
            self.rows["lowest"],
            [content[begin : begin + size] for begin in range(0, len(content), size)],
            self.numbers,
        )
        spill.write_spill(path, entries, {}, is_only_writer=is_only_writer)


@dataclasses.dataclass(frozen=True)
class LeftOutDocuments:
    """A file that marks the documents that are left out: one byte each, in document order.

    Attributes:
        path: the file.
        firsts: index of the first document of each block, followed by the number of documents.
    """

    path: Location
    firsts: tuple[int, ...]

    def of_block(self, index: int) -> np.ndarray:
        """Returns which documents of a block are left out: bool [documents]."""
        return np.memmap(self.path, bool, "r")[self.firsts[index] : self.firsts[index + 1]]

    def of_blocks(self) -> list[np.ndarray]:
        """Returns which documents are left out, for each block: bool [documents] each."""
        return np.split(np.memmap(self.path, bool, "r"), self.firsts[1:-1])


@dataclasses.dataclass(frozen=True)
class DuplicateSurvey:
    """The result of comparing the documents of all blocks.

    Attributes:
        left_out: the duplicates.
        groups: the smallest and the largest group of the other documents that have examples;
            None if there are no such documents.
        header: correction to add to the sum of the blocks' headers, so that duplicates do not
            count.
        incomplete: blocks to mask again. They skipped a duplicate of a document that has changed
            since the interrupted run.
    """

    left_out: LeftOutDocuments
    groups: tuple[int, int] | None
    header: Mapping[str, Any]
    incomplete: frozenset[int]


class MaskedTexts:
    """The texts that a process has masked recently, in bounded memory."""

    def __init__(self) -> None:
        self._slots = bytearray()
        self._last_block = -1

    def begin_block(self, index: int, *, forget: bool) -> None:
        """Starts a block; only texts of earlier blocks in the same run are remembered."""
        if forget or index <= self._last_block or not self._slots:
            self._slots = bytearray(_MEMORY_SLOTS * _SLOT_BYTES)
        self._last_block = index

    def add(self, key: bytes, copies: int) -> bool:
        """Adds a text, unless an earlier document had it with at least the same number of copies.

        Returns:
            whether an earlier document had it. A newer text may replace an older one in memory,
            so some duplicates are not recognized.
        """
        begin = int.from_bytes(key, "little") % _MEMORY_SLOTS * _SLOT_BYTES
        slot = self._slots[begin : begin + _SLOT_BYTES]
        if slot[:_KEY_BYTES] == key and slot[_KEY_BYTES] >= copies:
            return True
        self._slots[begin : begin + _SLOT_BYTES] = key + bytes([min(copies, 255)])
        return False


def find_duplicates(
    paths: Sequence[Location], left_out: LeftOutDocuments, labels: Sequence[str]
) -> DuplicateSurvey:
    """Reads the tables of all blocks together.

    Args:
        paths: the tables.
        left_out: the file that is written.
        labels: labels of all corpora.

    Raises:
        InputError: a table is damaged.
    """
    firsts = np.array(left_out.firsts)
    is_duplicate = np.zeros(firsts[-1], bool)
    removed = np.zeros((len(labels), len(_NUMBERS)), np.int64)
    groups: list[int] = []
    incomplete: set[int] = set()
    for step, rows in _steps(paths, np.diff(firsts), len(labels)):
        documents = firsts[step.files] + step.index["document"]
        index = step.index
        order = np.lexsort((documents, -rows["copies"], index["tie"], index["key"]))
        ids = index[["key", "tie"]][order]
        repeated = order[1:][ids[1:] == ids[:-1]]
        is_duplicate[documents[repeated]] = True
        numbers = rows.view("<i8").reshape(-1, ROW.itemsize // 8)[:, len(_GROUPS) :]
        np.add.at(removed, rows["corpus"][repeated], numbers[repeated])
        unmasked = ~np.any([rows[name] for name in ("examples", *SKIPPED)], axis=0)
        incomplete.update(step.files[unmasked & ~is_duplicate[documents]].tolist())
        present = rows[(rows["examples"] > 0) & ~is_duplicate[documents]]
        if len(present):
            groups += [int(present["lowest"].min()), int(present["highest"].max())]
    left_out.path.write_whole(is_duplicate.tobytes())
    return DuplicateSurvey(
        left_out,
        (min(groups), max(groups)) if groups else None,
        _correction(removed, labels, int(np.count_nonzero(is_duplicate))),
        frozenset(incomplete),
    )


def _steps(
    paths: Sequence[Location], num_documents: np.ndarray, num_corpora: int
) -> Iterator[tuple[spill.KeyRangeEntries, np.ndarray]]:
    """Yields the entries of the tables and their rows, one range of keys at a time."""
    size = sum(path.stat().st_size for path in paths)
    for step in spill.read_key_ranges(paths, 0, spill.KEY_SPACE, expected_bytes=size):
        index = step.index
        is_invalid = (index["size"] != ROW.itemsize) | (
            index["document"] >= num_documents[step.files]
        )
        if not is_invalid.any():
            rows = np.frombuffer(b"".join(step.contents), ROW)
            is_invalid = (rows["corpus"] < 0) | (rows["corpus"] >= num_corpora)
        if is_invalid.any():
            raise InputError(paths[step.files[is_invalid.argmax()]], received=spill.DAMAGED)
        yield step, rows


def _correction(removed: np.ndarray, labels: Sequence[str], count: int) -> dict[str, Any]:
    """Returns the header that subtracts the counts of the duplicates.

    `removed` are these counts, int64 [corpora, numbers], and `count` is the number of duplicates.
    """
    total = dict(zip(_NUMBERS, (-removed.sum(axis=0)).tolist(), strict=True))
    examples = -removed[:, _NUMBERS.index("examples")]
    return {
        "statistics": {name: total[name] for name in STATISTICS if total[name]},
        "skipped": {name: total[name] for name in SKIPPED} | {DUPLICATES: count},
        "examples": {
            label: number for label, number in zip(labels, examples.tolist(), strict=True) if number
        },
        "bytes": total["bytes"],
    }
