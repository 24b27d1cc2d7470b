"""Readers: the documents of one file, one after another, undecoded.

Memory is bounded whatever a file looks like: an endless text document is cut into
pieces, an endless row is refused.
"""

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from data_specs.corpora import CorpusSpec
from pipeline.base import seeding
from pipeline.base.errors import InputError
from pipeline.corpora.documents import CorpusFile, RawDocument

# A text document longer than this is cut at the end of a line; its pieces stay
# on one side of the split.
MAX_PIECE_BYTES = 4 * 2**20
MAX_ROW_BYTES = 16 * 2**20
_BLOCK_CHARS = 2**20
# The space of Chinese typography, which indents paragraphs and fills blank lines.
_NOT_SPACE = re.compile(r"[^ \t\r\n]|$")
_WIDE_SPACE = "\u3000".encode()


def read_documents(file: CorpusFile) -> Iterator[tuple[RawDocument, int]]:
    """Yields a file's documents, and how many of its bytes have been read.

    Raises:
        InputError: the file cannot be read, or is not what its name says.
    """
    if file.corpus.tfds_name is not None:
        # Imports TensorFlow, which files do not need.
        from pipeline.corpora import tfds_corpus

        yield from tfds_corpus.read_documents(file)
        return
    try:
        with file.path.open("rb") as raw:
            stream = gzip.GzipFile(fileobj=raw) if file.name.endswith(".gz") else raw
            for document in _documents_of(file, stream):
                yield document, raw.tell()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(file.path, received=f"not a whole gzip file ({error})") from error
    except OSError as error:
        raise InputError(file.path, received=f"cannot be read: {error.strerror}") from error


def _documents_of(file: CorpusFile, stream: BinaryIO) -> Iterator[RawDocument]:
    if not file.holds_rows:
        return _text_documents(file, stream)
    start = stream.read(4096)
    stream.seek(0)
    if start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        return _array_rows(file, stream)
    return _line_rows(file, stream)


def _document_boundary(spec: CorpusSpec) -> Callable[[bytes, bool, int], bool]:
    """Returns what says whether a document ends before a line.

    It is called with the line, whether that is blank, and how many lines the
    document has so far.
    """
    if spec.documents == "lines":
        return lambda line, blank, count: count >= spec.lines_per_document
    if spec.documents == "files":
        return lambda line, blank, count: False
    if spec.documents == "starts":
        start = re.compile(spec.document_start.encode("utf-8"))
        return lambda line, blank, count: start.match(line.rstrip(b"\r\n")) is not None
    return lambda line, blank, count: blank


def _text_documents(file: CorpusFile, stream: BinaryIO) -> Iterator[RawDocument]:
    """Yields text documents: runs of lines, cut where the corpus's declaration says."""
    ends_before = _document_boundary(file.corpus.spec)
    lines: list[bytes] = []
    size = ordinal = first_line = 0
    split_key: bytes | None = None
    for number, line in enumerate(_bounded_lines(stream), 1):
        blank = not line.replace(_WIDE_SPACE, b"").strip()
        ends = ends_before(line, blank, len(lines))
        if lines and (ends or size + len(line) > MAX_PIECE_BYTES):
            content = b"".join(lines)
            if not ends and split_key is None:
                split_key = seeding.digest("long document", content)
            yield RawDocument(file, ordinal, f"line {first_line}", content, split_key)
            lines, size, ordinal = [], 0, ordinal + 1
        if ends:
            split_key = None
        # Blank lines count as paragraphs within a document, never as its beginning.
        if blank and not lines:
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
