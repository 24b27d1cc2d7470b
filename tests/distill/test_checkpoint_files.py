"""Checkpoints on a disk that lies: the newest that verifies, and nothing that is lost."""

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
def test_the_newest_that_verifies_is_found(tmp_path, capsys, damage: str) -> None:
    _save(tmp_path, 5, 10, 15)
    DAMAGE[damage](_path(tmp_path, 15))
    before = _names(tmp_path)
    assert CheckpointFiles(tmp_path, keep=2).find_newest() == Checkpoint(10)
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"{_path(tmp_path, 15)}: a damaged checkpoint (")
    assert said[0].endswith("); it is left as it is")
    assert said[1:] == [f"going on from an older checkpoint, {_path(tmp_path, 10)}"]
    assert _names(tmp_path) == before


@given(bit=st.integers(0, 8 * 400))
def test_no_flipped_bit_stays_unseen(tmp_path_factory, bit: int) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    _save(folder, 1, 2)
    assert checkpoints.find_defect(_path(folder, 2)) is None
    _flip(_path(folder, 2), bit)
    assert checkpoints.find_defect(_path(folder, 2)) is not None
    assert CheckpointFiles(folder, keep=2).find_newest() == Checkpoint(1)


def test_where_none_verifies_all_are_named(tmp_path) -> None:
    files = _save(tmp_path, 5, 10)
    assert CheckpointFiles(tmp_path / "none", keep=2).find_newest() is None
    for step in (5, 10):
        DAMAGE["truncated"](_path(tmp_path, step))
    with pytest.raises(InputError) as caught:
        files.find_newest()
    message = str(caught.value)
    for name in ("step-00000005.safetensors", "step-00000010.safetensors"):
        assert f"{name}: a damaged checkpoint" in message
    assert message.endswith(f"to begin again, delete the folder {tmp_path / 'checkpoints'}")


@pytest.mark.parametrize("function", ["mirror", "sha256", "read_json"])
def test_what_cannot_be_read_is_not_called_damaged(
    tmp_path, monkeypatch, capsys, function: str
) -> None:
    """A full disk, or a store that does not answer: nothing older is taken for the newest."""
    _save(tmp_path, 5, 10)

    def fail(path: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LocalLocation, function, fail)
        with pytest.raises(OSError, match="No space left on device"):
            CheckpointFiles(tmp_path, keep=2).find_newest()
    assert capsys.readouterr().err == ""
    assert CheckpointFiles(tmp_path, keep=2).find_newest() == Checkpoint(10)


def test_in_a_bucket_only_unknown_ones_are_fetched(bucket, monkeypatch, capsys) -> None:
    """And no copy stays longer than it is needed."""
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
    checkpoints.checkpoint_path(bucket, 30).forget_mirror()
    assert copies() == []
    fetched.clear()
    for step in (40, 45):
        later.save(step, _tensors(step))
    assert (checkpoint_steps(bucket), fetched, copies()) == ([35, 40, 45], names(20, 25), [])


def test_a_file_of_this_machine_is_no_copy(tmp_path) -> None:
    _save(tmp_path, 5)
    checkpoints.checkpoint_path(tmp_path, 5).forget_mirror()
    assert CheckpointFiles(tmp_path, keep=2).find_newest() == Checkpoint(5)


def test_one_of_an_earlier_version_is_read(tmp_path) -> None:
    """They have no checksum beside them; what safetensors sees is seen."""
    _save(tmp_path, 5, 10)
    for step in (5, 10):
        _path(tmp_path, step).with_suffix(".json").unlink()
    assert CheckpointFiles(tmp_path, keep=2).find_newest() == Checkpoint(10)
    DAMAGE["truncated"](_path(tmp_path, 10))
    assert CheckpointFiles(tmp_path, keep=2).find_newest() == Checkpoint(5)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_so_many_are_kept(tmp_path, keep: int) -> None:
    _save(tmp_path, 5, 10, 15, 20, keep=keep)
    assert checkpoint_steps(tmp_path) == [5, 10, 15, 20][-keep:]
    assert len(_names(tmp_path)) == 2 * keep


def test_a_broken_one_is_never_deleted_and_counts_for_none(tmp_path, capsys) -> None:
    """Neither where this run went on from an older one, nor where it is a later run."""
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


def test_a_broken_one_of_the_same_step_is_set_aside(tmp_path, capsys) -> None:
    for number in (1, 2):
        files = _save(tmp_path, 5, 10, keep=9)
        capsys.readouterr()
        _flip(_path(tmp_path, 10), 7 * number)
        damaged = _path(tmp_path, 10).read_bytes()
        assert files.find_newest() == Checkpoint(5)
        files.save(10, _tensors(11))
        name = f"step-00000010.safetensors.broken-{2 * number - 1}"
        assert f"it is now {name}" in capsys.readouterr().err.splitlines()[-1]
        aside = tmp_path / "checkpoints" / name
        assert aside.read_bytes() == damaged
        assert files.find_newest() == Checkpoint(10)
        np.testing.assert_array_equal(load_file(_path(tmp_path, 10))["a"], _tensors(11)["a"])


def test_what_is_due_is_remembered(tmp_path) -> None:
    files = _save(tmp_path, 5)
    files.save(10, _tensors(10), evaluation_due=True)
    assert files.find_newest() == Checkpoint(10, evaluation_due=True)


def test_a_crash_between_the_two_files_leaves_the_older_one(tmp_path, monkeypatch) -> None:
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


def test_a_defect_is_told_in_one_short_line(tmp_path) -> None:
    """Whatever a tensor in the file is called."""
    files = _save(tmp_path, 5)
    path = _path(tmp_path, 5)
    path.with_suffix(".json").unlink()
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [3, 9]}
    header = json.dumps({"two\nlines" * 200: tensor})
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(9))
    with pytest.raises(InputError, match="a damaged checkpoint") as caught:
        files.find_newest()
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 700
