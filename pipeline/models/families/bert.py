"""BERT (Devlin et al., 2019)."""

from pipeline.models.families.base import Family, SequenceHead

FAMILY = Family(
    model_type="bert",
    title="BERT",
    class_prefix="Bert",
    sequence_head=SequenceHead(dense="bert.pooler.dense", is_pretrained=True),
    in_google_layout=True,
    without_segments="distilbert",
)
