"""Tests of windows as inputs and records, and of masking them in batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs import records
from pipeline.base import seeding
from pipeline.masking import masks, windows
from tests.masking import plain_masking

CLS, SEP = 2, 3
IS_SPECIAL = np.arange(1000) < 5
POLICY = masks.MaskingPolicy(0.15, 20, 4, np.arange(5, 1000))
WEIGHTS = masks.token_weights(np.random.default_rng(0).integers(0, 10**6, 1000), 0.7)


def _window(random: np.random.Generator) -> windows.WindowInput:
    count = int(random.integers(1, 120))
    # The text may contain special tokens, even [SEP].
    ids = random.integers(np.where(random.random(count) < 0.1, 0, 5), 999)
    split = None if random.random() < 0.3 else int(random.integers(1, count + 1))
    inputs = windows.build_input(ids, split, CLS, SEP)
    return windows.WindowInput(*inputs, random.random(count) < 0.6)


def _decoded(batch: list[windows.WindowInput], vocab_size: int = 1000) -> windows.Windows:
    rows = [windows.window_features(window, vocab_size) for window in batch]
    names = (records.INPUT_IDS, records.SEGMENT_LENGTHS, records.WORD_STARTS)
    columns = [[b""] * len(rows), *([row[name] for row in rows] for name in names)]
    return windows.decode_windows(columns, vocab_size)


@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from([1000, 100_000]))
def test_decoded_records_equal_the_windows(seed: int, size: int, vocab_size: int) -> None:
    random = np.random.default_rng(seed)
    batch = [_window(random) for _ in range(size)]
    back = _decoded(batch, vocab_size)
    inputs = np.split(back.input_ids, np.cumsum(back.lengths)[:-1])
    ends = np.cumsum(back.counts)[:-1]
    positions, starts = np.split(back.positions, ends), np.split(back.word_starts, ends)
    first = 0
    for row, window in enumerate(batch):
        assert inputs[row].tolist() == window.input_ids.tolist()
        both = back.segment_lengths[row].tolist()
        assert both == [*window.segment_lengths.tolist(), 0][:2]
        assert (positions[row] - first).tolist() == window.positions.tolist()
        # The first token of a window always begins a word, whatever is stored.
        assert starts[row].tolist() == [True, *window.word_starts[1:].tolist()]
        first += len(window.input_ids)


@pytest.mark.parametrize("token_weights", [None, WEIGHTS])
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_a_window_in_a_batch_gets_the_same_masks_as_alone(
    token_weights, seed: int, size: int
) -> None:
    random = np.random.default_rng(seed)
    batch = [_window(random) for _ in range(size)]
    keys = [(random.bytes(16), epoch) for epoch in range(size)]
    masked = masks.mask_windows(
        _decoded(batch),
        POLICY,
        IS_SPECIAL,
        seeding.keyed_rngs(seed, "mask", keys),
        token_weights=token_weights,
    )
    rows = np.cumsum([len(window.input_ids) for window in batch])[:-1]
    inputs = np.split(masked.input_ids, rows)
    ends = np.cumsum(masked.counts)[:-1]
    positions, labels = np.split(masked.positions, ends), np.split(masked.labels, ends)
    for row, (window, key) in enumerate(zip(batch, keys, strict=True)):
        words = plain_masking.window_words(window, POLICY, IS_SPECIAL)
        alone = plain_masking.mask_window(
            window,
            words,
            POLICY,
            seeding.keyed_rng(seed, "mask", *key),
            token_weights=token_weights,
        )
        assert inputs[row].tolist() == alone.input_ids.tolist()
        assert positions[row].tolist() == alone.positions.tolist()
        assert labels[row].tolist() == alone.labels.tolist()


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 3))
def test_copies_in_a_batch_equal_separate_copies(seed: int, size: int, copies: int) -> None:
    random = np.random.default_rng(seed)
    rows = windows.join_windows([_window(random) for _ in range(size)])

    def masked(numbers: range, **settings: int) -> masks.MaskedWindows:
        streams = (seeding.keyed_rng(seed, "mask", number) for number in numbers)
        return masks.mask_windows(rows, POLICY, IS_SPECIAL, streams, **settings)

    together = masked(range(copies * size), copies=copies)
    alone = [masked(range(copy * size, (copy + 1) * size)) for copy in range(copies)]
    for name in ("input_ids", "positions", "labels", "counts"):
        values = [getattr(copy, name) for copy in alone]
        assert getattr(together, name).tolist() == np.concatenate(values).tolist(), name
    features = masks.masked_features(rows, together, 1000)
    separate = (masks.masked_features(rows, copy, 1000) for copy in alone)
    assert list(features) == [row for copy in separate for row in copy]


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_joined_windows_equal_decoded_windows(seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    batch = [_window(random) for _ in range(size)]
    joined, decoded = windows.join_windows(batch), _decoded(batch)
    for name in ("input_ids", "lengths", "segment_lengths", "positions", "counts", "word_starts"):
        assert getattr(joined, name).tolist() == getattr(decoded, name).tolist(), name


def test_each_window_masks_the_word_that_has_room() -> None:
    """In each of two windows only one word can be masked, so all generators choose it."""
    pair = windows.build_input(np.array([7, 8, 9]), 2, CLS, SEP)
    single = windows.build_input(np.array([6]), None, CLS, SEP)
    batch = _decoded(
        [
            windows.WindowInput(*pair, np.array([False, True, True])),
            windows.WindowInput(*single, np.array([True])),
        ]
    )
    assert batch.input_ids.tolist() == [CLS, 7, 8, SEP, 9, SEP, CLS, 6, SEP]
    assert batch.segment_lengths.tolist() == [[4, 2], [3, 0]]
    assert batch.positions.tolist() == [1, 2, 4, 7]
    assert batch.word_starts.tolist() == [True] * 4
    policy = masks.MaskingPolicy(0.15, 20, 4, np.arange(5, 1000))
    # Tokens 7 and 8 are special in this test, so only 9 and 6 can be masked.
    special = np.isin(np.arange(1000), [7, 8])
    streams = seeding.keyed_rngs(1, "mask", [(0,), (1,)])
    masked = masks.mask_windows(batch, policy, special, streams)
    assert masked.counts.tolist() == [1, 1]
    assert masked.positions.tolist() == [4, 1]
    assert masked.labels.tolist() == [9, 6]
    unchanged = [0, 1, 2, 3, 5, 6, 8]
    assert masked.input_ids[unchanged].tolist() == batch.input_ids[unchanged].tolist()


def test_rows_are_padded_with_zeros() -> None:
    rows = windows.pad_rows(np.array([5, 3, 8]), np.array([1, 0, 2]), 3)
    assert rows.tolist() == [[5, 0, 0], [0, 0, 0], [3, 8, 0]] and rows.dtype == np.int32


@st.composite
def window_inputs(draw: st.DrawFn) -> tuple[np.ndarray, windows.WindowInput]:
    """Draws the tokens of a window with one or two segments, and the window as an input."""
    count = draw(st.integers(1, 100))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    # The text may contain special tokens, even [SEP].
    ids = random.integers(np.where(random.random(count) < 0.1, 0, 5), 999)
    split = draw(st.none() | st.integers(1, count))
    inputs = windows.build_input(ids, split, CLS, SEP)
    return ids, windows.WindowInput(*inputs, random.random(count) < 0.6)


@given(st.lists(window_inputs(), min_size=1, max_size=3), st.integers(0, 100))
def test_restoring_the_labels_gives_the_windows(drawn, seed: int) -> None:
    rows = windows.join_windows([window for _, window in drawn])
    streams = (np.random.default_rng(seed + row) for row in range(len(drawn)))
    masked = masks.mask_windows(rows, POLICY, IS_SPECIAL, streams)
    examples = masks.masked_features(rows, masked, 1000)
    for (ids, window), features in zip(drawn, examples, strict=True):
        assert window.token_ids.tolist() == ids.tolist()
        values = {name: np.frombuffer(value, "<u2") for name, value in features.items()}
        inputs = values[records.INPUT_IDS].copy()
        inputs[values[records.MASKED_LM_POSITIONS]] = values[records.MASKED_LM_IDS]
        assert inputs.tolist() == window.input_ids.tolist()
        assert values[records.SEGMENT_LENGTHS].tolist() == window.segment_lengths.tolist()


def test_a_word_across_segments_is_masked_whole() -> None:
    """The window has the tokens 7, 8 | 9, and its second word is in both segments."""
    inputs = windows.build_input(np.array([7, 8, 9]), 2, CLS, SEP)
    window = windows.WindowInput(*inputs, np.array([True, True, False]))
    features = windows.window_features(window, 1000)
    values = {name: np.frombuffer(value, "<u2").tolist() for name, value in features.items()}
    assert values == {
        records.INPUT_IDS: [CLS, 7, 8, SEP, 9, SEP],
        records.SEGMENT_LENGTHS: [4, 2],
        records.WORD_STARTS: [1, 2],
    }
    policy = masks.MaskingPolicy(0.3, 20, 4, np.arange(5, 1000))
    words = plain_masking.window_words(window, policy, IS_SPECIAL)
    assert (words.starts.tolist(), words.lengths.tolist()) == ([0, 1], [1, 2])
    # The weight of one word is so large that it is always drawn first, and no other word fits.
    weights = np.where(np.isin(np.arange(1000), [8, 9]), 1.0, 1e-12)
    for seed in range(5):
        random = np.random.default_rng(seed)
        masked = plain_masking.mask_window(window, words, policy, random, token_weights=weights)
        assert masked.positions.tolist() == [2, 4]
        assert masked.labels.tolist() == [8, 9]
        assert masked.input_ids[[0, 1, 3, 5]].tolist() == [CLS, 7, SEP, SEP]
