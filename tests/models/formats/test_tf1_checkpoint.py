"""Checkpoints in Google's layout, with optimizer slots and other heads."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from pipeline.base.errors import InputError
from pipeline.models.formats.model_directory import ModelSource, find_model
from pipeline.models.weight_names import weight_table

tf = pytest.importorskip("tensorflow")


def write_checkpoint(prefix: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a checkpoint as TensorFlow 1's Saver does."""
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )


@pytest.fixture
def tensors(config, weights) -> dict[str, np.ndarray]:
    """All tensors of Google's files, including unused ones, by Google's names."""
    stored = {row.tf1: weights[row.ours] for row in weight_table(config)}
    stored["bert/pooler/dense/kernel"] = np.zeros((16, 16), np.float32)
    stored["bert/pooler/dense/bias"] = np.zeros(16, np.float32)
    stored["cls/seq_relationship/output_weights"] = np.zeros((2, 16), np.float32)
    stored["cls/seq_relationship/output_bias"] = np.zeros(2, np.float32)
    for name, value in list(stored.items()):
        stored[f"{name}/adam_m"] = stored[f"{name}/adam_v"] = np.full_like(value, 9)
    return stored | {"global_step": np.array(20, np.int64)}


@pytest.fixture
def directory(tmp_path, config, tensors) -> pathlib.Path:
    """A directory in Google's layout."""
    values = config.to_dict()
    values = {key: values[key] for key in values if key not in ("layer_norm_eps", "pad_token_id")}
    (tmp_path / "bert_config.json").write_text(json.dumps(values), encoding="utf-8")
    (tmp_path / "vocab.txt").write_text("[PAD]\n", encoding="utf-8")
    write_checkpoint(tmp_path / "bert_model.ckpt", tensors)
    return tmp_path


def error_of(source: ModelSource) -> InputError:
    with pytest.raises(InputError) as error:
        source.read_weights()
    assert "\n" not in str(error.value)
    return error.value


def test_all_weights_are_read_from_google_files(directory, config, weights):
    source = find_model(directory)
    assert (source.config, source.directory) == (config, directory)
    loaded = source.read_weights()
    assert loaded.keys() == weights.keys()
    for name, value in loaded.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, weights[name])


def test_prefix_and_index_file_name_the_same_checkpoint(directory):
    prefix = directory / "bert_model.ckpt"
    sources = [
        ModelSource.from_google(directory / "bert_config.json", path)
        for path in (prefix, directory / "bert_model.ckpt.index")
    ]
    assert sources[0] == sources[1]
    assert [path.name for path in sources[0].weight_files] == [
        "bert_model.ckpt.data-00000-of-00001",
        "bert_model.ckpt.index",
    ]
    assert sources[0].sha256() == find_model(directory).sha256()


def test_missing_tensors_and_wrong_shapes_are_named(directory, tensors):
    name = "bert/encoder/layer_1/output/dense/kernel"
    prefix = directory / "bert_model.ckpt"
    kernel = tensors.pop(name)
    write_checkpoint(prefix, tensors)
    source = find_model(directory)
    error = error_of(source)
    assert error.subject == str(prefix)
    assert error.received == f"1 tensor missing: {name} [24, 16]"
    write_checkpoint(prefix, tensors | {name: kernel.T})
    assert error_of(source).received == (
        f"1 tensor of the wrong shape: {name}: expected [24, 16], received [16, 24]"
    )


@pytest.mark.parametrize(
    ("dtype", "received"), [(bytes, "string"), (np.int32, "int32"), (np.complex64, "complex64")]
)
def test_tensors_other_than_floats_are_refused(directory, tensors, dtype, received):
    name = "bert/encoder/layer_1/output/dense/kernel"
    prefix = directory / "bert_model.ckpt"
    write_checkpoint(prefix, tensors | {name: tensors[name].astype(dtype)})
    source = find_model(directory)
    error = error_of(source)
    assert (error.subject, error.received) == (f"{prefix}: {name}", received)


def test_floats_of_other_sizes_become_float32(directory, tensors, weights):
    prefix = directory / "bert_model.ckpt"
    changed = {name: value.astype(np.float64) for name, value in tensors.items()}
    write_checkpoint(prefix, changed)
    for name, value in find_model(directory).read_weights().items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, weights[name])


def test_layers_missing_in_the_configuration_are_refused(directory):
    source = find_model(directory)
    smaller = dataclasses.replace(source.config, num_hidden_layers=2)
    error = error_of(dataclasses.replace(source, config=smaller))
    assert "16 tensors not in the configuration: bert/encoder/layer_2/" in error.received


def test_truncated_data_file_is_refused(directory):
    path = directory / "bert_model.ckpt.data-00000-of-00001"
    path.write_bytes(path.read_bytes()[:500])
    error = error_of(find_model(directory))
    assert error.subject == str(directory / "bert_model.ckpt")
    assert error.expected == "a valid TensorFlow checkpoint"


def test_damaged_index_file_is_refused(directory):
    (directory / "bert_model.ckpt.index").write_bytes(b"no checkpoint" * 20)
    assert error_of(find_model(directory)).expected == "a valid TensorFlow checkpoint"


def test_missing_data_file_is_refused(directory):
    path = directory / "bert_model.ckpt.data-00000-of-00001"
    path.unlink()
    with pytest.raises(InputError) as error:
        find_model(directory)
    assert error.value.subject == str(directory / "bert_model.ckpt")
    assert error.value.received == f"no file {path.name}"
