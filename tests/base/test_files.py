"""Tests of files and folders on this machine that several processes use at once."""

import os
import pathlib
import threading
import time

import pytest

from pipeline.base.errors import InputError, InterruptedRunError
from pipeline.storage import manifest


def test_lock_belongs_to_the_name_and_not_to_a_renamed_file(tmp_path: pathlib.Path) -> None:
    """The first process renames the locked file while the second waits and a third arrives."""
    path = tmp_path / ".lock.tmp"
    holders: list[str] = []

    def hold_second() -> None:
        with path.locked():
            holders.append("second")
            time.sleep(0.3)
            holders.remove("second")

    second = threading.Thread(target=hold_second)
    with path.locked():
        second.start()
        time.sleep(0.2)
        assert holders == []
        os.replace(path, tmp_path / "published")
    while "second" not in holders:
        time.sleep(0.01)
    # The second process has not locked the published file, but a new file of the same name.
    message = "^at work; wait until it ends$"
    with pytest.raises(InterruptedRunError, match=message), path.locked("at work"):
        pass
    second.join()
    with path.locked("at work"):
        assert holders == []


def test_only_one_of_two_processes_reserves_an_output_directory(tmp_path, monkeypatch) -> None:
    """Both have seen an empty folder. Other settings are refused; equal settings share it."""
    check_output_dir = manifest.check_output_dir

    def reserve_first(directory, run_config) -> bool:
        is_new = check_output_dir(directory, run_config)
        if is_new:
            (tmp_path / manifest.RUN_CONFIG_FILE).write_json({"seed": 1})
        return is_new

    monkeypatch.setattr(manifest, "check_output_dir", reserve_first)
    with pytest.raises(InputError, match=r"seed \(recorded 1, now 2\)"):
        manifest.reserve_output_dir(tmp_path, {"seed": 2})
    (tmp_path / manifest.RUN_CONFIG_FILE).unlink()
    assert manifest.reserve_output_dir(tmp_path, {"seed": 1}) is False
    assert [path.name for path in tmp_path.iterdir()] == [manifest.RUN_CONFIG_FILE]


def test_write_new_keeps_an_existing_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "file"
    assert path.write_new(b"first") and not path.write_new(b"second")
    assert path.read_bytes() == b"first"

    def refuse_link(*names: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse_link)
    assert (tmp_path / "other").write_new(b"x")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "other"]


def test_lock_of_a_folder_in_use_raises_an_error_that_names_it(tmp_path: pathlib.Path) -> None:
    with tmp_path.lock(), pytest.raises(InterruptedRunError) as error, tmp_path.lock():
        pass
    assert str(tmp_path) in str(error.value)
    assert list(tmp_path.iterdir()) == []
