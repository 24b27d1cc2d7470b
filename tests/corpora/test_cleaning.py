"""Tests that cleaning steps keep ordinary text, and that every text takes linear time."""

import time

import pytest

from pipeline.corpora import cleaning

_SIZE = 300_000


@pytest.mark.parametrize(
    ("step", "text", "expected"),
    [
        ("subtitles", "- Где он?\n\n — Там.\nТут - нет.", "Где он?\nТам.\nТут - нет."),
        ("subtitles", "a\n\n\nb", "a\n\n\nb"),
        ("subtitles", "\n\n- -a\n", "-a\n"),
        ("wikitext", " = = Du Fu = = \n = x = y \n", "Du Fu\n= x = y\n"),
        ("mentions", "[id1|Имя], [club22:bp-1_2|Клуб] [id3]", "Имя, Клуб [id3]"),
        ("html", "&#65;&amp;#66;&amp;amp;", "AB&"),
        # No character has such a number, and Python cannot parse it.
        ("html", f"a&#{'9' * 5000};b&amp;#{'1' * 5000}c", "abc"),
    ],
)
def test_cleaning_step_removes_only_markup(step: str, text: str, expected: str) -> None:
    assert cleaning.clean(text, [step]) == expected


@pytest.mark.parametrize("step", cleaning.STEPS)
@pytest.mark.parametrize(
    "repeated",
    [
        *("\n", " ", "\n ", "-\n"),
        *["= ", "[id1|", "[id1:", "<a ", "<br ", "<", "&", "{a", "*** START OF"],
    ],
)
def test_every_text_is_cleaned_in_linear_time(step: str, repeated: str) -> None:
    text = repeated * (_SIZE // len(repeated)) + "x"
    start = time.process_time()
    cleaning.clean(text, [step])
    # A step that takes quadratic time would need hours.
    assert time.process_time() - start < 5.0
