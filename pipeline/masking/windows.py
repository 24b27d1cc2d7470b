"""Windows: the spans of a document that fit the model, and how one becomes an input."""

from collections.abc import Iterator

import numpy as np


def window_spans(num_tokens: int, length: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yields (begin, end) of windows that cover a document.

    Each begins `stride` tokens after the one before; the last one is the first
    that reaches the document's end.

    Args:
        num_tokens: the document's tokens.
        length: the longest window, in tokens without special ones.
        stride: tokens between the beginnings; at most `length` is used.

    Example:
        `list(window_spans(10, 4, 3)) == [(0, 4), (3, 7), (6, 10)]`
    """
    stride = min(stride, length)
    begin = 0
    while begin < num_tokens:
        end = min(begin + length, num_tokens)
        yield begin, end
        if end == num_tokens:
            return
        begin += stride


def split_point(
    word_starts: np.ndarray, line_starts: np.ndarray, random: np.random.Generator
) -> int:
    """Chooses where a window is cut into two segments.

    At the beginning of one of its lines if it has several, else of one of its
    words: never inside a word.

    Args:
        word_starts: bool [n], which of the window's tokens begin a word.
        line_starts: bool [n], which begin a line.
        random: decides.

    Returns:
        the first token of the second segment, from 1 to n − 1; n where the
        window is a single word and cannot be cut.
    """
    draw = random.random()
    for starts in (line_starts, word_starts):
        places = np.flatnonzero(starts[1:]) + 1
        if len(places):
            return int(places[int(draw * len(places))])
    return len(word_starts)


def build_input(
    ids: np.ndarray, split: int | None, cls_id: int, sep_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Adds the special tokens.

    Args:
        ids: int [n], the window's tokens.
        split: the first token of the second segment; None or n for one segment.
        cls_id: `[CLS]`.
        sep_id: `[SEP]`.

    Returns:
        input ids int [L], segment lengths int [1 or 2] with the special tokens
        counted, and for each token of the window its position in the input, int [n].

    Example:
        `build_input([7, 8, 9], 2, cls, sep)` gives `[cls, 7, 8, sep, 9, sep]`,
        `[4, 2]` and `[1, 2, 4]`.
    """
    count = len(ids)
    positions = np.arange(1, count + 1)
    if split is None or split >= count:
        return np.concatenate([[cls_id], ids, [sep_id]]), np.array([count + 2]), positions
    positions[split:] += 1
    tokens = np.concatenate([[cls_id], ids[:split], [sep_id], ids[split:], [sep_id]])
    return tokens, np.array([split + 2, count - split + 1]), positions
