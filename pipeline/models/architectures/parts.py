"""Parts that layers of every architecture are made of.

Shapes: B batch, L length, D hidden size, H heads.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import keras
from keras import ops

from pipeline.base.seeding import hash64
from pipeline.models.config import EncoderConfig

# What a layer's attention gives beside its output, where it is asked for. The maps and scores are
# float32 [B, H, L, L]: each query's probabilities over the keys, before dropout; and the scaled
# products of queries and keys that they are made of, before any mask or bias is added. Queries,
# keys and values are [B, L, D], of all heads side by side, before any scaling or rotation.
ATTENTIONS = "attentions"
ATTENTION_SCORES = "attention_scores"
QUERIES_KEYS_VALUES = ("queries", "keys", "values")

Tensor = Any
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
            size: of its output.
            name: its own.
            use_bias: whether it has a bias; None for where the family has any.
            scale: of the initial weights' deviation.
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

        Its initial weights are the smaller, the more there are (Radford et al., 2019).
        """
        return self.dense(size, name, scale=(2 * self.config.num_hidden_layers) ** -0.5)

    def layer_norm(self) -> keras.layers.LayerNormalization:
        """Returns a normalisation over the last axis, with a bias where the family has any."""
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
    # The product with 1.0 makes the gradient dense. Taking rows of the variable
    # itself gives TensorFlow a sparse gradient in which a repeated id has several
    # rows that Adam and gradient clipping do not merge. Rows are summed in
    # float32 both ways: a frequent token's gradient has thousands of addends.
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
        score_mask: added to the scores, of a shape that fits [B, H, L, L].
        dropout: of the probabilities.
        wanted: of `ATTENTIONS` and `ATTENTION_SCORES`, which are large.

    Returns:
        the heads' outputs side by side, [B, L, D]; and what is wanted, by name.
    """
    products = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))
    attention_map = ops.softmax(ops.cast(products + score_mask, "float32"))
    probabilities = dropout(ops.cast(attention_map, value.dtype))
    context = ops.transpose(ops.matmul(probabilities, value), (0, 2, 1, 3))
    batch, length, num_heads, size = ops.shape(context)
    found = {}
    if ATTENTIONS in wanted:
        found[ATTENTIONS] = attention_map
    if ATTENTION_SCORES in wanted:
        found[ATTENTION_SCORES] = ops.cast(products, "float32")
    return ops.reshape(context, (batch, length, num_heads * size)), found


def projections(
    wanted: Collection[str], queries: Tensor, keys: Tensor, values: Tensor
) -> dict[str, Tensor]:
    """Returns what is wanted of `QUERIES_KEYS_VALUES`, by name."""
    tensors = zip(QUERIES_KEYS_VALUES, (queries, keys, values), strict=True)
    return {name: tensor for name, tensor in tensors if name in wanted}
