"""Locations: files and folders on this machine or in a bucket; a file appears whole or not at all.

`Location.parse` turns a user's text into a `LocalLocation`, which is a `pathlib` path, or for
`gs://…` and `s3://…` into a `BucketLocation` with as much of the same interface, through
fsspec. `memory://…` is a store within this process, for tests.

A store makes an object appear whole or not at all, and has neither folders nor locks. Of two
processes that write the same object the last wins, and as jobs are deterministic both write the
same bytes. fsspec and the packages behind it are imported when a first object is looked at.
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
    reserve_room,
)

# A JSON file of ours is a few kilobytes a shard; a larger one is not ours.
MAX_JSON_BYTES = 256 * 2**20
# What fsspec needs for each kind of store.
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "memory": "fsspec", "hf": "huggingface_hub"}
# Those that a user's text may name: datasets of the hub are only read, and only as corpora.
_SCHEMES = ("gs", "s3", "memory")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://(.*)", re.DOTALL)
# What a first request asks for ahead: fsspec's own 50 MB are much for a worker.
_BLOCK_BYTES = 8 * 2**20
_BUFFER_BYTES = 2**18
# How stores name the version of an object.
_VERSIONS = ("ETag", "etag", "generation", "created")
# Packages whose errors say something of the store, of the network or of credentials.
_STORE_PACKAGES = frozenset(
    (
        *("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "httpcore", "httpx"),
        *("huggingface_hub", "requests", "s3fs", "urllib3"),
    )
)


class Location:
    """A file or folder: a `LocalLocation` or a `BucketLocation`.

    Both have these of `pathlib.Path`: `/`, `name`, `stem`, `suffix`, `parts`, `parent`,
    `with_name`, `relative_to`, `is_relative_to`, `resolve`, `absolute`, `is_file`, `is_dir`,
    `exists`, `stat`, `iterdir`, `glob`, `open`, `read_bytes`, `read_text`, `unlink`, `mkdir`.

    Attributes:
        setting: the setting whose value this is, which errors name; None for others.
    """

    setting: str | None = None

    @staticmethod
    def parse(path: "str | os.PathLike[str] | Location", setting: str | None = None) -> "Location":
        """Returns the location that a user's text names.

        Args:
            path: a path of this machine, or a URL of a bucket.
            setting: the setting whose value it is.

        Raises:
            InputError: a URL of another kind than gs:// and s3://.
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
        """Returns the location that an environment variable names; None where it is not set.

        Raises:
            InputError: a URL of another kind than gs:// and s3://.
        """
        text = os.environ.get(name)
        return Location.parse(text) if text else None

    @property
    def is_local(self) -> bool:
        """Whether this is of this machine."""
        return isinstance(self, LocalLocation)

    def is_inside(self, folder: "Location") -> bool:
        """Returns whether this is below a folder, or the folder; symbolic links are followed."""
        path, folder = self.resolve(), folder.resolve()
        return isinstance(folder, type(path)) and path.is_relative_to(folder)

    def temporary(self) -> "Location":
        """Returns the hidden name beside this one under which it is written."""
        return self.with_name(f".{self.name}.tmp")

    def own_temporary(self) -> "Location":
        """Returns a hidden name beside this one that no other process has."""
        return self.with_name(f".{self.name}.{secrets.token_hex(4)}.tmp")

    def write_json(self, value: Any) -> None:
        """Writes a value as JSON, atomically."""
        self.write_whole(json_text.dump(value))

    def read_json(self) -> dict[str, Any]:
        """Reads a JSON object, with or without a byte order mark before it.

        Raises:
            InputError: the file is missing, too large, too deeply nested, or no JSON object.
        """
        value = self.read_json_value()
        if not isinstance(value, dict):
            raise InputError(self, "a JSON object", type(value).__name__)
        return value

    def read_json_value(self) -> Any:
        """Reads JSON of any type.

        Raises:
            InputError: the file is missing, too large, too deeply nested, or no JSON.
        """
        if not self.is_file():
            raise InputError(self, received="no such file")
        content = self.read_limited(MAX_JSON_BYTES)
        try:
            return json_text.load(content)
        except ValueError as error:
            raise InputError(self, received=f"not JSON ({error})") from error

    def read_limited(self, most: int) -> bytes:
        """Reads a whole file of at most `most` bytes.

        Raises:
            InputError: it is larger.
        """
        size = self.stat().st_size
        if size > most:
            raise InputError(self, f"at most {most} bytes", size)
        return self.read_bytes()

    def sha256(self) -> str:
        """Returns the SHA-256 of the bytes in hexadecimal; of an object's, of its mirror."""
        with self.mirrored() as copy, open(copy, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def mirror(self) -> "LocalLocation":
        """Returns a file of this machine with this content; see `mirror_all`."""
        return mirror_all([self])[0]

    @contextlib.contextmanager
    def mirrored(self) -> Iterator["LocalLocation"]:
        """Yields a file of this machine with this content, which stays while the block runs."""
        with hold_mirrors([self]) as copies:
            yield copies[0]

    def make_directory(self) -> "Location":
        """Makes this folder and its parents; buckets have none, and need none.

        Raises:
            InputError: it cannot be made, or a file has that name.
        """
        try:
            self.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(self, received=f"cannot make the folder: {error.strerror}") from error
        return self

    def expect_empty(self) -> None:
        """Checks that this folder is not there or empty, but for temporaries of a killed run.

        Raises:
            InputError: it holds something, or a file has that name.
        """
        if self.exists() and not self.is_dir():
            raise InputError(self, "a folder", "a file")
        names = (item.name for item in self.iterdir()) if self.is_dir() else ()
        present = sorted(name for name in names if not name.endswith(".tmp"))
        if present:
            received, hint = f"one that holds {present[0]!r}", "nothing is overwritten"
            raise InputError(self, "a new or an empty folder", received, hint)

    def expect_absent(self) -> None:
        """Checks that this file can be written: it is not there, its folder is.

        Raises:
            InputError: something has that name, or there is no such folder.
        """
        if self.exists():
            raise InputError(self, "a new file", "one that exists", hint="nothing is overwritten")
        if self.is_local and not self.parent.is_dir():
            raise InputError(self, f"an existing folder {self.parent}", "none")

    def expect_local(self) -> "Location":
        """Returns this location if it is of this machine.

        Raises:
            InputError: it is in a bucket.
        """
        if not self.is_local:
            raise InputError(self, "a path of this machine", "one in a bucket")
        return self

    def remove_temporaries(self, names: Collection[str]) -> None:
        """Removes from this folder what killed processes left of files of these names."""
        for path in self.glob(".*.tmp"):
            name = path.name.removeprefix(".").removesuffix(".tmp")
            if name in names or name.rpartition(".")[0] in names:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def stage_directory(self, *, last: str) -> Iterator["LocalLocation"]:
        """Yields a hidden folder, whose files move into this one when the block succeeds.

        For a bucket it is a folder of this machine, whose files are uploaded. When the block
        raises, it is removed with all that is in it.

        Args:
            last: the file that moves last, without which the others count for nothing.

        Yields:
            the hidden folder, to be filled with files inside the block.

        Raises:
            InputError: meanwhile this folder has got a file of the same name.
        """
        stage = self._make_stage()
        try:
            yield stage
            for file in sorted(stage.iterdir(), key=lambda file: (file.name == last, file.name)):
                _sync(file)
                final = self / file.name
                if final.exists():
                    raise InputError(final, "no such file", "one")
                final.take(file)
            self.sync_directory()
        finally:
            shutil.rmtree(stage, ignore_errors=True)


class LocalLocation(Location, pathlib.PosixPath):
    """A file or folder of this machine."""

    def __truediv__(self, name: str | os.PathLike[str]) -> "LocalLocation":
        path = super().__truediv__(name)
        if self.setting is not None:
            path.setting = self.setting
        return path

    def find(self) -> dict["LocalLocation", int]:
        """Returns files with their sizes: this one, all below this folder, or a glob's matches."""
        if self.is_dir():
            walk = os.walk(self)
            paths = [os.path.join(folder, name) for folder, _, names in walk for name in names]
            # A pipe would be waited for; a link to nothing is told when it is read.
            paths = [path for path in paths if os.path.isfile(path) or not os.path.exists(path)]
        else:
            # A name is no pattern, whatever characters are in it.
            matches = [self] if self.is_file() else glob.glob(str(self), recursive=True)
            paths = [path for path in matches if os.path.isfile(path)]
        sizes = ((path, os.path.getsize(path) if os.path.exists(path) else 0) for path in paths)
        return {LocalLocation(path): size for path, size in sizes}

    def sync_directory(self) -> None:
        """Waits until the names in this folder are on its disk."""
        _sync(self)

    @contextlib.contextmanager
    def atomic_write(
        self, *, temporary: "LocalLocation | None" = None
    ) -> Iterator["LocalLocation"]:
        """Yields a temporary path of this machine that becomes this file when the block succeeds.

        The content is on the disk before the name changes, so that after a crash at any
        moment the file is either absent (or as it was before) or whole; an object is uploaded
        then. When the block raises, the temporary file is removed.

        Args:
            temporary: the name to write under; `temporary()` by default.

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
            # Some libraries put a file of their own there, readable by its owner only.
            temporary.chmod(mode)
            _sync(temporary)
            os.replace(temporary, self)
        self.parent.sync_directory()

    @contextlib.contextmanager
    def stage(self) -> Iterator["LocalLocation"]:
        """Yields a path whose content `publish` gives its final name, if anyone does.

        This is a name of `own_temporary`, which is no other process's and needs no lock: of
        several that write the same file, on several machines, one is published. When the
        block raises, the file is removed.

        Yields:
            this path, or for an object one of this machine, to be written and closed inside.
        """
        with _removing_on_error(self, named=self):
            yield self
            _sync(self)

    def publish(self, path: "LocalLocation") -> None:
        """Gives this file, such as one that `stage` made, its final name."""
        path.take(self)
        path.parent.sync_directory()

    def take(self, file: "LocalLocation") -> None:
        """Gives a file of this machine this name."""
        os.replace(file, self)

    @contextlib.contextmanager
    def locked(self, busy_message: str | None = None) -> Iterator[int]:
        """Opens this temporary file, which a killed process may have left, and holds its lock.

        Two live processes that wrote the same one would publish a mixture. If `busy_message`
        is given, the second process fails with it; else it waits for the first.

        Raises:
            InterruptedRunError: another process holds it, and `busy_message` is given.
        """
        try:
            descriptor = self.open_locked(fcntl.LOCK_EX | (fcntl.LOCK_NB if busy_message else 0))
        except BlockingIOError as error:
            hint = "wait for it to end"
            raise InterruptedRunError(None, received=busy_message, hint=hint) from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def open_locked(self, kind: int) -> int:
        """Opens this file, which is made if it is not there, and locks it.

        Args:
            kind: of the lock, as `fcntl.flock` takes it.

        Returns:
            a descriptor; closing it ends the lock.

        Raises:
            BlockingIOError: another process holds it, and `kind` says not to wait.
        """
        while True:
            descriptor = os.open(self, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, kind)
            except BaseException:
                os.close(descriptor)
                raise
            # Otherwise the lock's holder has meanwhile renamed or removed the file.
            if self._is_named(descriptor):
                return descriptor
            os.close(descriptor)

    def _is_named(self, descriptor: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(descriptor), self.stat())
        return False

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps this folder to this process while the block runs; a killed one lets go of it.

        A hidden file there is locked, as folders cannot be everywhere; in a bucket nothing can.

        Raises:
            InterruptedRunError: another process keeps it.
        """
        prefix = f"`{self.setting}`: " if self.setting else ""
        path = self / LOCK
        with path.locked(f"{prefix}another process is at work in {self}"):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def write_whole(self, content: bytes) -> None:
        """Writes a whole file atomically; several processes may write the same one at once."""
        with self.atomic_write(temporary=self.own_temporary()) as temporary:
            temporary.write_bytes(content)

    def write_new(self, content: bytes) -> bool:
        """Writes a whole file where there is none.

        In a bucket, and without links, the last of several that do so at the same moment wins.

        Returns:
            False where there was one, which stays.
        """
        temporary = self.own_temporary()
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

    def forget_mirror(self) -> None:
        """Removes what `mirror` made of an object; a file of this machine stays.

        Call it when no process of this machine reads the mirror any more.

        Raises:
            OSError: there is no such object, or the store does not answer.
        """

    def scratch(self, name: str) -> "LocalLocation":
        """Returns where files lie that only an unfinished run in this directory needs.

        Args:
            name: of the folder, which is not made. For a directory in a bucket it is a folder
                of this machine that belongs to it, in which the same command finds them again.
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
    """Removes a file when the block that writes it raises; an OSError gets a name if it has none.

    A full disk says so without saying where.
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
    """What a store says of an object.

    Attributes:
        st_size: its bytes, named as in `os.stat_result`.
        version: changes when the object does.
    """

    st_size: int
    version: str


@dataclasses.dataclass(frozen=True, order=True)
class BucketLocation(Location):
    """An object, or a folder of objects: as much of `pathlib.Path` as is used here.

    What the store refuses is an OSError that names the object. An object that is not
    there is told apart from a store that does not answer, which fsspec's `isfile` and
    `exists` do not do: a directory that is not seen would be taken for a new one.

    Attributes:
        scheme: `gs`, `s3`, or `hf` of a corpus.
        key: the bucket, and the name in it.
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
            raise InputError(url, "a path of this machine, gs://… or s3://…", f"{scheme}://")
        path = pathlib.PurePosixPath(key.lstrip("/"))
        if not path.name or ".." in path.parts:
            raise InputError(url, f"{scheme}://BUCKET/NAME")
        return cls(scheme, path, setting)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __truediv__(self, name: str) -> "BucketLocation":
        return dataclasses.replace(self, key=self.key / name)

    name, stem, suffix, parts = (
        property(operator.attrgetter(f"key.{name}"), doc="See `pathlib.PurePath`.")
        for name in ("name", "stem", "suffix", "parts")
    )

    @property
    def parent(self) -> "BucketLocation":
        """See `pathlib.PurePath`; the parent of a bucket is the bucket."""
        return self if len(self.parts) == 1 else dataclasses.replace(self, key=self.key.parent)

    def with_name(self, name: str) -> "BucketLocation":
        """See `pathlib.PurePath`."""
        return dataclasses.replace(self, key=self.key.with_name(name))

    def resolve(self) -> "BucketLocation":
        """Returns the path: it is absolute."""
        return self

    absolute = resolve

    def is_relative_to(self, other: object) -> bool:
        """Returns whether this is below another path, or the same."""
        same_store = isinstance(other, BucketLocation) and other.scheme == self.scheme
        return same_store and self.key.is_relative_to(other.key)

    def relative_to(self, folder: "BucketLocation") -> pathlib.PurePosixPath:
        """Returns the name of an object below a folder."""
        return self.key.relative_to(folder.key)

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Returns what a method of fsspec's file system gives for this object."""
        with _store_errors(self):
            return getattr(_store(self.scheme), method)(str(self), *arguments, **options)

    def _kind(self) -> str | None:
        with contextlib.suppress(FileNotFoundError):
            return self._ask("info")["type"]
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
        info = self._ask("info")
        versions = [str(info[name]) for name in _VERSIONS if info.get(name)]
        return ObjectInfo(info["size"], " ".join(versions))

    def iterdir(self) -> Iterator["BucketLocation"]:
        """Yields what is directly below this name, by name."""
        found = self._ask("ls", detail=False)
        names = {name.rstrip("/").rpartition("/")[2] for name in found}
        # Some tools leave an empty object that stands for the folder.
        marker = {self.name} if any(name.endswith("/") for name in found) else set()
        yield from (self / name for name in sorted(names - marker))

    def glob(self, pattern: str) -> Iterator["BucketLocation"]:
        """Yields the objects below this name that match, part by part, in no special order."""
        wanted = pathlib.PurePosixPath(pattern).parts
        for path in self.find() if self.is_dir() else ():
            parts = path.relative_to(self).parts
            if len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted)):
                yield path

    def find(self) -> dict["BucketLocation", int]:
        """Returns objects with their sizes: this one, all below its name, or matches of a glob."""
        kind = self._kind()
        if kind == "file":
            return {self: self.stat().st_size}
        found: dict[str, Any] = {}
        # Some stores miss the folder in which a glob looks.
        with contextlib.suppress(FileNotFoundError):
            found = self._ask("glob" if kind is None else "find", detail=True)
        # A name that ends with a slash stands for a folder.
        return {
            BucketLocation(self.scheme, pathlib.PurePosixPath(name.lstrip("/"))): info["size"]
            for name, info in found.items()
            if info["type"] == "file" and not name.endswith("/")
        }

    def open(self, mode: str = "rb") -> BinaryIO:
        """Opens the object to be read; it comes in blocks."""
        info, file = self.stat(), self._ask("open", mode, block_size=_BLOCK_BYTES)
        return io.BufferedReader(_Reader(self, info, file), _BUFFER_BYTES)

    def read_bytes(self) -> bytes:
        """Returns the content."""
        return self._ask("cat_file")

    def read_text(self, encoding: str = "utf-8") -> str:
        """Returns the content as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """Writes the object whole."""
        self._ask("pipe_file", content)

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
        """Does nothing: an object's name is there when its content is."""

    def forget_mirror(self) -> None:
        """See `LocalLocation.forget_mirror`."""
        _MirroredObjects([self]).forget()

    def scratch(self, name: str) -> LocalLocation:
        """See `LocalLocation.scratch`."""
        digest = hashlib.sha256(str(self).encode("utf-8")).hexdigest()
        return LocalLocation(mirror_folder()) / f"scratch-{digest[:32]}-{name}"

    def _make_stage(self) -> LocalLocation:
        return LocalLocation(make_upload_folder())

    def take(self, source: pathlib.Path) -> None:
        """Makes the object from a file of this machine; it appears when all bytes are there."""
        with _store_errors(self):
            _store(self.scheme).put_file(str(source), str(self))

    def download(self, target: pathlib.Path) -> None:
        """Copies the object to a file of this machine.

        Raises:
            OSError: not all bytes came, or the object changed meanwhile.
        """
        before = self.stat()
        self._ask("get_file", str(target))
        received = target.stat().st_size
        if received != before.st_size or self.stat() != before:
            reason = f"expected {before.st_size} bytes that stay the same, received {received}"
            raise OSError(errno.EIO, reason, str(self))

    def publish(self, target: "BucketLocation") -> None:
        """Copies the object within its store, where the copy appears whole, and deletes it."""
        with _store_errors(target):
            _store(self.scheme).cp_file(str(self), str(target))
        self.unlink(missing_ok=True)

    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes the object."""
        try:
            self._ask("rm_file")
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a folder is there when something is in it."""


class _Reader(io.RawIOBase):
    """An object that is being read, whose errors name it; `file` is as fsspec opened it."""

    def __init__(self, path: BucketLocation, info: ObjectInfo, file: BinaryIO) -> None:
        super().__init__()
        self._path, self._info, self._file = path, info, file

    def readable(self) -> bool:
        return True

    seekable = readable

    def readinto(self, buffer: memoryview) -> int:
        with _store_errors(self._path):
            content = self._file.read(len(buffer))
        # Blocks come one by one: those of a shorter object end early, and without an error.
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
        expected = f"the package {_PACKAGES[scheme]}, which is not installed"
        hint = "install it: pip install '.[remote]'"
        raise InputError(f"{scheme}://", expected, hint=hint) from error


@contextlib.contextmanager
def _store_errors(path: BucketLocation) -> Iterator[None]:
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


def mirror_all(locations: Sequence[Location]) -> tuple[LocalLocation, ...]:
    """Returns files of this machine with the content, and the names, of files or objects.

    Objects are copied once, into one folder, whose name says which versions of them: of one that
    changed the next call makes another copy. Copies stay until this process ends. Files of this
    machine stay where they are.

    Args:
        locations: all of this machine, or all objects of one folder.

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
    """Yields files of this machine with the content of each location.

    Copies of objects stay while the block runs; later ones may take their room.

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
    """Copies objects before they are used, as far as the local mirror has room for them.

    Returns:
        what keeps the copies until it is closed.
    """
    with contextlib.ExitStack() as stack:
        for location in locations:
            if not location.is_local:
                descriptor = _MirroredObjects([location]).hold(required=False)
                if descriptor is None:
                    break
                stack.callback(os.close, descriptor)
        return stack.pop_all()


# Locks of the copies that stay until this process ends, by their folder.
_held_by_process: dict[LocalLocation, int] = {}


class _MirroredObjects:
    """Copies of these versions of objects, in one folder of this machine.

    Attributes:
        folder: where they are.
        copies: the files in it, one for each object.
        size: their bytes.
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
        """Returns whether all copies are there."""
        return all(copy.is_file() for copy in self.copies)

    def hold(self, *, required: bool = True) -> int | None:
        """Copies what is not there; returns the descriptor of a lock under which it stays.

        Args:
            required: whether to copy also where copies in use leave too little room.

        Returns:
            None if it was not copied, for want of room.
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
        """Copies what is not there; others that want the same copies wait meanwhile."""
        with (self.folder / LOCK).locked() as descriptor:
            if self.is_whole():
                return True
            expect_within_limit(self.size, ", ".join(map(str, self._objects)))
            if not reserve_room(self.folder, self.size, required=required):
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
