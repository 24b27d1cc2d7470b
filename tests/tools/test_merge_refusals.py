"""What cannot be merged is refused in one line, and nothing is begun."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from data_specs import records
from pipeline.base.errors import InputError
from tests.tools.conftest import Features, copy_cache, rewrite_cache
from tools import merge_caches as tool
from tools.merge_caches import MergeConfig, merge_caches

LOST = "train-00001-of-00003.tfrecord"
EVAL = "eval-00000-of-00001.tfrecord"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_dirs": "a"}, "--input_dirs: expected two caches or more, .* received 'a'"),
        ({"input_dirs": "a,"}, "--input_dirs: expected two caches or more, .* received 'a,'"),
        ({"input_dirs": ""}, "missing: --input_dirs"),
        ({"weights": "1"}, "--weights: expected 2, one for each of --input_dirs, received 1"),
        ({"weights": "1,0"}, "--weights: expected numbers above 0, received 1,0"),
        ({"weights": "3,-1"}, "--weights: expected numbers above 0, received 3,-1"),
        ({"weights": "0,0"}, "--weights: expected numbers above 0, received 0,0"),
        ({"weights": "half,half"}, "--weights: expected numbers such as 1,2, received 'half,half'"),
        ({"truncation_factor": "17"}, "--truncation_factor: expected at most 16, .* received 17"),
        ({"truncation_factor": "0"}, "--truncation_factor=0: "),
        (
            {"logit_encoding": "text"},
            "--logit_encoding=text: value should be one of <float16\\|compact>",
        ),
    ],
)
def test_mistaken_flags(
    cache_dir, other_cache_dir, tmp_path, capsys, changes: dict[str, str], message: str
) -> None:
    settings = {
        "input_dirs": f"{cache_dir},{other_cache_dir}",
        "output_dir": str(tmp_path / "merged"),
        **changes,
    }
    assert tool.main(["x", *(f"--{name}={value}" for name, value in settings.items())]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    with pytest.raises(InputError, match=message):
        raise InputError(line)
    assert not (tmp_path / "merged").exists()


def _swapped(rows: list[Features]) -> list[Features]:
    return [rows[1], rows[0], *rows[2:]]


def _changed(name: str, place: int, value: int) -> Callable[[list[Features]], list[Features]]:
    def change(rows: list[Features]) -> list[Features]:
        array = np.frombuffer(rows[4][name], "<u2").copy()
        array[place] = value
        return [*rows[:4], {**rows[4], name: array.tobytes()}, *rows[5:]]

    return change


def _without(name: str) -> Callable[[list[Features]], list[Features]]:
    def change(rows: list[Features]) -> list[Features]:
        return [{key: value for key, value in row.items() if key != name} for row in rows]

    return change


def _with_short(name: str) -> Callable[[list[Features]], list[Features]]:
    def change(rows: list[Features]) -> list[Features]:
        return [{**rows[0], name: rows[0][name][:-4]}, *rows[1:]]

    return change


def _of_nan(rows: list[Features]) -> list[Features]:
    tails = np.full(len(rows[0][records.LOG_TAIL_MASSES]) // 4, np.nan, "<f4")
    return [{**rows[0], records.LOG_TAIL_MASSES: tails.tobytes()}, *rows[1:]]


TOGETHER = "--input_dirs: expected caches of the same examples, vocabulary and order, received "


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vocab": {"size": 999, "sha256": "0" * 64}},
            "differ in the vocabulary's size: [0-9]+ and 999",
        ),
        ({"special_ids": {"[PAD]": 7}}, r"differ in special_ids: {.*} and {'\[PAD\]': 7}"),
        ({"max_seq_length": 47}, "differ in max_seq_length: 48 and 47"),
        ({"max_predictions_per_seq": 9}, "differ in max_predictions_per_seq: 8 and 9"),
        ({"parent": {"sha256": "0"}}, r"they were made from \(parent\): {.*} and {'sha256': '0'}"),
    ],
)
def test_manifests_that_differ(
    cache_dir, other_cache_dir, tmp_path, changes: dict[str, Any], message: str
) -> None:
    other = copy_cache(other_cache_dir, tmp_path / "other", **changes)
    names = f"{cache_dir} and {other}, which "
    with pytest.raises(InputError, match=f"^{TOGETHER}{names}.*{message}$"):
        merge_caches(MergeConfig((str(cache_dir), str(other)), str(tmp_path / "merged")))
    assert not (tmp_path / "merged").exists()


def test_another_vocabulary_of_the_same_size(cache_dir, other_cache_dir, vocab, tmp_path) -> None:
    sha256 = "0" * 64
    there = {"size": len(vocab), "sha256": sha256}
    other = copy_cache(other_cache_dir, tmp_path / "other", vocab=there)
    with pytest.raises(InputError, match=f"the vocabulary's SHA-256: [0-9a-f]+ and {sha256}$"):
        merge_caches(MergeConfig((str(cache_dir), str(other)), str(tmp_path / "merged")))


def test_fewer_shards_and_other_counts(cache_dir, other_cache_dir, tmp_path) -> None:
    splits = json.loads((other_cache_dir / "manifest.json").read_text())["splits"]
    fewer = {**splits, "train": [shard for shard in splits["train"] if shard["file"] != LOST]}
    narrowed = copy_cache(other_cache_dir, tmp_path / "narrowed", splits=fewer)
    count = next(s["num_examples"] for s in splits["train"] if s["file"] == LOST)
    for folders, message in (
        ((cache_dir, narrowed), f"number of examples of {LOST}: {count} and None$"),
        ((narrowed, cache_dir), f"number of examples of {LOST}: None and {count}$"),
    ):
        with pytest.raises(InputError, match=message):
            merge_caches(MergeConfig(tuple(map(str, folders)), str(tmp_path / "merged")))
    splits["eval"][0]["num_examples"] += 1
    longer = copy_cache(other_cache_dir, tmp_path / "longer", splits=splits)
    with pytest.raises(InputError, match=f"number of examples of {EVAL}: [0-9]+ and [0-9]+$"):
        merge_caches(MergeConfig((str(cache_dir), str(longer)), str(tmp_path / "merged")))


@pytest.mark.parametrize(
    ("change", "message"),
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
        (lambda rows: rows[:-1], "in how many records of .* can be read: [0-9]+ and [0-9]+$"),
        (_without(records.LABEL_LOG_PROBS), "broken record: 'label_log_probs'"),
        (_with_short(records.LOG_TAIL_MASSES), "broken record: cannot reshape"),
        (_with_short(records.LABEL_LOG_PROBS), "expected label_log_probs at \\d+ masked positions"),
        (_of_nan, "expected finite logits, tails and label_log_probs, received NaN"),
    ],
)
def test_records_that_differ(cache_dir, other_cache_dir, tmp_path, change, message: str) -> None:
    other = rewrite_cache(other_cache_dir, tmp_path / "other", change)
    with pytest.raises(InputError, match=message):
        merge_caches(MergeConfig((str(cache_dir), str(other)), str(tmp_path / "merged")))
    assert not list((tmp_path / "merged").glob("*.tfrecord"))


def test_lists_of_another_length_than_the_manifest_says(
    cache_dir, other_cache_dir, tmp_path
) -> None:
    other = copy_cache(other_cache_dir, tmp_path / "other", truncation_factor=11)
    with pytest.raises(InputError, match=r"top-k of \d+ ids, 11 at each position, received \d+$"):
        merge_caches(MergeConfig((str(cache_dir), str(other)), str(tmp_path / "merged")))


def test_what_is_no_cache_to_be_merged(cache_dir, examples_dir, tmp_path) -> None:
    merged = str(tmp_path / "merged")
    with pytest.raises(InputError, match="input_dirs: expected a complete .* which is no cache"):
        merge_caches(MergeConfig((str(cache_dir), "/nowhere"), merged))
    with pytest.raises(InputError, match="expected teacher caches, .* holds masked_examples"):
        merge_caches(MergeConfig((str(cache_dir), str(examples_dir)), merged))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"sha256": "1"}, "expected a teacher's SHA-256, received '1'"),
        ({}, "missing or misshapen field 'sha256'"),
        (
            {"merged": [{"sha256": "0" * 64, "weight": 2}]},
            "expected a teacher's weight, received 2",
        ),
        ({"merged": [{"weight": 0.5, "merged": 3}]}, "missing or misshapen field"),
    ],
)
def test_a_manifest_without_its_teachers(cache_dir, tmp_path, teacher, message: str) -> None:
    other = copy_cache(cache_dir, tmp_path / "other", teacher=teacher)
    with pytest.raises(InputError, match=message):
        merge_caches(MergeConfig((str(cache_dir), str(other)), str(tmp_path / "merged")))


def test_damage_is_found_before_any_work(cache_dir, other_cache_dir, tmp_path) -> None:
    other = copy_cache(other_cache_dir, tmp_path / "other")
    content = bytearray((other / LOST).read_bytes())
    content[100] ^= 1
    (other / LOST).write_bytes(bytes(content))
    config = MergeConfig((str(cache_dir), str(other)), str(tmp_path / "merged"))
    with pytest.raises(InputError, match=f"{other / LOST}: this shard is damaged"):
        merge_caches(config)
    assert not (tmp_path / "merged").exists()


def test_another_merge_wants_another_directory(
    cache_dir, other_cache_dir, merged_dir, tmp_path
) -> None:
    inputs = (str(cache_dir), str(other_cache_dir))
    with pytest.raises(InputError, match="holds the output of another request: merged is"):
        merge_caches(MergeConfig(inputs, str(merged_dir), (1.0, 1.0)))
    with pytest.raises(InputError, match="holds the output of another request: "):
        merge_caches(MergeConfig(inputs, str(cache_dir)))
