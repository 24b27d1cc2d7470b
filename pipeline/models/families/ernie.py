"""ERNIE (Sun et al., 2019 to 2021): BERT, since version 2 with embeddings of pre-training tasks."""

from pipeline.models.families.base import Family, SequenceHead

FAMILY = Family(
    model_type="ernie",
    title="ERNIE",
    class_prefix="Ernie",
    sequence_head=SequenceHead(dense="ernie.pooler.dense", is_pretrained=True),
    hf_names=(("bert.", "ernie."),),
    # Every text is of the first task, as in `transformers`.
    folded_embeddings=("use_task_id", "ernie.embeddings.task_type_embeddings.weight"),
)
