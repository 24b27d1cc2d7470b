"""ModernBERT's layers: pre-norm, rotary positions, local and global attention, gated units.

Warner et al., "Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder" (2024). Rotary
positions are from Su et al., "RoFormer" (2021), gated units from Shazeer, "GLU Variants Improve
Transformer" (2020). Shapes: B batch, L length, D hidden size, H heads.
"""

import functools
from collections.abc import Collection, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from pipeline.models.architectures.components import (
    ACTIVATION_FUNCTIONS,
    MASKED_SCORE,
    DType,
    LayerBuilder,
    Tensor,
    attend,
    projections,
    split_heads,
    take_rows,
)
from pipeline.models.config import EncoderConfig

HAS_FINAL_NORM = True


class Embeddings(keras.layers.Layer):
    """Word embeddings, normalized, [B, L, D]; positions enter in the attention layers.

    The table is a float32 variable that is never cast on access, so that the vocabulary
    matmul reads it without rounding.
    """

    def __init__(self, config: EncoderConfig, *, seed: int, dtype: DType = None) -> None:
        super().__init__(name="embeddings", dtype=dtype)
        self.config = config
        self.builder = LayerBuilder(config, self.name, seed, self.dtype_policy)
        self.layer_norm = self.builder.layer_norm()
        self.dropout = self.builder.dropout(config.embedding_dropout)

    def build(self, input_shape: Any = None) -> None:
        """Makes all variables; the shapes come from the configuration."""
        name = "word_embeddings"
        self.word_embeddings = self.add_weight(
            name=name,
            shape=(self.config.vocab_size, self.config.hidden_size),
            initializer=self.builder.initializer(name),
            autocast=False,
        )
        for layer in (self.layer_norm, self.dropout):
            layer.build((None, None, self.config.hidden_size))

    def call(self, input_ids: Tensor, segment_ids: Tensor, training: bool | None = None) -> Tensor:
        """Embeds tokens.

        Args:
            input_ids: int [B, L].
            segment_ids: ignored.
            training: whether dropout is active.

        Returns:
            [B, L, D] in the compute dtype.
        """
        del segment_ids
        hidden = self.layer_norm(take_rows(self.word_embeddings, input_ids))
        return self.dropout(ops.cast(hidden, self.compute_dtype), training=training)


def rotate(x: Tensor, theta: float) -> Tensor:
    """Rotates pairs of a head's dimensions by angles that grow with the position.

    Dimensions j and j + d/2 of d are a pair; its angle at position p is p · θ^(−2j/d).
    Angles and products are float32.

    Args:
        x: [B, H, L, d], d even.
        theta: the base θ.

    Returns:
        a tensor of the same shape and dtype.
    """
    half = x.shape[-1] // 2
    frequencies = (theta ** -(np.arange(half) / half)).astype(np.float32)
    positions = ops.arange(ops.shape(x)[2], dtype="int32")
    angles = ops.expand_dims(ops.cast(positions, "float32"), 1) * frequencies
    cos, sin = ops.cos(angles), ops.sin(angles)
    first, second = ops.split(ops.cast(x, "float32"), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return ops.cast(ops.concatenate(rotated, axis=-1), x.dtype)


class Attention(keras.layers.Layer):
    """Normalization, then self-attention with its output projection; the residual is added.

    The first layer has no normalization, because the embeddings are already normalized.
    """

    def __init__(
        self, config: EncoderConfig, *, index: int, scope: str, seed: int, dtype: DType = None
    ) -> None:
        super().__init__(name="attention", dtype=dtype)
        self.config = config
        is_global = config.is_global_layer(index)
        self.theta = config.global_rope_theta if is_global else config.local_rope_theta
        self.scale = (config.hidden_size // config.num_attention_heads) ** -0.5
        layers = LayerBuilder(config, f"{scope}/{self.name}", seed, self.dtype_policy)
        self.layer_norm = layers.layer_norm() if index else None
        self.query_key_value = layers.dense(3 * config.hidden_size, "query_key_value")
        self.projection = layers.residual_dense(config.hidden_size, "output")
        rate = config.attention_probs_dropout_prob
        self.probability_dropout = layers.dropout(rate, "probability_dropout")
        self.dropout = layers.dropout(rate)

    def build(self, input_shape: Any = None) -> None:
        """Makes all variables; the shapes come from the configuration."""
        dropouts = self.dropout, self.probability_dropout
        for layer in (self.query_key_value, self.projection, *dropouts, self.layer_norm):
            if layer is not None:
                layer.build((None, None, self.config.hidden_size))

    def call(
        self,
        hidden: Tensor,
        score_mask: Tensor,
        training: bool | None = None,
        wanted: Collection[str] = (),
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Attends within each row of the batch.

        Args:
            hidden: [B, L, D].
            score_mask: this layer's mask of `score_masks`.
            training: whether dropout is active.
            wanted: see `Encoder.call`.

        Returns:
            [B, L, D]; and the `wanted` activations, by name.
        """
        normalized = hidden if self.layer_norm is None else self.layer_norm(hidden)
        projected = ops.split(self.query_key_value(normalized), 3, axis=-1)
        query, key, value = (
            split_heads(vectors, self.config.num_attention_heads) for vectors in projected
        )
        query, key = rotate(query * self.scale, self.theta), rotate(key, self.theta)
        dropout = functools.partial(self.probability_dropout, training=training)
        context, activations = attend(query, key, value, score_mask, dropout, wanted)
        activations |= projections(wanted, *projected)
        output = self.dropout(self.projection(context), training=training)
        return hidden + output, activations


class FeedForward(keras.layers.Layer):
    """Normalization, then a gated unit and a dense layer; the residual is added."""

    def __init__(
        self, config: EncoderConfig, *, scope: str, seed: int, dtype: DType = None
    ) -> None:
        super().__init__(name="feed_forward", dtype=dtype)
        self.config = config
        self.activation = ACTIVATION_FUNCTIONS[config.hidden_act]
        layers = LayerBuilder(config, f"{scope}/{self.name}", seed, self.dtype_policy)
        self.layer_norm = layers.layer_norm()
        # The first half is activated, then multiplied with the second half.
        self.intermediate = layers.dense(2 * config.intermediate_size, "intermediate")
        self.projection = layers.residual_dense(config.hidden_size, "output")
        self.dropout = layers.dropout(config.hidden_dropout_prob)

    def build(self, input_shape: Any = None) -> None:
        """Makes all variables; the shapes come from the configuration."""
        self.projection.build((None, None, self.config.intermediate_size))
        for layer in (self.layer_norm, self.intermediate, self.dropout):
            layer.build((None, None, self.config.hidden_size))

    def call(self, hidden: Tensor, training: bool | None = None) -> Tensor:
        """Maps [B, L, D] to [B, L, D], each position independently."""
        activated, gate = ops.split(self.intermediate(self.layer_norm(hidden)), 2, axis=-1)
        inner = self.dropout(self.activation(activated) * gate, training=training)
        return hidden + self.projection(inner)


def score_masks(config: EncoderConfig, padding: Tensor) -> Sequence[Tensor]:
    """Returns the mask that each layer adds to its attention scores; see `bert.score_masks`.

    In a local layer a token attends to tokens at most half a window away.
    """
    positions = ops.arange(ops.shape(padding)[-1], dtype="int32")
    distances = ops.abs(ops.expand_dims(positions, 0) - ops.expand_dims(positions, 1))
    outside = ops.cast(distances > config.local_attention // 2, padding.dtype) * MASKED_SCORE
    # The masks are combined by their minimum, because their sum with a score would overflow
    # float16.
    local = ops.minimum(padding, outside)
    layers = range(config.num_hidden_layers)
    return [padding if config.is_global_layer(index) else local for index in layers]
