"""XLM-RoBERTa (Conneau et al., 2020): RoBERTa in many languages, with SentencePiece tokens."""

import dataclasses

from pipeline.models.families import roberta
from pipeline.models.families.base import KERAS_H5, SAFETENSORS, TORCH_BIN, Published

FAMILY = dataclasses.replace(
    roberta.FAMILY,
    model_type="xlm-roberta",
    title="XLM-RoBERTa",
    class_prefix="XLMRoberta",
    published=(
        Published(
            ("FacebookAI/xlm-roberta-base", "FacebookAI/xlm-roberta-large"),
            (SAFETENSORS, KERAS_H5, TORCH_BIN),
            ("tokenizer.json", "sentencepiece.bpe.model"),
        ),
    ),
)
