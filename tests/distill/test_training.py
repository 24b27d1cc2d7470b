"""Training runs: output files, resuming with equal bits, accumulation and refused settings."""

import dataclasses
import itertools
import json
import shutil
import signal
import time

import numpy as np
import pytest
import tensorflow as tf

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.distill import checkpoints, training
from pipeline.distill.distiller import Distiller
from pipeline.distill.objective import Objective
from pipeline.distill.optimization import WarmupLinearDecay, build_optimizer
from pipeline.distill.settings import StudentConfig
from pipeline.models.config import EncoderConfig
from pipeline.models.formats import model_directory
from pipeline.storage import manifest as manifests
from pipeline.storage import serialization, topk_mass
from pipeline.storage.cache_input import open_cache
from tests.distill.running import (
    assert_same_weights,
    damaged_copy,
    distilled,
    expect_same_after_interrupt,
    read_lines,
    read_weights,
    refused,
    start_command,
)

DISTILLATION = {"soft_cross_entropy": 1.0, "probability_cosine": 1.0}


@pytest.mark.long
def test_run_writes_student_log_and_checkpoints(config, teacher_dir, cache_dir) -> None:
    report = training.distill(config)
    folder = config.output_dir
    names = {path.name for path in folder.iterdir()}
    files = "config.json metrics.jsonl model.safetensors request.json tokenizer_config.json"
    assert names == {"checkpoints", "tensorboard", "vocab.txt", *files.split()}
    assert len(list((folder / "tensorboard" / "train").glob("events*"))) == 1
    assert checkpoints.checkpoint_steps(folder) == [10, 12]
    lines = read_lines(folder)
    steps = {"train": [3, 5, 6, 9, 10, 12], "eval": [5, 10, 12]}
    for split, expected in steps.items():
        assert [line["step"] for line in lines if line["split"] == split] == expected
    assert [line["split"] for line in lines[1:3]] == ["train", "eval"]
    # Warm-up takes a tenth, one step. The rate then falls to 1/11 of the peak at the last step.
    assert lines[-2]["learning_rate"] == pytest.approx(1e-3 / 11, rel=1e-5)
    assert set(lines[0]) == {"step", "split", "loss", *DISTILLATION, "learning_rate"}
    last = lines[-1]
    measured = "kl_divergence masked_lm masked_lm_accuracy masked_lm_perplexity calibration_error"
    for name in (*DISTILLATION, *measured.split(), "teacher_agreement", "teacher_accuracy"):
        assert last[name] == report[name], name
    assert last["loss"] == pytest.approx(last["soft_cross_entropy"] + last["probability_cosine"])
    assert last["masked_lm_perplexity"] == pytest.approx(np.exp(last["masked_lm"]))
    assert lines[-1]["loss"] < lines[2]["loss"]
    assert model_directory.find_model(folder).config.num_hidden_layers == 2


def test_teacher_as_its_own_student_agrees_with_itself(config, teacher_dir) -> None:
    """Its divergence is 0, and both first choices are the same."""
    teacher = StudentConfig(student=str(teacher_dir))
    evaluated = distilled(config, student=teacher, do_train=False)
    assert evaluated["teacher_agreement"] > 0.99
    assert evaluated["masked_lm_accuracy"] == pytest.approx(evaluated["teacher_accuracy"], abs=0.01)
    assert evaluated["kl_divergence"] == pytest.approx(0.0, abs=1e-5)
    assert evaluated["probability_cosine"] == pytest.approx(0.0, abs=1e-5)
    assert not config.output_dir.exists()


@pytest.mark.slow
def test_interrupted_run_equals_an_uninterrupted_run(config, monkeypatch) -> None:
    expect_same_after_interrupt(monkeypatch, config, update=11, step=10)


@pytest.mark.long
def test_finished_run_is_not_trained_again(config, capsys) -> None:
    training.distill(config)
    assert "already complete" not in capsys.readouterr().err
    before = read_lines(config.output_dir)
    report = training.distill(config)
    assert "already complete" in capsys.readouterr().err
    # The evaluated examples are those of the summary's heading.
    heading, *metrics = training.describe(config, report)
    manifest = open_cache(config.input_dir, config.input_file).manifest
    assert f" {training.num_evaluated(config, manifest)} held-out examples" in heading
    assert len(metrics) == len(report) and not list(training.describe(config, {}))
    assert read_lines(config.output_dir) == before
    assert report["masked_lm"] == before[-1]["masked_lm"]
    with refused("output_dir"):
        distilled(config, learning_rate=2e-3)


@pytest.mark.long
def test_accumulation_equals_one_large_batch(still_teacher_dir) -> None:
    """Compares two batches with equally many masked positions, and both in one batch."""
    random = np.random.default_rng(0)
    source = model_directory.find_model(still_teacher_dir)
    vocab_size = source.config.vocab_size
    inputs = {
        records.INPUT_IDS: random.integers(5, vocab_size, (3, 16, 20)).astype("int32"),
        records.INPUT_MASK: np.ones((3, 16, 20), "int32"),
        records.SEGMENT_IDS: np.zeros((3, 16, 20), "int32"),
        records.MASKED_LM_POSITIONS: np.tile(np.arange(1, 5, dtype="int32"), (3, 16, 1)),
    }
    targets = {
        records.MASKED_LM_IDS: random.integers(5, vocab_size, (3, 16, 4)).astype("int32"),
        records.MASKED_LM_WEIGHTS: np.ones((3, 16, 4), "float32"),
    }
    trained = []
    for count in (1, 2):
        distiller = Distiller(model_directory.load_masked_lm(source), Objective({"masked_lm": 1.0}))
        steps = {"warmup_steps": 1, "num_train_steps": 10, "steps_per_update": count}
        optimizer = build_optimizer(
            distiller.trainable_variables,
            WarmupLinearDecay(1e-3, **steps),
            weight_decay=0.01,
            clip_norm=0.5,
        )
        distiller.compile(optimizer=optimizer, jit_compile=False)
        for update, rows in itertools.product(range(3), np.split(np.arange(16), count)):
            batch = [
                {name: tf.constant(value[update, rows]) for name, value in features.items()}
                for features in (inputs, targets)
            ]
            distiller.train_on_batch(*batch)
        trained.append(model_directory.get_weights(distiller.student))
    start = source.read_weights()
    for name, value in trained[0].items():
        np.testing.assert_allclose(trained[1][name], value, atol=2e-5, err_msg=name)
        assert np.abs(value - start[name]).max() > 1e-4 or name.endswith("key/bias")


@pytest.mark.long
def test_steps_count_updates_under_accumulation(config) -> None:
    distilled(config, gradient_accumulation_steps=2, train_batch_size=4)
    lines = read_lines(config.output_dir)
    assert lines[-1]["step"] == 12
    rates = [line["learning_rate"] for line in lines if line["split"] == "train"]
    assert rates[-1] < 2e-4


@pytest.mark.long
def test_diverging_run_ends_with_an_error(config) -> None:
    with refused("learning_rate", "diverged"):
        distilled(config, learning_rate=1e30, clip_norm=0.0, num_warmup_steps=0)


def test_smaller_k_uses_the_first_cached_tokens(config) -> None:
    fixed = {"do_train": False, "tail": "renormalize"}
    reports = {k: distilled(config, truncation_factor=k, **fixed) for k in (16, 4)}
    assert reports[4]["masked_lm"] == reports[16]["masked_lm"]
    assert reports[4]["soft_cross_entropy"] < reports[16]["soft_cross_entropy"]
    with refused("truncation_factor", 17):
        distilled(config, truncation_factor=17)


@pytest.mark.long
def test_model_is_trained_from_labels_only(config, examples_dir, tmp_path, vocab) -> None:
    """Training starts from a configuration file and random weights."""
    file = tmp_path / "bert_config.json"
    settings = EncoderConfig.from_json(config.student.init_from / "config.json")
    file.write_text(json.dumps({**settings.to_dict(), "initializer_range": 0.02}))
    report = distilled(
        config,
        input_dir=str(examples_dir),
        student=StudentConfig(bert_config_file=str(file)),
        losses={"masked_lm": 1.0},
        num_train_steps=60,
        learning_rate=1e-2,
    )
    measured = "masked_lm masked_lm_perplexity masked_lm_accuracy calibration_error"
    assert set(report) == {"loss", *measured.split(), "examples_per_second"}
    # The perplexity of a uniform guess is the size of the vocabulary.
    assert report["masked_lm_perplexity"] < 0.7 * len(vocab)


@pytest.mark.long
def test_mixed_precision_loss_is_close_to_float32(config, tmp_path) -> None:
    reports = [
        distilled(config, compute_dtype=dtype, output_dir=str(tmp_path / dtype))
        for dtype in ("float32", "mixed_bfloat16")
    ]
    # Logits of this random model reach 10, where values of bfloat16 are 0.06 apart.
    assert reports[1]["loss"] == pytest.approx(reports[0]["loss"], rel=0.05)
    assert reports[1]["loss"] != reports[0]["loss"]
    assert read_weights(tmp_path / "mixed_bfloat16")["cls.predictions.bias"].dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "setting", "received"),
    [
        ({"losses": {"masked_lm": 1.0}, "max_seq_length": 128}, "max_seq_length", 128),
        ({"do_train": False, "do_eval": False}, None, "set `do_train` or `do_eval`"),
        ({"num_warmup_steps": 13}, "num_warmup_steps", 13),
        ({"temperature": 3.0}, "temperature", 3),
        ({"input_dir": None}, "input_dir", None),
        ({"loss_schedules": "hidden_cosine=linear:0"}, "loss_schedules", "'hidden_cosine'"),
        ({"losses": "hidden_l1=1"}, "losses", "'hidden_l1'"),
    ],
)
def test_invalid_settings_are_refused_before_training(config, changes, setting, received) -> None:
    with refused(setting, received):
        distilled(config, **changes)
    assert not config.output_dir.exists()


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({}, "student"),
        ({"student": "a", "init_from": "b"}, "student"),
        ({"init_from": "a"}, "init_from"),
        ({"student": "a", "student_layers": 2}, "student_layers"),
        ({"student": "a", "init_checkpoint": "b"}, "init_checkpoint"),
    ],
)
def test_settings_that_name_no_single_student_are_refused(changes, setting: str) -> None:
    with refused(setting):
        StudentConfig(**changes)


def test_damaged_cache_is_refused_before_training(config, cache_dir, tmp_path) -> None:
    path = damaged_copy(cache_dir, tmp_path / "damaged", "train-00000-of-00003.tfrecord")
    with pytest.raises(InputError) as caught:
        distilled(config, input_dir=str(path.parent))
    assert caught.value.subject == str(path)
    assert not (config.output_dir / "checkpoints").exists()


def test_damaged_record_is_reported_with_its_shard(config, cache_dir, tmp_path) -> None:
    path = damaged_copy(cache_dir, tmp_path / "damaged", "eval-00000-of-00001.tfrecord", 500)
    with pytest.raises(InputError) as caught:
        distilled(config, input_dir=str(path.parent), verify="sizes", do_train=False)
    assert caught.value.subject == str(path)


@pytest.mark.parametrize("name", [records.INPUT_IDS, records.TOPK_IDS])
@pytest.mark.parametrize("row", [0, -1])
def test_malformed_record_with_valid_checksum_is_refused(
    config, cache_dir, tmp_path, monkeypatch, row: int, name: str
) -> None:
    """Records that are read before the run are reported with their shard, others with the cache."""
    monkeypatch.setattr(topk_mass, "_NUM_EXAMPLES", 1)
    made = tmp_path / "made"
    shutil.copytree(cache_dir, made)
    loaded = manifests.load(made)
    (shard,) = loaded.splits["eval"]
    rows = [serialization.decode_example(r) for r in serialization.read_records(made / shard.file)]
    rows[row] = {other: value for other, value in rows[row].items() if other != name}
    encoded = map(serialization.encode_example, rows)
    changed = serialization.write_shard(made, shard.file, encoded, None)
    splits = {**loaded.splits, "eval": (changed,)}
    manifests.publish(made, dataclasses.replace(loaded, splits=splits))
    with pytest.raises(InputError) as caught:
        distilled(config, input_dir=str(made), do_train=False)
    assert caught.value.subject == str(made if row else made / shard.file)


@pytest.mark.long
def test_flags_equal_to_the_manifest_keep_the_run_configuration(config) -> None:
    training.distill(config)
    before = read_lines(config.output_dir)
    given = {"max_seq_length": 48, "max_predictions_per_seq": 8, "truncation_factor": 16}
    distilled(config, **given)
    assert read_lines(config.output_dir) == before


@pytest.mark.slow
def test_repeatedly_killed_run_equals_an_undisturbed_run(config, tmp_path) -> None:
    more = {"num_train_steps": 400, "save_checkpoints_steps": 20, "log_steps": 3}
    more["max_eval_steps"] = 1
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start_command(config, whole, **more).wait() == 0
    killed = 0
    for _ in range(5):
        process = start_command(config, cut, **more)
        begun = checkpoints.checkpoint_steps(cut)
        while process.poll() is None and checkpoints.checkpoint_steps(cut)[-1:] == begun[-1:]:
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert start_command(config, cut, **more).wait() == 0
    assert killed >= 3
    assert read_lines(cut) == read_lines(whole)
    assert_same_weights(cut, whole)


@pytest.mark.long
def test_recomputing_activations_changes_no_bit_of_the_student(config, tmp_path) -> None:
    """The run configuration does not record the setting, so a run can resume with it."""
    few = dataclasses.replace(config, num_train_steps=4, save_checkpoints_steps=2)
    folders = few.output_dir, tmp_path / "recomputed"
    training.distill(few)
    distilled(few, output_dir=str(folders[1]), recompute_activations=True)
    assert_same_weights(*folders)
    requests = [(folder / "request.json").read_bytes() for folder in folders]
    assert requests[0] == requests[1]
