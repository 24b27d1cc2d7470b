"""Tar archives: each member is read like a file, in order. No member is extracted to disk."""

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
# Limit of the headers before a member, and of those for the whole archive. tarfile keeps them in
# memory.
_MAX_HEADER_BYTES = 2**20
_MEMBER_HEADER_TYPES = (
    *(tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_UNKNOWN_TYPE = b"?"
_ERRORS = (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError)


def is_tar(start: bytes) -> bool:
    """Returns whether a file that starts with `start` is a tar archive."""
    return start.startswith(_MAGIC, _MAGIC_OFFSET)


class _TooLargeHeaderError(Exception):
    """The headers before a member, or those for the whole archive, are too large."""


def _limited_info() -> type[tarfile.TarInfo]:
    """Returns a class for an archive's members that limits the size of headers."""
    sizes = {tarfile.XHDTYPE: 0, tarfile.XGLTYPE: 0}

    class LimitedInfo(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
            info = super().frombuf(buf, encoding, errors)
            kind = tarfile.XHDTYPE if info.type in _MEMBER_HEADER_TYPES else info.type
            if kind in sizes:
                sizes[kind] += max(0, info.size)
                if sizes[kind] > _MAX_HEADER_BYTES:
                    raise _TooLargeHeaderError(f"{sizes[kind]:,} bytes")
            else:
                sizes[tarfile.XHDTYPE] = 0
            if kind == tarfile.GNUTYPE_SPARSE:
                # A sparse file is refused because of its type. Its map may be long and is not
                # read.
                info.type = _UNKNOWN_TYPE
            return info

    return LimitedInfo


class _Member(io.RawIOBase):
    """A member of an archive. It is not seekable."""

    def __init__(self, file: CorpusFile, stream: BinaryIO) -> None:
        super().__init__()
        self._file, self._stream, self._bytes_left = file, stream, file.bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        try:
            content = self._stream.read(min(len(buffer), self._bytes_left))
        except tarfile.TarError as error:
            raise _invalid_archive(self._file, error) from error
        if not content and self._bytes_left and len(buffer):
            raise _invalid_archive(self._file, "it ends within this member")
        buffer[: len(content)] = content
        self._bytes_left -= len(content)
        return len(content)


def members(file: CorpusFile, stream: BinaryIO) -> Iterator[tuple[CorpusFile, BinaryIO]]:
    """Yields the regular files of an archive with their content. Hidden files are left out.

    Raises:
        InputError: the archive is truncated, or has a member that is not a regular file.
    """
    try:
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_limited_info()) as archive:
            while (info := archive.next()) is not None:
                _expect_plain_member(file, info)
                path, name = f"{file.path}, member {_shown(info)}", posixpath.normpath(info.name)
                if info.isreg() and "/." not in f"/{name}":
                    member = dataclasses.replace(
                        file, path=path, name=f"{file.name}/{name}", bytes=info.size
                    )
                    yield member, io.BufferedReader(_Member(member, archive.extractfile(info)))
                # tarfile keeps a list of all members. An archive may have millions of them.
                archive.members.clear()
    except InputError:
        raise
    except _TooLargeHeaderError as error:
        expected = f"at most {_MAX_HEADER_BYTES:,} bytes of headers before a member"
        hint = "create the archive without extended attributes (tar --format=ustar)"
        raise InputError(file.path, expected, str(error), hint) from error
    except _ERRORS as error:
        raise _invalid_archive(file, error) from error


def _shown(info: tarfile.TarInfo) -> str:
    return " ".join(info.name.encode("utf-8", "replace").decode("utf-8").split())[:200]


def _expect_plain_member(file: CorpusFile, info: tarfile.TarInfo) -> None:
    """Checks that a member is a file or folder with a relative path without `..`.

    Other members could do no harm, because no member is written to disk. An archive with
    such members was probably not made to be a corpus, so it is refused.
    """
    name = f"{file.path}, member {_shown(info)}"
    if info.name.startswith("/") or ".." in info.name.split("/"):
        raise InputError(name, "a relative path without ..", "an absolute or parent path")
    if not (info.isreg() or info.isdir()) or info.issparse():
        kind = "a link" if info.issym() or info.islnk() else "a device or another special file"
        hint = "create the archive from plain files (tar --dereference)"
        raise InputError(name, "a regular file", kind, hint)


def _invalid_archive(file: CorpusFile, reason: object) -> InputError:
    return InputError(file.path, received=f"not a valid tar archive ({reason})")
