"""Measurements of capture, compared with the bare forward pass, full padding, and PyTorch."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_specs import records
from pipeline.models.formats import model_directory
from pipeline.models.formats.model_directory import ModelSource
from pipeline.models.masked_lm import LOGITS, MaskedLM
from pipeline.storage import serialization
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.codecs import CODECS
from pipeline.storage.manifest import TRAIN, TeacherInfo
from pipeline.storage.records import MaskedExample
from pipeline.teacher import capture, forward
from pipeline.teacher.settings import TeacherCacheConfig
from tools.dev.benchmarks.inputs import Inputs
from tools.measurement import Row, compare

_BATCH_SIZE = 32
_EXAMPLES = 384


@dataclasses.dataclass(frozen=True)
class Sample:
    """Serialized masked examples, and the batches that capture makes of them."""

    cache: CacheInput
    serialized: Sequence[bytes]

    @functools.cached_property
    def batches(self) -> list[forward.Arrays]:
        """Batches with the padding of capture."""
        manifest = self.cache.manifest
        examples = [
            MaskedExample.from_features(serialization.decode_example(record), manifest.vocab.size)
            for record in self.serialized
        ]
        lengths = [len(example.input_ids) for example in examples]
        return [
            forward.build_batch(
                [examples[index] for index in indices],
                batch_size=_BATCH_SIZE,
                max_seq_length=manifest.max_seq_length,
                max_predictions_per_seq=manifest.max_predictions_per_seq,
            )
            for indices in forward.length_batches(lengths, _BATCH_SIZE)
        ]

    @property
    def full_batches(self) -> list[forward.Arrays]:
        """The same batches with every input padded to `max_seq_length`."""
        length = self.cache.manifest.max_seq_length
        return [
            {
                name: np.pad(value, ((0, 0), (0, length - value.shape[1])))
                if name in (records.INPUT_IDS, records.INPUT_MASK, records.SEGMENT_IDS)
                else value
                for name, value in batch.items()
            }
            for batch in self.batches
        ]


def draw(cache: CacheInput) -> Sample:
    """Returns evenly spaced examples of the first shard."""
    path = cache.directory / cache.manifest.splits[TRAIN][0].file
    serialized = list(serialization.read_records(path))
    step = max(1, len(serialized) // _EXAMPLES)
    return Sample(cache, serialized[::step][:_EXAMPLES])


def _forward_rate(forward: Callable[[Any], Any], batches: Sequence[Any], count: int) -> float:
    start = time.perf_counter()
    for batch in batches:
        forward(batch)
    return count / (time.perf_counter() - start)


def bare_forward(model: MaskedLM) -> Callable[[forward.Arrays], forward.Arrays]:
    """Returns a function that computes only the logits at the masked positions of a batch."""
    return forward.compile_forward(model, lambda outputs, batch: {LOGITS: outputs[LOGITS]})


def _capture_rate(sample: Sample, pipeline: capture.Capture, inputs: Inputs) -> float:
    """Returns the examples per second, from serialized examples to a shard on the disk."""
    directory = inputs.new_directory("captured")
    directory.mkdir()
    start = time.perf_counter()
    manifest = sample.cache.manifest
    examples = (MaskedExample.from_record(record, manifest) for record in sample.serialized)
    totals = capture.ShardTotals(manifest.vocab.size)
    serialization.write_shard(directory, "records.tfrecord", pipeline.records(examples, totals))
    seconds = time.perf_counter() - start
    inputs.remove(directory)
    return len(sample.serialized) / seconds


def _make_capture(inputs: Inputs, sample: Sample, model: MaskedLM) -> capture.Capture:
    k = inputs.truncation_factor
    config = TeacherCacheConfig(output_dir="", teacher="", truncation_factor=k)
    manifest = sample.cache.manifest
    select = capture.make_selector(config, model, max_positions=manifest.max_predictions_per_seq)
    return capture.Capture(
        manifest=manifest,
        batch_size=_BATCH_SIZE,
        codec=CODECS["float16"](model.config.vocab_size, k),
        info=TeacherInfo(k, "float16", config.temperatures, teacher={}, parent={}),
        forward=forward.compile_forward(model, select),
        on_examples=lambda count: None,
    )


def _against_bare(inputs: Inputs, source: ModelSource, dtype: str) -> Row:
    sample = draw(inputs.examples(mixed=False))
    model = model_directory.load_masked_lm(source, dtype=dtype, logits_dtype="float32")
    forward, pipeline = bare_forward(model), _make_capture(inputs, sample, model)
    count = len(sample.serialized)

    def ours() -> float:
        return _capture_rate(sample, pipeline, inputs)

    def bare() -> float:
        return _forward_rate(forward, sample.batches, count)

    ours(), bare()
    return compare(
        ours,
        bare,
        inputs.repeats,
        name=f"capture, {dtype}",
        unit="examples/s",
        against="the bare forward pass on ready batches",
        least_ratio=0.95,
        note=_about(sample),
    )


def _against_padding(inputs: Inputs, source: ModelSource, dtype: str) -> Row:
    sample = draw(inputs.examples(mixed=True))
    model = model_directory.load_masked_lm(source, dtype=dtype, logits_dtype="float32")
    forward, pipeline = bare_forward(model), _make_capture(inputs, sample, model)
    full, count = sample.full_batches, len(sample.serialized)
    ours = functools.partial(_capture_rate, sample, pipeline, inputs)
    ours(), forward(full[0])
    return compare(
        ours,
        lambda: _forward_rate(forward, full, count),
        inputs.repeats,
        name=f"capture, mixed lengths, {dtype}",
        unit="examples/s",
        against="the bare forward pass, with all inputs padded to max_seq_length",
        least_ratio=1.5,
        note=_about(sample),
    )


def _about(sample: Sample) -> str:
    tokens = sum(int(batch[records.INPUT_MASK].sum()) for batch in sample.batches)
    return f"{len(sample.serialized)} examples of {tokens / len(sample.serialized):.0f} tokens"


def _against_pytorch(inputs: Inputs, source: ModelSource, dtype: str) -> Iterator[Row]:
    from tools.dev.benchmarks import pytorch_peer

    sample = draw(inputs.examples(mixed=False))
    batches, count = sample.batches[:4], 4 * _BATCH_SIZE
    model = model_directory.load_masked_lm(source, dtype=dtype, logits_dtype="float32")
    forward = bare_forward(model)
    peer = pytorch_peer.Teacher(inputs.teacher, dtype)
    tensors = [pytorch_peer.tensors(batch) for batch in batches]
    peer_forwards: Mapping[str, tuple[Callable, float]] = {
        "logits at all positions": (peer.all_positions, 1.5),
        "masked positions only": (peer.masked_positions, 1.0),
    }
    for name, (peer_forward, target) in peer_forwards.items():
        forward(batches[0]), peer_forward(tensors[0])
        yield compare(
            lambda: _forward_rate(forward, batches, count),
            functools.partial(_forward_rate, peer_forward, tensors, count),
            inputs.repeats,
            name=f"bare forward of the teacher, {dtype}",
            unit="examples/s",
            against=f"PyTorch transformers, {name}",
            least_ratio=target,
            note=_about(sample),
        )


def teacher_rows(inputs: Inputs, dtypes: Sequence[str]) -> Iterator[Row]:
    """Yields the rates of the teacher, in each dtype."""
    source = model_directory.find_model(inputs.teacher)
    for dtype in dtypes:
        yield _against_bare(inputs, source, dtype)
        yield _against_padding(inputs, source, dtype)
        if inputs.has("torch", "transformers"):
            yield from _against_pytorch(inputs, source, dtype)
