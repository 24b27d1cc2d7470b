"""Squared difference of embeddings."""

from pipeline.distill.losses.base import EmbeddingLoss
from pipeline.distill.losses.hidden_mse import HiddenMSE


class EmbeddingMSE(EmbeddingLoss):
    """Squared difference of two embeddings, averaged over dimensions.

    Reimers and Gurevych, "Making Monolingual Sentence Embeddings Multilingual using Knowledge
    Distillation" (2020).
    """

    name = "embedding_mse"
    __call__ = HiddenMSE.__call__
