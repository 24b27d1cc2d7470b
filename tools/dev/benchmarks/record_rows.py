"""Measurements of records: size, writing and reading, compared with lists of int64 and float."""

import dataclasses
import itertools
import pathlib
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from data_specs import records
from pipeline.base import compute_dtype
from pipeline.distill import batches
from pipeline.models.formats import model_directory
from pipeline.storage import cache_input, serialization
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.length_buckets import MicrobatchPlan
from pipeline.storage.manifest import TRAIN
from pipeline.teacher.settings import TeacherCacheConfig
from tools import list_records
from tools.cache_analysis import planning
from tools.cache_analysis.planning import CachePlan
from tools.dev.benchmarks.inputs import Inputs
from tools.measurement import Row, compare


def _write_lists(path: pathlib.Path, examples: Iterable[Mapping[str, np.ndarray]]) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for arrays in examples:
            writer.write(list_records.list_record(arrays))


def _list_batches(
    path: pathlib.Path, sizes: tuple[int, int, int], batch_size: int
) -> tf.data.Dataset:
    """Returns endless shuffled batches of list records, parsed one by one; `sizes` are L, P, K."""
    features = list_records.list_features(*sizes)

    def parse(serialized: tf.Tensor) -> dict[str, Any]:
        parsed = tf.io.parse_single_example(serialized, features)
        return {
            name: tf.cast(value, tf.int32) if value.dtype == tf.int64 else value
            for name, value in parsed.items()
        }

    dataset = tf.data.TFRecordDataset(str(path)).repeat().shuffle(1_000, seed=0)
    dataset = dataset.map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(batch_size, drop_remainder=True).prefetch(4)


_BATCH_SIZE = 32
_EXAMPLES = 384
# Copies of each example, so that a shard has thousands of records, as in real caches.
_COPIES = 8
# Batch size of the Chinese RoBERTa-wwm distillation.
_READ_BATCH_SIZE = 384
_READ_BATCHES = 20
_LISTS_FILE = "lists.tfrecord"


def _ours(
    cache: CacheInput, padded: Sequence[Mapping[str, np.ndarray]], inputs: Inputs, name: str
) -> float:
    """Returns the seconds per record of encoding teacher targets and writing a shard."""
    codec = cache_input.open_codec(cache.directory, cache.manifest)
    targets = []
    for example in padded:
        count = int(example[records.MASKED_LM_WEIGHTS].sum())
        targets.append(tuple(example[name][:count] for name in list_records.TOPK))
    masked = cache.directory / cache.manifest.splits[TRAIN][0].file
    others = [
        serialization.decode_example(record)
        for record in itertools.islice(serialization.read_records(masked), _EXAMPLES)
    ]
    splits = np.cumsum([0, *(len(ids) for ids, _ in targets)])
    ids, logits = (np.concatenate(values) for values in zip(*targets, strict=True))
    directory = inputs.new_directory(name)
    directory.mkdir()

    def serialized() -> Iterator[bytes]:
        for begin in range(0, len(padded), _BATCH_SIZE):
            bounds = splits[begin : begin + _BATCH_SIZE + 1]
            record_rows = slice(bounds[0], bounds[-1])
            packed = codec.encode(ids[record_rows], logits[record_rows], bounds - bounds[0])
            for number, features in enumerate(packed, begin):
                yield serialization.encode_example({**others[number % len(others)], **features})

    start = time.perf_counter()
    serialization.write_shard(directory, "records.tfrecord", serialized())
    seconds = time.perf_counter() - start
    inputs.remove(directory)
    return seconds / len(padded)


def _lists(padded: Sequence[Mapping[str, np.ndarray]], inputs: Inputs) -> float:
    path = inputs.work / _LISTS_FILE
    start = time.perf_counter()
    _write_lists(path, padded)
    return (time.perf_counter() - start) / len(padded)


def writing(inputs: Inputs, cache: CacheInput) -> Row:
    """Returns the time of writing a record from arrays in memory."""
    padded = list_records.padded_examples(cache, TRAIN, _EXAMPLES) * _COPIES
    return compare(
        lambda: 1e6 * _ours(cache, padded, inputs, "written"),
        lambda: 1e6 * _lists(padded, inputs),
        inputs.repeats,
        name=f"writing a record, float16, k={inputs.truncation_factor}",
        unit="µs",
        against="lists of int64 and float",
        least_ratio=10.0,
        note=f"with checksums, {len(padded)} records of {inputs.max_seq_length} tokens",
    )


def _rate(dataset: tf.data.Dataset) -> float:
    """Returns the records per second of a dataset of batches, after some that are not timed."""
    iterator = iter(dataset)
    for _ in range(_READ_BATCHES // 5):
        next(iterator)
    start = time.perf_counter()
    for _ in range(_READ_BATCHES):
        next(iterator)
    return _READ_BATCHES * _READ_BATCH_SIZE / (time.perf_counter() - start)


def _repeated(cache: CacheInput, inputs: Inputs) -> CacheInput:
    """Returns a cache whose train split is one shard with copies of its first examples."""
    directory = inputs.new_directory("repeated")
    shutil.copytree(cache.directory, directory)
    shards = [directory / shard.file for shard in cache.manifest.splits[TRAIN]]
    all_records = itertools.chain.from_iterable(map(serialization.read_records, shards))
    first = list(itertools.islice(all_records, _EXAMPLES))
    shard = serialization.write_shard(directory, "repeated.tfrecord", first * _COPIES)
    manifest = dataclasses.replace(cache.manifest, splits={TRAIN: (shard,)})
    return dataclasses.replace(cache, directory=directory, manifest=manifest)


def reading(inputs: Inputs, cache: CacheInput, least_ratio: float | None) -> Row:
    """Returns the rate of reading a cache to ready batches, as a training run does."""
    padded = list_records.padded_examples(cache, TRAIN, _EXAMPLES) * _COPIES
    _lists(padded, inputs)
    repeated, manifest = _repeated(cache, inputs), cache.manifest
    k = inputs.truncation_factor
    sizes = (inputs.max_seq_length, manifest.max_predictions_per_seq, k)
    path, plan = inputs.work / _LISTS_FILE, MicrobatchPlan(_READ_BATCH_SIZE)
    settings = {"seed": 0, "start": 0, "shuffle_buffer_size": 1_000}
    row = compare(
        lambda: _rate(batches.training_batches(repeated, plan, **settings)),
        lambda: _rate(_list_batches(path, sizes, _READ_BATCH_SIZE)),
        inputs.repeats,
        name=f"reading to ready batches, {manifest.teacher_info.logit_encoding}, k={k}",
        unit="records/s",
        against="lists of int64 and float",
        least_ratio=least_ratio,
        note=f"{inputs.max_seq_length} tokens, shuffled, batches of {_READ_BATCH_SIZE}",
    )
    inputs.remove(repeated.directory)
    return row


def record_rows(inputs: Inputs) -> Iterator[Row]:
    """Yields the measurements of writing and reading records."""
    cache = inputs.cache(mixed=False)
    yield writing(inputs, cache)
    yield reading(inputs, cache, 6.0)
    yield reading(inputs, inputs.cache(mixed=False, logit_encoding="compact"), None)


_SAMPLE = 192
_MASS = 0.999
# Targets of the measurements: bytes of a position, and the codec's divergence in nats.
_MOST_BYTES = {"float16": 535.0, "compact": 280.0}
_MOST_NATS = 2e-5


def _list_bytes(cache: CacheInput) -> float:
    """Returns the bytes of the top-k of a masked position, stored in lists."""
    num_bytes = num_positions = 0
    for example in list_records.padded_examples(cache, TRAIN, _SAMPLE):
        count = int(example[records.MASKED_LM_WEIGHTS].sum())
        full = {**example, **{name: example[name][:count] for name in list_records.TOPK}}
        empty = {**example, **{name: example[name][:0] for name in list_records.TOPK}}
        num_bytes += len(list_records.list_record(full)) - len(list_records.list_record(empty))
        num_positions += count
    return num_bytes / num_positions


def _measure_plans(inputs: Inputs, mass: float | None, encodings: list[str]) -> list[CachePlan]:
    source = model_directory.find_model(inputs.teacher)
    model = model_directory.load_masked_lm(
        source, dtype=compute_dtype.FLOAT32, logits_dtype="float32"
    )
    config = TeacherCacheConfig(output_dir="", input_dir="", teacher="", truncation_mass=mass)
    return list(
        planning.measure_plans(
            model,
            inputs.examples(mixed=False),
            config,
            sample=_SAMPLE,
            truncation_factors=[inputs.truncation_factor],
            logit_encodings=encodings,
        ).plans
    )


def size_rows(inputs: Inputs) -> Iterator[Row]:
    """Yields the bytes of each codec and its divergence from the exact top-k."""
    lists = _list_bytes(inputs.cache(mixed=False))
    for plan in _measure_plans(inputs, None, list(_MOST_BYTES)):
        name = plan.logit_encoding
        yield Row(
            name=f"cache, {name}, k={plan.truncation_factor}",
            unit="bytes a position",
            ours=plan.position_bytes,
            against="lists of int64 and float",
            baseline=lists,
            ratio=lists / plan.position_bytes,
            most=_MOST_BYTES[name],
            note="the codec's bytes include tails and the label's probability",
        )
        yield Row(
            name=f"cache, {name}: KL(decoded || exact top-k)",
            unit="nats",
            ours=plan.kl_reverse.mean,
            most=_MOST_NATS,
            note=f"mean; the largest is {plan.kl_reverse.max:.1e}",
        )
    for plan in _measure_plans(inputs, _MASS, ["float16", "compact"]):
        yield Row(
            name=f"cache, {plan.logit_encoding}, --truncation_mass={_MASS:g}",
            unit="bytes a position",
            ours=plan.position_bytes,
            against="lists of int64 and float",
            baseline=lists,
            ratio=lists / plan.position_bytes,
            note=f"{plan.ids_per_position:.1f} ids a position, at most {plan.truncation_factor}",
        )
