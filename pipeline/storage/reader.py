"""TensorFlow datasets of records and padded batches; the only reader that needs TensorFlow."""

import concurrent.futures
import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.base.location import hold_mirrors, prefetch_mirrors
from pipeline.storage import arrays, shuffling
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.codecs.base import TargetCodec
from pipeline.storage.manifest import Manifest
from pipeline.storage.shuffling import RecordGroup

_SEGMENTS = records.MASKED_EXAMPLE_FEATURES[2]
_TAILS = records.MASS_FEATURES[0]


@contextlib.contextmanager
def raising_copy_errors(cache: CacheInput) -> Iterator[None]:
    """Replaces TensorFlow's error by the original error of copying a shard.

    Threads of TensorFlow copy the shards, and TensorFlow keeps only the text of an error.

    Raises:
        OSError: the shard is missing, or cannot be copied completely.
        InputError: shards cannot be copied, as a package is missing.
    """
    cache.copy_errors.clear()
    try:
        yield
    except tf.errors.OpError as error:
        if not cache.copy_errors:
            raise
        raise cache.copy_errors[0] from error


@contextlib.contextmanager
def _noting_copy_errors(cache: CacheInput) -> Iterator[None]:
    try:
        yield
    except (OSError, InputError) as error:
        cache.copy_errors.append(error)
        raise


def _local_paths(cache: CacheInput, files: Iterable[str]) -> Iterator[str]:
    """Yields the local paths of shards; copies a shard from a bucket when it is requested."""
    for file in files:
        with _noting_copy_errors(cache), hold_mirrors([cache.directory / file]) as (path,):
            yield str(path)


def _local_groups(
    cache: CacheInput, groups: Iterable[RecordGroup]
) -> Iterator[tuple[RecordGroup, list[str]]]:
    """Yields shard groups with the local paths of their shards.

    The shards of a group in a bucket are copied while the previous group is read. The copies
    stay until the next group is requested.
    """
    remaining = iter(groups)

    def copy_next() -> tuple[RecordGroup, contextlib.ExitStack] | None:
        group = next(remaining, None)
        return group and (group, prefetch_mirrors([cache.directory / name for name in group.files]))

    with _noting_copy_errors(cache), concurrent.futures.ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(copy_next)
        try:
            while copied := upcoming.result():
                group, prefetched = copied
                with hold_mirrors([cache.directory / file for file in group.files]) as paths:
                    prefetched.close()
                    # Only one group is prefetched, so that later groups do not fill the disk.
                    upcoming = pool.submit(copy_next)
                    yield group, [str(path) for path in paths]
        finally:
            if not upcoming.cancel() and upcoming.exception() is None and upcoming.result():
                upcoming.result()[1].close()


def training_records(
    cache: CacheInput,
    split: str,
    *,
    seed: int,
    start: int,
    buffer: int,
    num_streams: int = 1,
    stream: int = 0,
) -> tf.data.Dataset:
    """Returns the endless shuffled stream of a split's records, each with its epoch.

    Shards in a bucket are copied to this machine, one group ahead.

    Args:
        cache: the shard directory.
        split: name of the split in the manifest.
        seed: decides the order.
        start: number of records that a resumed run has already used, over all epochs. They are
            skipped.
        buffer: number of records in the shuffle buffer.
        num_streams: number of data streams that share the shards of each epoch.
        stream: index of the stream.

    Returns:
        pairs of a serialized record, string [], and the number of its epoch, int64 [], from 0.
    """
    shards = [shard for shard in cache.manifest.splits[split] if shard.num_examples]

    def plan():
        groups = shuffling.record_groups(
            shards, seed, start=start, num_streams=num_streams, stream=stream
        )
        for group, paths in _local_groups(cache, groups):
            yield paths, group.skip, group.shuffle_seed, group.epoch

    def read_group(paths, skip, shuffle_seed, epoch):
        dataset = tf.data.Dataset.from_tensor_slices(paths).interleave(
            tf.data.TFRecordDataset, cycle_length=shuffling.GROUP_SIZE, block_length=1
        )
        dataset = dataset.shuffle(buffer, seed=shuffle_seed, reshuffle_each_iteration=False)
        return dataset.skip(skip).map(lambda record: (record, epoch))

    number = tf.TensorSpec([], tf.int64)
    signature = (tf.TensorSpec([None], tf.string), number, number, number)
    return tf.data.Dataset.from_generator(plan, output_signature=signature).flat_map(read_group)


def sort_by_length(serialized: tf.Tensor, epochs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Sorts records, string [B], with their epochs, int64 [B], by the length of their inputs.

    The sort is stable.
    """
    ranks = tf.argsort(_input_lengths(serialized), stable=True)
    return tf.gather(serialized, ranks), tf.gather(epochs, ranks)


def _input_lengths(serialized: tf.Tensor) -> tf.Tensor:
    """Returns the number of tokens of each record's input, int32 [B]."""
    parsed = arrays.parse_tensors(tf, serialized, [_SEGMENTS.name])
    lengths = arrays.padded_tensor(tf, _SEGMENTS, parsed[_SEGMENTS.name], 0, {"S": 2})
    return tf.reduce_sum(tf.cast(lengths, tf.int32), axis=1)


def sample_lengths(cache: CacheInput, split: str, *, count: int) -> np.ndarray:
    """Returns the numbers of tokens of the first `count` inputs of a split, int32 [N]."""
    dataset = evaluation_records(cache, split).take(count).batch(count)
    lengths = list(dataset.map(_input_lengths).as_numpy_iterator())
    return np.concatenate([np.zeros(0, np.int32), *lengths])


def evaluation_records(cache: CacheInput, split: str) -> tf.data.Dataset:
    """Returns a split's serialized records once, in their stored order.

    A shard in a bucket is copied to this machine when it is read.
    """
    files = [shard.file for shard in cache.manifest.splits[split]]
    if cache.directory.is_local:
        return tf.data.TFRecordDataset([str(cache.directory / file) for file in files])
    paths = tf.data.Dataset.from_generator(
        lambda: _local_paths(cache, files), output_signature=tf.TensorSpec([], tf.string)
    )
    return paths.flat_map(tf.data.TFRecordDataset)


def parse_batch(
    serialized: tf.Tensor, manifest: Manifest, codec: TargetCodec | None = None
) -> Mapping[str, Any]:
    """Decodes a batch of masked examples, or of a teacher cache, to padded tensors.

    Args:
        serialized: string [B].
        manifest: gives lengths and dtypes.
        codec: of a teacher cache, from `cache_input.open_codec`; None for masked
            examples.

    Returns:
        tensors by name:

        - `input_ids` int32 [B, L] and `segment_lengths` int32 [B, 2];
        - `masked_lm_positions` and `masked_lm_ids`, int32 [B, P];
        - `masked_lm_weights`, float32 [B, P], 1 at real positions;
        - with a top-k: `topk_ids` int32 [B, P, K], `topk_logits` float32 [B, P, K] and
          `log_tail_masses` float32 [B, P, T];
        - with head states: `head_states` float32 [B, P, E];
        - if cached: `hidden_states` float32 [B, P, G, D] and `embedding` float32 [B, D].

        Padding is 0, and −inf in the tails. A real position with fewer ids is padded with
        `NO_ID` and its logit.

    Raises:
        ValueError: the codec of a teacher cache is missing.
    """
    if manifest.teacher_info is not None and codec is None:
        raise ValueError("codec: expected that of the teacher cache, received none")
    names = {feature.name for feature in manifest.features}
    names -= {records.EXAMPLE_ID, records.LABEL_LOG_PROBS}
    parsed = arrays.parse_tensors(tf, serialized, names)
    sizes = {"L": manifest.max_seq_length, "S": 2, "P": manifest.max_predictions_per_seq}
    if manifest.teacher_info is not None:
        sizes.update(manifest.teacher_info.sizes)

    def padded(feature: records.Feature) -> tf.Tensor:
        content = parsed[feature.name]
        return arrays.padded_tensor(tf, feature, content, manifest.vocab.size, sizes)

    batch = {
        feature.name: tf.cast(padded(feature), tf.int32)
        for feature in records.MASKED_EXAMPLE_FEATURES
        if feature.name != records.EXAMPLE_ID
    }
    count = tf.strings.length(parsed[records.MASKED_LM_POSITIONS]) // 2
    batch[records.MASKED_LM_WEIGHTS] = tf.sequence_mask(count, sizes["P"], dtype=tf.float32)
    if codec is not None:
        batch.update(codec.target_tensors(tf, parsed, count, sizes["P"]))
        if manifest.teacher_info.temperatures:
            is_real = batch[records.MASKED_LM_WEIGHTS][..., tf.newaxis] > 0
            # A padding of 0 would mean a tail of all the mass, and a top-k without mass.
            batch[records.LOG_TAIL_MASSES] = tf.where(is_real, padded(_TAILS), -float("inf"))
        hidden_codec = manifest.teacher_info.hidden_codec()
        if hidden_codec is not None:
            batch[records.HIDDEN_STATES] = hidden_codec.decode_tensors(tf, parsed, sizes["P"])
        if manifest.teacher_info.embedding is not None:
            embedding = padded(records.EMBEDDING_FEATURE)
            batch[records.EMBEDDING] = tf.cast(embedding, tf.float32)
    return batch
