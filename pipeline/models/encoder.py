"""An encoder in `keras.ops`: the embeddings and the transformer layers of its architecture.

Shapes: B batch, L length, D hidden size, H heads, N layers.
"""

from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

import keras
from keras import ops

from data_specs.records import HIDDEN_STATES, INPUT_IDS, INPUT_MASK, SEGMENT_IDS
from pipeline.models.architectures import ARCHITECTURES
from pipeline.models.architectures.parts import MASKED_SCORE, DType, LayerParts, Tensor
from pipeline.models.config import EncoderConfig
from pipeline.models.relative_positions import RelativePositions


def _recomputed(
    layer: keras.layers.Layer, hidden: Tensor, score_mask: Tensor, wanted: Collection[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Applies a layer in training; its gradient computes it once more.

    Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016). The layer is
    called as a function of its weights and of its dropouts' seeds, which come back
    moved on: both times it draws the same, and the next call draws anew.
    """
    # Copies: a variable of TensorFlow would be read again, after it was moved on.
    fixed = [ops.copy(variable.value) for variable in layer.non_trainable_variables]

    def function(trainable: list[Tensor], hidden: Tensor, score_mask: Tensor) -> Any:
        return layer.stateless_call(
            trainable, fixed, hidden, score_mask, training=True, wanted=wanted
        )

    trainable = [variable.value for variable in layer.trainable_variables]
    outputs, after = keras.remat(function)(trainable, hidden, score_mask)
    for variable, value in zip(layer.non_trainable_variables, after, strict=True):
        variable.assign(value)
    return outputs


class EncoderLayer(keras.layers.Layer):
    """One transformer layer of an architecture, [B, L, D] → [B, L, D]."""

    def __init__(
        self,
        architecture: ModuleType,
        config: EncoderConfig,
        *,
        index: int,
        seed: int,
        dtype: DType = None,
    ) -> None:
        super().__init__(name=f"layer_{index}", dtype=dtype)
        shared = {"scope": self.name, "seed": seed, "dtype": self.dtype_policy}
        self.attention = architecture.Attention(config, index=index, **shared)
        self.feed_forward = architecture.FeedForward(config, **shared)

    def build(self, input_shape: Any = None) -> None:
        """Makes all variables; the shapes come from the configuration."""
        self.attention.build(input_shape)
        self.feed_forward.build(input_shape)

    def call(
        self,
        hidden: Tensor,
        score_mask: Tensor,
        training: bool | None = None,
        wanted: Collection[str] = (),
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Applies attention, then the feed-forward block.

        Returns:
            [B, L, D]; and what is wanted of the attention, by name.
        """
        hidden, found = self.attention(hidden, score_mask, training=training, wanted=wanted)
        return self.feed_forward(hidden, training=training), found


class Encoder(keras.layers.Layer):
    """A model without its head and without its pooler.

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
        self._architecture = ARCHITECTURES[config.family.architecture]
        policy = self.dtype_policy
        self.embeddings = self._architecture.Embeddings(config, seed=seed, dtype=policy)
        self.relative_positions = None
        if config.family.relative_position_buckets:
            parts = LayerParts(config, self.name, seed, policy)
            initializer = parts.initializer("relative_positions")
            self.relative_positions = RelativePositions(
                config, initializer=initializer, dtype=policy
            )
        self.encoder_layers = [
            EncoderLayer(self._architecture, config, index=index, seed=seed, dtype=policy)
            for index in range(config.num_distinct_layers)
        ]
        self.layer_norm = None
        if self._architecture.HAS_FINAL_NORM:
            self.layer_norm = LayerParts(config, self.name, seed, policy).layer_norm()

    def build(self, input_shape: Any = None) -> None:
        """Makes all variables; the shapes come from the configuration."""
        self.embeddings.build()
        if self.relative_positions is not None:
            self.relative_positions.build()
        for layer in self.encoder_layers:
            layer.build()
        if self.layer_norm is not None:
            self.layer_norm.build((None, None, self.config.hidden_size))

    def call(
        self,
        inputs: Mapping[str, Tensor],
        training: bool | None = None,
        wanted: Collection[str] = (),
    ) -> dict[str, list[Tensor]]:
        """Encodes a batch.

        Args:
            inputs: `input_ids`, `input_mask` (1 at tokens, 0 at padding) and
                `segment_ids`, int [B, L] each; other entries are left alone. L is
                at most `config.max_input_length`.
            training: whether dropout is active.
            wanted: what is returned of each layer's attention, of `ATTENTIONS`,
                `ATTENTION_SCORES` and `QUERIES_KEYS_VALUES` of `architectures.parts`.

        Returns:
            `hidden_states`: all N + 1, [B, L, D] in the compute dtype, the embeddings'
            output first; the last is normalised where the architecture has a final
            normalisation. What is wanted, by name: N tensors each.

        Raises:
            ValueError: L is known and exceeds `config.max_input_length`.
        """
        input_ids = ops.cast(inputs[INPUT_IDS], "int32")
        length, limit = input_ids.shape[1], self.config.max_input_length
        if length is not None and length > limit:
            expected = f"at most {limit} tokens (max_position_embeddings)"
            raise ValueError(f"{INPUT_IDS}: expected {expected}, received {length}")
        mask = ops.cast(inputs[INPUT_MASK], self.compute_dtype)
        padding = (1.0 - ops.expand_dims(mask, (1, 2))) * MASKED_SCORE
        if self.relative_positions is not None:
            padding = padding + self.relative_positions(input_ids)
        segment_ids = ops.cast(inputs[SEGMENT_IDS], "int32")
        states = [self.embeddings(input_ids, segment_ids, training=training)]
        found: dict[str, list[Tensor]] = {name: [] for name in wanted}
        for index, score_mask in enumerate(self._architecture.score_masks(self.config, padding)):
            layer = self.encoder_layers[index % len(self.encoder_layers)]
            if training and self.recompute_activations:
                hidden, of_layer = _recomputed(layer, states[-1], score_mask, wanted)
            else:
                hidden, of_layer = layer(states[-1], score_mask, training=training, wanted=wanted)
            states.append(hidden)
            for name in wanted:
                found[name].append(of_layer[name])
        if self.layer_norm is not None:
            states[-1] = self.layer_norm(states[-1])
        return {HIDDEN_STATES: states, **found}
