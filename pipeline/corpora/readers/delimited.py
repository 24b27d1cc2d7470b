"""Readers of CSV and TSV: each row is a document, its text fields joined by newlines.

Fields may be in double quotation marks as in RFC 4180. The first row names the fields.

Many TSV files have no quoted fields, and a quotation mark in their text is a plain character. In
TSV a field is therefore quoted only under two conditions:

*   It begins with a quotation mark.
*   The next mark that is not doubled is followed by a tab or the end of a line.

A line with the same number of tabs as the first row is always divided at its tabs. If the closing
mark is in a later line, the field may span several lines. The field does not span several lines if
each of these lines is a complete row: each has the same number of tabs as the first row, and no
later line begins with a tab, as indented text would.
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

# Limit of all lines of a row. Without a limit, an opening quotation mark without a closing one
# would extend the row to the end of the file.
MAX_ROW_BYTES = 16 * 2**20
# Bytes that are not UTF-8 are restored when a row is encoded again. Its document is refused later.
_BYTES = "surrogateescape"
# The content of a quoted field: from the opening mark to the closing mark or the end of the line.
_QUOTED = re.compile(r'(?:[^"]++|"")*+')
_FIELD_ENDS = ("\t", "\n", "\r\n")


class CsvReader(Reader):
    """Reader of comma-separated values."""

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
        for position, cells, fault in rows:
            if fault is None and len(cells) != len(names):
                expected = f"{len(names)} fields, as in the first row"
                fault = InputError(f"{file.path}, {position}", expected, len(cells))
            texts = cells if fault is not None else [cells[column] for column in columns]
            content = "\n".join(filter(None, texts)).encode("utf-8", _BYTES)
            yield RawDocument(file, cursor.documents, position, content, fault=fault)
            cursor.documents += 1

    def first_row(self, file: CorpusFile, stream: BinaryIO) -> Mapping[str, object]:
        """See `Reader`."""
        rows = (cells for _, cells, _ in self._rows(file, stream, Cursor()))
        names, values = next(rows, []), next(rows, [])
        return dict(itertools.zip_longest(names, values[: len(names)]))

    def _rows(
        self, file: CorpusFile, stream: BinaryIO, cursor: Cursor
    ) -> Iterator[tuple[str, list[str], InputError | None]]:
        """Yields the position, the fields and the error, if any, of each row that is not blank."""
        lines = _RowLines(stream, cursor)
        rows = self._cells(lines)
        # This limit applies to the whole process. It never takes effect here, because the limit
        # of a row is stricter.
        csv.field_size_limit(MAX_ROW_BYTES)
        while True:
            position = f"line {cursor.lines + 1}"
            lines.bytes_left = MAX_ROW_BYTES
            try:
                cells = next(rows, None)
            except csv.Error as error:
                fault = _malformed_row(file, position, error)
                if lines.bytes_left < 0:
                    # The row is too long, so the start of the next row is unknown.
                    raise fault from error
                yield position, [], fault
                continue
            if cells is None:
                return
            if cells:
                yield position, cells, None

    def _cells(self, lines: "_RowLines") -> Iterator[list[str]]:
        """Returns an iterator over the fields of each row; a blank row has none.

        After an error for a malformed row, the iterator continues with the next row.
        """
        return csv.reader(lines, strict=True)


class TsvReader(CsvReader):
    """Reader of tab-separated values."""

    suffixes = (".tsv", ".tab")

    def _cells(self, lines: "_RowLines") -> Iterator[list[str]]:
        return _TabRows(lines)


def _text_columns(file: CorpusFile, names: Sequence[str]) -> list[int]:
    spec = file.corpus.spec
    if any(names.count(name) != 1 for name in spec.text_fields):
        raise fields.missing_fields_error(spec, f"{file.path}, first row", names, names)
    return [names.index(name) for name in spec.text_fields]


class _RowLines:
    """The lines of a stream, with a limit for the bytes of a row.

    Attributes:
        bytes_left: number of bytes that the current row may still take.
    """

    def __init__(self, stream: BinaryIO, cursor: Cursor) -> None:
        self._stream, self._cursor = stream, cursor
        self._returned: collections.deque[bytes] = collections.deque()
        self.bytes_left = MAX_ROW_BYTES

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._returned.popleft() if self._returned else b""
        if not line.endswith(b"\n"):
            line += self._stream.readline(max(0, self.bytes_left + 1 - len(line)))
        if not line:
            raise StopIteration
        self.bytes_left -= len(line)
        if self.bytes_left < 0:
            self._returned.appendleft(line)
            raise csv.Error(f"more than {MAX_ROW_BYTES} bytes, perhaps after a quotation mark")
        if not self._cursor.lines:
            line = line.removeprefix(codecs.BOM_UTF8)
        self._cursor.lines += 1
        return line.decode("utf-8", _BYTES)

    def take_back(self, lines: Sequence[str]) -> None:
        """Returns the most recent lines to the stream, so that they are read again."""
        self._returned.extendleft(line.encode("utf-8", _BYTES) for line in reversed(lines))
        self._cursor.lines -= len(lines)


class _TabRows:
    """Iterator over the fields of tab-separated rows; a blank row has none."""

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
        """Finds the closing quotation mark of a field, also in later lines.

        Args:
            row: the lines of the row so far.
            begin: index of the field's first character.
            is_whole: whether the first line of the row has the number of tabs of a row.

        Returns:
            the row, extended by the lines of the field, and the index of the closing mark; -1 if
            the field is not quoted.
        """
        if not row.startswith('"', begin):
            return row, -1
        limit = row.find("\t", begin) if is_whole else -1
        limit = len(row) if limit < 0 else limit
        end = _QUOTED.match(row, begin + 1, limit).end()
        if end < len(row):
            return row, end if _is_closing(row, end) else -1
        later_lines: list[str] = []
        are_rows = is_whole
        # After a stray mark, the lines up to the next mark may exceed the limit of a row.
        with contextlib.suppress(csv.Error):
            for line in self._lines:
                later_lines.append(line)
                are_rows = are_rows and self._is_whole(line) and not line.startswith("\t")
                end = _QUOTED.match(line).end()
                if end < len(line):
                    if _is_closing(line, end) and not are_rows:
                        row = "".join([row, *later_lines])
                        return row, len(row) - len(line) + end
                    break
        self._lines.take_back(later_lines)
        return row, -1

    def _is_whole(self, line: str) -> bool:
        """Returns whether a line has the same number of tabs as the first row, at least one."""
        return line.count("\t") == self._num_fields - 1 > 0


def _is_closing(row: str, mark: int) -> bool:
    is_mark = row.startswith('"', mark)
    return is_mark and (mark + 1 == len(row) or row.startswith(_FIELD_ENDS, mark + 1))


def _malformed_row(file: CorpusFile, position: str, error: csv.Error) -> InputError:
    expected = "fields that are quoted as in RFC 4180"
    return InputError(f"{file.path}, {position}", expected, f"a malformed row ({error})")
