"""Measurements of distillation, compared with its bare step, full padding, and PyTorch."""

import contextlib
import dataclasses
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from data_specs import records
from pipeline.distill import batches, training
from pipeline.distill.preparation import prepare
from pipeline.distill.settings import DistillConfig, StudentConfig, parse_losses
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.length_buckets import MicrobatchPlan
from tools.dev.benchmarks.inputs import Inputs
from tools.measurement import Row, compare

_BATCH_SIZE = 32
_LOG_STEPS = 4
_LINES = 3
_LOSSES = "soft_cross_entropy=1,probability_cosine=1"
_LAYERS = 2
# The shape of the three-layer Chinese student, and the length of its inputs in this benchmark.
_PEER_SHAPE = {
    "hidden_size": 768,
    "num_hidden_layers": 3,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}
_PEER_LENGTH = 128
_PEER_BATCH_SIZE = 16


def _config(inputs: Inputs, cache: CacheInput, dtype: str, **settings: Any) -> DistillConfig:
    return DistillConfig(
        **{
            "student": StudentConfig(init_from=inputs.teacher, student_layers=_LAYERS),
            "losses": parse_losses(_LOSSES),
            "input_dir": cache.directory,
            "output_dir": inputs.work / "student",
            "num_train_steps": _LOG_STEPS * _LINES,
            "train_batch_size": _BATCH_SIZE,
            "compute_dtype": dtype,
            "log_steps": _LOG_STEPS,
            "do_eval": False,
            "verify": "sizes",
            "shuffle_buffer_size": 1_000,
            **settings,
        }
    )


def _run_rate(inputs: Inputs, config: DistillConfig) -> float:
    """Returns the examples per second of a whole run, from its log."""
    directory = inputs.new_directory("student")
    # The progress of the run is not shown.
    with contextlib.redirect_stderr(io.StringIO()):
        training.distill(config)
    text = (directory / "metrics.jsonl").read_text(encoding="utf-8")
    rates = [json.loads(line)["examples_per_second"] for line in text.splitlines()]
    inputs.remove(directory)
    keras.backend.clear_session()
    # The first line's time includes compilation.
    return statistics.median(rates[1:])


def _own_step(config: DistillConfig, batch: Any) -> Callable[[], Any]:
    """Returns a function that makes a step on one batch and returns the metrics."""
    distiller = training.build_distiller(prepare(config))
    iterator = iter(tf.data.Dataset.from_tensors(batch).repeat())
    step = distiller.make_train_function() or distiller.train_function
    return lambda: step(iterator)


def _rate(step: Callable[[], Any], num_steps: int, batch_size: int) -> float:
    """Returns the examples per second of a number of steps."""
    start = time.perf_counter()
    for _ in range(num_steps):
        metrics = step()
    # The conversion waits for the device.
    keras.tree.map_structure(float, metrics)
    return num_steps * batch_size / (time.perf_counter() - start)


def _step_rate(config: DistillConfig, batch: Any) -> float:
    """Returns the examples per second of the bare step, which repeats one batch."""
    step = _own_step(config, batch)
    rates = [_rate(step, _LOG_STEPS, config.train_batch_size) for _ in range(_LINES)]
    keras.backend.clear_session()
    return statistics.median(rates[1:])


def _first_batch(cache: CacheInput, batch_size: int) -> Any:
    dataset = batches.training_batches(
        cache, MicrobatchPlan(batch_size), seed=0, start=0, shuffle_buffer_size=1_000
    )
    return next(iter(dataset))


def _about() -> str:
    return f"{_LAYERS} layers of the teacher, batches of {_BATCH_SIZE}"


def _against_step(inputs: Inputs, dtype: str) -> Row:
    cache = inputs.cache(mixed=False)
    config = _config(inputs, cache, dtype, length_buckets=1)
    batch = _first_batch(cache, _BATCH_SIZE)
    return compare(
        lambda: _run_rate(inputs, config),
        lambda: _step_rate(config, batch),
        inputs.repeats,
        name=f"run_distill, {dtype}",
        unit="examples/s",
        against="the bare step on one batch in memory",
        least_ratio=0.95,
        note=f"{_about()}, {inputs.max_seq_length} tokens",
    )


def _against_padding(inputs: Inputs, dtype: str) -> Row:
    cache = inputs.cache(mixed=True)
    config = _config(inputs, cache, dtype, length_buckets=8)
    full = dataclasses.replace(config, length_buckets=1)
    return compare(
        lambda: _run_rate(inputs, config),
        lambda: _run_rate(inputs, full),
        inputs.repeats,
        name=f"run_distill, mixed lengths, {dtype}",
        unit="examples/s",
        against="all padded to max_seq_length",
        least_ratio=1.5,
        note=_about(),
    )


def _peer_batch(cache: CacheInput) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns inputs and targets of a batch with at most 128 tokens: longer inputs are cut."""
    inputs, targets = _first_batch(cache, _PEER_BATCH_SIZE)
    inputs = {
        name: value[:, :_PEER_LENGTH] if name != records.MASKED_LM_POSITIONS else value
        for name, value in inputs.items()
    }
    # Positions beyond the end are moved into the input, so that the amount of work is the same.
    positions = inputs[records.MASKED_LM_POSITIONS]
    return {
        **inputs,
        records.MASKED_LM_POSITIONS: positions % inputs[records.INPUT_IDS].shape[1],
    }, targets


def _against_pytorch(inputs: Inputs, dtype: str) -> Row:
    from tools.dev.benchmarks import pytorch_peer

    cache = inputs.cache(mixed=False)
    shape = {
        "vocab_size": cache.manifest.vocab.size,
        "max_position_embeddings": inputs.max_seq_length,
        **_PEER_SHAPE,
    }
    path = inputs.work / "peer_config.json"
    path.write_json(shape)
    config = _config(
        inputs, cache, dtype, student=StudentConfig(bert_config_file=path), length_buckets=1
    )
    config = dataclasses.replace(config, train_batch_size=_PEER_BATCH_SIZE)
    batch = _peer_batch(cache)
    step = _own_step(config, batch)
    peer = pytorch_peer.Student(shape, dtype)
    arrays = {name: value.numpy() for group in batch for name, value in group.items()}
    tensors = pytorch_peer.tensors(arrays)
    step(), step(), peer.step(tensors)
    row = compare(
        lambda: _rate(step, 3, _PEER_BATCH_SIZE),
        lambda: _rate(lambda: peer.step(tensors), 3, _PEER_BATCH_SIZE),
        inputs.repeats,
        name=f"student step, {dtype}",
        unit="examples/s",
        against="PyTorch transformers, masked positions only",
        least_ratio=1.0,
        note=f"3 layers of 768, batches of {_PEER_BATCH_SIZE}, {_PEER_LENGTH} tokens",
    )
    keras.backend.clear_session()
    return row


def student_rows(inputs: Inputs, dtypes: Sequence[str]) -> Iterator[Row]:
    """Yields the training rates of students, in each dtype."""
    for dtype in dtypes:
        yield _against_step(inputs, dtype)
        yield _against_padding(inputs, dtype)
        if inputs.has("torch", "transformers"):
            yield _against_pytorch(inputs, dtype)
