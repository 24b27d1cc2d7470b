"""The encoder with BERT's masked-LM head, which computes only the masked positions."""

from collections.abc import Collection, Mapping
from typing import Any

import keras
from keras import ops

from data_specs.records import HEAD_STATES, HIDDEN_STATES, MASKED_LM_POSITIONS
from pipeline.models.architectures.components import (
    ACTIVATION_FUNCTIONS,
    DType,
    LayerBuilder,
    Tensor,
)
from pipeline.models.config import EncoderConfig
from pipeline.models.encoder import Encoder

LOGITS = "logits"


def gather_positions(hidden: Tensor, positions: Tensor) -> Tensor:
    """Picks the hidden states at given positions of each row.

    The product with a one-hot matrix is exact. Its gradient is also a product within each row,
    without an index into other rows. It took a hundredth of the forward pass in a measurement
    (4 layers × 256).

    Args:
        hidden: [B, L, D], finite.
        positions: int32 [B, P], each in [0, L).

    Returns:
        [B, P, D], `out[b, p] = hidden[b, positions[b, p]]`.
    """
    length = ops.shape(hidden)[1]
    one_hot = ops.equal(ops.expand_dims(positions, -1), ops.arange(length, dtype="int32"))
    return ops.matmul(ops.cast(one_hot, hidden.dtype), hidden)


def vocabulary_logits(states: Tensor, table: Tensor, bias: Tensor, *, dtype: str) -> Tensor:
    """Maps head states [..., E] to logits, float32 [..., V].

    Args:
        states: the output of the head.
        table: the output table, [V, E].
        bias: float32 [V].
        dtype: the dtype of the product.
    """
    logits = ops.matmul(ops.cast(states, dtype), ops.transpose(ops.cast(table, dtype)))
    return ops.cast(logits, "float32") + bias


class MaskedLMHead(keras.layers.Layer):
    """The dense layer, activation and normalization before the vocabulary, and the output bias.

    `decoder` is the matrix of the output layer, float32 [V, E], or None if the word embeddings
    are this matrix.

    The model itself computes the vocabulary matmul. A layer would cast its float arguments to
    the compute dtype, but the word embeddings must stay float32.
    """

    def __init__(self, config: EncoderConfig, *, seed: int, dtype: DType = None) -> None:
        super().__init__(name="head", dtype=dtype)
        self.config = config
        self.activation = ACTIVATION_FUNCTIONS[config.head_act]
        self.builder = LayerBuilder(config, self.name, seed, self.dtype_policy)
        self.transform = self.builder.dense(config.embedding_width, "transform")
        self.layer_norm = self.builder.layer_norm()

    def build(self, input_shape: Any = None) -> None:
        """Makes all variables; the shapes come from the configuration."""
        self.transform.build((None, None, self.config.hidden_size))
        self.layer_norm.build((None, None, self.config.embedding_width))
        self.bias = self.add_weight(
            name="bias", shape=(self.config.vocab_size,), initializer="zeros", autocast=False
        )
        self.decoder = None
        if not self.config.tie_word_embeddings:
            self.decoder = self.add_weight(
                name="decoder",
                shape=(self.config.vocab_size, self.config.embedding_width),
                initializer=self.builder.initializer("decoder"),
                autocast=False,
            )

    def call(self, hidden: Tensor) -> Tensor:
        """Maps [B, P, D] to [B, P, E] in the compute dtype; E is D except for ALBERT."""
        return self.layer_norm(self.activation(self.transform(hidden)))


class MaskedLM(keras.Model):
    """An encoder for masked language modeling. The constructor makes all variables.

    Args:
        config: shapes and rates.
        dtype: name of a dtype policy, for example `"mixed_bfloat16"`; None for the
            global one.
        logits_dtype: dtype of the vocabulary matmul; None for the compute dtype.
            `"float32"` keeps a teacher's logits exact under mixed precision.
        seed: the seed of the initial weights and of dropout.
        name: the model's name. Variables' paths relative to it are the names in
            `weight_names`.

    Example:
        `MaskedLM(config)(batch)` is float32 [B, P, V] for a batch with `input_ids`,
        `input_mask`, `segment_ids` [B, L] and `masked_lm_positions` [B, P].
    """

    def __init__(
        self,
        config: EncoderConfig,
        *,
        dtype: DType = None,
        logits_dtype: str | None = None,
        seed: int = 0,
        name: str = "masked_lm",
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.config = config
        policy = self.dtype_policy
        self.encoder = Encoder(config, seed=seed, dtype=policy)
        self.head = MaskedLMHead(config, seed=seed, dtype=policy)
        self.logits_dtype = self.compute_dtype if logits_dtype is None else logits_dtype
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Makes all variables; the shapes come from the configuration."""
        self.encoder.build()
        self.head.build()

    def call(self, inputs: Mapping[str, Tensor], training: bool | None = None) -> Tensor:
        """Returns the logits of `activations`, float32 [B, P, V]."""
        return self.activations(inputs, training=training)[LOGITS]

    def activations(
        self,
        inputs: Mapping[str, Tensor],
        training: bool | None = None,
        *,
        wanted: Collection[str] = (),
    ) -> dict[str, Any]:
        """Computes the logits at the masked positions, and the activations before them.

        Args:
            inputs: the inputs of `Encoder.call`, and `masked_lm_positions`, int [B, P].
                Padding slots may hold any position, for example 0. Without
                `masked_lm_positions`, logits are computed at all L positions.
            training: whether dropout is active; a frozen encoder has no dropout.
            wanted: see `Encoder.call`.

        Returns:
            `logits`, float32 [B, P, V]; `head_states`, [B, P, E], the input of
            `vocabulary_logits`; and the outputs of `Encoder.call`. A compiled program computes
            only the outputs that are used.
        """
        is_trained = self.encoder.trainable
        outputs = self.encoder(inputs, training=training and is_trained, wanted=wanted)
        if not is_trained:
            # TensorFlow would otherwise trace the gradients of the frozen encoder.
            outputs = keras.tree.map_structure(ops.stop_gradient, outputs)
        hidden = outputs[HIDDEN_STATES][-1]
        if MASKED_LM_POSITIONS in inputs:
            # The vocabulary matmul is the most expensive one, so it gets only these positions.
            positions = ops.cast(inputs[MASKED_LM_POSITIONS], "int32")
            hidden = gather_positions(hidden, positions)
        states = self.head(hidden)
        logits = self.vocabulary_logits(states, *self.output_layer())
        return {LOGITS: logits, HEAD_STATES: states, **outputs}

    def output_layer(self) -> tuple[Tensor, Tensor]:
        """Returns the output table [V, E] and bias [V], float32."""
        tied, own = self.encoder.embeddings.word_embeddings, self.head.decoder
        variable = tied if own is None else own
        table = ops.convert_to_tensor(variable)
        if not variable.trainable:
            table = ops.stop_gradient(table)
        return table, ops.convert_to_tensor(self.head.bias)

    def vocabulary_logits(self, states: Tensor, table: Tensor, bias: Tensor) -> Tensor:
        """Maps head states [..., E] to logits, float32 [..., V].

        Args:
            states: see `activations`.
            table: see `output_layer`.
            bias: see `output_layer`.
        """
        return vocabulary_logits(states, table, bias, dtype=self.logits_dtype)
