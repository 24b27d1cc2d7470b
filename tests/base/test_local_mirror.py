"""Tests that the local mirror stays within its limit and keeps copies that a process uses."""

import os
import shutil
import subprocess
import sys

import pytest

from pipeline.base import local_mirror
from pipeline.base.errors import InputError
from pipeline.base.local_mirror import LIMIT_VARIABLE, LOCK, USE_LOCK, mirror_folder, mirror_limit
from pipeline.base.location import hold_mirrors, prefetch_mirrors


@pytest.fixture
def objects(bucket, monkeypatch):
    """Objects a, b, c and d of 10 bytes each. The mirror's limit allows two of them."""
    monkeypatch.setenv(LIMIT_VARIABLE, "25")
    paths = [bucket / name for name in "abcd"]
    for path in paths:
        path.write_bytes(path.name.encode() * 10)
    return paths


def _copied_names() -> set[str]:
    """Returns the names of all copies."""
    copies = (path for path in mirror_folder().rglob("*") if path.is_file())
    return {path.name for path in copies} - {LOCK, USE_LOCK, ".room.tmp"}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("1500000", 1_500_000),
        ("50GB", 50 * 10**9),
        ("50 GB", 50 * 10**9),
        ("1.5T", 1_500_000_000_000),
        ("64MiB", 64 * 2**20),
        (" 3K ", 3000),
    ],
)
def test_limit_takes_bytes_and_units(bucket, monkeypatch, text: str, size: int) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, text)
    assert mirror_limit() == size


@pytest.mark.parametrize("text", ["much", "-1", "0", "0.0GB", "10 apples", "1e9", "50gb", "0.1"])
def test_limit_that_is_not_a_size_is_refused(bucket, monkeypatch, text: str) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, text)
    with pytest.raises(InputError) as caught:
        mirror_limit()
    assert (caught.value.subject, caught.value.received) == (LIMIT_VARIABLE, text)


def test_default_limit_is_a_share_of_free_and_copied_bytes(objects, monkeypatch) -> None:
    monkeypatch.delenv(LIMIT_VARIABLE)
    usage = shutil.disk_usage("/")._replace(free=990)
    monkeypatch.setattr(local_mirror.shutil, "disk_usage", lambda path: usage)
    assert mirror_limit() == 792
    with hold_mirrors(objects[:1]):
        assert mirror_limit() == 800


def test_least_recently_used_copy_is_removed_first(objects) -> None:
    a, b, c, _ = objects
    for seconds, path in enumerate((a, b, a), 1):
        with path.mirrored() as copy:
            os.utime(copy.parent / USE_LOCK, (seconds, seconds))
    with c.mirrored() as copy:
        assert copy.read_bytes() == b"c" * 10
    assert _copied_names() == {"a", "c"}


def test_copies_in_use_are_kept_beyond_the_limit(objects) -> None:
    a, b, c, d = objects
    with hold_mirrors([a, b]) as copies:
        # The copy is made despite the limit, because two processes may wait for each other.
        with c.mirrored() as copy:
            assert copy.read_bytes() == b"c" * 10
        assert [path.read_bytes() for path in copies] == [b"a" * 10, b"b" * 10]
    with d.mirrored():
        assert "d" in _copied_names() and len(_copied_names()) == 2


def test_copies_of_mirror_are_kept_until_the_process_ends(objects) -> None:
    a, b, c, d = objects
    copy = a.mirror()
    for path in (b, c, d):
        with path.mirrored():
            assert copy.read_bytes() == b"a" * 10
    a.remove_mirror()
    assert not copy.exists()
    assert a.mirror() == copy and copy.is_file()


def test_copy_that_another_process_uses_is_kept(objects) -> None:
    a, b, c, d = objects
    with a.mirrored() as copy:
        pass
    code = (
        "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_SH); "
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(copy.parent / USE_LOCK)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline().strip() == "held"
        for path in (b, c, d):
            with path.mirrored():
                pass
        assert _copied_names() == {"a", "d"}
        process.stdin.close()
    with b.mirrored():
        assert len(_copied_names()) == 2
    with c.mirrored():
        assert "a" not in _copied_names()


def test_prefetch_stops_at_the_limit(objects) -> None:
    a, b, c, d = objects
    with a.mirrored(), prefetch_mirrors([b, c, d]):
        assert _copied_names() == {"a", "b"}
    with a.mirrored(), prefetch_mirrors([d, c]):
        assert _copied_names() == {"a", "d"}


def test_limit_below_an_object_is_refused(objects, monkeypatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "9")
    for make_copy in (lambda: objects[0].mirror(), lambda: objects[0].sha256()):
        with pytest.raises(InputError) as caught:
            make_copy()
        assert caught.value.subject == LIMIT_VARIABLE
        assert caught.value.received == "9 bytes" and _copied_names() == set()
    monkeypatch.setenv(LIMIT_VARIABLE, "10")
    assert len(objects[0].sha256()) == 64
    with pytest.raises(InputError), hold_mirrors(objects[:2]):
        pass


def test_room_that_a_killed_download_reserved_is_released(objects) -> None:
    """The reserved room counts until the folder of the download is removed."""
    a, b, c, _ = objects
    with a.mirrored() as copy:
        pass
    copy.unlink()
    (copy.parent / LOCK).write_bytes(b"10")
    os.utime(copy.parent / USE_LOCK, (1, 1))
    with b.mirrored():
        assert copy.parent.exists()
        with c.mirrored():
            assert not copy.parent.exists()


def test_failed_download_reserves_nothing(objects, monkeypatch) -> None:
    a, *_ = objects
    with monkeypatch.context() as patch:
        patch.setattr(type(a), "download", lambda self, target: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            a.mirror()
    assert [path.read_bytes() for path in mirror_folder().glob(f"*/{LOCK}")] == [b""]
