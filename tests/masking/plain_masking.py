"""Reference implementation of masking for a single window; `masks` handles many at once."""

import dataclasses
import itertools

import numpy as np

from pipeline.masking import masks
from pipeline.masking.masks import MaskingPolicy, Words
from pipeline.masking.windows import WindowInput


@dataclasses.dataclass(frozen=True)
class MaskedWindow:
    """A window after masking.

    Attributes:
        input_ids: int [L].
        positions: int [p], the masked positions in the input, ascending.
        labels: int [p], the true tokens there.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray


def mask_window(
    window: WindowInput,
    words: Words,
    policy: MaskingPolicy,
    random: np.random.Generator,
    *,
    token_weights: np.ndarray | None = None,
) -> MaskedWindow:
    """Masks a window once, with words drawn uniformly or by `masks.token_weights`."""
    tokens = window.token_ids
    weights = None
    if token_weights is not None:
        weights = masks.word_weights(words, token_weights[tokens])
    num_to_predict = policy.num_to_predict(len(window.input_ids))
    chosen = choose_positions(words, num_to_predict, random, weights=weights)
    labels, positions = tokens[chosen], window.positions[chosen]
    input_ids = window.input_ids.copy()
    input_ids[positions] = mask_tokens(labels, policy, random)
    return MaskedWindow(input_ids, positions, labels)


def window_words(window: WindowInput, policy: MaskingPolicy, is_special: np.ndarray) -> Words:
    """Returns the words of a window that may be masked; `is_special` is bool [V]."""
    longest = policy.num_to_predict(len(window.input_ids))
    return masks.maskable_words(window.word_starts, is_special[window.token_ids], longest)


def choose_positions(
    words: Words,
    num_to_predict: int,
    random: np.random.Generator,
    *,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Chooses whole words at random, uniformly or in proportion to weights, until no more fit.

    Returns the indices of the chosen tokens within the window, ascending: int [p]. If there is any
    word, 0 < p ≤ `num_to_predict`.
    """
    starts, lengths = words.starts.tolist(), words.lengths.tolist()
    order = masks.word_order(len(starts), random, weights)
    chosen, _ = masks.choose_words(lengths, order, num_to_predict)
    tokens = [range(starts[word], starts[word] + lengths[word]) for word in sorted(chosen)]
    return np.array(list(itertools.chain.from_iterable(tokens)), np.int64)


def mask_tokens(
    labels: np.ndarray, policy: MaskingPolicy, random: np.random.Generator
) -> np.ndarray:
    """Draws the input tokens at the masked positions of a window; see `masked_tokens`."""
    return masks.masked_tokens(labels, policy, *masks.draw_tokens(len(labels), policy, random))
