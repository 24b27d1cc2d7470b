"""XLM-RoBERTa (Conneau et al., 2020): RoBERTa in many languages, with SentencePiece tokens."""

import dataclasses

from pipeline.models.families import roberta

FAMILY = dataclasses.replace(
    roberta.FAMILY, model_type="xlm-roberta", title="XLM-RoBERTa", class_prefix="XLMRoberta"
)
