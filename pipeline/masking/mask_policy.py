"""Masking as in BERT, whole words at a time.

Devlin et al., 2019, section 3.1: of the chosen tokens 80% become [MASK], 10% a
random token, 10% stay. Whole words as in Cui et al., 2019 (Chinese RoBERTa-wwm).
Rare tokens preferred as in Sanh et al., 2019 (DistilBERT).
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

_MASK_PROBABILITY = 0.8
_KEEP_PROBABILITY = 0.1


@dataclasses.dataclass(frozen=True)
class MaskingPolicy:
    """How a window is masked.

    Attributes:
        masked_lm_prob: share of the input's tokens to mask.
        max_predictions_per_seq: at most so many.
        mask_id: `[MASK]`.
        replacement_ids: int [n], what a random token is drawn from.
    """

    masked_lm_prob: float
    max_predictions_per_seq: int
    mask_id: int
    replacement_ids: np.ndarray

    def num_to_predict(self, input_length: int) -> int:
        """Returns how many tokens of an input of this length are masked, at most."""
        wanted = max(1, round(input_length * self.masked_lm_prob))
        return min(self.max_predictions_per_seq, wanted)


@dataclasses.dataclass(frozen=True)
class Words:
    """The words of a window, or of windows one after another, that may be masked.

    Attributes:
        starts: int [n], the first token of each, among those of the window or windows.
        lengths: int [n], tokens of each.
    """

    starts: np.ndarray
    lengths: np.ndarray


def maskable_words(
    word_starts: np.ndarray, special: np.ndarray, longest: int | np.ndarray
) -> Words:
    """Returns the words of a window, or of windows one after another, that may be masked.

    A word with a special token in it, such as `[UNK]`, may not: there is nothing
    to learn from predicting one, and the rest of the word alone is no word. Nor
    may a word longer than all that is to be masked.

    Args:
        word_starts: bool [n], which of the tokens begin a word; the first always does,
            and of several windows each window's first token must.
        special: bool [n], which are special.
        longest: the most tokens a word may have; of several windows int [n], for
            the words of each token's window.
    """
    begins = word_starts.copy()
    begins[0] = True
    starts = np.flatnonzero(begins)
    lengths = np.concatenate([starts[1:], [len(begins)]]) - starts
    most = longest[starts] if isinstance(longest, np.ndarray) else longest
    allowed = (lengths <= most) & ~np.logical_or.reduceat(special, starts)
    return Words(starts[allowed], lengths[allowed])


def token_weights(counts: np.ndarray, smoothing: float) -> np.ndarray:
    """Returns how much masking prefers each token: `count ** -smoothing`, float64 [V].

    Sanh et al., 2019 (DistilBERT), with a smoothing of 0.7, after the subsampling
    of Mikolov et al., 2013. A token that was never seen counts as one seen once.

    Args:
        counts: int [V], how often each token is in the corpus.
        smoothing: 0 for no preference.
    """
    return np.maximum(counts, 1).astype(np.float64) ** -smoothing


def word_weights(words: Words, weights: np.ndarray) -> np.ndarray:
    """Returns the mean weight of each word's tokens, float64 [words].

    Args:
        words: some of a window's words.
        weights: float64 [n], of the window's tokens.
    """
    bounds = np.stack([words.starts, words.starts + words.lengths], axis=1).ravel()
    # Sums between neighbouring bounds: every other one is a word's. The 0 stands
    # behind a word that ends the window.
    sums = np.add.reduceat(np.concatenate([weights, [0.0]]), bounds)[::2]
    return sums / words.lengths


def word_order(
    count: int, random: np.random.Generator, weights: np.ndarray | None = None
) -> np.ndarray:
    """Returns a random order, as drawn one by one in proportion to weight, none twice.

    Efraimidis and Spirakis, 2006: the largest u^(1/w) first, or, which is the
    same, the smallest −log(u)/w, where −log(u) is exponentially distributed.

    Args:
        count: n.
        random: decides.
        weights: float64 [n], above 0; None for all orders alike.

    Returns:
        int [n], the numbers below n.
    """
    if weights is None:
        return random.permutation(count)
    return (random.standard_exponential(count) / weights).argsort(kind="stable")


def choose_words(lengths: Sequence[int], order: Iterable[int], room: int) -> tuple[list[int], int]:
    """Returns the words that fit, one after another, until no more do; and their tokens.

    Args:
        lengths: tokens of each word.
        order: in which they are tried.
        room: tokens, at most.

    Example: of words of 2, 3 and 1 tokens in this order, 0 and 2 fit in 4; they have 3.
    """
    chosen, left = [], room
    for index in order:
        if lengths[index] <= left:
            chosen.append(index)
            left -= lengths[index]
            if not left:
                break
    return chosen, room - left


def choose_positions(
    words: Words,
    num_to_predict: int,
    random: np.random.Generator,
    *,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Chooses whole words at random until no more fit.

    Args:
        words: the words that may be masked.
        num_to_predict: at most so many tokens.
        random: decides.
        weights: float64 [words], above 0: words are drawn in proportion to them;
            None for words that are all alike.

    Returns:
        the chosen tokens, within the window, ascending: int [p], 0 < p ≤
        `num_to_predict` where there is any word.
    """
    starts, lengths = words.starts.tolist(), words.lengths.tolist()
    order = word_order(len(starts), random, weights)
    chosen, _ = choose_words(lengths, order.tolist(), num_to_predict)
    tokens = [range(starts[word], starts[word] + lengths[word]) for word in sorted(chosen)]
    return np.array(list(itertools.chain.from_iterable(tokens)), np.int64)


def draw_tokens(
    count: int, policy: MaskingPolicy, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what decides over masked positions: float64 [count] and int [count].

    Args:
        count: masked positions.
        policy: the ids.
        random: decides.
    """
    return random.random(count), random.integers(len(policy.replacement_ids), size=count)


def masked_tokens(
    labels: np.ndarray, policy: MaskingPolicy, draws: np.ndarray, picks: np.ndarray
) -> np.ndarray:
    """Returns what stands at the masked positions: 80% [MASK], 10% random, 10% kept.

    Args:
        labels: int [p], the true tokens.
        policy: the ids.
        draws: float64 [p], from `draw_tokens`.
        picks: int [p], from there, too.
    """
    replacements = policy.replacement_ids[picks]
    kept = draws >= 1.0 - _KEEP_PROBABILITY
    return np.where(draws < _MASK_PROBABILITY, policy.mask_id, np.where(kept, labels, replacements))


def mask_tokens(
    labels: np.ndarray, policy: MaskingPolicy, random: np.random.Generator
) -> np.ndarray:
    """Draws what stands at the masked positions of a window; see `masked_tokens`.

    Args:
        labels: int [p], the true tokens.
        policy: the ids.
        random: decides.
    """
    return masked_tokens(labels, policy, *draw_tokens(len(labels), policy, random))
