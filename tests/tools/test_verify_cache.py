"""Verification and repair with damage of every kind."""

import collections
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import struct

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_specs import records
from pipeline.base import json_text
from pipeline.base.location import Location
from pipeline.storage import manifest as manifests
from pipeline.storage import serialization, token_counts
from pipeline.storage.manifest import Manifest
from pipeline.tokenizers.vocabulary import VocabInfo
from tests.conftest import make_cache
from tests.tools.conftest import Features, read_shard
from tools import verify_cache as tool

EVAL = "eval-00000-of-00001.tfrecord"
MASKED = records.MASKED_EXAMPLE_FEATURES
TRAIN = [f"train-0000{index}-of-00003.tfrecord" for index in range(3)]


@pytest.fixture
def folder(cache_dir, tmp_path) -> pathlib.Path:
    """A copy of the teacher cache."""
    return shutil.copytree(cache_dir, tmp_path / "cache")


@pytest.fixture(scope="module")
def small_dir(tmp_path_factory, examples_dir, teacher_dir) -> pathlib.Path:
    """A cache with measured shards and token counts; read only."""
    folder = tmp_path_factory.mktemp("small") / "cache"
    changes = {"logit_encoding": "compact", "truncation_mass": 0.9}
    return make_cache(folder, examples_dir, teacher_dir, **changes)


def _run(folder: pathlib.Path, capsys, *flags: str) -> tuple[int, list[str], list[str]]:
    """Returns the exit status, the printed lines and the error lines."""
    status = tool.main(["verify_cache", f"--input_dir={folder}", *flags])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    stderr_lines = captured.err.replace("\r", "\n").split("\n")
    errors = [line for line in stderr_lines if line.startswith("error: ")]
    return status, captured.out.splitlines(), errors


def _problems(folder: pathlib.Path, capsys, *flags: str) -> dict[str, str]:
    """Returns the printed problems of a broken directory, by the name of the file."""
    status, lines, (error,) = _run(folder, capsys, *flags)
    problems = dict(line.split(": ", 1) for line in lines)
    assert status == 1 and f"({', '.join(problems)})" in error
    assert len(problems) == len(lines)
    return problems


def _content(folder: pathlib.Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def _flip(path: pathlib.Path, offset: int, mask: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= mask
    path.write_bytes(bytes(content))


def _publish(folder: pathlib.Path, file: str, rows: list[Features], **changes) -> None:
    """Replaces a shard, its sidecar and its entry in the manifest."""
    loaded = manifests.load(folder)
    (old,) = (shard for shard in loaded.shards if shard.file == file)
    measured = None if old.measured is None else collections.Counter()
    for row in rows if measured is not None else ():
        added = {f.name: row[f.name] for f in loaded.features if f not in MASKED}
        manifests.measure_record(measured, added, loaded.teacher_info.truncation_factor)
    encoded = [serialization.encode_example(row) for row in rows]
    new = msgspec.structs.replace(
        serialization.write_shard(folder, file, encoded, lambda: {"measured": measured}), **changes
    )
    (manifests.sidecar_path(folder, file)).write_json(new.to_json())
    splits = {
        split: tuple(new if shard.file == file else shard for shard in shards)
        for split, shards in loaded.splits.items()
    }
    manifests.publish(folder, dataclasses.replace(loaded, splits=splits))


def _task_logits(folder: pathlib.Path, *rows: list[float], **flags) -> pathlib.Path:
    """Writes a directory of task logits with a record for each row."""
    folder.mkdir()
    run_config = {"kind": records.TASK_LOGITS, "max_seq_length": 8, **flags}
    manifests.reserve_output_dir(folder, run_config)
    encoded = [
        serialization.encode_example(
            {records.EXAMPLE_ID: bytes(16), records.TEACHER_LOGITS: np.array(row, "<f4").tobytes()}
        )
        for row in rows
    ]
    file = manifests.shard_file("train", 0, 1)
    shard = serialization.write_shard(folder, file, encoded)
    sizes = {"max_seq_length": 8, "max_predictions_per_seq": 0, "dupe_factor": 1, "seed": 0}
    vocab = {"vocab": VocabInfo(5, "0" * 64), "special_ids": {"pad": 0}}
    content = {"kind": records.TASK_LOGITS, "flags": run_config, "splits": {"train": (shard,)}}
    manifests.publish(folder, Manifest(**content, **vocab, **sizes))
    return folder


def test_valid_directories_of_each_kind_pass_unchanged(
    cache_dir, examples_dir, windows_dir, small_dir, merged_dir, tmp_path, capsys
):
    logits = _task_logits(tmp_path / "logits", [0.5, 1.0], [0.5, 1.0, 2.0])
    teacher = "features, lengths, ids, order, masks, top-k, tails and labels are valid"
    checks = {
        **dict.fromkeys((cache_dir, small_dir, merged_dir), teacher),
        examples_dir: "features, lengths, ids, order and masks are valid",
        windows_dir: "features, lengths, ids, order and words are valid",
        logits: "features and logits are valid",
    }
    for folder, checked in checks.items():
        before = _content(folder)
        status, lines, errors = _run(folder, capsys)
        assert (status, errors) == (0, []) and lines[-1] == f"no problems found: {folder}"
        loaded = manifests.load(folder)
        count = sum(map(loaded.num_examples, loaded.splits))
        (line,) = (line for line in lines if line.startswith("records"))
        assert line.startswith(f"records    {count:,} in ") and line.endswith(checked)
        assert _content(folder) == before


def test_all_broken_files_are_listed(folder, capsys) -> None:
    (folder / EVAL).write_bytes((folder / EVAL).read_bytes()[:-1])
    (folder / TRAIN[0]).unlink()
    manifests.sidecar_path(folder, TRAIN[1]).unlink()
    _flip(folder / TRAIN[2], 100)
    _flip(manifests.sidecar_path(folder, TRAIN[2]), 30)
    (folder / "vocab.txt").unlink()
    shards = {shard.file: shard for shard in manifests.load(folder).shards}
    received = (folder / TRAIN[2]).sha256()
    problems = _problems(folder, capsys)
    size = shards[EVAL].bytes
    start = problems[EVAL].split("byte ")[1].split(":")[0]
    assert problems.pop("tokenizer").startswith("vocab.txt is missing; ")
    assert problems == {
        EVAL: f"expected {size} bytes, received {size - 1}; broken record at byte {start}: the "
        "file ends inside it",
        TRAIN[0]: "it is missing",
        TRAIN[1]: f"its sidecar .{TRAIN[1]}.json is missing",
        TRAIN[2]: f"expected SHA-256 {shards[TRAIN[2]].sha256}, received {received}; broken record "
        "at byte 0: the checksum of its data does not match; its sidecar "
        f".{TRAIN[2]}.json differs from manifest.json",
    }


def test_record_beyond_the_maximum_length_is_reported(folder, capsys) -> None:
    """The record claims a length of 2^60, with a valid checksum."""
    length = struct.pack("<Q", 2**60)
    header = length + struct.pack("<I", serialization._masked_crc(length))
    (folder / EVAL).write_bytes(header + b"x" * 100)
    text = "broken record at byte 0: expected at most 268435456 bytes, received 1152921504606846976"
    assert text in _problems(folder, capsys)[EVAL]


def test_records_that_are_not_examples_are_reported(folder, capsys) -> None:
    framed = [serialization.frame_record(b"\x08\x01"), serialization.frame_record(b"")]
    (folder / EVAL).write_bytes(b"".join(framed))
    problem = _problems(folder, capsys)[EVAL]
    assert "record 0: expected a tf.train.Example of bytes: a field of wire type 0" in problem
    count = manifests.load(folder).num_examples("eval")
    assert f"expected {count:,} records, received 2" in problem


def test_wrong_number_and_order_of_records_are_reported(folder, capsys) -> None:
    """Sizes and checksums equal those in the manifest."""
    rows = read_shard(folder, TRAIN[0])
    count = len(rows)
    _publish(folder, TRAIN[0], rows[:-2], num_examples=count)
    rows = read_shard(folder, TRAIN[1])
    _publish(folder, TRAIN[1], [rows[1], rows[0], *rows[2:], rows[-1]])
    misplaced = read_shard(folder, TRAIN[1])[:1]
    _publish(folder, TRAIN[2], misplaced + read_shard(folder, TRAIN[2]))
    assert _problems(folder, capsys) == {
        TRAIN[0]: f"expected {count:,} records, received {count - 2:,}",
        TRAIN[1]: "record 1: example_id: expected ascending ids, none twice (1 more)",
        TRAIN[2]: "record 0: example_id: expected ids of shard 2 of 3",
    }


def test_records_with_invalid_targets_are_reported(folder, capsys) -> None:
    rows = read_shard(folder, TRAIN[0])
    rows[5][records.TOPK_IDS] = rows[5][records.TOPK_IDS][:-2]
    for index in (7, 9):
        rows[index][records.TOPK_LOGITS] = bytes(len(rows[index][records.TOPK_LOGITS]) - 1) + b"@"
    _publish(folder, TRAIN[0], rows)
    text = _problems(folder, capsys)[TRAIN[0]]
    expected = len(rows[5][records.TOPK_IDS]) // 2 + 1
    first = f"record 5: topk_ids: expected {expected} numbers, received {expected - 1}"
    assert text.startswith(first + "; ")
    assert "record 7: topk_logits: expected descending numbers (1 more)" in text


def test_example_in_both_splits_is_reported(folder, capsys) -> None:
    (repeated, *_) = read_shard(folder, EVAL)
    shard = TRAIN[int.from_bytes(repeated[records.EXAMPLE_ID][:8], "big") * 3 >> 64]
    rows = [*read_shard(folder, shard), repeated]
    rows.sort(key=lambda row: row[records.EXAMPLE_ID])
    _publish(folder, shard, rows)
    assert _problems(folder, capsys) == {shard: "it repeats 1 examples of the eval split"}


def test_wrong_measured_sizes_are_reported(small_dir, tmp_path, capsys) -> None:
    folder = shutil.copytree(small_dir, tmp_path / "cache")
    (shard,) = manifests.load(folder).splits["eval"]
    measured = {**shard.measured, "num_ids": shard.measured["num_ids"] + 1}
    _publish(folder, EVAL, read_shard(folder, EVAL), measured=measured)
    assert _problems(folder, capsys) == {
        EVAL: f"measured num_ids: expected {measured['num_ids']}, as in the manifest, received "
        f"{shard.measured['num_ids']}"
    }


def test_wrong_token_counts_are_reported(small_dir, windows_dir, tmp_path, capsys) -> None:
    for number, source in enumerate((small_dir, windows_dir)):
        folder = shutil.copytree(source, tmp_path / str(number))
        loaded = manifests.load(folder)
        counts = token_counts.load_counts(folder, loaded).copy()
        # The ranks must not change, as they decide the packed ids. The most frequent token stays
        # the most frequent.
        token = int(counts.argmax())
        counts[token] += 5
        info = token_counts.write_counts(folder / "token_counts.npy", counts)
        manifests.publish(folder, dataclasses.replace(loaded, token_counts=info))
        assert _problems(folder, capsys) == {
            "token_counts.npy": f"token {token}: expected {counts[token] - 5}, as counted in the "
            f"records, received {counts[token]}"
        }
        _flip(folder / "token_counts.npy", -1)
        assert "expected SHA-256" in _problems(folder, capsys)["token_counts.npy"]


_CLASSES = {"head": "classification", "labels": ["0", "1"]}


@pytest.mark.parametrize(
    ("rows", "flags", "problem"),
    [
        ([[0.5, np.nan]] * 2, {}, "record 0: teacher_logits: expected finite numbers (1 more)"),
        ([[0.5], []], {}, "record 1: teacher_logits: expected at least one number"),
        ([[0.5, 1.0], [0.5]], _CLASSES, "record 1: teacher_logits: expected 2 numbers"),
        (
            [[0.5, 1.0], [0.5]],
            {"head": "regression", "labels": []},
            "record 0: teacher_logits: expected 1 numbers",
        ),
        (
            [[0.5] * 4, [0.5] * 3],
            {"head": "span", "labels": []},
            "record 1: teacher_logits: expected 2 numbers for each token",
        ),
        (
            [[0.5] * 6, [0.5] * 4],
            {"head": "token_classification", "labels": ["O", "B-X", "I-X"]},
            "record 1: teacher_logits: expected 3 numbers for each token",
        ),
        (
            [[0.5] * 6, []],
            {"head": "token_classification", "labels": ["O", "B-X", "I-X"]},
            "record 1: teacher_logits: expected 3 numbers for each token",
        ),
    ],
)
def test_invalid_task_logits_are_reported(tmp_path, capsys, rows, flags, problem: str) -> None:
    folder = _task_logits(tmp_path / "logits", *rows, **flags)
    file = manifests.shard_file("train", 0, 1)
    assert _problems(folder, capsys) == {file: problem}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"seed": 1}, "seed is 1, but 12345 among its flags"),
        ({"max_seq_length": 50}, "max_seq_length is 50, but 48 among its flags"),
        ({"truncation_factor": 8}, "truncation_factor is 8, but 16 among its flags"),
        (
            {"special_ids": {"pad": 0}},
            "expected special_ids with cls, mask, sep, received {'pad': 0}",
        ),
        ({"parent": {"sha256": "0" * 64}}, "parent is {'sha256': '000"),
        ({"statistics": {"documents": 1}}, "expected SHA-256 "),
        # This key is unknown, as a key of a later version is.
        ({"more": 1}, "expected SHA-256 "),
    ],
)
def test_a_changed_manifest_is_reported(folder, change, problem: str, capsys) -> None:
    path = folder / "manifest.json"
    value = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    status, lines, (error,) = _run(folder, capsys)
    assert status == 1 and "move manifest.json out of the directory" in error
    assert "create_teacher_output_data" in error
    (line,) = (line for line in lines if line.startswith("manifest.json: "))
    assert line.startswith("manifest.json: expected SHA-256 ") and problem in line


def test_a_manifest_with_a_misplaced_shard_is_refused(folder, capsys) -> None:
    loaded = manifests.load(folder)
    for misplaced, message in (
        (loaded.splits["eval"][0], f"expected each shard once, received {EVAL} twice"),
        (loaded.splits["train"][0], f"expected a shard of the split eval, received {TRAIN[0]}"),
    ):
        splits = {**loaded.splits, "eval": (*loaded.splits["eval"], misplaced)}
        manifests.publish(folder, dataclasses.replace(loaded, splits=splits))
        status, lines, (error,) = _run(folder, capsys)
        assert status == 1 and not lines and message in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "manifest.json: not JSON"),
        (b"{}", "expected format_version 1, received None"),
        (None, "unfinished"),
    ],
)
def test_error_about_an_unreadable_manifest_has_a_hint(
    folder, content, message: str, capsys
) -> None:
    (folder / "manifest.json").unlink()
    if content is not None:
        (folder / "manifest.json").write_bytes(content)
    status, lines, (error,) = _run(folder, capsys)
    assert status == 1 and not lines and message in error
    assert ("move manifest.json out of the directory" in error) == (content is not None)


def test_wrong_run_configuration_and_checksum_are_reported(folder, cache_dir, capsys) -> None:
    (folder / "request.json").unlink()
    (folder / ".manifest.json.sha256").write_text("0  manifest.json\n")
    assert _problems(folder, capsys) == {
        "manifest.json": "its checksum .manifest.json.sha256 is damaged",
        "request.json": "it is missing",
    }
    (folder / ".manifest.json.sha256").unlink()
    (folder / "request.json").write_text("[]")
    problems = _problems(folder, capsys)
    assert problems == {"request.json": "expected a JSON object, received list"}
    (folder / "request.json").write_text("{}")
    loaded = manifests.load(folder)
    run_config = {**json.loads((cache_dir / "request.json").read_text()), "predict_batch_size": 9}
    (folder / "request.json").write_text(json.dumps(run_config))
    assert _problems(folder, capsys) == {
        "request.json": "it differs from manifest.json: predict_batch_size (manifest.json has "
        f"{loaded.flags['predict_batch_size']}, request.json has 9)"
    }


_NEWER_FIELDS = ("hidden_groups", "hidden_encoding", "hidden_size", "statistics")


def test_a_directory_without_checksum_and_newer_fields_is_repaired(
    folder, teacher_dir, examples_dir, capsys
) -> None:
    """Older versions wrote such directories."""
    (folder / ".manifest.json.sha256").unlink()
    assert _run(folder, capsys)[0] == 0
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    older = {name: value[name] for name in value if name not in _NEWER_FIELDS}
    assert len(value) - len(older) == len(_NEWER_FIELDS)
    content = json_text.dump(older)
    path.write_bytes(content)
    assert _run(folder, capsys)[0] == 0
    _flip(folder / EVAL, 1000)
    flags = ("--repair", f"--teacher={teacher_dir}", f"--examples={examples_dir}")
    assert _run(folder, capsys, *flags, "--sample_examples=0")[0] == 0
    assert (folder / "manifest.json.old").read_bytes() == content


@pytest.mark.parametrize("indent", [None, 4])
def test_a_reformatted_manifest_is_reported(folder, indent: int | None, capsys) -> None:
    (folder / ".manifest.json.sha256").unlink()
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=indent, sort_keys=True) + "\n")
    problems = _problems(folder, capsys)
    assert problems == {"manifest.json": "its bytes are not those that were published"}


def test_a_tokenizer_with_other_special_tokens_is_reported(folder, capsys) -> None:
    loaded = manifests.load(folder)
    ids = {**loaded.special_ids, "pad": 7}
    manifests.publish(folder, dataclasses.replace(loaded, special_ids=ids))
    problems = _problems(folder, capsys)
    assert problems["tokenizer"].startswith("expected special_ids {'cls': 2, ")


@functools.cache
def _fuzzed(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Returns a copy of a directory with a few records of each shard."""
    folder = Location.parse(shutil.copytree(source, target))
    for file in (EVAL, *TRAIN):
        _publish(folder, file, read_shard(source, file)[:4])
    return folder


@settings(max_examples=100)
@given(data=st.data())
def test_every_flipped_byte_is_reported(cache_dir, tmp_path_factory, data) -> None:
    """The byte is anywhere in a shard, a sidecar, the manifest or its checksum."""
    folder = _fuzzed(cache_dir, tmp_path_factory.getbasetemp() / "fuzzed_cache")
    sidecars = [f".{file}.json" for file in (EVAL, *TRAIN)]
    names = [EVAL, *TRAIN, *sidecars, "manifest.json", ".manifest.json.sha256"]
    path = folder / data.draw(st.sampled_from(names))
    content = path.read_bytes()
    try:
        for _ in range(data.draw(st.integers(1, 3))):
            _flip(path, data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(1, 255)))
        if path.read_bytes() != content:
            assert tool.main(["verify_cache", f"--input_dir={folder}"]) == 1
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("kind", ["cache", "examples", "windows"])
@settings(max_examples=60)
@given(data=st.data())
def test_a_manifest_with_random_values_never_raises(
    small_dir, examples_dir, windows_dir, tmp_path_factory, kind: str, data
) -> None:
    """The directory has no checksum, and a value of the manifest may have any type."""
    source = {"cache": small_dir, "examples": examples_dir, "windows": windows_dir}[kind]
    folder = _fuzzed(source, tmp_path_factory.getbasetemp() / f"fuzzed_small_{kind}")
    (folder / ".manifest.json.sha256").unlink(missing_ok=True)
    path = folder / "manifest.json"
    content = path.read_bytes()
    value = json.loads(content)
    numbers = st.sampled_from([0, -1, 1, 2**31, 2**60, 2**64, 10**400, 1e300, float("nan")])
    other_values = numbers | st.sampled_from([None, True, "", "x", "\ud800", [], {}, [1], {"a": 1}])
    inside, key = value, data.draw(st.sampled_from(sorted(value)))
    while isinstance(inside[key], dict | list) and inside[key] and data.draw(st.booleans()):
        inside = inside[key]
        keys = sorted(inside) if isinstance(inside, dict) else range(len(inside))
        key = data.draw(st.sampled_from(keys))
    inside[key] = data.draw(other_values)
    try:
        path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
        assert tool.main(["verify_cache", f"--input_dir={folder}"]) in (0, 1)
    finally:
        path.write_bytes(content)


# Repair and comparison with the teacher.


def _repair(folder, capsys, teacher, examples, *flags: str) -> tuple[int, list[str], list[str]]:
    inputs = (f"--teacher={teacher}", f"--examples={examples}")
    return _run(folder, capsys, "--repair", *inputs, *flags)


def _equal_files(folder: pathlib.Path, source: pathlib.Path) -> bool:
    return all((folder / path.name).read_bytes() == path.read_bytes() for path in source.iterdir())


def test_repair_makes_only_broken_files_again(
    folder, teacher_dir, examples_dir, cache_dir, capsys
) -> None:
    """Broken files are renamed, and other files do not change."""
    before = _content(folder)
    _flip(folder / EVAL, 1000)
    damaged = (folder / EVAL).read_bytes()
    (folder / TRAIN[1]).unlink()
    sidecar = f".{TRAIN[2]}.json"
    (folder / sidecar).write_text("{}")
    (folder / "vocab.txt").unlink()
    _flip(folder / "tokenizer_config.json", 3)
    (folder / "request.json").unlink()
    status, lines, errors = _repair(folder, capsys, teacher_dir, examples_dir)
    assert (status, errors) == (0, []) and lines[-1] == f"no problems found: {folder}"
    assert f"{EVAL}: renamed to {EVAL}.broken" in lines
    for file in (EVAL, TRAIN[1]):
        assert f"{file}: made again, the same bytes" in lines
    for file in (sidecar, "vocab.txt", "tokenizer_config.json", "request.json"):
        assert f"{file}: made again" in lines
    (sample,) = (line for line in lines if line.startswith("sample"))
    assert "agree with the teacher" in sample
    assert _equal_files(folder, cache_dir)
    after = _content(folder)
    assert after[TRAIN[0]] == before[TRAIN[0]] and after[TRAIN[2]] == before[TRAIN[2]]
    renamed = {EVAL, f".{EVAL}.json", f".{TRAIN[1]}.json", sidecar, "tokenizer_config.json"}
    assert set(after) - set(before) == {f"{name}.broken" for name in renamed}
    assert after[f"{EVAL}.broken"][0] == damaged and after[f"{sidecar}.broken"][0] == b"{}"
    # The renamed files do not disturb capture or another repair.
    assert make_cache(folder, examples_dir, teacher_dir) == folder
    _flip(folder / EVAL, 5)
    _, lines, _ = _repair(folder, capsys, teacher_dir, examples_dir, "--sample_examples=0")
    assert f"{EVAL}: renamed to {EVAL}.broken2" in lines


def test_repair_restores_shards_and_token_counts_of_a_compact_cache(
    small_dir, teacher_dir, examples_dir, tmp_path, capsys
) -> None:
    folder = shutil.copytree(small_dir, tmp_path / "cache")
    _flip(folder / TRAIN[0], 70)
    _flip(folder / "token_counts.npy", 200)
    assert _repair(folder, capsys, teacher_dir, examples_dir)[0] == 0
    assert _equal_files(folder, small_dir)


def test_changed_tokenizer_settings_survive_a_repair(
    folder, teacher_dir, examples_dir, capsys
) -> None:
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    _flip(folder / EVAL, 1000)
    assert _repair(folder, capsys, teacher_dir, examples_dir, "--sample_examples=0")[0] == 0
    assert (folder / "tokenizer_config.json").read_text() == '{"do_lower_case": false}'


def _publish_other_bytes(folder: pathlib.Path, file: str) -> None:
    """Publishes a shard as other hardware could have made it, and damages it."""
    rows = read_shard(folder, file)
    tails = np.frombuffer(rows[0][records.LOG_TAIL_MASSES], "<f4").copy()
    tails[0] = np.nextafter(tails[0], np.float32(-100))
    rows[0][records.LOG_TAIL_MASSES] = tails.tobytes()
    _publish(folder, file, rows)
    _flip(folder / file, 20)


def test_repair_reports_shards_with_other_bytes(
    folder, teacher_dir, examples_dir, cache_dir, capsys
) -> None:
    """The last bit of a number differs, as it may on other hardware."""
    _publish_other_bytes(folder, EVAL)
    old = (folder / "manifest.json").read_bytes()
    status, lines, _ = _repair(folder, capsys, teacher_dir, examples_dir)
    assert status == 0
    sha256 = (cache_dir / EVAL).sha256()
    assert f"{EVAL}: made again, other bytes, SHA-256 {sha256}" in lines
    (line,) = (line for line in lines if line.startswith("manifest.json: published again"))
    assert line.endswith("the old one is manifest.json.old")
    assert (folder / "manifest.json.old").read_bytes() == old
    assert _equal_files(folder, cache_dir)


@pytest.mark.parametrize("command", ["verify_cache", "capture"])
def test_an_interrupted_repair_is_finished(
    folder, teacher_dir, examples_dir, cache_dir, capsys, monkeypatch, command: str
) -> None:
    """Either the repair or the command that made the cache finishes it."""
    for file in (EVAL, TRAIN[0], TRAIN[1]):
        _publish_other_bytes(folder, file)
    write, written_files = serialization.write_shard, []

    def interrupted(directory, file, *rest):
        if len(written_files) == 2:
            raise KeyboardInterrupt
        written_files.append(file)
        return write(directory, file, *rest)

    monkeypatch.setattr(serialization, "write_shard", interrupted)
    status, lines, _ = _repair(folder, capsys, teacher_dir, examples_dir)
    assert status == 130 and len(written_files) == 2
    for file in (EVAL, TRAIN[0], TRAIN[1]):
        assert f"{file}: renamed to {file}.broken" in lines
    assert (folder / "manifest.json.old").is_file()
    assert "unfinished" in _run(folder, capsys)[2][0]
    monkeypatch.undo()
    before = _content(folder)
    if command == "capture":
        make_cache(folder, examples_dir, teacher_dir)
    else:
        assert _repair(folder, capsys, teacher_dir, examples_dir)[0] == 0
    assert _equal_files(folder, cache_dir)
    assert all(_content(folder)[file] == before[file] for file in written_files)


@pytest.mark.parametrize(
    ("file", "message"),
    [("vocab.txt", "error: --examples: {}: "), (EVAL, "{}/" + EVAL + ": this shard is damaged")],
)
def test_repair_with_damaged_examples_changes_nothing(
    folder, teacher_dir, examples_dir, tmp_path, capsys, file: str, message: str
) -> None:
    examples = shutil.copytree(examples_dir, tmp_path / "examples")
    _flip(examples / file, 100)
    (folder / "tokenizer_config.json").unlink()
    _flip(folder / EVAL, 100)
    before = _content(folder)
    status, _, (error,) = _repair(folder, capsys, teacher_dir, examples)
    assert status == 1 and message.format(examples) in error
    assert _content(folder) == before


def test_targets_of_another_teacher_are_reported(
    folder, other_cache_dir, teacher_dir, examples_dir, tmp_path, capsys
) -> None:
    """The records are valid, but another teacher made them than the manifest's."""
    other_cache = shutil.copytree(other_cache_dir, tmp_path / "other")
    loaded, original = manifests.load(other_cache), manifests.load(folder)
    teacher = original.teacher_info.teacher
    info = dataclasses.replace(loaded.teacher_info, teacher=teacher)
    flags = {**loaded.flags, "teacher": teacher}
    run_config = json.loads((other_cache / "request.json").read_text())
    (other_cache / "request.json").write_json({**run_config, "teacher": teacher})
    manifests.publish(other_cache, dataclasses.replace(loaded, teacher_info=info, flags=flags))
    assert _run(other_cache, capsys)[0] == 0
    problems = _problems(other_cache, capsys, f"--teacher={teacher_dir}", "--sample_examples=16")
    assert set(problems) == {EVAL, *TRAIN}
    for text in problems.values():
        assert "topk_ids: expected the teacher's most probable tokens (" in text
        assert "topk_logits: differs from the teacher's logits (" in text
        assert "log_tail_masses: differs from the teacher's tail mass at temperature 1 (" in text
        assert "label_log_probs: differs from the teacher's log-probability of the label (" in text
    status, lines, _ = _run(folder, capsys, f"--teacher={teacher_dir}", "--sample_examples=16")
    assert status == 0 and any(line.startswith("sample     16 examples, ") for line in lines)


def test_label_probabilities_of_zero_are_reported_if_the_teacher_differs(
    folder, teacher_dir, capsys
) -> None:
    """A stored −inf is valid for a logarithm beyond float16, but the teacher's is in range."""
    rows = read_shard(folder, EVAL)
    for row in rows:
        labels = np.frombuffer(row[records.MASKED_LM_IDS], "<u2")
        ids = np.frombuffer(row[records.TOPK_IDS], "<u2").reshape(len(labels), -1)
        log_probs = np.frombuffer(row[records.LABEL_LOG_PROBS], "<f2").copy()
        log_probs[~(ids == labels[:, np.newaxis]).any(axis=-1)] = -np.inf
        row[records.LABEL_LOG_PROBS] = log_probs.tobytes()
    _publish(folder, EVAL, rows)
    assert _run(folder, capsys)[0] == 0
    problems = _problems(folder, capsys, f"--teacher={teacher_dir}", "--sample_examples=16")
    assert set(problems) == {EVAL}
    assert (
        "label_log_probs: differs from the teacher's log-probability of the label ("
        in problems[EVAL]
    )


@pytest.mark.parametrize(
    "changes", [{"logit_encoding": "compact"}, {"truncation": "sampled"}], ids=str
)
def test_samples_of_compact_and_sampled_caches_pass(
    changes, examples_dir, teacher_dir, tmp_path, capsys
) -> None:
    if "truncation" in changes:
        changes = {**changes, "temperatures": (1.0,)}
    folder = make_cache(tmp_path / "cache", examples_dir, teacher_dir, **changes)
    flags = (f"--teacher={teacher_dir}", "--sample_examples=40")
    status, lines, _ = _run(folder, capsys, *flags)
    assert status == 0 and any(line.startswith("sample     40 examples, ") for line in lines)


def test_error_about_another_teacher_names_both(folder, other_teacher_dir, capsys) -> None:
    status, lines, (error,) = _run(folder, capsys, f"--teacher={other_teacher_dir}")
    sha256 = manifests.load(folder).teacher_info.teacher["sha256"]
    assert status == 1 and not lines and error.startswith("error: --teacher: ")
    assert sha256 in error and f"{other_teacher_dir}, SHA-256 " in error


def test_repair_with_other_examples_changes_nothing(
    folder, teacher_dir, examples_dir, tmp_path, capsys
) -> None:
    other_examples = shutil.copytree(examples_dir, tmp_path / "examples")
    loaded = manifests.load(other_examples)
    manifests.publish(other_examples, dataclasses.replace(loaded, statistics={}))
    _flip(folder / EVAL, 5)
    before = _content(folder)
    status, lines, (error,) = _repair(folder, capsys, teacher_dir, other_examples)
    assert status == 1 and not lines and _content(folder) == before
    parent = manifests.load(folder).teacher_info.parent
    received = manifests.load(other_examples).sha256()
    assert error.startswith("error: --examples: ")
    assert parent["sha256"] in error and received in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--repair",), "--repair: must be used together with --teacher"),
        (("--repair", "--teacher=x"), "--repair: must be used together with --examples"),
        (("--examples=x",), "--examples: must be used together with --repair"),
        (("--sample_examples=-1",), "sample_examples"),
    ],
)
def test_error_about_invalid_flags_names_the_flag(cache_dir, flags, message: str, capsys) -> None:
    status, _, (error,) = _run(cache_dir, capsys, *flags)
    assert status == 1 and message in error


def test_errors_about_unsupported_repairs_have_hints(
    examples_dir, merged_dir, folder, teacher_dir, capsys
) -> None:
    flags = ("--repair", f"--teacher={teacher_dir}", f"--examples={examples_dir}")
    _, _, (error,) = _run(examples_dir, capsys, *flags)
    assert "which holds masked_examples" in error and "create_pretraining_data" in error
    _, _, (error,) = _run(merged_dir, capsys, *flags)
    assert "was merged from 2 caches" in error and "offline_distill merge_caches" in error
    _flip(folder / ".manifest.json.sha256", 3)
    _, _, (error,) = _run(folder, capsys, *flags)
    assert error.startswith("error: --repair: must be used with a valid manifest.json")


def test_concurrent_repair_of_a_cache_is_refused(folder, teacher_dir, examples_dir, capsys) -> None:
    _flip(folder / EVAL, 5)
    with folder.lock():
        status, _, (error,) = _repair(folder, capsys, teacher_dir, examples_dir)
    assert status == 1 and "--input_dir: another process is writing to" in error
    assert not os.path.exists(folder / f"{EVAL}.broken")
