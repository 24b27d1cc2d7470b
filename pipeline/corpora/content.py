"""The content of files: unpacked, in UTF-8, and not what no reader reads."""

import codecs
import contextlib
import io
from collections.abc import Iterator
from typing import BinaryIO

from pipeline.base.errors import InputError
from pipeline.corpora import compressions
from pipeline.corpora.documents import CorpusFile

# Enough for every signature, and for the first tag of a page.
START_BYTES = 4096
_BUFFER_BYTES = 2**18
# Longer marks first, as one of them begins with another.
_ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_UNPACK = "unpack it first"
_EXTRACT = "extract its text first, for example with trafilatura"
_SAVE = "save it as Parquet, JSON lines, CSV or text first"
# Files that no reader reads: first bytes, description, hint.
_REFUSED = (
    (b"WARC/", "a WARC file of web pages", _EXTRACT),
    (b"%PDF-", "a PDF file", _EXTRACT),
    (b"PK\x03\x04", "a ZIP archive or an Office document", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"\x04\x22\x4d\x18", "an LZ4 file", _UNPACK),
    (b"\x1f\x9d", "a file of compress (.Z)", _UNPACK),
    (b"LZIP", "an lzip file", _UNPACK),
    (b"\xff\x06\x00\x00sNaPpY", "a Snappy file", _UNPACK),
    (b"SQLite format 3\x00", "an SQLite database", _SAVE),
    (b"Obj\x01", "an Avro file", _SAVE),
    (b"ORC\x11", "an ORC file", _SAVE),
    (b"ORC\x0a", "an ORC file", _SAVE),
    (b"FEA1", "a Feather file of version 1", _SAVE),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _SAVE),
    (b"\x93NUMPY", "a NumPy file", _SAVE),
)
_PAGE_BEGINS = (b"<!doctype html", b"<html")


class _Rejoined(io.RawIOBase):
    """A stream that cannot go back, with the bytes that were read from it before the rest."""

    def __init__(self, start: bytes, stream: BinaryIO) -> None:
        super().__init__()
        self._start, self._stream = start, stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        if not self._start:
            return self._stream.readinto(buffer)
        size = min(len(buffer), len(self._start))
        buffer[:size], self._start = self._start[:size], self._start[size:]
        return size


class _Recoded(io.RawIOBase):
    """UTF-8 of a stream of UTF-16 or UTF-32; halves of surrogate pairs stay halves."""

    def __init__(self, file: CorpusFile, stream: BinaryIO, encoding: str) -> None:
        super().__init__()
        self._file, self._stream, self._encoding = file, stream, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        self._output = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        content = b" "
        while not self._output and content:
            content = self._stream.read(_BUFFER_BYTES)
            try:
                text = self._decoder.decode(content, final=not content)
            except UnicodeDecodeError as error:
                expected = f"{self._encoding.upper()}, as its byte order mark says"
                raise InputError(self._file.path, expected, error.reason) from error
            self._output = text.encode("utf-8", "surrogatepass")
        size = min(len(buffer), len(self._output))
        buffer[:size], self._output = self._output[:size], self._output[size:]
        return size


@contextlib.contextmanager
def opened(file: CorpusFile) -> Iterator[BinaryIO]:
    """Opens a file; errors in the block name it.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with file.path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise InputError(file.path, received=f"cannot be read: {error.strerror}") from error


def unpacked(file: CorpusFile, stream: BinaryIO) -> tuple[bytes, BinaryIO]:
    """Returns the first bytes of a file's content, and its content: unpacked, text in UTF-8.

    The stream itself comes back, at its begin, where nothing has to be done.

    Raises:
        InputError: no reader reads such a file.
    """
    start, stream = peek(stream)
    compression = compressions.find_compression(file, start)
    if compression is not None:
        raw = compressions.Unpacked(file, stream, compression)
        start, stream = peek(io.BufferedReader(raw, _BUFFER_BYTES))
    for mark, encoding in _ENCODINGS.items():
        if start.startswith(mark):
            recoded = io.BufferedReader(_Recoded(file, stream, encoding), _BUFFER_BYTES)
            start, stream = peek(recoded)
            break
    _expect_readable(file, start)
    return start, stream


def peek(stream: BinaryIO) -> tuple[bytes, BinaryIO]:
    """Returns the first bytes of a stream, and a stream that begins with them."""
    start = stream.read(START_BYTES)
    if stream.seekable():
        stream.seek(0)
        return start, stream
    return start, io.BufferedReader(_Rejoined(start, stream), _BUFFER_BYTES)


def _expect_readable(file: CorpusFile, start: bytes) -> None:
    """Refuses files that would be read as text and are none."""
    for magic, description, hint in _REFUSED:
        if start.startswith(magic):
            raise InputError(file.path, "a corpus", description, hint)
    beginning = start.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if beginning.startswith(_PAGE_BEGINS) and "html" not in file.corpus.spec.cleaning:
        hint = f"{_EXTRACT}, or take a declaration with the cleaning step html (`corpus_spec`)"
        raise InputError(file.path, "a corpus", "an HTML page", hint)
    low, high = start[0::2].count(0), start[1::2].count(0)
    # One of each two bytes of Latin letters is zero.
    if abs(low - high) > len(start) // 8 > 1 and not min(low, high):
        encoding = "utf-16le" if high else "utf-16be"
        hint = f"convert it first, for example with iconv -f {encoding} -t utf-8"
        received = f"{encoding.upper()} without a byte order mark"
        raise InputError(file.path, "UTF-8 text", received, hint)
