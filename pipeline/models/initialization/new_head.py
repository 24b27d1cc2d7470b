"""Initial weights of a masked-LM head, for an encoder without one."""

import numpy as np

from pipeline.models.config import EncoderConfig
from pipeline.models.initialization.from_teacher import Weights
from pipeline.models.weight_names import weight_table


def new_head(config: EncoderConfig, label_counts: np.ndarray) -> Weights:
    """Returns a head that passes hidden states through and predicts frequent labels.

    The dense layer is the identity. If the embeddings have another width than the hidden
    states, the identity is cut or padded with zeros. The normalization has weights 1 and
    biases 0. The output bias is the logarithm of the labels' frequencies, with one added to
    each count.

    Args:
        config: the model's configuration; its output layer is tied to the word embeddings.
        label_counts: int [V], the number of times that each token is a label.

    Returns:
        float32 arrays by our names.
    """
    weights = {}
    for row in weight_table(config):
        scope, _, name = row.ours.rpartition("/")
        if not row.ours.startswith("head/"):
            continue
        value = np.zeros(row.shape, np.float32)
        if name == "kernel":
            value = np.eye(*row.shape, dtype=np.float32)
        elif name == "gamma":
            value = np.ones(row.shape, np.float32)
        elif scope == "head" and name == "bias":
            frequencies = (label_counts + 1.0) / (label_counts.sum() + len(label_counts))
            value = np.log(frequencies).astype(np.float32)
        weights[row.ours] = value
    return weights
