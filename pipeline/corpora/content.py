"""Opens and decompresses the files of a corpus, and refuses formats that no reader supports."""

import codecs
import contextlib
from collections.abc import Iterator
from typing import BinaryIO

from pipeline.base import streams
from pipeline.base.errors import InputError
from pipeline.corpora import compressions
from pipeline.corpora.documents import CorpusFile

# Enough for every signature and for the first tag of an HTML page.
START_BYTES = 4096
_UNPACK = "unpack it first"
_EXTRACT = "extract its text first, for example with trafilatura"
_LEAVE_OUT = "leave it out with a glob, for example 'corpus/*.txt'"
_SAVE = "save it as Parquet, JSON lines, CSV or text first"
# Formats that no reader supports: first bytes, description, hint.
_UNSUPPORTED = (
    (b"WARC/0.", "a WARC file of web pages", _EXTRACT),
    (b"WARC/1.", "a WARC file of web pages", _EXTRACT),
    (b"%PDF-", "a PDF file", _EXTRACT),
    (b"\x89PNG\r\n\x1a\n", "a PNG image", _LEAVE_OUT),
    (b"\xff\xd8\xff", "a JPEG image", _LEAVE_OUT),
    (b"GIF87a", "a GIF image", _LEAVE_OUT),
    (b"GIF89a", "a GIF image", _LEAVE_OUT),
    (b"PK\x03\x04", "a ZIP archive or an Office document", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"\x04\x22\x4d\x18", "an LZ4 file", _UNPACK),
    (b"\x1f\x9d", "a file of compress (.Z)", _UNPACK),
    (b"LZIP\x01", "an lzip file", _UNPACK),
    (b"\xff\x06\x00\x00sNaPpY", "a Snappy file", _UNPACK),
    (b"SQLite format 3\x00", "an SQLite database", _SAVE),
    (b"Obj\x01", "an Avro file", _SAVE),
    (b"ORC\x11", "an ORC file", _SAVE),
    (b"FEA1\0\0\0\0", "a Feather file of version 1", _SAVE),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _SAVE),
    (b"\x93NUMPY", "a NumPy file", _SAVE),
)
_PAGE_BEGINS = (b"<!doctype html", b"<html")


@contextlib.contextmanager
def open_file(file: CorpusFile) -> Iterator[BinaryIO]:
    """Opens a file. Errors in the block name it.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with file.path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise InputError(file.path, received=f"cannot be read: {error.strerror}") from error


def decompress(file: CorpusFile, stream: BinaryIO) -> tuple[bytes, BinaryIO]:
    """Returns the first bytes of a file's decompressed content, and a stream of all of it.

    The stream of an uncompressed file is `stream` itself, at its beginning.

    Raises:
        InputError: no reader supports the format.
    """
    start, stream = streams.peek(stream, START_BYTES)
    compression = compressions.find_compression(file, start)
    if compression is not None:
        raw = compressions.DecompressedStream(file, stream, compression)
        start, stream = streams.peek(streams.buffered(raw), START_BYTES)
    _expect_readable(file, start)
    return start, stream


def _expect_readable(file: CorpusFile, start: bytes) -> None:
    """Refuses unsupported formats, which would otherwise be read as text."""
    for magic, description, hint in _UNSUPPORTED:
        if start.startswith(magic):
            raise InputError(file.path, "a corpus", description, hint)
    beginning = start.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if beginning.startswith(_PAGE_BEGINS) and "html" not in file.corpus.spec.cleaning:
        hint = f"{_EXTRACT}, or set `corpus_spec` to a declaration with the cleaning step html"
        raise InputError(file.path, "a corpus", "an HTML page", hint)
