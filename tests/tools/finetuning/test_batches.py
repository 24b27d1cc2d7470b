"""Training and prediction batches: one pass over the inputs in an epoch, padded to few lengths."""

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_specs.records import INPUT_IDS, INPUT_MASK, SEGMENT_IDS, TEACHER_LOGITS
from tests.tools.finetuning.conftest import make_feature
from tools.finetuning import inputs
from tools.finetuning.inputs import TARGETS, WEIGHTS, Padding, TrainingBatches, pad_logits


def _batches(lengths: list[int], *, batch_size: int = 4, seed: int = 1) -> TrainingBatches:
    features = [make_feature(length, seed=index) for index, length in enumerate(lengths)]
    targets = np.arange(len(lengths), dtype=np.int32)
    return TrainingBatches(features, targets, Padding(batch_size, 64), seed=seed)


def test_batch_is_padded_with_zeros() -> None:
    long, short = make_feature(9, seed=1), make_feature(3, seed=2)
    batch = Padding(3, 64).batch([long, short])
    # The padded length is the next multiple of 8.
    shapes = {name: value.shape for name, value in batch.items()}
    assert shapes == dict.fromkeys((INPUT_IDS, INPUT_MASK, SEGMENT_IDS), (3, 16))
    assert batch[INPUT_IDS][0].tolist() == [*long.input_ids.tolist(), *[0] * 7]
    assert batch[INPUT_IDS][1].tolist() == [*short.input_ids.tolist(), *[0] * 13]
    assert batch[INPUT_MASK].sum(axis=1).tolist() == [9, 3, 0]
    assert batch[SEGMENT_IDS][0].tolist() == [0] * 4 + [1] * 5 + [0] * 7


def test_segment_ids_are_limited_to_the_models_segments() -> None:
    for type_vocab_size in (0, 1):
        batch = Padding(1, 64, type_vocab_size).batch([make_feature(9)])
        assert not batch[SEGMENT_IDS].any()


@given(st.lists(st.integers(2, 64), min_size=1, max_size=200), st.integers(1, 9), st.integers(0, 3))
def test_epoch_contains_every_input_once(lengths: list[int], batch_size: int, epoch: int) -> None:
    batches = _batches(lengths, batch_size=batch_size)
    epoch_batches = batches.epoch(epoch)
    assert sorted(np.concatenate(epoch_batches).tolist()) == list(range(len(lengths)))
    assert len(epoch_batches) == batches.steps_per_epoch
    # At most one batch is smaller than the others.
    assert sum(len(indices) < batch_size for indices in epoch_batches) <= 1


def test_padding_rows_have_weight_zero() -> None:
    batches = _batches([5, 7, 9, 30, 31, 64])
    taken_batches = list(batches.take(4))
    assert len(taken_batches) == 4
    assert sorted(batch[WEIGHTS].sum() for batch in taken_batches) == [2, 2, 4, 4]
    for epoch in (taken_batches[:2], taken_batches[2:]):
        weighted_targets = np.concatenate([batch[TARGETS][batch[WEIGHTS] > 0] for batch in epoch])
        assert sorted(weighted_targets.tolist()) == [0, 1, 2, 3, 4, 5]
    for batch in taken_batches:
        for row in np.flatnonzero(batch[WEIGHTS]):
            length = int(batch[INPUT_MASK][row].sum())
            expected = batches.features[batch[TARGETS][row]].input_ids
            assert batch[INPUT_IDS][row, :length].tolist() == expected.tolist()


def test_seed_and_epoch_decide_the_order() -> None:
    lengths = np.random.default_rng(5).integers(2, 64, 100).tolist()
    first, again, other_seed = (_batches(lengths, seed=seed).epoch(0) for seed in (1, 1, 2))
    assert all(map(np.array_equal, first, again))
    assert not all(map(np.array_equal, first, other_seed))
    later = _batches(lengths, seed=1).epoch(1)
    assert not all(map(np.array_equal, first, later))


def test_inputs_of_similar_length_share_a_batch() -> None:
    lengths = np.random.default_rng(5).integers(2, 64, 640)
    batches = _batches(lengths.tolist(), batch_size=16)
    padded = sum(16 * batch[INPUT_IDS].shape[1] for batch in batches.take(40))
    # In random order, nearly every batch of 16 would be padded to 56 or 64.
    assert padded < 1.25 * lengths.sum()
    longest = [lengths[indices].max() for indices in batches.epoch(0)]
    assert longest != sorted(longest)


def test_teacher_logits_are_padded_with_their_inputs() -> None:
    spans = [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 2), np.float32)]
    padded = pad_logits(spans, 3, 8, token_axis=1)
    assert padded.shape == (3, 2, 8) and padded.dtype == np.float32
    assert padded[0].tolist() == [[0, 1, 2, 0, 0, 0, 0, 0], [3, 4, 5, 0, 0, 0, 0, 0]]
    assert padded[1].sum() == 4 and not padded[2].any()
    classes = pad_logits([np.array([1, 2, 3], np.float32)], 2, 8, token_axis=None)
    assert classes.tolist() == [[1, 2, 3], [0, 0, 0]]
    batches = _batches([4, 5, 6])
    logits = [np.full(2, index, np.float32) for index in range(3)]
    batch = next(dataclasses.replace(batches, teacher_logits=logits).take(1))
    rows = batch[WEIGHTS] > 0
    assert batch[TEACHER_LOGITS][rows, 0].tolist() == batch[TARGETS][rows].tolist()


@given(st.lists(st.integers(2, 64), min_size=1, max_size=60))
def test_prediction_batches_contain_every_input_once(lengths: list[int]) -> None:
    features = [make_feature(length, seed=index) for index, length in enumerate(lengths)]
    read_indices = []
    for indices, batch in inputs.prediction_batches(features, Padding(8, 64)):
        read_indices += indices.tolist()
        sums = batch[INPUT_MASK].sum(axis=1)[: len(indices)].tolist()
        assert sums == [lengths[index] for index in indices]
    assert sorted(read_indices) == list(range(len(lengths)))
