"""Initial weights that attend to neighbors, checked by computing the attention."""

import dataclasses

import numpy as np

from pipeline.models.config import EncoderConfig
from pipeline.models.weight_names import weight_table
from tools.quickstart_teacher_init import head_offset, neighbor_weights

CONFIG = EncoderConfig(
    vocab_size=100,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=128,
    hidden_act="gelu",
    max_position_embeddings=64,
    type_vocab_size=2,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
COUNTS = np.arange(100)


def _attention(weights: dict[str, np.ndarray], layer: int) -> np.ndarray:
    """Returns the attention probabilities [H, L, L] of a layer applied to the embeddings."""
    ids = np.random.default_rng(0).integers(5, 100, CONFIG.max_position_embeddings)
    prefix = "encoder/embeddings"
    hidden = weights[f"{prefix}/word_embeddings"][ids] + weights[f"{prefix}/position_embeddings"]
    hidden = (hidden - hidden.mean(-1, keepdims=True)) / hidden.std(-1, keepdims=True)
    scope = f"encoder/layer_{layer}/attention"
    heads = CONFIG.num_attention_heads
    size = CONFIG.hidden_size // heads
    query, key = (
        (hidden @ weights[f"{scope}/{projection}/kernel"])
        .reshape(-1, heads, size)
        .transpose(1, 0, 2)
        for projection in ("query", "key")
    )
    scores = query @ key.transpose(0, 2, 1) / np.sqrt(size)
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def test_head_offsets_equal_expected_values() -> None:
    assert [head_offset(0, head) for head in range(4)] == [-1, 1, -2, 2]
    assert [head_offset(1, head) for head in range(4)] == [-3, 3, -4, 4]


def test_heads_attend_to_their_neighbors() -> None:
    weights = neighbor_weights(CONFIG, COUNTS, seed=1)
    for layer in (0, 1):
        probabilities = _attention(weights, layer)
        for head in range(4):
            offset = head_offset(layer, head)
            positions = np.arange(8, CONFIG.max_position_embeddings - 8)
            hits = probabilities[head, positions].argmax(-1) == positions + offset
            assert hits.mean() > 0.95
            assert probabilities[head, positions, positions + offset].mean() > 0.8


def test_output_bias_is_the_log_frequency() -> None:
    weights = neighbor_weights(CONFIG, COUNTS, seed=1)
    frequencies = np.exp(weights["head/bias"])
    np.testing.assert_allclose(frequencies.sum(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(frequencies[99] / frequencies[1], 50.0, rtol=1e-5)


def test_seed_decides_every_weight() -> None:
    weights = neighbor_weights(CONFIG, COUNTS, seed=1)
    assert {name: value.shape for name, value in weights.items()} == {
        row.ours: row.shape for row in weight_table(CONFIG)
    }
    assert all(value.dtype == np.float32 for value in weights.values())
    again, other_seed = (neighbor_weights(CONFIG, COUNTS, seed=seed) for seed in (1, 2))
    name = "encoder/layer_2/attention/query/kernel"
    np.testing.assert_array_equal(weights[name], again[name])
    assert not np.array_equal(weights[name], other_seed[name])
    # The random numbers of a weight do not depend on the other weights.
    fewer = dataclasses.replace(CONFIG, num_hidden_layers=1)
    shared = neighbor_weights(fewer, COUNTS, seed=1)
    np.testing.assert_array_equal(shared["head/transform/kernel"], weights["head/transform/kernel"])
