"""Squared difference of attention scores."""

from pipeline.distill.losses.attention_mse import AttentionMSE
from pipeline.distill.losses.base import SCORES


class AttentionScoreMSE(AttentionMSE):
    """Squared difference of attention scores, averaged over heads: TinyBERT (Jiao et al., 2020).

    Scores are the scaled products of queries and keys, before the softmax and before any mask or
    bias. This loss is the mean over layers and real tokens. TinyBERT instead sums over the layers
    and counts padding as 0.
    """

    name = "attention_score_mse"
    needs = SCORES
    default_layer_groups = "skip"
