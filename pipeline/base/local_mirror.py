"""The local mirror: the folder of this machine for copies of objects, and its size limit.

Each copy lies in a folder of its own, with two lock files. The process that downloads it holds
the first. Every process that uses it holds the second one shared, so that nobody removes it.
Where a new copy needs room, unused copies are removed, the least recently used first.
"""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator

from pipeline.base.errors import InputError

# Environment variables: the folder, and the bytes that copies may take.
CACHE_VARIABLE = "OFFLINE_DISTILL_CACHE"
LIMIT_VARIABLE = "OFFLINE_DISTILL_MIRROR_LIMIT"
# Of the disk space that is free or holds copies, the share that copies may take by default.
_LIMIT_SHARE = 0.8
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]i?)?B?")
_UNITS = {"": 1, **{unit: 1000**power for power, unit in enumerate("KMGT", 1)}}
_UNITS.update({f"{unit}i": 1024**power for power, unit in enumerate("KMGT", 1)})
# The lock files of a copy. The first holds, during the download, the bytes of all its files.
LOCK = ".lock.tmp"
USE_LOCK = ".use.tmp"
_ROOM_LOCK = ".room.tmp"
# Folders of copies are named by a digest.
_COPY = re.compile(r"[0-9a-f]{32}")
_REMOVED = "removed-"
_UPLOAD = "upload-"
# Nobody writes so long at one file.
_LEFT_SECONDS = 24 * 3600.0


def mirror_folder() -> pathlib.Path:
    """Returns the folder of this machine for copies of objects and for scratch files.

    It is what the environment's OFFLINE_DISTILL_CACHE says, else one of this user's own in
    the temporary folder. When no command runs, it may be deleted.

    Raises:
        InputError: it cannot be made, or the one in the temporary folder is another user's.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        folder = pathlib.Path(named).absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            received = f"cannot make the folder {folder}: {error.strerror}"
            raise InputError(CACHE_VARIABLE, received=received) from error
        return folder
    folder = pathlib.Path(tempfile.gettempdir()) / f"offline-distill-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # Anyone may make a folder of that name there, and put models into it.
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        expected = f"a folder for copies of objects, as {folder} belongs to another user"
        raise InputError(CACHE_VARIABLE, expected)
    return folder


def make_upload_folder() -> pathlib.Path:
    """Makes a folder in the cache folder for what is to be uploaded; the caller removes it.

    Those in which a killed process left what nobody has touched for a day are removed.
    """
    folder = mirror_folder()
    for left in folder.glob(f"{_UPLOAD}*"):
        touched = [path.stat().st_mtime for path in (left, *left.glob("*")) if path.exists()]
        if touched and time.time() - max(touched) > _LEFT_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    return pathlib.Path(tempfile.mkdtemp(prefix=_UPLOAD, dir=folder))


@dataclasses.dataclass(frozen=True)
class _Copy:
    """A folder of copies.

    Attributes:
        folder: where it is.
        size: bytes that its files have, or will have when they are downloaded.
        used: when it was last used, in seconds.
    """

    folder: pathlib.Path
    size: int
    used: float


def _find_copies(mirror: pathlib.Path) -> Iterator[_Copy]:
    for folder in mirror.iterdir():
        if not _COPY.fullmatch(folder.name):
            continue
        lock = folder / LOCK
        # Another process may remove it meanwhile.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            present = sum(path.stat().st_size for path in folder.iterdir() if path != lock)
            reserved = int(lock.read_bytes() or 0) if lock.exists() else 0
            used = (folder / USE_LOCK).stat().st_mtime
            yield _Copy(folder, max(present, reserved), used)


def _remove_unused(copy: _Copy) -> bool:
    """Removes a copy unless a process uses it; returns whether it did."""
    with contextlib.suppress(FileNotFoundError, BlockingIOError):
        descriptor = os.open(copy.folder / USE_LOCK, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # In one step: another process must not find a folder of which some files are gone.
            removed = copy.folder.rename(copy.folder.with_name(f"{_REMOVED}{copy.folder.name}"))
            shutil.rmtree(removed, ignore_errors=True)
            return True
        finally:
            os.close(descriptor)
    return False


def _parse_limit(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    limit = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if not limit:
        raise InputError(LIMIT_VARIABLE, "a number of bytes above 0, for example 50GB", text)
    return limit


def mirror_limit() -> int:
    """Returns how many bytes copies of objects may take on this machine.

    It is the value of the environment's OFFLINE_DISTILL_MIRROR_LIMIT, for example `50GB`, else
    80% of the disk space that is free or holds copies.

    Raises:
        InputError: the variable's value is not a size.
    """
    if text := os.environ.get(LIMIT_VARIABLE):
        return _parse_limit(text)
    mirror = mirror_folder()
    present = sum(copy.size for copy in _find_copies(mirror))
    return int(_LIMIT_SHARE * (shutil.disk_usage(mirror).free + present))


def expect_within_limit(size: int, what: object) -> None:
    """Checks that the mirror may hold so many bytes at once.

    Args:
        size: bytes.
        what: the objects that are needed together.

    Raises:
        InputError: the limit is lower.
    """
    limit = mirror_limit()
    if size > limit:
        expected = f"at least {size:,} bytes, the size of {what}"
        hint = "set a higher limit, or make smaller shards with `num_shards`"
        raise InputError(LIMIT_VARIABLE, expected, f"{limit:,} bytes", hint)


def reserve_room(folder: pathlib.Path, size: int, *, required: bool) -> bool:
    """Makes room for the files of a folder of copies, and reserves it until they are there.

    Args:
        folder: the caller holds both its locks.
        size: bytes that will be downloaded into it.
        required: whether to reserve them also where copies that are in use leave too little
            room, so that processes which train together never wait for each other.

    Returns:
        whether the room is reserved.
    """
    mirror, limit = mirror_folder(), mirror_limit()
    with open(mirror / _ROOM_LOCK, "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in mirror.glob(f"{_REMOVED}*"):
            shutil.rmtree(left, ignore_errors=True)
        copies = sorted(_find_copies(mirror), key=lambda copy: copy.used)
        excess = sum(copy.size for copy in copies if copy.folder != folder) + size - limit
        for copy in copies:
            if excess > 0 and copy.folder != folder and _remove_unused(copy):
                excess -= copy.size
        if excess > 0 and not required:
            return False
        if excess > 0:
            line = f"the local mirror exceeds its limit ({LIMIT_VARIABLE}) by {excess:,} bytes"
            print(f"{line}: all other copies are in use", file=sys.stderr)
        (folder / LOCK).write_bytes(str(size).encode())
    return True
