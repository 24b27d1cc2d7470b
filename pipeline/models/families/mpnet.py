"""MPNet (Song et al., 2020): attention scores have a bias for each distance between tokens."""

from pipeline.models.families.base import (
    KERAS_H5,
    NO_HEAD,
    SAFETENSORS,
    TORCH_BIN,
    WORDPIECE,
    Family,
    Published,
    SequenceHead,
)

# `transformers` always uses 32 buckets and a padding id of 1, and ignores the file's values.
_BUCKETS = 32
_PAD_ID = 1

FAMILY = Family(
    model_type="mpnet",
    title="MPNet",
    class_prefix="MPNet",
    sequence_head=SequenceHead(
        dense="classifier.dense", output="classifier.out_proj", dropout=None, drops_input=True
    ),
    published=(
        Published(("microsoft/mpnet-base",), (SAFETENSORS, KERAS_H5, TORCH_BIN), WORDPIECE),
        Published(
            ("sentence-transformers/all-mpnet-base-v2",),
            (SAFETENSORS, TORCH_BIN),
            WORDPIECE,
            NO_HEAD,
        ),
    ),
    token_dropout=None,
    hf_names=(
        ("bert.", "mpnet."),
        ("attention.self.query", "attention.attn.q"),
        ("attention.self.key", "attention.attn.k"),
        ("attention.self.value", "attention.attn.v"),
        ("attention.output.dense", "attention.attn.o"),
        ("attention.output.LayerNorm", "attention.LayerNorm"),
        ("cls.predictions.transform.", "lm_head."),
        ("cls.predictions.", "lm_head."),
        ("lm_head.LayerNorm", "lm_head.layer_norm"),
    ),
    config_defaults={"pad_token_id": _PAD_ID},
    fixed_options={"relative_attention_num_buckets": _BUCKETS, "pad_token_id": _PAD_ID},
    has_segments=False,
    counts_positions_from_padding=True,
    relative_position_buckets=_BUCKETS,
    head_act="gelu",
    doubles_separator=True,
)
