"""The local mirror: this machine's folder for copies of bucket objects, and its size limit.

Each copy has a separate folder with two lock files. The process that downloads the copy holds
the first lock. Every process that uses the copy holds a shared lock on the second file, which
protects the copy from removal. To make room for a new copy, unused copies are removed, the
least recently used first.
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

# Environment variables: the folder, and the limit of the total size of copies.
CACHE_VARIABLE = "OFFLINE_DISTILL_CACHE"
LIMIT_VARIABLE = "OFFLINE_DISTILL_MIRROR_LIMIT"
# The default limit, as a share of the disk space that is free or already holds copies.
_LIMIT_SHARE = 0.8
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]i?)?B?")
_UNITS = {"": 1, **{unit: 1000**power for power, unit in enumerate("KMGT", 1)}}
_UNITS.update({f"{unit}i": 1024**power for power, unit in enumerate("KMGT", 1)})
# The lock files of a copy. During the download, the first contains the size of the whole copy.
LOCK = ".lock.tmp"
USE_LOCK = ".use.tmp"
_ROOM_LOCK = ".room.tmp"
# The folder of a copy is named by a digest.
_COPY = re.compile(r"[0-9a-f]{32}")
_REMOVED = "removed-"
_UPLOAD = "upload-"
# A file that has not been written to for this long belongs to a killed process.
_ABANDONED_SECONDS = 24 * 3600.0


def mirror_folder() -> pathlib.Path:
    """Returns this machine's folder for copies of objects and for scratch files.

    It is the value of the environment variable OFFLINE_DISTILL_CACHE. By default it is a folder
    of this user in the system's temporary folder. It may be deleted while no command runs.

    Raises:
        InputError: the folder cannot be made, or the default folder belongs to another user.
    """
    folder_variable = os.environ.get(CACHE_VARIABLE)
    if folder_variable:
        folder = pathlib.Path(folder_variable).absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            received = f"cannot make the folder {folder}: {error.strerror}"
            raise InputError(CACHE_VARIABLE, received=received) from error
        return folder
    folder = pathlib.Path(tempfile.gettempdir()) / f"offline-distill-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # Any user can make a folder of that name there and put models into it.
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        received = f"the default folder {folder} belongs to another user"
        hint = "set the variable to a folder for copies of objects"
        raise InputError(CACHE_VARIABLE, received=received, hint=hint)
    return folder


def make_upload_folder() -> pathlib.Path:
    """Makes a folder in the local mirror for files to upload. The caller removes it.

    Removes upload folders of killed processes: those that nobody has written to for a day.
    """
    folder = mirror_folder()
    for upload in folder.glob(f"{_UPLOAD}*"):
        times = [path.stat().st_mtime for path in (upload, *upload.glob("*")) if path.exists()]
        if times and time.time() - max(times) > _ABANDONED_SECONDS:
            shutil.rmtree(upload, ignore_errors=True)
    return pathlib.Path(tempfile.mkdtemp(prefix=_UPLOAD, dir=folder))


@dataclasses.dataclass(frozen=True)
class _Copy:
    """A copy of one or several objects in the local mirror.

    Attributes:
        folder: the folder that contains its files.
        size: total size of its files in bytes, including files that are not downloaded yet.
        last_use: time of the last use, in seconds since the epoch.
    """

    folder: pathlib.Path
    size: int
    last_use: float


def _find_copies(mirror: pathlib.Path) -> Iterator[_Copy]:
    for folder in mirror.iterdir():
        if not _COPY.fullmatch(folder.name):
            continue
        lock = folder / LOCK
        # Another process may remove the folder at the same time.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            present_bytes = sum(path.stat().st_size for path in folder.iterdir() if path != lock)
            reserved_bytes = int(lock.read_bytes() or 0) if lock.exists() else 0
            last_use = (folder / USE_LOCK).stat().st_mtime
            yield _Copy(folder, max(present_bytes, reserved_bytes), last_use)


def _remove_unused(copy: _Copy) -> bool:
    """Removes a copy unless a process uses it. Returns whether it was removed."""
    with contextlib.suppress(FileNotFoundError, BlockingIOError):
        descriptor = os.open(copy.folder / USE_LOCK, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Renaming removes all files in one step. Another process must not find a folder
            # from which only some files were deleted.
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
    """Returns the limit of the total size of copies on this machine, in bytes.

    It is the value of the environment variable OFFLINE_DISTILL_MIRROR_LIMIT, for example
    `50GB`. By default it is 80% of the disk space that is free or already holds copies.

    Raises:
        InputError: the variable's value is not a size.
    """
    if text := os.environ.get(LIMIT_VARIABLE):
        return _parse_limit(text)
    mirror = mirror_folder()
    copy_bytes = sum(copy.size for copy in _find_copies(mirror))
    return int(_LIMIT_SHARE * (shutil.disk_usage(mirror).free + copy_bytes))


def expect_within_limit(size: int, what: object) -> None:
    """Checks that the mirror's limit allows objects of a total size.

    Args:
        size: total size of the objects in bytes.
        what: description of the objects that are needed at the same time, for the message.

    Raises:
        InputError: the limit is smaller.
    """
    limit = mirror_limit()
    if size > limit:
        expected = f"at least {size:,} bytes, the size of {what}"
        hint = "set a higher limit, or make smaller shards with `num_shards`"
        raise InputError(LIMIT_VARIABLE, expected, f"{limit:,} bytes", hint)


def reserve_space(folder: pathlib.Path, size: int, *, required: bool) -> bool:
    """Makes room for a copy, and reserves it until the copy is downloaded.

    Args:
        folder: the copy's folder. The caller holds both of its locks.
        size: total size of the copy in bytes.
        required: whether to exceed the limit if the other copies are all in use. Otherwise
            processes that train together could wait for each other forever.

    Returns:
        whether the room is reserved.
    """
    mirror, limit = mirror_folder(), mirror_limit()
    with open(mirror / _ROOM_LOCK, "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for removed in mirror.glob(f"{_REMOVED}*"):
            shutil.rmtree(removed, ignore_errors=True)
        copies = sorted(_find_copies(mirror), key=lambda copy: copy.last_use)
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
