"""Reader of text files.

A document or line that is too long is divided, so that memory is bounded for every file.
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

# A longer document is divided into several at line ends. They all belong to the same split.
MAX_DOCUMENT_BYTES = 4 * 2**20
# Invisible characters: white space, and marks without width.
_INVISIBLE = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u180e\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
    + "".join(map(chr, range(0x2000, 0x2010)))
)
# First bytes of these characters. A line that begins with another byte is not blank, which is fast
# to check.
_INVISIBLE_STARTS = frozenset(char.encode("utf-8")[0] for char in _INVISIBLE)
_BLANK = re.compile(b"(?:%s)*+" % b"|".join(char.encode("utf-8") for char in _INVISIBLE))


class TextReader(Reader):
    """Reader of text. The corpus's declaration states how documents are separated."""

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
            if lines and (ends or size + len(line) > MAX_DOCUMENT_BYTES):
                content = b"".join(lines)
                if not ends and split_key is None:
                    split_key = seeding.digest("long document", content)
                position = f"line {first_line}"
                yield RawDocument(file, cursor.documents, position, content, split_key)
                cursor.documents += 1
                lines, size = [], 0
            if ends:
                split_key = None
            # Blank lines separate paragraphs within a document. They never begin one.
            if blank and not lines:
                continue
            if not lines:
                first_line = cursor.lines
            lines.append(line)
            size += len(line)
        if lines:
            position, content = f"line {first_line}", b"".join(lines)
            yield RawDocument(file, cursor.documents, position, content, split_key)
            cursor.documents += 1

    def parts(self, file: CorpusFile, stream: BinaryIO, part_bytes: int) -> list[FilePart]:
        """See `Reader`. A file is not split if its documents have several lines each.

        Their ends are only known to a process that counts all lines before them.
        """
        spec = file.corpus.spec
        if spec.documents == "blank_lines":
            return line_parts(file, stream, part_bytes, _after_blank_line)
        if spec.documents == "starts":
            find_border = functools.partial(_at_start, _document_boundary(spec))
            return line_parts(file, stream, part_bytes, find_border)
        if spec.documents == "lines" and spec.lines_per_document == 1:
            return line_parts(file, stream, part_bytes, lambda stream, limit: stream.tell())
        return []


def _is_blank(line: bytes) -> bool:
    return line[0] in _INVISIBLE_STARTS and _BLANK.fullmatch(line) is not None


def _short_lines(stream: BinaryIO, limit: int) -> Iterator[tuple[int, bytes]]:
    """Yields the offset and the content of lines, up to a limit or the first long line."""
    while (position := stream.tell()) < limit:
        line = stream.readline(MAX_DOCUMENT_BYTES // 2)
        if not line.endswith(b"\n"):
            return
        yield position, line


def _after_blank_line(stream: BinaryIO, limit: int) -> int | None:
    """Returns the offset after the next blank line; None if there is none below the limit."""
    lines = _short_lines(stream, limit)
    return next((offset + len(line) for offset, line in lines if _is_blank(line)), None)


def _at_start(
    ends_before: Callable[[bytes, bool, int], bool], stream: BinaryIO, limit: int
) -> int | None:
    """Returns the offset of the next line that starts a document; None if none below the limit."""
    lines = _short_lines(stream, limit)
    return next((offset for offset, line in lines if ends_before(line, False, 1)), None)


def _document_boundary(spec: CorpusSpec) -> Callable[[bytes, bool, int], bool]:
    """Returns a function that decides whether a document ends before a line.

    Its arguments are the line, whether the line is blank, and the number of lines of the document
    so far.
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
    """Yields lines. A line of more than half the size of a document is cut between characters.

    Args:
        stream: the lines.
        is_begin: whether the stream is at the beginning of the file, where a byte order mark is
            removed.
    """
    line = stream.readline(MAX_DOCUMENT_BYTES // 2)
    if is_begin:
        line = line.removeprefix(codecs.BOM_UTF8)
    while line:
        rest = b""
        if not line.endswith(b"\n"):
            cut = len(line)
            # Bytes 10xxxxxx continue a character of UTF-8.
            while cut > max(1, len(line) - 4) and line[cut - 1] & 0xC0 == 0x80:
                cut -= 1
            if line[cut - 1] >= 0xC0 and len(line) >= MAX_DOCUMENT_BYTES // 2:
                line, rest = line[: cut - 1], line[cut - 1 :]
        yield line
        line = rest + stream.readline(MAX_DOCUMENT_BYTES // 2)
