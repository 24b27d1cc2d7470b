"""Files that appear whole or not at all, on this machine or in a bucket.

A path is `pathlib`'s, or where a URL names it a `RemotePath` with as much of the same
interface; `as_path` decides. Objects have no locks: of two processes that write the same
one the last wins, and as jobs are deterministic both write the same bytes.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.base import json_text, remote_files
from pipeline.base.errors import InputError, InterruptedRunError
from pipeline.base.local_mirror import cache_folder, make_upload_folder
from pipeline.base.remote_files import RemotePath

PathLike = str | os.PathLike[str] | RemotePath
AnyPath = pathlib.Path | RemotePath

# A JSON file of ours is a few kilobytes a shard; a larger one is not ours.
MAX_JSON_BYTES = 256 * 2**20


def as_path(path: PathLike) -> AnyPath:
    """Returns the path of this machine, or the object, that a user's text names.

    Raises:
        InputError: a URL of another kind than gs:// and s3://.
    """
    if isinstance(path, RemotePath):
        return path
    return RemotePath.parse(path) if remote_files.is_url(path) else pathlib.Path(path)


def absolute(path: PathLike) -> str:
    """Returns a path as text that names the same in any working directory."""
    return str(as_path(path).absolute())


def is_inside(path: PathLike, folder: PathLike) -> bool:
    """Returns whether a path is a folder's, or the folder itself; symbolic links are followed."""
    path, folder = as_path(path).resolve(), as_path(folder).resolve()
    return isinstance(folder, type(path)) and path.is_relative_to(folder)


def temporary_path(path: PathLike) -> AnyPath:
    """Returns the hidden name beside `path` under which it is written."""
    path = as_path(path)
    return path.with_name(f".{path.name}.tmp")


def own_temporary_path(path: PathLike) -> AnyPath:
    """Returns a hidden name beside `path` that no other process has."""
    path = as_path(path)
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def sync_directory(path: pathlib.Path) -> None:
    """Waits until the names in a folder of this machine are on its disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(path: PathLike, *, temporary: pathlib.Path | None = None) -> Iterator[pathlib.Path]:
    """Yields a temporary path of this machine that becomes `path` when the block succeeds.

    An object is uploaded then, and appears whole. On this machine the content is on the
    disk before the name changes, so that after a crash at any moment `path` is either
    absent (or as it was before) or whole. When the block raises, the temporary file is
    removed.

    Args:
        path: the final path; its folder must exist.
        temporary: the name to write under; `temporary_path(path)` by default. Not for objects.

    Yields:
        the hidden path, beside it or for an object in the cache folder, to be written and
        closed inside the block.

    Raises:
        InterruptedRunError: another process is writing the same file of this machine.
    """
    path = as_path(path)
    if isinstance(path, RemotePath):
        with _uploaded(path) as temporary:
            yield temporary
        return
    temporary = temporary_path(path) if temporary is None else temporary
    with locked(temporary, f"{temporary}: another process is writing this file") as lock:
        try:
            mode = os.fstat(lock).st_mode
            yield temporary
            # Some libraries put a file of their own there, readable by its owner only.
            temporary.chmod(mode)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename is None:
                # A full disk says so without saying where.
                error.filename = str(path)
            raise
    sync_directory(path.parent)


@contextlib.contextmanager
def _uploaded(path: RemotePath) -> Iterator[pathlib.Path]:
    temporary = make_upload_folder() / path.name
    try:
        yield temporary
        path.upload(temporary)
    except OSError as error:
        if error.filename is None:
            error.filename = str(temporary)
        raise
    finally:
        shutil.rmtree(temporary.parent, ignore_errors=True)


@contextlib.contextmanager
def staged_path(path: PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path whose content `publish` gives its name, if anyone does.

    It is no other process's, and needs no lock: of several that write the same file,
    on several machines, one is published. When the block raises, it is removed.

    Args:
        path: of `own_temporary_path`; its folder must exist.

    Yields:
        the path, or for an object one of this machine that is uploaded to it, to be
        written and closed inside the block.
    """
    path = as_path(path)
    if isinstance(path, RemotePath):
        with _uploaded(path) as temporary:
            yield temporary
        return
    try:
        yield path
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def publish(temporary: PathLike, path: PathLike) -> None:
    """Gives a file, such as one that `staged_path` made, its final name."""
    temporary, path = as_path(temporary), as_path(path)
    if isinstance(path, RemotePath):
        temporary.move(path)
        return
    os.replace(temporary, path)
    sync_directory(path.parent)


@contextlib.contextmanager
def locked(temporary: pathlib.Path, otherwise: str | None = None) -> Iterator[int]:
    """Opens a temporary file, which a killed process may have left, and holds its lock.

    Two live processes that wrote the same one would publish a mixture. The second is
    told what is `otherwise`, or without that waits for the first.

    Raises:
        InterruptedRunError: another process holds it, and `otherwise` is given.
    """
    descriptor = _open_locked(temporary, otherwise)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open_locked(temporary: pathlib.Path, otherwise: str | None) -> int:
    wait = fcntl.LOCK_NB if otherwise else 0
    while True:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | wait)
        except BlockingIOError as error:
            os.close(descriptor)
            raise InterruptedRunError(f"{otherwise}; wait for it to end") from error
        # Else who had the lock has meanwhile given the file another name, or none.
        if _is_named(descriptor, temporary):
            return descriptor
        os.close(descriptor)


def _is_named(descriptor: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def write_bytes(path: PathLike, content: bytes) -> None:
    """Writes a whole file atomically; several processes may write the same one at once."""
    path = as_path(path)
    if isinstance(path, RemotePath):
        path.write_bytes(content)
        return
    with atomic_path(path, temporary=own_temporary_path(path)) as temporary:
        temporary.write_bytes(content)


def write_new(path: PathLike, content: bytes) -> bool:
    """Writes a whole file where there is none.

    In a bucket, and where the file system knows no links, the last of several that do so
    at the same moment wins.

    Returns:
        False where there was one, which stays.
    """
    path = as_path(path)
    if isinstance(path, RemotePath):
        path.write_bytes(content)
        return True
    temporary = own_temporary_path(path)
    with staged_path(temporary):
        temporary.write_bytes(content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)
    return True


def json_bytes(value: Any) -> bytes:
    """Returns JSON with sorted keys and a final newline: equal values, equal bytes."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    return (text + "\n").encode("utf-8")


def write_json(path: PathLike, value: Any) -> None:
    """Writes a value as JSON, atomically."""
    write_bytes(path, json_bytes(value))


def read_json(path: PathLike) -> dict[str, Any]:
    """Reads a JSON object, with or without a byte order mark before it.

    Raises:
        InputError: the file is missing, too large, not UTF-8, not JSON, nested too
            deeply, or not an object.
    """
    path = as_path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise InputError(f"{path}: expected at most {MAX_JSON_BYTES} bytes, received {size}")
    content = path.read_bytes()
    try:
        value = json_text.load(content)
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, received {type(value).__name__}")
    return value


def read_limited(path: PathLike, most: int) -> bytes:
    """Reads a whole file of at most `most` bytes.

    Raises:
        InputError: it is larger.
    """
    path = as_path(path)
    size = path.stat().st_size
    if size > most:
        raise InputError(f"{path}: expected at most {most} bytes, received {size}")
    return path.read_bytes()


def sha256_file(path: PathLike) -> str:
    """Returns the SHA-256 of a file's bytes in hexadecimal; of an object's, of its local copy."""
    with open(local_copy(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def local_copy(path: PathLike) -> pathlib.Path:
    """Returns a file of this machine with the content of a file or an object.

    Raises:
        OSError: there is no such object, or it cannot be copied whole.
    """
    return local_copies([path])[0]


def local_copies(paths: Sequence[PathLike]) -> tuple[pathlib.Path, ...]:
    """Returns files of this machine with the content, and the names, of files or objects.

    Objects are copied once, into one folder, whose name says which versions of them: of
    one that changed the next call makes another copy. Files of this machine stay where
    they are.

    Args:
        paths: all of this machine, or all objects of one folder.

    Raises:
        OSError: there is no such object, or it cannot be copied whole.
    """
    found = [as_path(path) for path in paths]
    if not any(isinstance(path, RemotePath) for path in found):
        return tuple(found)
    folder = _copies_folder(found)
    folder.mkdir(exist_ok=True)
    copies = tuple(folder / path.name for path in found)
    for path, copy in zip(found, copies, strict=True):
        if not copy.is_file():
            _copy_object(path, copy)
    return copies


def forget_copy(path: PathLike) -> None:
    """Removes what `local_copy` made of an object; a file of this machine stays.

    Call it when no process of this machine reads the copy any more.

    Raises:
        OSError: there is no such object, or the store does not answer.
    """
    path = as_path(path)
    if isinstance(path, RemotePath):
        shutil.rmtree(_copies_folder([path]), ignore_errors=True)


def _copies_folder(objects: Sequence[RemotePath]) -> pathlib.Path:
    """Returns the folder for copies of these versions of objects."""
    digest = hashlib.sha256()
    for path in objects:
        info = path.stat()
        digest.update(f"{path}\n{info.st_size} {info.version}\n".encode())
    return cache_folder() / digest.hexdigest()[:32]


def _copy_object(path: RemotePath, copy: pathlib.Path) -> None:
    """Copies an object; other processes that want the same copy wait meanwhile."""
    with locked(copy.parent / ".lock.tmp"):
        if not copy.is_file():
            with atomic_path(copy) as temporary:
                path.download(temporary)
