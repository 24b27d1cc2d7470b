"""Word boundaries for whole-word masking.

The segmenter decides the boundaries of Chinese words. All other words are those that the
tokenizer marks (`##` of WordPiece, `▁` of SentencePiece, `Ġ` of byte-level BPE), without adjacent
punctuation.

Examples: for `使用BERT模型`, jieba gives 使用 | BERT | 模型. With the tokens 使, 用, be, ##rt, 模
and 型, words begin at tokens 0, 2 and 4. In `Hello, world`, with the tokens ▁Hel, lo, `,` and
▁world, words begin at tokens 0, 2 and 3.
"""

import functools
import unicodedata
from collections.abc import Callable

import numpy as np

from pipeline.tokenizers.tokens import Tokens

Segmenter = Callable[[str], np.ndarray]

# Blocks that BERT's tokenizer splits into single characters, from
# `_is_chinese_char` in google-research/bert's tokenization.py.
_CHINESE_BLOCKS = np.array(
    [
        (0x3400, 0x4DBF),
        (0x4E00, 0x9FFF),
        (0xF900, 0xFAFF),
        (0x20000, 0x2A6DF),
        (0x2A700, 0x2B73F),
        (0x2B740, 0x2B81F),
        (0x2B820, 0x2CEAF),
        (0x2F800, 0x2FA1F),
    ],
    np.uint32,
)


def _jieba(text: str) -> np.ndarray:
    # The import reads a dictionary, so only processes that segment import it.
    import rjieba

    words = rjieba.cut(text)
    return np.cumsum(np.fromiter(map(len, words), np.int64, len(words)))[:-1]


def _whitespace(text: str) -> np.ndarray:
    return np.flatnonzero(np.fromiter(map(str.isspace, text), bool, len(text))) + 1


def _none(text: str) -> np.ndarray:
    return np.arange(1, len(text))


# The segmenters by their names in `segmenter`. Each is a function from a text to the indices of
# the characters at which its words begin, without that of the first word.
SEGMENTERS: dict[str, Segmenter] = {"jieba": _jieba, "whitespace": _whitespace, "none": _none}


def is_chinese(code_points: np.ndarray) -> np.ndarray:
    """Returns which code points (uint32 [n]) are Chinese characters (bool [n])."""
    if code_points.max(initial=0) < 2**16:
        return _chinese()[code_points]
    return _in_chinese_blocks(code_points)


@functools.cache
def _chinese() -> np.ndarray:
    """Returns which 16-bit code points are Chinese characters, bool [65,536]."""
    return _in_chinese_blocks(np.arange(2**16, dtype=np.uint32))


def _in_chinese_blocks(code_points: np.ndarray) -> np.ndarray:
    block = np.searchsorted(_CHINESE_BLOCKS[:, 0], code_points, side="right")
    # Blocks are in ascending order: a character can only be in the last block that begins at or
    # before it.
    return (block > 0) & (code_points <= _CHINESE_BLOCKS[block - 1, 1])


@functools.cache
def _punctuation() -> np.ndarray:
    """Returns which code points BERT's tokenizer splits off as punctuation, bool [65,536]."""
    characters = map(chr, range(2**16))
    return np.array([unicodedata.category(c)[0] == "P" or c in "$+<=>^`|~" for c in characters])


def is_punctuation(code_points: np.ndarray) -> np.ndarray:
    """Returns which code points (uint32 [n]) BERT's tokenizer splits off (bool [n])."""
    return _punctuation()[np.minimum(code_points, 2**16 - 1)]


def word_starts(text: str, tokens: Tokens, segment: Segmenter) -> np.ndarray:
    """Returns which of a text's n tokens begin a word, bool [n]; the first one always does.

    `segment` is one of `SEGMENTERS`.
    """
    if not len(tokens.ids):
        return np.zeros(0, bool)
    code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    left_ends, right_starts = tokens.ends[:-1], tokens.starts[1:]
    left = code_points[np.maximum(left_ends - 1, 0)]
    right = code_points[np.minimum(right_starts, len(code_points) - 1)]
    chinese_left, chinese_right = is_chinese(left), is_chinese(right)
    # Two tokens belong to one Chinese word if no word begins between them.
    begins = np.zeros(len(code_points) + 1, np.int32)
    begins[segment(text)] = 1
    words = np.cumsum(begins, out=begins)
    is_within_word = words[right_starts] <= words[np.maximum(left_ends - 1, 0)]
    same_chinese_word = chinese_left & chinese_right & is_within_word
    # A token of spaces only, such as a lone ▁, belongs to the word that follows.
    visible = tokens.ends[:-1] > tokens.starts[:-1]
    # Two tokens that share a character are parts of this character, and are never split.
    apart = (right_starts >= left_ends) & visible
    other_kind = chinese_left | chinese_right | is_punctuation(left) | is_punctuation(right)
    same_pieces = (tokens.word_ids[1:] == tokens.word_ids[:-1]) & ~(other_kind & apart)
    return np.concatenate([[True], ~(same_pieces | same_chinese_word)])
