"""Initial weights from which a small masked language model learns within minutes.

From BERT's usual random weights, the loss of a small encoder stays on a plateau for thousands
of updates. The encoder has learned the frequencies of tokens, but not yet to attend to
neighboring tokens. These weights attend to neighbors from the start. Positions are sinusoids
(Vaswani et al., 2017, section 3.5). The heads of the first two layers rotate them by a fixed
offset, and so attend to the neighbors at −1, +1, −2, +2 and −3, +3, −4, +4. The output bias
is the log-frequency of each token.
"""

import math

import numpy as np

from pipeline.base import seeding
from pipeline.models.config import EncoderConfig
from pipeline.models.weight_names import weight_table

_NEIGHBOR_LAYERS = 2
_WORD_DEVIATION = 0.05
# The deviation of the value and output kernels. Training was faster with twice BERT's usual
# deviation than with one or three times that value.
_VALUE_DEVIATION = 0.04
# The longest wavelength of the positions, in tokens. Positions farther apart look alike.
_LONGEST_WAVE = 512.0
# The difference between the attention scores of the intended neighbor and the next position.
_SCORE_GAP = 5.0
# Added to every count, so that an unseen token has a probability above 0.
_SMOOTHING = 1.0


def head_offset(layer: int, head: int) -> int:
    """Returns the offset of the neighbor to which a head initially attends.

    Example:
        with 4 heads, layer 0 has −1, +1, −2, +2 and layer 1 −3, +3, −4, +4.
    """
    distance = layer * 2 + head // 2 % 2 + 1
    return -distance if head % 2 == 0 else distance


def _angular_frequencies(pairs: int) -> np.ndarray:
    """Returns frequencies in radians per token, float64 [pairs].

    They are a geometric sequence that starts at a wavelength of 4 tokens.
    """
    return np.geomspace(math.pi / 2.0, 2.0 * math.pi / _LONGEST_WAVE, pairs)


def _position_table(config: EncoderConfig) -> np.ndarray:
    """Returns the position table [positions, D].

    The first half of D has sines and cosines, with the deviation of the word embeddings.
    """
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
    # The shortest waves, because only they distinguish a position from the next one.
    waves = np.arange(used)
    frequencies = _angular_frequencies(pairs)[waves]
    # After the layer norm, a wave has amplitude √2. A match then scores Σ 2·s²/√head_size, and
    # the position next to it Σ 2·s²·cos(ω)/√head_size.
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
    """Returns initial weights for training a small masked language model from scratch.

    Args:
        config: a BERT configuration; `hidden_size` is a multiple of 4.
        token_counts: int [V], the number of occurrences of each token in the text.
        seed: seed of the random weights.

    Returns:
        float32 arrays for all names of `weight_table(config)`.

    Raises:
        ValueError: the model is not a BERT.
    """
    # Only BERT has exactly the weights that are set here.
    if not config.family.in_google_layout:
        raise ValueError(f"config: expected a BERT, received a {config.model_type}")
    weights: dict[str, np.ndarray] = {}
    for row in weight_table(config):
        rng = seeding.keyed_rng(seed, "neighbor weights", row.ours)
        if row.ours.endswith("/gamma"):
            weights[row.ours] = np.ones(row.shape)
        elif row.ours.endswith(("/beta", "/bias")):
            weights[row.ours] = np.zeros(row.shape)
        else:
            weights[row.ours] = rng.normal(0.0, config.initializer_range, row.shape)
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
