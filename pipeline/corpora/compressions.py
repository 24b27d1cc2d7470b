"""Compression formats, in one table for all corpus formats.

Files are decompressed in bounded memory. A truncated file raises an error and never makes the
corpus shorter. A file whose compression ratio is far above that of text raises an error, too.
"""

import bz2
import dataclasses
import io
import lzma
import zlib
from collections.abc import Callable, Mapping
from typing import BinaryIO, Protocol

import zstandard

from pipeline.base.errors import InputError
from pipeline.corpora.documents import CorpusFile

# Typical ratios are 3 for text, 100 for a log of equal lines, and 1,000 or more for a file of
# zeros. Such a file would take hours to read and has no text.
_MAX_RATIO = 200
# The ratio is checked only above this size. A short run of equal lines is harmless.
_MIN_CHECKED_BYTES = 256 * 2**20
# Maximum number of bytes that the decompressor returns at a time.
_OUTPUT_BYTES = 2**18
# The largest dictionary of `xz -9` takes 64 MiB.
_LZMA_MEMORY = 256 * 2**20


class _Frame(Protocol):
    """The decompressor of one frame. A file may consist of several consecutive frames."""

    eof: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _ZlibFrame:
    """zlib's decompressor with the interface of the decompressors of bz2 and lzma."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail


class _ZstdFrame:
    """Zstandard's decompressor. It ignores `max_length`, so its input is limited instead."""

    needs_input = True

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor().decompressobj()

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zstd.decompress(data)

    @property
    def eof(self) -> bool:
        return self._zstd.eof

    @property
    def unused_data(self) -> bytes:
        return self._zstd.unused_data


@dataclasses.dataclass(frozen=True)
class Compression:
    """A compression format.

    Attributes:
        name: name for messages.
        magics: the possible first bytes of a file.
        suffixes: suffixes of file names, each with its replacement in the name of the content.
        frame: makes the decompressor of a frame.
        input_bytes: maximum number of bytes that a decompressor is given at a time.
    """

    name: str
    magics: tuple[bytes, ...]
    suffixes: Mapping[str, str]
    frame: Callable[[], _Frame]
    input_bytes: int = 2**17


COMPRESSIONS = (
    Compression("gzip", (b"\x1f\x8b\x08",), {".gz": "", ".tgz": ".tar"}, _ZlibFrame),
    Compression(
        "bzip2",
        # The header and the beginning of a block, or the end of a file without blocks. The header
        # alone is not enough, because a text may begin with BZh.
        tuple(
            b"BZh%d%s" % (level, mark)
            for level in range(1, 10)
            for mark in (b"1AY&SY", b"\x17rE8P\x90")
        ),
        {".bz2": "", ".tbz2": ".tar"},
        bz2.BZ2Decompressor,
    ),
    Compression(
        "xz",
        (b"\xfd7zXZ\x00",),
        {".xz": "", ".txz": ".tar"},
        lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY),
    ),
    Compression(
        "zstd",
        # The magic of a frame, and those of skippable frames. pzstd starts with a skippable one.
        (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + n]) + b"\x2a\x4d\x18" for n in range(16))),
        {".zst": "", ".zstd": "", ".tzst": ".tar"},
        _ZstdFrame,
        # At most 128 KiB are decompressed from 4 bytes.
        input_bytes=2**10,
    ),
)
_ERRORS = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


def split_name(name: str) -> tuple[str, Compression | None]:
    """Returns the name of a file's content, and the compression of the file's suffix."""
    for compression in COMPRESSIONS:
        for suffix, inner_suffix in compression.suffixes.items():
            if name.endswith(suffix):
                return name.removesuffix(suffix) + inner_suffix, compression
    return name, None


def find_compression(file: CorpusFile, start: bytes) -> Compression | None:
    """Returns the compression of a file whose first bytes are `start`; None without one.

    Raises:
        InputError: the file's name has the suffix of a compression, but its content is another.
    """
    for compression in COMPRESSIONS:
        if start.startswith(compression.magics):
            return compression
    _, expected = split_name(file.name)
    if expected is not None and start:
        received = f"not a valid {expected.name} file (wrong first bytes)"
        raise InputError(file.path, received=received)
    return None


class DecompressedStream(io.RawIOBase):
    """A stream of a compressed file's content. It is not seekable.

    Args:
        file: the file, for messages.
        compressed: the bytes of the file.
        compression: the compression.
    """

    def __init__(self, file: CorpusFile, compressed: BinaryIO, compression: Compression) -> None:
        super().__init__()
        self._file, self._compressed, self._compression = file, compressed, compression
        self._frame = compression.frame()
        self._is_in_frame = False
        self._input, self._output = b"", memoryview(b"")
        self._bytes_in = self._bytes_out = 0

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def readinto(self, buffer: memoryview) -> int:
        """See `io.RawIOBase`.

        Raises:
            InputError: the file is truncated or damaged, or its compression ratio is far above
                that of text.
        """
        while not self._output and self._decompress_more():
            pass
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size

    def _decompress_more(self) -> bool:
        """Decompresses the next input. Returns False at the end of the file."""
        if self._frame.eof:
            self._start_next_frame()
        if not self._input and (not self._is_in_frame or self._frame.needs_input):
            self._input = self._compressed.read(self._compression.input_bytes)
            if not self._input:
                if self._is_in_frame:
                    raise self._invalid("it is truncated: copy or download it again")
                return False
        self._bytes_in += len(self._input)
        try:
            output = self._frame.decompress(self._input, _OUTPUT_BYTES)
        except _ERRORS as error:
            raise self._invalid(error) from error
        self._is_in_frame, self._input = True, b""
        self._bytes_out += len(output)
        self._check_ratio(self._bytes_out)
        self._output = memoryview(output)
        return True

    def _start_next_frame(self) -> None:
        """Skips zero padding between frames, as tape drives write it, and starts the next frame."""
        self._input = self._frame.unused_data
        self._bytes_in -= len(self._input)
        while not self._input.strip(b"\0"):
            self._input = self._compressed.read(self._compression.input_bytes)
            if not self._input:
                break
        self._input = self._input.lstrip(b"\0")
        self._frame, self._is_in_frame = self._compression.frame(), False

    def _check_ratio(self, bytes_out: int) -> None:
        if bytes_out > max(_MIN_CHECKED_BYTES, _MAX_RATIO * self._bytes_in):
            expected = f"content of at most {_MAX_RATIO} times the compressed size"
            hint = "if that is right, decompress the file first"
            received = f"more than {bytes_out:,} bytes from {self._bytes_in:,}"
            raise InputError(self._file.path, expected, received, hint)

    def _invalid(self, reason: object) -> InputError:
        name = self._compression.name
        return InputError(self._file.path, received=f"not a valid {name} file ({reason})")
