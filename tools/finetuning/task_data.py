"""The rows of a task's files, and the examples made of them."""

import codecs
import csv
import dataclasses
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, TextIO

import msgspec

from data_specs.tasks import TaskSpec
from pipeline.base import json_text
from pipeline.base.errors import InputError
from pipeline.base.json_text import shown
from pipeline.base.location import Location
from pipeline.base.text_encoding import not_utf8, utf8_stream

MAX_ROW_BYTES = 16 * 2**20

# What is told of a row that cannot be used; it raises, or notes it and returns.
BadRow = Callable[[InputError], None]


# A row's file and line, for messages, and its values by name: text, but anything in JSON.
Row = tuple[str, Mapping[str, Any]]


def read_rows(
    spec: TaskSpec, path: Location, needed: Sequence[str], bad_row: BadRow
) -> Iterator[Row | None]:
    """Yields the rows of a file of UTF-8, with or without a byte order mark.

    In the place of a row that `bad_row` was told of, which lacks a field or has other columns,
    there is None: the others keep their numbers.

    Raises:
        InputError: the file cannot be read, or its header lacks a field.
    """
    try:
        with path.open("rb") as raw:
            stream = utf8_stream(raw, path)
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
            raise not_utf8(line, error, where) from error
        if text.strip():
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
        expected = "fields of UTF-8 in double quotation marks where they need them"
        received = f"something else ({error})"
        raise InputError(f"{path}, line {begin}", expected, received) from error
    finally:
        # The file is closed where it was opened, which may be before rows nobody wanted.
        if not stream.closed:
            text.detach()


# Halves of letters, which JSON can spell and no file of text can hold.
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
        key: what the file calls it, or its number among the rows of the split.
        texts: one or two; of questions the question and its context.
        label: the class's index or the number to predict; None where the file
            does not say, and for questions.
        answers: the right answers to a question, none where the file does not say.
    """

    key: str
    texts: tuple[str, ...]
    label: int | float | None = None
    answers: tuple[Answer, ...] = ()


@dataclasses.dataclass
class SplitData:
    """A split, and what was odd in its files.

    Attributes:
        spec: the task.
        labelled: whether each row must have a label: benchmarks keep those of their test files.
        skip_bad_rows: whether bad rows are left out and noted.
        examples: in the order of the files.
        num_left_out: rows left out for one of the task's `skip_labels`.
        num_relocated: answers that stood elsewhere in the context than the file
            says, and were taken from the nearest place.
        bad_rows: a line on each row that could not be used.
    """

    spec: TaskSpec
    labelled: bool
    skip_bad_rows: bool
    examples: list[TaskExample] = dataclasses.field(default_factory=list)
    num_left_out: int = 0
    num_relocated: int = 0
    bad_rows: list[str] = dataclasses.field(default_factory=list)

    def bad_row(self, error: InputError) -> None:
        """Raises, or notes a row that is left out."""
        if not self.skip_bad_rows:
            if error.hint is None:
                error.hint = "set `skip_bad_rows` to leave out and count such rows"
            raise error
        self.bad_rows.append(str(error))


def find_files(spec: TaskSpec, data_dir: Location, split: str) -> tuple[Location, ...]:
    """Returns the files of a split: those of the first name or glob that has any.

    Raises:
        InputError: there is no such folder, split or file.
    """
    if split not in spec.files:
        raise InputError(spec.name, f"a split of {', '.join(spec.files)}", f"{split!r}")
    if not data_dir.is_dir():
        raise InputError(data_dir, f"the folder of {spec.name}'s files", "no such folder")
    for pattern in spec.files[split]:
        try:
            found = tuple(sorted(path for path in data_dir.glob(pattern) if path.is_file()))
        except ValueError as error:
            raise InputError(spec.name, received=f"files: {split}: {error}") from error
        if found:
            return found
    names = " or ".join(spec.files[split])
    raise InputError(data_dir, f"the split {split} of {spec.name} ({names})", "no such file")


def read_split(
    spec: TaskSpec, data_dir: Location, split: str, *, skip_bad_rows: bool = False
) -> SplitData:
    """Reads a split, and counts what was odd in it.

    A row is bad that has the wrong columns or fields, an unknown label, is not
    JSON, or asks a question whose answer is nowhere in its context. An answer
    that begins elsewhere than the file says is looked for, and the nearest place
    taken. A split whose name begins with `test` may lack labels and answers.

    Raises:
        InputError: there are no such files, no examples in them, or a bad row and
            not `skip_bad_rows`; names the file and the line or the question.
    """
    paths = find_files(spec, data_dir, split)
    data = SplitData(spec, not split.startswith("test"), skip_bad_rows)
    read = _read_questions if spec.reader == "squad" else _read_labelled
    data.examples += read(data, paths)
    if not data.examples:
        first = [f"the first of {len(data.bad_rows)} bad rows: {row}" for row in data.bad_rows[:1]]
        raise InputError(paths[0], f"at least one example of {spec.name}", "none", *first)
    return data


def _read_labelled(data: SplitData, paths: tuple[Location, ...]) -> Iterator[TaskExample]:
    spec = data.spec
    needed = (*spec.text_fields, *([spec.label_field] if data.labelled else []))
    number = 0
    for path in paths:
        for row in read_rows(spec, path, needed, data.bad_row):
            example = None if row is None else _labelled_example(data, *row, str(number))
            number += 1
            if example is not None:
                yield example


def _labelled_example(
    data: SplitData, where: str, fields: Mapping[str, Any], number: str
) -> TaskExample | None:
    """Makes an example of a row, or None where it is left out."""
    spec = data.spec
    key = str(fields.get(spec.id_field, number))
    for name, text in (*((name, fields[name]) for name in spec.text_fields), (spec.id_field, key)):
        if not _is_text(text):
            data.bad_row(InputError(f"{where}: {name}", "text", shown(text)))
            return None
    texts = tuple(fields[name] for name in spec.text_fields)
    if not data.labelled and spec.label_field not in fields:
        return TaskExample(key, texts)
    value = fields[spec.label_field]
    text = str(value) if isinstance(value, str | int | float) else repr(value)
    if text in spec.skip_labels:
        data.num_left_out += 1
        return None
    if spec.kind == "regression":
        label, expected = _number(text), "a number"
    else:
        label = spec.labels.index(text) if text in spec.labels else None
        expected = f"one of {', '.join(spec.labels)}"
    if label is None:
        data.bad_row(InputError(f"{where}: {spec.label_field}", expected, shown(text)))
        return None
    return TaskExample(key, texts, label)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not _SURROGATES.search(value)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


class _SquadAnswer(msgspec.Struct):
    text: str
    answer_start: int


class _SquadQuestion(msgspec.Struct):
    question: str
    answers: list[_SquadAnswer] = []


class _SquadParagraph(msgspec.Struct):
    context: str
    # Each question is checked by itself: a bad one may be left out.
    qas: list[dict[str, Any]]


class _CmrcQuestion(msgspec.Struct):
    query_id: str
    query_text: str
    answers: list[str] = []


class _CmrcParagraph(msgspec.Struct):
    context_text: str
    qas: list[_CmrcQuestion]

    def to_squad(self) -> _SquadParagraph:
        """Returns the same in SQuAD's layout; an answer begins where it is found first."""
        return _SquadParagraph(self.context_text, [self._question(one) for one in self.qas])

    def _question(self, content: _CmrcQuestion) -> dict[str, Any]:
        texts = dict.fromkeys(content.answers)
        answers = [{"text": text, "answer_start": self.context_text.find(text)} for text in texts]
        return {"id": content.query_id, "question": content.query_text, "answers": answers}


class _SquadArticle(msgspec.Struct):
    paragraphs: list[_SquadParagraph]


class _SquadFile(msgspec.Struct):
    data: list[_SquadArticle]


def _read_paragraphs(path: Location) -> Iterator[_SquadParagraph]:
    """Yields the paragraphs of a file in SQuAD's layout, or in CMRC's own: a list of them."""
    content = path.read_json_value()
    if isinstance(content, list):
        for paragraph in json_text.convert(content, list[_CmrcParagraph], path):
            yield paragraph.to_squad()
        return
    for article in json_text.convert(content, _SquadFile, path).data:
        yield from article.paragraphs


def _read_questions(data: SplitData, paths: tuple[Location, ...]) -> Iterator[TaskExample]:
    """Yields the questions of JSON files, which share the contexts of their paragraphs."""
    seen: set[str] = set()
    for path in paths:
        for paragraph in _read_paragraphs(path):
            if not _is_text(paragraph.context):
                raise InputError(f"{path}: context", "text", shown(paragraph.context))
            for question in paragraph.qas:
                try:
                    example = _question_example(data, path, question, paragraph.context, seen)
                except InputError as error:
                    data.bad_row(error)
                else:
                    yield example


def _question_example(
    data: SplitData, path: Location, content: Mapping[str, Any], context: str, seen: set[str]
) -> TaskExample:
    """Makes an example of a question, and adds its id to those that were seen."""
    key = str(content.get("id", ""))
    where = f"{path}, question {' '.join(key.split())[:80]}"
    if not key or key in seen or not _is_text(key):
        raise InputError(where, "an id of its own", shown(key))
    seen.add(key)
    question = json_text.convert(content, _SquadQuestion, where)
    answers = []
    for text in (question.question, *(answer.text for answer in question.answers)):
        if not _is_text(text):
            raise InputError(where, "text", shown(text))
    for answer in question.answers:
        start = _locate(context, Answer(answer.text, answer.answer_start))
        if start is not None:
            data.num_relocated += start != answer.answer_start
            answers.append(Answer(answer.text, start))
        elif data.labelled:
            place = f"the answer {answer.text[:40]!r} in its context at character"
            raise InputError(where, f"{place} {answer.answer_start}", "none")
    if data.labelled and not answers:
        received = f"an unanswerable question of SQuAD 2.0, as {data.spec.name} has none"
        raise InputError(where, "an answer", received)
    return TaskExample(key, (question.question, context), answers=tuple(answers))


def _locate(context: str, answer: Answer) -> int | None:
    """Returns where an answer begins: the place nearest to where it should, the first of two."""
    if not answer.text:
        return None
    if answer.start >= 0 and context.startswith(answer.text, answer.start):
        return answer.start
    # The last place up to where it should be, and the first one after it.
    start = max(answer.start, -1)
    before = context.rfind(answer.text, 0, start + len(answer.text)) if start >= 0 else -1
    after = context.find(answer.text, start + 1)
    places = [place for place in (before, after) if place >= 0]
    return min(places, key=lambda place: abs(place - answer.start), default=None)
