"""First weights from which a small masked language model learns within minutes.

Trained from BERT's usual random weights, a small encoder first sits on a plateau
for thousands of updates: it knows how frequent tokens are, and cannot yet look at
a token's neighbours. These weights can. Positions are sinusoids (Vaswani et al.,
2017, section 3.5), the heads of the first two layers turn them by a fixed offset
and so attend to the neighbours at −1, +1, −2, +2 and −3, +3, −4, +4, and the
output bias is each token's log-frequency.
"""

import math

import numpy as np

from pipeline.base import seeding
from pipeline.models.config import EncoderConfig
from pipeline.models.weight_names import weight_table

_NEIGHBOR_LAYERS = 2
_WORD_DEVIATION = 0.05
# What is passed on from a neighbour: twice BERT's usual deviation learned faster than
# that itself, and than three times it.
_VALUE_DEVIATION = 0.04
# The longest wave of the positions, in tokens: beyond it positions look alike.
_LONGEST_WAVE = 512.0
# How much higher the score of the wanted neighbour is than that of the next one.
_SCORE_GAP = 5.0
# Added to every count, so that a token that was never seen has a probability.
_SMOOTHING = 1.0


def head_offset(layer: int, head: int) -> int:
    """Returns the neighbour that a head first attends to.

    Example:
        with 4 heads, layer 0 has −1, +1, −2, +2 and layer 1 −3, +3, −4, +4.
    """
    distance = layer * 2 + head // 2 % 2 + 1
    return -distance if head % 2 == 0 else distance


def _angular_frequencies(pairs: int) -> np.ndarray:
    """Returns float64 [pairs], radians a token, geometric from a wave of 4 tokens."""
    return np.geomspace(math.pi / 2.0, 2.0 * math.pi / _LONGEST_WAVE, pairs)


def _position_table(config: EncoderConfig) -> np.ndarray:
    """Returns [positions, D]: sines and cosines in the first half of D, as strong as words."""
    table = np.zeros((config.max_position_embeddings, config.hidden_size))
    pairs = config.hidden_size // 4
    angles = np.arange(len(table))[:, None] * _angular_frequencies(pairs)
    amplitude = _WORD_DEVIATION * math.sqrt(2.0)
    table[:, :pairs] = amplitude * np.sin(angles)
    table[:, pairs : 2 * pairs] = amplitude * np.cos(angles)
    return table


def _set_neighbor_heads(config: EncoderConfig, layer: int, weights: dict[str, np.ndarray]) -> None:
    """Makes each head's query, at position i, equal the key at i + offset."""
    pairs = config.hidden_size // 4
    head_size = config.hidden_size // config.num_attention_heads
    used = min(pairs, head_size // 2)
    # The shortest: only they tell a position from the next one.
    waves = np.arange(used)
    frequencies = _angular_frequencies(pairs)[waves]
    # After the layer norm a wave has amplitude √2, so a match scores Σ 2·s²/√head_size
    # and the position next to it Σ 2·s²·cos(ω)/√head_size.
    gap = 2.0 * np.sum(1.0 - np.cos(frequencies)) / math.sqrt(head_size)
    scale = math.sqrt(_SCORE_GAP / gap)
    query = weights[f"encoder/layer_{layer}/attention/query/kernel"]
    key = weights[f"encoder/layer_{layer}/attention/key/kernel"]
    for head in range(config.num_attention_heads):
        turn = frequencies * head_offset(layer, head)
        first = head * head_size + np.arange(used)
        second = first + used
        key[waves, first] += scale
        key[pairs + waves, second] += scale
        # sin(a + t) = sin a cos t + cos a sin t; cos(a + t) = cos a cos t − sin a sin t
        query[waves, first] += scale * np.cos(turn)
        query[pairs + waves, first] += scale * np.sin(turn)
        query[waves, second] -= scale * np.sin(turn)
        query[pairs + waves, second] += scale * np.cos(turn)


def neighbor_weights(
    config: EncoderConfig, token_counts: np.ndarray, *, seed: int
) -> dict[str, np.ndarray]:
    """Returns first weights for training a small masked language model from nothing.

    Args:
        config: a BERT; `hidden_size` is a multiple of 4.
        token_counts: int [V], how often each token stands in the text.
        seed: decides everything that is random.

    Returns:
        float32 arrays by our names, all of `weight_table(config)`.

    Raises:
        ValueError: the model is of another family.
    """
    # Only BERT has exactly the tables that are set here.
    if not config.family.in_google_layout:
        raise ValueError(f"config: expected a BERT, received a {config.model_type}")
    weights: dict[str, np.ndarray] = {}
    for row in weight_table(config):
        random = seeding.stream(seed, "neighbor weights", row.ours)
        if row.ours.endswith("/gamma"):
            weights[row.ours] = np.ones(row.shape)
        elif row.ours.endswith(("/beta", "/bias")):
            weights[row.ours] = np.zeros(row.shape)
        else:
            weights[row.ours] = random.normal(0.0, config.initializer_range, row.shape)
    words = "encoder/embeddings/word_embeddings"
    weights[words] *= _WORD_DEVIATION / config.initializer_range
    weights[words][:, : config.hidden_size // 4 * 2] = 0.0
    weights["encoder/embeddings/position_embeddings"] = _position_table(config)
    weights["encoder/embeddings/segment_embeddings"][:] = 0.0
    for layer in range(min(_NEIGHBOR_LAYERS, config.num_hidden_layers)):
        _set_neighbor_heads(config, layer, weights)
        for part in ("value", "output"):
            name = f"encoder/layer_{layer}/attention/{part}/kernel"
            weights[name] *= _VALUE_DEVIATION / config.initializer_range
    smoothed = token_counts + _SMOOTHING
    weights["head/bias"] = np.log(smoothed / smoothed.sum())
    return {name: value.astype(np.float32) for name, value in weights.items()}
