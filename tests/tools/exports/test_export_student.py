"""Tests of exports that require only TensorFlow, of their checks, and of errors."""

import dataclasses
import json
import math

import keras
import numpy as np
import pytest
import yaml

from data_specs import records
from data_specs.records import INPUT_IDS, INPUT_MASK, SEGMENT_IDS
from pipeline.base.errors import InputError, Setting
from pipeline.models.formats.model_directory import find_model, load_masked_lm
from pipeline.storage import manifest as manifests
from pipeline.storage import serialization
from pipeline.storage.cache_input import open_cache
from pipeline.tokenizers.loading import load_tokenizer
from tests.conftest import SENTENCES, save_tiny_bert
from tests.tools.exports.conftest import make_batch, run_export
from tools import export_student as tool
from tools.export_student import ExportConfig
from tools.exports import examples, exporter, formats, saved_model
from tools.exports.exporter import Comparison, compare
from tools.exports.formats import CardSettings
from tools.exports.program import ExportError, ReloadedExport
from tools.sentence_layout import PoolingSettings, SentenceLayout, read_layout

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="exports come from TensorFlow"
)
tf = pytest.importorskip("tensorflow")


def _refusal(**settings: object) -> InputError:
    card = {name: settings.pop(name) for name in ("name", "scores") if name in settings}
    pooling = {name: settings.pop(name) for name in ("pooling", "normalize") if name in settings}
    with pytest.raises(InputError) as caught:
        tool._prepare(ExportConfig(**settings), CardSettings(**card), PoolingSettings(**pooling))
    return caught.value


@pytest.mark.parametrize(
    ("expected", "received", "compared"),
    [
        ([[[1.0, 3.0], [2.0, 0.0]]], [[[1.0, 3.0], [2.0, 0.0]]], Comparison(0.0, 1.0, 2)),
        ([[[1.0, 3.0], [2.0, 0.0]]], [[[1.0, 2.0], [1.0, 2.0]]], Comparison(2.0, 0.5, 2)),
        # Another shape or NaN never agrees.
        ([[[1.0, 3.0], [2.0, 0.0]]], [[[1.0, 3.0]]], Comparison(0.0, 0.0, 2)),
        ([[3.0, 1.0], [0.0, 1.0]], [[math.nan, 1.0], [0.0, 1.0]], Comparison(math.nan, 0.5, 2)),
        # Numbers agree within 5% of the larger of their magnitude and 1.
        ([[4.0], [4.0], [0.2], [0.2]], [[4.19], [3.79], [0.24], [0.26]], Comparison(0.21, 0.5, 4)),
        ([[1.0]], [[math.nan]], Comparison(math.nan, 0.0, 1)),
    ],
)
def test_agreement_is_the_fraction_of_equal_predictions(expected, received, compared) -> None:
    more = {"logits": np.array(received), "input_ids": np.array([[7, 8]])}
    comparison = compare([({"logits": np.array(expected)}, more)])
    largest = pytest.approx(compared.largest_difference, nan_ok=True)
    assert comparison == dataclasses.replace(compared, largest_difference=largest)


def test_predictions_of_several_inputs_are_counted_together() -> None:
    expected, received = ({"logits": np.array([[1.0, last]])} for last in (3.0, 0.0))
    pairs = [(expected, expected), (expected, received)]
    assert compare(pairs) == Comparison(3.0, 0.5, 2)


def test_every_seventh_token_of_a_line_is_masked(vocab_file, sentences) -> None:
    ids = np.arange(100, 112)
    assert examples.mask_every_seventh(ids, 4).tolist() == [
        *range(100, 103),
        4,
        *range(104, 110),
        4,
        111,
    ]
    # [SEP] is never masked.
    assert examples.mask_every_seventh(ids[:11], 4)[-1] == 110
    tokenizer = load_tokenizer(vocab_file, do_lower_case=None)
    lines = examples.read_lines(sentences, tokenizer, count=3, max_seq_length=9)
    assert [example.text for example in lines] == list(SENTENCES[:3])
    first = tokenizer.tokenize(SENTENCES[0]).ids[:7].tolist()
    first[2] = tokenizer.special_ids["mask"]
    special = tokenizer.special_ids
    assert lines[0].batch[INPUT_IDS].tolist() == [[special["cls"], *first, special["sep"]]]
    assert lines[0].batch[INPUT_MASK].tolist() == [[1] * 9]
    assert lines[0].batch[SEGMENT_IDS].tolist() == [[0] * 9]


def test_examples_of_a_cache_keep_their_masks(examples_dir) -> None:
    cache = open_cache(examples_dir, None)
    eval_examples = examples.read_cache(cache, 4)
    shard = cache.manifest.splits["eval"][0].file
    stored = serialization.decode_example(next(serialization.read_records(examples_dir / shard)))
    ids = np.frombuffer(stored[records.INPUT_IDS], "<u2")
    lengths = np.frombuffer(stored[records.SEGMENT_LENGTHS], "<u2")
    assert len(eval_examples) == 4
    assert eval_examples[0].batch[INPUT_IDS].tolist() == [ids.tolist()]
    segments = [0] * int(lengths[0]) + [1] * (len(ids) - int(lengths[0]))
    assert eval_examples[0].batch[SEGMENT_IDS].tolist() == [segments]


@pytest.mark.long
def test_formats_without_packages_agree_with_the_model(
    teacher_dir, sentences, tmp_path, capsys
) -> None:
    out = tmp_path / "out"
    settings = {"model": teacher_dir, "sentences": sentences, "output_dir": out, "name": "tiny"}
    assert run_export(language="zh", license="apache-2.0", **settings) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == " ".join(tool._TITLES).split()
    assert [line.split("  ")[0] for line in printed[2:5]] == ["model", "hf", "saved_model"]
    assert printed[-1] == f"exports: {out}"
    assert sorted(path.name for path in out.iterdir()) == ["export.json", "hf", "saved_model"]

    source = find_model(teacher_dir)
    names = ["README.md", "config.json", "model.safetensors", "vocab.txt"]
    assert sorted(path.name for path in (out / "hf").iterdir()) == names
    copied, own = find_model(out / "hf").read_weights(), source.read_weights()
    assert copied.keys() == own.keys()
    assert all(np.array_equal(copied[name], own[name]) for name in own)

    batch = make_batch(source.config.vocab_size)
    signature = tf.saved_model.load(str(out / "saved_model")).signatures["serving_default"]
    given = signature.structured_input_signature[1]
    types = {name: (spec.shape.as_list(), spec.dtype) for name, spec in given.items()}
    assert types == dict.fromkeys(batch, ([None, None], tf.int32))
    logits = signature(**{name: tf.constant(value) for name, value in batch.items()})["logits"]
    expected = np.asarray(load_masked_lm(source)(batch))
    np.testing.assert_allclose(logits, expected, atol=1e-5)

    report = json.loads((out / "export.json").read_text())
    assert report["num_examples"] == len(SENTENCES) and report["left_out"] == {}
    rows = {row["name"]: row for row in report["rows"]}
    assert rows["model"]["comparison"] is None
    for name in ("hf", "saved_model"):
        assert rows[name]["comparison"]["agreement"] == 1.0
        assert rows[name]["comparison"]["largest_difference"] < 1e-4
        assert rows[name]["fastest_seconds"] <= rows[name]["latency_seconds"]
    size = sum(path.stat().st_size for path in (out / "hf").iterdir() if path.suffix != ".md")
    assert rows["hf"]["megabytes"] == pytest.approx(size / 1e6)

    card = (out / "hf" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "apache-2.0" and front["language"] == ["zh"]
    assert "base_model" not in front and "## Training" not in card
    assert "| saved_model | tensorflow " in card


@pytest.mark.long
def test_exports_may_be_compared_on_a_cache(teacher_dir, cache_dir, tmp_path) -> None:
    out = tmp_path / "out"
    settings = {"model": teacher_dir, "input_dir": cache_dir, "formats": "saved_model"}
    assert run_export(output_dir=out, num_sentences=5, **settings) == 0
    report = json.loads((out / "export.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["model", "saved_model"]
    cache = open_cache(cache_dir, None)
    tokens = sum(example.num_tokens for example in examples.read_cache(cache, 5))
    assert report["num_examples"] == 5
    assert report["rows"][1]["comparison"]["num_guesses"] == tokens


@pytest.mark.long
def test_a_model_without_segments_has_no_input_of_them(vocab_file, sentences, tmp_path) -> None:
    changes = {"model_type": "distilbert", "type_vocab_size": 0}
    model = save_tiny_bert(tmp_path / "model", vocab_file, seed=3, num_layers=1, **changes)
    out = tmp_path / "out"
    assert run_export(model=model, sentences=sentences, output_dir=out) == 0
    signature = tf.saved_model.load(str(out / "saved_model")).signatures["serving_default"]
    assert set(signature.structured_input_signature[1]) == {INPUT_IDS, INPUT_MASK}


@pytest.mark.long
def test_a_saved_model_that_only_its_writer_can_run_is_refused(tmp_path) -> None:
    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="ids")])
    def run(ids: tf.Tensor) -> dict[str, tf.Tensor]:
        # The Python part of the function exists only in this process.
        return {"twice": tf.numpy_function(lambda value: 2 * value, [ids], tf.int32)}

    module = tf.Module()
    tf.saved_model.save(module, str(tmp_path), signatures={saved_model.SIGNATURE: run})
    loaded = tf.saved_model.load(str(tmp_path)).signatures[saved_model.SIGNATURE]
    assert loaded(ids=tf.constant([3]))["twice"].numpy().tolist() == [6]
    with pytest.raises(ExportError) as raised:
        saved_model._load(tmp_path, {"ids": np.array([3], np.int32)})
    assert "new process" in raised.value.subject


@pytest.mark.long
def test_a_new_process_imports_the_given_packages(tmp_path) -> None:
    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="ids")])
    def run(ids: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"twice": 2 * ids}

    tf.saved_model.save(tf.Module(), str(tmp_path), signatures={saved_model.SIGNATURE: run})
    loaded = saved_model._load(tmp_path, {"ids": np.array([3], np.int32)}, "json")
    assert loaded({"ids": np.array([4], np.int32)})["twice"].tolist() == [8]
    with pytest.raises(ExportError):
        saved_model._run_in_new_process(
            tmp_path, {"ids": np.array([3], np.int32)}, ["no_such_package"]
        )


@pytest.mark.long
def test_a_format_that_disagrees_is_left_out(
    teacher_dir, sentences, tmp_path, capsys, monkeypatch
) -> None:
    def negated(subject, directory) -> ReloadedExport:
        opened = openers["saved_model"](subject, directory)

        def run(batch):
            return {name: -value for name, value in opened.run(batch).items()}

        return ReloadedExport(run, opened.reader)

    openers = dict(exporter._OPENERS)
    monkeypatch.setattr(exporter, "_OPENERS", {**openers, "saved_model": negated})
    out = tmp_path / "out"
    assert run_export(model=teacher_dir, sentences=sentences, output_dir=out) == 1
    assert "error: --formats: left out: saved_model: " in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ["export.json", "hf"]
    report = json.loads((out / "export.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["model", "hf"]
    assert list(report["left_out"]) == ["saved_model"]


def test_each_format_has_a_writer_and_an_opener() -> None:
    assert exporter._WRITERS.keys() == exporter._OPENERS.keys() == formats.FORMATS.keys()


def test_a_missing_package_is_named_before_anything_else(monkeypatch) -> None:
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    formats.check(("hf", "saved_model"))
    with pytest.raises(InputError) as caught:
        formats.check(("onnx", "litert", "litert_int8"))
    assert caught.value.subject == Setting("formats")
    packages = "onnx, onnxruntime, tf2onnx, ai-edge-litert"
    assert caught.value.received.startswith(f"onnx,litert,litert_int8 requires {packages}")
    assert caught.value.hint == "pip install '.[export]'"


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({"model": "/nowhere"}, "/nowhere"),
        ({"sentences": None}, Setting("sentences")),
        ({"input_dir": "/nowhere"}, Setting("sentences")),
        ({"sentences": "/nowhere"}, "/nowhere"),
        ({"max_seq_length": 65}, Setting("max_seq_length")),
        ({"formats": ()}, Setting("formats")),
        ({"formats": "hf,hf"}, Setting("formats")),
        ({"formats": "hf,torchscript"}, Setting("formats")),
        ({"scores": "/nowhere"}, "/nowhere"),
        ({"output_dir": "memory://bucket/x"}, "memory://bucket/x"),
    ],
)
def test_invalid_settings_are_named(
    teacher_dir, sentences, tmp_path, changes, subject: str
) -> None:
    settings = {"model": teacher_dir, "sentences": sentences, "output_dir": tmp_path / "out"}
    error = _refusal(**{**settings, **changes})
    assert error.subject == subject and type(error.subject) is type(subject)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "expected"), [(b" \n\n", "lines of text"), ("文".encode("gb18030"), "UTF-8 text")]
)
def test_files_without_sentences_are_errors(
    teacher_dir, tmp_path, content: bytes, expected: str
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    error = _refusal(model=teacher_dir, sentences=path, output_dir=tmp_path / "out")
    assert (error.subject, error.expected) == (str(path), expected)


def test_existing_files_are_not_overwritten(teacher_dir, sentences, tmp_path, capsys) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    settings = {"model": teacher_dir, "sentences": sentences, "output_dir": tmp_path / "out"}
    assert run_export(**settings) == 1
    assert "error: --output_dir: " in capsys.readouterr().err
    assert (tmp_path / "out" / "mine").read_text() == "kept"


def test_a_cache_of_another_vocabulary_is_refused(vocab, cache_dir, tmp_path) -> None:
    other = tmp_path / "vocab.txt"
    other.write_text("\n".join([*vocab, "more"]) + "\n")
    model = save_tiny_bert(tmp_path / "model", other, seed=3, num_layers=1)
    error = _refusal(model=model, input_dir=cache_dir, output_dir=tmp_path / "out")
    size = manifests.load(cache_dir).vocab.size
    assert (error.setting or error.subject) == "model"
    assert f"{size} tokens" in error.expected


def test_a_sentence_transformers_directory_gives_the_models_vectors(
    teacher_dir, sentences, tmp_path
) -> None:
    settings = {"model": teacher_dir, "sentences": sentences, "output_dir": tmp_path / "out"}
    status = run_export(
        formats="sentence_transformers",
        pooling="cls",
        normalize=True,
        max_seq_length=40,
        **settings,
    )
    assert status == 0
    folder = tmp_path / "out" / "sentence_transformers"
    assert read_layout(folder) == SentenceLayout("cls", True, 40)
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == find_model(folder).config.hidden_size
    row = json.loads((tmp_path / "out" / "export.json").read_text())["rows"][1]
    assert row["comparison"]["agreement"] == 1.0
    assert row["comparison"]["largest_difference"] < 1e-6
    # There is one vector per text, while a masked LM has a prediction per token.
    assert row["comparison"]["num_guesses"] == len(SENTENCES)


def test_vectors_agree_within_their_tolerance() -> None:
    expected = np.array([[1.0, -2.0], [0.0, 1.0], [1.0, 1.0]])
    received = expected + np.array([[1.9e-4, 0.0], [0.0, 2e-4], [math.nan, 0.0]])
    pairs = [({"v": expected}, {"v": received})]
    assert compare(pairs, of_vectors=True).agreement == pytest.approx(1 / 3)


def test_a_model_with_the_head_of_a_task_has_no_vectors(
    task_teacher_dir, sentences, tmp_path
) -> None:
    settings = {"model": task_teacher_dir, "sentences": sentences, "output_dir": tmp_path / "out"}
    assert run_export(formats="sentence_transformers", **settings) == 1
    assert list(json.loads((tmp_path / "out" / "export.json").read_text())["left_out"]) == [
        "sentence_transformers"
    ]


def test_pooling_without_its_format_is_refused(teacher_dir, sentences, tmp_path) -> None:
    settings = {"model": teacher_dir, "sentences": sentences, "output_dir": tmp_path / "out"}
    assert _refusal(pooling="cls", **settings).subject == Setting("pooling")
