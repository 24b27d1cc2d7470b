"""Compressions: one table, which all formats share.

Files are unpacked in bounded memory. A truncated file is an error, never a shorter corpus, and so
is a file that unpacks to far more than text can.
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

# Text shrinks to a third, a log of equal lines to a hundredth; a file of zeros to a thousandth or
# less, which takes hours to read and holds nothing.
_MAX_RATIO = 200
# A short run of equal lines is no bomb: the ratio counts from here on.
_UNSUSPECTED_BYTES = 256 * 2**20
# What the decompressor returns at a time.
_OUTPUT_BYTES = 2**18
# The largest dictionary of `xz -9` takes 64 MiB.
_LZMA_MEMORY = 256 * 2**20


class _Frame(Protocol):
    """The decompressor of one frame: a file may be several, one behind the other."""

    eof: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _ZlibFrame:
    """zlib's decompressor with the interface of those of bz2 and lzma."""

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
    """Zstandard's decompressor, which bounds nothing: its input is cut small instead."""

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
    """A compression.

    Attributes:
        name: for messages.
        magics: the first bytes of its files, in any of these forms.
        suffixes: endings of names, and what stands there instead in the name of the content.
        frame: makes the decompressor of a frame.
        input_bytes: what a decompressor is given at a time.
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
        # The begin of a block, and the end of a file without one; a text may begin with BZh.
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
        # Of a frame, and of one to be skipped, with which pzstd begins.
        (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + n]) + b"\x2a\x4d\x18" for n in range(16))),
        {".zst": "", ".zstd": "", ".tzst": ".tar"},
        _ZstdFrame,
        # 128 KiB come out of 4 bytes at most.
        input_bytes=2**10,
    ),
)
_ERRORS = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


def split_name(name: str) -> tuple[str, Compression | None]:
    """Returns the name of what a file holds, and the compression that the file's name tells."""
    for compression in COMPRESSIONS:
        for suffix, inner in compression.suffixes.items():
            if name.endswith(suffix):
                return name.removesuffix(suffix) + inner, compression
    return name, None


def find_compression(file: CorpusFile, start: bytes) -> Compression | None:
    """Returns the compression of a file whose first bytes are `start`.

    Raises:
        InputError: its name tells another compression than its content.
    """
    for compression in COMPRESSIONS:
        if start.startswith(compression.magics):
            return compression
    _, named = split_name(file.name)
    if named is not None and start:
        raise InputError(file.path, received=f"not a whole {named.name} file (its first bytes)")
    return None


class Unpacked(io.RawIOBase):
    """The content of a compressed file, from its begin to its end.

    Args:
        file: the file, for messages.
        packed: its bytes.
        compression: the compression.
    """

    def __init__(self, file: CorpusFile, packed: BinaryIO, compression: Compression) -> None:
        super().__init__()
        self._file, self._packed, self._compression = file, packed, compression
        self._frame = compression.frame()
        self._is_begun = False
        self._input, self._output = b"", memoryview(b"")
        self._bytes_in = self._bytes_out = 0

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def readinto(self, buffer: memoryview) -> int:
        """See `io.RawIOBase`.

        Raises:
            InputError: the file is truncated or damaged, or unpacks to far more than text.
        """
        while not self._output and self._advance():
            pass
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size

    def _advance(self) -> bool:
        """Unpacks some more; returns whether there is more."""
        if self._frame.eof:
            self._next_frame()
        if not self._input and (not self._is_begun or self._frame.needs_input):
            self._input = self._packed.read(self._compression.input_bytes)
            if not self._input:
                if self._is_begun:
                    raise self._not_whole("it ends in the middle: copy or download it again")
                return False
        self._bytes_in += len(self._input)
        try:
            output = self._frame.decompress(self._input, _OUTPUT_BYTES)
        except _ERRORS as error:
            raise self._not_whole(error) from error
        self._is_begun, self._input = True, b""
        self._bytes_out += len(output)
        self._expect_text(self._bytes_out)
        self._output = memoryview(output)
        return True

    def _next_frame(self) -> None:
        """Goes on behind the end of a frame, over the zeros that fill the block of a tape."""
        self._input = self._frame.unused_data
        self._bytes_in -= len(self._input)
        while not self._input.strip(b"\0"):
            self._input = self._packed.read(self._compression.input_bytes)
            if not self._input:
                break
        self._input = self._input.lstrip(b"\0")
        self._frame, self._is_begun = self._compression.frame(), False

    def _expect_text(self, unpacked: int) -> None:
        if unpacked > max(_UNSUSPECTED_BYTES, _MAX_RATIO * self._bytes_in):
            expected = f"at most {_MAX_RATIO} times its size when it is unpacked"
            hint = "if that is right, unpack the file first"
            received = f"more than {unpacked:,} bytes out of {self._bytes_in:,}"
            raise InputError(self._file.path, expected, received, hint)

    def _not_whole(self, reason: object) -> InputError:
        name = self._compression.name
        return InputError(self._file.path, received=f"not a whole {name} file ({reason})")
