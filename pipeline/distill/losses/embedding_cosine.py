"""Cosine distance of embeddings."""

from pipeline.distill.losses.base import EmbeddingLoss
from pipeline.distill.losses.hidden_cosine import HiddenCosine


class EmbeddingCosine(EmbeddingLoss):
    """1 − cos of two embeddings, from 0 to 2."""

    name = "embedding_cosine"
    __call__ = HiddenCosine.__call__
