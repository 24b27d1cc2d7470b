"""Batches for the student: records decoded in TensorFlow, whatever computes the step."""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from data_specs import records
from pipeline.distill.dynamic_masking import EVALUATION, TRAINING, WindowReader
from pipeline.storage import cache_codec, reader, vocab_subset
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.manifest import EVAL, TRAIN

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


def _decoder(
    cache: CacheInput, *, seed: int, purpose: str
) -> Callable[[tf.Tensor, tf.Tensor], Batch]:
    """Returns what decodes a batch of records, string [B], with their epochs, int64 [B].

    Where windows are stored unmasked, it masks them.
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
        return inputs_and_targets(batch)

    return decode


def training_batches(
    cache: CacheInput, *, batch_size: int, seed: int, start: int, shuffle_buffer_size: int
) -> tf.data.Dataset:
    """Returns the endless stream of training batches.

    Args:
        cache: a cache directory.
        batch_size: B.
        seed: decides the order, and the masks where windows are stored unmasked.
        start: examples already used; the stream begins with the next one.
        shuffle_buffer_size: examples.
    """
    dataset = reader.training_records(
        cache.directory,
        cache.manifest,
        TRAIN,
        seed=seed,
        start=start,
        buffer=shuffle_buffer_size,
    )
    dataset = dataset.batch(batch_size, drop_remainder=True)
    return _decoded(dataset, _decoder(cache, seed=seed, purpose=TRAINING))


def evaluation_batches(cache: CacheInput, *, batch_size: int, max_steps: int) -> tf.data.Dataset:
    """Returns the eval split's batches, in stored order.

    The last batch is filled up with empty rows, so that shapes stay the same;
    they have no real masked position and count for nothing. Windows that are
    stored unmasked are masked in the same way each time, whatever the run's seed.

    Args:
        cache: a cache directory.
        batch_size: B.
        max_steps: at most so many batches.
    """
    dataset = reader.evaluation_records(cache.directory, cache.manifest, EVAL)
    dataset = dataset.map(lambda record: (record, tf.constant(0, tf.int64)))
    dataset = dataset.batch(batch_size).take(max_steps)
    decode = _decoder(cache, seed=cache.manifest.seed, purpose=EVALUATION)

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
