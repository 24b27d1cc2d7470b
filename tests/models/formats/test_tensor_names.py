"""Names of tensors with various prefixes, and messages about other files."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.base.errors import InputError
from pipeline.models.config import EncoderConfig
from pipeline.models.formats.model_directory import ModelSource, find_model, save_hf_weights
from pipeline.models.weight_names import encoder_table, weight_table

WORDS = "bert.embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"
Rename = Callable[[str], str]


@pytest.fixture
def directory(tmp_path, config, weights) -> pathlib.Path:
    save_hf_weights(tmp_path, config, weights)
    return tmp_path


@pytest.fixture
def tensors(directory) -> dict[str, np.ndarray]:
    return load_file(directory / "model.safetensors")


def write(
    directory: pathlib.Path, tensors: dict[str, np.ndarray], rename: Rename = lambda name: name
) -> ModelSource:
    renamed = {rename(name): value for name, value in tensors.items()}
    save_file(renamed, directory / "model.safetensors")
    return find_model(directory)


def set_key(directory: pathlib.Path, **values: object) -> None:
    path = directory / "config.json"
    content = {**json.loads(path.read_text()), **values}
    content = {key: value for key, value in content.items() if value is not ...}
    path.write_text(json.dumps(content))


def encoder_of(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value for name, value in tensors.items() if name.startswith("bert.")}


def refusal(source: ModelSource) -> InputError:
    with pytest.raises(InputError) as error:
        source.read_weights()
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 1_000
    return error.value


def assert_equal(received: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert received.keys() == expected.keys()
    for name, value in received.items():
        np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: f"model.{name}",
        lambda name: name.removeprefix("bert."),
        lambda name: f"module.{name.removeprefix('bert.')}",
        lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ),
        lambda name: name.replace("predictions.bias", "predictions.decoder.bias"),
        lambda name: DECODER if name == WORDS else name,
    ],
)
def test_masked_lm_is_read_with_any_known_prefix(
    directory, tensors, weights, rename: Rename
) -> None:
    source = write(directory, tensors, rename)
    assert source.has_head
    assert_equal(source.read_weights(), weights)


@pytest.mark.parametrize("prefix", ["bert.", "", "module.", "module.bert."])
def test_encoder_without_a_head_is_read_with_and_without_a_prefix(
    directory, tensors, weights, config, prefix: str
) -> None:
    extra = {
        "bert.pooler.dense.weight": np.ones((16, 16), np.float32),
        "bert.embeddings.position_ids": np.arange(20)[None],
    }
    source = write(
        directory,
        encoder_of(tensors) | extra,
        lambda name: prefix + name.removeprefix("bert."),
    )
    assert not source.has_head
    encoder = {row.ours: weights[row.ours] for row in encoder_table(config)}
    assert_equal(source.read_weights(encoder_table(config)), encoder)
    assert source.open_files().shapes["bert.pooler.dense.weight"] == (16, 16)
    error = refusal(source)
    assert error.subject == str(directory)
    assert error.received.startswith("none: its files lack cls.predictions.transform.dense.weight")
    assert f"run_distill --student={directory} --freeze=encoder --losses=masked_lm=1" in str(error)


def test_incomplete_head_is_refused(directory, tensors) -> None:
    remaining = {name: value for name, value in tensors.items() if "transform" not in name}
    source = write(directory, remaining)
    assert not source.has_head
    assert refusal(source).received.startswith("1 of its 5 tensors, without")


def test_error_of_a_task_model_names_its_head(directory, tensors) -> None:
    classifier = {"classifier.weight": np.ones((2, 16), np.float32)}
    source = write(directory, encoder_of(tensors) | classifier)
    assert refusal(source).received.endswith("and have classifier.weight")


def test_surplus_layers_of_an_encoder_without_prefix_are_refused(
    directory, tensors, config
) -> None:
    write(directory, encoder_of(tensors), lambda name: name.removeprefix("bert."))
    set_key(directory, num_hidden_layers=2)
    with pytest.raises(InputError) as error:
        source = find_model(directory)
        source.read_weights(encoder_table(source.config))
    assert error.value.received.startswith(
        "16 tensors not in the configuration: bert.encoder.layer.2."
    )


@pytest.mark.parametrize(
    ("prefix", "received", "hint"),
    [
        ("roberta.", "an encoder named roberta.…", '"roberta" or "xlm-roberta"'),
        ("teacher.bert.", "an encoder named teacher.bert.…", "supported families: bert"),
        ("electra.", "an encoder named electra.…", '"electra"'),
    ],
)
def test_error_names_an_unknown_prefix(
    directory, tensors, prefix: str, received: str, hint: str
) -> None:
    source = write(directory, tensors, lambda name: name.replace("bert.", prefix))
    error = refusal(source)
    assert (error.subject, error.received) == (str(directory), received)
    assert hint in error.hint


def test_error_names_the_family_of_the_tensors(directory, tensors) -> None:
    others = {
        "distilbert.transformer.layer.0.attention.q_lin.weight": np.ones((2, 2), np.float32),
        "vocab_projector.bias": np.ones(2, np.float32),
    }
    error = refusal(write(directory, others))
    assert error.received == "1 named distilbert.…, 1 named vocab_projector.…"
    assert '"distilbert"' in error.hint
    assert refusal(write(directory, {"x": np.ones(1)})).received == "1 named x.…"
    assert refusal(write(directory, {})).received == "none"


def test_unused_tensors_are_counted_in_one_line(directory, tensors, capsys) -> None:
    write(directory, tensors).print_unused()
    assert capsys.readouterr().err == ""
    extra = {
        "bert.embeddings.position_ids": np.arange(20)[None],
        "bert.pooler.dense.weight": np.ones((16, 16), np.float32),
        "bert.pooler.dense.bias": np.ones(16, np.float32),
        "cls.seq_relationship.weight": np.ones((2, 16), np.float32),
        "cls.seq_relationship.bias": np.ones(2, np.float32),
        DECODER: tensors[WORDS],
    }
    write(directory, tensors | extra).print_unused()
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1
    assert printed[0].startswith(f"{directory}: 5 tensors not used: ")


# Configurations without `model_type`.


def test_model_without_model_type_is_a_bert_for_any_directory_name(
    tmp_path, config, weights
) -> None:
    folder = tmp_path / "chinese_roberta_wwm_ext_pytorch"
    folder.mkdir()
    save_hf_weights(folder, config, weights)
    set_key(folder, model_type=..., architectures=...)
    assert_equal(find_model(folder).read_weights(), weights)


def test_tensors_of_another_family_without_model_type_are_refused(directory, tensors) -> None:
    set_key(directory, model_type=..., architectures=...)
    source = write(directory, tensors, lambda name: name.replace("bert.", "roberta."))
    assert '"roberta"' in refusal(source).hint
    set_key(directory, architectures=["RobertaModel"])
    with pytest.raises(InputError) as error:
        find_model(directory)
    assert error.value.subject == f"{directory / 'config.json'}: model_type"
    assert error.value.expected.startswith("'roberta'")


def test_bert_config_json_with_hugging_face_weights_is_read(directory, weights) -> None:
    (directory / "config.json").rename(directory / "bert_config.json")
    source = find_model(directory)
    assert source.format == "safetensors"
    assert_equal(source.read_weights(), weights)


# Separate output layers.


@pytest.fixture
def untied(config) -> EncoderConfig:
    return dataclasses.replace(config, tie_word_embeddings=False)


@pytest.fixture
def untied_weights(untied, weights) -> dict[str, np.ndarray]:
    assert [row.ours for row in weight_table(untied) if row.ours not in weights] == ["head/decoder"]
    return weights | {"head/decoder": weights["encoder/embeddings/word_embeddings"][::-1] + 1}


def test_separate_output_layer_survives_a_round_trip(tmp_path, untied, untied_weights) -> None:
    save_hf_weights(tmp_path, untied, untied_weights)
    stored = load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(stored[DECODER], untied_weights["head/decoder"])
    np.testing.assert_array_equal(
        stored["cls.predictions.decoder.bias"], stored["cls.predictions.bias"]
    )
    source = find_model(tmp_path)
    assert source.config == untied and source.has_head
    assert_equal(source.read_weights(), untied_weights)


def test_separate_output_layer_uses_the_bias_of_the_decoder(
    tmp_path, untied, untied_weights
) -> None:
    save_hf_weights(tmp_path, untied, untied_weights)
    stored = load_file(tmp_path / "model.safetensors")
    changed = {"cls.predictions.bias": np.zeros(37, np.float32)}
    source = write(tmp_path, stored | changed)
    np.testing.assert_array_equal(source.read_weights()["head/bias"], untied_weights["head/bias"])


def test_equal_output_matrix_counts_as_tied(tmp_path, config, untied, weights) -> None:
    words = weights["encoder/embeddings/word_embeddings"]
    save_hf_weights(tmp_path, untied, weights | {"head/decoder": words})
    source = find_model(tmp_path)
    assert source.config == config
    assert_equal(source.read_weights(), weights)


def test_encoder_without_a_head_counts_as_tied(directory, tensors, config) -> None:
    set_key(directory, tie_word_embeddings=False)
    assert write(directory, encoder_of(tensors)).config == config


def test_head_without_its_output_layer_is_incomplete(directory, tensors) -> None:
    set_key(directory, tie_word_embeddings=False)
    source = write(directory, tensors)
    assert not source.has_head
    assert refusal(source).received.startswith(f"5 of its 6 tensors, without {DECODER}")
