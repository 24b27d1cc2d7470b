"""Tests of prepare with masking=dynamic: unmasked windows, and the counts of their tokens."""

import dataclasses
from collections import Counter

import msgspec
import numpy as np
import pytest

from data_specs import records
from data_specs.corpora import CorpusSource
from pipeline.base import seeding
from pipeline.base.errors import InputError
from pipeline.masking import document_masker, duplicates, masked_examples
from pipeline.storage import manifest, serialization, token_counts
from tests.conftest import read_folder
from tests.masking.running import counts, examples, make, passage, read, restored


@pytest.mark.parametrize("split", ["train", "eval"])
def test_windows_are_the_static_examples_with_labels_put_back(
    windows_dir, examples_dir, split: str
) -> None:
    originals = {
        example[records.EXAMPLE_ID].tobytes(): (
            list(restored(example)),
            example[records.SEGMENT_LENGTHS].tolist(),
        )
        for example in read(examples_dir, split)
    }
    windows = {
        window[records.EXAMPLE_ID].tobytes(): (
            window[records.INPUT_IDS].tolist(),
            window[records.SEGMENT_LENGTHS].tolist(),
        )
        for window in read(windows_dir, split)
    }
    # The static directory has two copies of each; the first has the window's own id.
    assert 2 * len(windows) == len(originals)
    assert windows == {key: originals[key] for key in windows}


def test_stored_word_starts_are_those_of_the_text(windows_dir, vocab) -> None:
    for window in read(windows_dir, "train"):
        tokens = [vocab[index] for index in window[records.INPUT_IDS]]
        starts = set(window[records.WORD_STARTS].tolist())
        ends = {0, *(np.cumsum(window[records.SEGMENT_LENGTHS], dtype=int) - 1)}
        assert not starts & ends
        for position, token in enumerate(tokens):
            if token.startswith("##") and position > 1:
                assert position not in starts
        for position in range(1, len(tokens) - 1):
            # 院子 is one of jieba's words. A punctuation mark is always a word.
            if tokens[position : position + 2] == ["院", "子"]:
                assert position in starts and position + 1 not in starts
            if tokens[position] in "，。":
                assert position in starts


def test_windows_without_a_word_to_mask_are_not_stored(windows_config) -> None:
    masker = document_masker.DocumentMasker(windows_config)
    texts = ["\U0001f600 " * 30, "春天来了，院子里的桃树开满了花。"]
    passages = [
        passage(text, seeding.digest(text), group=number) for number, text in enumerate(texts)
    ]
    made = [origin.text for origin, _, _ in examples(masker, passages)]
    assert made == texts[1:]
    by_name = counts(masker, passages)
    assert by_name["examples"] == [0, 1] and by_name[duplicates.WINDOWS[0]] == [1, 0]


def test_manifest_and_token_counts_describe_the_windows(windows_dir) -> None:
    loaded = manifest.load(windows_dir)
    assert (loaded.kind, loaded.dupe_factor) == (records.UNMASKED_WINDOWS, 1)
    assert loaded.flags["masking"] == "dynamic" and loaded.flags["mask_smoothing"] == 0.7
    assert "masked_positions" not in loaded.statistics
    expected: Counter[int] = Counter()
    for split in ("train", "eval"):
        for window in read(windows_dir, split):
            expected.update(window[records.INPUT_IDS].tolist())
    counts = token_counts.load_counts(windows_dir, loaded)
    assert {index: count for index, count in enumerate(counts.tolist()) if count} == expected


def test_a_killed_run_resumes_to_the_same_bytes(
    windows_dir, windows_config, tmp_path, monkeypatch
) -> None:
    expected = read_folder(windows_dir)
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
                make(windows_config, folder)
        assert not (folder / "manifest.json").exists(), moment
        make(windows_config, folder)
        assert read_folder(folder) == expected, moment


def test_weights_of_corpora_count_windows(windows_config, corpus_dir, tmp_path) -> None:
    source = CorpusSource(input_dir=str(corpus_dir))
    totals = {}
    for weight in (1.0, 2.0, 0.5):
        sources = (msgspec.structs.replace(source, weight=weight),)
        folder = make(windows_config, tmp_path / str(weight), corpora=sources)
        loaded = manifest.load(folder)
        counts = token_counts.load_counts(folder, loaded)
        totals[weight] = (loaded.statistics["examples"], int(counts.sum()))
    assert totals[2.0] == (2 * totals[1.0][0], 2 * totals[1.0][1])
    assert 0.3 < totals[0.5][0] / totals[1.0][0] < 0.7


def test_another_smoothing_is_another_run_configuration(windows_config, windows_dir) -> None:
    with pytest.raises(InputError, match=r"mask_smoothing \(recorded 0.7, now 0.5\)"):
        make(windows_config, windows_dir, mask_smoothing=0.5)


@pytest.mark.parametrize(
    ("changes", "setting"),
    [({"dupe_factor": 1}, "dupe_factor"), ({"masking": "static"}, "mask_smoothing")],
)
def test_settings_of_the_other_masking_are_errors(windows_config, changes, setting: str) -> None:
    with pytest.raises(InputError) as error:
        dataclasses.replace(windows_config, **changes)
    assert error.value.subject == setting
