"""Files and folders on this machine or in a bucket. Files are written atomically.

`Location.parse` turns a user's text into a location. A path becomes a `LocalLocation`, which is
a `pathlib` path. `gs://…` and `s3://…` become a `BucketLocation`, which implements with
fsspec the members of `pathlib.Path` that this project uses. `memory://…` is a store in this
process, for tests.

A store writes objects atomically, but has neither folders nor locks. If two processes write the
same object, the last one wins. Jobs are deterministic, so both write the same bytes. fsspec and
its packages are imported when the first object is accessed.
"""

import contextlib
import dataclasses
import errno
import fcntl
import fnmatch
import glob
import hashlib
import io
import logging
import operator
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Collection, Iterator, Sequence
from typing import Any, BinaryIO

from pipeline.base import json_text
from pipeline.base.errors import InputError, InterruptedRunError
from pipeline.base.local_mirror import (
    LOCK,
    USE_LOCK,
    expect_within_limit,
    make_upload_folder,
    mirror_folder,
    reserve_space,
)

# The project's JSON files take a few kilobytes per shard. A larger file is not one of them.
MAX_JSON_BYTES = 256 * 2**20
# The package that fsspec needs for each kind of store.
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "memory": "fsspec", "hf": "huggingface_hub"}
# Schemes of a user's text. `hf` is left out: datasets of the hub are only read, as corpora.
_SCHEMES = ("gs", "s3", "memory")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://(.*)", re.DOTALL)
# Size of the first read-ahead request. fsspec's default of 50 MB is large for a worker.
_BLOCK_BYTES = 8 * 2**20
_BUFFER_BYTES = 2**18
# Keys under which stores return the version of an object.
_VERSION_KEYS = ("ETag", "etag", "generation", "created")
# Packages whose errors concern the store, the network or credentials.
_STORE_PACKAGES = frozenset(
    (
        *("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "httpcore", "httpx"),
        *("huggingface_hub", "requests", "s3fs", "urllib3"),
    )
)


class Location:
    """A file or folder: a `LocalLocation` or a `BucketLocation`.

    Both implement these members of `pathlib.Path`: `/`, `name`, `stem`, `suffix`, `parts`,
    `parent`, `with_name`, `relative_to`, `is_relative_to`, `resolve`, `absolute`, `is_file`,
    `is_dir`, `exists`, `stat`, `iterdir`, `glob`, `open`, `read_bytes`, `read_text`, `unlink`,
    `mkdir`.

    Attributes:
        setting: the setting whose value this is, for error messages; None for other locations.
    """

    setting: str | None = None

    @staticmethod
    def parse(path: "str | os.PathLike[str] | Location", setting: str | None = None) -> "Location":
        """Parses a path or a URL to a location.

        Args:
            path: a path on this machine, or the URL of a bucket.
            setting: the setting whose value `path` is.

        Raises:
            InputError: a URL whose scheme is neither gs:// nor s3://.
        """
        if isinstance(path, Location):
            return path
        if isinstance(path, str) and (match := _URL.fullmatch(path)):
            return BucketLocation.from_url(match[1].lower(), match[2], setting)
        location = LocalLocation(path)
        location.setting = setting
        return location

    @staticmethod
    def of_variable(name: str) -> "Location | None":
        """Returns the location that an environment variable names; None if it is not set.

        Raises:
            InputError: a URL whose scheme is neither gs:// nor s3://.
        """
        text = os.environ.get(name)
        return Location.parse(text) if text else None

    @property
    def is_local(self) -> bool:
        """Whether this location is on this machine."""
        return isinstance(self, LocalLocation)

    def is_inside(self, folder: "Location") -> bool:
        """Returns whether this is a folder or below it; symbolic links are resolved."""
        path, folder = self.resolve(), folder.resolve()
        return isinstance(folder, type(path)) and path.is_relative_to(folder)

    def temporary(self) -> "Location":
        """Returns the hidden path in the same folder under which this file is written."""
        return self.with_name(f".{self.name}.tmp")

    def unique_temporary(self) -> "Location":
        """Returns a hidden path in the same folder that no other process uses."""
        return self.with_name(f".{self.name}.{secrets.token_hex(4)}.tmp")

    def write_json(self, value: Any) -> None:
        """Writes a value as JSON, atomically."""
        self.write_whole(json_text.dump(value))

    def read_json(self) -> dict[str, Any]:
        """Reads a JSON object. The file may start with a byte order mark.

        Raises:
            InputError: the file is missing, too large, too deeply nested, or not a JSON object.
        """
        value = self.read_json_value()
        if not isinstance(value, dict):
            raise InputError(self, "a JSON object", type(value).__name__)
        return value

    def read_json_value(self) -> Any:
        """Reads JSON of any type.

        Raises:
            InputError: the file is missing, too large, too deeply nested, or not JSON.
        """
        if not self.is_file():
            raise InputError(self, received="no such file")
        content = self.read_limited(MAX_JSON_BYTES)
        try:
            return json_text.load(content)
        except ValueError as error:
            raise InputError(self, received=f"not JSON ({error})") from error

    def read_limited(self, max_bytes: int) -> bytes:
        """Reads a whole file of limited size.

        Raises:
            InputError: the file is larger than `max_bytes`.
        """
        size = self.stat().st_size
        if size > max_bytes:
            raise InputError(self, f"at most {max_bytes} bytes", size)
        return self.read_bytes()

    def sha256(self) -> str:
        """Returns the SHA-256 of the content in hexadecimal. An object is mirrored first."""
        with self.mirrored() as copy, open(copy, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def mirror(self) -> "LocalLocation":
        """Returns a file on this machine with the same content; see `mirror_all`."""
        return mirror_all([self])[0]

    @contextlib.contextmanager
    def mirrored(self) -> Iterator["LocalLocation"]:
        """Yields a file on this machine with the same content, which is kept during the block."""
        with hold_mirrors([self]) as copies:
            yield copies[0]

    def make_directory(self) -> "Location":
        """Makes this folder and its parents. Does nothing in a bucket, which has no folders.

        Raises:
            InputError: the folder cannot be made, or a file has that name.
        """
        try:
            self.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(self, received=f"cannot make the folder: {error.strerror}") from error
        return self

    def expect_empty(self) -> None:
        """Checks that this folder is missing or empty, except for temporaries of a killed run.

        Raises:
            InputError: the folder is not empty, or a file has that name.
        """
        if self.exists() and not self.is_dir():
            raise InputError(self, "a folder", "a file")
        names = (item.name for item in self.iterdir()) if self.is_dir() else ()
        present = sorted(name for name in names if not name.endswith(".tmp"))
        if present:
            received, hint = f"one that contains {present[0]!r}", "nothing is overwritten"
            raise InputError(self, "a new or an empty folder", received, hint)

    def expect_absent(self) -> None:
        """Checks that this file does not exist and that its folder does.

        Raises:
            InputError: a file or folder has that name, or the parent folder is missing.
        """
        if self.exists():
            raise InputError(self, "a new file", "one that exists", hint="nothing is overwritten")
        if self.is_local and not self.parent.is_dir():
            raise InputError(self, f"an existing folder {self.parent}", "none")

    def expect_local(self) -> "Location":
        """Returns this location if it is on this machine.

        Raises:
            InputError: it is in a bucket.
        """
        if not self.is_local:
            raise InputError(self, "a path on this machine", "one in a bucket")
        return self

    def remove_temporaries(self, names: Collection[str]) -> None:
        """Removes from this folder the temporaries that killed processes left for `names`."""
        for path in self.glob(".*.tmp"):
            name = path.name.removeprefix(".").removesuffix(".tmp")
            if name in names or name.rpartition(".")[0] in names:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def stage_directory(self, *, last: str) -> Iterator["LocalLocation"]:
        """Yields a hidden folder, whose files move into this one when the block succeeds.

        For a bucket, the hidden folder is on this machine and its files are uploaded. When the
        block raises, the hidden folder is removed with its contents.

        Args:
            last: name of the file that moves last. Readers ignore the other files until
                this file exists.

        Yields:
            the hidden folder, to be filled with files inside the block.

        Raises:
            InputError: a file of the same name has appeared in this folder in the meantime.
        """
        stage = self._make_stage()
        try:
            yield stage
            for file in sorted(stage.iterdir(), key=lambda file: (file.name == last, file.name)):
                _sync(file)
                final = self / file.name
                if final.exists():
                    raise InputError(
                        final,
                        received="this file appeared while the command was running",
                        hint="make sure that no other process writes to the folder, then re-run "
                        "the command",
                    )
                final.take(file)
            self.sync_directory()
        finally:
            shutil.rmtree(stage, ignore_errors=True)


class LocalLocation(Location, pathlib.PosixPath):
    """A file or folder on this machine."""

    def __truediv__(self, name: str | os.PathLike[str]) -> "LocalLocation":
        path = super().__truediv__(name)
        if self.setting is not None:
            path.setting = self.setting
        return path

    def find(self) -> dict["LocalLocation", int]:
        """Returns the size of each file: this one, all below this folder, or a glob's matches."""
        if self.is_dir():
            walk = os.walk(self)
            paths = [os.path.join(folder, name) for folder, _, names in walk for name in names]
            # Opening a pipe would block, so pipes are left out. A broken link is included,
            # because reading it raises an error that names the link.
            paths = [path for path in paths if os.path.isfile(path) or not os.path.exists(path)]
        else:
            # The name of an existing file is never a pattern, even if it contains `*`.
            matches = [self] if self.is_file() else glob.glob(str(self), recursive=True)
            paths = [path for path in matches if os.path.isfile(path)]
        sizes = ((path, os.path.getsize(path) if os.path.exists(path) else 0) for path in paths)
        return {LocalLocation(path): size for path, size in sizes}

    def sync_directory(self) -> None:
        """Waits until the names in this folder are on the disk."""
        _sync(self)

    @contextlib.contextmanager
    def atomic_write(
        self, *, temporary: "LocalLocation | None" = None
    ) -> Iterator["LocalLocation"]:
        """Yields a temporary path on this machine that becomes this file when the block succeeds.

        The content is on the disk before the file is renamed. After a crash at any moment, the
        file is either whole or unchanged. An object is uploaded at the end of the block. When
        the block raises, the temporary file is removed.

        Args:
            temporary: the path to write to; `temporary()` by default.

        Yields:
            the hidden path, to be written and closed inside the block.

        Raises:
            InterruptedRunError: another process is writing the same file.
        """
        temporary = self.temporary() if temporary is None else temporary
        lock = temporary.locked(f"{temporary}: another process is writing this file")
        with lock as descriptor, _removing_on_error(temporary, named=self):
            mode = os.fstat(descriptor).st_mode
            yield temporary
            # Some libraries replace the file by one that only its owner can read.
            temporary.chmod(mode)
            _sync(temporary)
            os.replace(temporary, self)
        self.parent.sync_directory()

    @contextlib.contextmanager
    def stage(self) -> Iterator["LocalLocation"]:
        """Yields a path to which the block writes a file. `publish` can rename it later.

        This location is one of `unique_temporary`. No other process uses it, so it needs no lock.
        Several processes, also on several machines, may stage the same file; one of them is
        published. When the block raises, the file is removed.

        Yields:
            this path, or for an object a path on this machine, to be written and closed inside
            the block.
        """
        with _removing_on_error(self, named=self):
            yield self
            _sync(self)

    def publish(self, path: "LocalLocation") -> None:
        """Renames this file, for example one that `stage` wrote, to its final path."""
        path.take(self)
        path.parent.sync_directory()

    def take(self, file: "LocalLocation") -> None:
        """Moves a file on this machine to this path."""
        os.replace(file, self)

    @contextlib.contextmanager
    def locked(self, busy_message: str | None = None) -> Iterator[int]:
        """Opens and locks this temporary file, which a killed process may have left.

        The lock prevents two processes from writing to the same file at once. The second
        process waits for the first, or fails with `busy_message` if it is given.

        Raises:
            InterruptedRunError: another process holds the lock, and `busy_message` is given.
        """
        try:
            descriptor = self.open_locked(fcntl.LOCK_EX | (fcntl.LOCK_NB if busy_message else 0))
        except BlockingIOError as error:
            hint = "wait until it ends"
            raise InterruptedRunError(None, received=busy_message, hint=hint) from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def open_locked(self, kind: int) -> int:
        """Opens and locks this file. A missing file is created.

        Args:
            kind: operation of `fcntl.flock`.

        Returns:
            a descriptor. Closing it releases the lock.

        Raises:
            BlockingIOError: another process holds the lock, and `kind` has LOCK_NB.
        """
        while True:
            descriptor = os.open(self, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, kind)
            except BaseException:
                os.close(descriptor)
                raise
            # The previous holder of the lock may have renamed or removed the file.
            if self._is_open_as(descriptor):
                return descriptor
            os.close(descriptor)

    def _is_open_as(self, descriptor: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(descriptor), self.stat())
        return False

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Locks this folder for this process during the block, or until the process is killed.

        The lock is on a hidden file in the folder, as not every system can lock a folder. A
        folder in a bucket cannot be locked.

        Raises:
            InterruptedRunError: another process holds the lock.
        """
        prefix = f"`{self.setting}`: " if self.setting else ""
        path = self / LOCK
        with path.locked(f"{prefix}another process is writing to {self}"):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def write_whole(self, content: bytes) -> None:
        """Writes a whole file atomically. Several processes may write the same file at once."""
        with self.atomic_write(temporary=self.unique_temporary()) as temporary:
            temporary.write_bytes(content)

    def write_new(self, content: bytes) -> bool:
        """Writes a whole file unless it exists.

        If several processes write the same new file at once, the first one wins. In a bucket,
        or on a file system without hard links, the last one wins.

        Returns:
            False if the file existed; it is not changed.
        """
        temporary = self.unique_temporary()
        with temporary.stage():
            temporary.write_bytes(content)
        try:
            os.link(temporary, self)
        except FileExistsError:
            return False
        except OSError:
            os.replace(temporary, self)
        finally:
            temporary.unlink(missing_ok=True)
        self.parent.sync_directory()
        return True

    def remove_mirror(self) -> None:
        """Removes the copy that `mirror` made of an object. A file on this machine is kept.

        Call it when no process on this machine reads the copy any more.

        Raises:
            OSError: there is no such object, or the store does not answer.
        """

    def scratch(self, name: str) -> "LocalLocation":
        """Returns the folder for scratch files of an unfinished run in this directory.

        For a directory in a bucket, it is a folder on this machine that depends only on the
        directory and `name`. A resumed run therefore finds its files again.

        Args:
            name: name of the folder, which is not made.
        """
        return self / name

    def _make_stage(self) -> "LocalLocation":
        stage = self / f".{secrets.token_hex(4)}.tmp"
        stage.mkdir()
        return stage


def _sync(path: pathlib.Path) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _removing_on_error(file: LocalLocation, *, named: LocalLocation) -> Iterator[None]:
    """Removes a file when the block that writes it raises.

    Adds the path of `named` to an `OSError` without a file name, for example that of a full disk.
    """
    try:
        yield
    except BaseException as error:
        file.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(named)
        raise


@dataclasses.dataclass(frozen=True)
class ObjectInfo:
    """Metadata of an object in a store.

    Attributes:
        st_size: size in bytes, named as in `os.stat_result`.
        version: a text that changes whenever the object changes.
    """

    st_size: int
    version: str


@dataclasses.dataclass(frozen=True, order=True)
class BucketLocation(Location):
    """An object or a folder of objects in a bucket.

    It has the members of `pathlib.Path` that this project uses.

    Errors of the store become an `OSError` that names the object. A missing object and a store
    that does not answer are distinct errors. fsspec's `isfile` and `exists` return False for
    both, so an existing directory could be taken for a new one.

    Attributes:
        scheme: `gs`, `s3`, or for a corpus `hf`.
        key: the bucket, followed by the object's name.
        setting: see `Location`.
    """

    scheme: str
    key: pathlib.PurePosixPath
    setting: str | None = dataclasses.field(default=None, compare=False)

    @classmethod
    def from_url(cls, scheme: str, key: str, setting: str | None) -> "BucketLocation":
        """Returns the location of `scheme://key`.

        Raises:
            InputError: the scheme is unknown, or the URL names no bucket.
        """
        url = f"{scheme}://{key}"
        if scheme not in _SCHEMES:
            raise InputError(url, "a path on this machine, gs://… or s3://…", f"{scheme}://")
        path = pathlib.PurePosixPath(key.lstrip("/"))
        if not path.name or ".." in path.parts:
            raise InputError(url, f"{scheme}://BUCKET/NAME")
        return cls(scheme, path, setting)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __truediv__(self, name: str) -> "BucketLocation":
        return dataclasses.replace(self, key=self.key / name)

    name, stem, suffix = (
        property(operator.attrgetter(f"key.{name}"), doc="See `pathlib.PurePath`.")
        for name in ("name", "stem", "suffix")
    )

    @property
    def parts(self) -> tuple[str, ...]:
        """See `pathlib.PurePath`."""
        return self.key.parts

    @property
    def parent(self) -> "BucketLocation":
        """See `pathlib.PurePath`; the parent of a bucket is the bucket."""
        return self if len(self.parts) == 1 else dataclasses.replace(self, key=self.key.parent)

    def with_name(self, name: str) -> "BucketLocation":
        """See `pathlib.PurePath`."""
        return dataclasses.replace(self, key=self.key.with_name(name))

    def resolve(self) -> "BucketLocation":
        """Returns this location, which is always absolute."""
        return self

    absolute = resolve

    def is_relative_to(self, other: object) -> bool:
        """Returns whether this is another location or below it."""
        same_store = isinstance(other, BucketLocation) and other.scheme == self.scheme
        return same_store and self.key.is_relative_to(other.key)

    def relative_to(self, folder: "BucketLocation") -> pathlib.PurePosixPath:
        """Returns this object's path relative to a folder."""
        return self.key.relative_to(folder.key)

    def _call_store(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Calls a method of fsspec's file system for this object, and returns its result."""
        with _store_errors(self):
            return getattr(_store(self.scheme), method)(str(self), *arguments, **options)

    def _kind(self) -> str | None:
        with contextlib.suppress(FileNotFoundError):
            return self._call_store("info")["type"]
        return None

    def is_file(self) -> bool:
        """Returns whether this object exists."""
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """Returns whether any object is below this name."""
        return self._kind() == "directory"

    def exists(self) -> bool:
        """Returns whether this object or any object below this name exists."""
        return self._kind() is not None

    def stat(self) -> ObjectInfo:
        """Returns the size and version of the object."""
        info = self._call_store("info")
        versions = [str(info[name]) for name in _VERSION_KEYS if info.get(name)]
        return ObjectInfo(info["size"], " ".join(versions))

    def iterdir(self) -> Iterator["BucketLocation"]:
        """Yields the objects and folders directly below this name, sorted by name."""
        keys = self._call_store("ls", detail=False)
        names = {key.rstrip("/").rpartition("/")[2] for key in keys}
        # Some tools leave an empty object that stands for the folder.
        marker = {self.name} if any(key.endswith("/") for key in keys) else set()
        yield from (self / name for name in sorted(names - marker))

    def glob(self, pattern: str) -> Iterator["BucketLocation"]:
        """Yields the objects below this name that match a pattern, in no particular order.

        Each component of the relative path must match the pattern's component.
        """
        patterns = pathlib.PurePosixPath(pattern).parts
        for path in self.find() if self.is_dir() else ():
            names = path.relative_to(self).parts
            if len(names) == len(patterns) and all(map(fnmatch.fnmatchcase, names, patterns)):
                yield path

    def find(self) -> dict["BucketLocation", int]:
        """Returns the size of each object: this one, all below it, or a glob's matches."""
        kind = self._kind()
        if kind == "file":
            return {self: self.stat().st_size}
        infos: dict[str, Any] = {}
        # Some stores raise an error if the folder of a pattern does not exist.
        with contextlib.suppress(FileNotFoundError):
            infos = self._call_store("glob" if kind is None else "find", detail=True)
        # A name that ends with a slash stands for a folder.
        return {
            BucketLocation(self.scheme, pathlib.PurePosixPath(name.lstrip("/"))): info["size"]
            for name, info in infos.items()
            if info["type"] == "file" and not name.endswith("/")
        }

    def open(self, mode: str = "rb") -> BinaryIO:
        """Opens the object for reading in blocks."""
        info, file = self.stat(), self._call_store("open", mode, block_size=_BLOCK_BYTES)
        return io.BufferedReader(_Reader(self, info, file), _BUFFER_BYTES)

    def read_bytes(self) -> bytes:
        """Returns the content."""
        return self._call_store("cat_file")

    def read_text(self, encoding: str = "utf-8") -> str:
        """Returns the content as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """Writes the whole object."""
        self._call_store("pipe_file", content)

    write_whole = write_bytes

    def write_new(self, content: bytes) -> bool:
        """See `LocalLocation.write_new`."""
        self.write_bytes(content)
        return True

    @contextlib.contextmanager
    def atomic_write(self) -> Iterator[LocalLocation]:
        """See `LocalLocation.atomic_write`."""
        temporary = self._make_stage() / self.name
        try:
            with _removing_on_error(temporary, named=temporary):
                yield temporary
                self.take(temporary)
        finally:
            shutil.rmtree(temporary.parent, ignore_errors=True)

    stage = atomic_write

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """See `LocalLocation.lock`."""
        yield

    def sync_directory(self) -> None:
        """Does nothing: an object's name appears together with its content."""

    def remove_mirror(self) -> None:
        """See `LocalLocation.remove_mirror`."""
        _MirroredObjects([self]).forget()

    def scratch(self, name: str) -> LocalLocation:
        """See `LocalLocation.scratch`."""
        digest = hashlib.sha256(str(self).encode("utf-8")).hexdigest()
        return LocalLocation(mirror_folder()) / f"scratch-{digest[:32]}-{name}"

    def _make_stage(self) -> LocalLocation:
        return LocalLocation(make_upload_folder())

    def take(self, source: pathlib.Path) -> None:
        """Uploads a file of this machine as this object, atomically."""
        with _store_errors(self):
            _store(self.scheme).put_file(str(source), str(self))

    def download(self, target: pathlib.Path) -> None:
        """Copies the object to a file on this machine.

        Raises:
            OSError: the copy is incomplete, or the object changed during the download.
        """
        before = self.stat()
        self._call_store("get_file", str(target))
        received = target.stat().st_size
        if received != before.st_size or self.stat() != before:
            reason = f"expected {before.st_size} unchanged bytes, received {received}"
            raise OSError(errno.EIO, reason, str(self))

    def publish(self, target: "BucketLocation") -> None:
        """Renames the object within its store: copies it atomically, and deletes the original."""
        with _store_errors(target):
            _store(self.scheme).cp_file(str(self), str(target))
        self.unlink(missing_ok=True)

    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes the object."""
        try:
            self._call_store("rm_file")
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a store has no folders."""


class _Reader(io.RawIOBase):
    """A file that fsspec opened. Errors name the object, and a truncated read raises one."""

    def __init__(self, path: BucketLocation, info: ObjectInfo, file: BinaryIO) -> None:
        super().__init__()
        self._path, self._info, self._file = path, info, file

    def readable(self) -> bool:
        return True

    seekable = readable

    def readinto(self, buffer: memoryview) -> int:
        with _store_errors(self._path):
            content = self._file.read(len(buffer))
        # fsspec reads block by block. If the object was replaced by a shorter one, the blocks
        # end early without an error.
        if len(buffer) and not content:
            is_whole = self._file.tell() >= self._info.st_size
            if not is_whole or self._path.stat() != self._info:
                raise OSError(errno.EIO, "it changed while it was read", str(self._path))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _store(scheme: str) -> Any:
    """Returns fsspec's file system, without a cache that would hide other processes' writes."""
    # The import is slow, and most commands use no bucket.
    import fsspec

    # gcsfs appends to objects of this experimental kind. They are visible before they are whole.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # Some packages also log the whole traceback of an error that they raise.
    logging.getLogger(_PACKAGES[scheme]).setLevel(logging.CRITICAL)
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        expected = f"the package {_PACKAGES[scheme]}, which is not installed"
        hint = "install it: pip install '.[remote]'"
        raise InputError(f"{scheme}://", expected, hint=hint) from error


@contextlib.contextmanager
def _store_errors(path: BucketLocation) -> Iterator[None]:
    """Converts the errors of a store's package to an `OSError` that names the object."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        package = type(error).__module__.partition(".")[0]
        # Some packages raise built-in errors for an unexpected response or setting.
        is_builtin = isinstance(error, OSError | ValueError | RuntimeError)
        if not (is_builtin or package in _STORE_PACKAGES) or _is_local_error(error):
            raise
        number, reason = _describe(error)
        raise OSError(number, reason, str(path)) from error


def _is_local_error(error: Exception) -> bool:
    """Returns whether an error comes from the local disk, and not from the store.

    Objects are copied to the local disk.
    """
    return isinstance(error, OSError) and (
        error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT)
    )


def _describe(error: Exception) -> tuple[int, str]:
    """Returns the error number and the text of the `OSError` that replaces an error."""
    message = re.sub(r"\[Errno -?\d+\] ", "", str(error))
    text = " ".join(message.split()) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        # A message of one word only repeats the object's name. A longer one states a reason, for
        # example a missing bucket.
        return errno.ENOENT, text if " " in text else "no such object"
    if isinstance(error, FileExistsError):
        return errno.EEXIST, text
    refusal_words = ("credentials", "forbidden", "anonymous", "unauthorized")
    if isinstance(error, PermissionError) or any(word in text.lower() for word in refusal_words):
        return errno.EACCES, f"no permission, or no credentials ({text})"
    return errno.EIO, f"the store does not answer as expected ({text})"


def mirror_all(locations: Sequence[Location]) -> tuple[LocalLocation, ...]:
    """Returns files on this machine with the names and the content of files or objects.

    Objects are copied once, into one folder. The folder's name depends on the objects' versions,
    so that a changed object is copied again. Copies are kept until this process ends. Files on
    this machine are returned as they are.

    Args:
        locations: all on this machine, or all objects of one folder.

    Raises:
        OSError: there is no such object, or it cannot be copied whole.
        InputError: the local mirror's limit is smaller than the objects.
    """
    if all(location.is_local for location in locations):
        return tuple(locations)
    mirror = _MirroredObjects(locations)
    if mirror.folder not in _held_by_process or not mirror.is_whole():
        descriptor = mirror.hold()
        previous = _held_by_process.pop(mirror.folder, None)
        _held_by_process[mirror.folder] = descriptor
        if previous is not None:
            os.close(previous)
    return mirror.copies


@contextlib.contextmanager
def hold_mirrors(locations: Sequence[Location]) -> Iterator[tuple[LocalLocation, ...]]:
    """Yields a file on this machine with the content of each location.

    Copies of objects are kept during the block. Later copies may replace them.

    Raises:
        OSError: there is no such object, or it cannot be copied whole.
        InputError: the local mirror's limit is smaller than the objects.
    """
    mirrors = {path: _MirroredObjects([path]) for path in locations if not path.is_local}
    if mirrors:
        total = sum(mirror.size for mirror in mirrors.values())
        expect_within_limit(total, f"{len(mirrors)} objects that are read together")
    with contextlib.ExitStack() as stack:
        for mirror in mirrors.values():
            stack.callback(os.close, mirror.hold())
        yield tuple(mirrors[path].copies[0] if path in mirrors else path for path in locations)


def prefetch_mirrors(locations: Sequence[Location]) -> contextlib.ExitStack:
    """Copies objects before they are used, until the local mirror has no more room.

    Returns:
        a context that keeps the copies until it is closed.
    """
    with contextlib.ExitStack() as stack:
        for location in locations:
            if not location.is_local:
                descriptor = _MirroredObjects([location]).hold(required=False)
                if descriptor is None:
                    break
                stack.callback(os.close, descriptor)
        return stack.pop_all()


# Descriptors of the locks of copies that are kept until this process ends, keyed by folder.
_held_by_process: dict[LocalLocation, int] = {}


class _MirroredObjects:
    """Copies of the current versions of objects, in one folder on this machine.

    Attributes:
        folder: the folder of the copies.
        copies: the files in the folder, one for each object.
        size: total size of the objects in bytes.
    """

    def __init__(self, objects: Sequence[BucketLocation]) -> None:
        digest = hashlib.sha256()
        infos = [path.stat() for path in objects]
        for path, info in zip(objects, infos, strict=True):
            digest.update(f"{path}\n{info.st_size} {info.version}\n".encode())
        self._objects = objects
        self.size = sum(info.st_size for info in infos)
        self.folder = LocalLocation(mirror_folder()) / digest.hexdigest()[:32]
        self.copies = tuple(self.folder / path.name for path in objects)

    def is_whole(self) -> bool:
        """Returns whether all copies exist."""
        return all(copy.is_file() for copy in self.copies)

    def hold(self, *, required: bool = True) -> int | None:
        """Copies the missing files, and locks the folder against removal.

        Args:
            required: whether to copy even if copies in use leave too little room.

        Returns:
            the descriptor of the lock; None if the mirror has no room for the copies.
        """
        descriptor = self._open_use_lock()
        try:
            if self.is_whole() or self._copy(required):
                os.utime(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _open_use_lock(self) -> int:
        while True:
            self.folder.mkdir(exist_ok=True)
            # Another process may remove the folder before it is locked.
            with contextlib.suppress(FileNotFoundError):
                return (self.folder / USE_LOCK).open_locked(fcntl.LOCK_SH)

    def _copy(self, required: bool) -> bool:
        """Copies the missing files. Other processes that need the same copies wait.

        Returns:
            whether all copies exist; False if the mirror has no room for them.
        """
        with (self.folder / LOCK).locked() as descriptor:
            if self.is_whole():
                return True
            expect_within_limit(self.size, ", ".join(map(str, self._objects)))
            if not reserve_space(self.folder, self.size, required=required):
                return False
            try:
                for path, copy in zip(self._objects, self.copies, strict=True):
                    if not copy.is_file():
                        with copy.atomic_write() as temporary:
                            path.download(temporary)
            finally:
                os.ftruncate(descriptor, 0)
        return True

    def forget(self) -> None:
        """Removes the copies."""
        if self.folder in _held_by_process:
            os.close(_held_by_process.pop(self.folder))
        shutil.rmtree(self.folder, ignore_errors=True)
