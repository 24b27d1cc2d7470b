"""The shapes of published models, so that nothing need be downloaded to plan for them.

Sources: the `config.json` or `bert_config.json` of bert-base-uncased and
bert-large-uncased (Devlin et al., 2019), of Chinese RoBERTa-wwm-ext and its large sister
(Cui et al., 2019), and of RuBERT (Kuratov and Arkhipov, 2019).
"""

import pathlib
from collections.abc import Mapping

from pipeline.base.errors import InputError
from pipeline.models.config import EncoderConfig


def _base(vocab_size: int) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=vocab_size,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        hidden_act="gelu",
        max_position_embeddings=512,
        type_vocab_size=2,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )


def _large(vocab_size: int) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=vocab_size,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        hidden_act="gelu",
        max_position_embeddings=512,
        type_vocab_size=2,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )


_ENGLISH, _CHINESE, _RUSSIAN = 30_522, 21_128, 119_547
SHAPES: Mapping[str, EncoderConfig] = {
    "bert-base": _base(_ENGLISH),
    "bert-large": _large(_ENGLISH),
    "roberta-wwm-ext": _base(_CHINESE),
    "roberta-wwm-ext-large": _large(_CHINESE),
    "rubert": _base(_RUSSIAN),
}


def find_shape(name: str) -> EncoderConfig:
    """Returns the shape of a published model, or that of a configuration file.

    Args:
        name: in `SHAPES`, or the path of a `config.json` or `bert_config.json`.

    Raises:
        InputError: neither.
    """
    if name in SHAPES:
        return SHAPES[name]
    if not pathlib.Path(name).is_file():
        raise InputError(None, f"one of {', '.join(SHAPES)} or a config.json", name)
    return EncoderConfig.from_json(name)
