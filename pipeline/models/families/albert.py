"""ALBERT (Lan et al., 2020): projected embeddings, and one layer that is applied repeatedly."""

from pipeline.models.families.base import (
    KERAS_H5,
    SAFETENSORS,
    TORCH_BIN,
    Family,
    Published,
    SequenceHead,
)

FAMILY = Family(
    model_type="albert",
    title="ALBERT",
    class_prefix="Albert",
    sequence_head=SequenceHead(
        dense="albert.pooler", dropout=("classifier_dropout_prob", 0.1), is_pretrained=True
    ),
    published=(
        Published(
            ("albert/albert-base-v2",),
            (SAFETENSORS, KERAS_H5, TORCH_BIN),
            ("tokenizer.json", "spiece.model"),
        ),
    ),
    token_dropout=("classifier_dropout_prob", 0.1),
    hf_names=(
        ("bert.", "albert."),
        ("encoder.layer.0.", "encoder.albert_layer_groups.0.albert_layers.0."),
        ("attention.self.", "attention."),
        ("attention.output.", "attention."),
        ("intermediate.dense", "ffn"),
        ("output.dense", "ffn_output"),
        ("output.LayerNorm", "full_layer_layer_norm"),
        ("cls.predictions.transform.", "predictions."),
        ("cls.predictions.", "predictions."),
    ),
    # The only supported case is one group of one layer, which all layers share.
    fixed_options={"num_hidden_groups": 1, "inner_group_num": 1},
    projects_embeddings=True,
    projects_equal_widths=True,
    shares_layers=True,
)
