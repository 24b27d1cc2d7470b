"""What a disturbed output is found to lack, and to have instead."""

import dataclasses
import json
import pathlib
import shutil

import pytest

from pipeline.storage import serialization
from tools.dev.soaking import differences, stages
from tools.dev.soaking.stages import Stage


def _stage(command: str, output: pathlib.Path) -> Stage:
    return Stage("x", command, output, output, {})


def _rewrite(folder: pathlib.Path, change) -> None:
    """Writes the first train shard anew; its manifest says what is there."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    entry = manifest["splits"]["train"][0]
    records = change(list(serialization.read_records(folder / entry["file"])))
    (folder / entry["file"]).unlink()
    shard = serialization.write_shard(folder, entry["file"], records)
    entry.update({**dataclasses.asdict(shard), "measured": entry.get("measured")})
    if entry["measured"] is None:
        del entry["measured"]
    path.write_text(json.dumps(manifest))


@pytest.fixture
def pair(tmp_path, examples_dir) -> tuple[Stage, Stage]:
    """An output that may be changed, and the reference."""
    shutil.copytree(examples_dir, tmp_path / "examples")
    command = "create_pretraining_data"
    return _stage(command, tmp_path / "examples"), _stage(command, examples_dir)


def test_equal_outputs(pair) -> None:
    assert differences.compare(*pair) == (0, 0)


def test_a_lost_record(pair) -> None:
    _rewrite(pair[0].output, lambda records: records[1:])
    # The manifest's own line, which counts records, is one that was lost and one that is wrong.
    assert differences.compare(*pair) == (2, 1)


def test_a_record_that_stands_twice(pair) -> None:
    _rewrite(pair[0].output, lambda records: [*records, records[0]])
    assert differences.compare(*pair) == (1, 2)


def test_an_output_that_cannot_be_read_has_lost_all(pair) -> None:
    records = sum(
        sum(1 for _ in serialization.read_records(path))
        for path in pair[1].output.glob("*.tfrecord")
    )
    (pair[0].output / "train-00001-of-00003.tfrecord").write_bytes(b"damaged")
    assert differences.compare(*pair) == (records + 1, 0)
    (pair[0].output / "manifest.json").unlink()
    assert differences.compare(*pair) == (records + 1, 0)


def test_what_is_left_over(pair) -> None:
    folder = pair[0].output
    assert differences.leftovers(pair[0]) == []
    (folder / ".spill").mkdir()
    (folder / ".train.tmp").touch()
    assert differences.leftovers(pair[0]) == [".train.tmp", ".spill"]


def test_students(tmp_path) -> None:
    folders = []
    for name, speed in (("a", 10.0), ("b", 20.0)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
        lines = [
            {"step": 20, "split": "train", "loss": speed},
            {"step": 20, "split": "eval", "loss": 3.5, "examples_per_second": speed},
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        folders.append(_stage(stages.STUDENT, folder))
    assert differences.compare(*folders) == (0, 0)
    (folders[0].output / "model.safetensors").write_bytes(b"others")
    assert differences.compare(*folders) == (1, 1)
    (folders[0].output / "metrics.jsonl").write_text("")
    assert differences.compare(*folders) == (2, 1)
    (folders[0].output / "model.safetensors").unlink()
    assert differences.compare(*folders) == (2, 0)
