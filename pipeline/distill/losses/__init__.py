"""The losses of distillation, and the table of their names.

A new loss is a module in this package and a line in `LOSSES`. A class is imported when its
loss is first used, so that flags can be read without Keras.
"""

from collections.abc import Mapping

from pipeline.base.tables import load_entry
from pipeline.distill.losses.base import Loss

# Module and class of each loss that `--losses` accepts, in the order of reports.
LOSSES: Mapping[str, str] = {
    "soft_cross_entropy": "soft_cross_entropy:SoftCrossEntropy",
    "kl_divergence": "kl_divergence:KLDivergence",
    "probability_cosine": "probability_cosine:ProbabilityCosine",
    "masked_lm": "masked_lm:MaskedLMLoss",
    "hidden_cosine": "hidden_cosine:HiddenCosine",
    "hidden_cosine_masked": "hidden_cosine:HiddenCosineMasked",
    "hidden_mse": "hidden_mse:HiddenMSE",
    "hidden_mse_masked": "hidden_mse:HiddenMSEMasked",
    "attention_mse": "attention_mse:AttentionMSE",
    "attention_score_mse": "attention_score_mse:AttentionScoreMSE",
    "relation_kl": "relation_kl:RelationKL",
    "embedding_cosine": "embedding_cosine:EmbeddingCosine",
    "embedding_mse": "embedding_mse:EmbeddingMSE",
}


def load_loss(name: str) -> type[Loss]:
    """Returns the class of a loss.

    Args:
        name: a key of `LOSSES`.
    """
    return load_entry(__name__, LOSSES[name])
