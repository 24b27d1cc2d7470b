"""Tests of capture, from masked examples to a teacher cache."""

import dataclasses
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.models.formats import model_directory
from pipeline.storage import manifest, serialization
from pipeline.storage.codecs import CODECS
from pipeline.storage.records import TeacherTargets
from pipeline.teacher.capture import create_teacher_cache
from pipeline.teacher.settings import TeacherCacheConfig
from tests.conftest import dense_logits, read_folder, save_tiny_bert

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def config(examples_dir, teacher_dir, tmp_path) -> TeacherCacheConfig:
    """The settings that made `cache_dir`, with another output directory."""
    return TeacherCacheConfig(
        output_dir=str(tmp_path / "cache"),
        input_dir=str(examples_dir),
        teacher=str(teacher_dir),
        truncation_factor=16,
        predict_batch_size=8,
    )


def _records(folder: pathlib.Path, split: str) -> list[dict[str, bytes]]:
    loaded = manifest.load(folder)
    return [
        serialization.decode_example(record)
        for shard in loaded.splits[split]
        for record in serialization.read_records(folder / shard.file)
    ]


@pytest.mark.long
def test_every_target_equals_the_dense_teacher(cache_dir, examples_dir, teacher_dir) -> None:
    """The reference runs one unpadded example at a time, with float64 after the logits."""
    source = model_directory.find_model(teacher_dir)
    model = model_directory.load_masked_lm(source)
    vocab_size = source.config.vocab_size
    codec = CODECS["float16"](vocab_size, 16)
    originals = _records(examples_dir, "eval")
    cached = _records(cache_dir, "eval")
    assert len(originals) == len(cached) > 20
    for original, record in zip(originals, cached, strict=True):
        assert {name: record[name] for name in original} == original
        arrays = {
            feature.name: np.frombuffer(record[feature.name], feature.numpy_dtype(vocab_size))
            for feature in records.TEACHER_CACHE_FEATURES
        }
        logits = dense_logits(model, record, vocab_size)
        positions = len(logits)
        ids, topk_logits = codec.decode(record, positions)
        tails = arrays[records.LOG_TAIL_MASSES].reshape(positions, 2)
        for temperature in (1.0, 2.0):
            exact = np.exp(logits / temperature)
            exact /= exact.sum(-1, keepdims=True)
            targets = TeacherTargets(ids, topk_logits, tails, None, (1.0, 2.0))
            p, rest = targets.probabilities(temperature)
            np.testing.assert_allclose(p, np.take_along_axis(exact, ids, -1), rtol=5e-3, atol=1e-6)
            np.testing.assert_allclose(rest, 1.0 - np.sort(exact)[:, -16:].sum(-1), atol=1e-5)
        labels = arrays[records.MASKED_LM_IDS]
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        np.testing.assert_allclose(
            arrays[records.LABEL_LOG_PROBS],
            log_probs[np.arange(positions), labels],
            rtol=2e-3,
            atol=1e-3,
        )


def test_manifest_records_parent_teacher_and_environment(cache_dir, examples_dir) -> None:
    loaded = manifest.load(cache_dir)
    parent = manifest.load(examples_dir)
    info = loaded.teacher_info
    assert info.parent == {"sha256": parent.sha256()}
    assert info.temperatures == (1.0, 2.0) and info.truncation_factor == 16
    assert len(info.teacher["sha256"]) == 64
    assert loaded.num_examples("train") == parent.num_examples("train")
    assert loaded.vocab == parent.vocab
    assert (cache_dir / "vocab.txt").read_bytes() == (examples_dir / "vocab.txt").read_bytes()
    assert loaded.statistics["environment"]["threads"] >= 1


def test_repeated_capture_is_byte_equal(cache_dir, config) -> None:
    create_teacher_cache(config)
    assert read_folder(config.output_dir) == read_folder(cache_dir)


@pytest.mark.long
def test_last_task_publishes_the_cache_that_all_tasks_share(cache_dir, config) -> None:
    folder = config.output_dir
    for index in (2, 0, 1):
        task = dataclasses.replace(config, num_tasks=3, task_index=index)
        published = create_teacher_cache(task)
        assert (published is None) == (index != 1)
        assert (folder / "manifest.json").exists() == (index == 1)
    assert read_folder(folder) == read_folder(cache_dir)


def test_resuming_makes_only_the_missing_shard(cache_dir, config, monkeypatch) -> None:
    folder = config.output_dir
    shutil.copytree(cache_dir, folder)
    (folder / "manifest.json").unlink()
    missing = "train-00001-of-00003.tfrecord"
    (folder / missing).unlink()
    written = []
    write_shard = serialization.write_shard

    def write_and_note(directory, file, serialized, measured):
        written.append(file)
        return write_shard(directory, file, serialized, measured)

    monkeypatch.setattr(serialization, "write_shard", write_and_note)
    create_teacher_cache(config)
    assert written == [missing]
    assert read_folder(folder) == read_folder(cache_dir)


def test_k_is_at_most_the_vocabulary(config, vocab) -> None:
    inputs = {"input_dir": None, "input_file": config.input_dir / "eval*"}
    made = create_teacher_cache(dataclasses.replace(config, truncation_factor=10_000, **inputs))
    assert made.teacher_info.truncation_factor == len(vocab)
    assert list(made.splits) == ["eval"]


def test_bfloat16_changes_label_log_probs_only_slightly(cache_dir, config) -> None:
    inputs = {"input_dir": None, "input_file": config.input_dir / "eval*"}
    create_teacher_cache(dataclasses.replace(config, compute_dtype="mixed_bfloat16", **inputs))
    pairs = zip(_records(cache_dir, "eval"), _records(config.output_dir, "eval"), strict=True)
    float32, bfloat16 = (
        np.concatenate([np.frombuffer(row[records.LABEL_LOG_PROBS], "<f2") for row in rows])
        for rows in zip(*pairs, strict=True)
    )
    assert 0.0 < np.abs(float32.astype(float) - bfloat16).mean() < 0.05


@pytest.mark.parametrize(
    ("changes", "subject", "received"),
    [
        ({"teacher": None}, "teacher", "neither"),
        ({"bert_config_file": "x"}, "teacher", "both"),
        ({"init_checkpoint": "x"}, "init_checkpoint", "`teacher`"),
        ({"teacher": None, "bert_config_file": "x"}, "init_checkpoint", "none"),
        ({"task_index": 1}, "task_index", 1),
        ({"temperatures": (2.0,)}, "temperatures", "2"),
        ({"max_seq_length": 512}, "max_seq_length", 512),
        ({"max_predictions_per_seq": 9}, "max_predictions_per_seq", 9),
        ({"input_dir": "/nowhere"}, "/nowhere", "no such directory"),
        ({"teacher": "/nowhere"}, "/nowhere", "no such directory"),
    ],
)
def test_error_about_invalid_settings_names_the_setting(
    config, changes, subject: str, received: object
) -> None:
    with pytest.raises(InputError) as refused:
        create_teacher_cache(dataclasses.replace(config, **changes))
    assert refused.value.subject == subject
    assert str(refused.value.received).startswith(str(received))
    assert not config.output_dir.exists()


@pytest.mark.parametrize("kind", ["teacher_cache", "unmasked_windows"])
def test_capture_refuses_shards_of_another_kind(config, cache_dir, windows_dir, kind: str) -> None:
    folder = cache_dir if kind == "teacher_cache" else windows_dir
    with pytest.raises(InputError) as refused:
        create_teacher_cache(dataclasses.replace(config, input_dir=str(folder)))
    error = refused.value
    assert (error.subject, error.setting) == (str(folder), "input_dir")
    assert error.expected == "masked_examples" and kind in error.received


def test_a_damaged_shard_is_refused_before_it_is_used(config, examples_dir, tmp_path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(examples_dir, damaged)
    # The first examples of the largest shard are read before all others.
    path = damaged / "train-00001-of-00003.tfrecord"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=f"{path}: this shard is damaged"):
        create_teacher_cache(dataclasses.replace(config, input_dir=str(damaged)))
    # The size is unchanged, so that only the record's checksum reveals the damage.
    with pytest.raises(InputError, match=f"{path}: broken record at byte 0"):
        create_teacher_cache(dataclasses.replace(config, input_dir=str(damaged), verify="sizes"))
    completed = sorted(path.name for path in config.output_dir.glob("*.tfrecord"))
    assert completed == [
        "eval-00000-of-00001.tfrecord",
        "train-00000-of-00003.tfrecord",
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_position_embeddings": 40}, "a model of at least 48 positions"),
        ({"more_tokens": True}, "a model with the vocabulary of"),
        ({"type_vocab_size": 1}, "a model with two segments"),
    ],
    ids=str,
)
def test_capture_refuses_a_teacher_that_does_not_fit_the_examples(
    config, tmp_path, vocab_file, changes, expected: str
) -> None:
    tokens = tmp_path / "vocab.txt"
    more = "more\n" if changes.pop("more_tokens", False) else ""
    tokens.write_text(vocab_file.read_text(encoding="utf-8") + more, encoding="utf-8")
    teacher = save_tiny_bert(tmp_path / "teacher", tokens, seed=1, **changes)
    with pytest.raises(InputError) as refused:
        create_teacher_cache(dataclasses.replace(config, teacher=str(teacher)))
    assert refused.value.subject == "teacher" and refused.value.expected.startswith(expected)


def test_a_teacher_without_a_head_is_refused(config, tmp_path, teacher_dir) -> None:
    other = tmp_path / "teacher"
    shutil.copytree(teacher_dir, other)
    weights = load_file(other / "model.safetensors")
    encoder = {name: value for name, value in weights.items() if name.startswith("bert.")}
    save_file(encoder, other / "model.safetensors")
    with pytest.raises(InputError) as refused:
        create_teacher_cache(dataclasses.replace(config, teacher=str(other)))
    assert refused.value.setting == "teacher"
    assert refused.value.expected == "a model with a masked-LM head"
    assert not config.output_dir.exists()


@pytest.mark.long
def test_capture_uses_the_decoder_of_an_untied_teacher(
    config, tmp_path, vocab_file, examples_dir
) -> None:
    teacher = save_tiny_bert(tmp_path / "teacher", vocab_file, seed=1, tie_word_embeddings=False)
    made = create_teacher_cache(dataclasses.replace(config, teacher=str(teacher)))
    assert made.teacher_info.teacher["config"]["tie_word_embeddings"] is False
    source = model_directory.find_model(teacher)
    weights, vocab_size = source.read_weights(), source.config.vocab_size
    assert not np.array_equal(
        weights["head/decoder"], weights["encoder/embeddings/word_embeddings"]
    )
    model, codec = model_directory.load_masked_lm(source), CODECS["float16"](vocab_size, 16)
    originals, cached = (_records(folder, "eval") for folder in (examples_dir, config.output_dir))
    for original, record in zip(originals, cached, strict=True):
        logits = dense_logits(model, original, vocab_size)
        ids, _ = codec.decode(record, len(logits))
        np.testing.assert_array_equal(logits.argmax(axis=-1), ids[:, 0])


def test_a_teacher_with_nan_weights_is_not_cached(config, tmp_path, teacher_dir) -> None:
    other = tmp_path / "teacher"
    shutil.copytree(teacher_dir, other)
    weights = load_file(other / "model.safetensors")
    weights["cls.predictions.bias"][3] = np.nan
    save_file(weights, other / "model.safetensors")
    with pytest.raises(InputError, match="teacher: .*finite logits"):
        create_teacher_cache(dataclasses.replace(config, teacher=str(other)))
    assert not list(config.output_dir.glob("*.tfrecord"))


def test_a_reserved_directory_refuses_another_teacher(config, tmp_path, teacher_dir) -> None:
    create_teacher_cache(config)
    other = tmp_path / "teacher"
    shutil.copytree(teacher_dir, other)
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "layer_norm_eps": 1e-6}))
    with pytest.raises(
        InputError, match=r"teacher.config.layer_norm_eps \(recorded 1e-12, now 1e-06\)"
    ):
        create_teacher_cache(dataclasses.replace(config, teacher=str(other)))


@pytest.mark.slow
def test_capture_resumes_after_kills_at_ten_random_times(cache_dir, config) -> None:
    """Each run is killed within the time of a complete run, except the last."""
    command = [
        *(sys.executable, "-m", "pipeline.create_teacher_output_data"),
        *(f"--input_dir={config.input_dir}", f"--teacher={config.teacher}"),
        *(f"--output_dir={config.output_dir}", "--truncation_factor=16", "--predict_batch_size=8"),
    ]
    begun = time.perf_counter()
    subprocess.run([*command, f"--output_dir={config.output_dir}-whole"], cwd=ROOT, check=True)
    seconds = time.perf_counter() - begun
    rng = random.Random(0)
    for _ in range(10):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        time.sleep(seconds * rng.uniform(0.4, 1.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=ROOT, check=True)
    assert read_folder(config.output_dir) == read_folder(cache_dir)


def test_settings_for_worker_processes_have_absolute_locations(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    config = TeacherCacheConfig("made", "gs://bucket/examples", teacher="model").absolute()
    assert str(config.output_dir) == str(tmp_path / "made")
    assert config.output_dir.setting == "output_dir"
    assert str(config.input_dir) == "gs://bucket/examples"
    assert str(config.teacher) == str(tmp_path / "model")
