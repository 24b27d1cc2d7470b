"""The scripts of text, such as Han or Cyrillic, by the names of its letters in Unicode."""

import re
import unicodedata
from collections import Counter

OTHER = "other"
# `LATIN SMALL LETTER A` is of the script before these words.
_SCRIPT = re.compile(
    r"(?:(?:FULL|HALF)WIDTH )?(.+?) (?:SMALL|CAPITAL|LETTER|CHARACTER|SYLLABLE|SYLLABICS|LIGATURE|"
    r"VOWEL|CONSONANT|INDEPENDENT|MODIFIER|SUBSCRIPT|MATHEMATICAL|TATWEEL|TONE|DIGRAPH|"
    r"CHOSEONG|JUNGSEONG|JONGSEONG|IDEOGRAPH|UNIFIED|COMPATIBILITY|ITERATION|PROLONGED|"
    r"FINAL|INITIAL|VOICED|SEMI|HIEROGLYPH)"
)
# Names that are no script's: of signs of several scripts, and of Han.
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
    """Returns the script of a letter: `script("я") == "Cyrillic"`."""
    match = _SCRIPT.match(unicodedata.name(letter, ""))
    if match is None or match[1].startswith("MATHEMATICAL"):
        return OTHER
    return _RENAMED.get(match[1], match[1].title())


def count_scripts(characters: Counter[str]) -> Counter[str]:
    """Returns how many letters of each script are among counted characters."""
    counts: Counter[str] = Counter()
    for character, count in characters.items():
        if unicodedata.category(character).startswith("L"):
            counts[script(character)] += count
    return counts
