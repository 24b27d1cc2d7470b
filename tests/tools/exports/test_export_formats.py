"""Tests of exports that require tensorflow-text, LiteRT or ONNX; run with -m export."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from data_specs.records import INPUT_IDS, INPUT_MASK
from pipeline.models.families import FAMILIES
from pipeline.models.formats.model_directory import find_model, load_masked_lm
from pipeline.tokenizers.loading import load_tokenizer
from tests.conftest import LINES, save_tiny_bert
from tests.tools.exports.conftest import make_batch, run_export
from tools import benchmark_inference
from tools.exports import exporter, formats, litert, saved_model
from tools.exports.examples import Example, encode, example_batch
from tools.exports.hugging_face import load_subject
from tools.exports.model_task import ModelTask
from tools.exports.program import Program, ReloadedExport, Subject, compile_program, encoder_program

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.export

# Spaces, controls, accents, capitals of other alphabets, punctuation of several kinds.
TEXTS = (
    *dict.fromkeys(LINES),
    "ＡＢＣ、，。！？；：（）【】《》“”‘’——……",
    "Ünïcode Ａccents: café, naïve, Ελλάδα, İstanbul, Ёлка, ẞ",
    "tabs\tand\u00a0spaces\u3000of\u2003all kinds, \u200bzero\u00adwidth \ufffd\x07",
    "㈱ ﬁne ½ ™ 𠀀𠮷 😀 e\u0301 한국어 ไทย हिन्दी",
    "[MASK] [CLS] ##s don't well-known 3.14 $5 100%",
)


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory, vocab) -> pathlib.Path:
    """A random BERT whose vocabulary has each token once; read only."""
    folder = tmp_path_factory.mktemp("unique")
    (folder / "tokens.txt").write_text("\n".join(dict.fromkeys(vocab)) + "\n", encoding="utf-8")
    return save_tiny_bert(folder / "teacher", folder / "tokens.txt", seed=7)


@pytest.fixture(scope="module")
def subject(teacher_dir) -> Subject:
    """The teacher, cut to 40 tokens."""
    tokenizer = load_tokenizer(teacher_dir, do_lower_case=None)
    return load_subject(find_model(teacher_dir), ModelTask(), tokenizer, 40)


@pytest.fixture(scope="module")
def cased(subject, teacher_dir, tmp_path_factory) -> tuple[Subject, ReloadedExport]:
    """The same model with a tokenizer that keeps capitals, as a SavedModel."""
    vocab_file = teacher_dir / "vocab.txt"
    tokenizer = load_tokenizer(vocab_file, do_lower_case=False)
    subject = dataclasses.replace(subject, tokenizer=tokenizer)
    folder = tmp_path_factory.mktemp("cased") / "saved_model"
    saved_model.write_text(subject, folder)
    return subject, saved_model.open_text(subject, folder)


@pytest.fixture(scope="module")
def exported(teacher_dir, sentences, tmp_path_factory) -> pathlib.Path:
    """All formats of the teacher; read only."""
    folder = tmp_path_factory.mktemp("exports")
    settings = {"model": teacher_dir, "sentences": sentences, "output_dir": folder / "out"}
    assert run_export(formats=",".join(formats.FORMATS), max_seq_length=40, **settings) == 0
    return folder / "out"


def test_every_format_supports_rotary_positions_and_local_attention(
    vocab, sentences, tmp_path
) -> None:
    config = {**FAMILIES["modernbert"].config_defaults, "model_type": "modernbert"}
    config |= {"type_vocab_size": 0, "local_attention": 8}
    (tmp_path / "tokens.txt").write_text("\n".join(dict.fromkeys(vocab)) + "\n", encoding="utf-8")
    teacher = save_tiny_bert(tmp_path / "teacher", tmp_path / "tokens.txt", seed=7, **config)
    settings = {"model": teacher, "sentences": sentences, "output_dir": tmp_path / "out"}
    assert run_export(formats="saved_model,litert,onnx", max_seq_length=40, **settings) == 0
    source = find_model(teacher)
    tokenizer = load_tokenizer(teacher, do_lower_case=None)
    subject = load_subject(source, ModelTask(), tokenizer, 40)
    batch = make_batch(source.config.vocab_size)
    expected = np.asarray(load_masked_lm(source)(batch))
    for name in ("saved_model", "litert", "onnx"):
        logits = exporter._OPENERS[name](subject, tmp_path / "out" / name).run(batch)["logits"]
        # Logits at padding are not compared, because they may differ.
        real = batch[INPUT_MASK] == 1
        np.testing.assert_allclose(logits[real], expected[real], atol=2e-5)


@pytest.mark.parametrize("name", ["saved_model", "litert", "onnx"])
def test_exports_accept_padded_batches_of_any_shape(
    exported, subject, teacher_dir, name: str
) -> None:
    source = find_model(teacher_dir)
    batch = make_batch(source.config.vocab_size)
    opened = exporter._OPENERS[name](subject, exported / name)
    expected = np.asarray(load_masked_lm(source)(batch))
    np.testing.assert_allclose(opened.run(batch)["logits"], expected, atol=2e-5)
    # Shapes may change between calls.
    smaller = {key: value[:1, :7] for key, value in batch.items()}
    expected = np.asarray(load_masked_lm(source)(smaller))
    np.testing.assert_allclose(opened.run(smaller)["logits"], expected, atol=2e-5)


def test_the_report_has_a_row_for_each_format(exported) -> None:
    report = json.loads((exported / "export.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    exact = ["hf", "saved_model", "saved_model_text", "litert", "onnx"]
    assert list(rows) == ["model", *exact[:-1], "litert_int8", "onnx"]
    for name in exact:
        assert rows[name]["comparison"]["agreement"] == 1.0
        assert rows[name]["comparison"]["largest_difference"] < 2e-5
    quantized = rows["litert_int8"]
    assert quantized["comparison"]["largest_difference"] > 1e-4
    assert quantized["comparison"]["agreement"] >= 0.9
    assert quantized["megabytes"] < rows["litert"]["megabytes"]
    assert rows["onnx"]["reader"].startswith("onnxruntime ")


@pytest.mark.parametrize("text", TEXTS)
def test_uncased_saved_model_gives_the_tokenizers_ids(exported, subject, text: str) -> None:
    opened = exporter._OPENERS["saved_model_text"](subject, exported / "saved_model_text")
    outputs = opened.from_text(text)
    expected = encode(subject.tokenizer, text, subject.max_seq_length)
    assert len(set(expected.tolist())) > 3
    assert outputs[INPUT_IDS].tolist() == [expected.tolist()]
    assert outputs[INPUT_MASK].tolist() == [[1] * len(expected)]


@pytest.mark.parametrize("text", TEXTS)
def test_cased_saved_model_gives_the_tokenizers_ids(cased, text: str) -> None:
    subject, opened = cased
    expected = encode(subject.tokenizer, text, subject.max_seq_length)
    assert opened.from_text(text)[INPUT_IDS].tolist() == [expected.tolist()]


def test_saved_model_takes_no_text_if_a_token_occurs_twice(subject, vocab_file) -> None:
    twice = load_tokenizer(vocab_file, do_lower_case=None)
    assert len(set(twice.vocab)) < len(twice.vocab)
    reason = saved_model.reason_without_text(dataclasses.replace(subject, tokenizer=twice))
    assert "no vocabulary with an empty token or the same token twice" in reason
    assert saved_model.reason_without_text(subject) is None


def test_saved_model_takes_no_text_with_unsupported_settings(subject) -> None:
    other = dataclasses.replace(subject.tokenizer, strip_accents=False)
    reason = saved_model.reason_without_text(dataclasses.replace(subject, tokenizer=other))
    assert "strip_accents" in reason


def test_texts_of_several_lengths_are_padded(exported) -> None:
    loaded = tf.saved_model.load(str(exported / "saved_model_text"))
    signature = loaded.signatures["serving_default"]
    texts = ["春", "春天来了，院子里的桃树开满了花。"]
    both = signature(tf.constant(texts))
    (alone,) = signature(tf.constant(texts[:1]))["logits"]
    assert both[INPUT_MASK].numpy().sum(axis=1).tolist() == [3, 18]
    np.testing.assert_allclose(both["logits"][0, :3], alone, atol=1e-5)


def test_the_embeddings_are_stored_once(exported, teacher_dir) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported / "onnx" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    vocab_size = find_model(teacher_dir).config.vocab_size
    assert sum(vocab_size in tensor.dims for tensor in model.graph.initializer) == 2


def _program(call) -> Program:
    return Program((INPUT_IDS,), ("logits",), (), lambda batch: {"logits": call(batch[INPUT_IDS])})


def _export(program: Program, name: str, folder: pathlib.Path) -> exporter.Report:
    subject = Subject(program, None, 8, lambda path: None, lambda path: ReloadedExport(None, ""))
    example = Example(example_batch(np.arange(2, 8)))
    return exporter.export(subject, [name], [example], folder, repeats=1)


@pytest.mark.parametrize(
    ("name", "message"),
    [("litert", "LiteRT has no operation Igamma"), ("onnx", "ONNX has no operation Igamma")],
)
def test_a_format_that_lacks_an_operation_is_left_out(tmp_path, name: str, message: str) -> None:
    lacking = _program(lambda ids: tf.math.igamma(tf.cast(ids, tf.float32), 2.0))
    report = _export(lacking, name, tmp_path)
    assert report.left_out == {name: message}
    assert [row.name for row in report.rows] == ["model"] and not list(tmp_path.iterdir())
    # A program with an operation that the format has is exported.
    report = _export(_program(lambda ids: tf.sqrt(tf.cast(ids, tf.float32))), name, tmp_path)
    assert not report.left_out and [path.name for path in tmp_path.iterdir()] == [name]


def test_benchmark_inference_measures_8_bit_weights(teacher_dir, tmp_path, capsys) -> None:
    flags = [f"--models={teacher_dir}", "--computations=int8", "--seq_length=16", "--repeats=2"]
    output = tmp_path / "speed.json"
    assert not benchmark_inference.main(["benchmark_inference", *flags, f"--output={output}"])
    (row,) = json.loads(output.read_text())["rows"]
    model = load_masked_lm(find_model(teacher_dir))
    program = encoder_program(model)
    content = litert.convert(program, quantized=True)
    assert row["megabytes"] == pytest.approx(len(content) / 1e6, rel=0.01)
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    batch = make_batch(model.config.vocab_size)
    (received,) = litert.load(program, path)(batch).values()
    (expected,) = compile_program(program)(*map(tf.constant, batch.values())).values()
    assert received.shape == expected.shape
    assert np.corrcoef(received.ravel(), expected.numpy().ravel())[0, 1] > 0.99
