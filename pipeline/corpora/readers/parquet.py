"""Parquet: each row is a document; only the text columns are read, some rows at a time."""

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base import streams
from pipeline.base.errors import InputError
from pipeline.corpora import columns
from pipeline.corpora.documents import CorpusFile, Cursor, FilePart, RawDocument
from pipeline.corpora.readers.base import Reader

_MAGIC, _ENCRYPTED_MAGIC = b"PAR1", b"PARE"
# What is read of a column at a time.
_BUFFER_BYTES = 2**20
_BATCH_BYTES, _MAX_BATCH_ROWS = 4 * 2**20, 2**10
# A copy of a file that cannot be read from its end is on disk beyond this.
_MEMORY_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class _Table:
    """An open file.

    Attributes:
        file: the file, for messages.
        content: what pyarrow reads it with.
        rows: the number of rows of each row group.
        sizes: the bytes of each row group, before it was compressed.
    """

    file: CorpusFile
    content: pq.ParquetFile
    rows: Sequence[int]
    sizes: Sequence[int]


class ParquetReader(Reader):
    """Apache Parquet."""

    suffixes = (".parquet", ".pq")
    is_text = False

    def recognises(self, start: bytes) -> bool:
        """See `Reader`."""
        return start.startswith((_MAGIC, _ENCRYPTED_MAGIC))

    def documents(
        self, file: CorpusFile, stream: BinaryIO, cursor: Cursor
    ) -> Iterator[RawDocument]:
        """See `Reader`; of a stream that only goes forward a nameless copy is read."""
        if stream.seekable():
            yield from _all_documents(_open(file, stream), cursor)
            return
        with tempfile.SpooledTemporaryFile(_MEMORY_BYTES) as copy:
            shutil.copyfileobj(stream, copy, _BUFFER_BYTES)
            copy.seek(0)
            yield from _all_documents(_open(file, copy), cursor)

    def parts(self, file: CorpusFile, stream: BinaryIO, part_bytes: int) -> list[FilePart]:
        """See `Reader`: small row groups together, a large one in runs of rows."""
        table = _open(file, stream)
        total = sum(table.rows)
        rows = max(1, total * part_bytes // max(1, sum(table.sizes)))
        if rows >= total:
            return []
        return [
            FilePart(file, begin, end, file.bytes * end // total)
            for begin in range(0, total, rows)
            for end in [min(total, begin + rows)]
        ]

    def part_documents(
        self, part: FilePart, stream: BinaryIO, cursor: Cursor
    ) -> Iterator[RawDocument]:
        """See `Reader`."""
        cursor.documents = part.begin
        return _row_documents(_open(part.file, stream), part.begin, part.end, cursor)


def _open(file: CorpusFile, stream: BinaryIO) -> _Table:
    """Opens a file, whose footer says what it has.

    Raises:
        InputError: it is encrypted or damaged, or lacks a text field.
    """
    start, _ = streams.peek(stream, len(_ENCRYPTED_MAGIC))
    if start.startswith(_ENCRYPTED_MAGIC):
        raise InputError(file.path, "a Parquet file", "an encrypted one", "decrypt it first")
    try:
        table = pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        columns.expect_text(file, table.schema_arrow)
    except columns.ERRORS as error:
        raise columns.damaged(file, "Parquet", "", error) from error
    # Of whole rows: pyarrow ends the process where a damaged footer is asked for a column's.
    groups = [table.metadata.row_group(number) for number in range(table.num_row_groups)]
    sizes = [group.total_byte_size for group in groups]
    return _Table(file, table, [group.num_rows for group in groups], sizes)


def _all_documents(table: _Table, cursor: Cursor) -> Iterator[RawDocument]:
    return _row_documents(table, 0, sum(table.rows), cursor)


def _row_documents(table: _Table, begin: int, end: int, cursor: Cursor) -> Iterator[RawDocument]:
    """Yields rows from `begin` to `end`; those before them in their row group are skipped."""
    group_begin = 0
    for group, rows in enumerate(table.rows):
        first, last = max(begin - group_begin, 0), min(end - group_begin, rows)
        if first < last:
            try:
                for batch in _batches(table, group, first, last):
                    place = f"row group {group}, "
                    yield from columns.batch_documents(table.file, batch, cursor, place)
            except columns.ERRORS as error:
                place = f", row group {group}"
                raise columns.damaged(table.file, "Parquet", place, error) from error
        group_begin += rows


def _batches(table: _Table, group: int, first: int, last: int) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a row group from `first` to `last`."""
    row_bytes = table.sizes[group] // table.rows[group]
    size = max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // max(1, row_bytes)))
    names = list(table.file.corpus.spec.text_fields)
    position = 0
    for batch in table.content.iter_batches(
        size, row_groups=[group], columns=names, use_threads=False
    ):
        begin, end = max(first - position, 0), min(last - position, batch.num_rows)
        if begin < end:
            yield batch.slice(begin, end - begin)
        position += batch.num_rows
        if position >= last:
            return
    raise pa.ArrowInvalid(f"{position} rows in place of {table.rows[group]}")
