"""Text files.

Memory is bounded whatever a file holds: a document or line that is too long is cut into pieces.
"""

import codecs
import re
from collections.abc import Callable, Iterator
from typing import BinaryIO

from data_specs.corpora import CorpusSpec
from pipeline.base import seeding
from pipeline.corpora.documents import CorpusFile, RawDocument
from pipeline.corpora.readers.base import Reader

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

    def documents(self, file: CorpusFile, stream: BinaryIO) -> Iterator[RawDocument]:
        ends_before = _document_boundary(file.corpus.spec)
        lines: list[bytes] = []
        size = ordinal = first_line = 0
        split_key: bytes | None = None
        for number, line in enumerate(_bounded_lines(stream), 1):
            blank = _BLANK.fullmatch(line) is not None
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


def _bounded_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yields lines; one longer than a piece is cut, between characters."""
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
