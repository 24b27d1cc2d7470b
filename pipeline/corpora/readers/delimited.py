"""CSV and TSV: each row is a document, its text fields joined by newlines.

Fields may be in double quotation marks, as RFC 4180 has them. The first row names the fields.

Many TSV files have no quoted fields, and a quotation mark in their text is a character. In TSV a
field is therefore quoted only where it begins with a mark, and the next mark that is not doubled
stands before a tab or the end of a line. A line with as many tabs as the first row is divided at
these. Where the other mark is in a later line, the lines up to that are rows of their own if each
has as many tabs as the first row, and none of the later ones begins with one, as indented text.
"""

import codecs
import collections
import contextlib
import csv
import itertools
import re
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
# A quoted field from behind a mark up to its closing mark, or to the end of the line.
_INSIDE = re.compile(r'(?:[^"]++|"")*+')
_FIELD_ENDS = ("\t", "\n", "\r\n")


class CsvReader(Reader):
    """Fields between commas."""

    suffixes = (".csv",)

    def documents(
        self, file: CorpusFile, stream: BinaryIO, cursor: Cursor
    ) -> Iterator[RawDocument]:
        """See `Reader`."""
        rows = self._rows(file, stream, cursor)
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
        rows = (cells for _, cells, _ in self._rows(file, stream, Cursor()))
        names, values = next(rows, []), next(rows, [])
        return dict(itertools.zip_longest(names, values[: len(names)]))

    def _rows(
        self, file: CorpusFile, stream: BinaryIO, cursor: Cursor
    ) -> Iterator[tuple[str, list[str], InputError | None]]:
        """Yields rows that are not blank: where each begins, its fields, and what is wrong."""
        lines = _RowLines(stream, cursor)
        rows = self._cells(lines)
        # For the whole process; the rows' own limit is the lower one.
        csv.field_size_limit(MAX_ROW_CHARS)
        while True:
            place = f"line {cursor.lines + 1}"
            lines.left = MAX_ROW_CHARS
            try:
                cells = next(rows, None)
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

    def _cells(self, lines: "_RowLines") -> Iterator[list[str]]:
        """Returns the rows' fields, none of a blank row; after a malformed row it goes on."""
        return csv.reader(lines, strict=True)


class TsvReader(CsvReader):
    """Fields between tabs."""

    suffixes = (".tsv", ".tab")

    def _cells(self, lines: "_RowLines") -> Iterator[list[str]]:
        return _TabRows(lines)


def _text_columns(file: CorpusFile, names: Sequence[str]) -> list[int]:
    spec = file.corpus.spec
    if any(names.count(name) != 1 for name in spec.text_fields):
        raise fields.missing_fields(spec, f"{file.path}, first row", names, names)
    return [names.index(name) for name in spec.text_fields]


class _RowLines:
    """The lines of a stream, of which a row may take so many characters."""

    def __init__(self, stream: BinaryIO, cursor: Cursor) -> None:
        self._stream, self._cursor = stream, cursor
        self._returned: collections.deque[bytes] = collections.deque()
        self.left = MAX_ROW_CHARS

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._returned.popleft() if self._returned else b""
        if not line.endswith(b"\n"):
            line += self._stream.readline(max(0, self.left + 1 - len(line)))
        if not line:
            raise StopIteration
        self.left -= len(line)
        if self.left < 0:
            self._returned.appendleft(line)
            raise csv.Error(f"more than {MAX_ROW_CHARS} bytes, perhaps after a quotation mark")
        if not self._cursor.lines:
            line = line.removeprefix(codecs.BOM_UTF8)
        self._cursor.lines += 1
        return line.decode("utf-8", _BYTES)

    def take_back(self, lines: Sequence[str]) -> None:
        """Makes the last lines the next ones."""
        self._returned.extendleft(line.encode("utf-8", _BYTES) for line in reversed(lines))
        self._cursor.lines -= len(lines)


class _TabRows:
    """The fields of rows, between tabs; of a blank row none."""

    def __init__(self, lines: _RowLines) -> None:
        self._lines = lines
        self._num_fields = 0

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        row, cells, begin = next(self._lines), [], 0
        if not row.rstrip("\r\n"):
            return []
        is_whole = self._is_whole(row)
        while begin <= len(row):
            row, end = self._closing_mark(row, begin, is_whole=is_whole)
            if end >= 0:
                cells.append(row[begin + 1 : end].replace('""', '"'))
                end += 1
            else:
                end = row.find("\t", begin)
                end = len(row) if end < 0 else end
                cells.append(row[begin:end].removesuffix("\n").removesuffix("\r"))
            begin = end + 1 if row.startswith("\t", end) else len(row) + 1
        self._num_fields = self._num_fields or len(cells)
        return cells

    def _closing_mark(self, row: str, begin: int, *, is_whole: bool) -> tuple[str, int]:
        """Returns a row with the lines that a field takes, and where its closing mark is, or -1."""
        if not row.startswith('"', begin):
            return row, -1
        limit = row.find("\t", begin) if is_whole else -1
        limit = len(row) if limit < 0 else limit
        end = _INSIDE.match(row, begin + 1, limit).end()
        if end < len(row):
            return row, end if _is_closing(row, end) else -1
        ahead: list[str] = []
        are_rows = is_whole
        # There may be more lines behind a stray mark than a row may have.
        with contextlib.suppress(csv.Error):
            for line in self._lines:
                ahead.append(line)
                are_rows = are_rows and self._is_whole(line) and not line.startswith("\t")
                end = _INSIDE.match(line).end()
                if end < len(line):
                    if _is_closing(line, end) and not are_rows:
                        row = "".join([row, *ahead])
                        return row, len(row) - len(line) + end
                    break
        self._lines.take_back(ahead)
        return row, -1

    def _is_whole(self, line: str) -> bool:
        """Returns whether a line has the tabs of a row, if these tell."""
        return line.count("\t") == self._num_fields - 1 > 0


def _is_closing(row: str, mark: int) -> bool:
    is_mark = row.startswith('"', mark)
    return is_mark and (mark + 1 == len(row) or row.startswith(_FIELD_ENDS, mark + 1))


def _not_delimited(file: CorpusFile, place: str, error: csv.Error) -> InputError:
    expected = "fields in double quotation marks where they need them"
    return InputError(f"{file.path}, {place}", expected, f"something else ({error})")
