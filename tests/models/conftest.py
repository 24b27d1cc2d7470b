"""A tiny configuration, its random weights and a batch."""

import numpy as np
import pytest

from data_specs.records import INPUT_IDS, INPUT_MASK, MASKED_LM_POSITIONS, SEGMENT_IDS
from pipeline.models.config import EncoderConfig
from pipeline.models.weight_names import weight_table


@pytest.fixture(scope="session")
def config() -> EncoderConfig:
    """All sizes are different, so that a wrong transpose never fits."""
    return EncoderConfig(
        vocab_size=37,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=24,
        hidden_act="gelu",
        max_position_embeddings=20,
        type_vocab_size=2,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )


@pytest.fixture(scope="session")
def weights(config: EncoderConfig) -> dict[str, np.ndarray]:
    """Random weights by our names; biases and norms do not have their usual initial values."""
    random = np.random.default_rng(3)
    return {
        row.ours: random.normal(0.1, 0.4, row.shape).astype(np.float32)
        for row in weight_table(config)
    }


@pytest.fixture(scope="session")
def batch(config: EncoderConfig) -> dict[str, np.ndarray]:
    """Three rows of 11 tokens and four masked positions; one row has padding after six tokens."""
    random = np.random.default_rng(4)
    mask = np.ones((3, 11), np.int32)
    mask[1, 7:] = 0
    return {
        INPUT_IDS: random.integers(0, config.vocab_size, (3, 11)).astype(np.int32),
        INPUT_MASK: mask,
        SEGMENT_IDS: np.repeat([[0] * 5 + [1] * 6], 3, axis=0).astype(np.int32),
        MASKED_LM_POSITIONS: np.array([[1, 4, 9, 10], [0, 2, 6, 0], [3, 5, 7, 8]], np.int32),
    }
