"""The cache of a fine-tuned teacher's logits, which only students of equal inputs can use."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

from data_specs.records import TASK_LOGITS, TEACHER_LOGITS
from data_specs.tasks import CLASSIFICATION, REGRESSION, SPAN, TOKEN_CLASSIFICATION
from pipeline.base.errors import InputError, Setting
from pipeline.models.formats.model_directory import find_model
from pipeline.storage import cache_input, manifest, serialization
from tests.conftest import save_tiny_bert
from tests.tools.finetuning.conftest import save_tiny_head
from tools.finetuning import heads, prediction, task_teacher, training
from tools.finetuning.head_layout import Head
from tools.finetuning.inputs import Padding
from tools.finetuning.preparation import prepare
from tools.finetuning.settings import FinetuneConfig
from tools.finetuning.task_inputs import TaskInputs

BINARY = Head(CLASSIFICATION, ("0", "1"))
# Names of fixtures: runs with teachers for classes, tags, and answer spans.
KINDS = ["config", "tags_config", pytest.param("span_config", marks=pytest.mark.slow)]


@pytest.fixture
def config(sentiment_config, task_teacher_dir, tmp_path) -> FinetuneConfig:
    """The settings of a student's run with a teacher."""
    teacher = {"finetune_teacher": task_teacher_dir, "teacher_cache": tmp_path / "cache"}
    return dataclasses.replace(sentiment_config, **teacher, num_train_epochs=1.0)


@pytest.fixture
def cached_config(config) -> FinetuneConfig:
    """The settings of a run whose teacher cache is complete."""
    training.find_teacher_logits(prepare(config), config)
    return config


@pytest.fixture
def span_config(config, questions_dir, span_teacher_dir) -> FinetuneConfig:
    """The settings of a run over windows of contexts."""
    task = {"task": "cmrc2018", "data_dir": questions_dir, "finetune_teacher": span_teacher_dir}
    return dataclasses.replace(config, **task, doc_stride=16, max_query_length=8)


@pytest.fixture
def tags_config(config, tags_dir, tags_teacher_dir) -> FinetuneConfig:
    """The settings of a run over the tags of words, in windows."""
    task = {"task": str(tags_dir / "tags.yaml"), "data_dir": tags_dir}
    teacher = {"finetune_teacher": tags_teacher_dir}
    return dataclasses.replace(config, **task, **teacher, max_seq_length=12)


def _inputs(config: FinetuneConfig) -> TaskInputs:
    run = prepare(config)
    return run.inputs(run.train, config)


def _live_logits(directory: str, inputs: TaskInputs) -> list[np.ndarray]:
    """Returns a teacher's logits, one input at a time, without padding or batches."""
    source = find_model(directory)
    model = heads.build_head(source, inputs.head, keep_head=True)
    logits = []
    for feature in inputs.features:
        padding = Padding(1, len(feature.input_ids), source.config.type_vocab_size)
        logits.append(np.asarray(model(padding.batch([feature])))[0])
    return logits


def _weights(directory: pathlib.Path) -> bytes:
    return (directory / "model/model.safetensors").read_bytes()


def _losses(directory: pathlib.Path) -> list[float]:
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["split"] == "train"]


def _refusal(config: FinetuneConfig, **changes: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        training.finetune(dataclasses.replace(config, **changes))
    return caught.value


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
def test_cached_logits_equal_live_logits(request, monkeypatch, name: str) -> None:
    config = request.getfixturevalue(name)
    # The cache has several shards, and the last one is smaller.
    monkeypatch.setattr(task_teacher, "_SHARD_SIZE", 40)
    inputs = _inputs(config)
    cached_logits = training.find_teacher_logits(prepare(config), config)
    live = _live_logits(config.finetune_teacher, inputs)
    assert len(cached_logits) == len(live) == len(inputs.features)
    for cached, value, feature in zip(cached_logits, live, inputs.features, strict=True):
        length = len(feature.input_ids)
        shapes = {CLASSIFICATION: (2,), SPAN: (2, length), TOKEN_CLASSIFICATION: (length, 5)}
        assert cached.shape == shapes[inputs.head.kind]
        np.testing.assert_allclose(cached, value, atol=2e-5)
    written_manifest = manifest.load(config.teacher_cache)
    assert written_manifest.kind == TASK_LOGITS
    assert written_manifest.num_examples("train") == len(inputs.features)
    assert len(written_manifest.splits["train"]) == -(-len(inputs.features) // 40)
    manifest.verify(config.teacher_cache, written_manifest, full=True)


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
def test_cached_teacher_gives_the_same_student_as_a_live_one(
    request, monkeypatch, tmp_path, name: str
) -> None:
    config = request.getfixturevalue(name)
    cached = training.finetune(config)

    def live(directory, inputs, teacher, *, compute_dtype):
        model = heads.build_head(teacher, inputs.head, dtype=compute_dtype, keep_head=True)
        padding = Padding(64, inputs.max_seq_length)
        forward = prediction.compile_forward(model)
        return prediction.predict_logits(forward, inputs.features, padding)

    monkeypatch.setattr(task_teacher, "cached_logits", live)
    again = training.finetune(dataclasses.replace(config, output_dir=tmp_path / "live"))
    assert _weights(cached.directory) == _weights(again.directory)
    losses = _losses(cached.directory)
    assert losses == _losses(again.directory) and len(losses) > 1


@pytest.mark.long
def test_teacher_logits_change_the_student(config, tmp_path) -> None:
    distilled = training.finetune(config)
    changes = {"finetune_teacher": None, "teacher_cache": None, "output_dir": tmp_path / "alone"}
    baseline = training.finetune(dataclasses.replace(config, **changes))
    assert _weights(distilled.directory) != _weights(baseline.directory)


@pytest.mark.long
def test_the_second_student_does_not_call_the_teacher(
    config, task_teacher_dir, monkeypatch, tmp_path, vocab_file
) -> None:
    training.finetune(config)

    def fail(*_arguments: object) -> None:
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(task_teacher, "_load_teacher", fail)
    smaller = save_tiny_bert(tmp_path / "smaller", vocab_file, seed=9, num_layers=1)
    second = dataclasses.replace(config, model=str(smaller), output_dir=tmp_path / "second")
    training.finetune(second)
    assert (tmp_path / "second/metrics.json").is_file()
    # The teacher's directory is not needed, nor a student with segments.
    plain = {"model_type": "distilbert", "type_vocab_size": 0}
    distilbert = save_tiny_bert(tmp_path / "other", vocab_file, seed=9, num_layers=1, **plain)
    changes = {"model": str(distilbert), "finetune_teacher": None, "output_dir": tmp_path / "third"}
    training.finetune(dataclasses.replace(config, **changes))
    assert (tmp_path / "third/metrics.json").is_file()


def test_interrupted_cache_is_completed(config, monkeypatch) -> None:
    monkeypatch.setattr(task_teacher, "_SHARD_SIZE", 40)
    write_shard, written_files = serialization.write_shard, []

    def write_once(directory, file, records):
        if written_files:
            raise KeyboardInterrupt
        written_files.append(file)
        return write_shard(directory, file, records)

    run = prepare(config)
    with monkeypatch.context() as patch:
        patch.setattr(serialization, "write_shard", write_once)
        with pytest.raises(KeyboardInterrupt):
            training.find_teacher_logits(run, config)
    folder = pathlib.Path(config.teacher_cache)
    assert not (folder / "manifest.json").exists()
    before = (folder / written_files[0]).stat().st_mtime_ns
    cached_logits = training.find_teacher_logits(run, config)
    assert len(cached_logits) == len(run.train.features)
    assert (folder / written_files[0]).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_seq_length": 40}, "max_seq_length (recorded 48, now 40)"),
        ({"max_train_examples": 50}, "num_windows (recorded 96, now 50)"),
    ],
)
@pytest.mark.parametrize("with_teacher", [True, False])
def test_cache_of_other_inputs_is_refused(
    cached_config, changes, message: str, with_teacher: bool
) -> None:
    if not with_teacher:
        changes = {**changes, "finetune_teacher": None}
    error = _refusal(cached_config, **changes)
    assert error.subject == str(cached_config.teacher_cache) and message in error.received
    # The output directory is not reserved.
    assert not cached_config.output_dir.exists()


def test_cache_of_other_tokens_or_another_task_is_refused(
    cached_config, span_config, tmp_path, sentiment_dir, model_dir
) -> None:
    cached = dataclasses.replace(cached_config, finetune_teacher=None)
    for task in (span_config, dataclasses.replace(span_config, finetune_teacher=None)):
        error = _refusal(task)
        assert (error.subject, error.expected) == (
            str(cached_config.teacher_cache),
            "logits of cmrc2018",
        )
        assert error.received == "those of chnsenticorp"
    # The number of sentences is equal, but one sentence differs.
    data = shutil.copytree(sentiment_dir, tmp_path / "data")
    lines = (data / "train.tsv").read_text("utf-8").splitlines()
    (data / "train.tsv").write_text("\n".join([*lines[:-1], "0\t火车晚点"]) + "\n", "utf-8")
    assert "windows (recorded '" in _refusal(cached, data_dir=data).received
    # Two tokens of the vocabulary are swapped.
    model = shutil.copytree(model_dir, tmp_path / "model")
    tokens = (model / "vocab.txt").read_text("utf-8").splitlines()
    swapped = [*tokens[:-2], tokens[-1], tokens[-2]]
    (model / "vocab.txt").write_text("\n".join(swapped) + "\n", "utf-8")
    assert "vocab.sha256 (recorded '" in _refusal(cached, model=model).received
    error = _refusal(cached_config, model=model)
    assert error.subject == str(cached_config.finetune_teacher)
    assert error.expected.startswith("the tokens of `model` (SHA-256 ")


@pytest.mark.long
def test_finished_run_is_refused_with_another_cache(config, tmp_path, teacher_dir) -> None:
    """Without a named teacher, the cache's contents identify the run."""
    finished = training.finetune(config)
    other_teacher = save_tiny_head(tmp_path / "other", teacher_dir, BINARY, seed=6)
    error = _refusal(config, finetune_teacher=other_teacher, output_dir=tmp_path / "new")
    assert error.subject == str(config.teacher_cache) and "teacher (recorded" in error.received
    other_config = dataclasses.replace(
        config, finetune_teacher=other_teacher, teacher_cache=tmp_path / "others"
    )
    training.find_teacher_logits(prepare(other_config), other_config)
    # The run is the same as with the teacher's directory.
    cached = dataclasses.replace(config, finetune_teacher=None)
    assert training.finetune(cached) == finished
    error = _refusal(cached, teacher_cache=other_config.teacher_cache)
    assert error.subject == str(config.output_dir) and "teacher (recorded" in error.received


@pytest.mark.parametrize(
    ("head", "received"),
    [
        (None, "none"),
        (Head(SPAN), "a span head"),
        (Head(REGRESSION), "a regression head"),
        (Head(CLASSIFICATION, ("1", "0")), "a classification head with 2 labels (1, 0)"),
    ],
)
def test_teacher_of_another_task_is_refused(
    config, tmp_path, teacher_dir, head, received: str
) -> None:
    other_teacher = (
        teacher_dir if head is None else save_tiny_head(tmp_path / "other", teacher_dir, head)
    )
    error = _refusal(config, finetune_teacher=other_teacher)
    assert error.subject == Setting("finetune_teacher")
    assert error.expected.startswith("a classification head with 2 labels (0, 1)")
    assert error.received == f"{other_teacher} with {received}"


def test_teacher_of_fewer_positions_is_refused(config, tmp_path, vocab_file) -> None:
    short = save_tiny_bert(tmp_path / "short", vocab_file, seed=1, max_position_embeddings=32)
    teacher = save_tiny_head(tmp_path / "head", short, BINARY)
    error = _refusal(config, finetune_teacher=teacher)
    assert (error.subject, error.received) == (str(teacher), 32)
    assert "at least 48 positions" in error.expected


def test_damaged_shard_of_the_cache_is_named(cached_config) -> None:
    path = cached_config.teacher_cache / "train-00000-of-00001.tfrecord"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    assert _refusal(cached_config).subject == str(path)


def test_records_of_other_inputs_are_refused(cached_config) -> None:
    """Each record is valid, but the records do not match the manifest's inputs."""
    folder, file = cached_config.teacher_cache, "train-00000-of-00001.tfrecord"
    stored = list(serialization.read_records(folder / file))
    first = serialization.decode_example(stored[0])

    def rewrite(changed: list[bytes]) -> None:
        shard = serialization.write_shard(folder, file, changed)
        path = folder / "manifest.json"
        value = json.loads(path.read_text())
        value["splits"]["train"] = [{**shard.to_json(), "num_examples": len(stored)}]
        path.write_text(json.dumps(value))

    rewrite([stored[1], *stored[1:]])
    assert _refusal(cached_config).received == "a damaged record (it belongs to another input)"
    rewrite(stored[:-1])
    error = _refusal(cached_config)
    assert error.expected.startswith(f"{len(stored)} records")
    assert error.received == len(stored) - 1
    short = serialization.encode_example({**first, TEACHER_LOGITS: first[TEACHER_LOGITS][:4]})
    rewrite([short, *stored[1:]])
    assert _refusal(cached_config).received.startswith(
        "a damaged record (cannot reshape array of size 1"
    )


def test_other_stages_refuse_a_cache_of_task_logits(cached_config) -> None:
    with pytest.raises(InputError) as caught:
        cache_input.open_cache(cached_config.teacher_cache, None)
    assert "task_logits" in caught.value.received


def test_cache_of_another_kind_is_refused(config, cache_dir) -> None:
    error = _refusal(config, finetune_teacher=None, teacher_cache=cache_dir)
    assert (error.subject, error.received) == (str(cache_dir), "teacher_cache")
