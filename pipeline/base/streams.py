"""Peeking at the first bytes of a binary stream that may not be seekable."""

import io
from typing import BinaryIO

_BUFFER_BYTES = 2**18


class _Rejoined(io.RawIOBase):
    """A stream that is not seekable, preceded by the bytes that were already read from it."""

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


def buffered(raw: io.RawIOBase) -> BinaryIO:
    """Returns a raw stream with a buffer."""
    return io.BufferedReader(raw, _BUFFER_BYTES)


def peek(stream: BinaryIO, size: int) -> tuple[bytes, BinaryIO]:
    """Returns the first bytes of a stream, and a stream that still begins with them."""
    start = stream.read(size)
    if stream.seekable():
        stream.seek(0)
        return start, stream
    return start, buffered(_Rejoined(start, stream))
