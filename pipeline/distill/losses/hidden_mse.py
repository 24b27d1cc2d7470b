"""Squared difference of hidden states, over all tokens and over masked positions."""

from collections.abc import Mapping
from typing import Any

from keras import ops

from pipeline.distill.losses.base import MASKED, TOKENS, HiddenLoss


class HiddenMSEMasked(HiddenLoss):
    """Squared difference of two hidden states at masked positions, averaged over dimensions."""

    name = "hidden_mse_masked"
    averaged_over = MASKED
    default_layer_groups = "uniform"
    projects_with_bias = True

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Any:
        return ops.mean(ops.square(teacher - student), axis=-1)


class HiddenMSE(HiddenMSEMasked):
    """Squared difference of two hidden states over tokens, averaged over dimensions.

    A loss of TinyBERT (Jiao et al., 2020) and MiniRBT (Yao et al., 2023). Both sum it over the
    embeddings' output and the layers; this loss is the mean over them.
    """

    name = "hidden_mse"
    averaged_over = TOKENS
    from_cache = HiddenMSEMasked.name
