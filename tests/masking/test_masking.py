"""Tests of windows, words and masks: properties, and values computed by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.masking import masks, windows
from pipeline.tokenizers import segmenters
from pipeline.tokenizers.tokens import Tokens
from tests.masking import plain_masking

SPECIAL_IDS = np.arange(5)
POLICY = masks.MaskingPolicy(
    masked_lm_prob=0.15,
    max_predictions_per_seq=20,
    mask_id=4,
    replacement_ids=np.arange(5, 1000),
)


@st.composite
def windows_with_words(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Draws ids, some of them special, and the tokens that begin words."""
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
    words = masks.maskable_words(starts, special, cap)
    chosen = plain_masking.choose_positions(words, cap, np.random.default_rng(seed))
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
    words = masks.maskable_words(starts, np.zeros(6, bool), 3)
    for seed in range(20):
        chosen = plain_masking.choose_positions(words, 3, np.random.default_rng(seed)).tolist()
        # Words of 3, 1 and 2 tokens: either the first, or the other two.
        assert chosen in ([0, 1, 2], [3, 4, 5])


def test_token_weights_are_powers_of_counts() -> None:
    # 1, 1, 16 ** -0.5, 100 ** -0.5: a token that does not occur counts as occurring once.
    weights = masks.token_weights(np.array([0, 1, 16, 100]), 0.5)
    np.testing.assert_allclose(weights, [1.0, 1.0, 0.25, 0.1])
    assert masks.token_weights(np.array([0, 9]), 0.0).tolist() == [1.0, 1.0]
    # The words have the tokens 0-1, 3 and 4-6. Token 2 belongs to no word.
    words = masks.Words(np.array([0, 3, 4]), np.array([2, 1, 3]))
    of_tokens = np.array([1.0, 2.0, 100.0, 7.0, 1.0, 2.0, 6.0])
    assert masks.word_weights(words, of_tokens).tolist() == [1.5, 7.0, 3.0]


def _shares(weights: list[float], num_to_predict: int, draws: int) -> np.ndarray:
    """Returns the fraction of draws in which each of several one-token words is chosen."""
    words = masks.Words(np.arange(len(weights)), np.ones(len(weights), int))
    random = np.random.default_rng(5)
    chosen = [
        plain_masking.choose_positions(words, num_to_predict, random, weights=np.array(weights))
        for _ in range(draws)
    ]
    return np.bincount(np.concatenate(chosen), minlength=len(weights)) / draws


def test_one_of_two_words_is_drawn_in_proportion() -> None:
    draws = 20_000
    for weights in ([3.0, 1.0], [1e-60, 9e-60], [0.5, 0.5]):
        expected = np.array(weights) / sum(weights)
        # Four standard deviations of a binomial share.
        tolerance = 4 * np.sqrt(expected.prod() / draws)
        np.testing.assert_allclose(_shares(weights, 1, draws), expected, atol=tolerance)


def test_rare_words_are_preferred_by_the_formula() -> None:
    """The expected values sum over all orders in which three of six words can be drawn."""
    draws = 20_000
    weights = masks.token_weights(np.array([1, 2, 5, 30, 400, 9000]), 0.7).tolist()
    expected = np.zeros(6)
    for order in itertools.permutations(range(6), 3):
        rest, probability = sum(weights), 1.0
        for word in order:
            probability *= weights[word] / rest
            rest -= weights[word]
        expected[list(order)] += probability
    assert expected.sum() == pytest.approx(3.0)
    shares = _shares(weights, 3, draws)
    tolerance = 4 * np.sqrt(expected * (1 - expected) / draws) + 1e-4
    assert (np.abs(shares - expected) < tolerance).all(), (shares, expected)
    assert (np.diff(shares) < 0).all()


@given(windows_with_words(), st.integers(1, 30), st.integers(0, 10**6))
def test_weighted_words_are_whole_and_within_the_cap(window, cap: int, seed: int) -> None:
    ids, starts = window
    words = masks.maskable_words(starts, np.isin(ids, SPECIAL_IDS), cap)
    weights = masks.word_weights(words, 1.0 / ids) if len(words.starts) else np.zeros(0)
    random = np.random.default_rng(seed)
    chosen = plain_masking.choose_positions(words, cap, random, weights=weights).tolist()
    spans = [range(begin, begin + n) for begin, n in zip(words.starts, words.lengths, strict=True)]
    whole = [span for span in spans if set(span) <= set(chosen)]
    assert sorted(itertools.chain(*whole)) == chosen
    room = cap - len(chosen)
    assert room >= 0
    assert all(len(span) > room for span in spans if span not in whole)


def test_masked_tokens_are_80_percent_mask_10_random_10_kept() -> None:
    count = 200_000
    labels = np.full(count, 777)
    masked = plain_masking.mask_tokens(labels, POLICY, np.random.default_rng(0))
    shares = [(masked == 4).mean(), (masked == 777).mean()]
    # Four standard deviations of a binomial fraction are below 0.004.
    np.testing.assert_allclose(shares, [0.8, 0.1 + 0.1 / 995], atol=0.004)
    other = masked[(masked != 4) & (masked != 777)]
    assert not np.isin(other, SPECIAL_IDS).any()
    assert len(np.unique(other)) > 900


def test_the_number_of_masked_tokens_follows_berts_rule() -> None:
    # BERT's rule: a fraction of the input's length, at least one, and at most the cap.
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


def test_inputs_have_special_tokens_around_segments() -> None:
    ids, lengths, positions = windows.build_input(np.array([7, 8, 9]), 2, 2, 3)
    assert ids.tolist() == [2, 7, 8, 3, 9, 3]
    assert lengths.tolist() == [4, 2]
    assert positions.tolist() == [1, 2, 4]
    ids, lengths, positions = windows.build_input(np.array([7, 8, 9]), None, 2, 3)
    assert ids.tolist() == [2, 7, 8, 9, 3]
    assert lengths.tolist() == [5]
    assert positions.tolist() == [1, 2, 3]


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(0, 1000))
def test_segments_begin_with_lines_or_else_with_words(starts: list[bool], seed: int) -> None:
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


def test_word_starts_of_each_segmenter() -> None:
    text = "使用BERT模型"
    tokens = _tokens([0, 1, 2, 4, 6, 7], [1, 2, 4, 6, 7, 8], [0, 1, 2, 2, 3, 4])
    segments = {
        "jieba": [True, False, True, False, True, False],
        "whitespace": [True, False, True, False, True, False],
        "none": [True, True, True, False, True, True],
    }
    for name, expected in segments.items():
        segment = segmenters.SEGMENTERS[name]
        assert segmenters.word_starts(text, tokens, segment).tolist() == expected, name


def test_words_of_segmented_text_end_at_spaces() -> None:
    text = "使用 模 型"
    tokens = _tokens([0, 1, 3, 5], [1, 2, 4, 6], [0, 1, 2, 3])
    segment = segmenters.SEGMENTERS["whitespace"]
    assert segmenters.word_starts(text, tokens, segment).tolist() == [True, False, True, True]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_jieba_cuts_any_text_inside_it(text: str) -> None:
    starts = segmenters.SEGMENTERS["jieba"](text)
    assert (np.diff(starts) > 0).all()
    assert not len(starts) or (starts[0] > 0 and starts[-1] < len(text))


def test_chinese_characters_are_those_of_bert() -> None:
    points = [0x33FF, 0x3400, 0x4DBF, 0x4DC0, 0x4E00, 0x9FFF, 0xA000, 0x20000, 0x2CEAF, 0x2FA20]
    expected = [False, True, True, False, True, True, False, True, True, False]
    assert segmenters.is_chinese(np.array(points, np.uint32)).tolist() == expected
