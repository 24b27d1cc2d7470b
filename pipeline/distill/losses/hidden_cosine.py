"""Cosine distance of hidden states, over all tokens and over masked positions."""

from collections.abc import Mapping
from typing import Any

from keras import ops

from pipeline.distill.losses.base import MASKED, HiddenLoss

# The smallest squared length, as in PyTorch's CosineEmbeddingLoss.
_SMALLEST_LENGTH_SQUARED = 1e-12


class HiddenCosineMasked(HiddenLoss):
    """1 − cos of two hidden states at masked positions, from 0 to 2."""

    name = "hidden_cosine_masked"
    averaged_over = MASKED

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Any:
        teacher, student = ops.cast(teacher, "float32"), ops.cast(student, "float32")
        product = ops.sum(teacher * student, axis=-1)
        lengths = [
            ops.sum(state * state, axis=-1) + _SMALLEST_LENGTH_SQUARED
            for state in (teacher, student)
        ]
        return 1.0 - product * ops.rsqrt(lengths[0] * lengths[1])


class HiddenCosine(HiddenLoss):
    """1 − cos of two hidden states over tokens: DistilBERT's third loss (Sanh et al., 2019)."""

    name = "hidden_cosine"
    from_cache = HiddenCosineMasked.name
    __call__ = HiddenCosineMasked.__call__
