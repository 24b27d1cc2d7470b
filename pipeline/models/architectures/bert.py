"""BERT's layers: summed embeddings and post-norm transformer layers.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding" (2019). Shapes: B batch, L length, D hidden size, H heads.
"""

import functools
from collections.abc import Collection, Sequence
from typing import Any

import keras
from keras import ops

from pipeline.models.architectures.components import (
    ACTIVATION_FUNCTIONS,
    DType,
    LayerBuilder,
    Tensor,
    attend,
    projections,
    split_heads,
    take_rows,
)
from pipeline.models.config import EncoderConfig

HAS_FINAL_NORM = False


class Embeddings(keras.layers.Layer):
    """Sum of word, position and segment embeddings, normalized, [B, L, D].

    The embeddings of ALBERT and ELECTRA may have another width, and are then projected to D.

    The three tables are float32 variables that are never cast on access, so that
    the vocabulary matmul reads the word embeddings without rounding.
    """

    def __init__(self, config: EncoderConfig, *, seed: int, dtype: DType = None) -> None:
        super().__init__(name="embeddings", dtype=dtype)
        self.config = config
        self.builder = LayerBuilder(config, self.name, seed, self.dtype_policy)
        self.layer_norm = self.builder.layer_norm()
        self.dropout = self.builder.dropout(config.hidden_dropout_prob)
        self.projection = None
        if config.has_projection:
            self.projection = self.builder.dense(config.hidden_size, "projection")

    def build(self, input_shape: Any = None) -> None:
        """Makes all variables; the shapes come from the configuration."""
        self.word_embeddings = self._table("word_embeddings", self.config.vocab_size)
        self.position_embeddings = self._table(
            "position_embeddings", self.config.max_position_embeddings
        )
        if self.config.type_vocab_size:
            self.segment_embeddings = self._table("segment_embeddings", self.config.type_vocab_size)
        for layer in (self.layer_norm, self.dropout, self.projection):
            if layer is not None:
                layer.build((None, None, self.config.embedding_width))

    def _table(self, name: str, rows: int) -> keras.Variable:
        return self.add_weight(
            name=name,
            shape=(rows, self.config.embedding_width),
            initializer=self.builder.initializer(name),
            autocast=False,
        )

    def call(self, input_ids: Tensor, segment_ids: Tensor, training: bool | None = None) -> Tensor:
        """Embeds tokens.

        Args:
            input_ids: int [B, L].
            segment_ids: int [B, L].
            training: whether dropout is active.

        Returns:
            [B, L, D] in the compute dtype.
        """
        length = ops.shape(input_ids)[1]
        words = take_rows(self.word_embeddings, input_ids)
        if self.config.type_vocab_size:
            words = words + take_rows(self.segment_embeddings, segment_ids)
        first = self.config.position_offset
        positions = ops.convert_to_tensor(self.position_embeddings)[first : first + length]
        hidden = self.layer_norm(words + ops.expand_dims(positions, 0))
        hidden = self.dropout(ops.cast(hidden, self.compute_dtype), training=training)
        return hidden if self.projection is None else self.projection(hidden)


class Attention(keras.layers.Layer):
    """Self-attention with its output projection, residual and normalization."""

    def __init__(
        self, config: EncoderConfig, *, index: int, scope: str, seed: int, dtype: DType = None
    ) -> None:
        del index
        super().__init__(name="attention", dtype=dtype)
        self.config = config
        self.scale = (config.hidden_size // config.num_attention_heads) ** -0.5
        layers = LayerBuilder(config, f"{scope}/{self.name}", seed, self.dtype_policy)
        self.query, self.key, self.value, self.projection = (
            layers.dense(config.hidden_size, name) for name in ("query", "key", "value", "output")
        )
        self.probability_dropout = layers.dropout(
            config.attention_probs_dropout_prob, "probability_dropout"
        )
        self.dropout = layers.dropout(config.hidden_dropout_prob)
        self.layer_norm = layers.layer_norm()

    def build(self, input_shape: Any = None) -> None:
        """Makes all variables; the shapes come from the configuration."""
        projections = self.query, self.key, self.value, self.projection
        dropouts = self.dropout, self.probability_dropout
        for layer in (*projections, *dropouts, self.layer_norm):
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
            score_mask: [B, 1, 1, L], 0 at tokens and `MASKED_SCORE` at padding; for MPNet
                [B, H, L, L], including the bias.
            training: whether dropout is active.
            wanted: see `Encoder.call`.

        Returns:
            [B, L, D]; and the `wanted` activations, by name.
        """
        heads = self.config.num_attention_heads
        queries, keys, values = self.query(hidden), self.key(hidden), self.value(hidden)
        query = split_heads(queries * self.scale, heads)
        key, value = split_heads(keys, heads), split_heads(values, heads)
        dropout = functools.partial(self.probability_dropout, training=training)
        context, activations = attend(query, key, value, score_mask, dropout, wanted)
        activations |= projections(wanted, queries, keys, values)
        output = self.projection(context)
        return self.layer_norm(hidden + self.dropout(output, training=training)), activations


class FeedForward(keras.layers.Layer):
    """The two dense layers after attention, with residual and normalization."""

    def __init__(
        self, config: EncoderConfig, *, scope: str, seed: int, dtype: DType = None
    ) -> None:
        super().__init__(name="feed_forward", dtype=dtype)
        self.config = config
        self.activation = ACTIVATION_FUNCTIONS[config.hidden_act]
        layers = LayerBuilder(config, f"{scope}/{self.name}", seed, self.dtype_policy)
        self.intermediate = layers.dense(config.intermediate_size, "intermediate")
        self.projection = layers.dense(config.hidden_size, "output")
        self.dropout = layers.dropout(config.hidden_dropout_prob)
        self.layer_norm = layers.layer_norm()

    def build(self, input_shape: Any = None) -> None:
        """Makes all variables; the shapes come from the configuration."""
        self.projection.build((None, None, self.config.intermediate_size))
        for layer in (self.intermediate, self.dropout, self.layer_norm):
            layer.build((None, None, self.config.hidden_size))

    def call(self, hidden: Tensor, training: bool | None = None) -> Tensor:
        """Maps [B, L, D] to [B, L, D], each position independently."""
        output = self.projection(self.activation(self.intermediate(hidden)))
        return self.layer_norm(hidden + self.dropout(output, training=training))


def score_masks(config: EncoderConfig, padding: Tensor) -> Sequence[Tensor]:
    """Returns the mask that each layer adds to its attention scores.

    Args:
        config: the model's configuration.
        padding: 0 at tokens and `MASKED_SCORE` at padding, [B, 1, 1, L]. With a bias, any
            shape that broadcasts to [B, H, L, L].

    Returns:
        N tensors that broadcast to [B, H, L, L].
    """
    return [padding] * config.num_hidden_layers
