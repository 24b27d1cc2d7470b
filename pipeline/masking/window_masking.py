"""One window: as an input and, unmasked, as a record; `window_batches` masks many at once."""

import dataclasses

import numpy as np

from data_specs import records
from pipeline.masking import mask_policy
from pipeline.masking.mask_policy import MaskingPolicy, Words
from pipeline.tokenizers.tokens import Tokenizer


@dataclasses.dataclass(frozen=True)
class WindowInput:
    """A window with its special tokens, not masked.

    Attributes:
        input_ids: int [L], with `[CLS]` and `[SEP]`.
        segment_lengths: int [1 or 2], with `[CLS]` and `[SEP]`.
        places: int [n], the position in the input of each token of the window.
        word_starts: bool [n], which tokens of the window begin a word.
    """

    input_ids: np.ndarray
    segment_lengths: np.ndarray
    places: np.ndarray
    word_starts: np.ndarray

    @property
    def token_ids(self) -> np.ndarray:
        """The window's own tokens, int [n]."""
        return self.input_ids[self.places]


def masking_policy(
    tokenizer: Tokenizer, *, masked_lm_prob: float, max_predictions_per_seq: int
) -> MaskingPolicy:
    """Returns how windows of a tokenizer's tokens are masked.

    Args:
        tokenizer: its special tokens never stand in for a masked one.
        masked_lm_prob: see `MaskingPolicy`.
        max_predictions_per_seq: see `MaskingPolicy`.
    """
    return MaskingPolicy(
        masked_lm_prob=masked_lm_prob,
        max_predictions_per_seq=max_predictions_per_seq,
        mask_id=tokenizer.special_ids["mask"],
        replacement_ids=np.flatnonzero(~tokenizer.is_special()),
    )


def maskable_words(window: WindowInput, policy: MaskingPolicy, is_special: np.ndarray) -> Words:
    """Returns the words of a window that may be masked.

    Args:
        window: the window.
        policy: says how long a word may be.
        is_special: bool [V].
    """
    longest = policy.num_to_predict(len(window.input_ids))
    return mask_policy.maskable_words(window.word_starts, is_special[window.token_ids], longest)


def window_features(window: WindowInput, id_dtype: np.dtype) -> dict[str, bytes]:
    """Returns the features of an unmasked window, but for its id.

    Args:
        window: the window.
        id_dtype: of token ids.
    """
    return {
        records.INPUT_IDS: window.input_ids.astype(id_dtype).tobytes(),
        records.SEGMENT_LENGTHS: window.segment_lengths.astype("<u2").tobytes(),
        records.WORD_STARTS: window.places[window.word_starts].astype("<u2").tobytes(),
    }
