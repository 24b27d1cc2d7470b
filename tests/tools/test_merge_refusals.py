"""Caches that cannot be merged are refused in one line, before any shard is written."""

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from tests.tools.conftest import Features, copy_cache, rewrite_cache
from tools import merge_caches as tool
from tools.merge_caches import MergeConfig, merge_caches

Change = Callable[[list[Features]], list[Features]]
SHARD = "train-00001-of-00003.tfrecord"
EVAL = "eval-00000-of-00001.tfrecord"


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"input_dirs": "a"}, "input_dirs"),
        ({"input_dirs": "a,"}, "input_dirs"),
        ({"input_dirs": ""}, "input_dirs"),
        ({"weights": "1"}, "weights"),
        ({"weights": "1,0"}, "weights"),
        ({"weights": "3,-1"}, "weights"),
        ({"weights": "0,0"}, "weights"),
        ({"weights": "half,half"}, "weights"),
        ({"truncation_factor": "17"}, "truncation_factor"),
        ({"truncation_factor": "0"}, "truncation_factor"),
        ({"logit_encoding": "text"}, "logit_encoding"),
    ],
)
def test_error_about_an_invalid_flag_names_it(
    cache_dir, other_cache_dir, tmp_path, capsys, changes: dict[str, str], flag: str
) -> None:
    settings = {
        "input_dirs": f"{cache_dir},{other_cache_dir}",
        "output_dir": str(tmp_path / "merged"),
        **changes,
    }
    assert tool.main(["x", *(f"--{name}={value}" for name, value in settings.items())]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and f"--{flag}" in line
    assert not (tmp_path / "merged").exists()


def _refuse(tmp_path: Location, *caches: object) -> InputError:
    """Returns the error of a merge; checks that no shard was written."""
    with pytest.raises(InputError) as refused:
        merge_caches(MergeConfig(tuple(map(str, caches)), str(tmp_path / "merged")))
    assert not list((tmp_path / "merged").glob("*.tfrecord"))
    return refused.value


def _swapped(rows: list[Features]) -> list[Features]:
    return [rows[1], rows[0], *rows[2:]]


def _first_row(change: Callable[[Features], Features]) -> Change:
    return lambda rows: [change(rows[0]), *rows[1:]]


def _changed(name: str, index: int, value: int) -> Change:
    def change(rows: list[Features]) -> list[Features]:
        array = np.frombuffer(rows[4][name], "<u2").copy()
        array[index] = value
        return [*rows[:4], {**rows[4], name: array.tobytes()}, *rows[5:]]

    return change


def _without(name: str) -> Change:
    return lambda rows: [{key: row[key] for key in row if key != name} for row in rows]


def _with_short(name: str) -> Change:
    return _first_row(lambda row: {**row, name: row[name][:-4]})


def _with_nan_tails(row: Features) -> Features:
    tails = np.full(len(row[records.LOG_TAIL_MASSES]) // 4, np.nan, "<f4")
    return {**row, records.LOG_TAIL_MASSES: tails.tobytes()}


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"vocab": {"size": 999, "sha256": "0" * 64}}, "the vocabulary's size: [0-9]+ and 999"),
        ({"special_ids": {"[PAD]": 7}}, r"special_ids: {.*} and {'\[PAD\]': 7}"),
        ({"max_seq_length": 47}, "max_seq_length: 48 and 47"),
        ({"max_predictions_per_seq": 9}, "max_predictions_per_seq: 8 and 9"),
        ({"parent": {"sha256": "0"}}, r"\(parent\): {.*} and {'sha256': '0'}"),
    ],
)
def test_caches_with_different_manifests_are_refused(
    cache_dir, other_cache_dir, tmp_path, changes: dict[str, Any], difference: str
) -> None:
    other_cache = copy_cache(other_cache_dir, tmp_path / "other", **changes)
    error = _refuse(tmp_path, cache_dir, other_cache)
    assert (error.subject, error.setting) == (str(cache_dir), "input_dirs")
    assert str(other_cache) in error.received and re.search(f"{difference}$", error.received)
    assert not (tmp_path / "merged").exists()


def test_another_vocabulary_of_the_same_size_is_refused(
    cache_dir, other_cache_dir, vocab, tmp_path
) -> None:
    changed = {"size": len(vocab), "sha256": "0" * 64}
    other_cache = copy_cache(other_cache_dir, tmp_path / "other", vocab=changed)
    error = _refuse(tmp_path, cache_dir, other_cache)
    assert re.search(f"vocabulary's SHA-256: [0-9a-f]+ and {'0' * 64}$", error.received)


def test_fewer_shards_and_other_counts_are_refused(cache_dir, other_cache_dir, tmp_path) -> None:
    splits = json.loads((other_cache_dir / "manifest.json").read_text())["splits"]
    fewer = {**splits, "train": [shard for shard in splits["train"] if shard["file"] != SHARD]}
    smaller = copy_cache(other_cache_dir, tmp_path / "smaller", splits=fewer)
    count = next(s["num_examples"] for s in splits["train"] if s["file"] == SHARD)
    splits["eval"][0]["num_examples"] += 1
    longer = copy_cache(other_cache_dir, tmp_path / "longer", splits=splits)
    for caches, difference in (
        ((cache_dir, smaller), f"number of examples of {SHARD}: {count} and None$"),
        ((smaller, cache_dir), f"number of examples of {SHARD}: None and {count}$"),
        ((cache_dir, longer), f"number of examples of {EVAL}: [0-9]+ and [0-9]+$"),
    ):
        assert re.search(difference, _refuse(tmp_path, *caches).received)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (_swapped, "differ in example_id of record 0 of .*: [0-9a-f]{32} and [0-9a-f]{32}$"),
        (_changed(records.INPUT_IDS, 2, 999), r"in input_ids\[2\] of record 4 .*: [0-9]+ and 999$"),
        (_changed(records.MASKED_LM_IDS, 0, 998), r"in masked_lm_ids\[0\] of record 4 .* and 998$"),
        (
            _changed(records.MASKED_LM_POSITIONS, 0, 0),
            r"in masked_lm_positions\[0\] of record 4 of .*: [0-9]+ and 0$",
        ),
        (
            _with_short(records.MASKED_LM_IDS),
            "in the length of masked_lm_ids of record 0 of .*: [0-9]+ and [0-9]+$",
        ),
        (
            _without(records.SEGMENT_LENGTHS),
            "in segment_lengths of record 0 .*: [0-9a-f]+ and none",
        ),
        (lambda rows: rows[:-1], "in the number of readable records of .*: [0-9]+ and [0-9]+$"),
        (_without(records.LABEL_LOG_PROBS), "broken record: 'label_log_probs'"),
        (_with_short(records.LOG_TAIL_MASSES), "broken record: log_tail_masses: expected"),
        (_with_short(records.LABEL_LOG_PROBS), "broken record: label_log_probs: expected"),
        (_first_row(_with_nan_tails), "received NaN"),
    ],
)
def test_caches_with_different_records_are_refused(
    cache_dir, other_cache_dir, tmp_path, change, difference: str
) -> None:
    other_cache = rewrite_cache(other_cache_dir, tmp_path / "other", change)
    assert re.search(difference, _refuse(tmp_path, cache_dir, other_cache).received)


def test_records_with_another_k_than_in_the_manifest_are_refused(
    cache_dir, other_cache_dir, tmp_path
) -> None:
    other_cache = copy_cache(other_cache_dir, tmp_path / "other", truncation_factor=11)
    assert "top-k of " in _refuse(tmp_path, cache_dir, other_cache).received


def test_only_teacher_caches_can_be_merged(cache_dir, examples_dir, tmp_path) -> None:
    error = _refuse(tmp_path, cache_dir, "/nowhere")
    assert (error.subject, error.setting) == ("/nowhere", "input_dirs")
    error = _refuse(tmp_path, cache_dir, examples_dir)
    assert (error.subject, error.received) == (str(examples_dir), "masked_examples")


@pytest.mark.parametrize(
    "teacher",
    [
        {"sha256": "1"},
        {},
        {"merged": [{"sha256": "0" * 64, "weight": 2}]},
        {"merged": [{"weight": 0.5, "merged": 3}]},
    ],
    ids=str,
)
def test_manifest_without_its_teachers_is_refused(cache_dir, tmp_path, teacher) -> None:
    other_cache = copy_cache(cache_dir, tmp_path / "other", teacher=teacher)
    assert _refuse(tmp_path, cache_dir, other_cache).subject.startswith(
        str(other_cache / "manifest.json")
    )


def test_damaged_shard_is_refused_before_anything_is_written(
    cache_dir, other_cache_dir, tmp_path
) -> None:
    other_cache = copy_cache(other_cache_dir, tmp_path / "other")
    content = bytearray((other_cache / SHARD).read_bytes())
    content[100] ^= 1
    (other_cache / SHARD).write_bytes(bytes(content))
    assert _refuse(tmp_path, cache_dir, other_cache).subject == str(other_cache / SHARD)
    assert not (tmp_path / "merged").exists()


def test_reserved_directory_refuses_another_merge(cache_dir, other_cache_dir, merged_dir) -> None:
    inputs = (str(cache_dir), str(other_cache_dir))
    for folder, weights in ((merged_dir, (1.0, 1.0)), (cache_dir, None)):
        with pytest.raises(InputError) as refused:
            merge_caches(MergeConfig(inputs, str(folder), weights))
        assert refused.value.subject == str(folder)
