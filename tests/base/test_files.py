"""Files and folders of this machine that several processes want at once."""

import os
import pathlib
import threading
import time

import pytest

from pipeline.base.errors import InputError, InterruptedRunError
from pipeline.storage import manifest


def test_a_lock_is_of_the_name_and_not_of_a_file_that_lost_it(tmp_path: pathlib.Path) -> None:
    """One holds it, one waits for it; the first renames the file, and a third comes."""
    path = tmp_path / ".lock.tmp"
    held: list[str] = []

    def wait() -> None:
        with path.locked():
            held.append("second")
            time.sleep(0.3)
            held.remove("second")

    waiting = threading.Thread(target=wait)
    with path.locked():
        waiting.start()
        time.sleep(0.2)
        assert held == []
        os.replace(path, tmp_path / "published")
    while "second" not in held:
        time.sleep(0.01)
    # The waiting one has not got the published file, but a new one of the name.
    message = "^at work; wait for it to end$"
    with pytest.raises(InterruptedRunError, match=message), path.locked("at work"):
        pass
    waiting.join()
    with path.locked("at work"):
        assert held == []


def test_of_two_that_begin_a_directory_at_once_one_does(tmp_path, monkeypatch) -> None:
    """Both have seen an empty folder; other settings are refused, the same ones are its own."""
    real = manifest.check_output_dir

    def reserve_first(directory, run_config) -> bool:
        is_new = real(directory, run_config)
        if is_new:
            (tmp_path / manifest.REQUEST_FILE).write_json({"seed": 1})
        return is_new

    monkeypatch.setattr(manifest, "check_output_dir", reserve_first)
    with pytest.raises(InputError, match="seed is 1 there and 2 here"):
        manifest.reserve_output_dir(tmp_path, {"seed": 2})
    (tmp_path / manifest.REQUEST_FILE).unlink()
    assert manifest.reserve_output_dir(tmp_path, {"seed": 1}) is False
    assert [path.name for path in tmp_path.iterdir()] == [manifest.REQUEST_FILE]


def test_a_new_file_replaces_none(tmp_path, monkeypatch) -> None:
    path = tmp_path / "file"
    assert path.write_new(b"first") and not path.write_new(b"second")
    assert path.read_bytes() == b"first"

    def no_links(*names: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert (tmp_path / "other").write_new(b"x")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "other"]


def test_a_folder_in_use_is_told(tmp_path: pathlib.Path) -> None:
    with tmp_path.lock(), pytest.raises(InterruptedRunError) as error, tmp_path.lock():
        pass
    assert str(tmp_path) in str(error.value)
    assert list(tmp_path.iterdir()) == []
