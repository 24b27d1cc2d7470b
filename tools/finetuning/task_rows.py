"""The rows of a task's files: JSON lines, TSV with or without a header, quoted CSV."""

import codecs
import csv
import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, TextIO

from data_specs.tasks import TaskSpec
from pipeline.base import json_text
from pipeline.base.errors import InputError
from pipeline.base.location import Location

MAX_ROW_BYTES = 16 * 2**20

# What is told of a row that cannot be used; it raises, or notes it and returns.
BadRow = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a file.

    Attributes:
        where: the file and the line, for messages.
        fields: its values by name; text, but for JSON, where they may be anything.
    """

    where: str
    fields: Mapping[str, Any]


def read_rows(
    spec: TaskSpec, path: Location, needed: Sequence[str], bad_row: BadRow
) -> Iterator[Row | None]:
    """Yields a file's rows.

    Args:
        spec: how it is read.
        path: the file; UTF-8, with or without a byte order mark.
        needed: the fields that every row must have.
        bad_row: what is told of a row with the wrong columns or that is not JSON.

    Yields:
        a row; None in the place of one that `bad_row` was told of, so that rows
        keep their numbers.

    Raises:
        InputError: the file cannot be read, or its header lacks a field.
    """
    try:
        with path.open("rb") as stream:
            if spec.reader == "json_lines":
                yield from _json_rows(path, stream, needed, bad_row)
            else:
                yield from _delimited_rows(spec, path, stream, needed, bad_row)
    except OSError as error:
        raise InputError(path, received=f"cannot be read: {error.strerror}") from error


def _lines(path: Location, stream: BinaryIO) -> Iterator[tuple[str, str]]:
    """Yields the lines that are not blank, each after where it stands."""
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        where = f"{path}, line {number}"
        if len(line) > MAX_ROW_BYTES:
            raise InputError(where, f"a row of at most {MAX_ROW_BYTES} bytes")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(where, "UTF-8", error) from error
        if text.strip():
            yield where, text


def _json_rows(
    path: Location, stream: BinaryIO, needed: Sequence[str], bad_row: BadRow
) -> Iterator[Row | None]:
    for where, line in _lines(path, stream):
        problem = None
        try:
            fields = json_text.load(line)
        except ValueError as error:
            problem = f"a JSON object, received {line[:40]!r} ({error})"
        else:
            if not isinstance(fields, dict):
                problem = f"a JSON object, received {line[:40]!r}"
            elif any(name not in fields for name in needed):
                problem = f"the fields {', '.join(needed)}, received {_named(list(fields))}"
        if problem:
            bad_row(f"{where}: expected {problem}")
            yield None
        else:
            yield Row(where, fields)


def _delimited_rows(
    spec: TaskSpec, path: Location, stream: BinaryIO, needed: Sequence[str], bad_row: BadRow
) -> Iterator[Row | None]:
    delimiter = "\t" if spec.reader == "tsv" else ","
    if spec.quoting == "double":
        cells_of_rows = _quoted_cells(path, stream, delimiter)
    else:
        cells_of_rows = ((where, line.split(delimiter)) for where, line in _lines(path, stream))
    columns: Sequence[str] = spec.columns
    first = True
    for where, cells in cells_of_rows:
        is_header = spec.header or set(spec.text_fields) <= set(cells)
        if first and is_header:
            columns = cells
            missing = [name for name in needed if name not in columns]
            if missing:
                raise InputError(where, f"the columns {', '.join(needed)}", _named(columns))
        elif len(cells) != len(columns):
            bad_row(
                f"{where}: expected {len(columns)} columns ({_named(columns)}), "
                f"received {len(cells)}"
            )
            yield None
        else:
            yield Row(where, dict(zip(columns, cells, strict=True)))
        first = False


def _named(columns: Sequence[str]) -> str:
    """Returns the first of some names, in one line."""
    return ", ".join(" ".join(name.split())[:60] for name in columns[:20]) or "none"


class _RowLines:
    """The lines of a row that may go over several, which have an end."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self.left = MAX_ROW_BYTES

    def __iter__(self) -> Iterator[str]:
        while line := self._text.readline(self.left + 1):
            self.left -= len(line)
            if self.left < 0:
                raise csv.Error(f"a row of more than {MAX_ROW_BYTES} letters")
            yield line


def _quoted_cells(
    path: Location, stream: BinaryIO, delimiter: str
) -> Iterator[tuple[str, list[str]]]:
    """Yields rows whose fields may hold line breaks, each after where it begins."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    limited = _RowLines(text)
    reader = csv.reader(limited, delimiter=delimiter, strict=True)
    begin = 1
    try:
        for cells in reader:
            if cells:
                yield f"{path}, line {begin}", cells
            begin = reader.line_num + 1
            limited.left = MAX_ROW_BYTES
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}, line {begin}",
            "fields of UTF-8 in double quotation marks where they need them",
            f"something else ({error})",
        ) from error
    finally:
        # The file is closed where it was opened, which may be before rows nobody wanted.
        if not stream.closed:
            text.detach()
