"""Encodings of text: UTF-16 and UTF-32 are read, others are named in errors."""

import codecs
import io
import re
from collections.abc import Callable
from typing import BinaryIO

from pipeline.base import streams
from pipeline.base.errors import InputError

# Bytes of a file that decide what it is read as.
_START_BYTES = 2**16
_BLOCK_BYTES = 2**16
# UTF-32's little-endian mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Decoded: halves of surrogate pairs stay, so that only the document that has one is invalid.
_ERRORS = "surrogatepass"
# The characters that text in UTF-16 consists of, and one of those that such text always has.
_USUAL = re.compile("[\t\n\r -~\u00a0-\u04ff\u2010-\u203f\u3000-\u30ff\u4e00-\u9fff\uff01-\uff5e]")
_SEPARATOR = re.compile("[\n\r \u3000-\u3002\uff0c]")
# The least share of a sample's characters that are usual in text.
_LEAST_USUAL = 0.95
# Fewer bytes beyond ASCII tell no encoding.
_FEWEST_BYTES = 6

# A byte beyond ASCII with the next one, as double-byte encodings have characters.
_PAIR = re.compile(rb"[\x80-\xff].", re.DOTALL)
_CYRILLIC = re.compile("[а-яё]")
_HIGH = re.compile(rb"[\x80-\xff]")
_HIGH_CHARACTER = re.compile("[^\0-\x7f]")


def utf8_stream(stream: BinaryIO, origin: object) -> BinaryIO:
    """Returns a file's bytes as UTF-8 with `\\n` at the ends of lines, if they are text.

    UTF-16 and UTF-32 with a byte order mark are converted, and so are files whose lines all end
    with `\\r`. Other bytes stay as they are: UTF-8 is checked where documents are decoded.

    Args:
        stream: at its begin.
        origin: the file, for messages.

    Raises:
        InputError: the file is UTF-16 without a mark.
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
    has_old_ends = b"\r" in decoded and b"\n" not in decoded.rstrip(b"\r\n")
    if encoding is None and not has_old_ends:
        return stream
    stream.read(len(mark))
    return streams.buffered(_Converted(stream, origin, encoding, has_old_ends))


class _Converted(io.RawIOBase):
    """A stream of bytes as UTF-8 with `\\n` at the ends of lines."""

    def __init__(
        self, stream: BinaryIO, origin: object, encoding: str | None, has_old_ends: bool
    ) -> None:
        super().__init__()
        self._stream, self._origin = stream, origin
        self._encoding, self._has_old_ends = encoding, has_old_ends
        self._left = b""
        self._decoder = None
        if encoding is not None:
            self._decoder = codecs.getincrementaldecoder(encoding)(_ERRORS)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        block = b"x"
        while not self._left and block:
            block = self._stream.read(_BLOCK_BYTES)
            self._left = self._convert(block)
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size

    def _convert(self, block: bytes) -> bytes:
        if self._decoder is not None:
            try:
                block = self._decoder.decode(block, final=not block).encode("utf-8", _ERRORS)
            except UnicodeError as error:
                expected = f"{self._encoding} as its first bytes say"
                raise InputError(self._origin, expected, error) from error
        return block.replace(b"\r", b"\n") if self._has_old_ends else block


def _unmarked_utf16(start: bytes) -> str | None:
    """Returns the byte order of the first bytes of a file in UTF-16 without a mark."""
    if b"\0" not in start and _is_utf8(start):
        return None
    for name in ("utf-16-le", "utf-16-be"):
        # A character may be cut off at the end.
        text = codecs.getincrementaldecoder(name)("replace").decode(start)
        usual = len(_USUAL.findall(text))
        if _SEPARATOR.search(text) and usual >= _LEAST_USUAL * len(text):
            return name
    return None


def _is_utf8(start: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return True


def not_utf8(content: bytes, error: UnicodeDecodeError, origin: object) -> InputError:
    """Returns the error of text that is not UTF-8, which names the encoding where it is clear."""
    begin = max((content.rfind(bytes([byte]), 0, error.start) for byte in b"\n ,."), default=-1)
    name = guess_encoding(content[begin + 1 :][:_START_BYTES])
    received = f"byte 0x{content[error.start]:02x}"
    if name is None:
        hint = "repair the text there, or convert the file with iconv if it is in another encoding"
        return InputError(origin, "UTF-8 text", received, hint)
    return InputError(origin, "UTF-8 text", f"{received}, likely {name}", conversion_hint(name))


def conversion_hint(name: str) -> str:
    """Returns what to do with a file in an encoding."""
    return f"convert the file, for example with iconv -f {name} -t utf-8"


def guess_encoding(content: bytes) -> str | None:
    """Returns the likely encoding of text that is not UTF-8; None where it is not clear.

    Example: `"fermé".encode("latin-1")` is `windows-1252`.
    """
    repaired, num_high = content.decode("utf-8", "replace"), len(_HIGH.findall(content))
    if 4 * repaired.count("\ufffd") <= len(_HIGH_CHARACTER.findall(repaired)):
        # UTF-8 with some damage.
        return None
    # A letter with an accent stands among letters of ASCII.
    if 3 * num_high <= len(content) - num_high:
        return "windows-1252" if _decodes(content, "windows-1252") else None
    for name, share, least in _GUESSES if num_high >= _FEWEST_BYTES else ():
        if share(content) >= least and _decodes(content, name):
            return name
    return None


def _share_of_pairs(pattern: bytes) -> Callable[[bytes], float]:
    """Returns a measure: the share of a text's pairs of bytes that match."""
    expected = re.compile(pattern)

    def share(content: bytes) -> float:
        pairs = _PAIR.findall(content)
        return sum(expected.match(pair) is not None for pair in pairs) / max(1, len(pairs))

    return share


def _share_of_cyrillic(encoding: str) -> Callable[[bytes], float]:
    """Returns a measure: the share of small Cyrillic letters among bytes beyond ASCII."""

    def share(content: bytes) -> float:
        letters = _CYRILLIC.findall(content.decode(encoding, "replace"))
        return len(letters) / len(_HIGH.findall(content))

    return share


# Encodings with a measure of how well each explains bytes beyond ASCII, and its least value.
# Chinese ones: the common half of their characters, and punctuation. Others: their own letters.
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
        # A cut may have parted a character.
        codecs.getincrementaldecoder(encoding)().decode(content)
    except UnicodeDecodeError:
        return False
    return True
