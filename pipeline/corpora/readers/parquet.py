"""Parquet: each row is a document; only the text columns are read, some rows at a time."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.errors import InputError
from pipeline.corpora import columns, content
from pipeline.corpora.documents import CorpusFile, Cursor, FilePart, RawDocument
from pipeline.corpora.readers.base import Reader

_MAGIC, _ENCRYPTED_MAGIC = b"PAR1", b"PARE"
# What is read of a column at a time.
_BUFFER_BYTES = 2**20
_BATCH_BYTES, _MAX_BATCH_ROWS = 4 * 2**20, 2**10
# A copy of a file that cannot be read from its end is on disk beyond this.
_MEMORY_BYTES = 64 * 2**20


class ParquetReader(Reader):
    """Apache Parquet."""

    suffixes = (".parquet", ".pq")

    def recognises(self, start: bytes) -> bool:
        """See `Reader`."""
        return start.startswith((_MAGIC, _ENCRYPTED_MAGIC))

    def documents(
        self, file: CorpusFile, stream: BinaryIO, cursor: Cursor
    ) -> Iterator[RawDocument]:
        """See `Reader`; of a stream that only goes forward a nameless copy is read."""
        with _seekable(stream) as whole:
            table = _open(file, whole)
            yield from _row_documents(file, table, 0, table.metadata.num_rows, cursor)

    def first_row(self, file: CorpusFile, stream: BinaryIO) -> Mapping[str, object]:
        """See `Reader`."""
        with _seekable(stream) as whole:
            table, schema = _open_table(file, whole)
            try:
                return columns.first_row(schema, table.iter_batches(1))
            except columns.ERRORS as error:
                raise columns.damaged(file, "Parquet", "", error) from error

    def parts(self, file: CorpusFile, stream: BinaryIO, part_bytes: int) -> list[FilePart]:
        """See `Reader`: small row groups together, a large one in runs of rows."""
        table = _open(file, stream)
        total = table.metadata.num_rows
        sizes = [_text_bytes(file, table, group) for group in range(table.num_row_groups)]
        rows = max(1, total * part_bytes // max(1, sum(sizes)))
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
        return _row_documents(part.file, _open(part.file, stream), part.begin, part.end, cursor)


@contextlib.contextmanager
def _seekable(stream: BinaryIO) -> Iterator[BinaryIO]:
    """Yields the stream or, of one that only goes forward, a copy."""
    if stream.seekable():
        yield stream
        return
    with tempfile.SpooledTemporaryFile(_MEMORY_BYTES) as copy:
        shutil.copyfileobj(stream, copy, _BUFFER_BYTES)
        copy.seek(0)
        yield copy


def _open(file: CorpusFile, stream: BinaryIO) -> pq.ParquetFile:
    """Opens a file, whose footer says what it has.

    Raises:
        InputError: it is encrypted or damaged, or lacks a text field.
    """
    table, schema = _open_table(file, stream)
    columns.expect_text(file, schema)
    return table


def _open_table(file: CorpusFile, stream: BinaryIO) -> tuple[pq.ParquetFile, pa.Schema]:
    start, _ = content.peek(stream)
    if start.startswith(_ENCRYPTED_MAGIC):
        raise InputError(file.path, "a Parquet file", "an encrypted one", "decrypt it first")
    try:
        table = pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        return table, table.schema_arrow
    except columns.ERRORS as error:
        raise columns.damaged(file, "Parquet", "", error) from error


def _text_bytes(file: CorpusFile, table: pq.ParquetFile, group: int) -> int:
    """Returns the bytes of a row group's text columns, before they were compressed."""
    metadata = table.metadata.row_group(group)
    chunks = (metadata.column(number) for number in range(metadata.num_columns))
    names = file.corpus.spec.text_fields
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in names)


def _row_documents(
    file: CorpusFile, table: pq.ParquetFile, begin: int, end: int, cursor: Cursor
) -> Iterator[RawDocument]:
    """Yields rows from `begin` to `end`; those before them in their row group are skipped."""
    group_begin = 0
    cursor.documents = begin
    for group in range(table.num_row_groups):
        group_rows = table.metadata.row_group(group).num_rows
        group_end = group_begin + group_rows
        if group_begin < end and begin < group_end:
            first, last = max(begin, group_begin) - group_begin, min(end, group_end) - group_begin
            yield from _group_documents(file, table, group, first, last, cursor)
        group_begin = group_end


def _group_documents(
    file: CorpusFile, table: pq.ParquetFile, group: int, first: int, last: int, cursor: Cursor
) -> Iterator[RawDocument]:
    place = f"row group {group}, "
    position = 0
    for batch in _batches(file, table, group):
        begin, end = max(first - position, 0), min(last - position, batch.num_rows)
        if begin < end:
            part = batch.slice(begin, end - begin)
            try:
                yield from columns.batch_documents(file, part, cursor, place)
            except columns.ERRORS as error:
                raise columns.damaged(file, "Parquet", f", {place[:-2]}", error) from error
        position += batch.num_rows
        if position >= last:
            return
    raise columns.damaged(
        file, "Parquet", f", {place[:-2]}", ValueError(f"{position} of {last} rows")
    )


def _batches(file: CorpusFile, table: pq.ParquetFile, group: int) -> Iterator[Any]:
    row_bytes = _text_bytes(file, table, group) // max(1, table.metadata.row_group(group).num_rows)
    size = max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // max(1, row_bytes)))
    names = list(file.corpus.spec.text_fields)
    try:
        yield from table.iter_batches(size, row_groups=[group], columns=names, use_threads=False)
    except columns.ERRORS as error:
        raise columns.damaged(file, "Parquet", f", row group {group}", error) from error
