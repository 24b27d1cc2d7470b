"""One window masked by itself, step by step: what `window_batches` does for many at once."""

import dataclasses

import numpy as np

from pipeline.masking import mask_policy
from pipeline.masking.mask_policy import MaskingPolicy, Words
from pipeline.masking.window_masking import WindowInput


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
    """Masks a window in one way.

    Args:
        window: the window.
        words: as `maskable_words` returns them.
        policy: how it is masked.
        random: decides.
        token_weights: float64 [V], how much each token is preferred, as
            `masking.token_weights` returns it; None for words that are all alike.
    """
    tokens = window.token_ids
    weights = None
    if token_weights is not None:
        weights = mask_policy.word_weights(words, token_weights[tokens])
    num_to_predict = policy.num_to_predict(len(window.input_ids))
    chosen = mask_policy.choose_positions(words, num_to_predict, random, weights=weights)
    labels, positions = tokens[chosen], window.places[chosen]
    input_ids = window.input_ids.copy()
    input_ids[positions] = mask_policy.mask_tokens(labels, policy, random)
    return MaskedWindow(input_ids, positions, labels)
