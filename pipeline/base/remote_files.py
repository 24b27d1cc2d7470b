"""Objects in a bucket as paths, `gs://…` and `s3://…`, through fsspec.

A store makes an object appear whole or not at all, and has neither folders nor locks.
Nothing is renamed here. `memory://…` is a store within this process, for tests.

fsspec and the packages behind it are imported when a first object is looked at.
"""

import contextlib
import dataclasses
import errno
import fnmatch
import io
import logging
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from pipeline.base.errors import InputError

# What fsspec needs for each kind of store.
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "memory": "fsspec"}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://(.*)", re.DOTALL)
# What a first request asks for ahead: fsspec's own 50 MB are much for a worker.
_BLOCK_BYTES = 8 * 2**20
_BUFFER_BYTES = 2**18
# How stores name the version of an object.
_VERSIONS = ("ETag", "etag", "generation", "created")
# Packages whose errors say something of the store, of the network or of credentials.
_STORE_PACKAGES = frozenset(
    ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "requests", "s3fs", "urllib3")
)


def is_url(path: object) -> bool:
    """Returns whether a path names something that is not of this machine."""
    return isinstance(path, str) and _URL.fullmatch(path) is not None


def expect_local(path: str | None, flag: str) -> None:
    """Checks that a path, if there is one, is of this machine.

    Args:
        path: as the user gave it.
        flag: the flag that named it, for the error message.

    Raises:
        InputError: it is a URL.
    """
    if is_url(path):
        raise InputError(f"{flag}: expected a path of this machine, received {path}")


@dataclasses.dataclass(frozen=True)
class ObjectInfo:
    """What a store says of an object.

    Attributes:
        st_size: its bytes, named as in `os.stat_result`.
        version: changes when the object does.
    """

    st_size: int
    version: str


@dataclasses.dataclass(frozen=True, order=True)
class RemotePath:
    """An object, or a folder of objects: as much of `pathlib.Path` as is used here.

    What the store refuses is an OSError that names the object. An object that is not
    there is told apart from a store that does not answer, which fsspec's `isfile` and
    `exists` do not do: a directory that is not seen would be taken for a new one.

    Attributes:
        scheme: `gs` or `s3`.
        key: the bucket, and the name in it.
    """

    scheme: str
    key: pathlib.PurePosixPath

    @classmethod
    def parse(cls, url: str) -> "RemotePath":
        """Returns the path that a URL names.

        Raises:
            InputError: it is of another kind, or names no bucket.
        """
        scheme, key = _URL.fullmatch(url).groups()
        scheme = scheme.lower()
        if scheme not in _PACKAGES:
            raise InputError(
                f"{url}: expected a path of this machine, gs://… or s3://…, received {scheme}://"
            )
        key = pathlib.PurePosixPath(key.lstrip("/"))
        if not key.name or ".." in key.parts:
            raise InputError(f"{url}: expected {scheme}://BUCKET/NAME")
        return cls(scheme, key)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __truediv__(self, name: str) -> "RemotePath":
        return dataclasses.replace(self, key=self.key / name)

    @property
    def name(self) -> str:
        """See `pathlib.PurePath`."""
        return self.key.name

    @property
    def stem(self) -> str:
        """See `pathlib.PurePath`."""
        return self.key.stem

    @property
    def suffix(self) -> str:
        """See `pathlib.PurePath`."""
        return self.key.suffix

    @property
    def parts(self) -> tuple[str, ...]:
        """See `pathlib.PurePath`; the first is the bucket."""
        return self.key.parts

    @property
    def parent(self) -> "RemotePath":
        """See `pathlib.PurePath`; the parent of a bucket is the bucket."""
        parts = self.key.parts
        return self if len(parts) == 1 else dataclasses.replace(self, key=self.key.parent)

    def with_name(self, name: str) -> "RemotePath":
        """See `pathlib.PurePath`."""
        return dataclasses.replace(self, key=self.key.with_name(name))

    def resolve(self) -> "RemotePath":
        """Returns the path: it is absolute."""
        return self

    absolute = resolve

    def is_relative_to(self, other: object) -> bool:
        """Returns whether this is below another path, or the same."""
        same_store = isinstance(other, RemotePath) and other.scheme == self.scheme
        return same_store and self.key.is_relative_to(other.key)

    def relative_to(self, folder: "RemotePath") -> pathlib.PurePosixPath:
        """Returns the name of an object below a folder."""
        return self.key.relative_to(folder.key)

    def _info(self) -> dict[str, Any]:
        with _told(self):
            return _store(self.scheme).info(str(self))

    def _kind(self) -> str | None:
        try:
            return self._info()["type"]
        except FileNotFoundError:
            return None

    def is_file(self) -> bool:
        """Returns whether there is such an object."""
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """Returns whether there are objects below this name."""
        return self._kind() == "directory"

    def exists(self) -> bool:
        """Returns whether there is such an object, or one below this name."""
        return self._kind() is not None

    def stat(self) -> ObjectInfo:
        """Returns size and version of the object."""
        info = self._info()
        versions = [str(info[name]) for name in _VERSIONS if info.get(name)]
        return ObjectInfo(info["size"], " ".join(versions))

    def iterdir(self) -> Iterator["RemotePath"]:
        """Yields what is directly below this name, by name."""
        with _told(self):
            found = _store(self.scheme).ls(str(self), detail=False)
        names = {name.rstrip("/").rpartition("/")[2] for name in found}
        # Some tools leave an empty object that stands for the folder.
        marker = {self.name} if any(name.endswith("/") for name in found) else set()
        yield from (self / name for name in sorted(names - marker))

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """Yields the objects below this name that match, part by part, in no special order."""
        wanted = pathlib.PurePosixPath(pattern).parts
        for path in self.find() if self.is_dir() else ():
            parts = path.relative_to(self).parts
            if len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted)):
                yield path

    def find(self) -> dict["RemotePath", int]:
        """Returns objects with their sizes: this one, all below its name, or matches of a glob."""
        kind = self._kind()
        if kind == "file":
            return {self: self.stat().st_size}
        with _told(self):
            store = _store(self.scheme)
            found = (store.glob if kind is None else store.find)(str(self), detail=True)
        # A name that ends with a slash stands for a folder.
        return {
            RemotePath(self.scheme, pathlib.PurePosixPath(name.lstrip("/"))): info["size"]
            for name, info in found.items()
            if info["type"] == "file" and not name.endswith("/")
        }

    def open(self, mode: str = "rb") -> BinaryIO:
        """Opens the object to be read; it comes in blocks."""
        info = self.stat()
        with _told(self):
            file = _store(self.scheme).open(str(self), mode, block_size=_BLOCK_BYTES)
        return io.BufferedReader(_Reader(self, info, file), _BUFFER_BYTES)

    def read_bytes(self) -> bytes:
        """Returns the content."""
        with _told(self):
            return _store(self.scheme).cat_file(str(self))

    def read_text(self, encoding: str = "utf-8") -> str:
        """Returns the content as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """Writes the object whole."""
        with _told(self):
            _store(self.scheme).pipe_file(str(self), content)

    def upload(self, source: pathlib.Path) -> None:
        """Makes the object from a file of this machine; it appears when all bytes are there."""
        with _told(self):
            _store(self.scheme).put_file(str(source), str(self))

    def download(self, target: pathlib.Path) -> None:
        """Copies the object to a file of this machine.

        Raises:
            OSError: not all bytes came, or the object changed meanwhile.
        """
        before = self.stat()
        with _told(self):
            _store(self.scheme).get_file(str(self), str(target))
        received = target.stat().st_size
        if received != before.st_size or self.stat() != before:
            raise OSError(
                errno.EIO,
                f"expected {before.st_size} bytes that stay the same, received {received}",
                str(self),
            )

    def move(self, target: "RemotePath") -> None:
        """Copies the object within its store, where the copy appears whole, and deletes it."""
        with _told(target):
            _store(self.scheme).cp_file(str(self), str(target))
        self.unlink(missing_ok=True)

    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes the object."""
        try:
            with _told(self):
                _store(self.scheme).rm_file(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a folder is there when something is in it."""


class _Reader(io.RawIOBase):
    """An object that is being read, whose errors name it.

    Args:
        path: the object.
        info: what the store said of it before.
        file: as fsspec opened it.
    """

    def __init__(self, path: RemotePath, info: ObjectInfo, file: BinaryIO) -> None:
        super().__init__()
        self._path, self._info, self._file = path, info, file

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def seekable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def readinto(self, buffer: memoryview) -> int:
        """See `io.RawIOBase`."""
        with _told(self._path):
            content = self._file.read(len(buffer))
        # Blocks come one by one: those of a shorter object end early, and without an error.
        if len(buffer) and not content:
            is_whole = self._file.tell() >= self._info.st_size
            if not is_whole or self._path.stat() != self._info:
                raise OSError(errno.EIO, "it changed while it was read", str(self._path))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See `io.RawIOBase`."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """See `io.RawIOBase`."""
        return self._file.tell()

    def close(self) -> None:
        """See `io.RawIOBase`."""
        if not self.closed:
            self._file.close()
        super().close()


def _store(scheme: str) -> Any:
    """Returns fsspec's file system, which sees what other processes write meanwhile."""
    # It takes a moment, which nobody else should wait for.
    import fsspec

    # Objects of the kind that gcsfs appends to would be seen before they are whole.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # Some write whole tracebacks there of what they raise as well.
    logging.getLogger(_PACKAGES[scheme]).setLevel(logging.CRITICAL)
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        raise InputError(
            f"{scheme}://: expected the package {_PACKAGES[scheme]}, which is not installed; "
            "install it: pip install '.[remote]'"
        ) from error


@contextlib.contextmanager
def _told(path: RemotePath) -> Iterator[None]:
    """Makes whatever a store's package raises in the block an OSError that names the object."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        package = type(error).__module__.partition(".")[0]
        # Some packages raise plain ones for an answer or a setting that they do not understand.
        is_plain = isinstance(error, OSError | ValueError | RuntimeError)
        if not (is_plain or package in _STORE_PACKAGES) or _is_of_this_machine(error):
            raise
        number, reason = _describe(error)
        raise OSError(number, reason, str(path)) from error


def _is_of_this_machine(error: Exception) -> bool:
    """Returns whether an error is of the disk to which an object is copied."""
    return isinstance(error, OSError) and (
        error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT)
    )


def _describe(error: Exception) -> tuple[int, str]:
    """Returns number and text of the OSError that stands for an error."""
    said = re.sub(r"\[Errno -?\d+\] ", "", str(error))
    text = " ".join(said.split()) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        # Some say the name again, some that there is no such bucket.
        return errno.ENOENT, text if " " in text else "no such object"
    if isinstance(error, FileExistsError):
        return errno.EEXIST, text
    refused = ("credentials", "forbidden", "anonymous", "unauthorized")
    if isinstance(error, PermissionError) or any(word in text.lower() for word in refused):
        return errno.EACCES, f"no permission, or no credentials ({text})"
    return errno.EIO, f"the store does not answer as expected ({text})"
