"""Terminal columns of texts, and line breaking."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.report import text_width

LETTERS = st.text(st.sampled_from("ab c春天，é\u0301"), max_size=12)


@pytest.mark.parametrize(
    ("text", "columns"),
    [("", 0), ("abc", 3), ("春天", 4), ("a，b", 4), ("e\u0301", 1), ("…", 1), ("ｱ", 1), ("Ａ", 2)],
)
def test_wide_characters_take_two_columns(text: str, columns: int) -> None:
    assert text_width.display_width(text) == columns


def test_clipped_text_fits_its_columns() -> None:
    assert text_width.clip("a春天", 4) == "a春"
    assert text_width.clip("ab", 9) == "ab"


def test_padding_counts_columns_instead_of_characters() -> None:
    assert text_width.pad("春", 4) == "春  "
    assert text_width.pad("春", 4, right=True) == "  春"
    assert text_width.pad("春天", 3) == "春天"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("春 a", "春 a"),
        ("a\nb\t", "a\\x0ab\\x09"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\u202eabc", "\\u202eabc"),
        ("\ud800", "\\ud800"),
        ("\U000e0001", "\\U000e0001"),
        ("a\u00a0b", "a\u00a0b"),
    ],
)
def test_unprintable_characters_are_escaped(text: str, escaped: str) -> None:
    assert text_width.escape_unprintable(text) == escaped


def test_lines_break_between_pieces() -> None:
    assert text_width.wrap(["春天", "来了", " now"], 8) == ["春天来了", "now"]
    assert text_width.wrap(["abcdef", "g"], 4) == ["abcd", "efg"]
    assert text_width.wrap([], 4) == []


@given(st.lists(LETTERS), st.integers(2, 20))
def test_lines_fit_and_lose_nothing(pieces: list[str], width: int) -> None:
    lines = text_width.wrap(pieces, width)
    assert all(text_width.display_width(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == "".join(pieces).replace(" ", "")
