"""TensorFlow's h5 files: names of tensors, and refused contents."""

import json
import pathlib
from collections.abc import Callable

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.base.errors import InputError
from pipeline.models.formats import tf_names
from pipeline.models.formats.h5_files import H5Files
from pipeline.models.formats.model_directory import find_model, save_hf_weights
from tests.models.formats.writing import tf_name, write_h5

FOUR = np.arange(4, dtype=np.float32)


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
    return tmp_path / "tf_model.h5"


@pytest.fixture
def directory(tmp_path, config, weights) -> pathlib.Path:
    """A model directory with `tf_model.h5` as its only weight file."""
    save_hf_weights(tmp_path, config, weights)
    write_h5(tmp_path / "tf_model.h5", load_file(tmp_path / "model.safetensors"))
    (tmp_path / "model.safetensors").unlink()
    return tmp_path


def refusal(path: pathlib.Path) -> InputError:
    with pytest.raises(InputError) as error:
        files = H5Files((path,))
        files.read(list(files.shapes))
    assert str(path) in error.value.subject
    assert len(str(error.value)) < 2_000 and len(str(error.value).splitlines()) == 1
    return error.value


def assert_read(directory: pathlib.Path, weights: dict[str, np.ndarray], format_name: str) -> None:
    source = find_model(directory)
    assert (source.format, source.has_head) == (format_name, True)
    loaded = source.read_weights()
    assert loaded.keys() == weights.keys()
    for name, value in loaded.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, weights[name])


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        (
            "bert/tf_bert_for_masked_lm_1/bert/encoder/layer_._0/attention/self/query/kernel:0",
            "bert.encoder.layer.0.attention.self.query.weight",
        ),
        (
            "bert/tf_bert_model/bert/embeddings/word_embeddings/weight:0",
            "bert.embeddings.word_embeddings.weight",
        ),
        (
            "bert/bert/embeddings/token_type_embeddings/embeddings:0",
            "bert.embeddings.token_type_embeddings.weight",
        ),
        ("bert/embeddings/LayerNorm/gamma:0", "bert.embeddings.LayerNorm.weight"),
        ("bert/my_own_model/bert/pooler/dense/bias:0", "bert.pooler.dense.bias"),
        ("mlm___cls/tf_x/mlm___cls/predictions/bias:0", "cls.predictions.bias"),
        ("nsp___cls/tf_x/nsp___cls/seq_relationship/kernel:0", "cls.seq_relationship.weight"),
        (
            "predictions/tf_albert_for_masked_lm/predictions/decoder/bias:0",
            "predictions.decoder.bias",
        ),
        ("lm_head/tf_roberta_for_masked_lm/lm_head/layer_norm/beta:0", "lm_head.layer_norm.bias"),
        (
            "albert/tf_albert_model/albert/encoder/albert_layer_groups_._0/albert_layers_._0/ffn/kernel:0",
            "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight",
        ),
        (
            "vocab_transform/tf_distil_bert_for_masked_lm/vocab_transform/bias:0",
            "vocab_transform.bias",
        ),
        ("logits_bias:0", "logits_bias"),
        ("", ""),
        ("//:0", ""),
    ],
)
def test_tensorflow_names_are_converted_to_hf_names(stored: str, name: str) -> None:
    assert tf_names.hf_name(stored) == name


def test_model_directory_with_tf_model_h5_opens(directory, weights) -> None:
    assert_read(directory, weights, "h5")


def test_h5_shards_are_read_by_their_index(directory, weights) -> None:
    with h5py.File(directory / "tf_model.h5") as file:
        tensors = {}
        file.visititems(
            lambda name, item: tensors.update({name: item[()]}) if hasattr(item, "shape") else None
        )
    (directory / "tf_model.h5").unlink()
    weight_map = {}
    for index, (name, value) in enumerate(tensors.items()):
        # In shards `transformers` leaves out the names of layer and model.
        short = name.partition("tf_bert_for_masked_lm/")[2]
        if name.startswith("mlm___cls") and "word_embeddings" in name:
            continue
        shard = f"tf_model-{index % 3 + 1:05d}-of-00003.h5"
        with h5py.File(directory / shard, "a") as file:
            file[short] = value
        weight_map[short] = shard
    (directory / "tf_model.h5.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_read(directory, weights, "h5")
    assert len(find_model(directory).weight_files) == 3


def test_safetensors_file_of_tensorflow_is_read_and_flax_refused(
    directory, config, weights
) -> None:
    save_hf_weights(directory, config, weights)
    tensors = load_file(directory / "model.safetensors")
    renamed = {}
    for name, value in tensors.items():
        stored = tf_name(name).partition("tf_bert_for_masked_lm/")[2]
        renamed[stored] = np.ascontiguousarray(value.T) if "/kernel" in stored else value
    save_file(renamed, directory / "model.safetensors", metadata={"format": "tf"})
    assert_read(directory, weights, "safetensors")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "flax"})
    with pytest.raises(InputError) as error:
        find_model(directory).read_weights()
    assert error.value.received == "tensors of Flax"


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_become_float32(path, dtype) -> None:
    with h5py.File(path, "w") as file:
        file["a/kernel:0"] = np.arange(6).reshape(2, 3).astype(dtype)
    value = H5Files((path,)).read(["a.weight"])["a.weight"]
    assert value.dtype == np.float32
    np.testing.assert_array_equal(value, np.arange(6).reshape(2, 3).T)


def test_variable_is_read_from_the_layer_that_owns_it(path) -> None:
    with h5py.File(path, "w") as file:
        file["a_head/tf_x/bert/embeddings/word_embeddings/weight:0"] = FOUR + 1
        file["bert/tf_x/bert/embeddings/word_embeddings/weight:0"] = FOUR
    name = "bert.embeddings.word_embeddings.weight"
    np.testing.assert_array_equal(H5Files((path,)).read([name])[name], FOUR)


def _external(file: h5py.File, other: pathlib.Path) -> None:
    with h5py.File(other, "w") as second:
        second["b"] = FOUR
    file["x"] = h5py.ExternalLink(str(other), "b")


def _soft(file: h5py.File, other: pathlib.Path) -> None:
    file["x"] = h5py.SoftLink("/w")


def _circle(file: h5py.File, other: pathlib.Path) -> None:
    inner = file.create_group("x/y")
    inner["z"] = file["x"]


def _twice(file: h5py.File, other: pathlib.Path) -> None:
    file.create_group("x")
    file["y"] = file["x"]


def _deep(file: h5py.File, other: pathlib.Path) -> None:
    file["x" + "/x" * 40] = FOUR


def _named_type(file: h5py.File, other: pathlib.Path) -> None:
    file["x"] = np.dtype("f4")


def _empty(file: h5py.File, other: pathlib.Path) -> None:
    file["x"] = h5py.Empty("f4")


def _text(file: h5py.File, other: pathlib.Path) -> None:
    file["x"] = ["a", "b"]


def _references(file: h5py.File, other: pathlib.Path) -> None:
    file.create_dataset("x", data=[file["w"].ref], dtype=h5py.ref_dtype)


def _integers(file: h5py.File, other: pathlib.Path) -> None:
    file["x"] = np.arange(3)


def _long_floats(file: h5py.File, other: pathlib.Path) -> None:
    file["x"] = np.arange(3).astype(np.longdouble)


def _compressed(file: h5py.File, other: pathlib.Path) -> None:
    file.create_dataset("x", data=np.zeros(2**22, np.float32), compression="gzip")


def _never_written(file: h5py.File, other: pathlib.Path) -> None:
    file.create_dataset("x", shape=(2**40,), dtype="f4", chunks=(2**10,))


def _raw_data_elsewhere(file: h5py.File, other: pathlib.Path) -> None:
    other.write_bytes(FOUR.tobytes())
    file.create_dataset("x", (4,), "f4", external=[(str(other), 0, 16)])


def _virtual(file: h5py.File, other: pathlib.Path) -> None:
    with h5py.File(other, "w") as second:
        second["b"] = FOUR
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(str(other), "b", (4,))
    file.create_virtual_dataset("x", layout)


def _two_shapes(file: h5py.File, other: pathlib.Path) -> None:
    file["x/tf_x/y/bias:0"] = FOUR
    file["y/tf_x/y/bias:0"] = FOUR[:3]


@pytest.mark.parametrize(
    ("add", "text"),
    [
        (_external, "ExternalLink"),
        (_soft, "SoftLink"),
        (_circle, "contains itself"),
        (_twice, "occurs twice"),
        (_deep, "deep"),
        (_named_type, "Datatype"),
        (_empty, "empty"),
        (_text, "object"),
        (_references, "object"),
        (_integers, "int64"),
        (_long_floats, "float"),
        (_compressed, "uncompressed"),
        (_never_written, "bytes"),
        (_raw_data_elsewhere, "in the file itself"),
        (_virtual, "in the file itself"),
        (_two_shapes, "twice"),
    ],
)
def test_contents_other_than_plain_tensors_are_refused(
    path, add: Callable[[h5py.File, pathlib.Path], None], text: str
) -> None:
    with h5py.File(path, "w") as file:
        file["w"] = FOUR
        add(file, path.with_name("other"))
    error = refusal(path)
    assert text in f"{error.expected} {error.received}"


@pytest.mark.parametrize("content", [b"", b"no h5 file", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_files_of_other_formats_are_refused(path, content: bytes) -> None:
    path.write_bytes(content)
    assert refusal(path).expected == "a valid h5 file"


def test_every_truncated_h5_file_is_refused(path) -> None:
    write_h5(path, {"bert.a.bias": FOUR})
    content = path.read_bytes()
    for length in range(0, len(content) - 1, 61):
        path.write_bytes(content[:length])
        refusal(path)


def test_tensor_of_the_wrong_shape_is_named(directory) -> None:
    with h5py.File(directory / "tf_model.h5", "a") as file:
        name = "mlm___cls/tf_bert_for_masked_lm/mlm___cls/predictions/bias:0"
        del file[name]
        file[name] = FOUR
    with pytest.raises(InputError) as error:
        find_model(directory).read_weights()
    expected = "1 tensor of the wrong shape: cls.predictions.bias: expected [37], received [4]"
    assert error.value.received == expected
