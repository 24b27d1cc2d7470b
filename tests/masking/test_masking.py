"""Tests of windows, words and masks: properties, and values computed by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.seeding import KeyedStreams, key_words
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
def rows_of_words(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws the lengths of words, the number of words of each row, and the limit of each row."""
    rows = draw(st.lists(st.lists(st.integers(1, 6), max_size=30), min_size=1, max_size=6))
    limits = draw(st.lists(st.integers(1, 25), min_size=len(rows), max_size=len(rows)))
    lengths = np.array([*itertools.chain(*rows)], int)
    return lengths, np.array([*map(len, rows)]), np.array(limits)


def _keys(count: int) -> np.ndarray:
    return key_words([number.to_bytes(16, "little") for number in range(count)])


@given(rows_of_words())
def test_words_are_chosen_as_they_are_tried_one_after_another(drawn) -> None:
    lengths, counts, limits = drawn
    chosen = masks.choose_words(lengths, counts, limits).tolist()
    words = zip(chosen, lengths.tolist(), strict=True)
    for count, free in zip(counts.tolist(), limits.tolist(), strict=True):
        for is_chosen, length in itertools.islice(words, count):
            assert is_chosen == (length <= free)
            free -= length * is_chosen


def test_token_weights_are_powers_of_counts() -> None:
    # 1, 1, 16 ** -0.5, 100 ** -0.5: a token that does not occur counts as occurring once.
    weights = masks.token_weights(np.array([0, 1, 16, 100]), 0.5)
    np.testing.assert_allclose(weights, [1.0, 1.0, 0.25, 0.1])
    assert masks.token_weights(np.array([0, 9]), 0.0).tolist() == [1.0, 1.0]
    # The words have the tokens 0-1, 3 and 4-6. Token 2 belongs to no word.
    words = masks.Words(np.array([0, 3, 4]), np.array([2, 1, 3]))
    of_tokens = np.array([1.0, 2.0, 100.0, 7.0, 1.0, 2.0, 6.0])
    assert masks.word_weights(words, of_tokens).tolist() == [1.5, 7.0, 3.0]


def _shares(weights: list[float] | None, count: int, limit: int, draws: int) -> np.ndarray:
    """Returns the fraction of draws in which each of several one-token words is chosen."""
    streams = KeyedStreams.of(5, "mask", key_words([bytes(16)] * draws), np.arange(draws))
    counts = np.full(draws, count)
    tiled = None if weights is None else np.tile(np.array(weights), draws)
    order = masks.word_order(counts, streams, tiled)
    lengths = np.ones(len(order), int)
    chosen = order[masks.choose_words(lengths, counts, np.full(draws, limit))]
    return np.bincount(chosen % count, minlength=count) / draws


def test_all_words_are_drawn_equally_often() -> None:
    draws = 20_000
    tolerance = 4 * np.sqrt(0.3 * 0.7 / draws)
    np.testing.assert_allclose(_shares(None, 10, 3, draws), 0.3, atol=tolerance)


def test_one_of_two_words_is_drawn_in_proportion() -> None:
    draws = 20_000
    for weights in ([3.0, 1.0], [1e-60, 9e-60], [0.5, 0.5]):
        expected = np.array(weights) / sum(weights)
        # Four standard deviations of a binomial share.
        tolerance = 4 * np.sqrt(expected.prod() / draws)
        np.testing.assert_allclose(_shares(weights, 2, 1, draws), expected, atol=tolerance)


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
    shares = _shares(weights, 6, 3, draws)
    tolerance = 4 * np.sqrt(expected * (1 - expected) / draws) + 1e-4
    assert (np.abs(shares - expected) < tolerance).all(), (shares, expected)
    assert (np.diff(shares) < 0).all()


def test_masked_tokens_are_80_percent_mask_10_random_10_kept() -> None:
    count = 200_000
    labels = np.full(count, 777)
    streams = KeyedStreams.of(0, "mask", _keys(count // 20))
    masked = masks.masked_tokens(labels, np.full(count // 20, 20), POLICY, streams)
    shares = [(masked == 4).mean(), (masked == 777).mean()]
    # Four standard deviations of a binomial fraction are below 0.004.
    np.testing.assert_allclose(shares, [0.8, 0.1 + 0.1 / 995], atol=0.004)
    other = masked[(masked != 4) & (masked != 777)]
    assert not np.isin(other, SPECIAL_IDS).any()
    assert len(np.unique(other)) > 900


def test_the_number_of_masked_tokens_follows_berts_rule() -> None:
    # BERT's rule: a fraction of the input's length, at least one, and at most the cap.
    lengths = np.array([3, 10, 100, 512])
    assert POLICY.num_to_predict(lengths).tolist() == [1, 2, 15, 20]


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 60)), min_size=1, max_size=5),
    st.integers(1, 80),
)
def test_windows_cover_each_document(documents, stride: int) -> None:
    num_tokens, lengths = np.array(documents).T
    spans = windows.window_spans(num_tokens, lengths, stride)
    columns = (spans.documents, spans.numbers, spans.begins, spans.ends)
    assert list(zip(*(values.tolist() for values in columns), strict=True)) == [
        (document, number, *span)
        for document, (count, length) in enumerate(documents)
        for number, span in enumerate(plain_masking.window_spans(count, length, stride))
    ]


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.data())
def test_segments_begin_with_lines_or_else_with_words(starts: list[bool], data) -> None:
    word_starts = np.array(starts)
    line_starts = word_starts & (np.arange(len(starts)) % 3 == 0)
    begins = np.array(data.draw(st.lists(st.integers(0, len(starts) - 1), min_size=1, max_size=5)))
    ends = np.array([data.draw(st.integers(begin + 1, len(starts))) for begin in begins.tolist()])
    bits = KeyedStreams.of(1, "segments", _keys(len(begins))).bits(1)
    splits = windows.split_points(begins, ends, (line_starts, word_starts), bits)
    for begin, end, split in zip(begins.tolist(), ends.tolist(), splits.tolist(), strict=True):
        lines, words = (
            set(np.flatnonzero(s[begin + 1 : end]) + 1) for s in (line_starts, word_starts)
        )
        assert split in (lines or words or {end - begin})


def test_every_possible_split_is_chosen_equally_often() -> None:
    count = 20_000
    bits = KeyedStreams.of(1, "segments", _keys(count)).bits(1)
    word_starts = np.array([True, True, False, True, True])
    boundaries = (np.zeros(5, bool), word_starts)
    splits = windows.split_points(np.zeros(count, int), np.full(count, 5), boundaries, bits)
    shares = np.bincount(splits, minlength=6) / count
    tolerance = 4 * np.sqrt(2 / 9 / count)
    np.testing.assert_allclose(shares, [0, 1 / 3, 0, 1 / 3, 1 / 3, 0], atol=tolerance)


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
