"""Writing, reading and the size of records, against lists of int64 and float."""

import dataclasses
import itertools
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from data_specs import records
from pipeline.distill import batches
from pipeline.storage import cache_input, reader, serialization
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.length_buckets import Chunking
from pipeline.storage.manifest import TRAIN
from tools.dev.benchmarks import ancestor_layout
from tools.dev.benchmarks.inputs import Inputs
from tools.dev.benchmarks.measurement import Row, alternate, compared

_BATCH_SIZE = 32
_EXAMPLES = 384
# Each example is written so often: shards hold thousands of records.
_COPIES = 8
# A batch of the Chinese RoBERTa-wwm distillation.
_READ_BATCH_SIZE = 384
_READ_BATCHES = 20
_ANCESTOR_FILE = "ancestor.tfrecord"
_SIZES_OF = (records.TOPK_IDS, records.TOPK_LOGITS)


def padded_examples(cache: CacheInput, count: int) -> list[dict[str, np.ndarray]]:
    """Returns the arrays of a cache's first examples, padded, as a script would hold them."""
    codec = cache_input.open_codec(cache.directory, cache.manifest)
    dataset = reader.evaluation_records(cache.directory, cache.manifest, TRAIN).take(count)
    found = []
    for serialized in dataset.batch(_BATCH_SIZE):
        batch = reader.parse_batch(serialized, cache.manifest, codec)
        inputs, other = batches.inputs_and_targets(batch)
        arrays = {name: value.numpy() for name, value in {**inputs, **other}.items()}
        del arrays[records.LOG_TAIL_MASSES]
        found += [
            {name: value[row] for name, value in arrays.items()} for row in range(len(serialized))
        ]
    return found


def _ours(
    cache: CacheInput, padded: Sequence[Mapping[str, np.ndarray]], inputs: Inputs, name: str
) -> float:
    """Returns the seconds a record that the teacher's output takes to a file of ours."""
    codec = cache_input.open_codec(cache.directory, cache.manifest)
    kept = []
    for one in padded:
        count = int(one[records.MASKED_LM_WEIGHTS].sum())
        kept.append(tuple(one[name][:count] for name in _SIZES_OF))
    masked = cache.directory / cache.manifest.splits[TRAIN][0].file
    others = [
        serialization.decode_example(record)
        for record in itertools.islice(serialization.read_records(masked), _EXAMPLES)
    ]
    splits = np.cumsum([0, *(len(ids) for ids, _ in kept)])
    ids, logits = (np.concatenate(values) for values in zip(*kept, strict=True))
    directory = inputs.new_directory(name)
    directory.mkdir()

    def serialized() -> Iterator[bytes]:
        for begin in range(0, len(padded), _BATCH_SIZE):
            bounds = splits[begin : begin + _BATCH_SIZE + 1]
            rows = slice(bounds[0], bounds[-1])
            packed = codec.encode(ids[rows], logits[rows], bounds - bounds[0])
            for number, features in enumerate(packed, begin):
                yield serialization.encode_example({**others[number % len(others)], **features})

    begun = time.perf_counter()
    serialization.write_shard(directory, "records.tfrecord", serialized())
    seconds = time.perf_counter() - begun
    inputs.remove(directory)
    return seconds / len(padded)


def _ancestor(padded: Sequence[Mapping[str, np.ndarray]], inputs: Inputs) -> float:
    path = inputs.work / _ANCESTOR_FILE
    begun = time.perf_counter()
    ancestor_layout.write(path, padded)
    return (time.perf_counter() - begun) / len(padded)


def writing(inputs: Inputs, cache: CacheInput) -> Row:
    """Returns how fast records are written, the arrays being in memory."""
    padded = padded_examples(cache, _EXAMPLES) * _COPIES
    figures = alternate(
        lambda: 1e6 * _ours(cache, padded, inputs, "written"),
        lambda: 1e6 * _ancestor(padded, inputs),
        inputs.repeats,
    )
    return compared(
        figures,
        larger_is_better=False,
        name=f"writing a record, float16, k={inputs.truncation_factor}",
        unit="µs",
        against="lists of int64 and float",
        least_ratio=10.0,
        note=f"checksums included, {len(padded)} records of {inputs.max_seq_length} tokens",
    )


def _rate(dataset: tf.data.Dataset) -> float:
    """Returns the records a second of a stream of batches, once it runs."""
    iterator = iter(dataset)
    for _ in range(_READ_BATCHES // 5):
        next(iterator)
    begun = time.perf_counter()
    for _ in range(_READ_BATCHES):
        next(iterator)
    return _READ_BATCHES * _READ_BATCH_SIZE / (time.perf_counter() - begun)


def _repeated(cache: CacheInput, inputs: Inputs) -> CacheInput:
    """Returns a cache whose train split is one shard of its first examples, many times over."""
    directory = inputs.new_directory("repeated")
    shutil.copytree(cache.directory, directory)
    shards = [pathlib.Path(directory) / shard.file for shard in cache.manifest.splits[TRAIN]]
    found = itertools.chain.from_iterable(map(serialization.read_records, shards))
    first = list(itertools.islice(found, _EXAMPLES))
    shard = serialization.write_shard(directory, "repeated.tfrecord", first * _COPIES)
    manifest = dataclasses.replace(cache.manifest, splits={TRAIN: (shard,)})
    return dataclasses.replace(cache, directory=directory, manifest=manifest)


def reading(inputs: Inputs, cache: CacheInput, least_ratio: float | None) -> Row:
    """Returns how fast ready batches come from a cache, by all of a run's own reading."""
    padded = padded_examples(cache, _EXAMPLES) * _COPIES
    _ancestor(padded, inputs)
    repeated, manifest = _repeated(cache, inputs), cache.manifest
    k = inputs.truncation_factor
    sizes = (inputs.max_seq_length, manifest.max_predictions_per_seq, k)
    path, chunking = inputs.work / _ANCESTOR_FILE, Chunking(_READ_BATCH_SIZE)
    settings = {"seed": 0, "start": 0, "shuffle_buffer_size": 1_000}
    figures = alternate(
        lambda: _rate(batches.training_batches(repeated, chunking, **settings)),
        lambda: _rate(ancestor_layout.batches(path, sizes, _READ_BATCH_SIZE)),
        inputs.repeats,
    )
    inputs.remove(repeated.directory)
    return compared(
        figures,
        larger_is_better=True,
        name=f"reading to ready batches, {manifest.teacher_info.logit_encoding}, k={k}",
        unit="records/s",
        against="lists of int64 and float",
        least_ratio=least_ratio,
        note=f"{inputs.max_seq_length} tokens, shuffled, batches of {_READ_BATCH_SIZE}",
    )


def rows(inputs: Inputs) -> Iterator[Row]:
    """Yields how fast records are written and read."""
    cache = inputs.cache(mixed=False)
    yield writing(inputs, cache)
    yield reading(inputs, cache, 6.0)
    yield reading(inputs, inputs.cache(mixed=False, logit_encoding="compact"), None)
