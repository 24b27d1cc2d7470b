"""The folder of this machine for copies of objects in buckets, and for what is to be uploaded."""

import os
import pathlib
import shutil
import tempfile
import time

from pipeline.base.errors import InputError

# The environment's word for it.
CACHE_VARIABLE = "OFFLINE_DISTILL_CACHE"
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
