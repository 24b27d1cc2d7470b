"""BERT (Devlin et al., 2019)."""

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

FAMILY = Family(
    model_type="bert",
    title="BERT",
    class_prefix="Bert",
    sequence_head=SequenceHead(dense="bert.pooler.dense", is_pretrained=True),
    published=(
        Published(
            (
                "google-bert/bert-base-uncased",
                "google-bert/bert-base-multilingual-cased",
                "google-bert/bert-base-chinese",
            ),
            (SAFETENSORS, KERAS_H5, TORCH_BIN),
            WORDPIECE,
        ),
        Published(
            (
                "hfl/chinese-roberta-wwm-ext",
                "hfl/chinese-macbert-base",
                "hfl/chinese-macbert-large",
                "hfl/chinese-lert-base",
            ),
            (KERAS_H5, TORCH_BIN),
            WORDPIECE,
        ),
        Published(
            ("hfl/chinese-roberta-wwm-ext-large",),
            (KERAS_H5, TORCH_BIN),
            WORDPIECE,
            "Its masked-LM head is reported to be random: train a new one first.",
        ),
        Published(("DeepPavlov/rubert-base-cased",), (TORCH_BIN,), ("vocab.txt",)),
        Published(
            ("cointegrated/rubert-tiny", "cointegrated/rubert-tiny2"),
            (SAFETENSORS, TORCH_BIN),
            WORDPIECE,
        ),
        Published(
            ("sentence-transformers/all-MiniLM-L6-v2", "BAAI/bge-small-zh-v1.5"),
            (SAFETENSORS, TORCH_BIN),
            WORDPIECE,
            NO_HEAD,
        ),
    ),
    in_google_layout=True,
    without_segments="distilbert",
)
