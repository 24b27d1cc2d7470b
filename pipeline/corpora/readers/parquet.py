"""Reader of Parquet: each row is a document. Only the text columns are read, in batches."""

import contextlib
import dataclasses
import functools
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO

from pipeline.base import streams
from pipeline.base.errors import InputError
from pipeline.corpora import columns
from pipeline.corpora.documents import CorpusFile, Cursor, FilePart, RawDocument
from pipeline.corpora.readers.base import Reader

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_MAGIC, _ENCRYPTED_MAGIC = b"PAR1", b"PARE"
# Number of bytes that are read from a column at a time.
_BUFFER_BYTES = 2**20
_BATCH_BYTES, _MAX_BATCH_ROWS = 4 * 2**20, 2**10
# A copy of a file that is not seekable is kept in memory up to this size, and on disk above it.
_MAX_MEMORY_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class _Table:
    """An open Parquet file.

    Attributes:
        file: the file, for messages.
        content: pyarrow's object for the open file.
        rows: number of rows of each row group.
        sizes: uncompressed size of each row group in bytes.
    """

    file: CorpusFile
    content: "pq.ParquetFile"
    rows: Sequence[int]
    sizes: Sequence[int]


class ParquetReader(Reader):
    """Reader of Apache Parquet."""

    suffixes = (".parquet", ".pq")
    is_text = False

    def recognizes(self, start: bytes) -> bool:
        """See `Reader`. Text may start with these letters, but no control byte follows them."""
        after = start[len(_MAGIC) : len(_MAGIC) + 1]
        return start.startswith((_MAGIC, _ENCRYPTED_MAGIC)) and after < b" " and not after.isspace()

    def documents(
        self, file: CorpusFile, stream: BinaryIO, cursor: Cursor
    ) -> Iterator[RawDocument]:
        """See `Reader`. A stream that is not seekable is copied to a temporary file first."""
        with _seekable(stream) as whole:
            table = _open(file, whole)
            for group, rows in enumerate(table.rows):
                if rows:
                    yield from _Rows(table, group).documents(0, rows, cursor)

    def first_row(self, file: CorpusFile, stream: BinaryIO) -> Mapping[str, object]:
        """See `Reader`."""
        with _seekable(stream) as whole:
            table, schema = _open_content(file, whole)
            try:
                return columns.first_row(schema, table.iter_batches(1))
            except columns.errors() as error:
                raise columns.damaged_file_error(file, "Parquet", "", error) from error

    def parts(self, file: CorpusFile, stream: BinaryIO, part_bytes: int) -> list[FilePart]:
        """See `Reader`: a part is a range of rows, in one or several row groups."""
        table = _open(file, stream)
        total = sum(table.rows)
        rows = max(1, total * part_bytes // max(1, sum(table.sizes)))
        if rows >= total:
            return []
        return [
            FilePart(file, begin, end, file.bytes * end // total, documents=end - begin)
            for begin in range(0, total, rows)
            for end in [min(total, begin + rows)]
        ]

    def part_documents(
        self, part: FilePart, stream: BinaryIO, cursor: Cursor
    ) -> Iterator[RawDocument]:
        """See `Reader`. A row group that spans several parts stays open between them."""
        if not part.begin:
            _open_rows.cache_clear()
        table = _open(part.file, stream)
        group_begin = 0
        for group, rows in enumerate(table.rows):
            first, last = max(part.begin - group_begin, 0), min(part.end - group_begin, rows)
            if first < last:
                yield from _open_rows(part.file, group).documents(first, last, cursor)
            group_begin += rows


@contextlib.contextmanager
def _seekable(stream: BinaryIO) -> Iterator[BinaryIO]:
    """Yields a stream, or a temporary copy if it is not seekable."""
    if stream.seekable():
        yield stream
        return
    with tempfile.SpooledTemporaryFile(_MAX_MEMORY_BYTES) as copy:
        shutil.copyfileobj(stream, copy, _BUFFER_BYTES)
        copy.seek(0)
        yield copy


def _open(file: CorpusFile, stream: BinaryIO) -> _Table:
    """Opens a file and reads its footer.

    Raises:
        InputError: the file is encrypted or damaged, or a text field is missing.
    """
    table, schema = _open_content(file, stream)
    columns.expect_text(file, schema)
    # The sizes are those of whole rows. With a damaged footer, pyarrow ends the process when it
    # reads the sizes of single columns.
    groups = [table.metadata.row_group(number) for number in range(table.num_row_groups)]
    sizes = [group.total_byte_size for group in groups]
    return _Table(file, table, [group.num_rows for group in groups], sizes)


def _open_content(file: CorpusFile, stream: BinaryIO) -> "tuple[pq.ParquetFile, pa.Schema]":
    import pyarrow.parquet as pq

    start, _ = streams.peek(stream, len(_ENCRYPTED_MAGIC))
    if start.startswith(_ENCRYPTED_MAGIC):
        raise InputError(file.path, "a Parquet file", "an encrypted one", "decrypt it first")
    try:
        table = pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        return table, table.schema_arrow
    except columns.errors() as error:
        raise columns.damaged_file_error(file, "Parquet", "", error) from error


class _Rows:
    """The rows of a row group, read in order. To read earlier rows, it starts again."""

    def __init__(self, table: _Table, group: int) -> None:
        self._table, self._group = table, group
        self._position = 0
        self._batches = self._open_batches()
        self._rest: pa.RecordBatch | None = None

    def documents(self, first: int, last: int, cursor: Cursor) -> Iterator[RawDocument]:
        """Yields the documents of rows from `first` to `last`."""
        file, position = self._table.file, f"row group {self._group}"
        try:
            for batch in self._take(first, last):
                yield from columns.batch_documents(file, batch, cursor, f"{position}, ")
        except columns.errors() as error:
            raise columns.damaged_file_error(file, "Parquet", f", {position}", error) from error

    def _open_batches(self) -> "Iterator[pa.RecordBatch]":
        row_bytes = self._table.sizes[self._group] // self._table.rows[self._group]
        size = max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // max(1, row_bytes)))
        names = list(self._table.file.corpus.spec.text_fields)
        return self._table.content.iter_batches(
            size, row_groups=[self._group], columns=names, use_threads=False
        )

    def _take(self, first: int, last: int) -> "Iterator[pa.RecordBatch]":
        if first < self._position:
            self._position, self._batches, self._rest = 0, self._open_batches(), None
        while self._position < last:
            batch = next(self._batches, None) if self._rest is None else self._rest
            if batch is None:
                import pyarrow as pa

                raise pa.ArrowInvalid(f"it has {self._position} rows instead of {last}")
            begin, end = max(first - self._position, 0), min(last - self._position, batch.num_rows)
            self._rest = batch.slice(end) if end < batch.num_rows else None
            self._position += end
            if begin < end:
                yield batch.slice(begin, end - begin)


@functools.lru_cache(maxsize=1)
def _open_rows(file: CorpusFile, group: int) -> _Rows:
    """Opens a row group. It stays open because a process usually reads its parts in order."""
    stream = file.path.open("rb")
    rows = _Rows(_open(file, stream), group)
    weakref.finalize(rows, stream.close)
    return rows
