"""How much of a right answer an answer has, as the benchmarks' own scripts count it."""

import collections
import difflib
import re
import string
import sys
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache

# The punctuation that CMRC 2018's script drops. Its list also holds "……", which, as it
# compares one character after another, never occurs.
_CMRC_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
# What both Chinese scripts take for a word of its own.
_CHINESE = re.compile("([\u4e00-\u9fa5])")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)

# The Penn Treebank's way to separate words, as far as CMRC's script can meet it: lower
# case, without its punctuation. It calls NLTK's word_tokenize, whose versions differ in
# details; these are the rules of 3.4 to 3.8, with a plain rule for the ends of sentences
# in place of NLTK's trained one. Each line: what is separated, and by what replaced.
_PUNCTUATION_RULES = (
    # Quotation marks: an opening one becomes ``, a closing one ''.
    (r"([«‘„])", r" \1 "),
    (r'^"', "`` "),
    (r"([ (\[{<])(\"|'')", r"\1 `` "),
    (r"'(?!re|ve|ll|[mtsdn])(?=\w\b)", "' "),
    # A full stop at the end, or after a word of two letters or more; commas but in numbers.
    (r"([^.])(\.)([\])}>\"'»”’ ]*)\s*$", r"\1 \2 \3 "),
    (r"(?<=[^\s.][^\W\d_])\.(?=\s)", " . "),
    (r",([^\d])", r" , \1"),
    (r",$", " , "),
    (r"(\.{2,}|[;@#$%&])", r" \1 "),
    (r"([?!])", r" \1 "),
    (r"([^'])' ", r"\1 ' "),
    (r"([\[\](){}<>])", r" \1 "),
)
# These take the text between two spaces.
_WORD_RULES = (
    (r"([»])", r" \1 "),
    (r"(''|\")", " '' "),
    (r"([^' ])('[smd]|') ", r"\1 \2 "),
    (r"([^' ])('ll|'re|'ve|n't) ", r"\1 \2 "),
    (r"\b(can(?=not)|gim(?=me)|gon(?=na)|got(?=ta)|lem(?=me))(not|me|na|ta)\b", r" \1 \2 "),
    (r"\b(d)('ye)\b", r" \1 \2 "),
    (r"\b(more)('n)\b", r" \1 \2 "),
    (r"\b(wan)(na)(?=\s)", r" \1 \2 "),
    (r" ('t)(is|was)\b", r" \1 \2 "),
)
_PUNCTUATION, _WORDS = (
    tuple((re.compile(pattern), replacement) for pattern, replacement in rules)
    for rules in (_PUNCTUATION_RULES, _WORD_RULES)
)


def squad_words(text: str) -> list[str]:
    """Returns the words that SQuAD's script compares.

    Lower case, without ASCII punctuation and English articles (Rajpurkar et al.
    2016, evaluate-v1.1.py).

    Example: `"The U.S., a state"` has the words `us`, `state`.
    """
    return _ARTICLES.sub(" ", text.lower().translate(_ASCII_PUNCTUATION)).split()


@cache
def _unicode_punctuation() -> dict[int, None]:
    marks = [
        code for code in range(sys.maxunicode) if unicodedata.category(chr(code)).startswith("P")
    ]
    return dict.fromkeys([*marks, *map(ord, string.punctuation)])


def mlqa_chinese_words(text: str) -> list[str]:
    """Returns the words that MLQA's script compares in Chinese.

    Lower case, without punctuation, each Chinese character a word (Lewis et al.
    2020, mlqa_evaluation_v1.py with the language zh).

    Example: `"第 10 章。"` has the words `第`, `10`, `章`.
    """
    return _CHINESE.sub(r" \1 ", text.lower().translate(_unicode_punctuation())).split()


def cmrc_text(text: str) -> str:
    """Returns what CMRC 2018's script compares for an exact match."""
    return "".join(char for char in text.lower().strip() if char not in _CMRC_PUNCTUATION)


def cmrc_words(text: str) -> list[str]:
    """Returns the words that CMRC 2018's script compares.

    Each Chinese character is one; what stands between them is separated as in the
    Penn Treebank (Cui et al. 2019, cmrc2018_evaluate.py, `mixed_segmentation`).

    Example: `"《BERT》有12层"` has the words `bert`, `有`, `12`, `层`.
    """
    parts = _CHINESE.split(cmrc_text(text))
    return [word for part in parts for word in _treebank_words(part)]


def _treebank_words(text: str) -> list[str]:
    for pattern, replacement in _PUNCTUATION:
        text = pattern.sub(replacement, text)
    text = f" {text} "
    for pattern, replacement in _WORDS:
        text = pattern.sub(replacement, text)
    return text.split()


def bag_overlap(answer: Sequence[str], right: Sequence[str]) -> int:
    """Returns how many words two answers share, in whatever order."""
    return (collections.Counter(answer) & collections.Counter(right)).total()


def run_overlap(answer: Sequence[str], right: Sequence[str]) -> int:
    """Returns the words of the longest run that two answers share.

    CMRC 2018's `find_lcs` looks for words in a row, not for a subsequence.
    """
    matcher = difflib.SequenceMatcher(None, answer, right, autojunk=False)
    return matcher.find_longest_match().size


def f1(answer: Sequence[str], right: Sequence[str], overlap: Callable[..., int]) -> float:
    """Returns the harmonic mean of precision and recall; 0 where nothing is shared.

    Args:
        answer: the words of the answer.
        right: those of a right one.
        overlap: how shared words are counted.
    """
    shared = overlap(answer, right)
    return 2 * shared / (len(answer) + len(right)) if shared else 0.0
