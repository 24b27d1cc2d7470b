"""MPNet's relative position bias, which is added to attention scores.

The buckets are those of Raffel et al., "Exploring the Limits of Transfer Learning with a
Unified Text-to-Text Transformer" (2020). All layers share one table (Song et al., 2020).
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from pipeline.models.config import EncoderConfig


def distance_buckets(limit: int, buckets: int) -> np.ndarray:
    """Returns the bucket of each distance between two tokens.

    Half of the buckets are for keys after the query. Each half starts with `buckets` / 4
    buckets of one distance each. After them, two buckets cover each doubling of the distance.

    Args:
        limit: the maximum number of tokens of an input.
        buckets: the number of buckets, a multiple of 4.

    Returns:
        int32 [2·limit − 1]; the distance key − query has index `limit − 1 + distance`.

    Example:
        with 32 buckets, distances 0 to −7 have buckets 0 to 7, and −8 to −11 have bucket 8.
    """
    distances = np.arange(1 - limit, limit, dtype=np.int64)
    half, exact = buckets // 2, buckets // 4
    sizes = np.abs(distances)
    # The floor of 2·log2(size / exact), computed so that it is exact at integers.
    doublings = np.floor(np.log2(np.maximum(sizes**2 // exact**2, 1))).astype(np.int64)
    bucket = np.where(sizes < exact, sizes, np.minimum(exact + doublings, half - 1))
    return (bucket + half * (distances > 0)).astype(np.int32)


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
        """Creates the table; its shape comes from the configuration."""
        shape = (self.config.family.relative_position_buckets, self.config.num_attention_heads)
        self.bias = self.add_weight(
            name="bias", shape=shape, initializer=self.initializer, autocast=False
        )

    def call(self, input_ids: Any) -> Any:
        """Returns the bias of the attention scores, [1, H, L, L], for inputs [B, L]."""
        positions = ops.arange(ops.shape(input_ids)[1], dtype="int32")
        distances = ops.expand_dims(positions, 0) - ops.expand_dims(positions, 1)
        buckets = ops.take(self.buckets, distances + (self.config.max_input_length - 1), axis=0)
        # The product with 1.0 makes the gradient dense; see `take_rows`.
        table = ops.convert_to_tensor(self.bias) * 1.0
        bias = ops.transpose(ops.take(table, buckets, axis=0), (2, 0, 1))
        return ops.cast(ops.expand_dims(bias, 0), self.compute_dtype)
