"""Squared difference of attention maps."""

from collections.abc import Mapping
from typing import Any

from keras import ops

from pipeline.distill.losses.base import AttentionLoss


class AttentionMSE(AttentionLoss):
    """Squared difference of two attention maps, averaged over heads: DistilRuBERT's fourth loss.

    Padding is ignored both as query and as key. This equals PyTorch's `MSELoss` on the elements
    that belong to real tokens.
    """

    name = "attention_mse"

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Any]) -> Any:
        return ops.mean(ops.square(teacher - student), axis=1)
