"""DistilBERT (Sanh et al., 2019): BERT without segments."""

from pipeline.models.families.base import (
    KERAS_H5,
    SAFETENSORS,
    TORCH_BIN,
    WORDPIECE,
    Family,
    Published,
    SequenceHead,
)

FAMILY = Family(
    model_type="distilbert",
    title="DistilBERT",
    class_prefix="DistilBert",
    sequence_head=SequenceHead(
        dense="pre_classifier", dropout=("seq_classif_dropout", 0.2), activation="relu"
    ),
    published=(
        Published(
            (
                "distilbert/distilbert-base-uncased",
                "distilbert/distilbert-base-multilingual-cased",
            ),
            (SAFETENSORS, KERAS_H5, TORCH_BIN),
            WORDPIECE,
        ),
    ),
    span_dropout=("qa_dropout", 0.1),
    token_dropout=None,
    hf_names=(
        ("bert.", "distilbert."),
        ("distilbert.encoder.", "distilbert.transformer."),
        ("attention.self.query", "attention.q_lin"),
        ("attention.self.key", "attention.k_lin"),
        ("attention.self.value", "attention.v_lin"),
        ("attention.output.dense", "attention.out_lin"),
        ("attention.output.LayerNorm", "sa_layer_norm"),
        ("intermediate.dense", "ffn.lin1"),
        ("output.dense", "ffn.lin2"),
        ("output.LayerNorm", "output_layer_norm"),
        ("cls.predictions.transform.dense", "vocab_transform"),
        ("cls.predictions.transform.LayerNorm", "vocab_layer_norm"),
        ("cls.predictions.decoder.", "vocab_projector."),
        ("cls.predictions.", "vocab_projector."),
    ),
    config_keys={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
    },
    has_segments=False,
)
