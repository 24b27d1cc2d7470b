"""Text files.

Memory is bounded whatever a file holds: a document or line that is too long is cut into pieces.
"""

import codecs
import functools
import re
from collections.abc import Callable, Iterator
from typing import BinaryIO

from data_specs.corpora import CorpusSpec
from pipeline.base import seeding
from pipeline.corpora.documents import CorpusFile, Cursor, FilePart, RawDocument
from pipeline.corpora.readers.base import Reader, line_parts

# A longer document is cut at the end of a line; its pieces stay on one side of the split.
MAX_PIECE_BYTES = 4 * 2**20
# Characters that no reader sees: white space, and the marks that have no width.
_INVISIBLE = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u180e\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
    + "".join(map(chr, range(0x2000, 0x2010)))
)
_BLANK = re.compile(b"(?:%s)*+" % b"|".join(char.encode("utf-8") for char in _INVISIBLE))


class TextReader(Reader):
    """Text: runs of lines, cut into documents where the corpus's declaration says."""

    def documents(
        self, file: CorpusFile, stream: BinaryIO, cursor: Cursor
    ) -> Iterator[RawDocument]:
        """See `Reader`."""
        ends_before = _document_boundary(file.corpus.spec)
        lines: list[bytes] = []
        size = first_line = 0
        split_key: bytes | None = None
        for line in _bounded_lines(stream, is_begin=not cursor.lines):
            cursor.lines += 1
            blank = _is_blank(line)
            ends = ends_before(line, blank, len(lines))
            if lines and (ends or size + len(line) > MAX_PIECE_BYTES):
                content = b"".join(lines)
                if not ends and split_key is None:
                    split_key = seeding.digest("long document", content)
                place = f"line {first_line}"
                yield RawDocument(file, cursor.documents, place, content, split_key)
                cursor.documents += 1
                lines, size = [], 0
            if ends:
                split_key = None
            # Blank lines count as paragraphs within a document, never as its beginning.
            if blank and not lines:
                continue
            if not lines:
                first_line = cursor.lines
            lines.append(line)
            size += len(line)
        if lines:
            place, content = f"line {first_line}", b"".join(lines)
            yield RawDocument(file, cursor.documents, place, content, split_key)
            cursor.documents += 1

    def parts(self, file: CorpusFile, stream: BinaryIO, part_bytes: int) -> list[FilePart]:
        """See `Reader`; some documents end where only who reads all before them knows."""
        spec = file.corpus.spec
        if spec.documents == "blank_lines":
            return line_parts(file, stream, part_bytes, _behind_blank_line)
        if spec.documents == "starts":
            find = functools.partial(_at_start, _document_boundary(spec))
            return line_parts(file, stream, part_bytes, find)
        if spec.documents == "lines" and spec.lines_per_document == 1:
            return line_parts(file, stream, part_bytes, lambda stream, limit: stream.tell())
        return []


def _is_blank(line: bytes) -> bool:
    return _BLANK.fullmatch(line) is not None


def _short_lines(stream: BinaryIO, limit: int) -> Iterator[tuple[int, bytes]]:
    """Yields lines with their begins, up to a limit or the first that would be cut."""
    while (position := stream.tell()) < limit:
        line = stream.readline(MAX_PIECE_BYTES // 2)
        if not line.endswith(b"\n"):
            return
        yield position, line


def _behind_blank_line(stream: BinaryIO, limit: int) -> int | None:
    lines = _short_lines(stream, limit)
    return next((at + len(line) for at, line in lines if _is_blank(line)), None)


def _at_start(
    ends_before: Callable[[bytes, bool, int], bool], stream: BinaryIO, limit: int
) -> int | None:
    lines = _short_lines(stream, limit)
    return next((at for at, line in lines if ends_before(line, False, 1)), None)


def _document_boundary(spec: CorpusSpec) -> Callable[[bytes, bool, int], bool]:
    """Returns the test whether a document ends before a line.

    Its arguments are the line, whether that is blank, and the document's lines so far.
    """
    if spec.documents == "lines":
        return lambda line, blank, count: count >= spec.lines_per_document
    if spec.documents == "files":
        return lambda line, blank, count: False
    if spec.documents == "starts":
        start = re.compile(spec.document_start.encode("utf-8"))
        return lambda line, blank, count: start.match(line.rstrip(b"\r\n")) is not None
    return lambda line, blank, count: blank


def _bounded_lines(stream: BinaryIO, *, is_begin: bool) -> Iterator[bytes]:
    """Yields lines; one longer than a piece is cut, between characters."""
    held = stream.readline(MAX_PIECE_BYTES // 2)
    if is_begin:
        held = held.removeprefix(codecs.BOM_UTF8)
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
