"""Hugging Face directories: round trips, and refused defects."""

import dataclasses
import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.base.errors import InputError
from pipeline.base.json_text import format_value
from pipeline.base.location import Location
from pipeline.models.config import EncoderConfig
from pipeline.models.families import FAMILIES
from pipeline.models.formats.hf_files import modern_name
from pipeline.models.formats.model_directory import (
    ModelSource,
    assign_weights,
    find_model,
    get_weights,
    load_masked_lm,
    save_hf,
)
from pipeline.models.formats.safetensors_files import SafetensorsFiles
from pipeline.models.masked_lm import MaskedLM
from pipeline.models.weight_names import encoder_table
from tests.family_examples import example_config

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
    """Splits the weights over two files; returns the weight map for an index."""
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


def read(directory: pathlib.Path, config: EncoderConfig) -> dict[str, np.ndarray]:
    return dataclasses.replace(find_model(directory), config=config).read_weights()


def error_of(directory: pathlib.Path, config: EncoderConfig) -> InputError:
    with pytest.raises(InputError) as error:
        read(directory, config)
    assert "\n" not in str(error.value)
    return error.value


def test_assigned_weights_are_returned_unchanged(config, weights):
    model = MaskedLM(config)
    assign_weights(model, weights)
    assert_equal(get_weights(model), weights)


def test_assign_refuses_wrong_weights_and_changes_nothing(config, weights):
    model = MaskedLM(config)
    before = get_weights(model)
    lacking = {name: value for name, value in weights.items() if name != "head/bias"}
    with pytest.raises(ValueError, match=r"head/bias: expected shape \(37,\), received None"):
        assign_weights(model, lacking)
    with pytest.raises(ValueError, match="extra: expected shape None"):
        assign_weights(model, weights | {"extra": np.zeros(1)})
    with pytest.raises(ValueError, match=r"head/bias: expected shape \(37,\), received \(36,\)"):
        assign_weights(model, weights | {"head/bias": np.zeros(36)})
    assert_equal(get_weights(model), before)


def test_saved_weights_are_read_unchanged(directory, config, weights):
    assert_equal(read(directory, config), weights)
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "model.safetensors"]


def test_reduced_precision_model_is_saved_in_float32(tmp_path, config, weights):
    model = MaskedLM(config, dtype="mixed_bfloat16")
    assign_weights(model, weights)
    save_hf(tmp_path, model)
    assert_equal(read(tmp_path, config), weights)


def test_found_model_loads_with_its_weights(directory, config, weights):
    (directory / "vocab.txt").write_text("[PAD]\n", encoding="utf-8")
    source = find_model(directory)
    assert source.config == config
    assert source.has_weights
    assert source.directory == directory
    assert_equal(get_weights(load_masked_lm(source)), weights)


def test_sha256_depends_only_on_config_and_weights(directory, tmp_path_factory):
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
    assert_equal(read(directory, config), expected)


def test_integer_tensors_are_refused(directory, config):
    change(directory, {"cls.predictions.bias": np.zeros(37, np.int32)})
    error = error_of(directory, config)
    assert error.subject == f"{directory / 'model.safetensors'}: cls.predictions.bias"
    assert error.received == "I32"


def test_old_names_gamma_and_beta_are_converted():
    assert modern_name("bert.embeddings.LayerNorm.gamma") == "bert.embeddings.LayerNorm.weight"
    assert modern_name("cls.x.LayerNorm.beta") == "cls.x.LayerNorm.bias"
    assert modern_name("cls.predictions.bias") == "cls.predictions.bias"


def test_old_names_tied_copies_and_other_heads_are_read(directory, config, weights):
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
    assert_equal(read(directory, config), weights)


def test_sharded_weights_are_read(directory, config, weights):
    write_index(directory, shard(directory))
    assert_equal(read(directory, config), weights)
    assert len(find_model(directory).weight_files) == 2


INDEX = "model.safetensors.index.json"


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
def test_index_refuses_files_outside_its_directory(directory, config, name):
    write_index(directory, shard(directory) | {QUERY: name})
    error = error_of(directory, config)
    assert error.subject == f"{directory / INDEX}: weight_map"
    assert error.received == format_value(name)


def test_index_with_a_missing_file_is_refused(directory, config):
    write_index(directory, shard(directory) | {QUERY: "gone.safetensors"})
    error = error_of(directory, config)
    assert error.received == f"no such file: {directory / 'gone.safetensors'}"


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_index_without_a_map_is_refused(directory, config, weight_map):
    shard(directory)
    write_index(directory, weight_map)
    assert error_of(directory, config).subject == f"{directory / INDEX}: weight_map"


def test_tensor_in_two_shards_is_refused(directory, config):
    weight_map = shard(directory)
    second = directory / "model-00002-of-00002.safetensors"
    twice = min(name for name, file in weight_map.items() if "00001" in file)
    first = load_file(directory / "model-00001-of-00002.safetensors")
    save_file(load_file(second) | {twice: first[twice]}, second)
    write_index(directory, weight_map)
    error = error_of(directory, config)
    assert error.subject == str(second)
    for text in (twice, "twice", "model-00001-of-00002.safetensors"):
        assert text in error.received


def test_norm_with_old_and_new_names_is_refused(directory, config):
    change(directory, {"bert.embeddings.LayerNorm.gamma": np.ones(16, np.float32)})
    error = error_of(directory, config)
    assert "bert.embeddings.LayerNorm." in error.received
    assert "twice" in error.received


def test_missing_tensors_are_named(directory, config):
    change(directory, {QUERY: None})
    error = error_of(directory, config)
    assert (error.subject, error.received) == (
        str(directory),
        f"1 tensor missing: {QUERY} [16, 16]",
    )
    prefix = "bert.encoder.layer.2."
    tensors = load_file(directory / "model.safetensors")
    change(directory, {name: None for name in tensors if name.startswith(prefix)})
    received = error_of(directory, config).received
    assert received.startswith(f"17 tensors missing: {QUERY} [16, 16]; {prefix}")
    assert received.endswith(" and 14 more")


def test_tensors_of_the_wrong_shape_are_named(directory, config):
    change(directory, {WORDS: np.zeros((38, 16), np.float32)})
    assert error_of(directory, config).received == (
        f"1 tensor of the wrong shape: {WORDS}: expected [37, 16], received [38, 16]"
    )


def test_layers_missing_in_the_configuration_are_named(directory, config):
    smaller = dataclasses.replace(config, num_hidden_layers=2)
    received = error_of(directory, smaller).received
    assert received.startswith("16 tensors not in the configuration: bert.encoder.layer.2.")
    assert received.endswith(" and 13 more")


def test_untied_output_layer_is_refused(directory, config):
    words = load_file(directory / "model.safetensors")[WORDS]
    name = "cls.predictions.decoder.weight"
    change(directory, {name: words + 1})
    error = error_of(directory, config)
    assert error.subject == f"{directory}: {name}"
    assert WORDS in error.expected


def test_corrupt_file_is_refused(directory, config):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    error = error_of(directory, config)
    assert error.subject == str(path)
    assert error.expected == "a valid safetensors file"


def test_find_model_refuses_a_directory_without_a_model(directory, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    (directory / "model.safetensors").unlink()
    for path, text in (
        (empty / "gone", "no such directory"),
        (empty, "an empty directory"),
        (directory, "only config.json"),
    ):
        with pytest.raises(InputError) as error:
            find_model(path)
        assert error.value.subject == str(path)
        assert error.value.received.startswith(text)


def test_errors_of_a_model_name_the_setting_of_its_directory(directory):
    location = Location.parse(str(directory), "teacher")
    (directory / "model.safetensors").rename(directory / "model.safetensors.moved")
    write_index(directory, {QUERY: "gone.safetensors"})
    with pytest.raises(InputError) as error:
        find_model(location)
    assert error.value.setting == "teacher"
    (directory / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError) as error:
        find_model(location).read_weights()
    assert error.value.setting == "teacher"
    (directory / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(InputError) as error:
        find_model(location)
    assert error.value.setting == "teacher"
    (directory / "config.json").unlink()
    with pytest.raises(InputError) as error:
        find_model(location)
    assert error.value.setting == "teacher"


def test_configuration_without_weights_starts_from_random_weights(directory, config):
    source = ModelSource.from_google(directory / "config.json", None)
    assert not source.has_weights
    with pytest.raises(ValueError, match="expected a source with weights"):
        source.read_weights()
    assert_equal(get_weights(load_masked_lm(source, seed=5)), get_weights(MaskedLM(config, seed=5)))
    assert len(source.sha256()) == 64


def test_from_google_names_missing_files(directory):
    with pytest.raises(InputError) as error:
        ModelSource.from_google(directory / "gone.json", None)
    assert error.value.subject == str(directory / "gone.json")
    with pytest.raises(InputError) as error:
        ModelSource.from_google(directory / "config.json", directory / "bert_model.ckpt")
    assert error.value.subject == str(directory / "bert_model.ckpt")
    assert error.value.received == f"no file {directory / 'bert_model.ckpt.index'}"


def test_symbolic_links_are_followed(tmp_path) -> None:
    """The hub's cache stores models as links to a folder of blobs."""
    (tmp_path / "blob").write_bytes(b"")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").symlink_to(tmp_path / "blob")
    files = SafetensorsFiles.find(tmp_path / "model")
    assert files == (tmp_path / "model" / "model.safetensors",)


def test_file_that_changes_between_two_reads_is_refused(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(2, np.float32)}, path)
    opened = SafetensorsFiles((path,))
    save_file({"b": np.zeros(2, np.float32)}, path)
    with pytest.raises(InputError) as error:
        opened.read(["a"])
    assert error.value.subject == str(path)
    assert len(str(error.value).splitlines()) == 1


def test_long_name_is_truncated_in_messages(tmp_path) -> None:
    path, name = tmp_path / "model.safetensors", "two\nlines" * 10_000
    save_file({name: np.zeros(2, np.int32)}, path)
    with pytest.raises(InputError) as error:
        SafetensorsFiles((path,)).read([name])
    assert error.value.subject.startswith(f"{path}: two linestwo lines")
    assert error.value.received == "I32"
    assert len(str(error.value)) < 1000 and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_unused_rows_of_the_vocabulary_are_not_read(tmp_path, model_type: str, tied: bool) -> None:
    """The digest is still that of the files."""
    config = dataclasses.replace(example_config(model_type), tie_word_embeddings=tied)
    model = MaskedLM(config, seed=3)
    save_hf(tmp_path, model)
    whole, size = find_model(tmp_path), config.vocab_size - 5
    source = whole.with_vocab_size(size)
    assert (source.config.vocab_size, source.unused_rows) == (size, 5)
    assert source.stored_config == whole.config and source.sha256() == whole.sha256()
    expected = {
        name: value[:size] if value.shape[:1] == (config.vocab_size,) else value
        for name, value in get_weights(model).items()
    }
    assert_equal(source.read_weights(), expected)
    encoder = {name: value for name, value in expected.items() if name.startswith("encoder/")}
    assert_equal(source.read_weights(encoder_table(source.config)), encoder)
    assert source.with_vocab_size(config.vocab_size) == whole
