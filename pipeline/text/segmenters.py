"""Where words begin: what whole-word masking keeps together.

A Chinese word is what the segmenter says; any other word is what the tokenizer
split into pieces.

Example: in `使用BERT模型`, with jieba's 使用 | BERT | 模型 and the tokens
使, 用, be, ##rt, 模, 型, words begin at tokens 0, 2 and 4.
"""

from collections.abc import Callable

import numpy as np

from pipeline.text.tokenizers import Tokens

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


def _jieba() -> Segmenter:
    # Its dictionary is read on import: only processes that segment pay for it.
    import rjieba

    def segment(text: str) -> np.ndarray:
        words = rjieba.cut(text)
        ends = np.cumsum(np.fromiter(map(len, words), np.int64, len(words)))
        return ends[:-1]

    return segment


def _whitespace() -> Segmenter:
    def segment(text: str) -> np.ndarray:
        spaces = np.fromiter(map(str.isspace, text), bool, len(text))
        return np.flatnonzero(spaces) + 1

    return segment


def _none() -> Segmenter:
    return lambda text: np.arange(1, len(text))


# The names that `--segmenter` takes. Each makes a function from a text to the
# characters at which its words begin, the first word's left out.
SEGMENTERS: dict[str, Callable[[], Segmenter]] = {
    "jieba": _jieba,
    "whitespace": _whitespace,
    "none": _none,
}


def is_chinese(code_points: np.ndarray) -> np.ndarray:
    """Returns which code points (uint32 [n]) are Chinese characters (bool [n])."""
    block = np.searchsorted(_CHINESE_BLOCKS[:, 0], code_points, side="right")
    # Blocks are ascending: a character can only be in the last that begins before it.
    return (block > 0) & (code_points <= _CHINESE_BLOCKS[block - 1, 1])


def word_starts(text: str, tokens: Tokens, segment: Segmenter) -> np.ndarray:
    """Returns which tokens begin a word.

    Args:
        text: the text.
        tokens: its n tokens.
        segment: one of `SEGMENTERS`.

    Returns:
        bool [n]; the first is True.
    """
    code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    chinese = is_chinese(code_points[tokens.starts])
    words = np.searchsorted(segment(text), tokens.starts, side="right")
    same_pieces = tokens.word_ids[1:] == tokens.word_ids[:-1]
    same_word = chinese[1:] & chinese[:-1] & (words[1:] == words[:-1])
    return np.concatenate([np.ones(min(1, len(words)), bool), ~(same_pieces | same_word)])
