"""The architectures of encoders: one module each, named by `Family.architecture`.

A module has the layers `Embeddings`, `Attention` and `FeedForward`, and the function
`score_masks`. `HAS_FINAL_NORM` is whether the last hidden state is normalized. The modules
import Keras.
"""

from collections.abc import Mapping
from types import ModuleType

from pipeline.models.architectures import bert, modernbert

ARCHITECTURES: Mapping[str, ModuleType] = {"bert": bert, "modernbert": modernbert}
