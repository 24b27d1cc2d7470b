"""Batches for the student: records decoded in TensorFlow, whatever computes the step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from data_specs import records
from pipeline.distill.dynamic_masking import EVALUATION, TRAINING, WindowReader
from pipeline.storage import cache_codec, length_buckets, reader, vocab_subset
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.manifest import EVAL, TRAIN, Manifest

Batch = tuple[dict[str, Any], dict[str, Any]]

_TARGETS = (
    records.MASKED_LM_IDS,
    records.MASKED_LM_WEIGHTS,
    records.TOPK_IDS,
    records.TOPK_LOGITS,
    records.LOG_TAIL_MASSES,
    records.HIDDEN_STATES,
)


def inputs_and_targets(batch: Mapping[str, tf.Tensor]) -> Batch:
    """Splits a decoded batch into what the student sees and what it is compared with.

    Args:
        batch: as `pipeline.storage.reader.parse_batch` or `WindowReader.parse_batch`
            returns it.

    Returns:
        inputs `input_ids`, `input_mask`, `segment_ids` int32 [B, L] and
        `masked_lm_positions` int32 [B, P]; targets as
        `pipeline.distill.objective.Objective` takes them, with
        `masked_lm_weights` float32 [B, P].
    """
    input_ids = batch[records.INPUT_IDS]
    lengths = batch[records.SEGMENT_LENGTHS]
    places = tf.range(tf.shape(input_ids)[1])[tf.newaxis, :]
    real = places < tf.reduce_sum(lengths, axis=1, keepdims=True)
    second = tf.logical_and(places >= lengths[:, :1], real)
    inputs = {
        records.INPUT_IDS: input_ids,
        records.INPUT_MASK: tf.cast(real, tf.int32),
        records.SEGMENT_IDS: tf.cast(second, tf.int32),
        records.MASKED_LM_POSITIONS: batch[records.MASKED_LM_POSITIONS],
    }
    return inputs, {name: batch[name] for name in _TARGETS if name in batch}


def _smallest_from(sizes: Sequence[int], size: tf.Tensor) -> tf.Tensor:
    """Returns the first of ascending sizes that is no smaller than a size, int32 []."""
    return tf.constant(sizes)[tf.searchsorted(sizes, size[tf.newaxis])[0]]


def trim_batch(
    batch: Mapping[str, tf.Tensor], manifest: Manifest, count: int
) -> dict[str, tf.Tensor]:
    """Cuts off padding that all rows of a batch have.

    Inputs are cut to the next length of `length_buckets.bucket_lengths`, masked
    positions to the next number of `bucket_widths`, so that batches have at most
    4 · `count` shapes. What is real stays, and so do all losses.

    Args:
        batch: as `pipeline.storage.reader.parse_batch` returns it.
        manifest: gives the largest L and P.
        count: lengths, at most.

    Returns:
        the batch, [B, L', …] and [B, P', …] in place of [B, L, …] and [B, P, …].
    """
    longest = tf.reduce_max(tf.reduce_sum(batch[records.SEGMENT_LENGTHS], axis=1))
    lengths = length_buckets.bucket_lengths(manifest.max_seq_length, count)
    # The last that counts: one before it may have lost its weight.
    places = tf.range(1.0, manifest.max_predictions_per_seq + 1.0)
    most = tf.cast(tf.reduce_max(batch[records.MASKED_LM_WEIGHTS] * places), tf.int32)
    widths = length_buckets.bucket_widths(manifest.max_predictions_per_seq)
    trimmed = {}
    for name, value in batch.items():
        if name == records.INPUT_IDS:
            value = value[:, : _smallest_from(lengths, longest)]
        elif name != records.SEGMENT_LENGTHS:
            value = value[:, : _smallest_from(widths, most)]
        trimmed[name] = value
    return trimmed


def _decoder(
    cache: CacheInput, *, seed: int, purpose: str, buckets: int
) -> Callable[[tf.Tensor, tf.Tensor], Batch]:
    """Returns what decodes a batch of records, string [B], with their epochs, int64 [B].

    Where windows are stored unmasked, it masks them. With several buckets, it trims
    the batch.
    """
    windows = None
    if cache.manifest.kind == records.UNMASKED_WINDOWS:
        windows = WindowReader(cache, seed=seed, purpose=purpose)
    info, subset = cache.manifest.teacher_info, cache.vocab_subset
    temperatures = () if info is None else info.temperatures
    codec = None if info is None else cache_codec.open_codec(cache.directory, cache.manifest)

    def decode(serialized: tf.Tensor, epochs: tf.Tensor) -> Batch:
        if windows is not None:
            batch = windows.parse_batch(serialized, epochs)
        else:
            batch = reader.parse_batch(serialized, cache.manifest, codec)
        if subset is not None:
            batch = vocab_subset.remap_batch(tf, batch, subset, temperatures)
        if buckets > 1:
            batch = trim_batch(batch, cache.manifest, buckets)
        return inputs_and_targets(batch)

    return decode


def training_batches(
    cache: CacheInput,
    *,
    batch_size: int,
    seed: int,
    start: int,
    shuffle_buffer_size: int,
    buckets: int = 1,
) -> tf.data.Dataset:
    """Returns the endless stream of training batches.

    With several buckets, batches hold inputs of similar length and are padded to
    the next of so many lengths; see `reader.length_batches`. Its windows run over
    the endless stream of examples, and may begin in one epoch and end in the next.
    A run that resumes within a window forms it again.

    Args:
        cache: a cache directory.
        batch_size: B.
        seed: decides the order, and the masks where windows are stored unmasked.
        start: examples already used, in whole batches; the stream begins with the
            next one.
        shuffle_buffer_size: examples.
        buckets: lengths, at most; with 1 all batches have the longest, and what is
            in them is shuffled alone.
    """
    count = length_buckets.window_batches(
        cache.manifest.num_examples(TRAIN), batch_size, shuffle_buffer_size
    )
    window, used = divmod(start, count * batch_size) if buckets > 1 else (0, 0)
    dataset = reader.training_records(
        cache.directory,
        cache.manifest,
        TRAIN,
        seed=seed,
        start=start - used,
        buffer=shuffle_buffer_size,
    )
    if buckets > 1:
        dataset = reader.length_batches(
            dataset, batch_size=batch_size, num_batches=count, seed=seed, start=window
        ).skip(used // batch_size)
    else:
        dataset = dataset.batch(batch_size, drop_remainder=True)
    return _decoded(dataset, _decoder(cache, seed=seed, purpose=TRAINING, buckets=buckets))


def evaluation_batches(
    cache: CacheInput, *, batch_size: int, max_steps: int, buckets: int = 1
) -> tf.data.Dataset:
    """Returns the eval split's batches, in stored order.

    The last batch is filled up with empty rows, so that shapes stay the same;
    they have no real masked position and count for nothing. Windows that are
    stored unmasked are masked in the same way each time, whatever the run's seed.

    Args:
        cache: a cache directory.
        batch_size: B.
        max_steps: at most so many batches.
        buckets: lengths, at most, to which batches are padded; with 1 all have the
            longest.
    """
    dataset = reader.evaluation_records(cache.directory, cache.manifest, EVAL)
    dataset = dataset.map(lambda record: (record, tf.constant(0, tf.int64)))
    dataset = dataset.batch(batch_size).take(max_steps)
    decode = _decoder(cache, seed=cache.manifest.seed, purpose=EVALUATION, buckets=buckets)

    def fill(inputs: dict[str, tf.Tensor], targets: dict[str, tf.Tensor]) -> Batch:
        def pad(value: tf.Tensor) -> tf.Tensor:
            missing = batch_size - tf.shape(value)[0]
            widths = [[0, missing]] + [[0, 0]] * (value.shape.rank - 1)
            return tf.ensure_shape(tf.pad(value, widths), [batch_size, *value.shape[1:]])

        return (
            {name: pad(value) for name, value in inputs.items()},
            {name: pad(value) for name, value in targets.items()},
        )

    return _decoded(dataset, decode).map(fill).prefetch(2)


def _decoded(
    dataset: tf.data.Dataset, decode: Callable[[tf.Tensor, tf.Tensor], Batch]
) -> tf.data.Dataset:
    decoded = dataset.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return decoded.prefetch(4)
