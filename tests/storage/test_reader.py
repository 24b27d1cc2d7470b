"""Padded batches equal the records, for both dtypes of token ids."""

import numpy as np
import pytest
import tensorflow as tf

from data_specs import records
from pipeline.storage import manifest, reader, serialization
from pipeline.storage.codecs.float16 import Float16Codec
from pipeline.tokenizers import vocabulary


@pytest.mark.parametrize("vocab_size", [100, 65_536, 65_537, 119_547])
def test_a_parsed_batch_equals_the_padded_records(vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    k, rows, serialized = 3, [], []
    for length, segments, count in ((9, [9], 2), (12, [5, 7], 4), (4, [4], 0)):
        row = {
            records.EXAMPLE_ID: rng.integers(0, 256, 16),
            records.INPUT_IDS: rng.integers(vocab_size // 2, vocab_size, length),
            records.SEGMENT_LENGTHS: np.array(segments),
            records.MASKED_LM_POSITIONS: np.arange(count) + 1,
            records.MASKED_LM_IDS: rng.integers(0, vocab_size, count),
            records.TOPK_IDS: rng.integers(0, vocab_size, (count, k)),
            records.TOPK_LOGITS: -rng.random((count, k)),
            records.LOG_TAIL_MASSES: -rng.random((count, 2)),
            records.LABEL_LOG_PROBS: -rng.random(count),
        }
        rows.append(row)
        serialized.append(
            serialization.encode_example(
                {
                    feature.name: row[feature.name]
                    .astype(feature.numpy_dtype(vocab_size))
                    .tobytes()
                    for feature in records.TEACHER_CACHE_FEATURES
                }
            )
        )
    described = manifest.Manifest(
        kind=records.TEACHER_CACHE,
        vocab=vocabulary.VocabInfo(vocab_size, "0" * 64),
        special_ids={},
        max_seq_length=12,
        max_predictions_per_seq=5,
        dupe_factor=1,
        seed=0,
        flags={},
        splits={},
        teacher_info=manifest.TeacherInfo(k, "float16", (1.0, 2.0), {}, {}),
    )
    batch = reader.parse_batch(tf.constant(serialized), described, Float16Codec(vocab_size, k))
    for index, row in enumerate(rows):
        count = len(row[records.MASKED_LM_IDS])
        assert batch[records.MASKED_LM_WEIGHTS][index].numpy().sum() == count
        for name, value in batch.items():
            if name == records.MASKED_LM_WEIGHTS:
                continue
            num_real = len(row[name])
            values = value[index].numpy()
            np.testing.assert_allclose(values[:num_real], row[name], rtol=1e-3, err_msg=name)
            padding = -np.inf if name == records.LOG_TAIL_MASSES else 0
            assert (values[num_real:] == padding).all(), name
    assert batch[records.TOPK_LOGITS].shape == (3, 5, k)
