"""Merging the caches of two random teachers."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.distill import training
from pipeline.distill.settings import DistillConfig, StudentConfig
from pipeline.models.formats import model_directory
from pipeline.models.masked_lm import MaskedLM
from pipeline.storage import manifest as manifests
from pipeline.storage import serialization
from pipeline.storage.codecs import CODECS, ENCODINGS, float16
from pipeline.storage.records import TeacherTargets
from pipeline.teacher.label_scores import STATISTICS_KEY
from tests.conftest import dense_logits, make_cache, read_folder
from tests.tools.conftest import Features, read_shard, rewrite_cache
from tools import merge_caches as tool
from tools.merge_caches import MergeConfig, merge_caches

MISSING = "train-00001-of-00003.tfrecord"
EVAL = "eval-00000-of-00001.tfrecord"


def _decode(features: Features, info: manifests.TeacherInfo, vocab_size: int):
    """Returns the ids, probabilities and tails of a record at temperature 1."""
    codec = CODECS[info.logit_encoding](vocab_size, info.truncation_factor)
    targets = TeacherTargets.from_features(features, codec, info)
    return targets.ids, *targets.probabilities(1.0)


def _dense(model: MaskedLM, features: Features, vocab_size: int) -> np.ndarray:
    """Returns a teacher's probabilities at a record's masked positions, float64 [P, V]."""
    logits = dense_logits(model, features, vocab_size)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


@pytest.mark.long
def test_merged_targets_of_all_tokens_equal_the_dense_average(
    examples_dir, teacher_dir, other_teacher_dir, vocab, tmp_path
) -> None:
    folders = [
        str(make_cache(tmp_path / teacher.name, examples_dir, teacher, truncation_factor=10_000))
        for teacher in (teacher_dir, other_teacher_dir)
    ]
    merged = tmp_path / "merged"
    merged_manifest = merge_caches(MergeConfig(tuple(folders), str(merged), (0.25, 0.75)))
    assert merged_manifest.teacher_info.truncation_factor == len(vocab)
    models = [
        model_directory.load_masked_lm(model_directory.find_model(teacher))
        for teacher in (teacher_dir, other_teacher_dir)
    ]
    for features in read_shard(merged, EVAL)[:6]:
        ids, p, tail = _decode(features, merged_manifest.teacher_info, len(vocab))
        exact = 0.25 * _dense(models[0], features, len(vocab))
        exact += 0.75 * _dense(models[1], features, len(vocab))
        assert (tail == 0.0).all()
        # Logits are at most 20 below the largest, and each cache rounds them by at most 2^-11.
        np.testing.assert_allclose(p, np.take_along_axis(exact, ids, -1), rtol=0.04, atol=1e-6)
        np.testing.assert_allclose(p[:, 0], exact.max(-1), rtol=4e-3)
        assert (np.sort(ids, axis=-1) == np.arange(len(vocab))).all()
        labels = np.frombuffer(features[records.MASKED_LM_IDS], records.id_dtype(len(vocab)))
        np.testing.assert_allclose(
            np.frombuffer(features[records.LABEL_LOG_PROBS], "<f2"),
            np.log(exact[np.arange(len(labels)), labels]),
            rtol=2e-3,
            atol=2e-3,
        )


def test_every_merged_record_is_a_weighted_sum(cache_dir, other_cache_dir, merged_dir) -> None:
    """The reference sums over dictionaries. The masked examples do not change."""
    folders = (cache_dir, other_cache_dir, merged_dir)
    a, b, merged = (manifests.load(folder) for folder in folders)
    vocab_size = merged.vocab.size
    assert merged.teacher_info.truncation_factor == 16
    for shard in (EVAL, MISSING):
        rows = [read_shard(folder, shard) for folder in folders]
        assert len(rows[0]) == len(rows[2]) > 10
        for row_a, row_b, row in zip(*rows, strict=True):
            names = {feature.name for feature in records.MASKED_EXAMPLE_FEATURES}
            assert {name: row[name] for name in names} == {name: row_a[name] for name in names}
            assert len(row[records.LOG_TAIL_MASSES]) == 2 * len(row[records.LABEL_LOG_PROBS])
            decoded = [_decode(row_a, a.teacher_info, vocab_size)]
            decoded.append(_decode(row_b, b.teacher_info, vocab_size))
            ids, p, tail = _decode(row, merged.teacher_info, vocab_size)
            for position in range(len(ids)):
                sums: dict[int, float] = {}
                for weight, (their_ids, their_p, _) in zip((0.75, 0.25), decoded, strict=True):
                    for token, value in zip(their_ids[position], their_p[position], strict=True):
                        sums[int(token)] = sums.get(int(token), 0.0) + weight * value
                best = sorted(sums.values(), reverse=True)[:16]
                np.testing.assert_allclose(p[position], best, rtol=0.02)
                np.testing.assert_allclose(
                    [sums[int(token)] for token in ids[position]], best, rtol=1e-9
                )
                np.testing.assert_allclose(sum(best) + tail[position], 1.0, atol=1e-6)


def test_manifest_records_the_merged_caches(cache_dir, other_cache_dir, merged_dir) -> None:
    folders = (cache_dir, other_cache_dir, merged_dir)
    a, b, merged = (manifests.load(folder) for folder in folders)
    assert merged.teacher_info.temperatures == (1.0,)
    assert merged.teacher_info.parent == a.teacher_info.parent
    assert merged.teacher_info.teacher == {
        "merged": [
            {**a.teacher_info.teacher, "weight": 0.75},
            {**b.teacher_info.teacher, "weight": 0.25},
        ]
    }
    assert merged.flags["segments"] == a.flags["segments"] == "pair"
    # The teachers differ, so the merged cache has no teacher flag.
    assert "teacher" in a.flags and "teacher" not in merged.flags
    run_config = json.loads((merged_dir / "request.json").read_text())
    assert run_config["merged"] == [
        {"manifest": a.sha256(), "weight": 0.75},
        {"manifest": b.sha256(), "weight": 0.25},
    ]
    assert str(cache_dir.parent) not in (merged_dir / "request.json").read_text()
    assert (merged_dir / "vocab.txt").read_bytes() == (cache_dir / "vocab.txt").read_bytes()
    # The merged targets belong to no single teacher, so no teacher is evaluated.
    assert a.label_sums() is not None and merged.label_sums() is None
    assert STATISTICS_KEY in a.statistics and STATISTICS_KEY not in merged.statistics
    manifests.verify(merged_dir, merged, full=True)


@pytest.mark.long
def test_student_learns_from_a_merged_cache(merged_dir, teacher_dir, tmp_path) -> None:
    config = DistillConfig(
        output_dir=str(tmp_path / "student"),
        student=StudentConfig(init_from=teacher_dir, student_layers=2),
        losses={"kl_divergence": 1.0, "probability_cosine": 1.0},
        input_dir=str(merged_dir),
        train_batch_size=8,
        num_train_steps=12,
        learning_rate=1e-3,
        log_steps=12,
    )
    before = training.distill(
        dataclasses.replace(config, do_train=False, student=StudentConfig(student=teacher_dir))
    )
    report = training.distill(config)
    start = dataclasses.replace(config, num_train_steps=1, output_dir=str(tmp_path / "start"))
    assert report["loss"] < training.distill(start)["loss"]
    # This teacher has a weight of 0.75.
    assert 0.5 < before["teacher_agreement"] < 1.0
    with pytest.raises(InputError, match="tail mass"):
        training.distill(dataclasses.replace(config, temperature=2.0, output_dir=f"{tmp_path}/x"))


def test_measured_caches_can_be_merged(cache_dir, examples_dir, teacher_dir, tmp_path) -> None:
    other_cache = make_cache(tmp_path / "other", examples_dir, teacher_dir, truncation_mass=0.9)
    merged_manifest = merge_caches(
        MergeConfig((str(other_cache), str(cache_dir)), str(tmp_path / "merged"))
    )
    assert merged_manifest.teacher_info.truncation_mass == 0.9
    assert all(shard.measured["num_ids"] > 0 for shard in merged_manifest.shards)


def test_order_of_caches_and_scale_of_weights_do_not_matter(
    cache_dir, other_cache_dir, merged_dir, tmp_path
) -> None:
    swapped = MergeConfig((str(other_cache_dir), str(cache_dir)), str(tmp_path), (0.5, 1.5))
    merge_caches(swapped)
    assert (tmp_path / EVAL).read_bytes() == (merged_dir / EVAL).read_bytes()


def test_each_cache_is_decoded_by_its_codec_and_unknown_features_are_dropped(
    cache_dir, other_cache_dir, merged_dir, tmp_path, monkeypatch
) -> None:
    class Negated(float16.Float16Codec):
        """A codec that stores negated logits."""

        def decode(self, features, num_positions):
            ids, logits = super().decode(features, num_positions)
            return ids, -logits

    def negate(rows: list[Features]) -> list[Features]:
        for row in rows:
            logits = -np.frombuffer(row[records.TOPK_LOGITS], "<f2")
            row |= {records.TOPK_LOGITS: logits.tobytes(), "hidden_states": b"1234"}
        return rows

    for table in (CODECS, ENCODINGS):
        monkeypatch.setitem(table, "negated", Negated)
    negated_cache = rewrite_cache(
        other_cache_dir, tmp_path / "other", negate, logit_encoding="negated"
    )
    merge_caches(
        MergeConfig((str(cache_dir), str(negated_cache)), str(tmp_path / "merged"), (3.0, 1.0))
    )
    assert (tmp_path / "merged" / EVAL).read_bytes() == (merged_dir / EVAL).read_bytes()
    names = {feature.name for feature in records.TEACHER_CACHE_FEATURES}
    assert set(read_shard(tmp_path / "merged", EVAL)[0]) == names


def test_resuming_a_merge_makes_only_the_missing_shard(
    cache_dir, other_cache_dir, merged_dir, tmp_path, monkeypatch
) -> None:
    folder = tmp_path / "merged"
    shutil.copytree(merged_dir, folder)
    config = MergeConfig((str(cache_dir), str(other_cache_dir)), str(folder), (3.0, 1.0))
    for path in ("manifest.json", MISSING, f".{MISSING}.json"):
        (folder / path).unlink()
    written_files = []
    write_shard = serialization.write_shard

    def write_and_note(directory, file, serialized, measured):
        written_files.append(file)
        return write_shard(directory, file, serialized, measured)

    monkeypatch.setattr(tool.serialization, "write_shard", write_and_note)
    merge_caches(config)
    assert written_files == [MISSING]
    assert read_folder(folder) == read_folder(merged_dir)
    # A complete cache is not written again.
    assert merge_caches(config) == manifests.load(merged_dir)
    assert written_files == [MISSING]


def test_command_prints_each_teachers_weight(
    cache_dir, other_cache_dir, merged_dir, tmp_path, capsys
) -> None:
    first, second = (
        manifests.load(folder).teacher_info.teacher["sha256"]
        for folder in (cache_dir, other_cache_dir)
    )
    # The third cache is a merged one, whose weight is divided between its teachers.
    inputs = f"--input_dirs={cache_dir},{other_cache_dir},{merged_dir}"
    flags = [inputs, "--weights=1,1,2", "--truncation_factor=4", f"--output_dir={tmp_path}/merged"]
    assert tool.main(["merge_caches", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("stored     top 4 of ")
    assert lines[3].endswith("topk_ids 8, topk_logits 8, log_tail_masses 4, label_log_probs 2")
    assert lines[4:] == [
        f"teacher    SHA-256 {first}, weight 0.25",
        f"teacher    SHA-256 {second}, weight 0.25",
        f"teacher    SHA-256 {first}, weight 0.375",
        f"teacher    SHA-256 {second}, weight 0.125",
        f"teacher cache: {tmp_path}/merged",
    ]
