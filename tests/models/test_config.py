"""EncoderConfig: both files' layouts, and what it refuses."""

import dataclasses
import json
import pathlib

import pytest

from pipeline.base.errors import InputError
from pipeline.models.config import EncoderConfig

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


def write(folder: pathlib.Path, **changes: object) -> pathlib.Path:
    values = {key: value for key, value in (GOOGLE | changes).items() if value != "absent"}
    path = folder / "config.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_google_file_gets_the_defaults(tmp_path):
    config = EncoderConfig.from_json(write(tmp_path, initializer_range="absent"))
    assert (config.initializer_range, config.layer_norm_eps, config.pad_token_id) == (
        0.02,
        1e-12,
        0,
    )
    assert (config.vocab_size, config.hidden_act) == (15, "gelu")


def test_hf_round_trip(tmp_path):
    config = EncoderConfig.from_json(write(tmp_path, layer_norm_eps=1e-7, pad_token_id=3))
    path = tmp_path / "hf.json"
    path.write_text(json.dumps(config.to_hf()), encoding="utf-8")
    assert EncoderConfig.from_json(path) == config
    assert config.to_hf()["architectures"] == ["BertForMaskedLM"]
    assert config.to_hf()["tie_word_embeddings"] is True


def test_to_dict_has_every_field_in_order(config):
    names = [field.name for field in dataclasses.fields(EncoderConfig)]
    assert list(config.to_dict()) == names
    assert EncoderConfig(**config.to_dict()) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "electra"},
            "model_type: expected one of bert, roberta, xlm-roberta, distilbert, albert, "
            "received 'electra'",
        ),
        ({"vocab_size": "absent"}, "vocab_size: expected a value, the key is missing"),
        ({"hidden_size": None}, "hidden_size: expected a value, the key is missing"),
        ({"vocab_size": 0}, "vocab_size: expected a positive integer, received 0"),
        ({"vocab_size": 2.0}, "vocab_size: expected a positive integer, received 2.0"),
        (
            {"num_hidden_layers": True},
            "num_hidden_layers: expected a positive integer, received True",
        ),
        (
            {"hidden_size": 6},
            "hidden_size: expected a multiple of num_attention_heads=4, received 6",
        ),
        (
            {"hidden_act": "swish"},
            "hidden_act: expected one of gelu, gelu_new, gelu_pytorch_tanh, relu, received 'swish'",
        ),
        ({"hidden_act": ["gelu"]}, "received ['gelu']"),
        (
            {"hidden_dropout_prob": 1},
            "hidden_dropout_prob: expected a number in [0, 1), received 1",
        ),
        (
            {"layer_norm_eps": "1e-12"},
            "layer_norm_eps: expected a positive number, received '1e-12'",
        ),
        ({"pad_token_id": 15}, "pad_token_id: expected an integer in [0, 15), received 15"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings: expected True, received False"),
        (
            {"position_embedding_type": "relative_key"},
            "position_embedding_type: expected 'absolute', received 'relative_key'",
        ),
    ],
)
def test_mistakes_name_file_key_expected_and_received(tmp_path, changes, message):
    path = write(tmp_path, **changes)
    with pytest.raises(InputError) as error:
        EncoderConfig.from_json(path)
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).endswith(message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_type", [], "model_type: expected one of bert, .*, received .]"),
        ("num_hidden_layers", 10**9, "num_hidden_layers: expected at most 10000, received"),
        ("vocab_size", 10**30, "vocab_size: expected at most 2147483647, received 10000"),
        ("layer_norm_eps", float("inf"), "layer_norm_eps: expected a positive number"),
        ("hidden_act", ["x"] * 9999, "hidden_act: expected one of .*…$"),
    ],
)
def test_hostile_values_are_refused(tmp_path, key: str, value: object, message: str) -> None:
    path = write(tmp_path, **{key: value})
    with pytest.raises(InputError, match=f"^{path}: {message}"):
        EncoderConfig.from_json(path)
