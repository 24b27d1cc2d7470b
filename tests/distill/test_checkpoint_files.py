"""Checkpoint files: the newest valid one is found, and damaged ones are never deleted."""

import json
import pathlib

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from pipeline.base.errors import InputError
from pipeline.base.local_mirror import mirror_folder
from pipeline.base.location import LocalLocation
from pipeline.distill import checkpoints
from pipeline.distill.checkpoints import Checkpoint, CheckpointFiles, checkpoint_steps


def _tensors(step: int) -> dict[str, np.ndarray]:
    return {"a": np.full((3, 4), step, np.float32), "b": np.arange(5, dtype=np.int32)}


def _save(folder: pathlib.Path, *steps: int, keep: int = 9) -> CheckpointFiles:
    files = CheckpointFiles(folder, keep=keep)
    for step in steps:
        files.save(step, _tensors(step))
    return files


def _path(folder: pathlib.Path, step: int) -> pathlib.Path:
    return folder / "checkpoints" / f"step-{step:08d}.safetensors"


def _names(folder: pathlib.Path) -> set[str]:
    return {path.name for path in (folder / "checkpoints").iterdir()}


def _flip(path: pathlib.Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(bytes(content))


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "nothing": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "last bit": lambda path: _flip(path, 8 * path.stat().st_size - 1),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "no checksum": lambda path: path.with_suffix(".json").write_text('{"step": 3}'),
    "no sidecar of ours": lambda path: path.with_suffix(".json").write_bytes(b"\xff{"),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_newest_valid_checkpoint_is_found(tmp_path, capsys, damage: str) -> None:
    _save(tmp_path, 5, 10, 15)
    DAMAGE[damage](_path(tmp_path, 15))
    before = _names(tmp_path)
    assert CheckpointFiles(tmp_path, keep=2).find_newest() == Checkpoint(10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"{_path(tmp_path, 15)}: a damaged checkpoint (")
    assert lines[0].endswith("); the file is left unchanged")
    assert lines[1:] == [f"resuming from an older checkpoint, {_path(tmp_path, 10)}"]
    assert _names(tmp_path) == before


@given(bit=st.integers(0, 8 * 400))
def test_every_flipped_bit_is_detected(tmp_path_factory, bit: int) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    _save(folder, 1, 2)
    assert checkpoints.find_defect(_path(folder, 2)) is None
    _flip(_path(folder, 2), bit)
    assert checkpoints.find_defect(_path(folder, 2)) is not None
    assert CheckpointFiles(folder, keep=2).find_newest() == Checkpoint(1)


def test_error_names_all_checkpoints_if_none_is_valid(tmp_path) -> None:
    files = _save(tmp_path, 5, 10)
    assert CheckpointFiles(tmp_path / "none", keep=2).find_newest() is None
    for step in (5, 10):
        DAMAGE["truncated"](_path(tmp_path, step))
    with pytest.raises(InputError) as caught:
        files.find_newest()
    message = str(caught.value)
    for name in ("step-00000005.safetensors", "step-00000010.safetensors"):
        assert f"{name}: a damaged checkpoint" in message
    hint = f"to train from the beginning, delete the folder {tmp_path / 'checkpoints'}"
    assert message.endswith(hint)


@pytest.mark.parametrize("function", ["mirror", "sha256", "read_json"])
def test_unreadable_checkpoint_is_not_reported_as_damaged(
    tmp_path, monkeypatch, capsys, function: str
) -> None:
    """If a disk is full or a store does not answer, no older checkpoint is used."""
    _save(tmp_path, 5, 10)

    def fail(path: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LocalLocation, function, fail)
        with pytest.raises(OSError, match="No space left on device"):
            CheckpointFiles(tmp_path, keep=2).find_newest()
    assert capsys.readouterr().err == ""
    assert CheckpointFiles(tmp_path, keep=2).find_newest() == Checkpoint(10)


def test_only_unverified_checkpoints_of_a_bucket_are_downloaded(
    bucket, monkeypatch, capsys
) -> None:
    """Local copies are removed when they are no longer needed."""
    fetched = []
    real = MemoryFileSystem.get_file

    def get_file(store, remote, local, **options):
        fetched.append(remote.rpartition("/")[2])
        return real(store, remote, local, **options)

    def names(*steps: int) -> list[str]:
        return [f"step-{step:08d}.safetensors" for step in steps]

    def copies() -> list[str]:
        return [path.name for path in mirror_folder().rglob("step-*")]

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
    files = CheckpointFiles(bucket, keep=2)
    for step in (5, 10, 15, 20, 25):
        files.save(step, _tensors(step))
    assert (checkpoint_steps(bucket), fetched) == ([20, 25], [])
    for step in (30, 35):
        CheckpointFiles(bucket, keep=9).save(step, _tensors(step))
    (bucket / "checkpoints" / names(35)[0]).write_bytes(b"damaged")
    later = CheckpointFiles(bucket, keep=2)
    assert later.find_newest() == Checkpoint(30)
    assert (fetched, copies()) == (names(35, 30), names(30))
    checkpoints.checkpoint_path(bucket, 30).remove_mirror()
    assert copies() == []
    fetched.clear()
    for step in (40, 45):
        later.save(step, _tensors(step))
    assert (checkpoint_steps(bucket), fetched, copies()) == ([35, 40, 45], names(20, 25), [])


def test_forgetting_the_mirror_keeps_local_checkpoints(tmp_path) -> None:
    _save(tmp_path, 5)
    checkpoints.checkpoint_path(tmp_path, 5).remove_mirror()
    assert CheckpointFiles(tmp_path, keep=2).find_newest() == Checkpoint(5)


def test_checkpoint_without_a_sidecar_is_read(tmp_path) -> None:
    """Without a checksum, only damage that safetensors detects is found."""
    _save(tmp_path, 5, 10)
    for step in (5, 10):
        _path(tmp_path, step).with_suffix(".json").unlink()
    assert CheckpointFiles(tmp_path, keep=2).find_newest() == Checkpoint(10)
    DAMAGE["truncated"](_path(tmp_path, 10))
    assert CheckpointFiles(tmp_path, keep=2).find_newest() == Checkpoint(5)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_checkpoints_are_kept(tmp_path, keep: int) -> None:
    _save(tmp_path, 5, 10, 15, 20, keep=keep)
    assert checkpoint_steps(tmp_path) == [5, 10, 15, 20][-keep:]
    assert len(_names(tmp_path)) == 2 * keep


def test_damaged_checkpoint_is_neither_deleted_nor_counted(tmp_path, capsys) -> None:
    """This holds in the run that found the damage, and in a later run."""
    _save(tmp_path, 5, 10, 13)
    DAMAGE["nothing"](_path(tmp_path, 13))
    files = CheckpointFiles(tmp_path, keep=2)
    assert files.find_newest() == Checkpoint(10)
    for step in (15, 20):
        files.save(step, _tensors(step))
    assert checkpoint_steps(tmp_path) == [13, 15, 20]
    later = CheckpointFiles(tmp_path, keep=2)
    assert later.find_newest() == Checkpoint(20)
    later.save(25, _tensors(25))
    later.save(30, _tensors(30))
    assert checkpoint_steps(tmp_path) == [13, 25, 30]
    assert _path(tmp_path, 13).read_bytes() == b""


def test_damaged_checkpoint_of_the_same_step_is_renamed(tmp_path, capsys) -> None:
    for number in (1, 2):
        files = _save(tmp_path, 5, 10, keep=9)
        capsys.readouterr()
        _flip(_path(tmp_path, 10), 7 * number)
        damaged = _path(tmp_path, 10).read_bytes()
        assert files.find_newest() == Checkpoint(5)
        files.save(10, _tensors(11))
        name = f"step-00000010.safetensors.broken-{2 * number - 1}"
        assert f"renamed it to {name}" in capsys.readouterr().err.splitlines()[-1]
        aside = tmp_path / "checkpoints" / name
        assert aside.read_bytes() == damaged
        assert files.find_newest() == Checkpoint(10)
        np.testing.assert_array_equal(load_file(_path(tmp_path, 10))["a"], _tensors(11)["a"])


def test_due_evaluation_is_recorded_in_the_sidecar(tmp_path) -> None:
    files = _save(tmp_path, 5)
    files.save(10, _tensors(10), evaluation_due=True)
    assert files.find_newest() == Checkpoint(10, evaluation_due=True)


def test_crash_between_both_files_leaves_the_older_checkpoint(tmp_path, monkeypatch) -> None:
    files = _save(tmp_path, 5)
    real = checkpoints.model_directory.save_tensors

    def save_tensors(path, tensors, *, before_publishing) -> None:
        def describe(written) -> None:
            before_publishing(written)
            raise OSError(28, "No space left on device")

        real(path, tensors, before_publishing=describe)

    monkeypatch.setattr(checkpoints.model_directory, "save_tensors", save_tensors)
    with pytest.raises(OSError, match="No space left"):
        files.save(10, _tensors(10))
    assert checkpoint_steps(tmp_path) == [5]
    assert CheckpointFiles(tmp_path, keep=2).find_newest() == Checkpoint(5)


def test_message_of_a_defect_is_one_short_line(tmp_path) -> None:
    """The name of a tensor in the file may be long and have several lines."""
    files = _save(tmp_path, 5)
    path = _path(tmp_path, 5)
    path.with_suffix(".json").unlink()
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [3, 9]}
    header = json.dumps({"two\nlines" * 200: tensor})
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(9))
    with pytest.raises(InputError, match="a damaged checkpoint") as caught:
        files.find_newest()
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 700
