"""Tests of text_runs: tokens by characters and runs equal those of the whole text."""

import dataclasses
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.location import Location
from pipeline.tokenizers import text_runs
from pipeline.tokenizers.loading import load_tokenizer
from pipeline.tokenizers.settings import UnsplitToken
from pipeline.tokenizers.text_runs import TextRuns
from pipeline.tokenizers.tokens import Tokens
from pipeline.tokenizers.wordpiece import WordPieceTokenizer

SHARED = Location.parse(pathlib.Path(__file__).parents[3] / "shared" / "data")
# Letters with marks, marks alone, characters that are removed, and characters that are replaced.
UNUSUAL = "éÅİıΣς\u0301\u0300\u1100\u1161\uac00\u200b\ufeff\ufffd\xad\x00\x1c\x85\u037e\u1fef"
IDEOGRAPHS = "春天来了院子里\uf900\ufa6e\U00020000\U0002b820\U0002ebef"
SPACES_AND_MARKS = " \n\t\r\u3000\u2028，。！“”…-—[]'$€"
TEXT = st.text(
    st.one_of(
        st.sampled_from(UNUSUAL + IDEOGRAPHS + SPACES_AND_MARKS + "abetslmn019"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=40,
)


@pytest.fixture(scope="module", params=["lower", "cased", "accents"])
def tokenizer(request, vocab_file) -> WordPieceTokenizer:
    """The tests' vocabulary in several settings."""
    loaded = load_tokenizer(vocab_file, do_lower_case=request.param != "cased")
    return dataclasses.replace(loaded, strip_accents=False if request.param == "accents" else None)


def assert_equal(tokens: Tokens, expected: Tokens) -> None:
    for field in dataclasses.fields(Tokens):
        values = getattr(tokens, field.name)
        np.testing.assert_array_equal(values, getattr(expected, field.name), field.name)
        assert values.dtype == np.int32


@given(TEXT)
def test_tokens_by_runs_equal_those_of_the_whole_text(tokenizer, text: str) -> None:
    assert_equal(tokenizer.tokenize(text), tokenizer._encode(text))


@given(st.lists(TEXT, max_size=8))
def test_runs_that_are_forgotten_are_tokenized_again(tokenizer, texts: list[str]) -> None:
    limit, text_runs._MAX_RUNS = text_runs._MAX_RUNS, 3
    try:
        runs = TextRuns(tokenizer._encode)
        for text in [*texts, *texts]:
            assert_equal(runs.tokenize(text), tokenizer._encode(text))
    finally:
        text_runs._MAX_RUNS = limit


def test_runs_and_characters_are_tokenized_once(tokenizer) -> None:
    texts: list[str] = []

    def encode(text: str) -> Tokens:
        texts.append(text)
        return tokenizer._encode(text)

    runs = TextRuns(encode)
    for _ in range(2):
        runs.tokenize("我们用BERT，step by step 2024。")
    runs.tokenize("春天来了，by BERT")
    runs.tokenize("by one")
    characters = "a a。a们a我a用a，a", "a了a天a春a来a"
    assert texts == [characters[0], "BERT\nstep\nby\n2024", characters[1], "one"]


def test_tokens_of_several_words_stay_whole(vocab_file) -> None:
    loaded = load_tokenizer(vocab_file, do_lower_case=True)
    whole = dataclasses.replace(loaded, unsplit_tokens=(UnsplitToken("，"), UnsplitToken("step")))
    text = "天，来stepby"
    assert_equal(whole.tokenize(text), whole._encode(text))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("vocab", "path"),
    [
        ("bert_chinese_21128", "zh/mlm/laws.txt"),
        ("bert_chinese_21128", "zh/mlm/reviews.txt"),
        ("bert_uncased_30522", "en/mlm/classic_books.txt"),
        ("bert_multi_cased_119547", "ru/mlm/dialogues_anekdots.txt"),
    ],
)
def test_tokens_of_real_text_are_equal_in_three_languages(vocab: str, path: str) -> None:
    tokenizer = load_tokenizer(SHARED / "vocab" / f"{vocab}.txt", do_lower_case=None)
    text = (SHARED / path).read_text(encoding="utf-8")[:1_000_000]
    for begin in range(0, len(text), 2_000):
        piece = text[begin : begin + 2_000]
        assert_equal(tokenizer.tokenize(piece), tokenizer._encode(piece))
