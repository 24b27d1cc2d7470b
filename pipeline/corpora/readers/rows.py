"""Reader of JSON lines and JSON arrays: each row is a document, its text fields joined by newlines.

A row that is too long is refused, so that memory is bounded for every file.
"""

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from data_specs.corpora import CorpusSpec
from pipeline.base import streams
from pipeline.base.errors import InputError
from pipeline.corpora import fields
from pipeline.corpora.documents import CorpusFile, Cursor, FilePart, RawDocument
from pipeline.corpora.readers.base import Reader, line_parts

MAX_ROW_BYTES = 16 * 2**20
# Enough to contain the first character that is not a space.
_START_BYTES = 4096
# Number of bytes that are kept of a row that is refused, for the digest of the corpus.
_KEPT_BYTES = 2**10
_BLOCK_CHARS = 2**20
_SPACES = " \t\r\n"
_NOT_SPACE = re.compile(f"[^{_SPACES}]|$")
_DECODER = json.JSONDecoder()


class RowsReader(Reader):
    """Reader of JSON lines, or of one JSON array if the file begins with `[`."""

    suffixes = (".json", ".jsonl")

    def documents(
        self, file: CorpusFile, stream: BinaryIO, cursor: Cursor
    ) -> Iterator[RawDocument]:
        """See `Reader`."""
        start, stream = streams.peek(stream, _START_BYTES)
        if not cursor.lines and _is_array(start):
            return _array_rows(file, stream, cursor)
        return _line_rows(file, stream, cursor)

    def parts(self, file: CorpusFile, stream: BinaryIO, part_bytes: int) -> list[FilePart]:
        """See `Reader`. An array cannot be split."""
        if _is_array(streams.peek(stream, _START_BYTES)[0]):
            return []
        return line_parts(file, stream, part_bytes, lambda stream, limit: stream.tell())

    def first_row(self, file: CorpusFile, stream: BinaryIO) -> Mapping[str, object]:
        """See `Reader`."""
        for document in self.documents(file, stream, Cursor()):
            row = _parse_row(super().text(document), document.origin)
            return row if isinstance(row, dict) else {}
        return {}

    def text(self, document: RawDocument) -> str:
        """See `Reader`: the text fields of a row, joined by newlines."""
        row = _parse_row(super().text(document), document.origin)
        return _join_fields(row, document.origin, document.file.corpus.spec)


def _is_array(start: bytes) -> bool:
    return start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _line_rows(file: CorpusFile, stream: BinaryIO, cursor: Cursor) -> Iterator[RawDocument]:
    while line := stream.readline(MAX_ROW_BYTES + 1):
        ordinal, cursor.lines = cursor.lines, cursor.lines + 1
        position, fault = f"line {cursor.lines}", None
        if len(line) > MAX_ROW_BYTES:
            expected = f"a row of at most {MAX_ROW_BYTES} bytes"
            fault = InputError(f"{file.path}, {position}", expected, "a longer row")
            _skip_line(stream, line)
            line = line[:_KEPT_BYTES]
        if not ordinal:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield RawDocument(file, ordinal, position, line, fault=fault)


def _skip_line(stream: BinaryIO, line: bytes) -> None:
    """Moves a stream to the end of a line whose first bytes were already read."""
    while line and not line.endswith(b"\n"):
        line = stream.readline(MAX_ROW_BYTES)


def _array_rows(file: CorpusFile, stream: BinaryIO, cursor: Cursor) -> Iterator[RawDocument]:
    """Yields the elements of a JSON array without reading the whole array at once."""
    text = codecs.getreader("utf-8-sig")(stream)
    buffer, position, opening = "", 0, "["
    try:
        while True:
            try:
                begin, end = _next_element(buffer, position, opening)
            except json.JSONDecodeError as error:
                buffer, position = buffer[position:].lstrip(_SPACES), 0
                added = text.read(max(_BLOCK_CHARS, len(buffer)))
                if not added or len(buffer) > MAX_ROW_BYTES:
                    raise _not_json(f"{file.path}, row {cursor.documents}", error.msg) from error
                buffer += added
                continue
            except (ValueError, RecursionError) as error:
                raise _not_json(f"{file.path}, row {cursor.documents}", error) from error
            if begin == end:
                break
            ordinal = cursor.documents
            yield RawDocument(file, ordinal, f"row {ordinal}", buffer[begin:end].encode("utf-8"))
            cursor.documents += 1
            position, opening = end, ","
        if (buffer[end + 1 :] + text.read(_BLOCK_CHARS)).strip():
            raise InputError(file.path, "one JSON array", "text after its end")
    except UnicodeError as error:
        raise InputError(file.path, received=f"not UTF-8 ({error})") from error


def _next_element(buffer: str, position: int, opening: str) -> tuple[int, int]:
    """Returns the start and the end of an array's next element.

    Both are the position of the final "]" if there is no next element.

    Args:
        buffer: a part of the array.
        position: the end of the previous element.
        opening: the character before the element: "[" before the first, "," before the others.

    Raises:
        json.JSONDecodeError: the buffer ends within the element, or is not an array.
    """
    position = _NOT_SPACE.search(buffer, position).start()
    if buffer[position : position + 1] == "]" and opening == ",":
        return position, position
    if buffer[position : position + 1] != opening:
        raise json.JSONDecodeError(f"Expecting {opening!r}", buffer, position)
    begin = _NOT_SPACE.search(buffer, position + 1).start()
    if buffer[begin : begin + 1] == "]" and opening == "[":
        return begin, begin
    return begin, _DECODER.raw_decode(buffer, begin)[1]


def _not_json(origin: str, reason: object) -> InputError:
    return InputError(origin, received=f"not JSON ({reason})")


def _parse_row(text: str, origin: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _not_json(origin, f"{error.msg} at character {error.pos}") from error
    except (ValueError, RecursionError) as error:
        raise _not_json(origin, error) from error


def _join_fields(row: object, origin: str, spec: CorpusSpec) -> str:
    if not isinstance(row, dict):
        raise InputError(origin, "a JSON object", type(row).__name__)
    missing = [name for name in spec.text_fields if name not in row]
    if missing:
        raise fields.missing_fields_error(
            spec, origin, list(row), fields.text_names(row), is_row=True
        )
    values = {name: row[name] for name in spec.text_fields if row[name] is not None}
    for name, value in values.items():
        if not isinstance(value, str):
            texts = fields.long_text_names(row)
            raise fields.not_text_error(origin, name, type(value).__name__, texts, is_row=True)
    text = "\n".join(filter(None, values.values()))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # The escape \\ud800, for example, is valid JSON, but not a character.
        raise InputError(origin, "text", "an unpaired surrogate") from error
    return text
