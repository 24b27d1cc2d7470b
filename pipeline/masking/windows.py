"""Windows: the spans of a document that fit the model, as inputs and as records, not masked.

Many windows are stored and decoded together, one after another in flat arrays.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from data_specs import records
from pipeline.storage import arrays
from pipeline.storage.arrays import Column


@dataclasses.dataclass(frozen=True)
class WindowInput:
    """A window with its special tokens, not masked.

    Attributes:
        input_ids: int [L], with `[CLS]` and `[SEP]`.
        segment_lengths: int [1 or 2], with `[CLS]` and `[SEP]`.
        positions: int [n], the position in the input of each token of the window.
        word_starts: bool [n], which tokens of the window begin a word.
    """

    input_ids: np.ndarray
    segment_lengths: np.ndarray
    positions: np.ndarray
    word_starts: np.ndarray

    @property
    def token_ids(self) -> np.ndarray:
        """The window's own tokens, int [n]."""
        return self.input_ids[self.positions]


@dataclasses.dataclass(frozen=True)
class Windows:
    """B windows with their special tokens, not masked, one after another.

    Attributes:
        input_ids: int [n], with `[CLS]` and `[SEP]`.
        lengths: int [B], how many of these each window has.
        segment_lengths: int [B, 2], with `[CLS]` and `[SEP]`; 0 where there is no second segment.
        positions: int [m], the indices in `input_ids` of the windows' own tokens.
        counts: int [B], how many of these each window has.
        word_starts: bool [m], which of them begin a word; a window's first one does.
    """

    input_ids: np.ndarray
    lengths: np.ndarray
    segment_lengths: np.ndarray
    positions: np.ndarray
    counts: np.ndarray
    word_starts: np.ndarray


def window_spans(num_tokens: int, length: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yields (begin, end) of windows that cover a document.

    Each begins `stride` tokens after the one before; the first to reach the end is the last.

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


def split_point(word_starts: np.ndarray, line_starts: np.ndarray, rng: np.random.Generator) -> int:
    """Chooses where a window is cut into two segments.

    At the beginning of one of its lines if it has several, else of one of its
    words: never inside a word.

    Args:
        word_starts: bool [n], which of the window's tokens begin a word.
        line_starts: bool [n], which begin a line.
        rng: decides.

    Returns:
        the first token of the second segment, from 1 to n − 1; n where there is only one word.
    """
    draw = rng.random()
    for starts in (line_starts, word_starts):
        cuts = np.flatnonzero(starts[1:]) + 1
        if len(cuts):
            return int(cuts[int(draw * len(cuts))])
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


def window_features(window: WindowInput, vocab_size: int) -> dict[str, bytes]:
    """Returns the features of an unmasked window, without its id; V decides the ids' dtype."""
    values = (window.input_ids, window.segment_lengths, window.positions[window.word_starts])
    return {
        feature.name: arrays.encode(feature, numbers, vocab_size)
        for feature, numbers in zip(records.UNMASKED_WINDOW_FEATURES[1:], values, strict=True)
    }


def decode_windows(columns: Sequence[Sequence[bytes]], vocab_size: int) -> Windows:
    """Reads back B windows.

    Args:
        columns: for each of `records.UNMASKED_WINDOW_FEATURES` its bytes in each window.
        vocab_size: V; decides the dtype of token ids.

    Example:
        segments of 4 and 2 tokens hold the window's tokens at 1, 2 and 4: what is
        left without `[CLS]` at 0 and each segment's `[SEP]` at 3 and 5.
    """
    _, inputs, segments, starts = (
        Column.decode(feature, contents, vocab_size)
        for feature, contents in zip(records.UNMASKED_WINDOW_FEATURES, columns, strict=True)
    )
    ids, lengths, num_segments = inputs.values, inputs.counts, segments.counts
    ends = np.cumsum(lengths)
    firsts = ends - lengths
    begins_word = np.zeros(len(ids), bool)
    begins_word[np.repeat(firsts, starts.counts) + starts.values] = True
    both = pad_rows(segments.values, num_segments, 2)
    pairs = num_segments == 2
    own = np.ones(len(ids), bool)
    own[firsts] = own[ends - 1] = own[(firsts + both[:, 0] - 1)[pairs]] = False
    positions = np.flatnonzero(own)
    counts = lengths - num_segments - 1
    begins_word = begins_word[positions]
    begins_word[np.cumsum(counts) - counts] = True
    return Windows(ids, lengths, both, positions, counts, begins_word)


def join_windows(windows: Sequence[WindowInput]) -> Windows:
    """Puts windows one after another."""
    fields = [field.name for field in dataclasses.fields(WindowInput)]
    columns = [[getattr(window, name) for window in windows] for name in fields]
    lengths, num_segments, counts, _ = (np.array([*map(len, column)]) for column in columns)
    input_ids, segments, positions, word_starts = map(np.concatenate, columns)
    word_starts[np.cumsum(counts) - counts] = True
    positions = positions + np.repeat(np.cumsum(lengths) - lengths, counts)
    both = pad_rows(segments, num_segments, 2)
    return Windows(input_ids, lengths, both, positions, counts, word_starts)


def pad_rows(flat: np.ndarray, counts: np.ndarray, width: int) -> np.ndarray:
    """Cuts numbers [n] into rows of as many as `counts` (int [B]), 0 behind: int32 [B, width]."""
    rows = np.zeros((len(counts), width), np.int32)
    rows[np.arange(width) < counts[:, np.newaxis]] = flat
    return rows
