"""Windows: the spans of a document that fit the model, as unmasked inputs and records.

Many windows are stored and decoded together, concatenated in flat arrays.
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
        positions: int [n], position in the input of each token of the document.
        word_starts: bool [n], which of these tokens begin a word.
    """

    input_ids: np.ndarray
    segment_lengths: np.ndarray
    positions: np.ndarray
    word_starts: np.ndarray

    @property
    def token_ids(self) -> np.ndarray:
        """The tokens of the document, without special tokens, int [n]."""
        return self.input_ids[self.positions]


@dataclasses.dataclass(frozen=True)
class Windows:
    """B unmasked windows with their special tokens, concatenated.

    Attributes:
        input_ids: int [n], with `[CLS]` and `[SEP]`.
        lengths: int [B], number of input ids of each window.
        segment_lengths: int [B, 2], with `[CLS]` and `[SEP]`; 0 if there is no second segment.
        positions: int [m], indices in `input_ids` of the tokens of the document.
        counts: int [B], number of such tokens of each window.
        word_starts: bool [m], which of them begin a word; the first of each window does.
    """

    input_ids: np.ndarray
    lengths: np.ndarray
    segment_lengths: np.ndarray
    positions: np.ndarray
    counts: np.ndarray
    word_starts: np.ndarray


def window_spans(num_tokens: int, length: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yields (begin, end) of windows that cover a document.

    Each window begins `stride` tokens after the previous one. The first window that reaches the
    end of the document is the last.

    Args:
        num_tokens: number of tokens of the document.
        length: maximum length of a window in tokens, without special tokens.
        stride: tokens between the beginnings of windows; a larger value counts as `length`.

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
    """Chooses the point at which a window is cut into two segments.

    The second segment begins with a line if the window has several lines, and otherwise with a
    word. No word is cut.

    Args:
        word_starts: bool [n], which of the window's tokens begin a word.
        line_starts: bool [n], which begin a line.
        rng: chooses between the possible points.

    Returns:
        index of the first token of the second segment, from 1 to n − 1; n if there is only one
        word.
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
    """Returns an input: a window with special tokens.

    Args:
        ids: int [n], the window's tokens.
        split: index of the first token of the second segment; None or n for one segment.
        cls_id: id of `[CLS]`.
        sep_id: id of `[SEP]`.

    Returns:
        input ids, int [L]; segment lengths with special tokens, int [1 or 2]; position in the
        input of each token of the window, int [n].

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
    """Returns the features of an unmasked window, without its example id.

    `vocab_size` decides the dtype of token ids.
    """
    values = (window.input_ids, window.segment_lengths, window.positions[window.word_starts])
    return {
        feature.name: arrays.encode(feature, numbers, vocab_size)
        for feature, numbers in zip(records.UNMASKED_WINDOW_FEATURES[1:], values, strict=True)
    }


def decode_windows(columns: Sequence[Sequence[bytes]], vocab_size: int) -> Windows:
    """Decodes B windows.

    Args:
        columns: for each of `records.UNMASKED_WINDOW_FEATURES`, its bytes in each window.
        vocab_size: V; decides the dtype of token ids.

    Example:
        An input with segments of 4 and 2 tokens has `[CLS]` at 0, and the segments' `[SEP]` at 3
        and 5. The tokens of the document are at 1, 2 and 4.
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
    segment_lengths = pad_rows(segments.values, num_segments, 2)
    pairs = num_segments == 2
    is_text = np.ones(len(ids), bool)
    is_text[firsts] = is_text[ends - 1] = is_text[(firsts + segment_lengths[:, 0] - 1)[pairs]] = (
        False
    )
    positions = np.flatnonzero(is_text)
    counts = lengths - num_segments - 1
    begins_word = begins_word[positions]
    begins_word[np.cumsum(counts) - counts] = True
    return Windows(ids, lengths, segment_lengths, positions, counts, begins_word)


def join_windows(windows: Sequence[WindowInput]) -> Windows:
    """Concatenates windows."""
    fields = [field.name for field in dataclasses.fields(WindowInput)]
    columns = [[getattr(window, name) for window in windows] for name in fields]
    lengths, num_segments, counts, _ = (np.array([*map(len, column)]) for column in columns)
    input_ids, segments, positions, word_starts = map(np.concatenate, columns)
    word_starts[np.cumsum(counts) - counts] = True
    positions = positions + np.repeat(np.cumsum(lengths) - lengths, counts)
    segment_lengths = pad_rows(segments, num_segments, 2)
    return Windows(input_ids, lengths, segment_lengths, positions, counts, word_starts)


def pad_rows(flat: np.ndarray, counts: np.ndarray, width: int) -> np.ndarray:
    """Returns numbers as rows that are padded with 0, int32 [B, width].

    Args:
        flat: [n], the numbers of all rows, concatenated.
        counts: int [B], how many numbers each row has.
        width: length of a row with its padding.
    """
    rows = np.zeros((len(counts), width), np.int32)
    rows[np.arange(width) < counts[:, np.newaxis]] = flat
    return rows
