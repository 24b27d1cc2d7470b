"""Records as the Chinese RoBERTa-wwm distillation's kind of script keeps them.

Google's BERT scripts write padded lists of int64 and float; the teacher's top-k stands
beside them as two more such lists (bert/create_pretraining_data.py, bert/run_pretraining.py
in github.com/google-research/bert). The baseline of sizes, writing and reading.
"""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from data_specs import records

_INTS = (
    records.INPUT_IDS,
    records.INPUT_MASK,
    records.SEGMENT_IDS,
    records.MASKED_LM_POSITIONS,
    records.MASKED_LM_IDS,
    records.TOPK_IDS,
)
_FLOATS = (records.MASKED_LM_WEIGHTS, records.TOPK_LOGITS)


def serialize(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns a record, written through Python lists.

    Args:
        arrays: of one example, padded: `input_ids`, `input_mask`, `segment_ids` [L],
            `masked_lm_positions`, `masked_lm_ids`, `masked_lm_weights` [P], `topk_ids`
            and `topk_logits` [P, K].
    """
    features = {}
    for name in _INTS:
        values = tf.train.Int64List(value=arrays[name].ravel().tolist())
        features[name] = tf.train.Feature(int64_list=values)
    for name in _FLOATS:
        values = tf.train.FloatList(value=arrays[name].ravel().tolist())
        features[name] = tf.train.Feature(float_list=values)
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write(path: pathlib.Path, examples: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Writes a file of records."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for arrays in examples:
            writer.write(serialize(arrays))


def batches(path: pathlib.Path, sizes: tuple[int, int, int], batch_size: int) -> tf.data.Dataset:
    """Returns the endless shuffled stream of batches, each record parsed by itself.

    Args:
        path: the file.
        sizes: L, P and K.
        batch_size: B.
    """
    length, positions, topk = sizes
    shapes = {name: [length] for name in _INTS[:3]}
    shapes |= {name: [positions] for name in (*_INTS[3:5], records.MASKED_LM_WEIGHTS)}
    shapes |= {name: [positions, topk] for name in (records.TOPK_IDS, records.TOPK_LOGITS)}
    features = {
        name: tf.io.FixedLenFeature(shape, tf.float32 if name in _FLOATS else tf.int64)
        for name, shape in shapes.items()
    }

    def parse(serialized: tf.Tensor) -> dict[str, Any]:
        parsed = tf.io.parse_single_example(serialized, features)
        return {
            name: tf.cast(value, tf.int32) if value.dtype == tf.int64 else value
            for name, value in parsed.items()
        }

    dataset = tf.data.TFRecordDataset(str(path)).repeat().shuffle(1_000, seed=0)
    dataset = dataset.map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(batch_size, drop_remainder=True).prefetch(4)
