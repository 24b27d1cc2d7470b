"""Parts of the layers of every architecture.

Shapes: B batch, L length, D hidden size, H heads.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import keras
from keras import ops

from pipeline.base.seeding import hash64
from pipeline.models.config import EncoderConfig

# Activations that a layer's attention returns on request, besides its output. Maps and scores are
# float32 [B, H, L, L]. A map holds each query's probabilities over the keys, before dropout. Scores
# are the scaled products of queries and keys, before any mask or bias is added. Queries, keys and
# values are [B, L, D], with all heads concatenated, before any scaling or rotation.
ATTENTIONS = "attentions"
ATTENTION_SCORES = "attention_scores"
QUERIES_KEYS_VALUES = ("queries", "keys", "values")

Tensor = Any
DType = str | keras.DTypePolicy | None

# Added to the scores of padding. Its exponential is 0 in every dtype. Unlike -1e9, it fits
# float16. A row of only padding gets a uniform distribution, not NaN.
MASKED_SCORE = -30_000.0


def _gelu(x: Tensor) -> Tensor:
    # Written with erf, because libraries often rewrite their own GELU with erfc, which ONNX
    # lacks.
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
class LayerBuilder:
    """Makes the parts of one layer, each with separate random numbers.

    Attributes:
        config: the model's configuration.
        scope: the layer's name within the model.
        seed: the model's seed.
        dtype: the layer's dtype; Keras computes normalizations in float32.
    """

    config: EncoderConfig
    scope: str
    seed: int
    dtype: DType

    def initializer(self, name: str, scale: float = 1.0) -> keras.Initializer:
        """Returns BERT's initial distribution of weights, a truncated normal."""
        deviation = scale * self.config.initializer_range
        seed = self._seed("initial weights", name)
        return keras.initializers.TruncatedNormal(stddev=deviation, seed=seed)

    def dense(
        self, size: int, name: str, *, use_bias: bool | None = None, scale: float = 1.0
    ) -> keras.layers.Dense:
        """Returns a dense layer [..., any] → [..., size].

        Args:
            size: the size of its output.
            name: its name.
            use_bias: whether it has a bias; None for a bias only if the family has biases.
            scale: a factor of the initial weights' standard deviation.
        """
        return keras.layers.Dense(
            size,
            use_bias=self.config.family.has_biases if use_bias is None else use_bias,
            kernel_initializer=self.initializer(name, scale),
            name=name,
            dtype=self.dtype,
        )

    def residual_dense(self, size: int, name: str) -> keras.layers.Dense:
        """Returns a dense layer whose output is added to a sum over all 2·N blocks.

        More blocks make its initial weights smaller (Radford et al., 2019).
        """
        return self.dense(size, name, scale=(2 * self.config.num_hidden_layers) ** -0.5)

    def layer_norm(self) -> keras.layers.LayerNormalization:
        """Returns a normalization over the last axis, with a bias if the family has biases."""
        return keras.layers.LayerNormalization(
            epsilon=self.config.layer_norm_eps,
            center=self.config.family.has_biases,
            name="layer_norm",
            dtype=self.dtype,
        )

    def dropout(self, rate: float, name: str = "dropout") -> keras.layers.Dropout:
        """Returns a dropout layer."""
        seed = self._seed("dropout", name)
        return keras.layers.Dropout(rate, seed=seed, name=name, dtype=self.dtype)

    def _seed(self, purpose: str, name: str) -> int:
        return hash64(self.seed, purpose, f"{self.scope}/{name}") % 2**31


def take_rows(table: keras.Variable, ids: Tensor) -> Tensor:
    """Returns rows of a table of embeddings, float32 [B, L, E] for int ids [B, L]."""
    # The product with 1.0 makes the gradient dense. Taking rows of the variable itself would give
    # TensorFlow a sparse gradient. In it a repeated id has several rows, which Adam and gradient
    # clipping do not merge. The gradient is summed in float32, because a frequent token has
    # thousands of addends.
    return ops.take(ops.convert_to_tensor(table) * 1.0, ids, axis=0)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Returns [B, H, L, D / H] for [B, L, D]."""
    batch, length, size = ops.shape(x)
    return ops.transpose(
        ops.reshape(x, (batch, length, num_heads, size // num_heads)), (0, 2, 1, 3)
    )


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mask: Tensor,
    dropout: Callable[[Tensor], Tensor],
    wanted: Collection[str] = (),
) -> tuple[Tensor, dict[str, Tensor]]:
    """Attends within each row of the batch.

    Args:
        query: [B, H, L, D / H], scaled.
        key: [B, H, L, D / H].
        value: [B, H, L, D / H].
        score_mask: a mask that is added to the scores and broadcasts to [B, H, L, L].
        dropout: the dropout of the probabilities.
        wanted: names of activations to return. `ATTENTIONS` and `ATTENTION_SCORES` are large.

    Returns:
        the heads' outputs, concatenated, [B, L, D]; and the `wanted` activations, by name.
    """
    products = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))
    attention_map = ops.softmax(ops.cast(products + score_mask, "float32"))
    probabilities = dropout(ops.cast(attention_map, value.dtype))
    context = ops.transpose(ops.matmul(probabilities, value), (0, 2, 1, 3))
    batch, length, num_heads, size = ops.shape(context)
    activations = {}
    if ATTENTIONS in wanted:
        activations[ATTENTIONS] = attention_map
    if ATTENTION_SCORES in wanted:
        activations[ATTENTION_SCORES] = ops.cast(products, "float32")
    return ops.reshape(context, (batch, length, num_heads * size)), activations


def projections(
    wanted: Collection[str], queries: Tensor, keys: Tensor, values: Tensor
) -> dict[str, Tensor]:
    """Returns the tensors of `QUERIES_KEYS_VALUES` that are `wanted`, by name."""
    tensors = zip(QUERIES_KEYS_VALUES, (queries, keys, values), strict=True)
    return {name: tensor for name, tensor in tensors if name in wanted}
