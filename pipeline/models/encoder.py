"""BERT's encoder in `keras.ops`: embeddings and post-norm transformer layers.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding" (2019). Shapes: B batch, L length, D hidden size, H heads, N layers.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from data_specs.records import HIDDEN_STATES, INPUT_IDS, INPUT_MASK, SEGMENT_IDS
from pipeline.base.seeding import hash64
from pipeline.models.config import EncoderConfig
from pipeline.models.relative_positions import RelativePositions

Tensor = Any
# What an encoder gives beside its hidden states.
ATTENTIONS = "attentions"
DType = str | keras.DTypePolicy | None

# Added to the scores of padding. Its exponential is 0 in every dtype and, unlike
# -1e9, it fits float16; a row of nothing but padding becomes uniform, not NaN.
MASKED_SCORE = -30_000.0


def _gelu(x: Tensor) -> Tensor:
    # Written with erf because ONNX has no Erfc, into which libraries' own GELU is
    # often rewritten.
    return 0.5 * x * (1.0 + ops.erf(x * 0.7071067811865476))


def _gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + ops.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": ops.relu,
}


@dataclasses.dataclass(frozen=True)
class LayerParts:
    """Makes the parts of one layer, each with random numbers of its own.

    Attributes:
        config: the model's.
        scope: the layer's name within the model.
        seed: the model's seed.
        dtype: of the layer; normalisation computes in float32 by itself.
    """

    config: EncoderConfig
    scope: str
    seed: int
    dtype: DType

    def initializer(self, name: str) -> keras.Initializer:
        """Returns BERT's initial distribution of weights, a truncated normal."""
        seed = self._seed("initial weights", name)
        return keras.initializers.TruncatedNormal(stddev=self.config.initializer_range, seed=seed)

    def dense(self, size: int, name: str) -> keras.layers.Dense:
        """Returns a dense layer [..., any] → [..., size]."""
        initializer = self.initializer(name)
        return keras.layers.Dense(size, kernel_initializer=initializer, name=name, dtype=self.dtype)

    def layer_norm(self) -> keras.layers.LayerNormalization:
        """Returns a normalisation over the last axis."""
        epsilon = self.config.layer_norm_eps
        return keras.layers.LayerNormalization(epsilon=epsilon, name="layer_norm", dtype=self.dtype)

    def dropout(self, rate: float, name: str = "dropout") -> keras.layers.Dropout:
        """Returns a dropout layer."""
        seed = self._seed("dropout", name)
        return keras.layers.Dropout(rate, seed=seed, name=name, dtype=self.dtype)

    def _seed(self, purpose: str, name: str) -> int:
        return hash64(self.seed, purpose, f"{self.scope}/{name}") % 2**31


class Embeddings(keras.layers.Layer):
    """Sum of word, position and segment embeddings, normalised, [B, L, D].

    ALBERT's and ELECTRA's may have a width of their own, and are projected to D.

    The three tables are float32 variables that are never cast on access, so that
    the vocabulary matmul can read the word embeddings exactly.
    """

    def __init__(self, config: EncoderConfig, *, seed: int, dtype: DType = None) -> None:
        super().__init__(name="embeddings", dtype=dtype)
        self.config = config
        self.parts = LayerParts(config, self.name, seed, self.dtype_policy)
        self.layer_norm = self.parts.layer_norm()
        self.dropout = self.parts.dropout(config.hidden_dropout_prob)
        self.projection = None
        if config.has_projection:
            self.projection = self.parts.dense(config.hidden_size, "projection")

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
            initializer=self.parts.initializer(name),
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
        # The product with 1.0 makes the gradient dense. Taking rows of the variable
        # itself gives TensorFlow a sparse gradient in which a repeated id has several
        # rows that Adam and gradient clipping do not merge. Rows are summed in
        # float32 both ways: a frequent token's gradient has thousands of addends.
        words = ops.take(ops.convert_to_tensor(self.word_embeddings) * 1.0, input_ids, axis=0)
        if self.config.type_vocab_size:
            table = ops.convert_to_tensor(self.segment_embeddings) * 1.0
            words = words + ops.take(table, segment_ids, axis=0)
        first = self.config.position_offset
        positions = ops.convert_to_tensor(self.position_embeddings)[first : first + length]
        hidden = self.layer_norm(words + ops.expand_dims(positions, 0))
        hidden = self.dropout(ops.cast(hidden, self.compute_dtype), training=training)
        return hidden if self.projection is None else self.projection(hidden)


class Attention(keras.layers.Layer):
    """Self-attention with its output projection, residual and normalisation."""

    def __init__(
        self, config: EncoderConfig, *, scope: str, seed: int, dtype: DType = None
    ) -> None:
        super().__init__(name="attention", dtype=dtype)
        self.config = config
        self.head_size = config.hidden_size // config.num_attention_heads
        self.scale = self.head_size**-0.5
        parts = LayerParts(config, f"{scope}/{self.name}", seed, self.dtype_policy)
        self.query, self.key, self.value, self.projection = (
            parts.dense(config.hidden_size, name) for name in ("query", "key", "value", "output")
        )
        self.probability_dropout = parts.dropout(
            config.attention_probs_dropout_prob, "probability_dropout"
        )
        self.dropout = parts.dropout(config.hidden_dropout_prob)
        self.layer_norm = parts.layer_norm()

    def build(self, input_shape: Any = None) -> None:
        """Makes all variables; the shapes come from the configuration."""
        projections = self.query, self.key, self.value, self.projection
        dropouts = self.dropout, self.probability_dropout
        for layer in (*projections, *dropouts, self.layer_norm):
            layer.build((None, None, self.config.hidden_size))

    def _split_heads(self, x: Tensor) -> Tensor:
        batch, length = ops.shape(x)[:2]
        x = ops.reshape(x, (batch, length, self.config.num_attention_heads, self.head_size))
        return ops.transpose(x, (0, 2, 1, 3))

    def call(
        self, hidden: Tensor, score_mask: Tensor, training: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        """Attends within each row of the batch.

        Args:
            hidden: [B, L, D].
            score_mask: [B, 1, 1, L], 0 at tokens and `MASKED_SCORE` at padding; MPNet's is
                [B, H, L, L], with its bias.
            training: whether dropout is active.

        Returns:
            [B, L, D]; and the attention map float32 [B, H, L, L], each query's
            probabilities over the keys, before dropout.
        """
        query = self._split_heads(self.query(hidden) * self.scale)
        key = self._split_heads(self.key(hidden))
        value = self._split_heads(self.value(hidden))
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) + score_mask
        attention_map = ops.softmax(ops.cast(scores, "float32"))
        probabilities = ops.cast(attention_map, self.compute_dtype)
        probabilities = self.probability_dropout(probabilities, training=training)
        context = ops.transpose(ops.matmul(probabilities, value), (0, 2, 1, 3))
        output = self.projection(ops.reshape(context, ops.shape(hidden)))
        return self.layer_norm(hidden + self.dropout(output, training=training)), attention_map


class FeedForward(keras.layers.Layer):
    """The two dense layers after attention, with residual and normalisation."""

    def __init__(
        self, config: EncoderConfig, *, scope: str, seed: int, dtype: DType = None
    ) -> None:
        super().__init__(name="feed_forward", dtype=dtype)
        self.config = config
        self.activation = ACTIVATION_FUNCTIONS[config.hidden_act]
        parts = LayerParts(config, f"{scope}/{self.name}", seed, self.dtype_policy)
        self.intermediate = parts.dense(config.intermediate_size, "intermediate")
        self.projection = parts.dense(config.hidden_size, "output")
        self.dropout = parts.dropout(config.hidden_dropout_prob)
        self.layer_norm = parts.layer_norm()

    def build(self, input_shape: Any = None) -> None:
        """Makes all variables; the shapes come from the configuration."""
        self.projection.build((None, None, self.config.intermediate_size))
        for layer in (self.intermediate, self.dropout, self.layer_norm):
            layer.build((None, None, self.config.hidden_size))

    def call(self, hidden: Tensor, training: bool | None = None) -> Tensor:
        """Maps [B, L, D] to [B, L, D], each position for itself."""
        output = self.projection(self.activation(self.intermediate(hidden)))
        return self.layer_norm(hidden + self.dropout(output, training=training))


class EncoderLayer(keras.layers.Layer):
    """One transformer layer, [B, L, D] → [B, L, D]."""

    def __init__(
        self, config: EncoderConfig, *, index: int, seed: int, dtype: DType = None
    ) -> None:
        super().__init__(name=f"layer_{index}", dtype=dtype)
        policy = self.dtype_policy
        self.attention = Attention(config, scope=self.name, seed=seed, dtype=policy)
        self.feed_forward = FeedForward(config, scope=self.name, seed=seed, dtype=policy)

    def build(self, input_shape: Any = None) -> None:
        """Makes all variables; the shapes come from the configuration."""
        self.attention.build(input_shape)
        self.feed_forward.build(input_shape)

    def call(
        self, hidden: Tensor, score_mask: Tensor, training: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        """Applies attention, then the feed-forward block; see `Attention.call`."""
        hidden, attention_map = self.attention(hidden, score_mask, training=training)
        return self.feed_forward(hidden, training=training), attention_map


def _recomputed(layer: EncoderLayer, hidden: Tensor, score_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Applies a layer in training; its gradient computes it once more.

    Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016). The layer is
    called as a function of its weights and of its dropouts' seeds, which come back
    moved on: both times it draws the same, and the next call draws anew.
    """
    # Copies: a variable of TensorFlow would be read again, after it was moved on.
    fixed = [ops.copy(variable.value) for variable in layer.non_trainable_variables]

    def function(trainable: list[Tensor], hidden: Tensor, score_mask: Tensor) -> Any:
        return layer.stateless_call(trainable, fixed, hidden, score_mask, training=True)

    trainable = [variable.value for variable in layer.trainable_variables]
    outputs, after = keras.remat(function)(trainable, hidden, score_mask)
    for variable, value in zip(layer.non_trainable_variables, after, strict=True):
        variable.assign(value)
    return outputs


class Encoder(keras.layers.Layer):
    """BERT without its head and without its pooler.

    Args:
        config: shapes and rates.
        seed: of the initial weights and of dropout.
        dtype: a dtype policy or its name; None for the global one.
        name: first part of the variables' paths.

    Attributes:
        recompute_activations: whether training keeps only what goes from layer to
            layer and computes the rest of a layer once more for its gradient. Set
            it before the first call.
    """

    def __init__(
        self, config: EncoderConfig, *, seed: int = 0, dtype: DType = None, name: str = "encoder"
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.config = config
        self.recompute_activations = False
        policy = self.dtype_policy
        self.embeddings = Embeddings(config, seed=seed, dtype=policy)
        self.relative_positions = None
        if config.family.relative_position_buckets:
            parts = LayerParts(config, self.name, seed, policy)
            initializer = parts.initializer("relative_positions")
            self.relative_positions = RelativePositions(
                config, initializer=initializer, dtype=policy
            )
        self.encoder_layers = [
            EncoderLayer(config, index=index, seed=seed, dtype=policy)
            for index in range(config.num_distinct_layers)
        ]

    def build(self, input_shape: Any = None) -> None:
        """Makes all variables; the shapes come from the configuration."""
        self.embeddings.build()
        if self.relative_positions is not None:
            self.relative_positions.build()
        for layer in self.encoder_layers:
            layer.build()

    def call(
        self, inputs: Mapping[str, Tensor], training: bool | None = None
    ) -> dict[str, list[Tensor]]:
        """Encodes a batch.

        Args:
            inputs: `input_ids`, `input_mask` (1 at tokens, 0 at padding) and
                `segment_ids`, int [B, L] each; other entries are left alone. L is
                at most `config.max_input_length`.
            training: whether dropout is active.

        Returns:
            `hidden_states`: all N + 1, [B, L, D] in the compute dtype, the
            embeddings' output first; `attentions`: N maps, float32 [B, H, L, L].

        Raises:
            ValueError: L is known and exceeds `config.max_input_length`.
        """
        input_ids = ops.cast(inputs[INPUT_IDS], "int32")
        length, limit = input_ids.shape[1], self.config.max_input_length
        if length is not None and length > limit:
            expected = f"at most {limit} tokens (max_position_embeddings)"
            raise ValueError(f"{INPUT_IDS}: expected {expected}, received {length}")
        mask = ops.cast(inputs[INPUT_MASK], self.compute_dtype)
        score_mask = (1.0 - ops.expand_dims(mask, (1, 2))) * MASKED_SCORE
        if self.relative_positions is not None:
            score_mask = score_mask + self.relative_positions(input_ids)
        segment_ids = ops.cast(inputs[SEGMENT_IDS], "int32")
        states = [self.embeddings(input_ids, segment_ids, training=training)]
        attentions = []
        for index in range(self.config.num_hidden_layers):
            layer = self.encoder_layers[index % len(self.encoder_layers)]
            if training and self.recompute_activations:
                hidden, attention_map = _recomputed(layer, states[-1], score_mask)
            else:
                hidden, attention_map = layer(states[-1], score_mask, training=training)
            states.append(hidden)
            attentions.append(attention_map)
        return {HIDDEN_STATES: states, ATTENTIONS: attentions}
