"""Padded batches equal the records, for both widths of token ids."""

import numpy as np
import pytest
import tensorflow as tf

from data_specs import records
from pipeline.storage import manifest, reader, serialization
from pipeline.storage.codecs.float16 import Float16Codec
from pipeline.tokenizers import vocabulary


@pytest.mark.parametrize("vocab_size", [100, 65_536, 65_537, 119_547])
def test_a_batch_is_the_records_padded(vocab_size: int) -> None:
    random = np.random.default_rng(vocab_size)
    k, rows, serialized = 3, [], []
    for length, segments, count in ((9, [9], 2), (12, [5, 7], 4), (4, [4], 0)):
        row = {
            records.EXAMPLE_ID: random.integers(0, 256, 16),
            records.INPUT_IDS: random.integers(vocab_size // 2, vocab_size, length),
            records.SEGMENT_LENGTHS: np.array(segments),
            records.MASKED_LM_POSITIONS: np.arange(count) + 1,
            records.MASKED_LM_IDS: random.integers(0, vocab_size, count),
            records.TOPK_IDS: random.integers(0, vocab_size, (count, k)),
            records.TOPK_LOGITS: -random.random((count, k)),
            records.LOG_TAIL_MASSES: -random.random((count, 2)),
            records.LABEL_LOG_PROBS: -random.random(count),
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
            real = len(row[name])
            got = value[index].numpy()
            np.testing.assert_allclose(got[:real], row[name], rtol=1e-3, err_msg=name)
            padding = -np.inf if name == records.LOG_TAIL_MASSES else 0
            assert (got[real:] == padding).all(), name
    assert batch[records.TOPK_LOGITS].shape == (3, 5, k)
