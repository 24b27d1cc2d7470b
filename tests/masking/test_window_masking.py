"""A window as an input, as a record and masked."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_specs import records
from pipeline.masking import masks, windows
from tests.masking import plain_masking

CLS, SEP = 2, 3
IS_SPECIAL = np.arange(1000) < 5
POLICY = masks.MaskingPolicy(0.15, 20, 4, np.arange(5, 1000))


@st.composite
def window_inputs(draw: st.DrawFn) -> tuple[np.ndarray, windows.WindowInput]:
    """Draws a window of one or two segments: its tokens, and it as an input."""
    count = draw(st.integers(1, 100))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    # Special tokens inside too, also [SEP] itself, as ids of unknown origin might be.
    ids = random.integers(np.where(random.random(count) < 0.1, 0, 5), 999)
    split = draw(st.none() | st.integers(1, count))
    inputs = windows.build_input(ids, split, CLS, SEP)
    return ids, windows.WindowInput(*inputs, random.random(count) < 0.6)


@given(st.lists(window_inputs(), min_size=1, max_size=3), st.integers(0, 100))
def test_the_labels_at_their_positions_give_the_windows_back(drawn, seed: int) -> None:
    rows = windows.join_windows([window for _, window in drawn])
    streams = (np.random.default_rng(seed + row) for row in range(len(drawn)))
    masked = masks.mask_windows(rows, POLICY, IS_SPECIAL, streams)
    found = masks.masked_features(rows, masked, 1000)
    for (ids, window), features in zip(drawn, found, strict=True):
        assert window.token_ids.tolist() == ids.tolist()
        values = {name: np.frombuffer(value, "<u2") for name, value in features.items()}
        inputs = values[records.INPUT_IDS].copy()
        inputs[values[records.MASKED_LM_POSITIONS]] = values[records.MASKED_LM_IDS]
        assert inputs.tolist() == window.input_ids.tolist()
        assert values[records.SEGMENT_LENGTHS].tolist() == window.segment_lengths.tolist()


def test_by_hand() -> None:
    """A window of the tokens 7, 8 | 9 whose second word spans the segments' border."""
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
    # A word so much preferred that it is always the first, and the other has no room then.
    weights = np.where(np.isin(np.arange(1000), [8, 9]), 1.0, 1e-12)
    for seed in range(5):
        random = np.random.default_rng(seed)
        masked = plain_masking.mask_window(window, words, policy, random, token_weights=weights)
        assert masked.positions.tolist() == [2, 4]
        assert masked.labels.tolist() == [8, 9]
        assert masked.input_ids[[0, 1, 3, 5]].tolist() == [CLS, 7, SEP, SEP]
