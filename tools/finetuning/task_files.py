"""Task files: reading their rows and sentences, and the examples made of them."""

import codecs
import collections
import contextlib
import csv
import dataclasses
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, TextIO

from data_specs.tasks import TaskSpec
from pipeline.base import json_text
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.base.text_encoding import not_utf8_error, utf8_stream

# Limit of a row: in characters if fields may be quoted, and otherwise in bytes.
MAX_ROW_SIZE = 16 * 2**20

# A callback for a row that cannot be used: it raises the error, or notes it and returns.
BadRow = Callable[[InputError], None]


# A row's file and line for messages, and its values by name: text, or any JSON value.
Row = tuple[str, Mapping[str, Any]]


def read_rows(
    spec: TaskSpec, path: Location, needed: Sequence[str], bad_row: BadRow
) -> Iterator[Row | None]:
    """Yields the rows of a UTF-8 file, with or without a byte order mark.

    A row that lacks a field or has the wrong columns goes to `bad_row`. None takes its place,
    so that the other rows keep their numbers.

    Raises:
        InputError: the file cannot be read, or its header lacks a field.
    """
    with _opened(path) as stream:
        if spec.reader == "json_lines":
            yield from _json_rows(path, stream, needed, bad_row)
        else:
            yield from _delimited_rows(spec, path, stream, needed, bad_row)


# For each line of a sentence, its file and line number, and its cells.
Sentence = list[tuple[str, list[str]]]
# Values of the first column in lines that separate documents.
_DOCUMENT_MARKS = ("-DOCSTART-", "<DOCSTART>")


def read_sentences(
    path: Location, columns: Sequence[str], bad_row: BadRow, *, may_lack_last: bool
) -> Iterator[Sentence | None]:
    """Yields the sentences of a CoNLL file: columns, with blank lines between sentences.

    Tabs separate cells; in lines without a tab, spaces do. A sentence that has a line with
    the wrong columns goes to `bad_row`, and None takes its place.

    Args:
        path: a UTF-8 file, with or without byte order marks.
        columns: the names of the columns.
        bad_row: called with the first bad line of a sentence.
        may_lack_last: whether the last column may be missing.

    Raises:
        InputError: the file cannot be read.
    """
    counts = (len(columns), len(columns) - may_lack_last)
    sentence: Sentence | None = []
    with _opened(path) as stream:
        for where, line in _all_lines(path, stream):
            cells = line.split("\t") if "\t" in line else _SPACES.split(line.strip(" "))
            if _is_blank(line) or cells[0] in _DOCUMENT_MARKS:
                if sentence != []:
                    yield sentence
                sentence = []
            elif len(cells) not in counts:
                if sentence is not None:
                    expected = f"{len(columns)} columns ({_named(columns)})"
                    bad_row(InputError(where, expected, len(cells)))
                sentence = None
            elif sentence is not None:
                sentence.append((where, cells))
    if sentence != []:
        yield sentence


_SPACES = re.compile(" +")


def _is_blank(line: str) -> bool:
    # Concatenated files may have a byte order mark in any line.
    return not line.strip().strip("\ufeff")


@contextlib.contextmanager
def _opened(path: Location) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as raw:
            yield utf8_stream(raw, path)
    except OSError as error:
        raise InputError(path, received=f"cannot be read: {error.strerror}") from error


def _lines(path: Location, stream: BinaryIO) -> Iterator[tuple[str, str]]:
    """Yields the file and number of each line that is not blank, and its text."""
    return ((where, line) for where, line in _all_lines(path, stream) if line.strip())


def _all_lines(path: Location, stream: BinaryIO) -> Iterator[tuple[str, str]]:
    number = 0
    while line := stream.readline(MAX_ROW_SIZE + 1):
        number += 1
        where = f"{path}, line {number}"
        if len(line) > MAX_ROW_SIZE:
            raise InputError(where, f"a row of at most {MAX_ROW_SIZE} bytes", "a longer row")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise not_utf8_error(line, error, where) from error
        yield where, text


def _json_rows(
    path: Location, stream: BinaryIO, needed: Sequence[str], bad_row: BadRow
) -> Iterator[Row | None]:
    for where, line in _lines(path, stream):
        expected, received = "a JSON object", repr(line[:40])
        try:
            fields = json_text.load(line)
        except ValueError as error:
            fields, received = None, f"{received} ({error})"
        if isinstance(fields, dict):
            if all(name in fields for name in needed):
                yield where, fields
                continue
            expected, received = f"the fields {', '.join(needed)}", _named(list(fields))
        bad_row(InputError(where, expected, received))
        yield None


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
            bad_row(InputError(where, f"{len(columns)} columns ({_named(columns)})", len(cells)))
            yield None
        else:
            yield where, dict(zip(columns, cells, strict=True))
        first = False


def _named(columns: Sequence[str]) -> str:
    """Returns the first names of columns in one line."""
    return ", ".join(" ".join(name.split())[:60] for name in columns[:20]) or "none"


class _RowLines:
    """The lines of a row that may span several lines, up to a maximum size."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self.left = MAX_ROW_SIZE

    def __iter__(self) -> Iterator[str]:
        while line := self._text.readline(self.left + 1):
            self.left -= len(line)
            if self.left < 0:
                raise csv.Error(f"a row of more than {MAX_ROW_SIZE} characters")
            yield line


def _quoted_cells(
    path: Location, stream: BinaryIO, delimiter: str
) -> Iterator[tuple[str, list[str]]]:
    """Yields rows whose fields may contain line breaks, each with its file and first line."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    limited = _RowLines(text)
    reader = csv.reader(limited, delimiter=delimiter, strict=True)
    begin = 1
    try:
        for cells in reader:
            if cells:
                yield f"{path}, line {begin}", cells
            begin = reader.line_num + 1
            limited.left = MAX_ROW_SIZE
    except (csv.Error, UnicodeDecodeError) as error:
        expected = "UTF-8 fields, in double quotation marks if they contain a delimiter"
        received = f"a malformed row ({error})"
        raise InputError(f"{path}, line {begin}", expected, received) from error
    finally:
        # `_opened` closes the file, which may happen before all rows are read.
        if not stream.closed:
            text.detach()


# Unpaired surrogates: JSON can contain them, UTF-8 cannot.
_SURROGATES = re.compile(r"[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer to a question.

    Attributes:
        text: the answer.
        start: the character of the context at which it begins.
    """

    text: str
    start: int


@dataclasses.dataclass(frozen=True)
class TaskExample:
    """One example of a task.

    Attributes:
        key: its id in the file, or its number among the rows of the split.
        texts: one or two texts; the question and its context; or the words of a token
            classification.
        label: the class index, the number or the words' tags to predict; None for questions
            and for unlabeled examples.
        answers: the right answers to a question; empty if the file has none.
    """

    key: str
    texts: tuple[str, ...]
    label: int | float | tuple[str, ...] | None = None
    answers: tuple[Answer, ...] = ()


@dataclasses.dataclass
class SplitData:
    """The examples of a split, and the irregular rows of its files.

    Attributes:
        spec: the task.
        labeled: whether each row must have a label; benchmarks withhold those of test files.
        skip_bad_rows: whether bad rows are left out and noted.
        examples: the examples in the order of the files.
        num_left_out: number of rows left out because of the task's `skip_labels`.
        num_relocated: number of answers that begin elsewhere in the context than the file
            says; the nearest occurrence is taken.
        bad_rows: a line about each row that could not be used.
        remarks: number of occurrences of each remark; the key is its text after the number.
    """

    spec: TaskSpec
    labeled: bool
    skip_bad_rows: bool
    examples: list[TaskExample] = dataclasses.field(default_factory=list)
    num_left_out: int = 0
    num_relocated: int = 0
    bad_rows: list[str] = dataclasses.field(default_factory=list)
    remarks: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def bad_row(self, error: InputError) -> None:
        """Raises the error, or notes it and leaves the row out."""
        if not self.skip_bad_rows:
            if error.hint is None:
                error.hint = "set `skip_bad_rows` to leave out and count such rows"
            raise error
        self.bad_rows.append(str(error))


def find_files(spec: TaskSpec, data_dir: Location, split: str) -> tuple[Location, ...]:
    """Returns the files of a split: those of the first name or glob that matches.

    Raises:
        InputError: there is no such folder, split or file.
    """
    if split not in spec.files:
        expected = f"one of the splits {', '.join(spec.files)}"
        raise InputError(spec.name, expected, f"{split!r}")
    if not data_dir.is_dir():
        raise InputError(data_dir, f"the folder of {spec.name}'s files", "no such folder")
    for pattern in spec.files[split]:
        try:
            paths = tuple(sorted(path for path in data_dir.glob(pattern) if path.is_file()))
        except ValueError as error:
            raise InputError(spec.name, received=f"files: {split}: {error}") from error
        if paths:
            return paths
    names = " or ".join(spec.files[split])
    raise InputError(data_dir, f"the split {split} of {spec.name} ({names})", "no such file")


def is_text(value: Any) -> bool:
    """Returns whether a value is a string that UTF-8 can encode."""
    return isinstance(value, str) and not _SURROGATES.search(value)
