"""Tests of the teacher's scores on labels, and of the warnings and errors that follow."""

import dataclasses
import itertools
import json
import math
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.masking.masked_examples import create_masked_examples
from pipeline.storage import cache_input
from pipeline.storage import manifest as manifests
from pipeline.storage.manifest import LabelSums
from pipeline.storage.records import TeacherTargets, read_examples
from pipeline.teacher import capture, label_scores, summary, truncation
from pipeline.teacher.capture import create_teacher_cache
from pipeline.teacher.label_scores import ENTROPIES, MIN_LABELS, LabelScoreAccumulator, LabelScores
from pipeline.teacher.settings import TeacherCacheConfig
from tests.conftest import make_cache, read_folder, save_tiny_bert

VOCAB_SIZE = 30


def _output(ids: list[int], log_probs: list[float]) -> dict[str, np.ndarray]:
    return {
        records.TOPK_IDS: np.array([[first, 0] for first in ids], np.int32).reshape(-1, 2),
        records.LABEL_LOG_PROBS: np.array(log_probs, np.float32),
        ENTROPIES: np.full(len(ids), 2.0, np.float32),
    }


@given(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=2, max_size=40))
def test_each_label_is_left_out_of_the_frequencies_that_predict_it(labels: list[int]) -> None:
    scores = LabelScoreAccumulator(VOCAB_SIZE)
    scores.add(np.array(labels), _output(labels, [-1.0] * len(labels)))
    total, num_distinct = 0.0, len(set(labels))
    for index, label in enumerate(labels):
        others = [*labels[:index], *labels[index + 1 :]]
        count = others.count(label) + num_distinct / VOCAB_SIZE
        total += math.log(count / (len(others) + num_distinct))
    sums = scores.sums()
    assert sums.unigram_log_prob == pytest.approx(total)
    assert sums.unigram_hits == max(map(labels.count, labels))


def test_scores_of_batches_add_up() -> None:
    scores = LabelScoreAccumulator(VOCAB_SIZE)
    scores.add(np.array([3, 4, 3]), _output([3, 3, 1], [-1.0, -2.0, -4.0]))
    scores.add(np.array([5]), _output([5], [-3.0]))
    scores.add(np.array([], np.int64), _output([], []))
    scored = scores.scores()
    assert (scored.num_labels, scored.accuracy, scored.label_log_prob) == (4, 0.5, -2.5)
    # The deviations from the mean are 1.5, 0.5, -1.5 and -0.5.
    assert scored.label_log_prob_error == pytest.approx(math.sqrt(1.25 / 4))
    assert scored.entropy_share == pytest.approx(2.0 / math.log(VOCAB_SIZE))
    assert (scored.unigram_accuracy, scored.chance_accuracy) == (0.5, 1 / VOCAB_SIZE)
    assert scored.chance_log_prob == pytest.approx(-math.log(VOCAB_SIZE))


def test_there_are_no_scores_without_labels() -> None:
    assert LabelScoreAccumulator(VOCAB_SIZE).scores() is None
    assert LabelScores.of(None, VOCAB_SIZE) is None


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (30.0, 1000.0), (0.0, -1000.0)])
def test_entropies_are_those_of_the_first_position(scale: float, shift: float) -> None:
    logits = np.random.default_rng(0).normal(0.0, 1.0, (3, 4, 50)) * scale + shift
    weights = np.exp(logits[:, 0] - logits[:, 0].max(axis=-1, keepdims=True))
    p = weights / weights.sum(axis=-1, keepdims=True)
    expected = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=-1)
    entropies = np.asarray(truncation.entropies(logits.astype(np.float32)))
    assert entropies.shape == (3, 4)
    np.testing.assert_allclose(entropies, expected[:, np.newaxis].repeat(4, 1), atol=2e-4)


SOUND = LabelScores(
    num_labels=2000,
    accuracy=0.4,
    label_log_prob=-3.0,
    label_log_prob_error=0.05,
    entropy_share=0.3,
    unigram_accuracy=0.05,
    unigram_log_prob=-6.5,
    chance_accuracy=1 / 20_000,
    chance_log_prob=-9.9,
)


@pytest.mark.parametrize(
    ("changes", "no_better", "weak"),
    [
        ({}, False, False),
        ({"accuracy": 0.0, "label_log_prob": -10.0}, True, True),
        # An overconfident teacher that was trained on another kind of text.
        ({"accuracy": 0.1, "label_log_prob": -7.5}, False, True),
        # As good as the frequencies within sampling noise: a teacher after 30 steps.
        ({"accuracy": 0.045, "label_log_prob": -6.6}, False, True),
        ({"accuracy": 0.045, "label_log_prob": -6.7}, True, True),
        ({"accuracy": 0.08, "label_log_prob": -5.6}, False, True),
        ({"accuracy": 0.15, "label_log_prob": -5.4}, False, False),
        # Too few labels for a significant difference.
        ({"accuracy": 0.0, "label_log_prob": -8.0, "label_log_prob_error": 1.0}, False, True),
    ],
)
def test_useless_and_weak_teachers_are_recognized(
    changes: dict[str, float], no_better: bool, weak: bool
) -> None:
    scores = dataclasses.replace(SOUND, **changes)
    assert (scores.is_worse_than_unigram, scores.is_weak) == (no_better, weak)
    lines = "\n".join(scores.describe())
    assert ("--freeze=encoder" in lines) == no_better
    assert ("warning" in lines) == (no_better or weak)


@pytest.mark.parametrize(
    ("teacher", "unigram", "gain"),
    [(-5.4, -6.0, "only 10.0% below"), (-6.0, -6.0, "not below"), (-0.1, 0.0, "not below")],
)
def test_warning_names_how_much_lower_the_loss_of_a_weak_teacher_is(
    teacher: float, unigram: float, gain: str
) -> None:
    scores = dataclasses.replace(
        SOUND, label_log_prob=teacher, label_log_prob_error=1.0, unigram_log_prob=unigram
    )
    assert scores.is_weak and not scores.is_worse_than_unigram
    assert gain in next(scores.warning())


def test_few_labels_refuse_no_teacher() -> None:
    noise = dataclasses.replace(SOUND, accuracy=0.0, label_log_prob=-10.0)
    with pytest.raises(InputError) as refused:
        noise.expect_useful("bert_config_file")
    assert refused.value.subject == "bert_config_file" and "`force`" in refused.value.hint
    dataclasses.replace(noise, num_labels=MIN_LABELS - 1).expect_useful("teacher")
    SOUND.expect_useful("teacher")


# Capture with an evaluated teacher.


def _expected_sums(folder, shard) -> dict[str, float]:
    """Returns the sums over the records of a shard, computed from the cache alone."""
    manifest = manifests.load(folder)
    codec = cache_input.open_codec(folder, manifest)
    hits, log_probs = [], []
    for example in read_examples(folder / shard.file, manifest):
        targets = TeacherTargets.from_features(example.features, codec, manifest.teacher_info)
        hits += (targets.ids[:, 0] == example.masked_lm_ids).tolist()
        log_probs += targets.label_log_probs.astype(float).tolist()
    return {
        "num_labels": len(hits),
        "num_hits": sum(hits),
        "log_prob": pytest.approx(sum(log_probs), rel=1e-3),
        "log_prob_squares": pytest.approx(sum(np.square(log_probs)), rel=2e-3),
    }


def test_each_shard_holds_the_sums_of_its_records(cache_dir) -> None:
    manifest = manifests.load(cache_dir)
    for shard in manifest.shards:
        expected = _expected_sums(cache_dir, shard)
        assert {name: getattr(shard.labels, name) for name in expected} == expected
        assert 0.0 < shard.labels.entropy < shard.labels.num_labels * math.log(manifest.vocab.size)
    recorded = manifest.statistics[label_scores.STATISTICS_KEY]
    assert recorded == dataclasses.asdict(label_scores.of_cache(manifest))
    assert recorded["num_labels"] == sum(shard.labels.num_labels for shard in manifest.shards)


def test_random_draws_do_not_change_the_scores(tmp_path, cache_dir, examples_dir, teacher_dir):
    folder = make_cache(tmp_path / "drawn", examples_dir, teacher_dir, truncation="sampled")
    pairs = zip(manifests.load(folder).shards, manifests.load(cache_dir).shards, strict=True)
    for drawn, top in pairs:
        for name in LabelSums.__struct_fields__:
            expected = pytest.approx(getattr(top.labels, name), rel=1e-5)
            assert getattr(drawn.labels, name) == expected, name


def test_cache_without_label_sums_has_no_label_scores(tmp_path, cache_dir) -> None:
    folder = tmp_path / "old"
    shutil.copytree(cache_dir, folder)
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    for shard in itertools.chain.from_iterable(value["splits"].values()):
        del shard["labels"]
    path.write_text(json.dumps(value))
    manifest = manifests.load(folder)
    assert manifest.label_sums() is None and label_scores.of_cache(manifest) is None
    assert not any(line.startswith("labels") for line in summary.describe(manifest))


@pytest.mark.parametrize(
    "changes", [{"num_hits": -1}, {"log_prob": 1e40}, {"entropy": "none"}, {"others": 1}], ids=str
)
def test_manifest_with_invalid_label_sums_is_refused(tmp_path, cache_dir, changes) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(cache_dir, folder)
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    value["splits"]["train"][0]["labels"] |= changes
    path.write_text(json.dumps(value))
    with pytest.raises(InputError):
        manifests.load(folder)


@pytest.fixture(scope="module")
def large_config(tmp_path_factory, examples_config, vocab_file) -> TeacherCacheConfig:
    """Settings with enough masked examples for a comparison and an untrained teacher."""
    folder = tmp_path_factory.mktemp("judged")
    create_masked_examples(
        dataclasses.replace(examples_config, output_dir=folder / "examples", num_shards=1)
    )
    save_tiny_bert(folder / "teacher", vocab_file, seed=7)
    return TeacherCacheConfig(
        output_dir=folder / "cache", input_dir=folder / "examples", teacher=folder / "teacher"
    )


def test_an_untrained_teacher_is_refused_before_anything_is_written(
    large_config, monkeypatch
) -> None:
    monkeypatch.setattr(capture, "_LARGE_CAPTURE", 600)
    with pytest.raises(InputError) as refused:
        create_teacher_cache(large_config)
    error = refused.value
    assert error.subject == "teacher" and "`freeze`=encoder" in error.hint
    assert not large_config.output_dir.exists()


def test_force_captures_an_untrained_teacher_and_changes_no_byte(
    large_config, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(capture, "_LARGE_CAPTURE", 600)
    forced = dataclasses.replace(large_config, force=True)
    manifest = create_teacher_cache(forced)
    assert "--freeze=encoder" in capsys.readouterr().err
    assert "--freeze=encoder" in "\n".join(summary.describe(manifest))
    assert manifest.label_sums().num_labels > MIN_LABELS
    # A small capture only prints the warning.
    monkeypatch.undo()
    other = dataclasses.replace(large_config, output_dir=f"{large_config.output_dir}-small")
    create_teacher_cache(other)
    assert "--freeze=encoder" in capsys.readouterr().err
    assert read_folder(other.output_dir) == read_folder(forced.output_dir)


def test_label_sums_of_shards_add_up(cache_dir) -> None:
    manifest = manifests.load(cache_dir)
    total = manifest.label_sums()
    for name in LabelSums.__struct_fields__:
        shard_sums = [getattr(shard.labels, name) for shard in manifest.shards]
        assert getattr(total, name) == pytest.approx(sum(shard_sums)), name
