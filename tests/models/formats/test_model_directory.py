"""Hugging Face directories: written, read back, and everything that can be wrong with them."""

import dataclasses
import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.base.errors import InputError
from pipeline.models.formats.model_directory import (
    ModelSource,
    assign_weights,
    find_model,
    get_weights,
    load_masked_lm,
    read_hf_weights,
    save_hf,
)
from pipeline.models.formats.safetensors_files import hf_weight_files, list_tensors, read_tensors
from pipeline.models.masked_lm import MaskedLM

QUERY = "bert.encoder.layer.0.attention.self.query.weight"
WORDS = "bert.embeddings.word_embeddings.weight"


@pytest.fixture
def directory(tmp_path, config, weights) -> pathlib.Path:
    """A model directory as `save_hf` writes it."""
    model = MaskedLM(config)
    assign_weights(model, weights)
    save_hf(tmp_path, model)
    return tmp_path


def change(directory: pathlib.Path, changes: dict[str, np.ndarray | None]) -> None:
    """Replaces tensors, adds them, or removes those given as None."""
    tensors = load_file(directory / "model.safetensors") | changes
    tensors = {name: value for name, value in tensors.items() if value is not None}
    save_file(tensors, directory / "model.safetensors")


def shard(directory: pathlib.Path) -> dict[str, str]:
    """Splits the weights over two files; returns the weight map that still is to be written."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    weight_map = {}
    for part in range(2):
        name = f"model-{part + 1:05d}-of-00002.safetensors"
        names = sorted(tensors)[part::2]
        save_file({key: tensors[key] for key in names}, directory / name)
        weight_map |= dict.fromkeys(names, name)
    return weight_map


def write_index(directory: pathlib.Path, weight_map: object) -> None:
    text = json.dumps({"weight_map": weight_map})
    (directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def assert_equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, right[name])


def message_of(directory: pathlib.Path, config: object) -> str:
    with pytest.raises(InputError) as error:
        read_hf_weights(directory, config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_assign_then_get_is_the_identity(config, weights):
    model = MaskedLM(config)
    assign_weights(model, weights)
    assert_equal(get_weights(model), weights)


def test_assign_refuses_what_does_not_fit_and_changes_nothing(config, weights):
    model = MaskedLM(config)
    before = get_weights(model)
    lacking = {name: value for name, value in weights.items() if name != "head/bias"}
    with pytest.raises(ValueError, match="one for each of 58 variables, received 57.*head/bias"):
        assign_weights(model, lacking)
    with pytest.raises(ValueError, match="differing: extra"):
        assign_weights(model, weights | {"extra": np.zeros(1)})
    with pytest.raises(ValueError, match=r"head/bias: expected shape \[37\], received \[36\]"):
        assign_weights(model, weights | {"head/bias": np.zeros(36)})
    assert_equal(get_weights(model), before)


def test_save_then_read_is_the_identity(directory, config, weights):
    assert_equal(read_hf_weights(directory, config), weights)
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "model.safetensors"]


def test_a_reduced_precision_model_is_saved_in_float32(tmp_path, config, weights):
    model = MaskedLM(config, dtype="mixed_bfloat16")
    assign_weights(model, weights)
    save_hf(tmp_path, model)
    assert_equal(read_hf_weights(tmp_path, config), weights)


def test_find_and_load(directory, config, weights):
    (directory / "vocab.txt").write_text("[PAD]\n", encoding="utf-8")
    source = find_model(directory)
    assert source.config == config
    assert source.has_weights
    assert source.directory == directory
    assert_equal(get_weights(load_masked_lm(source)), weights)


def test_sha256_depends_on_config_and_weights_only(directory, tmp_path_factory):
    digest = find_model(directory).sha256()
    elsewhere = tmp_path_factory.mktemp("copy")
    for path in directory.iterdir():
        (elsewhere / path.name).write_bytes(path.read_bytes())
    (elsewhere / "vocab.txt").write_text("[PAD]\n", encoding="utf-8")
    assert find_model(elsewhere).sha256() == digest
    change(elsewhere, {"cls.predictions.bias": np.ones(37, np.float32)})
    changed = find_model(elsewhere).sha256()
    assert changed != digest
    values = json.loads((elsewhere / "config.json").read_text(encoding="utf-8"))
    (elsewhere / "config.json").write_text(json.dumps(values | {"hidden_act": "relu"}))
    assert find_model(elsewhere).sha256() not in (digest, changed)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_become_float32(directory, config, weights, dtype):
    tensors = load_file(directory / "model.safetensors")
    change(directory, {name: value.astype(dtype) for name, value in tensors.items()})
    expected = {name: value.astype(dtype).astype(np.float32) for name, value in weights.items()}
    assert_equal(read_hf_weights(directory, config), expected)


def test_integer_tensor(directory, config):
    change(directory, {"cls.predictions.bias": np.zeros(37, np.int32)})
    assert message_of(directory, config).endswith(
        "cls.predictions.bias: expected one of F64, F32, F16, BF16, received I32"
    )


def test_old_names_copies_of_tied_tensors_and_other_heads(directory, config, weights):
    tensors = load_file(directory / "model.safetensors")
    old = {}
    for name, value in tensors.items():
        if ".LayerNorm." in name:
            new = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            old[new.replace("LayerNorm.bias", "LayerNorm.beta")] = value
            old[name] = None
    extra = {
        "cls.predictions.decoder.weight": tensors[WORDS],
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
        "bert.pooler.dense.weight": np.zeros((16, 16), np.float32),
        "bert.pooler.dense.bias": np.zeros(16, np.float32),
        "cls.seq_relationship.weight": np.zeros((2, 16), np.float32),
        "cls.seq_relationship.bias": np.zeros(2, np.float32),
        "bert.embeddings.position_ids": np.arange(20)[None],
    }
    change(directory, old | extra)
    assert_equal(read_hf_weights(directory, config), weights)


def test_sharded(directory, config, weights):
    write_index(directory, shard(directory))
    assert_equal(read_hf_weights(directory, config), weights)
    assert len(find_model(directory).weight_files) == 2


@pytest.mark.parametrize(
    "name", ["../evil.safetensors", "/x.safetensors", "a\\b.safetensors", "x.bin"]
)
def test_index_with_a_name_that_leads_elsewhere(directory, config, name):
    write_index(directory, shard(directory) | {QUERY: name})
    message = message_of(directory, config)
    assert message == (
        f"{directory / 'model.safetensors.index.json'}: weight_map: expected the name of a "
        f".safetensors file beside the index, received {name!r}"
    )


def test_index_with_a_missing_file(directory, config):
    write_index(directory, shard(directory) | {QUERY: "gone.safetensors"})
    assert message_of(directory, config).endswith(f"no such file: {directory / 'gone.safetensors'}")


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_index_without_a_map(directory, config, weight_map):
    shard(directory)
    write_index(directory, weight_map)
    assert message_of(directory, config).endswith("weight_map: expected an object of file names")


def test_a_tensor_in_two_shards(directory, config):
    weight_map = shard(directory)
    second = directory / "model-00002-of-00002.safetensors"
    twice = min(name for name, file in weight_map.items() if "00001" in file)
    first = load_file(directory / "model-00001-of-00002.safetensors")
    save_file(load_file(second) | {twice: first[twice]}, second)
    write_index(directory, weight_map)
    assert message_of(directory, config) == (
        f"{second}: tensor {twice} is there twice, first as {twice} in "
        "model-00001-of-00002.safetensors"
    )


def test_a_norm_under_both_names(directory, config):
    change(directory, {"bert.embeddings.LayerNorm.gamma": np.ones(16, np.float32)})
    assert "bert.embeddings.LayerNorm." in message_of(directory, config)
    assert "is there twice" in message_of(directory, config)


def test_missing_tensors(directory, config):
    change(directory, {QUERY: None})
    assert message_of(directory, config) == f"{directory}: 1 tensor missing: {QUERY} [16, 16]"
    prefix = "bert.encoder.layer.2."
    tensors = load_file(directory / "model.safetensors")
    change(directory, {name: None for name in tensors if name.startswith(prefix)})
    message = message_of(directory, config)
    assert message.startswith(f"{directory}: 17 tensors missing: {QUERY} [16, 16]; {prefix}")
    assert message.endswith(" and 14 more")


def test_misshapen_tensor(directory, config):
    change(directory, {WORDS: np.zeros((38, 16), np.float32)})
    assert message_of(directory, config) == (
        f"{directory}: 1 tensor misshapen: {WORDS}: expected [37, 16], received [38, 16]"
    )


def test_transposed_kernel_is_misshapen(directory, config):
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    change(directory, {name: np.zeros((16, 24), np.float32)})
    assert message_of(directory, config).endswith("expected [24, 16], received [16, 24]")


def test_layers_that_the_configuration_does_not_know(directory, config):
    smaller = dataclasses.replace(config, num_hidden_layers=2)
    message = message_of(directory, smaller)
    assert message.startswith(
        f"{directory}: 16 tensors not in the configuration: bert.encoder.layer.2."
    )
    assert message.endswith(" and 13 more")


def test_untied_output_layer(directory, config):
    words = load_file(directory / "model.safetensors")[WORDS]
    change(directory, {"cls.predictions.decoder.weight": words + 1})
    assert message_of(directory, config) == (
        f"{directory}: cls.predictions.decoder.weight: expected the same values as {WORDS}, "
        "received others; a model with an untied output layer is not supported"
    )


def test_corrupt_file(directory, config):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    message = message_of(directory, config)
    assert message.startswith(f"{path}: expected a safetensors file, cannot read it (")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_a_pickle_is_not_read(directory, name):
    (directory / "model.safetensors").rename(directory / name)
    with pytest.raises(InputError) as error:
        find_model(directory)
    assert str(error.value) == (
        f"--teacher: {directory}: expected model.safetensors, received only pytorch_model.bin, "
        'which is a pickle and is not read; convert it: python -c "from transformers import '
        f"AutoModelForMaskedLM; AutoModelForMaskedLM.from_pretrained('{directory}')"
        f".save_pretrained('{directory}', safe_serialization=True)\""
    )


def test_find_model_without_model(directory, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    (directory / "model.safetensors").unlink()
    for path, message in (
        (
            empty / "gone",
            f"--student: no such directory: {empty / 'gone'} "
            "(a model of a hub must be downloaded first)",
        ),
        (
            empty,
            f"--student: expected config.json or bert_config.json in {empty}, found neither",
        ),
        (
            directory,
            f"--student: {directory}: expected model.safetensors or "
            "model.safetensors.index.json, found neither",
        ),
    ):
        with pytest.raises(InputError) as error:
            find_model(path)
        assert str(error.value) == message


def test_a_configuration_alone_starts_from_random_weights(directory, config):
    source = ModelSource.from_google(directory / "config.json", None)
    assert not source.has_weights
    with pytest.raises(ValueError, match="expected a source with weights"):
        source.read_weights()
    assert_equal(get_weights(load_masked_lm(source, seed=5)), get_weights(MaskedLM(config, seed=5)))
    assert len(source.sha256()) == 64


def test_missing_files_name_their_flags(directory):
    with pytest.raises(InputError) as error:
        ModelSource.from_google(directory / "gone.json", None)
    assert str(error.value) == f"--bert_config_file: no such file: {directory / 'gone.json'}"
    with pytest.raises(InputError) as error:
        ModelSource.from_google(directory / "config.json", directory / "bert_model.ckpt")
    assert str(error.value) == (
        "--init_checkpoint: expected the prefix of a TensorFlow checkpoint, no such file: "
        f"{directory / 'bert_model.ckpt.index'}"
    )


@pytest.mark.parametrize(
    "name",
    [
        "../up.safetensors",
        "/etc/up.safetensors",
        "a\\up.safetensors",
        "two\nlines.safetensors",
        "n" * 300 + ".safetensors",
        "\0.safetensors",
        "pytorch_model.bin",
    ],
)
def test_names_in_an_index_stay_beside_it(tmp_path, name: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(InputError, match="expected the name of a .safetensors file beside") as e:
        hf_weight_files(tmp_path)
    assert len(str(e.value).splitlines()) == 1


def test_links_are_followed(tmp_path) -> None:
    """Downloaded models are links into a folder of blobs."""
    (tmp_path / "blob").write_bytes(b"")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").symlink_to(tmp_path / "blob")
    found = hf_weight_files(tmp_path / "model")
    assert found == (tmp_path / "model" / "model.safetensors",)


def test_a_file_that_changes_between_two_readings(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(2, np.float32)}, path)
    found = list_tensors((path,))
    save_file({"b": np.zeros(2, np.float32)}, path)
    with pytest.raises(InputError) as error:
        read_tensors((path,), found)
    message = str(error.value)
    assert message.startswith(f"{path}: expected a safetensors file, cannot read it (")
    assert len(message.splitlines()) == 1


def test_a_long_name_is_shown_in_part(tmp_path) -> None:
    path, name = tmp_path / "model.safetensors", "two\nlines" * 10_000
    save_file({name: np.zeros(2, np.int32)}, path)
    with pytest.raises(InputError) as error:
        read_tensors((path,), list_tensors((path,)))
    message = str(error.value)
    assert message.startswith(f"{path}: two linestwo lines")
    assert message.endswith(": expected one of F64, F32, F16, BF16, received I32")
    assert len(message) < 1000 and len(message.splitlines()) == 1
