"""Folders that commands write into, on this machine or in a bucket, and keep to themselves."""

import contextlib
import hashlib
import os
import pathlib
import secrets
import shutil
from collections.abc import Collection, Iterator

from pipeline.base import files
from pipeline.base.errors import InputError
from pipeline.base.local_mirror import cache_folder, make_upload_folder
from pipeline.base.remote_files import RemotePath


def make_directory(path: files.PathLike, flag: str) -> files.AnyPath:
    """Makes a folder and its parents; buckets have none, and need none.

    Args:
        path: the folder.
        flag: the flag that named it, for the error message.

    Raises:
        InputError: it cannot be made, or a file has that name.
    """
    path = files.as_path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag}: cannot make the folder {path}: {error.strerror}") from error
    return path


def expect_new_directory(path: files.PathLike, flag: str) -> None:
    """Checks that a folder is not there or empty, but for temporary files of a killed run.

    Args:
        path: the folder.
        flag: the flag that named it, for the error message.

    Raises:
        InputError: it holds something, or a file has that name.
    """
    path = files.as_path(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{flag}: expected a folder, received {path}, which is a file")
    names = (item.name for item in path.iterdir()) if path.is_dir() else ()
    present = sorted(name for name in names if not name.endswith(".tmp"))
    if present:
        raise InputError(
            f"{flag}: expected a new or an empty folder, received {path}, "
            f"which holds {present[0]!r}; nothing is overwritten"
        )


def expect_new_file(path: files.PathLike, flag: str) -> None:
    """Checks that a file can be written: it is not there, its folder is.

    Args:
        path: the file.
        flag: the flag that named it, for the error message.

    Raises:
        InputError: something has that name, or there is no such folder.
    """
    path = files.as_path(path)
    if path.exists():
        raise InputError(
            f"{flag}: expected a new file, received {path}, which exists; nothing is overwritten"
        )
    if not isinstance(path, RemotePath) and not path.parent.is_dir():
        raise InputError(f"{flag}: expected an existing folder, received {path.parent}")


@contextlib.contextmanager
def sole_user(directory: files.PathLike, flag: str) -> Iterator[None]:
    """Keeps a folder to this process while the block runs; a killed one lets go of it.

    A hidden file there is locked, as folders cannot be everywhere; in a bucket nothing can.

    Args:
        directory: must exist.
        flag: the flag that named it, for the error message.

    Raises:
        InterruptedRunError: another process keeps it.
    """
    path = files.as_path(directory) / ".lock.tmp"
    if isinstance(path, RemotePath):
        yield
        return
    with files.locked(path, f"{flag}: another process is at work in {directory}"):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def remove_temporaries(directory: files.PathLike, names: Collection[str]) -> None:
    """Removes what killed processes left half-written.

    Args:
        directory: where.
        names: of the files that they were writing.
    """
    for path in files.as_path(directory).glob(".*.tmp"):
        name = path.name.removeprefix(".").removesuffix(".tmp")
        if name in names or name.rpartition(".")[0] in names:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_directory(path: files.PathLike, *, last: str) -> Iterator[pathlib.Path]:
    """Yields a hidden folder inside `path`, whose files move up when the block succeeds.

    For a bucket it is a folder of this machine, whose files are uploaded. When the block
    raises, it is removed with all that is in it.

    Args:
        path: the final folder, which must exist.
        last: the file that moves last, without which the others count for nothing.

    Yields:
        the hidden folder, to be filled with files inside the block.

    Raises:
        InputError: meanwhile `path` has got a file of the same name.
    """
    path = files.as_path(path)
    is_remote = isinstance(path, RemotePath)
    if is_remote:
        stage = make_upload_folder()
    else:
        stage = path / f".{secrets.token_hex(4)}.tmp"
        stage.mkdir()
    try:
        yield stage
        for file in sorted(stage.iterdir(), key=lambda file: (file.name == last, file.name)):
            with open(file, "rb") as content:
                os.fsync(content.fileno())
            final = path / file.name
            if final.exists():
                raise InputError(f"{final}: expected no such file, found one")
            if is_remote:
                final.upload(file)
            else:
                os.replace(file, final)
        if not is_remote:
            files.sync_directory(path)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def scratch_folder(directory: files.PathLike, name: str) -> pathlib.Path:
    """Returns where files lie that only a run which is not finished needs.

    Args:
        directory: the run's; for one in a bucket, it is a folder of this machine that
            belongs to it, in which the same command finds them again.
        name: of the folder, which is not made.
    """
    directory = files.as_path(directory)
    if not isinstance(directory, RemotePath):
        return directory / name
    digest = hashlib.sha256(str(directory).encode("utf-8")).hexdigest()
    return cache_folder() / f"scratch-{digest[:32]}-{name}"
