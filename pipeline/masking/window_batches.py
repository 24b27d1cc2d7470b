"""Batches of windows: decoded, masked and written together.

Stage 1a makes static masks here, the reader of stage 2 dynamic ones, anew each epoch.
Each window has its own random stream. All that is not drawn is computed for the whole
batch at once, where its windows stand one after another.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from data_specs import records
from pipeline.masking import mask_policy
from pipeline.masking.mask_policy import MaskingPolicy
from pipeline.masking.window_masking import WindowInput
from pipeline.storage.arrays import Column


@dataclasses.dataclass(frozen=True)
class Windows:
    """B windows with their special tokens, not masked, one after another.

    Attributes:
        input_ids: int [n], with `[CLS]` and `[SEP]`.
        lengths: int [B], how many of these each window has.
        segment_lengths: int [B, 2], with `[CLS]` and `[SEP]`; 0 where there is no
            second segment.
        places: int [m], where in `input_ids` the windows' own tokens are.
        counts: int [B], how many of these each window has.
        word_starts: bool [m], which of them begin a word; a window's first one does.
    """

    input_ids: np.ndarray
    lengths: np.ndarray
    segment_lengths: np.ndarray
    places: np.ndarray
    counts: np.ndarray
    word_starts: np.ndarray


@dataclasses.dataclass(frozen=True)
class MaskedWindows:
    """R windows after masking, one after another.

    Attributes:
        input_ids: int [n].
        positions: int [p], the masked positions, each within its own window, ascending.
        labels: int [p], the true tokens there.
        counts: int [R], how many masked positions each window has.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    counts: np.ndarray


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
    places = np.flatnonzero(own)
    counts = lengths - num_segments - 1
    begins_word = begins_word[places]
    begins_word[np.cumsum(counts) - counts] = True
    return Windows(ids, lengths, both, places, counts, begins_word)


def join_windows(windows: Sequence[WindowInput]) -> Windows:
    """Puts windows one after another."""
    lengths = np.array([len(window.input_ids) for window in windows])
    counts = np.array([len(window.places) for window in windows])
    segments = np.concatenate([window.segment_lengths for window in windows])
    num_segments = np.array([len(window.segment_lengths) for window in windows])
    places = np.concatenate([window.places for window in windows])
    word_starts = np.concatenate([window.word_starts for window in windows])
    word_starts[np.cumsum(counts) - counts] = True
    return Windows(
        np.concatenate([window.input_ids for window in windows]),
        lengths,
        pad_rows(segments, num_segments, 2),
        places + np.repeat(np.cumsum(lengths) - lengths, counts),
        counts,
        word_starts,
    )


def masked_features(
    windows: Windows, masked: MaskedWindows, id_dtype: np.dtype
) -> Iterator[dict[str, bytes]]:
    """Yields the features of masked examples, but for their ids.

    Args:
        windows: before masking.
        masked: after it, in one copy or several.
        id_dtype: of token ids.
    """
    input_ids, labels = masked.input_ids.astype(id_dtype), masked.labels.astype(id_dtype)
    segments, positions = windows.segment_lengths.astype("<u2"), masked.positions.astype("<u2")
    num_segments = np.count_nonzero(segments, axis=1).tolist()
    segments = [row[:count].tobytes() for row, count in zip(segments, num_segments, strict=True)]
    copies = len(masked.counts) // len(segments)
    tokens = itertools.pairwise([0, *np.cumsum(np.tile(windows.lengths, copies)).tolist()])
    predictions = itertools.pairwise([0, *np.cumsum(masked.counts).tolist()])
    rows = zip(segments * copies, tokens, predictions, strict=True)
    for segment_lengths, token, prediction in rows:
        there = slice(*prediction)
        yield {
            records.INPUT_IDS: input_ids[slice(*token)].tobytes(),
            records.SEGMENT_LENGTHS: segment_lengths,
            records.MASKED_LM_POSITIONS: positions[there].tobytes(),
            records.MASKED_LM_IDS: labels[there].tobytes(),
        }


def pad_rows(flat: np.ndarray, counts: np.ndarray, width: int) -> np.ndarray:
    """Cuts numbers into rows with 0 behind them.

    Args:
        flat: [n], row after row.
        counts: int [B], how many each row has.
        width: of a row.

    Returns:
        int32 [B, width].
    """
    rows = np.zeros((len(counts), width), np.int32)
    rows[np.arange(width) < counts[:, np.newaxis]] = flat
    return rows


def mask_windows(
    windows: Windows,
    policy: MaskingPolicy,
    is_special: np.ndarray,
    streams: Iterable[np.random.Generator],
    *,
    copies: int = 1,
    token_weights: np.ndarray | None = None,
) -> MaskedWindows:
    """Masks windows in one way each, or in several.

    Args:
        windows: B windows.
        policy: how they are masked.
        is_special: bool [V].
        streams: decide, one for each masked window; a stream may end where the next is
            asked for.
        copies: C; all windows are masked, then all once more, and so on.
        token_weights: float64 [V], how much each token is preferred, as
            `masking.token_weights` returns it; None for words that are all alike.

    Returns:
        R = C · B masked windows.
    """
    tokens = windows.input_ids[windows.places]
    rooms = [policy.num_to_predict(length) for length in windows.lengths.tolist()]
    longest = np.repeat(rooms, windows.counts)
    words = mask_policy.maskable_words(windows.word_starts, is_special[tokens], longest)
    weights = (
        None if token_weights is None else mask_policy.word_weights(words, token_weights[tokens])
    )
    ends = np.searchsorted(words.starts, np.cumsum(windows.counts)).tolist()
    bounds, lengths = list(zip([0, *ends[:-1]], ends, rooms, strict=True)), words.lengths.tolist()
    is_chosen = np.zeros((copies, len(lengths)), bool)
    counts, draws = [], []
    numbered = ((copy, *bound) for copy in range(copies) for bound in bounds)
    for random, (copy, first, end, room) in zip(streams, numbered, strict=True):
        own = None if weights is None else weights[first:end]
        order = mask_policy.word_order(end - first, random, own) + first
        chosen, count = mask_policy.choose_words(lengths, order.tolist(), room)
        is_chosen[copy, chosen] = True
        counts.append(count)
        draws.append(mask_policy.draw_tokens(count, policy, random))
    copy, word = np.nonzero(is_chosen)
    places = windows.places[_word_tokens(words.starts[word], words.lengths[word])]
    places += np.repeat(copy * len(windows.input_ids), words.lengths[word])
    return _masked(windows, copies, places, np.array(counts), policy, draws)


def _word_tokens(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the tokens of words, one word after another, from their first tokens and lengths."""
    # How far each word's first token is from its place in what is returned.
    shifts = starts - (np.cumsum(lengths) - lengths)
    return np.repeat(shifts, lengths) + np.arange(lengths.sum())


def _masked(
    windows: Windows,
    copies: int,
    places: np.ndarray,
    counts: np.ndarray,
    policy: MaskingPolicy,
    draws: Iterable[tuple[np.ndarray, np.ndarray]],
) -> MaskedWindows:
    """Masks copies of windows at given places; `draws` are each window's `draw_tokens`."""
    input_ids = np.tile(windows.input_ids, copies)
    labels = input_ids[places]
    parts = (np.concatenate(part) for part in zip(*draws, strict=True))
    input_ids[places] = mask_policy.masked_tokens(labels, policy, *parts)
    lengths = np.tile(windows.lengths, copies)
    firsts = np.repeat(np.cumsum(lengths) - lengths, counts)
    return MaskedWindows(input_ids, places - firsts, labels, counts)
