"""Masking as in BERT, by whole words, for many windows at once.

Devlin et al., 2019, section 3.1: 80% of the chosen tokens become [MASK], 10% become a random
token and 10% stay. Whole words are masked as in Cui et al., 2019 (Chinese RoBERTa-wwm). Rare
tokens are preferred as in Sanh et al., 2019 (DistilBERT).

Prepare uses this module for static masks. The reader of distill uses it for dynamic masks, which
are new in each epoch. Each window has its own random numbers, and all windows of a batch are
masked at once.
"""

import dataclasses

import numpy as np

from data_specs import records
from pipeline.base import seeding
from pipeline.base.seeding import KeyedStreams
from pipeline.masking.windows import Windows, row_bytes, segment_bytes
from pipeline.storage import arrays
from pipeline.tokenizers.tokens import Tokenizer

_MASK_PROBABILITY = 0.8
_KEEP_PROBABILITY = 0.1
# Streams of random numbers of a masked window.
_WORD_ORDER, _REPLACEMENT, _RANDOM_TOKEN = range(3)
# Number of words that are sorted together, unless a single row has more. Small arrays are faster.
_SORTED_WORDS = 2**12
# The bits of a sort key that hold the index of a word in its row.
_WORD_MASK = 2**16 - 1


@dataclasses.dataclass(frozen=True)
class MaskingPolicy:
    """The settings by which windows are masked.

    Attributes:
        masked_lm_prob: fraction of the input's tokens to mask.
        max_predictions_per_seq: upper bound for the masked tokens of an input.
        mask_id: id of `[MASK]`.
        replacement_ids: int [n], the ids from which random tokens are drawn.
    """

    masked_lm_prob: float
    max_predictions_per_seq: int
    mask_id: int
    replacement_ids: np.ndarray

    def num_to_predict(self, input_lengths: np.ndarray) -> np.ndarray:
        """Returns the largest number of masked tokens of inputs of these lengths, int64 [n]."""
        wanted = np.maximum(1, np.rint(input_lengths * self.masked_lm_prob))
        return np.minimum(self.max_predictions_per_seq, wanted).astype(np.int64)


def masking_policy(
    tokenizer: Tokenizer, *, masked_lm_prob: float, max_predictions_per_seq: int
) -> MaskingPolicy:
    """Returns the policy for a tokenizer; special tokens never replace a masked token."""
    replacement_ids = np.flatnonzero(~tokenizer.is_special())
    mask_id = tokenizer.special_ids["mask"]
    return MaskingPolicy(masked_lm_prob, max_predictions_per_seq, mask_id, replacement_ids)


@dataclasses.dataclass(frozen=True)
class Words:
    """The words of windows, one window after another, that may be masked.

    Attributes:
        starts: int [n], index of each word's first token among the tokens of all windows.
        lengths: int [n], number of tokens of each word.
    """

    starts: np.ndarray
    lengths: np.ndarray


def maskable_words(windows: Windows, policy: MaskingPolicy, is_special: np.ndarray) -> Words:
    """Returns the words of windows that may be masked.

    A word that contains a special token, such as `[UNK]`, is left out: a student learns nothing
    from predicting it. A word with more tokens than may be masked in the window is left out too.
    The first token of a window begins a word, even if the word begins before the window.

    Args:
        windows: B windows.
        policy: settings of masking.
        is_special: bool [V], which token ids are special.
    """
    tokens = windows.input_ids[windows.positions]
    begins = windows.word_starts.copy()
    begins[np.cumsum(windows.counts) - windows.counts] = True
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=len(begins))
    longest = np.repeat(policy.num_to_predict(windows.lengths), windows.counts)[starts]
    allowed = (lengths <= longest) & ~np.logical_or.reduceat(is_special[tokens], starts)
    return Words(starts[allowed], lengths[allowed])


def token_weights(counts: np.ndarray, smoothing: float) -> np.ndarray:
    """Returns the weight with which masking draws each token: `count ** -smoothing`, float64 [V].

    Sanh et al., 2019 (DistilBERT), use a smoothing of 0.7, after the subsampling of Mikolov et
    al., 2013. A token that does not occur counts as if it occurred once.

    Args:
        counts: int [V], how often each token is in the corpus.
        smoothing: 0 for no preference.
    """
    return np.maximum(counts, 1).astype(np.float64) ** -smoothing


def word_weights(words: Words, weights: np.ndarray) -> np.ndarray:
    """Returns the mean weight of each word's tokens, float64 [words].

    `weights` are those of the window's tokens, float64 [n].
    """
    bounds = np.stack([words.starts, words.starts + words.lengths], axis=1).ravel()
    # Every second sum between bounds belongs to a word. The 0 is a bound after the last token, for
    # a word that ends the window.
    sums = np.add.reduceat(np.concatenate([weights, [0.0]]), bounds)[::2]
    return sums / words.lengths


def word_order(
    counts: np.ndarray, streams: KeyedStreams, weights: np.ndarray | None = None
) -> np.ndarray:
    """Returns a random order of the words of each row, drawn by weight without replacement.

    Efraimidis and Spirakis, 2006: sort by u^(1/w), largest first. This is the same as sorting by
    −log(u)/w, smallest first.

    Args:
        counts: int [R], the number of words of each row.
        streams: the random numbers of the rows.
        weights: float64 [n], above 0, the weights of all words, row by row; None if all orders
            have the same probability.

    Returns:
        int64 [n], the index of each word among the words of all rows; the rows keep their places.
    """
    ends = np.cumsum(counts)
    firsts = np.repeat(ends - counts, counts)
    drawn = streams.bits(counts, _WORD_ORDER).astype(np.uint64)
    if weights is not None:
        # The upper bits of positive floating-point numbers have the order of the numbers.
        exponentials = -np.log((drawn + 0.5) / 2.0**32) / weights
        drawn = exponentials.view(np.uint64) >> np.uint64(32)
    # Each key is a row, a random number and a word, of 16, 32 and 16 bits. As all keys differ,
    # every method of sorting has the same result. Sorting keys takes a fraction of the time of
    # sorting indices. The upper bits of a row's number are lost, but rows keep their places.
    keys = np.repeat(np.arange(len(counts), dtype=np.uint64) << np.uint64(48), counts)
    keys |= drawn << np.uint64(16)
    keys |= (np.arange(len(firsts)) - firsts).astype(np.uint64)
    for part in np.split(keys, ends[arrays.group_bounds(counts, _SORTED_WORDS)[1:-1] - 1]):
        part.sort()
    return firsts + (keys & np.uint64(_WORD_MASK)).astype(np.int64)


def choose_words(lengths: np.ndarray, counts: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Greedily chooses words of each row, in order, whose tokens fit in the row's limit.

    Args:
        lengths: int [n], the number of tokens of each word, row by row.
        counts: int [R], the number of words of each row.
        limits: int [R], the maximum number of tokens of each row.

    Returns:
        bool [n].

    Example:
        Words of 2, 3 and 1 tokens, in this order, and a limit of 4 tokens. The first and the last
        word fit.
    """
    ends = np.cumsum(counts)
    firsts = ends - counts
    filled = np.concatenate([[0], np.cumsum(lengths)])
    chosen = filled[1:] - np.repeat(filled[firsts], counts) <= np.repeat(limits, counts)
    num_chosen = np.concatenate([[0], np.cumsum(chosen)])
    following = firsts + num_chosen[ends] - num_chosen[firsts]
    free = limits - (filled[following] - filled[firsts])
    # The first words are chosen until one does not fit. The words after it are then tried one at a
    # time, for all rows at once.
    rows = np.flatnonzero((free > 0) & (following < ends))
    while len(rows):
        words = following[rows]
        fits = lengths[words] <= free[rows]
        chosen[words[fits]] = True
        free[rows[fits]] -= lengths[words[fits]]
        following[rows] += 1
        rows = rows[(free[rows] > 0) & (following[rows] < ends[rows])]
    return chosen


def masked_tokens(
    labels: np.ndarray, counts: np.ndarray, policy: MaskingPolicy, streams: KeyedStreams
) -> np.ndarray:
    """Returns the inputs at the masked positions: 80% [MASK], 10% random, 10% kept.

    Args:
        labels: int [p], the true tokens, row by row.
        counts: int [R], the number of masked positions of each row.
        policy: the ids that replace them.
        streams: the random numbers of the rows.
    """
    picks = seeding.below(len(policy.replacement_ids), streams.bits(counts, _RANDOM_TOKEN))
    uniform = streams.bits(counts, _REPLACEMENT) / 2.0**32
    is_kept = uniform >= 1.0 - _KEEP_PROBABILITY
    replacements = np.where(is_kept, labels, policy.replacement_ids[picks])
    return np.where(uniform < _MASK_PROBABILITY, policy.mask_id, replacements)


@dataclasses.dataclass(frozen=True)
class MaskedWindows:
    """R masked windows, concatenated.

    Attributes:
        input_ids: int [n].
        positions: int [p], the masked positions, each within its own window, ascending.
        labels: int [p], the true tokens there.
        counts: int [R], number of masked positions of each window.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    counts: np.ndarray


def mask_windows(
    windows: Windows,
    policy: MaskingPolicy,
    is_special: np.ndarray,
    streams: KeyedStreams,
    *,
    copies: int = 1,
    token_weights: np.ndarray | None = None,
) -> MaskedWindows:
    """Masks windows, each one or several times with different masks.

    Args:
        windows: B windows.
        policy: settings of masking.
        is_special: bool [V], which token ids are special.
        streams: the random numbers of each of the C · B masked windows.
        copies: C, masked copies of each window; the first copy of all windows comes first.
        token_weights: float64 [V], the result of the function `token_weights`; None if all words
            have the same probability.

    Returns:
        R = C · B masked windows.
    """
    words = maskable_words(windows, policy, is_special)
    weights = None
    if token_weights is not None:
        of_tokens = token_weights[windows.input_ids[windows.positions]]
        weights = np.tile(word_weights(words, of_tokens), copies)
    ends = np.searchsorted(words.starts, np.cumsum(windows.counts))
    num_words = np.tile(np.diff(ends, prepend=0), copies)
    order = word_order(num_words, streams, weights)
    lengths = np.tile(words.lengths, copies)
    limits = np.tile(policy.num_to_predict(windows.lengths), copies)
    chosen = choose_words(lengths[order], num_words, limits)
    numbers = np.sort(order[chosen])
    row = np.repeat(np.arange(len(num_words)), num_words)[numbers]
    counts = np.bincount(row, lengths[numbers], len(num_words)).astype(np.int64)
    copy, word = np.divmod(numbers, max(1, len(words.starts)))
    indices = windows.positions[_word_tokens(words.starts[word], words.lengths[word])]
    indices += np.repeat(copy * len(windows.input_ids), words.lengths[word])
    input_ids, lengths = np.tile(windows.input_ids, copies), np.tile(windows.lengths, copies)
    labels = input_ids[indices]
    input_ids[indices] = masked_tokens(labels, counts, policy, streams)
    firsts = np.repeat(np.cumsum(lengths) - lengths, counts)
    return MaskedWindows(input_ids, indices - firsts, labels, counts)


def _word_tokens(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the tokens of words, one word after another, from their first tokens and lengths."""
    # The distance of each word's first token from its index in the result.
    shifts = starts - (np.cumsum(lengths) - lengths)
    return np.repeat(shifts, lengths) + np.arange(lengths.sum())


def masked_features(
    windows: Windows, masked: MaskedWindows, vocab_size: int
) -> dict[str, list[bytes]]:
    """Returns the features of masked examples, without their example ids.

    Args:
        windows: B windows before masking.
        masked: C · B windows after masking.
        vocab_size: V; decides the dtype of token ids.

    Returns:
        for each feature, its bytes in each example.
    """
    id_dtype = records.id_dtype(vocab_size)
    copies = len(masked.counts) // len(windows.lengths)
    lengths = np.tile(windows.lengths, copies)
    return {
        records.INPUT_IDS: row_bytes(masked.input_ids, lengths, id_dtype),
        records.SEGMENT_LENGTHS: segment_bytes(windows.segment_lengths) * copies,
        records.MASKED_LM_POSITIONS: row_bytes(masked.positions, masked.counts, np.dtype("<u2")),
        records.MASKED_LM_IDS: row_bytes(masked.labels, masked.counts, id_dtype),
    }
