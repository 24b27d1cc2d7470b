"""ERNIE (Sun et al., 2019 to 2021): BERT, since version 2 with embeddings of pre-training tasks."""

from pipeline.models.families.base import (
    TORCH_BIN,
    Family,
    FoldedEmbeddings,
    Published,
    SequenceHead,
)

FAMILY = Family(
    model_type="ernie",
    title="ERNIE",
    class_prefix="Ernie",
    sequence_head=SequenceHead(dense="ernie.pooler.dense", is_pretrained=True),
    published=(
        Published(
            ("nghuyong/ernie-3.0-base-zh", "nghuyong/ernie-3.0-xbase-zh"),
            (TORCH_BIN,),
            ("vocab.txt",),
        ),
    ),
    hf_names=(("bert.", "ernie."),),
    # `transformers` uses the first task for every token unless the caller passes task ids.
    folded_embeddings=FoldedEmbeddings(
        key="use_task_id",
        rows=("task_type_vocab_size", 3),
        hf="ernie.embeddings.task_type_embeddings.weight",
    ),
)
