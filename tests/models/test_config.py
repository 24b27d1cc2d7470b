"""EncoderConfig: both layouts of configuration files, and refused values."""

import dataclasses
import json

import pytest

from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.models.config import EncoderConfig
from pipeline.models.families import FAMILIES
from tools.convert_checkpoint import google_config

KNOWN = f"one of {', '.join(FAMILIES)}"
GOOGLE = {
    "vocab_size": 15,
    "hidden_size": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 16,
    "hidden_act": "gelu",
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0,
    "initializer_range": 0.02,
    "directionality": "bidi",
    "pooler_type": "first_token_transform",
}


def write(folder: Location, **changes: object) -> Location:
    values = {key: value for key, value in (GOOGLE | changes).items() if value != "absent"}
    path = folder / "config.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_google_file_gets_default_values(tmp_path):
    config = EncoderConfig.from_json(write(tmp_path, initializer_range="absent"))
    assert (config.initializer_range, config.layer_norm_eps, config.pad_token_id) == (
        0.02,
        1e-12,
        0,
    )
    assert (config.vocab_size, config.hidden_act) == (15, "gelu")


def test_config_survives_a_round_trip_through_hf(tmp_path):
    config = EncoderConfig.from_json(write(tmp_path, layer_norm_eps=1e-7, pad_token_id=3))
    path = tmp_path / "hf.json"
    path.write_text(json.dumps(config.to_hf()), encoding="utf-8")
    assert EncoderConfig.from_json(path) == config
    assert config.to_hf()["architectures"] == ["BertForMaskedLM"]
    assert config.to_hf()["tie_word_embeddings"] is True


def test_to_dict_has_every_field_in_order(config):
    names = [field.name for field in dataclasses.fields(EncoderConfig) if not field.metadata]
    assert list(config.to_dict()) == names
    assert EncoderConfig(**config.to_dict()) == config


@pytest.mark.parametrize(
    ("key", "value", "expected", "received"),
    [
        ("model_type", "t5", KNOWN, None),
        ("model_type", [], KNOWN, None),
        ("vocab_size", "absent", "a value", "none, the key is missing"),
        ("hidden_size", None, "a value", "none, the key is missing"),
        ("vocab_size", 0, "an integer from 1 to 2147483647", None),
        ("vocab_size", 2.0, "an integer from 1 to 2147483647", None),
        ("vocab_size", "15", "an integer from 1 to 2147483647", None),
        ("vocab_size", 10**30, "an integer from 1 to 2147483647", None),
        ("vocab_size", 2**31, "an integer from 1 to 2147483647", None),
        ("num_hidden_layers", True, "an integer from 1 to 10000", None),
        ("num_hidden_layers", 10**9, "an integer from 1 to 10000", None),
        ("type_vocab_size", 0, "a positive integer", None),
        ("hidden_size", 6, "a multiple of num_attention_heads=4", None),
        ("hidden_act", "swish", "one of gelu, gelu_new, gelu_pytorch_tanh, relu", None),
        ("hidden_act", ["gelu"], "one of gelu, gelu_new, gelu_pytorch_tanh, relu", None),
        ("hidden_dropout_prob", 1, "a number in [0, 1)", None),
        ("hidden_dropout_prob", False, "a number in [0, 1)", None),
        ("attention_probs_dropout_prob", float("nan"), "a number in [0, 1)", None),
        ("layer_norm_eps", "1e-12", "a positive number", None),
        ("layer_norm_eps", float("inf"), "a positive number", None),
        ("initializer_range", float("nan"), "a positive number", None),
        ("initializer_range", 0, "a positive number", None),
        ("pad_token_id", 15, "an integer in [0, 15)", None),
        ("pad_token_id", -1, "an integer from 0 to 2147483647", None),
        ("pad_token_id", False, "an integer from 0 to 2147483647", None),
        ("tie_word_embeddings", "false", "true or false", None),
        ("tie_word_embeddings", 0, "true or false", None),
        ("position_embedding_type", "relative_key", "'absolute'", None),
    ],
)
def test_invalid_values_are_refused_with_file_and_key(tmp_path, key, value, expected, received):
    path = write(tmp_path, **{key: value})
    with pytest.raises(InputError) as error:
        EncoderConfig.from_json(path)
    assert error.value.subject == f"{path}: {key}"
    assert error.value.expected == expected
    assert error.value.received == (repr(value) if received is None else received)


def test_long_value_is_truncated_in_messages(tmp_path) -> None:
    with pytest.raises(InputError) as error:
        EncoderConfig.from_json(write(tmp_path, hidden_act=["x"] * 9999))
    assert error.value.received.endswith("…")


def test_errors_name_the_setting_of_the_file(tmp_path) -> None:
    path = Location.parse(str(write(tmp_path, vocab_size=0)), "bert_config_file")
    with pytest.raises(InputError) as error:
        EncoderConfig.from_json(path)
    assert error.value.setting == "bert_config_file"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model_type": "albert"}, "model_type"),
        ({"hidden_act": "gelu_new"}, "hidden_act"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps"),
    ],
)
def test_google_layout_refuses_values_that_it_cannot_state(config, changes, key) -> None:
    embedding_size = 8 if key == "model_type" else None
    config = dataclasses.replace(config, embedding_size=embedding_size, **changes)
    with pytest.raises(InputError) as error:
        google_config(config)
    assert error.value.subject == key
