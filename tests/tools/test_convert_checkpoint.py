"""Conversion between layouts: bit-equal in both directions, and atomic."""

import dataclasses
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.models.config import EncoderConfig
from pipeline.models.formats.model_directory import find_model
from tests.conftest import save_tiny_bert
from tools import convert_checkpoint

tf = pytest.importorskip("tensorflow")

SHARED = Location.parse(pathlib.Path(__file__).parents[3] / "shared")


def _listed(*lines: str) -> list[str]:
    """Returns the full names in lines like `bert/pooler/dense: bias kernel`."""
    folders = (line.split(": ") for line in lines)
    return [f"{folder}/{name}" for folder, names in folders for name in names.split()]


LAYER = (
    *("attention/output/LayerNorm: beta gamma", "attention/output/dense: bias kernel"),
    *(f"attention/self/{name}: bias kernel" for name in ("key", "query", "value")),
    *(
        "intermediate/dense: bias kernel",
        "output/LayerNorm: beta gamma",
        "output/dense: bias kernel",
    ),
)
# Names of a BERT with three layers, in alphabetical order, as in Google's checkpoints.
GOOGLE_NAMES = _listed(
    "bert/embeddings/LayerNorm: beta gamma",
    "bert/embeddings: position_embeddings token_type_embeddings word_embeddings",
    *(f"bert/encoder/layer_{index}/{line}" for index in range(3) for line in LAYER),
    "bert/pooler/dense: bias kernel",
    "cls/predictions: output_bias",
    "cls/predictions/transform/LayerNorm: beta gamma",
    "cls/predictions/transform/dense: bias kernel",
    "cls/seq_relationship: output_bias output_weights",
)


def _convert(*flags: str, status: int = 0) -> None:
    assert convert_checkpoint.main(["convert_checkpoint", *flags]) == status


def _fails(capsys, *flags: str) -> str:
    _convert(*flags, status=1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0].removeprefix("error: ")


def _names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def google(teacher_dir, tmp_path_factory) -> pathlib.Path:
    """The teacher in Google's layout; read only."""
    folder = tmp_path_factory.mktemp("google") / "model"
    _convert(f"--input={teacher_dir}", f"--output_dir={folder}", "--layout=tf1")
    return folder


def test_conversion_to_tf1_and_back_is_bit_equal(teacher_dir, tmp_path, capsys) -> None:
    google, converted = tmp_path / "google", tmp_path / "deep" / "converted"
    _convert(f"--input={teacher_dir}", f"--output_dir={google}", "--layout=tf1")
    assert capsys.readouterr().out.splitlines() == [
        "weights    58 of a bert, from hf",
        "tokenizer  vocab.txt",
        f"model: {google}",
    ]
    data = ["bert_model.ckpt.data-00000-of-00001", "bert_model.ckpt.index"]
    assert _names(google) == ["bert_config.json", *data, "vocab.txt"]
    _convert(f"--input={google}", f"--output_dir={converted}", "--layout=hf")
    assert _names(converted) == ["config.json", "model.safetensors", "vocab.txt"]
    for name in _names(converted):
        assert (converted / name).read_bytes() == (teacher_dir / name).read_bytes(), name


def test_tf1_layout_has_googles_names_shapes_and_keys(teacher_dir, google) -> None:
    listed = dict(tf.train.list_variables(str(google / "bert_model.ckpt")))
    assert sorted(listed) == GOOGLE_NAMES
    assert listed["bert/encoder/layer_1/intermediate/dense/kernel"] == [32, 64]
    assert listed["bert/pooler/dense/kernel"] == [32, 32]
    assert listed["cls/seq_relationship/output_weights"] == [2, 32]
    reader = tf.train.load_checkpoint(str(google / "bert_model.ckpt"))
    for name in GOOGLE_NAMES:
        assert reader.get_tensor(name).dtype == np.float32
        if "pooler" in name or "seq_relationship" in name:
            assert not reader.get_tensor(name).any()
    theirs = load_file(teacher_dir / "model.safetensors")
    np.testing.assert_array_equal(
        reader.get_tensor("bert/encoder/layer_2/output/dense/kernel"),
        theirs["bert.encoder.layer.2.output.dense.weight"].T,
    )
    assert json.loads((google / "bert_config.json").read_text()) == {
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 32,
        "initializer_range": 0.3,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "type_vocab_size": 2,
        "vocab_size": find_model(teacher_dir).config.vocab_size,
    }


def test_tensorflow_1_saver_restores_the_checkpoint(teacher_dir, google) -> None:
    """Variables are created by name, as in Google's code."""
    prefix = str(google / "bert_model.ckpt")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, shape in tf.train.list_variables(prefix):
            # A random initializer fails if an earlier test has enabled determinism.
            zeros = tf.compat.v1.zeros_initializer()
            tf.compat.v1.get_variable(name, shape, initializer=zeros, use_resource=False)
        tf.compat.v1.train.Saver().restore(session, prefix)
        words = session.run("bert/embeddings/word_embeddings:0")
    theirs = load_file(teacher_dir / "model.safetensors")
    np.testing.assert_array_equal(words, theirs["bert.embeddings.word_embeddings.weight"])


def test_all_tokenizer_files_are_copied(teacher_dir, google, tmp_path) -> None:
    google = shutil.copytree(google, tmp_path / "google")
    copied = {"tokenizer_config.json", "special_tokens_map.json", "spiece.model", "tokenizer.json"}
    for name in (*copied, "adam.txt", "events"):
        (google / name).write_text(name, encoding="utf-8")
    empty = tmp_path / "empty"
    empty.mkdir()
    files = (f"--bert_config_file={google / 'bert_config.json'}", f"--output_dir={empty}")
    _convert(*files, f"--init_checkpoint={google / 'bert_model.ckpt'}", "--layout=hf")
    assert set(_names(empty)) == copied | {"config.json", "model.safetensors", "vocab.txt"}
    assert all((empty / name).read_text(encoding="utf-8") == name for name in copied)
    expected = (teacher_dir / "model.safetensors").read_bytes()
    assert (empty / "model.safetensors").read_bytes() == expected


def test_other_families_are_written_only_in_the_hf_layout(vocab_file, tmp_path, capsys) -> None:
    changes = {"model_type": "roberta", "pad_token_id": 1, "type_vocab_size": 1}
    roberta = save_tiny_bert(tmp_path / "roberta", vocab_file, seed=1, num_layers=1, **changes)
    out = tmp_path / "out"
    line = _fails(capsys, f"--input={roberta}", f"--output_dir={out}", "--layout=tf1")
    assert line.startswith("--layout: ") and "model_type" in line and "roberta" in line
    assert not out.exists()
    _convert(f"--input={roberta}", f"--output_dir={out}", "--layout=hf")
    for name in ("config.json", "model.safetensors"):
        assert (out / name).read_bytes() == (roberta / name).read_bytes()


@pytest.mark.parametrize(
    "changes",
    [{"hidden_act": "gelu_new"}, {"layer_norm_eps": 1e-5}, {"tie_word_embeddings": False}],
)
def test_setting_unsupported_by_googles_layout_is_refused(
    vocab_file, tmp_path, capsys, changes
) -> None:
    model = save_tiny_bert(tmp_path / "model", vocab_file, seed=1, num_layers=1, **changes)
    line = _fails(capsys, f"--input={model}", f"--output_dir={tmp_path / 'out'}", "--layout=tf1")
    assert line.startswith("--layout: ") and next(iter(changes)) in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "subject"),
    [
        (["--layout=hf"], "missing: --output_dir "),
        (["--output_dir=x"], "missing: --layout "),
        (["--output_dir=x", "--layout=onnx"], "--layout: "),
        (["--output_dir=x", "--layout=hf"], "--input: "),
        (["--output_dir=x", "--layout=hf", "--input=a", "--bert_config_file=b"], "--input: "),
        (["--output_dir=x", "--layout=hf", "--input=a", "--init_checkpoint=b"], "--init_checkp"),
        (["--output_dir=x", "--layout=hf", "--bert_config_file=a"], "--init_checkpoint: "),
        (["--output_dir=x", "--layout=hf", "--input=/nowhere"], "--input: /nowhere: "),
    ],
)
def test_errors_about_invalid_flags_name_the_flag(capsys, flags: list[str], subject: str) -> None:
    assert _fails(capsys, *flags).startswith(subject)
    assert not pathlib.Path("x").exists()


def test_existing_files_are_not_overwritten(teacher_dir, tmp_path, capsys) -> None:
    (tmp_path / "letter.txt").write_text("x")
    flags = (f"--input={teacher_dir}", "--layout=hf")
    line = _fails(capsys, *flags, f"--output_dir={tmp_path}")
    assert line.startswith(f"--output_dir: {tmp_path}: ") and "letter.txt" in line
    assert _names(tmp_path) == ["letter.txt"]
    path = tmp_path / "letter.txt"
    assert _fails(capsys, *flags, f"--output_dir={path}").startswith(f"--output_dir: {path}: ")


def test_mismatched_weights_leave_no_output_directory(teacher_dir, tmp_path, capsys) -> None:
    model = tmp_path / "model"
    shutil.copytree(teacher_dir, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    line = _fails(capsys, f"--input={model}", f"--output_dir={tmp_path / 'out'}", "--layout=tf1")
    assert "16 tensors not in the configuration" in line
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_an_empty_directory(teacher_dir, tmp_path, capsys, monkeypatch) -> None:
    flags = (f"--input={teacher_dir}", f"--output_dir={tmp_path / 'out'}", "--layout=tf1")

    def full(**arguments) -> None:
        pathlib.Path(f"{arguments['prefix']}.index").write_bytes(b"half")
        raise tf.errors.ResourceExhaustedError(None, None, "No space left\non device")

    with monkeypatch.context() as patch:
        patch.setattr(tf.raw_ops, "SaveV2", full)
        line = _fails(capsys, *flags)
    hint = "complete files are kept; re-run the command to resume"
    assert line.endswith(f"bert_model.ckpt: No space left on device; {hint}")
    assert _names(tmp_path / "out") == []
    _convert(*flags)
    assert len(_names(tmp_path / "out")) == 4


def test_staged_files_appear_together_in_the_right_order(tmp_path, monkeypatch) -> None:
    moved = []
    real = os.replace

    def replace(source, target) -> None:
        moved.append(pathlib.Path(target).name)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with tmp_path.stage_directory(last="b") as stage:
        for name in "abc":
            (stage / name).write_text(name)
        tmp_path.expect_empty()
    assert moved == ["a", "c", "b"] and _names(tmp_path) == ["a", "b", "c"]
    with pytest.raises(InputError) as caught, tmp_path.stage_directory(last="b") as stage:
        (stage / "a").write_text("other")
    assert caught.value.subject == str(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "a" and _names(tmp_path) == ["a", "b", "c"]


def test_tf1_weights_of_other_families_are_refused(tmp_path, teacher_dir) -> None:
    config = find_model(teacher_dir).config
    albert = dataclasses.replace(config, model_type="albert", embedding_size=8)
    with pytest.raises(ValueError, match="Google's layout has no albert"):
        convert_checkpoint.write_tf1_weights(str(tmp_path / "x"), albert, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.shared
def test_public_checkpoint_is_converted_in_both_directions(tmp_path) -> None:
    fixture = SHARED / "data" / "fixtures" / "tf1_tiny_ckpt"
    hf, google = tmp_path / "hf", tmp_path / "google"
    _convert(f"--input={fixture}", f"--output_dir={hf}", "--layout=hf")
    _convert(f"--input={hf}", f"--output_dir={google}", "--layout=tf1")
    assert EncoderConfig.from_json(google / "bert_config.json") == (
        EncoderConfig.from_json(fixture / "bert_config.json")
    )
    before, after = (
        tf.train.load_checkpoint(str(folder / "bert_model.ckpt")) for folder in (fixture, google)
    )
    theirs = before.get_variable_to_shape_map()
    names = {name for name in theirs if "adam_" not in name} - {"global_step"}
    assert names == set(after.get_variable_to_shape_map())
    for name in names:
        if "pooler" not in name and "seq_relationship" not in name:
            np.testing.assert_array_equal(before.get_tensor(name), after.get_tensor(name))


@pytest.mark.peers
def test_transformers_reads_a_converted_model(teacher_dir, google, tmp_path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    converted = tmp_path / "converted"
    _convert(f"--input={google}", f"--output_dir={converted}", "--layout=hf")
    ids = torch.tensor([[2, 7, 9, 4, 11, 3]])
    logits = []
    for folder in (teacher_dir, converted):
        model, report = transformers.AutoModelForMaskedLM.from_pretrained(
            folder, output_loading_info=True
        )
        assert not any(report.values()), report
        with torch.no_grad():
            logits.append(model.eval()(input_ids=ids).logits)
    assert torch.equal(*logits)
