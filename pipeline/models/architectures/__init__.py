"""The architectures of encoders: one module each, named by `Family.architecture`.

A module has the layers `Embeddings`, `Attention` and `FeedForward`, the function `score_masks`,
and `HAS_FINAL_NORM`, whether the last hidden state is normalised. It imports Keras.
"""

from collections.abc import Mapping
from types import ModuleType

from pipeline.models.architectures import bert, modernbert

ARCHITECTURES: Mapping[str, ModuleType] = {"bert": bert, "modernbert": modernbert}
