"""RoBERTa (Liu et al., 2019): positions counted from the padding's id."""

from pipeline.models.families.base import (
    KERAS_H5,
    SAFETENSORS,
    TORCH_BIN,
    Family,
    Published,
    SequenceHead,
)

FAMILY = Family(
    model_type="roberta",
    title="RoBERTa",
    class_prefix="Roberta",
    sequence_head=SequenceHead(
        dense="classifier.dense", output="classifier.out_proj", drops_input=True
    ),
    published=(
        Published(
            (
                "FacebookAI/roberta-base",
                "FacebookAI/roberta-large",
                "distilbert/distilroberta-base",
            ),
            (SAFETENSORS, KERAS_H5, TORCH_BIN),
            ("tokenizer.json",),
        ),
    ),
    hf_names=(
        ("bert.", "roberta."),
        ("cls.predictions.transform.", "lm_head."),
        ("cls.predictions.", "lm_head."),
        ("lm_head.LayerNorm", "lm_head.layer_norm"),
    ),
    config_defaults={"pad_token_id": 1},
    counts_positions_from_padding=True,
    head_act="gelu",
    doubles_separator=True,
)
