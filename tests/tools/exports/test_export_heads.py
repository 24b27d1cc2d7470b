"""Tests of exports of fine-tuned models; those that require more than TensorFlow are opt-in."""

import json
import pathlib
import shutil
from typing import Any

import keras
import numpy as np
import pytest
import yaml

from data_specs.records import INPUT_IDS, INPUT_MASK, SEGMENT_IDS
from data_specs.tasks import CLASSIFICATION, REGRESSION, SPAN, TOKEN_CLASSIFICATION
from pipeline.models.families import FAMILIES
from pipeline.models.formats import model_directory
from pipeline.models.formats.model_directory import find_model
from pipeline.tokenizers.loading import load_tokenizer
from tests.conftest import SENTENCES, save_tiny_bert
from tests.tools.exports.conftest import make_batch, run_export
from tests.tools.exports.test_model_task import REQUEST
from tests.tools.finetuning.conftest import save_tiny_head
from tools.exports import examples, exporter, formats, hugging_face
from tools.exports.model_task import find_task
from tools.finetuning import heads
from tools.finetuning.head_layout import Head, read_head

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="exports come from TensorFlow"
)
tf = pytest.importorskip("tensorflow")

HEADS = {
    CLASSIFICATION: Head(CLASSIFICATION, ("bad", "fair", "good")),
    REGRESSION: Head(REGRESSION),
    SPAN: Head(SPAN),
    TOKEN_CLASSIFICATION: Head(TOKEN_CLASSIFICATION, ("O", "B-X", "I-X")),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory, vocab) -> dict[str, pathlib.Path]:
    """A random model of each kind whose vocabulary has each token once; read only."""
    folder = tmp_path_factory.mktemp("heads")
    (folder / "tokens.txt").write_text("\n".join(dict.fromkeys(vocab)) + "\n", encoding="utf-8")
    teacher = save_tiny_bert(folder / "teacher", folder / "tokens.txt", seed=7)
    return {kind: save_tiny_head(folder / kind, teacher, head) for kind, head in HEADS.items()}


@pytest.mark.long
def test_modernbert_is_exported_with_each_kind_of_head(vocab, sentences, tmp_path) -> None:
    """Its head has several layers, over one token or over the mean of all tokens."""
    config = {**FAMILIES["modernbert"].config_defaults, "model_type": "modernbert"}
    config |= {"type_vocab_size": 0, "local_attention": 8, "classifier_pooling": "mean"}
    (tmp_path / "tokens.txt").write_text("\n".join(dict.fromkeys(vocab)) + "\n", encoding="utf-8")
    teacher = save_tiny_bert(tmp_path / "teacher", tmp_path / "tokens.txt", seed=7, **config)
    for kind, head in HEADS.items():
        folder = save_tiny_head(tmp_path / kind, teacher, head)
        out = tmp_path / f"{kind}_out"
        settings = {"model": folder, "sentences": sentences, "output_dir": out}
        assert run_export(**settings, num_sentences=3) == 0
        model, rows = _model(folder), _report(out)
        batch = make_batch(model.config.vocab_size)
        del batch[SEGMENT_IDS]
        signature = tf.saved_model.load(str(out / "saved_model")).signatures["serving_default"]
        outputs = signature(**{name: tf.constant(value) for name, value in batch.items()})
        expected = model(batch | {SEGMENT_IDS: np.zeros_like(batch[INPUT_IDS])})
        np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)
        assert rows["hf"]["comparison"]["largest_difference"] < 1e-4


def _model(folder: pathlib.Path) -> heads.TaskModel:
    source = find_model(folder)
    return heads.build_head(source, read_head(source), keep_head=True)


def _report(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    report = json.loads((folder / "export.json").read_text())
    assert report["left_out"] == {}
    return {row["name"]: row for row in report["rows"]}


@pytest.mark.long
@pytest.mark.parametrize("kind", HEADS)
def test_formats_without_packages_agree_for_each_head(
    models, sentences, tmp_path, kind: str
) -> None:
    out = tmp_path / "out"
    settings = {"model": models[kind], "sentences": sentences, "output_dir": out}
    assert run_export(**settings, num_sentences=5) == 0
    rows = _report(out)
    # A pair of lines has two predictions, start and end. Tags have one prediction per token.
    tokenizer = load_tokenizer(models[kind], do_lower_case=None)
    tokens = sum(len(tokenizer.tokenize(text).ids) + 2 for text in SENTENCES[:5])
    guesses = {SPAN: 10, TOKEN_CLASSIFICATION: tokens}.get(kind, 5)
    for name in ("hf", "saved_model"):
        comparison = rows[name]["comparison"]
        assert comparison["agreement"] == 1.0 and comparison["num_guesses"] == guesses
        assert comparison["largest_difference"] < 1e-4

    model = _model(models[kind])
    own, copied = map(model_directory.get_weights, (model, _model(out / "hf")))
    assert own.keys() == copied.keys()
    assert all(np.array_equal(own[name], copied[name]) for name in own)
    assert read_head(find_model(out / "hf")) == HEADS[kind]
    vocab = (models[kind] / "vocab.txt").read_bytes()
    assert (out / "hf" / "vocab.txt").read_bytes() == vocab

    batch = make_batch(model.config.vocab_size)
    expected = np.asarray(model(batch))
    signature = tf.saved_model.load(str(out / "saved_model")).signatures["serving_default"]
    outputs = signature(**{name: tf.constant(value) for name, value in batch.items()})
    assert list(outputs) == ["logits"] and expected.std() > 0.01
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)

    card = (out / "hf" / "README.md").read_text()
    own_names = {
        SPAN: ("QuestionAnswering", "question-answering"),
        TOKEN_CLASSIFICATION: ("TokenClassification", "token-classification"),
    }
    name, tag = own_names.get(kind, ("SequenceClassification", "text-classification"))
    assert yaml.safe_load(card.split("---\n")[1])["pipeline_tag"] == tag
    assert f"model = AutoModelFor{name}.from_pretrained('{kind}')" in card


def test_lines_may_be_read_without_masks(models, sentences) -> None:
    folder = models[CLASSIFICATION]
    tokenizer = load_tokenizer(folder, do_lower_case=None)
    settings = {"count": 2, "max_seq_length": 64}
    lines = examples.read_lines(sentences, tokenizer, masked=False, **settings)
    special = tokenizer.special_ids
    ids = [special["cls"], *tokenizer.tokenize(SENTENCES[1]).ids.tolist(), special["sep"]]
    assert lines[1].batch[INPUT_IDS].tolist() == [ids] and lines[1].text == SENTENCES[1]


def test_consecutive_lines_become_pairs(models, sentences, tmp_path) -> None:
    tokenizer = load_tokenizer(models[SPAN], do_lower_case=None)
    first, second = (tokenizer.tokenize(text).ids.tolist() for text in SENTENCES[:2])
    special = tokenizer.special_ids
    cls, sep = special["cls"], special["sep"]
    settings = {"count": 9, "max_seq_length": 64, "double_separator": False}
    pairs = examples.read_pairs(sentences, tokenizer, **settings)
    assert len(pairs) == len(SENTENCES) // 2
    assert pairs[0].batch[INPUT_IDS].tolist() == [[cls, *first, sep, *second, sep]]
    segments = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert pairs[0].batch[SEGMENT_IDS].tolist() == [segments] and pairs[0].text is None
    # RoBERTa's family has two separators between the texts. The third line has no partner.
    path = tmp_path / "three.txt"
    path.write_text("\n".join(SENTENCES[:3]), encoding="utf-8")
    settings["double_separator"] = True
    (pair,) = examples.read_pairs(path, tokenizer, **settings)
    assert pair.batch[INPUT_IDS].tolist() == [[cls, *first, sep, sep, *second, sep]]


@pytest.mark.long
def test_a_model_of_pairs_is_compared_on_pairs(models, sentences, tmp_path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(models[CLASSIFICATION], run / "model")
    labels = list(HEADS[CLASSIFICATION].labels)
    spec = {"name": "nli", "kind": CLASSIFICATION, "labels": labels, "text_fields": ["a", "b"]}
    request = {**REQUEST, "task": spec, "do_train": False}
    (run / "request.json").write_text(json.dumps(request))
    settings = {"model": run / "model", "sentences": sentences, "formats": "saved_model"}
    assert run_export(**settings, output_dir=out) == 0
    assert _report(out)["saved_model"]["comparison"]["num_guesses"] == len(SENTENCES) // 2


def test_a_text_of_one_line_is_an_error_for_pairs(models, tmp_path, capsys) -> None:
    path, out = tmp_path / "one.txt", tmp_path / "out"
    path.write_text(f"{SENTENCES[0]}\n", encoding="utf-8")
    assert run_export(model=models[SPAN], sentences=path, output_dir=out) == 1
    assert f"error: --sentences: {path}: expected at least two lines" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.export
@pytest.mark.parametrize("kind", HEADS)
def test_all_formats_agree_for_each_head(models, sentences, tmp_path, kind: str) -> None:
    out = tmp_path / "out"
    settings = {"model": models[kind], "sentences": sentences, "output_dir": out}
    # A question and its context are two texts.
    names = [name for name in formats.FORMATS if kind != SPAN or name != formats.SAVED_MODEL_TEXT]
    assert run_export(**settings, formats=",".join(names)) == 0
    rows = _report(out)
    assert list(rows) == ["model", *names]
    for name in rows.keys() - {"model", "litert_int8"}:
        assert rows[name]["comparison"]["agreement"] == 1.0
        assert rows[name]["comparison"]["largest_difference"] < 2e-5
    assert rows["litert_int8"]["comparison"]["largest_difference"] > 1e-5

    source = find_model(models[kind])
    tokenizer = load_tokenizer(models[kind], do_lower_case=None)
    subject = hugging_face.load_subject(source, find_task(source), tokenizer, 64)
    batch = make_batch(source.config.vocab_size)
    expected = np.asarray(_model(models[kind])(batch))
    for name in ("hf", "saved_model", "litert", "onnx"):
        logits = exporter._OPENERS[name](subject, out / name).run(batch)["logits"]
        difference = np.abs(logits - expected)
        axes = {SPAN: 1, TOKEN_CLASSIFICATION: 2}
        if kind in axes:
            # Values at padding may differ.
            real = np.expand_dims(batch[INPUT_MASK] == 1, axes[kind])
            difference = difference[np.broadcast_to(real, logits.shape)]
        assert logits.shape == expected.shape and difference.max() < 2e-5, name


@pytest.mark.export
@pytest.mark.parametrize("kind", HEADS)
def test_a_family_without_segments_and_pooler_is_exported(
    vocab_file, sentences, tmp_path, kind
) -> None:
    changes = {"model_type": "distilbert", "type_vocab_size": 0}
    plain = save_tiny_bert(tmp_path / "plain", vocab_file, seed=3, num_layers=1, **changes)
    model = save_tiny_head(tmp_path / "model", plain, HEADS[kind])
    settings = {"model": model, "sentences": sentences, "output_dir": tmp_path / "out"}
    # The vocabulary has some tokens twice, which tensorflow-text does not support.
    names = [name for name in formats.FORMATS if name != formats.SAVED_MODEL_TEXT]
    assert run_export(**settings, formats=",".join(names)) == 0
    rows = _report(tmp_path / "out")
    assert rows["onnx"]["comparison"]["largest_difference"] < 2e-5
