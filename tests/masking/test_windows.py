"""Tests of windows as inputs and records, and of masking them in batches."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs import records
from pipeline.base.seeding import KeyedStreams, key_words
from pipeline.masking import masks, windows
from tests.masking import plain_masking
from tests.masking.plain_masking import Window

CLS, SEP = 2, 3
SPECIAL = {"cls": CLS, "sep": SEP}
IS_SPECIAL = np.arange(1000) < 5
POLICY = masks.MaskingPolicy(0.15, 20, 4, np.arange(5, 1000))
WEIGHTS = masks.token_weights(np.random.default_rng(0).integers(0, 10**6, 1000), 0.7)


@st.composite
def batches(draw: st.DrawFn, max_size: int = 6) -> list[Window]:
    """Draws windows; their text may contain special tokens, even [SEP]."""
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    batch = []
    for _ in range(draw(st.integers(1, max_size))):
        count = int(random.integers(1, 120))
        ids = random.integers(np.where(random.random(count) < 0.1, 0, 5), 999).tolist()
        starts = (random.random(count) < 0.6).tolist()
        split = None if random.random() < 0.3 else int(random.integers(1, count + 1))
        batch.append(plain_masking.build_window(ids, starts, split, CLS, SEP))
    return batch


def _streams(size: int, seed: int = 0) -> KeyedStreams:
    keys = [number.to_bytes(16, "little") for number in range(size)]
    return KeyedStreams.of(seed, "mask", key_words(keys))


def _row(streams: KeyedStreams, row: int) -> KeyedStreams:
    return KeyedStreams(streams.keys[row : row + 1], streams.numbers[row : row + 1])


def _as_lists(rows: windows.Windows) -> dict[str, list]:
    return {
        field.name: getattr(rows, field.name).tolist()
        for field in dataclasses.fields(windows.Windows)
    }


def _decoded(batch: windows.Windows, vocab_size: int = 1000) -> windows.Windows:
    features = windows.window_features(batch, vocab_size)
    names = (records.INPUT_IDS, records.SEGMENT_LENGTHS, records.WORD_STARTS)
    ids = [b""] * len(batch.lengths)
    return windows.decode_windows([ids, *(features[name] for name in names)], vocab_size)


@given(batches(), st.sampled_from([1000, 100_000]))
def test_decoded_records_equal_the_windows(batch, vocab_size: int) -> None:
    joined = plain_masking.join(batch)
    assert _as_lists(_decoded(joined, vocab_size)) == _as_lists(joined)


@given(batches())
def test_windows_are_built_as_one_at_a_time(batch) -> None:
    """The windows lie behind each other in one document."""
    counts = np.array([len(window.positions) for window in batch])
    ends = np.cumsum(counts)
    splits = np.array(
        [
            window.segment_lengths[0] - 2 if len(window.segment_lengths) > 1 else count
            for window, count in zip(batch, counts, strict=True)
        ]
    )
    ids = np.concatenate([window.token_ids for window in batch])
    starts = np.concatenate([window.word_starts for window in batch])
    built = windows.build_windows(ids, starts, (ends - counts, ends), splits, SPECIAL)
    assert _as_lists(built) == _as_lists(plain_masking.join(batch))


def test_windows_without_splits_have_one_segment() -> None:
    starts = np.array([False, True, True])
    spans = np.array([0, 1]), np.array([3, 2])
    built = windows.build_windows(np.array([7, 8, 9]), starts, spans, None, SPECIAL)
    assert built.input_ids.tolist() == [CLS, 7, 8, 9, SEP, CLS, 8, SEP]
    assert built.segment_lengths.tolist() == [[5, 0], [3, 0]]
    assert built.positions.tolist() == [1, 2, 3, 6]
    assert built.word_starts.tolist() == [False, True, True, True]


@pytest.mark.parametrize("token_weights", [None, WEIGHTS])
@given(batches(), st.integers(0, 10**6))
def test_windows_in_a_batch_get_the_masks_of_each_alone(token_weights, batch, seed: int) -> None:
    streams = _streams(len(batch), seed)
    masked = masks.mask_windows(
        plain_masking.join(batch), POLICY, IS_SPECIAL, streams, token_weights=token_weights
    )
    rows = np.cumsum([len(window.input_ids) for window in batch])[:-1]
    inputs = np.split(masked.input_ids, rows)
    ends = np.cumsum(masked.counts)[:-1]
    positions, labels = np.split(masked.positions, ends), np.split(masked.labels, ends)
    for row, window in enumerate(batch):
        alone = plain_masking.mask_window(
            window, POLICY, IS_SPECIAL, _row(streams, row), token_weights
        )
        assert inputs[row].tolist() == alone.input_ids
        assert positions[row].tolist() == alone.positions
        assert labels[row].tolist() == alone.labels


@given(batches(4), st.integers(0, 10**6), st.integers(1, 3))
def test_copies_in_a_batch_equal_separate_copies(batch, seed: int, copies: int) -> None:
    rows, size = plain_masking.join(batch), len(batch)
    streams = _streams(copies * size, seed)
    together = masks.mask_windows(rows, POLICY, IS_SPECIAL, streams, copies=copies)
    alone = []
    for begin in range(0, copies * size, size):
        part = slice(begin, begin + size)
        own = KeyedStreams(streams.keys[part], streams.numbers[part])
        alone.append(masks.mask_windows(rows, POLICY, IS_SPECIAL, own))
    for name in ("input_ids", "positions", "labels", "counts"):
        values = [getattr(copy, name) for copy in alone]
        assert getattr(together, name).tolist() == np.concatenate(values).tolist(), name
    features = masks.masked_features(rows, together, 1000)
    separate = [masks.masked_features(rows, copy, 1000) for copy in alone]
    for name, values in features.items():
        assert values == [value for copy in separate for value in copy[name]], name


def test_many_rows_are_ordered_as_fewer_rows(monkeypatch) -> None:
    counts = np.random.default_rng(0).integers(0, 9, 50)
    streams = _streams(50)
    expected = masks.word_order(counts, streams)
    monkeypatch.setattr(masks, "_SORTED_WORDS", 7)
    assert masks.word_order(counts, streams).tolist() == expected.tolist()
    firsts = np.repeat(np.cumsum(counts) - counts, counts)
    row = np.repeat(np.arange(50), counts)
    assert (row[expected] == row).all() and len(set(expected.tolist())) == counts.sum()
    assert (expected >= firsts).all()


def test_words_of_a_special_token_or_of_too_many_tokens_are_left_out() -> None:
    """Both windows begin inside a word; as many tokens may be masked as half of each input."""
    starts = [False, False, True, True, False, True]
    long = plain_masking.build_window([7, 8, 9, 1, 10, 11], starts, None, CLS, SEP)
    short = plain_masking.build_window([7, 8, 9], [False, False, True], None, CLS, SEP)
    policy = masks.MaskingPolicy(0.4, 20, 4, np.arange(5, 1000))
    words = masks.maskable_words(plain_masking.join([long, short]), policy, IS_SPECIAL)
    # Room for three and for two tokens. Token 1 is special.
    assert words.starts.tolist() == [0, 2, 5, 6, 8]
    assert words.lengths.tolist() == [2, 1, 1, 2, 1]
    policy = masks.MaskingPolicy(0.2, 20, 4, np.arange(5, 1000))
    words = masks.maskable_words(plain_masking.join([long, short]), policy, IS_SPECIAL)
    assert words.starts.tolist() == [0, 2, 5, 8]


def test_each_window_masks_the_word_that_has_room() -> None:
    """In each of two windows only one word can be masked, so every seed chooses it."""
    rows = plain_masking.join(
        [
            plain_masking.build_window([7, 8, 9], [True, True, True], 2, CLS, SEP),
            plain_masking.build_window([6], [True], None, CLS, SEP),
        ]
    )
    assert rows.input_ids.tolist() == [CLS, 7, 8, SEP, 9, SEP, CLS, 6, SEP]
    assert rows.positions.tolist() == [1, 2, 4, 7]
    # Tokens 7 and 8 are special in this test, so only 9 and 6 can be masked.
    special = np.isin(np.arange(1000), [7, 8])
    masked = masks.mask_windows(rows, POLICY, special, _streams(2))
    assert masked.counts.tolist() == [1, 1]
    assert masked.positions.tolist() == [4, 1]
    assert masked.labels.tolist() == [9, 6]
    unchanged = [0, 1, 2, 3, 5, 6, 8]
    assert masked.input_ids[unchanged].tolist() == rows.input_ids[unchanged].tolist()


def test_rows_are_padded_with_zeros() -> None:
    rows = windows.pad_rows(np.array([5, 3, 8]), np.array([1, 0, 2]), 3)
    assert rows.tolist() == [[5, 0, 0], [0, 0, 0], [3, 8, 0]] and rows.dtype == np.int32


@given(batches(3), st.integers(0, 100))
def test_restoring_the_labels_gives_the_windows(batch, seed: int) -> None:
    rows = plain_masking.join(batch)
    masked = masks.mask_windows(rows, POLICY, IS_SPECIAL, _streams(len(batch), seed))
    columns = masks.masked_features(rows, masked, 1000)
    for row, window in enumerate(batch):
        values = {name: np.frombuffer(column[row], "<u2") for name, column in columns.items()}
        inputs = values[records.INPUT_IDS].copy()
        inputs[values[records.MASKED_LM_POSITIONS]] = values[records.MASKED_LM_IDS]
        assert inputs.tolist() == window.input_ids
        assert values[records.SEGMENT_LENGTHS].tolist() == window.segment_lengths


def test_a_word_across_segments_is_masked_whole() -> None:
    """The window has the tokens 7, 8 | 9, and its second word is in both segments."""
    window = plain_masking.build_window([7, 8, 9], [True, True, False], 2, CLS, SEP)
    rows = plain_masking.join([window])
    features = windows.window_features(rows, 1000)
    values = {name: np.frombuffer(value, "<u2").tolist() for name, [value] in features.items()}
    assert values == {
        records.INPUT_IDS: [CLS, 7, 8, SEP, 9, SEP],
        records.SEGMENT_LENGTHS: [4, 2],
        records.WORD_STARTS: [1, 2],
    }
    policy = masks.MaskingPolicy(0.3, 20, 4, np.arange(5, 1000))
    # The weight of one word is so large that it is always drawn first, and no other word fits.
    weights = np.where(np.isin(np.arange(1000), [8, 9]), 1.0, 1e-12)
    for seed in range(5):
        masked = masks.mask_windows(
            rows, policy, IS_SPECIAL, _streams(1, seed), token_weights=weights
        )
        assert masked.positions.tolist() == [2, 4]
        assert masked.labels.tolist() == [8, 9]
        assert masked.input_ids[[0, 1, 3, 5]].tolist() == [CLS, 7, SEP, SEP]
