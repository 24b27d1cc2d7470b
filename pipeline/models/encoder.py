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
from pipeline.models.architectures.components import MASKED_SCORE, DType, LayerBuilder, Tensor
from pipeline.models.config import EncoderConfig
from pipeline.models.relative_positions import RelativePositions


def _apply_with_recomputation(
    layer: keras.layers.Layer, hidden: Tensor, score_mask: Tensor, wanted: Collection[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Applies a layer in training; the gradient computes the layer a second time.

    See Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016). The layer is
    called as a function of its weights and of its dropouts' seeds, and returns the next seeds.
    Both computations therefore draw the same numbers, and the next call draws new ones.
    """
    # TensorFlow would read a variable again after it has the next seed, so it gets copies.
    fixed = [ops.copy(variable.value) for variable in layer.non_trainable_variables]

    def function(trainable: list[Tensor], hidden: Tensor, score_mask: Tensor) -> Any:
        return layer.stateless_call(
            trainable, fixed, hidden, score_mask, training=True, wanted=wanted
        )

    trainable = [variable.value for variable in layer.trainable_variables]
    outputs, next_values = keras.remat(function)(trainable, hidden, score_mask)
    for variable, value in zip(layer.non_trainable_variables, next_values, strict=True):
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
            [B, L, D]; and the `wanted` activations of the attention, by name.
        """
        hidden, activations = self.attention(hidden, score_mask, training=training, wanted=wanted)
        return self.feed_forward(hidden, training=training), activations


class Encoder(keras.layers.Layer):
    """A model without its head and without its pooler.

    Args:
        config: shapes and rates.
        seed: the seed of the initial weights and of dropout.
        dtype: a dtype policy or its name; None for the global one.
        name: the first part of the variables' paths.

    Attributes:
        recompute_activations: whether training stores only the outputs of layers and
            computes the other activations a second time for the gradient. Set it before the
            first call.
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
            layer_parts = LayerBuilder(config, self.name, seed, policy)
            initializer = layer_parts.initializer("relative_positions")
            self.relative_positions = RelativePositions(
                config, initializer=initializer, dtype=policy
            )
        self.encoder_layers = [
            EncoderLayer(self._architecture, config, index=index, seed=seed, dtype=policy)
            for index in range(config.num_distinct_layers)
        ]
        self.layer_norm = None
        if self._architecture.HAS_FINAL_NORM:
            self.layer_norm = LayerBuilder(config, self.name, seed, policy).layer_norm()

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
                `segment_ids`, int [B, L] each; other entries are ignored. L is at most
                `config.max_input_length`.
            training: whether dropout is active.
            wanted: names of the attention activations to return, of `ATTENTIONS`,
                `ATTENTION_SCORES` and `QUERIES_KEYS_VALUES` of `architectures.components`.

        Returns:
            `hidden_states`, a list of N + 1 tensors [B, L, D] in the compute dtype, the
            embeddings' output first. The last one is normalized if the architecture has a
            final normalization. For each of `wanted`, a list of N tensors.

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
        activations: dict[str, list[Tensor]] = {name: [] for name in wanted}
        for index, score_mask in enumerate(self._architecture.score_masks(self.config, padding)):
            layer = self.encoder_layers[index % len(self.encoder_layers)]
            if training and self.recompute_activations:
                outputs = _apply_with_recomputation(layer, states[-1], score_mask, wanted)
            else:
                outputs = layer(states[-1], score_mask, training=training, wanted=wanted)
            hidden, layer_activations = outputs
            states.append(hidden)
            for name in wanted:
                activations[name].append(layer_activations[name])
        if self.layer_norm is not None:
            states[-1] = self.layer_norm(states[-1])
        return {HIDDEN_STATES: states, **activations}
