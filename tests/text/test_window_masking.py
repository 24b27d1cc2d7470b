"""A window as an input, as a record and masked."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_specs import records
from pipeline.text import masking, window_masking, windows

CLS, SEP = 2, 3
IS_SPECIAL = np.arange(1000) < 5
POLICY = masking.MaskingPolicy(0.15, 20, 4, np.arange(5, 1000))


@st.composite
def window_inputs(draw: st.DrawFn) -> tuple[np.ndarray, window_masking.WindowInput]:
    """Draws a window of one or two segments: its tokens, and it as an input."""
    count = draw(st.integers(1, 100))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    # Special tokens inside too, also [SEP] itself, as ids of unknown origin might be.
    ids = random.integers(np.where(random.random(count) < 0.1, 0, 5), 999)
    split = draw(st.none() | st.integers(1, count))
    inputs = windows.build_input(ids, split, CLS, SEP)
    return ids, window_masking.WindowInput(*inputs, random.random(count) < 0.6)


@given(window_inputs(), st.integers(0, 100))
def test_the_labels_at_their_positions_give_the_window_back(drawn, seed: int) -> None:
    ids, window = drawn
    assert window.token_ids.tolist() == ids.tolist()
    words = window_masking.maskable_words(window, POLICY, IS_SPECIAL)
    if not len(words.starts):
        return
    random = np.random.default_rng(seed)
    masked = window_masking.mask_window(window, words, POLICY, random)
    features = window_masking.masked_features(window, masked, np.dtype("<u2"))
    positions = np.frombuffer(features[records.MASKED_LM_POSITIONS], "<u2")
    ids = np.frombuffer(features[records.INPUT_IDS], "<u2").copy()
    ids[positions] = np.frombuffer(features[records.MASKED_LM_IDS], "<u2")
    assert ids.tolist() == window.input_ids.tolist()


def test_by_hand() -> None:
    """A window of the tokens 7, 8 | 9 whose second word spans the segments' border."""
    inputs = windows.build_input(np.array([7, 8, 9]), 2, CLS, SEP)
    window = window_masking.WindowInput(*inputs, np.array([True, True, False]))
    features = window_masking.window_features(window, np.dtype("<u2"))
    values = {name: np.frombuffer(value, "<u2").tolist() for name, value in features.items()}
    assert values == {
        records.INPUT_IDS: [CLS, 7, 8, SEP, 9, SEP],
        records.SEGMENT_LENGTHS: [4, 2],
        records.WORD_STARTS: [1, 2],
    }
    policy = masking.MaskingPolicy(0.3, 20, 4, np.arange(5, 1000))
    words = window_masking.maskable_words(window, policy, IS_SPECIAL)
    assert (words.starts.tolist(), words.lengths.tolist()) == ([0, 1], [1, 2])
    # A word so much preferred that it is always the first, and the other has no room then.
    weights = np.where(np.isin(np.arange(1000), [8, 9]), 1.0, 1e-12)
    for seed in range(5):
        random = np.random.default_rng(seed)
        masked = window_masking.mask_window(window, words, policy, random, token_weights=weights)
        assert masked.positions.tolist() == [2, 4]
        assert masked.labels.tolist() == [8, 9]
        assert masked.input_ids[[0, 1, 3, 5]].tolist() == [CLS, 7, SEP, SEP]
