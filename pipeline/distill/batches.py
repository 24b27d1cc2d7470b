"""Batches for the student, decoded in TensorFlow on both backends.

Windows that are stored unmasked are masked while they are read, with new masks in each
epoch. A window's masks depend only on the run's seed, its example id and the epoch. They do
not depend on its batch, nor on where a run was interrupted.

Several processes that train together each read their own part of every group. All processes
must use the same array shapes. The weight of a microbatch in the loss depends on its rows in
all processes. So each process sends its measures of a group to all others, while the
previous group is computed.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from data_specs import records
from pipeline.base import seeding
from pipeline.base.errors import InputError
from pipeline.distill.losses.base import LOSS_SHARES
from pipeline.masking import masks, windows
from pipeline.storage import (
    arrays,
    cache_input,
    cache_tokenizer,
    length_buckets,
    reader,
    token_counts,
    vocab_subset,
)
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.length_buckets import MicrobatchPlan
from pipeline.storage.manifest import EVAL, MANIFEST_FILE, TRAIN, Manifest
from pipeline.storage.shuffling import DataStreams

Batch = tuple[dict[str, Any], dict[str, Any]]

_TARGETS = (
    records.MASKED_LM_IDS,
    records.MASKED_LM_WEIGHTS,
    records.TOPK_IDS,
    records.TOPK_LOGITS,
    records.LOG_TAIL_MASSES,
    records.HEAD_STATES,
    records.HIDDEN_STATES,
    records.EMBEDDING,
    LOSS_SHARES,
)
# Features from which the padding of a batch is known.
_SIZE_FEATURES = (records.SEGMENT_LENGTHS, records.MASKED_LM_WEIGHTS)
# Features with one value for each token, and features of a fixed size. All others have one value
# for each masked position.
_TOKEN_FEATURES = (records.INPUT_IDS, records.INPUT_MASK, records.SEGMENT_IDS)
_EXAMPLE_FEATURES = (records.SEGMENT_LENGTHS, records.EMBEDDING, LOSS_SHARES)
Arrays = dict[str, np.ndarray]
# Purposes of masks: two purposes never share random numbers.
TRAINING = "mask"
EVALUATION = "eval mask"

_STORED = tuple(feature.name for feature in records.UNMASKED_WINDOW_FEATURES)
_MASKED = (
    records.INPUT_IDS,
    records.SEGMENT_LENGTHS,
    records.MASKED_LM_POSITIONS,
    records.MASKED_LM_IDS,
    records.MASKED_LM_WEIGHTS,
)


def _manifest_number(cache: CacheInput, name: str) -> float:
    value = cache.manifest.flags.get(name)
    if not isinstance(value, int | float) or not 0.0 <= value < math.inf:
        raise InputError(cache.directory / MANIFEST_FILE, f"a number for {name}", f"{value!r}")
    return float(value)


class WindowReader:
    """Masks records of unmasked windows by the settings of their manifest.

    The masks depend on a seed and a purpose, `TRAINING` or `EVALUATION`.

    Raises:
        InputError: the directory's tokenizer, token counts or settings are invalid.
    """

    def __init__(self, cache: CacheInput, *, seed: int, purpose: str) -> None:
        manifest = cache.manifest
        tokenizer = cache_tokenizer.load_cache_tokenizer(cache)
        self._is_special = tokenizer.is_special()
        self._policy = masks.masking_policy(
            tokenizer,
            masked_lm_prob=_manifest_number(cache, "masked_lm_prob"),
            max_predictions_per_seq=manifest.max_predictions_per_seq,
        )
        smoothing = _manifest_number(cache, "mask_smoothing")
        self._token_weights = None
        if smoothing:
            counts = token_counts.load_counts(cache.directory, manifest)
            self._token_weights = masks.token_weights(counts, smoothing)
        self._seed, self._purpose = seed, purpose
        self._vocab_size = manifest.vocab.size
        positions = manifest.max_predictions_per_seq
        self._widths = (manifest.max_seq_length, 2, positions, positions, positions)

    def _mask_rows(self, epochs: np.ndarray, *features: np.ndarray) -> tuple[np.ndarray, ...]:
        """Returns the features `_MASKED` of rows.

        Args:
            epochs: int64 [B], the epoch of each row.
            *features: `_STORED` of the rows, bytes [B] each.
        """
        columns = [values.tolist() for values in features]
        batch = windows.decode_windows(columns, self._vocab_size)
        keys = seeding.key_words(columns[0])
        streams = seeding.KeyedStreams.of(self._seed, self._purpose, keys, epochs)
        masked = masks.mask_windows(
            batch, self._policy, self._is_special, streams, token_weights=self._token_weights
        )
        length, _, num_positions, *_ = self._widths
        real = np.arange(num_positions) < masked.counts[:, np.newaxis]
        return (
            windows.pad_rows(masked.input_ids, batch.lengths, length),
            batch.segment_lengths,
            windows.pad_rows(masked.positions, masked.counts, num_positions),
            windows.pad_rows(masked.labels, masked.counts, num_positions),
            real.astype(np.float32),
        )

    def parse_batch(self, serialized: tf.Tensor, epochs: tf.Tensor) -> Mapping[str, tf.Tensor]:
        """Decodes records, string [B], and masks them for their epochs, int64 [B].

        Returns:
            the features that `pipeline.storage.reader.parse_batch` returns for masked examples.
        """
        parsed = arrays.parse_tensors(tf, serialized, _STORED)
        features = [parsed[name] for name in _STORED]
        types = [tf.int32] * 4 + [tf.float32]
        values = tf.numpy_function(self._mask_rows, [epochs, *features], types, stateful=False)
        for value, width in zip(values, self._widths, strict=True):
            value.set_shape([serialized.shape[0], width])
        return dict(zip(_MASKED, values, strict=True))


def inputs_and_targets(batch: Mapping[str, tf.Tensor]) -> Batch:
    """Splits a decoded batch into the student's inputs and the targets of the losses.

    Returns:
        inputs `input_ids`, `input_mask`, `segment_ids` int32 [B, L] and
        `masked_lm_positions` int32 [B, P]; targets as `comparison.BatchComparison` takes them.
    """
    input_ids = batch[records.INPUT_IDS]
    lengths = batch[records.SEGMENT_LENGTHS]
    positions = tf.range(tf.shape(input_ids)[1])[tf.newaxis, :]
    real = positions < tf.reduce_sum(lengths, axis=1, keepdims=True)
    second = tf.logical_and(positions >= lengths[:, :1], real)
    inputs = {
        records.INPUT_IDS: input_ids,
        records.INPUT_MASK: tf.cast(real, tf.int32),
        records.SEGMENT_IDS: tf.cast(second, tf.int32),
        records.MASKED_LM_POSITIONS: batch[records.MASKED_LM_POSITIONS],
    }
    return inputs, {name: batch[name] for name in _TARGETS if name in batch}


def _smallest_from(sizes: Sequence[int], size: tf.Tensor) -> tf.Tensor:
    """Returns the first of ascending sizes that is at least a size, int32 []."""
    return tf.constant(sizes)[tf.searchsorted(sizes, size[tf.newaxis])[0]]


def _largest(microbatches: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the length of the longest input of each microbatch, and its masked positions.

    Both are int32 [C]. The second is the number of masked positions up to the last one with a
    weight.
    """
    longest = tf.reduce_max(tf.reduce_sum(microbatches[records.SEGMENT_LENGTHS], axis=2), axis=1)
    weights = microbatches[records.MASKED_LM_WEIGHTS]
    # The sum of weights is not enough: a position before the last one may have weight 0.
    numbers = tf.range(1.0, weights.shape[2] + 1.0)
    return longest, tf.cast(tf.reduce_max(weights * numbers, axis=[1, 2]), tf.int32)


def trim_batch(
    batch: Mapping[str, tf.Tensor], manifest: Manifest, count: int
) -> dict[str, tf.Tensor]:
    """Cuts off the padding that all rows of a decoded batch share.

    Inputs are cut to the next length of `length_buckets.bucket_lengths`, masked
    positions to the next number of `bucket_widths`, so that batches have at most
    4 · `count` shapes. Only padding is cut off, so that no loss changes.

    Args:
        batch: the decoded batch.
        manifest: gives the largest L and P.
        count: the number of lengths; with 1 nothing is cut off.

    Returns:
        the batch, [B, L', …] and [B, P', …] in place of [B, L, …] and [B, P, …].
    """
    if count == 1:
        return dict(batch)
    sizes = _largest({name: batch[name][tf.newaxis] for name in _SIZE_FEATURES})
    longest, most = (size[0] for size in sizes)
    lengths = length_buckets.bucket_lengths(manifest.max_seq_length, count)
    widths = length_buckets.bucket_widths(manifest.max_predictions_per_seq)
    trimmed = {}
    for name, value in batch.items():
        if name == records.INPUT_IDS:
            value = value[:, : _smallest_from(lengths, longest)]
        elif name not in _EXAMPLE_FEATURES:
            value = value[:, : _smallest_from(widths, most)]
        trimmed[name] = value
    return trimmed


def cut_group(batch: Mapping[str, tf.Tensor], count: int) -> dict[str, tf.Tensor]:
    """Cuts a group into microbatches of equally many rows, and adds their shares of the losses.

    A loss is a mean over masked positions, over tokens, over pairs of tokens of one
    input, or over examples. The share weights a microbatch's mean so that the mean over
    microbatches equals the mean over the group. It is the microbatch's count of these elements,
    divided by the mean count of the group's microbatches.

    Example: of two microbatches with 2 and 6 masked positions the shares are 0.5 and 1.5.

    Returns:
        the batch, [C, G / C, …] in place of [G, …] with C = `count`, and `LOSS_SHARES`
        float32 [C, G / C, 4], the same in all rows of a microbatch.
    """
    microbatches = _reshape_group(batch, count)
    shares = _loss_shares(_loss_counts(microbatches))
    rows = microbatches[records.SEGMENT_LENGTHS].shape[1]
    return {**microbatches, LOSS_SHARES: tf.repeat(shares[:, tf.newaxis], rows, axis=1)}


def _reshape_group(batch: Mapping[str, tf.Tensor], count: int) -> dict[str, tf.Tensor]:
    return {
        name: tf.reshape(value, [count, value.shape[0] // count, *value.shape[1:]])
        for name, value in batch.items()
    }


def _loss_counts(microbatches: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Returns the count of each of `losses.base.AVERAGES` in microbatches, float32 [C, 4]."""
    lengths = tf.cast(tf.reduce_sum(microbatches[records.SEGMENT_LENGTHS], axis=2), tf.float32)
    positions = tf.reduce_sum(microbatches[records.MASKED_LM_WEIGHTS], axis=[1, 2])
    tokens, pairs = tf.reduce_sum(lengths, axis=1), tf.reduce_sum(tf.square(lengths), axis=1)
    examples = tf.reduce_sum(tf.sign(lengths), axis=1)
    return tf.stack([positions, tokens, pairs, examples], axis=1)


def _loss_shares(counts: Any) -> tf.Tensor:
    """Returns each microbatch's share of the losses of its group; 0 where all counts are 0."""
    return tf.math.divide_no_nan(counts, tf.reduce_mean(counts, axis=0))


def _decoder(
    cache: CacheInput, *, seed: int, purpose: str
) -> Callable[[tf.Tensor, tf.Tensor], Mapping[str, tf.Tensor]]:
    """Returns a function that decodes a batch of records, string [B], and their epochs, int64 [B].

    The function masks windows that are stored unmasked.
    """
    windows = None
    if cache.manifest.kind == records.UNMASKED_WINDOWS:
        windows = WindowReader(cache, seed=seed, purpose=purpose)
    info, subset = cache.manifest.teacher_info, cache.vocab_subset
    temperatures = () if info is None else info.temperatures
    codec = None if info is None else cache_input.open_codec(cache.directory, cache.manifest)

    def decode(serialized: tf.Tensor, epochs: tf.Tensor) -> Mapping[str, tf.Tensor]:
        if windows is not None:
            batch = windows.parse_batch(serialized, epochs)
        else:
            batch = reader.parse_batch(serialized, cache.manifest, codec)
        if subset is not None:
            batch = vocab_subset.remap_batch(tf, batch, subset, temperatures)
        for value in batch.values():
            # Some codecs leave the number of rows open, but cutting a group needs it.
            value.set_shape([serialized.shape[0], *value.shape[1:]])
        return batch

    return decode


def training_batches(cache: CacheInput, plan: MicrobatchPlan, **order: Any) -> tf.data.Dataset:
    """Returns the endless dataset of training batches for a process that reads all examples.

    Groups of shuffled examples are sorted by length and cut into microbatches. The dataset
    yields the microbatches, shortest first, each padded to the next of a few lengths.
    Sorting changes neither the examples of an update nor its gradients.

    Args:
        cache: a cache or another shard directory.
        plan: the sizes of groups and microbatches.
        **order: keyword arguments of `_groups`.
    """
    dataset, count = _groups(cache, plan, **order), plan.num_microbatches
    if count > 1:
        dataset = dataset.map(lambda batch: cut_group(batch, count)).unbatch()
    return _trim_and_split(dataset, cache.manifest, plan.num_lengths).prefetch(4)


def _trim_and_split(dataset: tf.data.Dataset, manifest: Manifest, buckets: int) -> tf.data.Dataset:
    return dataset.map(lambda batch: inputs_and_targets(trim_batch(batch, manifest, buckets)))


def training_groups(cache: CacheInput, plan: MicrobatchPlan, **order: Any) -> tf.data.Dataset:
    """Returns the endless dataset of one process's part of each group, not yet trimmed.

    Args:
        cache: a cache or another shard directory.
        plan: the sizes of whole groups and microbatches.
        **order: keyword arguments of `_groups`.

    Returns:
        inputs and targets as `inputs_and_targets` returns them, with an axis of C microbatches
        before the rows; and measures of the microbatches, float32 [C, 6]: the two numbers of
        `_largest`, and the counts of masked positions, tokens, pairs of tokens and examples.
    """
    count = plan.num_microbatches

    def cut(batch: Mapping[str, tf.Tensor]) -> tuple[dict, dict, tf.Tensor]:
        inputs, targets = inputs_and_targets(batch)
        microbatches = _reshape_group({name: batch[name] for name in _SIZE_FEATURES}, count)
        sizes = tf.cast(tf.stack(_largest(microbatches), axis=1), tf.float32)
        measures = tf.concat([sizes, _loss_counts(microbatches)], axis=1)
        return _reshape_group(inputs, count), _reshape_group(targets, count), measures

    return _groups(cache, plan, **order).map(cut).prefetch(2)


def _groups(
    cache: CacheInput,
    plan: MicrobatchPlan,
    *,
    seed: int,
    start: int,
    shuffle_buffer_size: int,
    streams: DataStreams | None = None,
) -> tf.data.Dataset:
    """Returns the decoded groups of the data streams that this process reads, in order.

    Args:
        cache: a cache or another shard directory.
        plan: the sizes of groups and microbatches.
        seed: decides the order, and the masks where windows are stored unmasked.
        start: number of examples that all processes have already used, in whole groups; the
            dataset begins with the next example.
        shuffle_buffer_size: number of examples, summed over all processes.
        streams: the data streams that this process reads; None for a single stream of all
            examples. Each group and each microbatch has equally many examples of each stream.
    """
    streams = streams or DataStreams()
    stream_groups = [
        reader.training_records(
            cache,
            TRAIN,
            seed=seed,
            start=start // streams.count,
            buffer=-(-shuffle_buffer_size // streams.count),
            num_streams=streams.count,
            stream=stream,
        ).batch(plan.group_size // streams.count, drop_remainder=True)
        for stream in range(streams.first, streams.first + streams.own)
    ]
    decode = _decoder(cache, seed=seed, purpose=TRAINING)
    count, size = plan.num_microbatches, plan.group_size // streams.count * streams.own

    def interleave(values: Sequence[tf.Tensor]) -> tf.Tensor:
        rows = [tf.reshape(stream_values, [count, -1]) for stream_values in values]
        return tf.reshape(tf.concat(rows, axis=1), [size])

    def read(*groups: tuple[tf.Tensor, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        if count > 1 and plan.num_lengths > 1:
            groups = [reader.sort_by_length(*group) for group in groups]
        # Each microbatch has equally many rows of each stream. So its examples do not depend on
        # which process reads a stream.
        serialized, epochs = map(interleave, zip(*groups, strict=True))
        return decode(serialized, epochs)

    dataset = tf.data.Dataset.zip(tuple(stream_groups))
    return dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def evaluation_batches(
    cache: CacheInput,
    *,
    batch_size: int,
    max_steps: int,
    buckets: int = 1,
    process: int = 0,
    num_processes: int = 1,
) -> tf.data.Dataset:
    """Returns the eval split's batches, in stored order.

    The last batch is filled up with empty rows, so that shapes stay the same. Empty rows have
    no real masked position and weight 0 in every metric. Windows that are stored unmasked
    always get the same masks, for every seed of the run.

    Args:
        cache: a cache or another shard directory.
        batch_size: B.
        max_steps: the maximum number of batches.
        buckets: the maximum number of lengths that batches are padded to; with 1 all
            batches have `max_seq_length`.
        process: the index of this process. Each process reads all batches and computes its
            rows of each.
        num_processes: the number of processes; it divides B.
    """
    dataset = reader.evaluation_records(cache, EVAL)
    dataset = dataset.map(lambda record: (record, tf.constant(0, tf.int64)))
    dataset = dataset.batch(batch_size).take(max_steps)
    decode = _decoder(cache, seed=cache.manifest.seed, purpose=EVALUATION)

    rows = batch_size // num_processes

    def fill(value: tf.Tensor) -> tf.Tensor:
        widths = [[0, batch_size - tf.shape(value)[0]]] + [[0, 0]] * (value.shape.rank - 1)
        value = tf.ensure_shape(tf.pad(value, widths), [batch_size, *value.shape[1:]])
        return value[process * rows : (process + 1) * rows]

    dataset = dataset.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    dataset = _trim_and_split(dataset, cache.manifest, buckets)
    dataset = dataset.map(lambda *batch: tf.nest.map_structure(fill, batch))
    return dataset.prefetch(4)


def synchronized_batches(
    groups: Iterable[tuple[Arrays, Arrays, np.ndarray]],
    manifest: Manifest,
    *,
    num_lengths: int,
    gather: Callable[[np.ndarray], Any],
) -> Iterator[tuple[Arrays, Arrays]]:
    """Yields this process's rows of the microbatches that all processes compute together.

    Args:
        groups: as `training_groups` yields them.
        manifest: gives the largest L and P.
        num_lengths: the maximum number of lengths that microbatches are padded to.
        gather: starts the exchange of measures between processes, and returns the rows of all.

    Yields:
        inputs and targets, [rows, L', …] and [rows, P', …], with `LOSS_SHARES`.
    """
    lengths = (manifest.max_seq_length,)
    widths = (manifest.max_predictions_per_seq,)
    if num_lengths > 1:
        lengths = length_buckets.bucket_lengths(lengths[0], num_lengths)
        widths = length_buckets.bucket_widths(widths[0])
    pending = None
    # The exchange for the next group is queued before the current group is yielded, so it overlaps
    # with computation.
    for group in itertools.chain(groups, [None]):
        started = None if group is None else (*group[:2], gather(group[2]))
        if pending is not None:
            yield from _microbatches(*pending, lengths, widths)
        pending = started


def _microbatches(
    inputs: Arrays,
    targets: Arrays,
    gathered: Any,
    lengths: tuple[int, ...],
    widths: tuple[int, ...],
) -> Iterator[tuple[Arrays, Arrays]]:
    """Yields the microbatches of a group, trimmed to the largest sizes of all processes."""
    measures = np.asarray(gathered)
    sizes = measures[..., :2].max(axis=0)
    shares = _loss_shares(measures[..., 2:].sum(axis=0)).numpy()
    for number, (longest, most) in enumerate(sizes):
        length = lengths[np.searchsorted(lengths, longest)]
        width = widths[np.searchsorted(widths, most)]
        ends = dict.fromkeys(_TOKEN_FEATURES, length) | dict.fromkeys(_EXAMPLE_FEATURES)
        rows, row_targets = (
            {name: value[number, :, : ends.get(name, width)] for name, value in features.items()}
            for features in (inputs, targets)
        )
        row_targets[LOSS_SHARES] = np.tile(shares[number], (len(rows[records.INPUT_IDS]), 1))
        yield rows, row_targets
