"""Masking as in BERT, by whole words, for many windows at once.

Devlin et al., 2019, section 3.1: 80% of the chosen tokens become [MASK], 10% become a random
token and 10% stay. Whole words are masked as in Cui et al., 2019 (Chinese RoBERTa-wwm). Rare
tokens are preferred as in Sanh et al., 2019 (DistilBERT).

Prepare uses this module for static masks. The reader of distill uses it for dynamic masks, which
are new in each epoch. Each window has its own random generator. Everything except the random
draws is computed for the whole batch at once.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from data_specs import records
from pipeline.masking.windows import Windows
from pipeline.tokenizers.tokens import Tokenizer

_MASK_PROBABILITY = 0.8
_KEEP_PROBABILITY = 0.1


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

    def num_to_predict(self, input_length: int) -> int:
        """Returns the largest number of masked tokens of an input of this length."""
        wanted = max(1, round(input_length * self.masked_lm_prob))
        return min(self.max_predictions_per_seq, wanted)


def masking_policy(
    tokenizer: Tokenizer, *, masked_lm_prob: float, max_predictions_per_seq: int
) -> MaskingPolicy:
    """Returns the policy for a tokenizer; special tokens never replace a masked token."""
    replacement_ids = np.flatnonzero(~tokenizer.is_special())
    mask_id = tokenizer.special_ids["mask"]
    return MaskingPolicy(masked_lm_prob, max_predictions_per_seq, mask_id, replacement_ids)


@dataclasses.dataclass(frozen=True)
class Words:
    """The words of a window, or of windows one after another, that may be masked.

    Attributes:
        starts: int [n], index of each word's first token among the tokens of all windows.
        lengths: int [n], number of tokens of each word.
    """

    starts: np.ndarray
    lengths: np.ndarray


def maskable_words(
    word_starts: np.ndarray, special: np.ndarray, longest: int | np.ndarray
) -> Words:
    """Returns the words of a window, or of windows one after another, that may be masked.

    A word that contains a special token, such as `[UNK]`, is left out: a student learns nothing
    from predicting it. A word with more tokens than may be masked in the window is left out too.

    Args:
        word_starts: bool [n], which of the tokens begin a word. The very first token always
            begins one. With several windows, the first token of each must be marked.
        special: bool [n], which are special.
        longest: largest number of tokens of a word; for several windows int [n], the number for
            the window of each token.
    """
    begins = word_starts.copy()
    begins[0] = True
    starts = np.flatnonzero(begins)
    lengths = np.concatenate([starts[1:], [len(begins)]]) - starts
    most = longest[starts] if isinstance(longest, np.ndarray) else longest
    allowed = (lengths <= most) & ~np.logical_or.reduceat(special, starts)
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
    count: int, rng: np.random.Generator, weights: np.ndarray | None = None
) -> np.ndarray:
    """Returns a random order of n words, int [n], drawn by weight without replacement.

    Efraimidis and Spirakis, 2006: sort by u^(1/w), largest first. This is the same as sorting by
    −log(u)/w, smallest first, where −log(u) is exponentially distributed.
    `weights` are float64 [n], above 0; with None all orders have the same probability.
    """
    if weights is None:
        return rng.permutation(count)
    return (rng.standard_exponential(count) / weights).argsort(kind="stable")


def choose_words(lengths: Sequence[int], order: np.ndarray, room: int) -> tuple[list[int], int]:
    """Returns the words that fit into `room` tokens, tried in order, and their number of tokens.

    Example: words of 2, 3 and 1 tokens, in this order, and a room of 4 tokens. Words 0 and 2
    fit, with 3 tokens.
    """
    chosen, free = [], room
    # The first words usually fill the room, so the others are rarely converted to Python numbers.
    for indices in (order[: 2 * room], order[2 * room :]):
        for index in indices.tolist():
            length = lengths[index]
            if length <= free:
                chosen.append(index)
                free -= length
                if not free:
                    return chosen, room
    return chosen, room - free


def draw_tokens(
    count: int, policy: MaskingPolicy, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the random numbers for `masked_tokens`: draws float64 [count], picks int [count]."""
    return rng.random(count), rng.integers(len(policy.replacement_ids), size=count)


def masked_tokens(
    labels: np.ndarray, policy: MaskingPolicy, draws: np.ndarray, picks: np.ndarray
) -> np.ndarray:
    """Returns the inputs at the masked positions: 80% [MASK], 10% random, 10% kept.

    Args:
        labels: int [p], the true tokens.
        policy: the ids that replace them.
        draws: float64 [p], from `draw_tokens`; decide between the three cases.
        picks: int [p], from `draw_tokens`; indices of random tokens in `policy.replacement_ids`.
    """
    replacements = policy.replacement_ids[picks]
    is_kept = draws >= 1.0 - _KEEP_PROBABILITY
    return np.where(
        draws < _MASK_PROBABILITY, policy.mask_id, np.where(is_kept, labels, replacements)
    )


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
    rngs: Iterable[np.random.Generator],
    *,
    copies: int = 1,
    token_weights: np.ndarray | None = None,
) -> MaskedWindows:
    """Masks windows, each one or several times with different masks.

    Args:
        windows: B windows.
        policy: settings of masking.
        is_special: bool [V], which token ids are special.
        rngs: a random generator for each masked window. Each is used before the next one is
            requested.
        copies: C, masked copies of each window; the first copy of all windows comes first.
        token_weights: float64 [V], the result of the function `token_weights`; None if all words
            have the same probability.

    Returns:
        R = C · B masked windows.
    """
    tokens = windows.input_ids[windows.positions]
    rooms = [policy.num_to_predict(length) for length in windows.lengths.tolist()]
    longest = np.repeat(rooms, windows.counts)
    words = maskable_words(windows.word_starts, is_special[tokens], longest)
    weights = None if token_weights is None else word_weights(words, token_weights[tokens])
    ends = np.searchsorted(words.starts, np.cumsum(windows.counts)).tolist()
    starts, lengths = [0, *ends[:-1]], words.lengths.tolist()
    own_lengths = [lengths[first:end] for first, end in zip(starts, ends, strict=True)]
    chosen, num_chosen, counts, draws = [], [], [], []
    bounds = list(zip(starts, ends, rooms, own_lengths, strict=True)) * copies
    for rng, (first, end, room, own) in zip(rngs, bounds, strict=True):
        preferred = None if weights is None else weights[first:end]
        order = word_order(end - first, rng, preferred)
        indices, count = choose_words(own, order, room)
        chosen += indices
        num_chosen.append(len(indices))
        counts.append(count)
        draws.append(draw_tokens(count, policy, rng))
    # The numbers of a copy's words follow those of the previous copy.
    firsts = np.add.outer(np.arange(copies) * len(lengths), starts).ravel()
    numbers = np.array(chosen, np.int64) + np.repeat(firsts, num_chosen)
    numbers.sort()
    copy, word = np.divmod(numbers, max(1, len(lengths)))
    indices = windows.positions[_word_tokens(words.starts[word], words.lengths[word])]
    indices += np.repeat(copy * len(windows.input_ids), words.lengths[word])
    input_ids, lengths = np.tile(windows.input_ids, copies), np.tile(windows.lengths, copies)
    labels = input_ids[indices]
    joined_draws = (np.concatenate(values) for values in zip(*draws, strict=True))
    input_ids[indices] = masked_tokens(labels, policy, *joined_draws)
    firsts = np.repeat(np.cumsum(lengths) - lengths, counts)
    return MaskedWindows(input_ids, indices - firsts, labels, np.array(counts))


def _word_tokens(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the tokens of words, one word after another, from their first tokens and lengths."""
    # The distance of each word's first token from its index in the result.
    shifts = starts - (np.cumsum(lengths) - lengths)
    return np.repeat(shifts, lengths) + np.arange(lengths.sum())


def masked_features(
    windows: Windows, masked: MaskedWindows, vocab_size: int
) -> Iterator[dict[str, bytes]]:
    """Yields the features of masked examples, without their example ids.

    Args:
        windows: B windows before masking.
        masked: C · B windows after masking.
        vocab_size: V; decides the dtype of token ids.
    """
    id_dtype = records.id_dtype(vocab_size)
    input_ids, labels = masked.input_ids.astype(id_dtype), masked.labels.astype(id_dtype)
    segments, positions = windows.segment_lengths.astype("<u2"), masked.positions.astype("<u2")
    num_segments = np.count_nonzero(segments, axis=1).tolist()
    segments = [row[:count].tobytes() for row, count in zip(segments, num_segments, strict=True)]
    copies = len(masked.counts) // len(segments)
    tokens = itertools.pairwise([0, *np.cumsum(np.tile(windows.lengths, copies)).tolist()])
    predictions = itertools.pairwise([0, *np.cumsum(masked.counts).tolist()])
    rows = zip(segments * copies, tokens, predictions, strict=True)
    for segment_lengths, token, prediction in rows:
        yield {
            records.INPUT_IDS: input_ids[slice(*token)].tobytes(),
            records.SEGMENT_LENGTHS: segment_lengths,
            records.MASKED_LM_POSITIONS: positions[slice(*prediction)].tobytes(),
            records.MASKED_LM_IDS: labels[slice(*prediction)].tobytes(),
        }
