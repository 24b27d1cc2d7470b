"""CamemBERT (Martin et al., 2020): RoBERTa in French, with SentencePiece tokens."""

import dataclasses

from pipeline.models.families import roberta
from pipeline.models.families.base import KERAS_H5, SAFETENSORS, TORCH_BIN, Published

FAMILY = dataclasses.replace(
    roberta.FAMILY,
    model_type="camembert",
    title="CamemBERT",
    class_prefix="Camembert",
    published=(
        Published(
            ("almanach/camembert-base",),
            (SAFETENSORS, KERAS_H5, TORCH_BIN),
            ("tokenizer.json", "sentencepiece.bpe.model"),
        ),
    ),
)
