"""BERT written in JAX without Keras, for comparison with the project's programs.

It has the same shapes, losses, dropout, optimizer and precision as the programs of `step_programs`
that train from a cache of the top-k. Shapes: B batch, L length, P masked positions, D hidden size,
H heads.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_specs import records
from pipeline.models.config import EncoderConfig

Weights = dict[str, Any]
# A function of queries, keys and values, each [B, L, H, D / H], the bias of the scores
# [B, 1, 1, L], and a function for dropout of probabilities. Returns [B, L, H, D / H].
Attention = Callable[[Any, Any, Any, Any, Callable[[Any], Any]], Any]

_MASKED_SCORE = -30_000.0
_BETAS, _EPSILON, _WEIGHT_DECAY, _RATE = (0.9, 0.999), 1e-6, 0.01, 5e-5


def plain_attention(query: Any, key: Any, value: Any, bias: Any, drop: Callable[[Any], Any]) -> Any:
    """Attention that computes the whole attention map."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32) + bias
    probabilities = drop(jax.nn.softmax(scores).astype(value.dtype))
    return jnp.einsum("bhqk,bkhd->bqhd", probabilities, value)


def fused_attention(query: Any, key: Any, value: Any, bias: Any, drop: Callable[[Any], Any]) -> Any:
    """Attention without an attention map, if the device has a kernel for it; has no dropout."""
    del drop
    on_gpu = jax.default_backend() == "gpu"
    lengths = (bias[:, 0, 0] == 0).sum(-1).astype(jnp.int32)
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        scale=1.0,
        key_value_seq_lengths=lengths,
        implementation="cudnn" if on_gpu else "xla",
    )


def random_weights(config: EncoderConfig, seed: int) -> Weights:
    """Returns float32 weights of a BERT."""
    random = np.random.default_rng(seed)
    size = config.hidden_size

    def table(*shape: int) -> Any:
        return jnp.asarray(random.normal(0.0, 0.02, shape), jnp.float32)

    def dense(rows: int, columns: int) -> Weights:
        return {"kernel": table(rows, columns), "bias": jnp.zeros(columns)}

    def norm() -> Weights:
        return {"scale": jnp.ones(size), "bias": jnp.zeros(size)}

    def layer() -> Weights:
        names = ("query", "key", "value", "projection")
        return {
            **{name: dense(size, size) for name in names},
            "attention_norm": norm(),
            "intermediate": dense(size, config.intermediate_size),
            "output": dense(config.intermediate_size, size),
            "output_norm": norm(),
        }

    return {
        "words": table(config.vocab_size, size),
        "positions": table(config.max_position_embeddings, size),
        "segments": table(config.type_vocab_size, size),
        "norm": norm(),
        "layers": [layer() for _ in range(config.num_hidden_layers)],
        "head": dense(size, size),
        "head_norm": norm(),
        "bias": jnp.zeros(config.vocab_size),
    }


def _dense(weights: Weights, x: Any) -> Any:
    return x @ weights["kernel"].astype(x.dtype) + weights["bias"].astype(x.dtype)


def _norm(weights: Weights, x: Any, epsilon: float) -> Any:
    wide = x.astype(jnp.float32)
    centered = wide - wide.mean(-1, keepdims=True)
    scaled = centered * jax.lax.rsqrt(jnp.square(centered).mean(-1, keepdims=True) + epsilon)
    return (scaled * weights["scale"] + weights["bias"]).astype(x.dtype)


def _dropout(rate: float, key: Any) -> Callable[[Any], Any]:
    """Returns a function for dropout; without a key, it returns its argument."""

    def drop(x: Any) -> Any:
        if key is None or not rate:
            return x
        mask = jax.random.bernoulli(key, 1.0 - rate, x.shape)
        return jnp.where(mask, x / (1.0 - rate), 0).astype(x.dtype)

    return drop


def logits(
    config: EncoderConfig,
    weights: Weights,
    batch: Mapping[str, Any],
    *,
    attention: Attention,
    dtype: Any,
    logits_dtype: Any,
    key: Any = None,
) -> Any:
    """Returns the logits at the masked positions, float32 [B, P, V].

    Args:
        config: configuration of a BERT.
        weights: weights as `random_weights` returns them.
        batch: inputs by BERT's names.
        attention: `plain_attention` or `fused_attention`.
        dtype: dtype of the products in the encoder.
        logits_dtype: dtype of the product with the word embeddings.
        key: key of dropout; None for no dropout.
    """
    count = 1 + 3 * config.num_hidden_layers
    keys = iter([None] * count if key is None else jax.random.split(key, count))
    drop_hidden = config.hidden_dropout_prob
    epsilon, heads = config.layer_norm_eps, config.num_attention_heads
    ids, length = batch[records.INPUT_IDS], batch[records.INPUT_IDS].shape[1]
    embedded = weights["words"][ids] + weights["segments"][batch[records.SEGMENT_IDS]]
    hidden = _norm(weights["norm"], embedded + weights["positions"][:length], epsilon)
    hidden = _dropout(drop_hidden, next(keys))(hidden.astype(dtype))
    bias = (1.0 - batch[records.INPUT_MASK][:, None, None].astype(jnp.float32)) * _MASKED_SCORE
    for layer in weights["layers"]:
        query, key_, value = (
            _dense(layer[name], hidden).reshape(*hidden.shape[:2], heads, -1)
            for name in ("query", "key", "value")
        )
        drop = _dropout(config.attention_probs_dropout_prob, next(keys))
        context = attention(query * query.shape[-1] ** -0.5, key_, value, bias, drop)
        output = _dense(layer["projection"], context.reshape(hidden.shape))
        output = _dropout(drop_hidden, next(keys))(output)
        hidden = _norm(layer["attention_norm"], hidden + output, epsilon)
        inner = jax.nn.gelu(_dense(layer["intermediate"], hidden), approximate=False)
        output = _dropout(drop_hidden, next(keys))(_dense(layer["output"], inner))
        hidden = _norm(layer["output_norm"], hidden + output, epsilon)
    chosen = jnp.take_along_axis(hidden, batch[records.MASKED_LM_POSITIONS][..., None], axis=1)
    states = jax.nn.gelu(_dense(weights["head"], chosen), approximate=False)
    states = _norm(weights["head_norm"], states, epsilon).astype(logits_dtype)
    table = weights["words"].astype(logits_dtype)
    return (states @ table.T).astype(jnp.float32) + weights["bias"]


def cached_losses(logits: Any, targets: Mapping[str, Any]) -> Any:
    """Returns the sum of soft_cross_entropy and probability_cosine over a cached top-k."""
    ids, tail = targets[records.TOPK_IDS], jnp.exp(targets[records.LOG_TAIL_MASSES][..., :1])
    teacher = (1.0 - tail) * jax.nn.softmax(targets[records.TOPK_LOGITS])
    log_probs = jnp.take_along_axis(logits, ids, axis=-1)
    log_probs -= jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    student = jnp.exp(log_probs)
    norms = jnp.linalg.norm(teacher, axis=-1) * jnp.linalg.norm(student, axis=-1)
    cosine = (teacher * student).sum(-1) / norms
    values = 1.0 - cosine - (teacher * log_probs).sum(-1)
    weights = targets[records.MASKED_LM_WEIGHTS]
    return (values * weights).sum() / weights.sum()


def adamw(weights: Any, gradients: Any, moments: Any, step: Any) -> tuple[Any, Any]:
    """Returns the weights and moments after a step with gradients clipped to a global norm of 1."""
    leaves = jax.tree.leaves(gradients)
    norm = jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in leaves))
    scale, (first_beta, second_beta) = jnp.minimum(1.0, 1.0 / norm), _BETAS
    corrections = 1.0 - first_beta ** (step + 1.0), 1.0 - second_beta ** (step + 1.0)

    def update(weight: Any, gradient: Any, first: Any, second: Any) -> tuple[Any, Any, Any]:
        gradient = gradient * scale
        first = first_beta * first + (1.0 - first_beta) * gradient
        second = second_beta * second + (1.0 - second_beta) * jnp.square(gradient)
        moved = (first / corrections[0]) / (jnp.sqrt(second / corrections[1]) + _EPSILON)
        decay = _WEIGHT_DECAY if weight.ndim > 1 else 0.0
        return weight - _RATE * (moved + decay * weight), first, second

    updated = jax.tree.map(update, weights, gradients, *moments)
    outer, inner = jax.tree.structure(weights), jax.tree.structure((0, 0, 0))
    weights, first, second = jax.tree.transpose(outer, inner, updated)
    return weights, (first, second)
