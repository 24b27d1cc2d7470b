"""Padded records of int64 and float lists, as in the Chinese RoBERTa-wwm distillation.

Benchmarks compare the sizes and the speed of this project's records with them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from data_specs import records
from pipeline.distill import batches
from pipeline.storage import cache_input, reader
from pipeline.storage.cache_input import CacheInput

_INPUTS = (records.INPUT_IDS, records.INPUT_MASK, records.SEGMENT_IDS)
_LABELS = (records.MASKED_LM_POSITIONS, records.MASKED_LM_IDS, records.MASKED_LM_WEIGHTS)
TOPK = (records.TOPK_IDS, records.TOPK_LOGITS)
_FLOATS = (records.MASKED_LM_WEIGHTS, records.TOPK_LOGITS)
_BATCH_SIZE = 32


def list_record(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns a record that is built from Python lists.

    Args:
        arrays: padded arrays of one example: `input_ids`, `input_mask`, `segment_ids` [L],
            `masked_lm_positions`, `masked_lm_ids`, `masked_lm_weights` [P], `topk_ids`
            and `topk_logits` [P, K].
    """
    features = {}
    for name in (*_INPUTS, *_LABELS, *TOPK):
        values = arrays[name].ravel().tolist()
        if name in _FLOATS:
            features[name] = tf.train.Feature(float_list=tf.train.FloatList(value=values))
        else:
            features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def list_features(length: int, positions: int, k: int) -> dict[str, tf.io.FixedLenFeature]:
    """Returns the parsing specification of records with the sizes L, P and K."""
    shapes = {name: [length] for name in _INPUTS} | {name: [positions] for name in _LABELS}
    shapes |= {name: [positions, k] for name in TOPK}
    return {
        name: tf.io.FixedLenFeature(shape, tf.float32 if name in _FLOATS else tf.int64)
        for name, shape in shapes.items()
    }


def padded_examples(cache: CacheInput, split: str, count: int) -> list[dict[str, Any]]:
    """Returns the padded arrays of a split's first examples, the input of `list_record`."""
    codec = cache_input.open_codec(cache.directory, cache.manifest)
    examples = []
    for serialized in reader.evaluation_records(cache, split).take(count).batch(_BATCH_SIZE):
        batch = reader.parse_batch(serialized, cache.manifest, codec)
        inputs, targets = batches.inputs_and_targets(batch)
        arrays = {name: value.numpy() for name, value in {**inputs, **targets}.items()}
        examples += [
            {name: value[row] for name, value in arrays.items()} for row in range(len(serialized))
        ]
    return examples
