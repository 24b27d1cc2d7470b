"""MPNet's bias of attention scores by the distance between two tokens.

Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer" (2020), for the buckets; Song et al. (2020) for one table that all layers share.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from pipeline.models.config import EncoderConfig


def distance_buckets(limit: int, buckets: int) -> np.ndarray:
    """Returns the bucket of each distance between two tokens.

    Half of the buckets are for keys after the query. Of each half, the first half is for
    one distance each; then two buckets share each doubling of the distance.

    Args:
        limit: tokens of the longest input.
        buckets: a multiple of 4.

    Returns:
        int32 [2·limit − 1]; the distance key − query has index `limit − 1 + distance`.

    Example:
        of 32 buckets, distances of 0 to −7 have 0 to 7, and those of −8 to −11 have 8.
    """
    distances = np.arange(1 - limit, limit, dtype=np.int64)
    half, exact = buckets // 2, buckets // 4
    sizes = np.abs(distances)
    # 2·log2(size / exact), whose floor is right where it is an integer.
    doublings = np.floor(np.log2(np.maximum(sizes**2 // exact**2, 1))).astype(np.int64)
    found = np.where(sizes < exact, sizes, np.minimum(exact + doublings, half - 1))
    return (found + half * (distances > 0)).astype(np.int32)


class RelativePositions(keras.layers.Layer):
    """A bias for each bucket of distances and each head, [buckets, H]."""

    def __init__(
        self, config: EncoderConfig, *, initializer: keras.Initializer, dtype: Any = None
    ) -> None:
        super().__init__(name="relative_positions", dtype=dtype)
        self.config = config
        self.initializer = initializer
        self.buckets = distance_buckets(
            config.max_input_length, config.family.relative_position_buckets
        )

    def build(self, input_shape: Any = None) -> None:
        """Makes the table; its shape comes from the configuration."""
        shape = (self.config.family.relative_position_buckets, self.config.num_attention_heads)
        self.bias = self.add_weight(
            name="bias", shape=shape, initializer=self.initializer, autocast=False
        )

    def call(self, input_ids: Any) -> Any:
        """Returns what is added to the attention scores of inputs [B, L]: [1, H, L, L]."""
        positions = ops.arange(ops.shape(input_ids)[1], dtype="int32")
        distances = ops.expand_dims(positions, 0) - ops.expand_dims(positions, 1)
        buckets = ops.take(self.buckets, distances + (self.config.max_input_length - 1), axis=0)
        # A dense gradient, as the embeddings' tables need it.
        table = ops.convert_to_tensor(self.bias) * 1.0
        bias = ops.transpose(ops.take(table, buckets, axis=0), (2, 0, 1))
        return ops.cast(ops.expand_dims(bias, 0), self.compute_dtype)
