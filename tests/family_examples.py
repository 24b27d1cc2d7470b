"""A small configuration of each model family, made from its declaration."""

from typing import Any

from pipeline.models.config import EncoderConfig
from pipeline.models.families import FAMILIES

# The longest input. It exceeds the distance at which MPNet's last bucket begins.
MOST_TOKENS = 140


def example_config(model_type: str, **changes: Any) -> EncoderConfig:
    """Returns a configuration of a family, with changed fields."""
    family = FAMILIES[model_type]
    fields: dict[str, Any] = {
        "vocab_size": 37,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "hidden_act": "gelu",
        # In RoBERTa and similar families, the first position comes after the padding's id.
        "max_position_embeddings": MOST_TOKENS + 2 * family.counts_positions_from_padding,
        "type_vocab_size": 2 if family.has_segments else 0,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.4,
        "embedding_size": 6 if family.projects_embeddings else None,
        **family.config_defaults,
    }
    return EncoderConfig(model_type=model_type, **{**fields, **changes})
