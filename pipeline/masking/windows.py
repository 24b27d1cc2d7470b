"""Windows: the spans of a document that fit the model, as unmasked inputs and records.

Many windows are stored and decoded together, concatenated in flat arrays.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from data_specs import records
from pipeline.base import seeding
from pipeline.storage.arrays import Column


@dataclasses.dataclass(frozen=True)
class Windows:
    """B unmasked windows with their special tokens, concatenated.

    Attributes:
        input_ids: int [n], with `[CLS]` and `[SEP]`.
        lengths: int [B], number of input ids of each window.
        segment_lengths: int [B, 2], with `[CLS]` and `[SEP]`; 0 if there is no second segment.
        positions: int [m], indices in `input_ids` of the tokens of the document.
        counts: int [B], number of such tokens of each window.
        word_starts: bool [m], which of them begin a word.
    """

    input_ids: np.ndarray
    lengths: np.ndarray
    segment_lengths: np.ndarray
    positions: np.ndarray
    counts: np.ndarray
    word_starts: np.ndarray


@dataclasses.dataclass(frozen=True)
class Spans:
    """The spans of W windows of documents.

    Attributes:
        documents: int [W], the index of each window's document.
        numbers: int [W], the index of each window in its document.
        begins: int [W], index of its first token in the document.
        ends: int [W], index after its last token in the document.
    """

    documents: np.ndarray
    numbers: np.ndarray
    begins: np.ndarray
    ends: np.ndarray

    def part(self, selected: slice) -> "Spans":
        """Returns some of the spans."""
        fields = (self.documents, self.numbers, self.begins, self.ends)
        return Spans(*(values[selected] for values in fields))


def window_spans(num_tokens: np.ndarray, length: np.ndarray, stride: int) -> Spans:
    """Returns the windows that cover documents, in the order of documents.

    Each window begins `stride` tokens after the previous one. The first window that reaches the
    end of the document is the last.

    Args:
        num_tokens: int [documents], the number of tokens of each document.
        length: int [documents], the maximum length of each document's windows in tokens, without
            special tokens.
        stride: tokens between the beginnings of windows; at most the length is used.

    Example:
        A document of 10 tokens, windows of 4 and a stride of 3 give the spans (0, 4), (3, 7) and
        (6, 10).
    """
    strides = np.minimum(stride, length)
    following = np.maximum(0, -((length - num_tokens) // strides))
    counts = np.where(num_tokens > 0, 1 + following, 0)
    documents = np.repeat(np.arange(len(counts)), counts)
    numbers = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
    begins = numbers * strides[documents]
    ends = np.minimum(begins + length[documents], num_tokens[documents])
    return Spans(documents, numbers, begins, ends)


def split_points(
    begins: np.ndarray,
    ends: np.ndarray,
    boundaries: Sequence[np.ndarray],
    bits: np.ndarray,
) -> np.ndarray:
    """Chooses the points at which windows are cut into two segments.

    The second segment begins with a line if the window has several lines, and otherwise with a
    word. No word is cut.

    Args:
        begins: int [W], index of each window's first token.
        ends: int [W], index after each window's last token.
        boundaries: which tokens begin a line, and which begin a word, bool [tokens] each.
        bits: uint32 [W], random bits; choose between the possible points.

    Returns:
        int [W], the index in the window of the first token of the second segment; the length of
        the window if it has only one word.
    """
    splits = ends - begins
    is_open = np.ones(len(begins), bool)
    for starts in boundaries:
        candidates = np.flatnonzero(starts)
        first = np.searchsorted(candidates, begins, side="right")
        counts = np.searchsorted(candidates, ends) - first
        chosen = is_open & (counts > 0)
        picked = first[chosen] + seeding.below(counts[chosen], bits[chosen])
        splits[chosen] = candidates[picked] - begins[chosen]
        is_open &= ~chosen
    return splits


def build_windows(
    ids: np.ndarray,
    word_starts: np.ndarray,
    spans: tuple[np.ndarray, np.ndarray],
    splits: np.ndarray | None,
    special_ids: Mapping[str, int],
) -> Windows:
    """Returns windows with special tokens.

    Args:
        ids: int [tokens], the tokens of documents.
        word_starts: bool [tokens], which of them begin a word.
        spans: int [W] each, the index of each window's first token, and the index after its last.
        splits: int [W], the result of `split_points`; None for one segment in each window.
        special_ids: the ids of cls and sep.

    Example:
        A window of the tokens 7, 8, 9 with the split 2 becomes `[cls, 7, 8, sep, 9, sep]`, with
        the segment lengths 4 and 2 and the positions 1, 2 and 4.
    """
    begins, ends = spans
    counts = ends - begins
    splits = counts if splits is None else splits
    seconds = np.where(splits < counts, counts - splits + 1, 0)
    segment_lengths = np.stack([splits + 2, seconds], axis=1).astype(np.int32)
    lengths = splits + 2 + seconds
    firsts, window_firsts = np.cumsum(lengths) - lengths, np.cumsum(counts) - counts
    within = np.arange(counts.sum()) - np.repeat(window_firsts, counts)
    tokens = np.repeat(begins, counts) + within
    positions = np.repeat(firsts + 1, counts) + within + (within >= np.repeat(splits, counts))
    input_ids = np.full(lengths.sum(), special_ids["sep"], np.int32)
    input_ids[firsts] = special_ids["cls"]
    input_ids[positions] = ids[tokens]
    return Windows(input_ids, lengths, segment_lengths, positions, counts, word_starts[tokens])


def window_features(windows: Windows, vocab_size: int) -> dict[str, list[bytes]]:
    """Returns the features of unmasked windows, without their example ids.

    Args:
        windows: B windows.
        vocab_size: V; decides the dtype of token ids.

    Returns:
        for each feature, its bytes in each window.
    """
    row = np.repeat(np.arange(len(windows.lengths)), windows.counts)[windows.word_starts]
    firsts = np.cumsum(windows.lengths) - windows.lengths
    starts = windows.positions[windows.word_starts] - firsts[row]
    num_starts = np.bincount(row, minlength=len(windows.lengths))
    return {
        records.INPUT_IDS: row_bytes(
            windows.input_ids, windows.lengths, records.id_dtype(vocab_size)
        ),
        records.SEGMENT_LENGTHS: segment_bytes(windows.segment_lengths),
        records.WORD_STARTS: row_bytes(starts, num_starts, np.dtype("<u2")),
    }


def row_bytes(values: np.ndarray, counts: np.ndarray, dtype: np.dtype) -> list[bytes]:
    """Returns the bytes of each row.

    Args:
        values: [n], the numbers of all rows, concatenated.
        counts: int [R], how many numbers each row has.
        dtype: type of a stored number.
    """
    content = values.astype(dtype, copy=False).tobytes()
    bounds = [0, *(np.cumsum(counts) * dtype.itemsize).tolist()]
    return [content[begin:end] for begin, end in itertools.pairwise(bounds)]


def segment_bytes(segment_lengths: np.ndarray) -> list[bytes]:
    """Returns the bytes of the segment lengths of each window, int [B, 2]; 0 is left out."""
    present = segment_lengths > 0
    return row_bytes(segment_lengths[present], present.sum(axis=1), np.dtype("<u2"))


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
    return Windows(ids, lengths, segment_lengths, positions, counts, begins_word[positions])


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
