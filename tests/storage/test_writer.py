"""Tests of shards that several processes write at the same time and one publishes."""

import os
import pathlib

import pytest

from pipeline.base.errors import InputError
from pipeline.storage import manifest, serialization, spill
from pipeline.storage.manifest import NUM_POSITIONS

FILE = "train-00000-of-00002.tfrecord"


def _records(directory: pathlib.Path) -> list[bytes]:
    return list(serialization.read_records(directory / FILE))


def test_a_staged_shard_is_hidden_until_it_is_published(tmp_path: pathlib.Path) -> None:
    staged = serialization.stage_shard(
        tmp_path, FILE, iter([b"one", b"three"]), lambda: {"measured": {NUM_POSITIONS: 3}}
    )
    assert [path.name for path in tmp_path.iterdir()] == [staged.temporary]
    assert staged.temporary.startswith(f".{FILE}.") and staged.temporary.endswith(".tmp")
    assert manifest.completed_shard(tmp_path, FILE) is None
    shard = serialization.publish_shard(tmp_path, staged)
    assert _records(tmp_path) == [b"one", b"three"]
    # Each record has a header of 12 bytes and a footer of 4 bytes.
    assert (shard.num_examples, shard.bytes, shard.measured) == (2, 40, {NUM_POSITIONS: 3})
    assert shard.sha256 == (tmp_path / FILE).sha256()
    assert manifest.completed_shard(tmp_path, FILE) == shard
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".{FILE}.json", FILE]


def test_staged_and_written_shards_are_equal(tmp_path: pathlib.Path) -> None:
    written, staged = tmp_path / "written", tmp_path / "staged"
    for folder in (written, staged):
        folder.mkdir()
    serialization.write_shard(written, FILE, [b"one", b"two"])
    serialization.publish_shard(staged, serialization.stage_shard(staged, FILE, [b"one", b"two"]))
    assert [path.name for path in sorted(written.iterdir())] == [
        path.name for path in sorted(staged.iterdir())
    ]
    for path in written.iterdir():
        assert (staged / path.name).read_bytes() == path.read_bytes()
        assert (staged / path.name).stat().st_mode == path.stat().st_mode


def test_concurrent_writers_of_a_shard_do_not_mix(tmp_path: pathlib.Path) -> None:
    """Machines may round differently, and a job that was given up may still be running."""
    published = []

    def slow():
        yield b"first"
        # Another writer begins, ends and publishes its shard meanwhile.
        other = serialization.stage_shard(tmp_path, FILE, [b"second"])
        published.append(serialization.publish_shard(tmp_path, other))
        yield b"third"

    late = serialization.stage_shard(tmp_path, FILE, slow())
    assert late.info != published[0]
    assert manifest.completed_shard(tmp_path, FILE) == published[0]
    assert _records(tmp_path) == [b"second"]
    assert published[0].sha256 == (tmp_path / FILE).sha256()
    tmp_path.remove_temporaries({FILE})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".{FILE}.json", FILE]


def test_a_failed_staged_shard_leaves_no_file(tmp_path: pathlib.Path) -> None:
    def records():
        yield b"one"
        raise OSError(28, os.strerror(28))

    with pytest.raises(OSError, match="No space left on device") as raised:
        serialization.stage_shard(tmp_path, FILE, records())
    assert raised.value.filename.startswith(f"{tmp_path}/.{FILE}.")
    assert not list(tmp_path.iterdir())


def test_only_temporaries_of_the_named_files_are_removed(tmp_path: pathlib.Path) -> None:
    other = "train-00001-of-00002.tfrecord"
    temporaries = [f".{FILE}.tmp", f".{FILE}.0123abcd.tmp"]
    others = [FILE, f".{FILE}.json", f".{other}.tmp", f".{other}.0123abcd.tmp", "notes.tmp", ".tmp"]
    for name in temporaries + others:
        (tmp_path / name).touch()
    tmp_path.remove_temporaries({FILE})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_concurrent_writers_of_a_spill_file_do_not_mix(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "0.spill"
    example_ids = b"".join(bytes([number] * 16) for number in range(3))
    entries = spill.Entries(example_ids, range(3), [b"record"] * 3, [0] * 3)
    with path.atomic_write() as temporary:
        # The lock of a killed process on another machine may remain for a while.
        with pytest.raises(InputError, match="another process is writing this file"):
            spill.write_spill(path, entries, {"number": 0})
        spill.write_spill(path, entries, {"number": 0}, is_only_writer=False)
        written = path.read_bytes()
        temporary.write_bytes(written)
    assert path.read_bytes() == written
    assert spill.read_header(path) == {"number": 0}
    assert [item.name for item in tmp_path.iterdir()] == ["0.spill"]
