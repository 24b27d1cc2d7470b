"""Prepare with masking=dynamic: unmasked windows, and the counts of their tokens."""

import dataclasses
import pathlib
from collections import Counter

import msgspec
import numpy as np
import pytest

from data_specs import records
from data_specs.corpora import CorpusSource
from pipeline.base.errors import InputError
from pipeline.masking import masked_examples
from pipeline.masking.masked_examples import create_masked_examples
from pipeline.storage import manifest, serialization, token_counts


def _read(folder: pathlib.Path, split: str) -> list[dict[str, np.ndarray]]:
    loaded = manifest.load(folder)
    types = {
        feature.name: feature.numpy_dtype(loaded.vocab.size)
        for feature in records.FEATURES[loaded.kind]
    }
    examples = [
        serialization.decode_example(record)
        for shard in loaded.splits[split]
        for record in serialization.read_records(folder / shard.file)
    ]
    assert all(example.keys() == types.keys() for example in examples)
    return [
        {name: np.frombuffer(value, types[name]) for name, value in example.items()}
        for example in examples
    ]


def _bytes(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _make(config, folder: pathlib.Path, **changes) -> pathlib.Path:
    create_masked_examples(dataclasses.replace(config, output_dir=str(folder), **changes))
    return folder


@pytest.mark.parametrize("split", ["train", "eval"])
def test_windows_are_the_static_examples_with_labels_put_back(
    windows_dir, examples_dir, split: str
) -> None:
    restored = {}
    for example in _read(examples_dir, split):
        ids = example[records.INPUT_IDS].copy()
        ids[example[records.MASKED_LM_POSITIONS]] = example[records.MASKED_LM_IDS]
        key = example[records.EXAMPLE_ID].tobytes()
        restored[key] = (ids.tolist(), example[records.SEGMENT_LENGTHS].tolist())
    windows = {
        window[records.EXAMPLE_ID].tobytes(): (
            window[records.INPUT_IDS].tolist(),
            window[records.SEGMENT_LENGTHS].tolist(),
        )
        for window in _read(windows_dir, split)
    }
    # The static directory has two copies of each; the first has the window's own id.
    assert 2 * len(windows) == len(restored)
    assert windows == {key: restored[key] for key in windows}


def test_words_begin_where_the_text_says(windows_dir, vocab) -> None:
    for window in _read(windows_dir, "train"):
        tokens = [vocab[index] for index in window[records.INPUT_IDS]]
        starts = set(window[records.WORD_STARTS].tolist())
        ends = {0, *(np.cumsum(window[records.SEGMENT_LENGTHS], dtype=int) - 1)}
        assert not starts & ends
        for position, token in enumerate(tokens):
            if token.startswith("##") and position > 1:
                assert position not in starts
        for position in range(1, len(tokens) - 1):
            # 院子 is one of jieba's words; a sign stands alone.
            if tokens[position : position + 2] == ["院", "子"]:
                assert position in starts and position + 1 not in starts
            if tokens[position] in "，。":
                assert position in starts


def test_the_manifest_and_the_counts(windows_dir) -> None:
    loaded = manifest.load(windows_dir)
    assert (loaded.kind, loaded.dupe_factor) == (records.UNMASKED_WINDOWS, 1)
    assert loaded.flags["masking"] == "dynamic" and loaded.flags["mask_smoothing"] == 0.7
    assert "masked_positions" not in loaded.statistics
    expected: Counter[int] = Counter()
    for split in ("train", "eval"):
        for window in _read(windows_dir, split):
            expected.update(window[records.INPUT_IDS].tolist())
    counts = token_counts.load_counts(windows_dir, loaded)
    assert {index: count for index, count in enumerate(counts.tolist()) if count} == expected


def test_the_same_bytes_for_one_two_and_three_workers(
    windows_dir, windows_config, tmp_path
) -> None:
    wanted = _bytes(windows_dir)
    assert token_counts.TOKEN_COUNTS_FILE in wanted
    for workers in (2, 3):
        folder = _make(windows_config, tmp_path / str(workers), max_workers=workers)
        assert _bytes(folder) == wanted


def test_a_killed_run_resumes_to_the_same_bytes(
    windows_dir, windows_config, tmp_path, monkeypatch
) -> None:
    wanted = _bytes(windows_dir)
    moments = {
        "before its block is done": (masked_examples.spill, "write_spill"),
        "among the shards": (serialization, "write_shard"),
        "before the counts": (masked_examples.token_counts, "sum_counts"),
        "before the manifest": (masked_examples.manifests, "publish"),
    }
    for moment, (module, name) in moments.items():
        folder = tmp_path / name

        def killed(*arguments, **named):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(module, name, killed)
            with pytest.raises(KeyboardInterrupt):
                _make(windows_config, folder)
        assert not (folder / "manifest.json").exists(), moment
        _make(windows_config, folder)
        assert _bytes(folder) == wanted, moment


def test_weights_of_corpora_count_windows(windows_config, corpus_dir, tmp_path) -> None:
    source = CorpusSource(input_dir=str(corpus_dir))
    totals = {}
    for weight in (1.0, 2.0, 0.5):
        sources = (msgspec.structs.replace(source, weight=weight),)
        folder = _make(windows_config, tmp_path / str(weight), corpora=sources)
        loaded = manifest.load(folder)
        counts = token_counts.load_counts(folder, loaded)
        totals[weight] = (loaded.statistics["examples"], int(counts.sum()))
    assert totals[2.0] == (2 * totals[1.0][0], 2 * totals[1.0][1])
    assert 0.3 < totals[0.5][0] / totals[1.0][0] < 0.7


def test_another_smoothing_is_another_request(windows_config, windows_dir) -> None:
    with pytest.raises(InputError, match="mask_smoothing is 0.7 there and 0.5 here"):
        _make(windows_config, windows_dir, mask_smoothing=0.5)


@pytest.mark.parametrize(
    ("changes", "setting"),
    [({"dupe_factor": 1}, "dupe_factor"), ({"masking": "static"}, "mask_smoothing")],
)
def test_settings_of_the_other_masking_are_refused(windows_config, changes, setting: str) -> None:
    with pytest.raises(InputError) as error:
        dataclasses.replace(windows_config, **changes)
    assert error.value.subject == setting
