"""Files that appear whole or not at all."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator
from typing import Any

from pipeline import json_text
from pipeline.errors import InputError

PathLike = str | os.PathLike[str]

# A JSON file of ours is a few kilobytes a shard; a larger one is not ours.
MAX_JSON_BYTES = 256 * 2**20


def temporary_path(path: PathLike) -> pathlib.Path:
    """Returns the hidden name beside `path` under which it is written."""
    path = pathlib.Path(path)
    return path.with_name(f".{path.name}.tmp")


def _sync_directory(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(path: PathLike, *, temporary: pathlib.Path | None = None) -> Iterator[pathlib.Path]:
    """Yields a temporary path that becomes `path` when the block succeeds.

    The content is on the disk before the name changes, so that after a crash at
    any moment `path` is either absent (or as it was before) or whole. When the
    block raises, the temporary file is removed.

    Args:
        path: the final path; its folder must exist.
        temporary: the name to write under; `temporary_path(path)` by default.

    Yields:
        the hidden path beside it, to be written and closed inside the block.

    Raises:
        InputError: another process is writing the same file.
    """
    path = pathlib.Path(path)
    temporary = temporary_path(path) if temporary is None else temporary
    with _locked(temporary, f"{temporary}: another process is writing this file") as lock:
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
    _sync_directory(path.parent)


@contextlib.contextmanager
def _locked(temporary: pathlib.Path, otherwise: str) -> Iterator[int]:
    """Opens a temporary file, which a killed process may have left, and holds its lock.

    Two live processes that wrote the same one would publish a mixture. The second is
    told what is `otherwise`.
    """
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{otherwise}; wait for it to end") from error
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def sole_user(directory: PathLike, flag: str) -> Iterator[None]:
    """Keeps a folder to this process while the block runs; a killed one lets go of it.

    A hidden file there is locked, as folders cannot be everywhere.

    Args:
        directory: must exist.
        flag: the flag that named it, for the error message.

    Raises:
        InputError: another process keeps it.
    """
    path = pathlib.Path(directory) / ".lock.tmp"
    with _locked(path, f"{flag}: another process is at work in {directory}"):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def write_bytes(path: PathLike, content: bytes) -> None:
    """Writes a whole file atomically; several processes may write the same one at once."""
    path = pathlib.Path(path)
    own_name = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with atomic_path(path, temporary=own_name) as temporary:
        temporary.write_bytes(content)


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
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InputError(
            f"{path}: expected at most {MAX_JSON_BYTES} bytes, received {path.stat().st_size}"
        )
    try:
        value = json_text.load(path.read_bytes())
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
    path = pathlib.Path(path)
    size = path.stat().st_size
    if size > most:
        raise InputError(f"{path}: expected at most {most} bytes, received {size}")
    return path.read_bytes()


def sha256_file(path: PathLike) -> str:
    """Returns the SHA-256 of a file's bytes in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_directory(path: PathLike, flag: str) -> pathlib.Path:
    """Makes a folder and its parents.

    Args:
        path: the folder.
        flag: the flag that named it, for the error message.

    Raises:
        InputError: it cannot be made, or a file has that name.
    """
    path = pathlib.Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag}: cannot make the folder {path}: {error.strerror}") from error
    return path


def expect_new_directory(path: PathLike, flag: str) -> None:
    """Checks that a folder is not there or empty, but for temporary files of a killed run.

    Args:
        path: the folder.
        flag: the flag that named it, for the error message.

    Raises:
        InputError: it holds something, or a file has that name.
    """
    path = pathlib.Path(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{flag}: expected a folder, received {path}, which is a file")
    names = (item.name for item in path.iterdir()) if path.is_dir() else ()
    present = sorted(name for name in names if not name.endswith(".tmp"))
    if present:
        raise InputError(
            f"{flag}: expected a new or an empty folder, received {path}, "
            f"which holds {present[0]!r}; nothing is overwritten"
        )


def expect_new_file(path: PathLike, flag: str) -> None:
    """Checks that a file can be written: it is not there, its folder is.

    Args:
        path: the file.
        flag: the flag that named it, for the error message.

    Raises:
        InputError: something has that name, or there is no such folder.
    """
    path = pathlib.Path(path)
    if path.exists():
        raise InputError(
            f"{flag}: expected a new file, received {path}, which exists; nothing is overwritten"
        )
    if not path.parent.is_dir():
        raise InputError(f"{flag}: expected an existing folder, received {path.parent}")


@contextlib.contextmanager
def staged_directory(path: PathLike, *, last: str) -> Iterator[pathlib.Path]:
    """Yields a hidden folder inside `path`, whose files move up when the block succeeds.

    When the block raises, it is removed with all that is in it.

    Args:
        path: the final folder, which must exist.
        last: the file that moves last, without which the others count for nothing.

    Yields:
        the hidden folder, to be filled with files inside the block.

    Raises:
        InputError: meanwhile `path` has got a file of the same name.
    """
    path = pathlib.Path(path)
    stage = path / f".{secrets.token_hex(4)}.tmp"
    stage.mkdir()
    try:
        yield stage
        for file in sorted(stage.iterdir(), key=lambda file: (file.name == last, file.name)):
            with open(file, "rb") as content:
                os.fsync(content.fileno())
            if (path / file.name).exists():
                raise InputError(f"{path / file.name}: expected no such file, found one")
            os.replace(file, path / file.name)
        _sync_directory(path)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
