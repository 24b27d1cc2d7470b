"""JSON lines and JSON arrays: each row is a document, its text fields joined by newlines.

Memory is bounded whatever a file holds: a row that is too long is refused.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from data_specs.corpora import CorpusSpec
from pipeline.base.errors import InputError
from pipeline.corpora.documents import CorpusFile, RawDocument
from pipeline.corpora.readers.base import FileReader, decode

MAX_ROW_BYTES = 16 * 2**20
_BLOCK_CHARS = 2**20
_NOT_SPACE = re.compile(r"[^ \t\r\n]|$")


class RowsReader(FileReader):
    """JSON lines, or one JSON array where the file begins with `[`."""

    suffixes = (".json", ".jsonl")

    def documents(self, file: CorpusFile, stream: BinaryIO) -> Iterator[RawDocument]:
        """See `FileReader`."""
        start = stream.read(4096)
        stream.seek(0)
        if start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            return _array_rows(file, stream)
        return _line_rows(file, stream)

    def text(self, document: RawDocument) -> str:
        """See `Reader`."""
        return row_text(document)


def row_text(document: RawDocument) -> str:
    """Returns the text of a row: its fields joined by newlines.

    Raises:
        InputError: it is not a JSON object, or lacks a field.
    """
    row = _parse_row(decode(document), document.origin)
    return _join_fields(row, document.origin, document.file.corpus.spec)


def _line_rows(file: CorpusFile, stream: BinaryIO) -> Iterator[RawDocument]:
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            raise InputError(
                f"{file.path}, line {number}", f"a row of at most {MAX_ROW_BYTES} bytes"
            )
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield RawDocument(file, number - 1, f"line {number}", line)


def _array_rows(file: CorpusFile, stream: BinaryIO) -> Iterator[RawDocument]:
    """Yields the elements of a JSON array without reading it whole."""
    text = codecs.getreader("utf-8-sig")(stream)
    decoder = json.JSONDecoder()
    buffer, position, ordinal = "", 0, 0
    expected = "["
    try:
        while True:
            position = _NOT_SPACE.search(buffer, position).start()
            try:
                # Before each element stands "[" or ","; after the last one "]".
                if buffer[position : position + 1] == "]" and expected == ",":
                    break
                if buffer[position : position + 1] != expected:
                    raise json.JSONDecodeError(f"Expecting {expected!r}", buffer, position)
                begin = _NOT_SPACE.search(buffer, position + 1).start()
                if buffer[begin : begin + 1] == "]" and expected == "[":
                    position = begin
                    break
                _, end = decoder.raw_decode(buffer, begin)
            except json.JSONDecodeError as error:
                buffer, position = buffer[position:], 0
                more = text.read(max(_BLOCK_CHARS, len(buffer)))
                if not more or len(buffer) > MAX_ROW_BYTES:
                    raise InputError(
                        f"{file.path}, row {ordinal}", received=f"not JSON ({error.msg})"
                    ) from error
                buffer += more
                continue
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{file.path}, row {ordinal}", received=f"not JSON ({error})"
                ) from error
            yield RawDocument(file, ordinal, f"row {ordinal}", buffer[begin:end].encode("utf-8"))
            position, ordinal, expected = end, ordinal + 1, ","
        if (buffer[position + 1 :] + text.read(_BLOCK_CHARS)).strip():
            raise InputError(file.path, "one JSON array", "more after its end")
    except UnicodeError as error:
        raise InputError(file.path, received=f"not UTF-8 ({error})") from error


def _parse_row(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            where, received=f"not JSON ({error.msg} at character {error.pos})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(where, received=f"not JSON ({error})") from error


def _join_fields(row: object, where: str, spec: CorpusSpec) -> str:
    text_fields = spec.text_fields
    if not isinstance(row, dict):
        raise InputError(where, "a JSON object", type(row).__name__)
    source = f"`corpus_spec`={spec.name}" if spec.name else "`text_fields`"
    values = []
    for name in text_fields:
        if name not in row:
            keys = ",".join(" ".join(key.split())[:40] for key in list(row)[:8])
            raise InputError(
                where, f"the fields {','.join(text_fields)} ({source})", keys or "none"
            )
        value = row[name]
        if value is not None and not isinstance(value, str):
            raise InputError(where, f"text in the field {name}", type(value).__name__)
        values.append(value or "")
    text = "\n".join(value for value in values if value)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # An escape such as \\ud800 is valid JSON and no character.
        raise InputError(where, "text", "half a surrogate pair") from error
    return text
