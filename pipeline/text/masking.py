"""Masking as in BERT, whole words at a time.

Devlin et al., 2019, section 3.1: of the chosen tokens 80% become [MASK], 10% a
random token, 10% stay. Whole words as in Cui et al., 2019 (Chinese RoBERTa-wwm).
Rare tokens preferred as in Sanh et al., 2019 (DistilBERT).
"""

import dataclasses

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
    """The words of a window that may be masked.

    Attributes:
        starts: int [n], the first token of each, within the window.
        lengths: int [n], tokens of each.
    """

    starts: np.ndarray
    lengths: np.ndarray


def maskable_words(word_starts: np.ndarray, special: np.ndarray, longest: int) -> Words:
    """Returns a window's words that may be masked.

    A word with a special token in it, such as `[UNK]`, may not: there is nothing
    to learn from predicting one, and the rest of the word alone is no word. Nor
    may a word longer than all that is to be masked.

    Args:
        word_starts: bool [n], which of the window's tokens begin a word; the
            window's first token always does.
        special: bool [n], which are special.
        longest: the most tokens a word may have.
    """
    begins = word_starts.copy()
    begins[0] = True
    starts = np.flatnonzero(begins)
    lengths = np.concatenate([starts[1:], [len(begins)]]) - starts
    allowed = (lengths <= longest) & ~np.logical_or.reduceat(special, starts)
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
    bounds = np.array([words.starts, words.starts + words.lengths]).T.ravel()
    # Sums between neighbouring bounds: every other one is a word's. The 0 stands
    # behind a word that ends the window.
    sums = np.add.reduceat(np.concatenate([weights, [0.0]]), bounds)[::2]
    return sums / words.lengths


def _weighted_order(weights: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Returns a random order, as drawn one by one in proportion to weight, none twice.

    Efraimidis and Spirakis, 2006: the largest u^(1/w) first, or, which is the
    same, the smallest −log(u)/w, where −log(u) is exponentially distributed.
    """
    return np.argsort(random.standard_exponential(len(weights)) / weights, kind="stable")


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
    chosen: list[int] = []
    room = num_to_predict
    count = len(starts)
    order = random.permutation(count) if weights is None else _weighted_order(weights, random)
    for index in order.tolist():
        if lengths[index] <= room:
            room -= lengths[index]
            chosen.extend(range(starts[index], starts[index] + lengths[index]))
            if not room:
                break
    return np.array(sorted(chosen), np.int64)


def mask_tokens(
    labels: np.ndarray, policy: MaskingPolicy, random: np.random.Generator
) -> np.ndarray:
    """Returns what stands at the masked positions: 80% [MASK], 10% random, 10% kept.

    Args:
        labels: int [p], the true tokens.
        policy: the ids.
        random: decides.
    """
    draw = random.random(len(labels))
    replacements = policy.replacement_ids[
        random.integers(len(policy.replacement_ids), size=len(labels))
    ]
    kept = draw >= 1.0 - _KEEP_PROBABILITY
    return np.where(draw < _MASK_PROBABILITY, policy.mask_id, np.where(kept, labels, replacements))
