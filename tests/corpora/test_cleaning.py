"""Cleaning: what it leaves of ordinary text, and that no text takes for ever."""

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
        # No letter has such a number, nor does Python read it.
        ("html", f"a&#{'9' * 5000};b&amp;#{'1' * 5000}c", "abc"),
    ],
)
def test_steps(step: str, text: str, expected: str) -> None:
    assert cleaning.clean(text, [step]) == expected


@pytest.mark.parametrize("step", cleaning.STEPS)
@pytest.mark.parametrize(
    "piece",
    [
        *("\n", " ", "\n ", "-\n"),
        *["= ", "[id1|", "[id1:", "<a ", "<br ", "<", "&", "{a", "*** START OF"],
    ],
)
def test_every_text_is_cleaned_in_linear_time(step: str, piece: str) -> None:
    text = piece * (_SIZE // len(piece)) + "x"
    begun = time.process_time()
    cleaning.clean(text, [step])
    # Where a piece is read anew from each of its letters, this takes hours.
    assert time.process_time() - begun < 5.0
