"""ELECTRA (Clark et al., 2020): its generator is a masked LM, its discriminator is not."""

from pipeline.models.families.base import (
    KERAS_H5,
    TORCH_BIN,
    WORDPIECE,
    Family,
    Published,
    SequenceHead,
)

FAMILY = Family(
    model_type="electra",
    title="ELECTRA",
    class_prefix="Electra",
    sequence_head=SequenceHead(
        dense="classifier.dense",
        output="classifier.out_proj",
        activation="gelu",
        drops_input=True,
    ),
    published=(
        Published(
            ("google/electra-small-generator", "hfl/chinese-electra-180g-base-generator"),
            (KERAS_H5, TORCH_BIN),
            WORDPIECE,
            "A discriminator has no masked-LM head: use it only to initialize a student.",
        ),
    ),
    hf_names=(
        ("bert.encoder.embedding_hidden_mapping_in", "electra.embeddings_project"),
        ("bert.", "electra."),
        ("cls.predictions.transform.", "generator_predictions."),
        ("cls.predictions.decoder.", "generator_lm_head."),
        ("cls.predictions.", "generator_lm_head."),
    ),
    projects_embeddings=True,
    head_act="gelu",
)
