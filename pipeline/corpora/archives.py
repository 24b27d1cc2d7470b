"""Tar archives: members are read as files are, one after another; nothing is extracted."""

import dataclasses
import io
import posixpath
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from pipeline.base.errors import InputError
from pipeline.corpora.documents import CorpusFile

SUFFIX = ".tar"
_MAGIC, _MAGIC_OFFSET = b"ustar", 257
# Of what stands before a member, or in all for the archive; tarfile holds it in memory.
_MAX_HEADER_BYTES = 2**20
_FOR_MEMBER = (
    *(tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_UNKNOWN_TYPE = b"?"
_ERRORS = (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError)


def is_tar(start: bytes) -> bool:
    """Returns whether a content that begins with `start` is a tar archive."""
    return start.startswith(_MAGIC, _MAGIC_OFFSET)


class _TooLargeHeaderError(Exception):
    """The headers before a member, or those for the whole archive, have too many bytes."""


def _limited_info() -> type[tarfile.TarInfo]:
    """Returns the class of an archive's members that reads no more headers than allowed."""
    sizes = {tarfile.XHDTYPE: 0, tarfile.XGLTYPE: 0}

    class LimitedInfo(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
            info = super().frombuf(buf, encoding, errors)
            kind = tarfile.XHDTYPE if info.type in _FOR_MEMBER else info.type
            if kind in sizes:
                sizes[kind] += max(0, info.size)
                if sizes[kind] > _MAX_HEADER_BYTES:
                    raise _TooLargeHeaderError(f"{sizes[kind]:,} bytes")
            else:
                sizes[tarfile.XHDTYPE] = 0
            if kind == tarfile.GNUTYPE_SPARSE:
                # Its own map, which may be long, is not read: it is refused by its type.
                info.type = _UNKNOWN_TYPE
            return info

    return LimitedInfo


class _Member(io.RawIOBase):
    """A member of an archive, which is read forward only."""

    def __init__(self, file: CorpusFile, stream: BinaryIO) -> None:
        super().__init__()
        self._file, self._stream, self._left = file, stream, file.bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        try:
            content = self._stream.read(min(len(buffer), self._left))
        except tarfile.TarError as error:
            raise _not_whole(self._file, error) from error
        if not content and self._left and len(buffer):
            raise _not_whole(self._file, "it ends within this member")
        buffer[: len(content)] = content
        self._left -= len(content)
        return len(content)


def members(file: CorpusFile, stream: BinaryIO) -> Iterator[tuple[CorpusFile, BinaryIO]]:
    """Yields the regular files of an archive, and their bytes; hidden ones are left out.

    Raises:
        InputError: the archive is truncated, or has a member that is no file of a corpus.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_limited_info()) as archive:
            while (info := archive.next()) is not None:
                _expect_harmless(file, info)
                path, name = f"{file.path}, member {_shown(info)}", posixpath.normpath(info.name)
                if info.isreg() and "/." not in f"/{name}":
                    member = dataclasses.replace(
                        file, path=path, name=f"{file.name}/{name}", bytes=info.size
                    )
                    yield member, io.BufferedReader(_Member(member, archive.extractfile(info)))
                # tarfile remembers all members, of which an archive may have millions.
                archive.members.clear()
    except InputError:
        raise
    except _TooLargeHeaderError as error:
        expected = f"at most {_MAX_HEADER_BYTES:,} bytes of headers before a member"
        hint = "make the archive without extended attributes (tar --format=ustar)"
        raise InputError(file.path, expected, str(error), hint) from error
    except _ERRORS as error:
        raise _not_whole(file, error) from error


def _shown(info: tarfile.TarInfo) -> str:
    return " ".join(info.name.encode("utf-8", "replace").decode("utf-8").split())[:200]


def _expect_harmless(file: CorpusFile, info: tarfile.TarInfo) -> None:
    """Refuses what has no place in a corpus: nothing is written, but it was not made for one."""
    name = f"{file.path}, member {_shown(info)}"
    if info.name.startswith("/") or ".." in info.name.split("/"):
        raise InputError(name, "a path below the archive", "an absolute or parent path")
    if not (info.isreg() or info.isdir()) or info.issparse():
        kind = "a link" if info.issym() or info.islnk() else "a device or another special file"
        hint = "make the archive of plain files (tar --dereference)"
        raise InputError(name, "a regular file", kind, hint)


def _not_whole(file: CorpusFile, reason: object) -> InputError:
    return InputError(file.path, received=f"not a whole tar archive ({reason})")
