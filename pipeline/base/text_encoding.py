"""Text encodings: converts UTF-16 and UTF-32 to UTF-8, and guesses others for error messages."""

import codecs
import io
import re
from collections.abc import Callable
from typing import BinaryIO

from pipeline.base import streams
from pipeline.base.errors import InputError

# Number of bytes at the start of a file from which its encoding is detected.
_START_BYTES = 2**16
_BLOCK_BYTES = 2**16
# UTF-32 comes first, because its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Unpaired surrogates are kept, so that only the document that contains one is invalid.
_ERRORS = "surrogatepass"
# Common characters of text in UTF-16, and separators of which such text has at least one.
_USUAL = re.compile("[\t\n\r -~\u00a0-\u04ff\u2010-\u203f\u3000-\u30ff\u4e00-\u9fff\uff01-\uff5e]")
_SEPARATOR = re.compile("[\n\r \u3000-\u3002\uff0c]")
# Minimum share of common characters in a sample of text.
_MIN_USUAL_SHARE = 0.95
# Fewer non-ASCII bytes do not identify an encoding.
_MIN_HIGH_BYTES = 6

# A non-ASCII byte and its successor: a character of a double-byte encoding.
_PAIR = re.compile(rb"[\x80-\xff].", re.DOTALL)
_CYRILLIC = re.compile("[а-яё]")
_HIGH = re.compile(rb"[\x80-\xff]")
_HIGH_CHARACTER = re.compile("[^\0-\x7f]")


def utf8_stream(stream: BinaryIO, origin: object) -> BinaryIO:
    """Returns a stream of a text file's content in UTF-8 with `\\n` as line end.

    UTF-16 and UTF-32 with a byte order mark are converted, and so are files whose lines all end
    with `\\r`. Other bytes are not changed. UTF-8 is checked later, when documents are decoded.

    Args:
        stream: the file's bytes, from the beginning.
        origin: the file, for messages.

    Raises:
        InputError: the file is UTF-16 without a byte order mark.
    """
    start, stream = streams.peek(stream, _START_BYTES)
    mark, encoding = next(
        ((mark, name) for mark, name in _MARKS if start.startswith(mark)), (b"", None)
    )
    if encoding is None and (name := _unmarked_utf16(start)) is not None:
        received = f"{name} without a byte order mark"
        raise InputError(origin, "UTF-8 text", received, conversion_hint(name))
    decoded = (
        start if encoding is None else start.decode(encoding, "ignore").encode("utf-8", "ignore")
    )
    has_cr_ends = b"\r" in decoded and b"\n" not in decoded.rstrip(b"\r\n")
    if encoding is None and not has_cr_ends:
        return stream
    stream.read(len(mark))
    return streams.buffered(_Converted(stream, origin, encoding, has_cr_ends))


class _Converted(io.RawIOBase):
    """A stream that is converted to UTF-8 with `\\n` as line end."""

    def __init__(
        self, stream: BinaryIO, origin: object, encoding: str | None, has_cr_ends: bool
    ) -> None:
        super().__init__()
        self._stream, self._origin = stream, origin
        self._encoding, self._has_cr_ends = encoding, has_cr_ends
        self._unread = b""
        self._decoder = None
        if encoding is not None:
            self._decoder = codecs.getincrementaldecoder(encoding)(_ERRORS)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        block = b"x"
        while not self._unread and block:
            block = self._stream.read(_BLOCK_BYTES)
            self._unread = self._convert(block)
        size = min(len(buffer), len(self._unread))
        buffer[:size], self._unread = self._unread[:size], self._unread[size:]
        return size

    def _convert(self, block: bytes) -> bytes:
        if self._decoder is not None:
            try:
                block = self._decoder.decode(block, final=not block).encode("utf-8", _ERRORS)
            except UnicodeError as error:
                expected = f"{self._encoding} text, as in its byte order mark"
                raise InputError(self._origin, expected, error) from error
        return block.replace(b"\r", b"\n") if self._has_cr_ends else block


def _unmarked_utf16(start: bytes) -> str | None:
    """Returns the encoding's name if a file starts with UTF-16 without a mark; else None."""
    if b"\0" not in start and _is_utf8(start):
        return None
    for name in ("utf-16-le", "utf-16-be"):
        # The incremental decoder ignores an incomplete character at the end.
        text = codecs.getincrementaldecoder(name)("replace").decode(start)
        num_usual = len(_USUAL.findall(text))
        if _SEPARATOR.search(text) and num_usual >= _MIN_USUAL_SHARE * len(text):
            return name
    return None


def _is_utf8(start: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return True


def not_utf8_error(content: bytes, error: UnicodeDecodeError, origin: object) -> InputError:
    """Returns the error for text that is not UTF-8. It names the likely encoding, if any."""
    begin = max((content.rfind(bytes([byte]), 0, error.start) for byte in b"\n ,."), default=-1)
    name = guess_encoding(content[begin + 1 :][:_START_BYTES])
    received = f"byte 0x{content[error.start]:02x}"
    if name is None:
        hint = "repair the text there, or convert the file with iconv if it is in another encoding"
        return InputError(origin, "UTF-8 text", received, hint)
    return InputError(origin, "UTF-8 text", f"{received}, likely {name}", conversion_hint(name))


def conversion_hint(name: str) -> str:
    """Returns the hint to convert a file from an encoding to UTF-8."""
    return f"convert the file, for example with iconv -f {name} -t utf-8"


def guess_encoding(content: bytes) -> str | None:
    """Returns the likely encoding of text that is not UTF-8; None if it is unclear.

    Example:
        For `"fermé".encode("latin-1")`, it is `windows-1252`.
    """
    repaired, num_high = content.decode("utf-8", "replace"), len(_HIGH.findall(content))
    if 4 * repaired.count("\ufffd") <= len(_HIGH_CHARACTER.findall(repaired)):
        # Most of the text decodes, so it is UTF-8 with some damaged bytes.
        return None
    # In Western European text, letters with an accent are rare among ASCII letters.
    if 3 * num_high <= len(content) - num_high:
        return "windows-1252" if _decodes(content, "windows-1252") else None
    for name, measure_share, min_share in _GUESSES if num_high >= _MIN_HIGH_BYTES else ():
        if measure_share(content) >= min_share and _decodes(content, name):
            return name
    return None


def _share_of_pairs(pattern: bytes) -> Callable[[bytes], float]:
    """Returns a function that measures the share of a text's byte pairs that match."""
    expected = re.compile(pattern)

    def measure(content: bytes) -> float:
        pairs = _PAIR.findall(content)
        return sum(expected.match(pair) is not None for pair in pairs) / max(1, len(pairs))

    return measure


def _share_of_cyrillic(encoding: str) -> Callable[[bytes], float]:
    """Returns a function that measures lowercase Cyrillic letters per non-ASCII byte."""

    def measure(content: bytes) -> float:
        letters = _CYRILLIC.findall(content.decode(encoding, "replace"))
        return len(letters) / len(_HIGH.findall(content))

    return measure


# Encodings, each with the share of non-ASCII bytes that it explains, and the minimum share. For
# Chinese encodings the patterns match the common half of the characters, and punctuation. For
# the others they match the letters of the language.
_GUESSES: tuple[tuple[str, Callable[[bytes], float], float], ...] = (
    ("windows-1251", _share_of_cyrillic("windows-1251"), 0.85),
    ("koi8-r", _share_of_cyrillic("koi8-r"), 0.85),
    ("cp866", _share_of_cyrillic("cp866"), 0.85),
    ("euc-jp", _share_of_pairs(rb"[\xa4\xa5][\xa1-\xf6]"), 0.3),
    ("euc-kr", _share_of_pairs(rb"[\xb0-\xc8][\xa1-\xfe]"), 0.9),
    ("gb18030", _share_of_pairs(rb"[\xb0-\xd7\xa1\xa3][\xa1-\xfe]"), 0.6),
    ("shift_jis", _share_of_pairs(rb"\x82[\x9f-\xf1]|\x83[\x40-\x96]"), 0.3),
    ("big5", _share_of_pairs(rb"[\xa4-\xc6\xa1][\x40-\x7e\xa1-\xfe]"), 0.6),
)


def _decodes(content: bytes, encoding: str) -> bool:
    try:
        # The incremental decoder ignores an incomplete character at the end.
        codecs.getincrementaldecoder(encoding)().decode(content)
    except UnicodeDecodeError:
        return False
    return True
