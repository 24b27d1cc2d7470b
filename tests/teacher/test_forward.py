"""Tests of the teacher's batches: each example once, bounded shapes, zero padding."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs import records
from pipeline.storage.records import MaskedExample
from pipeline.teacher import forward


@given(st.lists(st.integers(1, 128), min_size=1, max_size=100), st.integers(1, 16))
def test_batches_hold_every_example_once(lengths: list[int], batch_size: int) -> None:
    batches = list(forward.length_batches(lengths, batch_size))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    ordered = [lengths[index] for batch in batches for index in batch]
    assert ordered == sorted(lengths)


def _example(ids: list[int], segments: list[int], positions: list[int]):
    return MaskedExample(
        example_id=bytes(16),
        input_ids=np.array(ids),
        segment_lengths=np.array(segments),
        masked_lm_positions=np.array(positions),
        masked_lm_ids=np.array([9] * len(positions)),
    )


def test_batch_is_padded_with_zeros_to_the_next_shape() -> None:
    batch = forward.build_batch(
        [_example([2, 7, 8, 3], [4], [1]), _example([2, 4, 3, 6, 3], [3, 2], [1, 3])],
        batch_size=3,
        max_seq_length=16,
        max_predictions_per_seq=8,
    )
    assert batch[records.INPUT_IDS].tolist() == [
        [2, 7, 8, 3, 0, 0, 0, 0],
        [2, 4, 3, 6, 3, 0, 0, 0],
        [0] * 8,
    ]
    assert batch[records.INPUT_MASK].sum(axis=1).tolist() == [4, 5, 0]
    assert batch[records.SEGMENT_IDS].tolist() == [[0] * 8, [0, 0, 0, 1, 1, 0, 0, 0], [0] * 8]
    assert batch[records.MASKED_LM_POSITIONS].tolist() == [[1, 0, 0, 0], [1, 3, 0, 0], [0] * 4]
    assert batch[records.MASKED_LM_IDS].tolist() == [[9, 0, 0, 0], [9, 9, 0, 0], [0] * 4]


@pytest.mark.parametrize(("device", "expected"), [("cpu:0", 24), ("tpu:0", 32)])
def test_a_tpu_gets_fewer_lengths(monkeypatch, device: str, expected: int) -> None:
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: [device])
    example = _example([5] * 20, [20], [1])
    shape = {"batch_size": 1, "max_seq_length": 64, "max_predictions_per_seq": 8}
    batch = forward.build_batch([example], **shape)
    assert batch[records.INPUT_IDS].shape == (1, expected)
