"""Windows, words and masks: properties and values worked out by hand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text import masking, segmenters, windows
from pipeline.text.tokens import Tokens

SPECIAL_IDS = np.arange(5)
POLICY = masking.MaskingPolicy(
    masked_lm_prob=0.15,
    max_predictions_per_seq=20,
    mask_id=4,
    replacement_ids=np.arange(5, 1000),
)


@st.composite
def windows_with_words(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Draws ids, some of them special, and where words begin."""
    count = draw(st.integers(1, 120))
    seed = draw(st.integers(0, 10**6))
    random = np.random.default_rng(seed)
    ids = np.where(random.random(count) < 0.05, 1, random.integers(5, 1000, count))
    starts = random.random(count) < 0.6
    starts[0] = True
    return ids, starts


@given(windows_with_words(), st.integers(1, 30), st.integers(0, 10**6))
def test_chosen_words_are_whole_ordinary_and_within_the_cap(window, cap: int, seed: int) -> None:
    ids, starts = window
    special = np.isin(ids, SPECIAL_IDS)
    words = masking.maskable_words(starts, special, cap)
    chosen = masking.choose_positions(words, cap, np.random.default_rng(seed))
    assert len(chosen) <= cap
    assert len(set(chosen.tolist())) == len(chosen)
    assert (np.diff(chosen) > 0).all()
    assert not special[chosen].any()
    word_of = np.cumsum(starts)
    for word in set(word_of[chosen]):
        assert set(np.flatnonzero(word_of == word)) <= set(chosen)
    assert (len(chosen) > 0) == (len(words.starts) > 0)


def test_no_word_is_left_that_would_fit() -> None:
    starts = np.array([True, False, False, True, True, False])
    words = masking.maskable_words(starts, np.zeros(6, bool), 3)
    for seed in range(20):
        chosen = masking.choose_positions(words, 3, np.random.default_rng(seed)).tolist()
        # Words of 3, 1 and 2 tokens: either the first, or the other two.
        assert chosen in ([0, 1, 2], [3, 4, 5])


def test_eighty_ten_ten() -> None:
    count = 200_000
    labels = np.full(count, 777)
    masked = masking.mask_tokens(labels, POLICY, np.random.default_rng(0))
    shares = [(masked == 4).mean(), (masked == 777).mean()]
    # Four standard deviations of a binomial share are below 0.004 here.
    np.testing.assert_allclose(shares, [0.8, 0.1 + 0.1 / 995], atol=0.004)
    other = masked[(masked != 4) & (masked != 777)]
    assert not np.isin(other, SPECIAL_IDS).any()
    assert len(np.unique(other)) > 900


def test_how_many_are_masked() -> None:
    # BERT's rule: at least one, a share of the input's length, at most the cap.
    assert [POLICY.num_to_predict(length) for length in (3, 10, 100, 512)] == [1, 2, 15, 20]


@given(st.integers(1, 400), st.integers(1, 60), st.integers(1, 80))
def test_windows_cover_the_document(num_tokens: int, length: int, stride: int) -> None:
    spans = list(windows.window_spans(num_tokens, length, stride))
    assert spans[0][0] == 0 and spans[-1][1] == num_tokens
    assert all(0 < end - begin <= length for begin, end in spans)
    step = min(stride, length)
    assert [begin for begin, _ in spans] == [step * number for number in range(len(spans))]
    # No window but the last reaches the end.
    assert all(end < num_tokens for _, end in spans[:-1])


def test_build_input_by_hand() -> None:
    ids, lengths, positions = windows.build_input(np.array([7, 8, 9]), 2, 2, 3)
    assert ids.tolist() == [2, 7, 8, 3, 9, 3]
    assert lengths.tolist() == [4, 2]
    assert positions.tolist() == [1, 2, 4]
    ids, lengths, positions = windows.build_input(np.array([7, 8, 9]), None, 2, 3)
    assert ids.tolist() == [2, 7, 8, 9, 3]
    assert lengths.tolist() == [5]
    assert positions.tolist() == [1, 2, 3]


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(0, 1000))
def test_segments_begin_at_lines_else_at_words(starts: list[bool], seed: int) -> None:
    word_starts = np.array(starts)
    word_starts[0] = True
    line_starts = word_starts & (np.arange(len(starts)) % 3 == 0)
    split = windows.split_point(word_starts, line_starts, np.random.default_rng(seed))
    if line_starts[1:].any():
        assert 0 < split < len(starts) and line_starts[split]
    elif word_starts[1:].any():
        assert 0 < split < len(starts) and word_starts[split]
    else:
        assert split == len(starts)


def _tokens(starts: list[int], ends: list[int], word_ids: list[int]) -> Tokens:
    ids = np.arange(len(starts))
    return Tokens(ids, np.array(starts), np.array(ends), np.array(word_ids))


def test_word_starts_by_hand() -> None:
    text = "使用BERT模型"
    tokens = _tokens([0, 1, 2, 4, 6, 7], [1, 2, 4, 6, 7, 8], [0, 1, 2, 2, 3, 4])
    segments = {
        "jieba": [True, False, True, False, True, False],
        "whitespace": [True, False, True, False, True, False],
        "none": [True, True, True, False, True, True],
    }
    for name, expected in segments.items():
        segment = segmenters.SEGMENTERS[name]()
        assert segmenters.word_starts(text, tokens, segment).tolist() == expected, name


def test_words_of_segmented_text_end_at_spaces() -> None:
    text = "使用 模 型"
    tokens = _tokens([0, 1, 3, 5], [1, 2, 4, 6], [0, 1, 2, 3])
    segment = segmenters.SEGMENTERS["whitespace"]()
    assert segmenters.word_starts(text, tokens, segment).tolist() == [True, False, True, True]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_jieba_cuts_any_text_inside_it(text: str) -> None:
    starts = segmenters.SEGMENTERS["jieba"]()(text)
    assert (np.diff(starts) > 0).all()
    assert not len(starts) or (starts[0] > 0 and starts[-1] < len(text))


def test_chinese_characters_are_berts() -> None:
    points = [0x33FF, 0x3400, 0x4DBF, 0x4DC0, 0x4E00, 0x9FFF, 0xA000, 0x20000, 0x2CEAF, 0x2FA20]
    expected = [False, True, True, False, True, True, False, True, True, False]
    assert segmenters.is_chinese(np.array(points, np.uint32)).tolist() == expected
