"""ELECTRA (Clark et al., 2020): its generator is a masked LM, its discriminator is none."""

from pipeline.models.families.base import Family, SequenceHead

FAMILY = Family(
    model_type="electra",
    title="ELECTRA (generator)",
    class_prefix="Electra",
    sequence_head=SequenceHead(
        dense="classifier.dense",
        output="classifier.out_proj",
        activation="gelu",
        drops_input=True,
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
