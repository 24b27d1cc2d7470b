"""CSV and TSV: each row is a document, its text fields joined by newlines.

Fields may be in double quotation marks, as RFC 4180 has them. The first row names the fields.
"""

import codecs
import csv
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from pipeline.base.errors import InputError
from pipeline.corpora import fields
from pipeline.corpora.documents import CorpusFile, Cursor, RawDocument
from pipeline.corpora.readers.base import Reader

# Of all lines of a row; an opening quotation mark without an end takes the rest of the file.
MAX_ROW_CHARS = 16 * 2**20
# Bytes that are not UTF-8 come back as they were; the document that has them is refused.
_BYTES = "surrogateescape"


class CsvReader(Reader):
    """Fields between commas."""

    suffixes = (".csv",)
    delimiter = ","

    def documents(
        self, file: CorpusFile, stream: BinaryIO, cursor: Cursor
    ) -> Iterator[RawDocument]:
        """See `Reader`."""
        rows = _rows(file, stream, cursor, self.delimiter)
        names, header_fault = next(((cells, fault) for _, cells, fault in rows), ([], None))
        if header_fault is not None:
            raise header_fault
        if not names:
            return
        columns = _text_columns(file, names)
        for place, cells, fault in rows:
            if fault is None and len(cells) != len(names):
                expected = f"{len(names)} fields, as in the first row"
                fault = InputError(f"{file.path}, {place}", expected, len(cells))
            chosen = cells if fault is not None else [cells[column] for column in columns]
            content = "\n".join(filter(None, chosen)).encode("utf-8", _BYTES)
            yield RawDocument(file, cursor.documents, place, content, fault=fault)
            cursor.documents += 1

    def first_row(self, file: CorpusFile, stream: BinaryIO) -> Mapping[str, object]:
        """See `Reader`."""
        rows = (cells for _, cells, _ in _rows(file, stream, Cursor(), self.delimiter))
        names, values = next(rows, []), next(rows, [])
        return dict(itertools.zip_longest(names, values[: len(names)]))


class TsvReader(CsvReader):
    """Fields between tabs."""

    suffixes = (".tsv", ".tab")
    delimiter = "\t"


def _text_columns(file: CorpusFile, names: Sequence[str]) -> list[int]:
    spec = file.corpus.spec
    if any(names.count(name) != 1 for name in spec.text_fields):
        raise fields.missing_fields(spec, f"{file.path}, first row", names, names)
    return [names.index(name) for name in spec.text_fields]


class _RowLines:
    """The lines of a stream, of which a row may take so many characters."""

    def __init__(self, stream: BinaryIO, cursor: Cursor) -> None:
        self._stream, self._cursor = stream, cursor
        self.left = MAX_ROW_CHARS

    def __iter__(self) -> Iterator[str]:
        while line := self._stream.readline(self.left + 1):
            self.left -= len(line)
            if self.left < 0:
                raise csv.Error(f"more than {MAX_ROW_CHARS} bytes, perhaps after a quotation mark")
            if not self._cursor.lines:
                line = line.removeprefix(codecs.BOM_UTF8)
            self._cursor.lines += 1
            yield line.decode("utf-8", _BYTES)


def _rows(
    file: CorpusFile, stream: BinaryIO, cursor: Cursor, delimiter: str
) -> Iterator[tuple[str, list[str], InputError | None]]:
    """Yields rows that are not blank: where each begins, its fields, and what is wrong with it."""
    lines = _RowLines(stream, cursor)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    # For the whole process; the rows' own limit is the lower one.
    csv.field_size_limit(MAX_ROW_CHARS)
    while True:
        place = f"line {cursor.lines + 1}"
        lines.left = MAX_ROW_CHARS
        try:
            cells = next(reader, None)
        except csv.Error as error:
            fault = _not_delimited(file, place, error)
            if lines.left < 0:
                # Where the next row begins is unknown.
                raise fault from error
            yield place, [], fault
            continue
        if cells is None:
            return
        if cells:
            yield place, cells, None


def _not_delimited(file: CorpusFile, place: str, error: csv.Error) -> InputError:
    expected = "fields in double quotation marks where they need them"
    return InputError(f"{file.path}, {place}", expected, f"something else ({error})")
