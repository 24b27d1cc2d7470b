"""Documents out of files: text, JSON lines, JSON arrays; plain or gzipped.

The main process cuts the corpus into chunks of undecoded documents, which is
cheap; workers decode, parse and tokenise them. Memory is bounded whatever the
files look like: an endless text document is cut into pieces, an endless line of
JSON is refused.
"""

import codecs
import dataclasses
import glob
import gzip
import json
import os
import pathlib
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from pipeline import seeding
from pipeline.errors import InputError

# A text document longer than this is cut at the end of a line; its pieces stay
# on one side of the split.
MAX_PIECE_BYTES = 4 * 2**20
MAX_ROW_BYTES = 16 * 2**20
_MIN_CHUNK_BYTES = 2**19
_MAX_CHUNK_BYTES = 2**23
_BLOCK_CHARS = 2**20
# The space of Chinese typography, which indents paragraphs and fills blank lines.
_NOT_SPACE = re.compile(r"[^ \t\r\n]|$")
_WIDE_SPACE = "\u3000".encode()


@dataclasses.dataclass(frozen=True)
class CorpusFile:
    """A file of the corpus; `name` is its path below the folder that was given."""

    path: str
    name: str
    bytes: int

    @property
    def holds_rows(self) -> bool:
        """Whether it is JSON; other files are text."""
        return self.name.removesuffix(".gz").endswith((".json", ".jsonl"))


@dataclasses.dataclass(frozen=True)
class RawDocument:
    """A document as it stands in its file.

    Attributes:
        file: where it stands.
        ordinal: its number within the file, from 0.
        place: where it begins, for messages: `line 12` or `row 3`.
        content: text, or one JSON object; not yet decoded.
        split_key: what decides its split where that is not its content: for
            the pieces of one long document.
    """

    file: CorpusFile
    ordinal: int
    place: str
    content: bytes
    split_key: bytes | None = None


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Consecutive documents: the unit of work of the first half of stage 1a.

    Attributes:
        index: its number within the corpus.
        documents: its documents.
        bytes_read: how many bytes of the corpus on disk have been read.
    """

    index: int
    documents: tuple[RawDocument, ...]
    bytes_read: int

    def fingerprint(self) -> str:
        """Returns a digest of everything that the chunk's examples depend on."""
        parts = [
            part
            for document in self.documents
            for part in (
                document.file.name,
                document.ordinal,
                document.content,
                document.split_key or b"",
            )
        ]
        return seeding.digest(*parts).hex()


def find_files(pattern: str, *, flag: str) -> tuple[CorpusFile, ...]:
    """Returns the corpus's files, sorted by name.

    Args:
        pattern: a file, a directory (read with all below it, hidden files left
            out) or a glob.
        flag: the flag that gave it.

    Raises:
        InputError: nothing is there, or all of it is empty.
    """
    if pathlib.Path(pattern).is_dir():
        paths = [
            os.path.join(folder, name) for folder, _, names in os.walk(pattern) for name in names
        ]
        root = pattern
    else:
        # A name is no pattern, whatever characters are in it.
        is_file = pathlib.Path(pattern).is_file()
        matches = [pattern] if is_file else glob.glob(pattern, recursive=True)
        paths = [path for path in matches if pathlib.Path(path).is_file()]
        root = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    found = [
        CorpusFile(path, os.path.relpath(path, root or "."), os.path.getsize(path))
        for path in paths
    ]
    visible = [
        file for file in found if not any(p.startswith(".") for p in pathlib.Path(file.name).parts)
    ]
    if not visible:
        raise InputError(
            f"{flag}: expected a file, a folder or a glob of files, "
            f"received {pattern}: no file there"
        )
    if not any(file.bytes for file in visible):
        raise InputError(f"{flag}: expected text, received {pattern}: every file there is empty")
    return tuple(sorted(visible, key=lambda file: file.name))


def read_chunks(files: Sequence[CorpusFile]) -> Iterator[Chunk]:
    """Yields the corpus in chunks of about half a megabyte to 8 MB.

    Raises:
        InputError: a file cannot be read, or is not what its name says.
    """
    total = sum(file.bytes for file in files)
    chunk_bytes = min(_MAX_CHUNK_BYTES, max(_MIN_CHUNK_BYTES, total // 256))
    index = size = done = 0
    documents: list[RawDocument] = []
    for file in files:
        for document, bytes_read in _read_documents(file):
            documents.append(document)
            size += len(document.content)
            if size >= chunk_bytes:
                yield Chunk(index, tuple(documents), done + bytes_read)
                documents, size, index = [], 0, index + 1
        done += file.bytes
    yield Chunk(index, tuple(documents), done)


def _read_documents(file: CorpusFile) -> Iterator[tuple[RawDocument, int]]:
    try:
        with open(file.path, "rb") as raw:
            stream = gzip.GzipFile(fileobj=raw) if file.name.endswith(".gz") else raw
            for document in _documents_of(file, stream):
                yield document, raw.tell()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{file.path}: not a whole gzip file ({error})") from error
    except OSError as error:
        raise InputError(f"{file.path}: cannot be read: {error.strerror}") from error


def _documents_of(file: CorpusFile, stream: BinaryIO) -> Iterator[RawDocument]:
    if not file.holds_rows:
        return _text_documents(file, stream)
    start = stream.read(4096)
    stream.seek(0)
    if start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        return _array_rows(file, stream)
    return _line_rows(file, stream)


def _text_documents(file: CorpusFile, stream: BinaryIO) -> Iterator[RawDocument]:
    """Yields text documents: runs of lines between blank ones."""
    lines: list[bytes] = []
    size = ordinal = first_line = 0
    split_key: bytes | None = None
    for number, line in enumerate(_bounded_lines(stream), 1):
        blank = not line.replace(_WIDE_SPACE, b"").strip()
        if lines and (blank or size + len(line) > MAX_PIECE_BYTES):
            content = b"".join(lines)
            if not blank and split_key is None:
                split_key = seeding.digest("long document", content)
            yield RawDocument(file, ordinal, f"line {first_line}", content, split_key)
            lines, size, ordinal = [], 0, ordinal + 1
        if blank:
            split_key = None
            continue
        if not lines:
            first_line = number
        lines.append(line)
        size += len(line)
    if lines:
        yield RawDocument(file, ordinal, f"line {first_line}", b"".join(lines), split_key)


def _bounded_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yields lines; one longer than a piece comes in parts, cut between characters."""
    held = stream.readline(MAX_PIECE_BYTES // 2).removeprefix(codecs.BOM_UTF8)
    while held:
        rest = b""
        if not held.endswith(b"\n"):
            cut = len(held)
            # Bytes 10xxxxxx continue a character of UTF-8.
            while cut > max(1, len(held) - 4) and held[cut - 1] & 0xC0 == 0x80:
                cut -= 1
            if held[cut - 1] >= 0xC0 and len(held) >= MAX_PIECE_BYTES // 2:
                held, rest = held[: cut - 1], held[cut - 1 :]
        yield held
        held = rest + stream.readline(MAX_PIECE_BYTES // 2)


def _line_rows(file: CorpusFile, stream: BinaryIO) -> Iterator[RawDocument]:
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            raise InputError(
                f"{file.path}, line {number}: expected a row of at most {MAX_ROW_BYTES} bytes"
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
                        f"{file.path}, row {ordinal}: not JSON ({error.msg})"
                    ) from error
                buffer += more
                continue
            yield RawDocument(file, ordinal, f"row {ordinal}", buffer[begin:end].encode("utf-8"))
            position, ordinal, expected = end, ordinal + 1, ","
        if (buffer[position + 1 :] + text.read(_BLOCK_CHARS)).strip():
            raise InputError(f"{file.path}: expected one JSON array, received more after its end")
    except UnicodeError as error:
        raise InputError(f"{file.path}: not UTF-8 ({error})") from error


def document_text(document: RawDocument, text_fields: Sequence[str]) -> str:
    """Returns a document's text.

    Args:
        document: the document.
        text_fields: the fields of a row that are its text, joined by a newline;
            empty and null ones are left out.

    Raises:
        InputError: it is not UTF-8, not a JSON object, or lacks a field.
    """
    where = f"{document.file.path}, {document.place}"
    try:
        text = document.content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: expected UTF-8 text, received byte 0x{document.content[error.start]:02x} "
            "(convert the file first, for example with iconv -f gb18030 -t utf-8)"
        ) from error
    if not document.file.holds_rows:
        return text
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg} at character {error.pos})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error})") from error
    return _row_text(row, where, text_fields)


def _row_text(row: object, where: str, text_fields: Sequence[str]) -> str:
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, received {type(row).__name__}")
    values = []
    for name in text_fields:
        if name not in row:
            raise InputError(
                f"{where}: expected the fields {','.join(text_fields)} (--text_fields), "
                f"received {','.join(map(str, list(row)[:8])) or 'none'}"
            )
        value = row[name]
        if value is not None and not isinstance(value, str):
            raise InputError(
                f"{where}: expected text in the field {name}, received {type(value).__name__}"
            )
        values.append(value or "")
    text = "\n".join(value for value in values if value)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # An escape such as \\ud800 is valid JSON and no character.
        raise InputError(f"{where}: expected text, received half a surrogate pair") from error
    return text
