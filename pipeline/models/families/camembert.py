"""CamemBERT (Martin et al., 2020): RoBERTa in French, with SentencePiece tokens."""

import dataclasses

from pipeline.models.families import roberta

FAMILY = dataclasses.replace(
    roberta.FAMILY, model_type="camembert", title="CamemBERT", class_prefix="Camembert"
)
