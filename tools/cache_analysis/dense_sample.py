"""A sample of a directory's records, with the teacher's whole distribution at their positions."""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from data_specs import records
from pipeline.base import seeding
from pipeline.base.errors import InputError
from pipeline.models.masked_lm import LOGITS, MaskedLM
from pipeline.storage import arrays, length_buckets, serialization
from pipeline.storage import manifest as manifests
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.codecs.base import TargetCodec
from pipeline.storage.codecs.states import StatesCodec
from pipeline.storage.manifest import Manifest
from pipeline.storage.records import MaskedExample, TeacherTargets
from pipeline.teacher import forward

_PURPOSE = "dense sample"
# Maximum number of elements in a block. Batches are measured block by block to save memory.
_BLOCK_NUMBERS = 2**21


@dataclasses.dataclass(frozen=True)
class DenseBatch:
    """The teacher's output for some examples.

    Attributes:
        examples: B examples.
        row_splits: int [examples + 1], the boundaries of the examples' positions.
        logits: float32 [positions, V].
        outputs: other outputs, [positions, …] each.
        seconds: time of an example of this length in a full batch.
    """

    examples: Sequence[MaskedExample]
    row_splits: np.ndarray
    logits: np.ndarray
    outputs: Mapping[str, np.ndarray]
    seconds: float

    @property
    def labels(self) -> np.ndarray:
        """The true tokens, int64 [positions]."""
        labels = [example.masked_lm_ids for example in self.examples]
        return np.concatenate(labels).astype(np.int64)

    def blocks(self) -> Iterator[slice]:
        """Yields slices of positions, the blocks in which a batch is measured."""
        step = max(1, _BLOCK_NUMBERS // self.logits.shape[-1])
        for begin in range(0, len(self.logits), step):
            yield slice(begin, min(begin + step, len(self.logits)))


def draw(cache: CacheInput, size: int) -> list[MaskedExample]:
    """Draws records uniformly without replacement.

    The draw depends only on the number of records, the size and the seed of the directory.

    Args:
        cache: masked examples, or a teacher cache.
        size: number of records; all if there are fewer.

    Returns:
        the records, in their stored order.

    Raises:
        InputError: the directory is empty, a shard is damaged, or no position is masked.
    """
    manifest = cache.manifest
    shards = [shard for split in manifests.SPLITS for shard in manifest.splits.get(split, ())]
    total = sum(shard.num_examples for shard in shards)
    rng = seeding.keyed_rng(manifest.seed, _PURPOSE, total)
    indices = np.sort(rng.choice(total, min(size, total), replace=False)) if total else []
    drawn: list[MaskedExample] = []
    first = 0
    for shard in shards:
        end = first + shard.num_examples
        in_shard = [int(index) - first for index in indices if first <= index < end]
        drawn += _read(cache, shard.file, in_shard)
        first = end
    if not any(len(example.masked_lm_ids) for example in drawn):
        raise InputError(
            cache.directory, "examples with masked positions", f"none of {total} examples"
        )
    return drawn


def _read(cache: CacheInput, file: str, indices: Sequence[int]) -> list[MaskedExample]:
    """Reads the records of a shard at ascending indices."""
    if not indices:
        return []
    hint = "run offline_distill verify_cache"
    path, examples, count = cache.directory / file, [], 0
    for count, record in enumerate(serialization.read_records(path), 1):
        if count - 1 == indices[len(examples)]:
            try:
                examples.append(MaskedExample.from_record(record, cache.manifest))
            except (KeyError, ValueError) as error:
                received = f"broken record: {error}"
                raise InputError(path, received=received, hint=hint) from error
        if len(examples) == len(indices):
            return examples
    raise InputError(path, f"at least {indices[-1] + 1} records", count, hint)


@dataclasses.dataclass(frozen=True)
class StateTargets:
    """The cached targets of several examples of a cache of head states.

    Indexing computes the distributions over all tokens at some of the positions.

    Attributes:
        codec: of the cache.
        states: rotated, float32 [positions, E].
        label_log_probs: float32 [positions].
        hidden_states: see `TeacherTargets`.
    """

    codec: StatesCodec
    states: np.ndarray
    label_log_probs: np.ndarray
    hidden_states: np.ndarray | None

    def __getitem__(self, positions: slice) -> TeacherTargets:
        """Returns the targets at some of the positions."""
        hidden, states = self.hidden_states, self.states[positions]
        return TeacherTargets(
            *self.codec.rank(states),
            log_tail_masses=np.zeros((len(states), 0), np.float32),
            label_log_probs=self.label_log_probs[positions],
            temperatures=(),
            hidden_states=None if hidden is None else hidden[positions],
        )


def decode_states(
    cache: CacheInput, codec: StatesCodec, examples: Sequence[MaskedExample]
) -> StateTargets:
    """Decodes and concatenates the targets of several examples of a cache of head states."""
    hidden_codec, label = cache.manifest.teacher_info.hidden_codec(), records.LABEL_FEATURE
    states, labels, hidden = [], [], []
    for example in examples:
        features, count = example.features, len(example.masked_lm_ids)
        with _naming_record(cache, example):
            states.append(codec.packing.decode(features, count))
            labels.append(arrays.decode(label, features[label.name], codec.vocab_size))
            if hidden_codec is not None:
                hidden.append(hidden_codec.decode(features, count))
    return StateTargets(
        codec,
        np.concatenate(states),
        np.concatenate(labels).astype(np.float32),
        np.concatenate(hidden) if hidden else None,
    )


def decode_targets(
    cache: CacheInput, codec: TargetCodec, examples: Sequence[MaskedExample]
) -> TeacherTargets | StateTargets:
    """Decodes and concatenates the targets of several examples of a teacher cache."""
    if isinstance(codec, StatesCodec):
        return decode_states(cache, codec, examples)
    targets = []
    for example in examples:
        with _naming_record(cache, example):
            targets.append(
                TeacherTargets.from_features(example.features, codec, cache.manifest.teacher_info)
            )
    return TeacherTargets.join(targets)


@contextlib.contextmanager
def _naming_record(cache: CacheInput, example: MaskedExample) -> Iterator[None]:
    """Replaces an error of decoding by an `InputError` that names the record."""
    try:
        yield
    except (KeyError, ValueError) as error:
        name = example.example_id[:16].hex()
        received, hint = f"broken record {name}: {error}", "run offline_distill verify_cache"
        raise InputError(cache.directory, received=received, hint=hint) from error


def run_teacher(
    model: MaskedLM,
    examples: Sequence[MaskedExample],
    manifest: Manifest,
    *,
    batch_size: int,
    select: forward.Selector = lambda outputs, batch: {},
) -> Iterator[DenseBatch]:
    """Runs the teacher over examples, each padded to the length that capture would use.

    Capture sorts thousands of examples by length, so nearly all batches hold examples of the same
    padded length. A sample has few examples. Therefore the examples of each padded length
    form their own batches, which may not be full. The time of an example is the time of a full
    batch divided by the batch size.

    Args:
        model: the teacher.
        examples: as `draw` returns them.
        manifest: of their directory.
        batch_size: B.
        select: selects outputs besides the logits; see `forward.compile_forward`.

    Yields:
        batches of examples with masked positions, the shortest first.
    """
    run = forward.compile_forward(
        model, lambda outputs, batch: {LOGITS: outputs[LOGITS], **select(outputs, batch)}
    )
    by_length: dict[int, list[MaskedExample]] = collections.defaultdict(list)
    for example in examples:
        if len(example.masked_lm_ids):
            length = length_buckets.padded_length(len(example.input_ids), manifest.max_seq_length)
            by_length[length].append(example)
    compiled: set[Any] = set()
    for _, group in sorted(by_length.items()):
        for begin in range(0, len(group), batch_size):
            batch = group[begin : begin + batch_size]
            yield _run_batch(run, batch, manifest, batch_size, compiled)


def _run_batch(
    run: Callable[[forward.Arrays], forward.Arrays],
    examples: Sequence[MaskedExample],
    manifest: Manifest,
    batch_size: int,
    compiled: set[Any],
) -> DenseBatch:
    batch = forward.build_batch(
        examples,
        batch_size=batch_size,
        max_seq_length=manifest.max_seq_length,
        max_predictions_per_seq=manifest.max_predictions_per_seq,
    )
    # JAX compiles a program for each shape, TensorFlow one graph for all. The time of compiling
    # is not measured.
    shapes = tuple(value.shape for value in batch.values())
    program = shapes if keras.config.backend() == "jax" else None
    if program not in compiled:
        compiled.add(program)
        run(batch)
    begun = time.perf_counter()
    output = run(batch)
    seconds = (time.perf_counter() - begun) / batch_size
    outputs, row_splits = forward.real_positions(output, examples)
    logits = outputs.pop(LOGITS)
    forward.expect_finite(logits)
    return DenseBatch(examples, row_splits, logits, outputs, seconds)
