"""ModernBERT (Warner et al., 2024), also Ettin, mmBERT and RuModernBERT."""

from collections.abc import Mapping
from typing import Any

from pipeline.base.errors import InputError
from pipeline.base.json_text import format_value
from pipeline.models.families.base import (
    SAFETENSORS,
    TORCH_BIN,
    Family,
    Published,
    SequenceHead,
)

# Names of the layers that every head has before its output layer.
_DENSE, _NORM = "head.dense", "head.norm"
# Keys that `transformers` 5 writes, and the older keys that replace them here.
_LAYER_TYPES, _EVERY = "layer_types", "global_attn_every_n_layers"
_ROPE, _ROPE_SCALING = "rope_parameters", "rope_scaling"
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
_THETAS = {_GLOBAL: "global_rope_theta", _LOCAL: "local_rope_theta"}
_USUAL_PERIOD = 3


def read_settings(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of a `config.json` with the keys that every `transformers` reads.

    Raises:
        InputError: the global layers are not 0, k, 2k, … for any k, or positions are scaled.
    """
    settings = dict(raw)
    # Newer files have null here, where the first release used the base of the global layers.
    if _THETAS[_LOCAL] in raw and raw[_THETAS[_LOCAL]] is None:
        settings[_THETAS[_LOCAL]] = raw.get(_THETAS[_GLOBAL])
    if raw.get(_ROPE_SCALING) is not None:
        raise InputError(_ROPE_SCALING, "null", format_value(raw[_ROPE_SCALING]))
    if raw.get(_LAYER_TYPES) is not None:
        settings[_EVERY] = _period(raw[_LAYER_TYPES], raw)
    if raw.get(_ROPE) is not None:
        settings |= _read_thetas(raw[_ROPE])
    return settings


def _period(layer_types: Any, raw: Mapping[str, Any]) -> int:
    """Returns k of a list of layer types in which layers 0, k, 2k, … are global."""
    count = len(layer_types) if isinstance(layer_types, list) else 0
    candidates = [raw.get(_EVERY), _USUAL_PERIOD, *range(1, count + 1)]
    for period in candidates if count == raw.get("num_hidden_layers") else ():
        # The file's value may have any type.
        is_count = isinstance(period, int) and period > 0
        if is_count and layer_types == [_LOCAL if i % period else _GLOBAL for i in range(count)]:
            return period
    expected = f"{_GLOBAL} for layers 0, k, 2k, … of some k, and {_LOCAL} for all others"
    raise InputError(_LAYER_TYPES, expected, format_value(layer_types))


def _read_thetas(parameters: Any) -> dict[str, Any]:
    """Returns the bases of rotary positions, which newer files have by layer type."""
    settings = {}
    for layer_type, key in _THETAS.items():
        # A layer type that is missing or null has its default.
        values = (parameters.get(layer_type) or {}) if isinstance(parameters, dict) else None
        if not isinstance(values, dict) or values.get("rope_type", "default") != "default":
            expected = f"{_GLOBAL} and {_LOCAL}, each with the rope_type default"
            raise InputError(_ROPE, expected, format_value(parameters))
        if "rope_theta" in values:
            settings[key] = values["rope_theta"]
    return settings


FAMILY = Family(
    model_type="modernbert",
    title="ModernBERT",
    class_prefix="ModernBert",
    sequence_head=SequenceHead(
        dense=_DENSE,
        norm=_NORM,
        dropout=("classifier_dropout", 0.0),
        activation="gelu",
        is_pretrained=True,
    ),
    has_sequence_head_over_tokens=True,
    published=(
        Published(
            ("answerdotai/ModernBERT-base", "answerdotai/ModernBERT-large"),
            (SAFETENSORS, TORCH_BIN),
            ("tokenizer.json",),
        ),
        Published(
            ("deepvk/RuModernBERT-small", "deepvk/RuModernBERT-base"),
            (SAFETENSORS,),
            ("tokenizer.json",),
        ),
        Published(
            (
                "jhu-clsp/ettin-encoder-17m",
                "jhu-clsp/ettin-encoder-150m",
                "jhu-clsp/mmBERT-base",
            ),
            (TORCH_BIN,),
            ("tokenizer.json",),
        ),
    ),
    hf_names=(
        ("bert.encoder.LayerNorm", "model.final_norm"),
        ("bert.encoder.layer.", "model.layers."),
        ("bert.embeddings.word_embeddings", "model.embeddings.tok_embeddings"),
        ("bert.embeddings.LayerNorm", "model.embeddings.norm"),
        ("bert.", "model."),
        ("attention.self.query_key_value", "attn.Wqkv"),
        ("attention.output.dense", "attn.Wo"),
        ("attention.output.LayerNorm", "attn_norm"),
        ("intermediate.dense", "mlp.Wi"),
        ("output.dense", "mlp.Wo"),
        ("output.LayerNorm", "mlp_norm"),
        ("cls.predictions.transform.dense", _DENSE),
        ("cls.predictions.transform.LayerNorm", _NORM),
        ("cls.predictions.decoder.", "decoder."),
        ("cls.predictions.", "decoder."),
    ),
    config_keys={
        "hidden_act": "hidden_activation",
        "hidden_dropout_prob": "mlp_dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "layer_norm_eps": "norm_eps",
    },
    config_defaults={
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": 1e-5,
        _EVERY: _USUAL_PERIOD,
        "local_attention": 128,
        "global_rope_theta": 160_000.0,
        "local_rope_theta": 10_000.0,
        "classifier_pooling": "cls",
    },
    fixed_options={
        "attention_bias": False,
        "mlp_bias": False,
        "norm_bias": False,
        "classifier_bias": False,
        "decoder_bias": True,
        "classifier_activation": "gelu",
    },
    # Some published files have this key, and it has no effect.
    ignored_options=("position_embedding_type",),
    null_settings=("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"),
    own_fields=(
        _EVERY,
        "local_attention",
        "global_rope_theta",
        "local_rope_theta",
        "embedding_dropout",
        "classifier_pooling",
    ),
    read_settings=read_settings,
    architecture="modernbert",
    has_biases=False,
    has_gated_units=True,
    has_segments=False,
    head_act="gelu",
)
