"""Counts the letters of each script, for example Han or Cyrillic, by their Unicode names."""

import re
import unicodedata
from collections import Counter

OTHER = "other"
# The name of the script comes before these words, as in `LATIN SMALL LETTER A`.
_SCRIPT = re.compile(
    r"(?:(?:FULL|HALF)WIDTH )?(.+?) (?:SMALL|CAPITAL|LETTER|CHARACTER|SYLLABLE|SYLLABICS|LIGATURE|"
    r"VOWEL|CONSONANT|INDEPENDENT|MODIFIER|SUBSCRIPT|MATHEMATICAL|TATWEEL|TONE|DIGRAPH|"
    r"CHOSEONG|JUNGSEONG|JONGSEONG|IDEOGRAPH|UNIFIED|COMPATIBILITY|ITERATION|PROLONGED|"
    r"FINAL|INITIAL|VOICED|SEMI|HIEROGLYPH)"
)
# Matches that are not the name of a script: those of Han, and of signs of several scripts.
_RENAMED = {
    "CJK": "Han",
    "IDEOGRAPHIC": "Han",
    "KATAKANA-HIRAGANA": "Katakana",
    "MODIFIER": OTHER,
    "DOUBLE-STRUCK": OTHER,
    "SCRIPT": OTHER,
    "BLACK-LETTER": OTHER,
    "TURNED": OTHER,
}


def script(letter: str) -> str:
    """Returns the script of a letter, for example `script("я") == "Cyrillic"`."""
    match = _SCRIPT.match(unicodedata.name(letter, ""))
    if match is None or match[1].startswith("MATHEMATICAL"):
        return OTHER
    return _RENAMED.get(match[1], match[1].title())


def count_scripts(characters: Counter[str]) -> Counter[str]:
    """Returns the number of letters of each script.

    Args:
        characters: number of each character.
    """
    counts: Counter[str] = Counter()
    for character, count in characters.items():
        if unicodedata.category(character).startswith("L"):
            counts[script(character)] += count
    return counts
