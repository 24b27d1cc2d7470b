"""Tests of model_task: the task of a model, from its configuration and its run."""

import json
import math
import pathlib
import shutil

import pytest
import yaml
from safetensors.numpy import load_file

from data_specs.tasks import CLASSIFICATION, REGRESSION, SPAN, TOKEN_CLASSIFICATION
from pipeline.base.errors import InputError
from pipeline.models.formats.model_directory import find_model
from tests.tools.finetuning.conftest import save_tiny_head
from tools.exports.model_card import CardSettings, Origin, model_card
from tools.exports.model_task import HubNames, ModelTask, find_task
from tools.finetuning.head_layout import Head

# The run configuration that a run of `finetune` writes.
REQUEST = {
    "kind": "finetuned",
    "task": {
        "name": "pairs",
        "kind": CLASSIFICATION,
        "labels": ["0", "1"],
        "text_fields": ["one", "two"],
    },
    "model": "abc",
    "teacher": "def",
    "do_train": True,
    "distill_weight": 0.5,
    "distill_temperature": 2.0,
    "eval_split": "dev",
    "max_seq_length": 48,
    "num_train_epochs": 3.0,
    "train_batch_size": 16,
    "learning_rate": 3e-5,
    "warmup_proportion": 0.1,
    "random_seed": 7,
    "compute_dtype": "float32",
}
REPORT = {
    "metrics": {"accuracy": 0.75},
    "counts": {"num_train_examples": 3000, "num_train_steps": 563},
}
MAKING = {
    "initial weights": "a model with SHA-256 `abc`",
    "teacher": "fine-tuned on the task, SHA-256 `def`; weight 0.5, temperature 2",
    "trained on": "3,000 examples, inputs of at most 48 tokens",
    "steps": "563 of 16 inputs, learning rate 3e-05 after 10% of warm-up",
    "epochs": "3",
    "seed": "7",
    "precision": "float32",
}


@pytest.fixture
def run_dir(task_teacher_dir, tmp_path) -> pathlib.Path:
    """A run with a classifier of the labels 0 and 1."""
    shutil.copytree(task_teacher_dir, tmp_path / "run" / "model")
    _write(tmp_path / "run", REQUEST, REPORT)
    return tmp_path / "run"


def _write(folder: pathlib.Path, request: dict, report: dict) -> None:
    (folder / "request.json").write_text(json.dumps(request))
    (folder / "metrics.json").write_text(json.dumps(report))


def _find(folder: pathlib.Path) -> ModelTask:
    return find_task(find_model(folder))


def test_the_files_of_a_run_give_its_task(run_dir) -> None:
    task = _find(run_dir / "model")
    assert task.head == Head(CLASSIFICATION, ("0", "1")) and task.num_texts == 2
    assert task.finetuning.scores == {"accuracy on pairs, dev": 0.75}
    assert task.finetuning.training == MAKING
    assert task.rows() == [
        ("task", "pairs"),
        ("input", "two texts"),
        ("output", "one of 2 labels: `0`, `1`"),
    ]


def test_the_files_of_a_run_give_its_models_of_the_hub(run_dir) -> None:
    sources = {
        "model": {"id": "org/name", "commit": "0" * 40},
        "finetune_teacher": {"id": "large", "commit": "1" * 40},
    }
    _write(run_dir, {**REQUEST, "hub": sources}, REPORT)
    training = _find(run_dir / "model").finetuning.training
    assert training["initial weights"] == f"a model `org/name@{'0' * 40}` with SHA-256 `abc`"
    expected = f"fine-tuned on the task, SHA-256 `def` `large@{'1' * 40}`; weight"
    assert training["teacher"].startswith(expected)


def test_the_card_describes_the_fine_tuning(run_dir) -> None:
    source = find_model(run_dir / "model")
    tensors = load_file(run_dir / "model" / "model.safetensors").values()
    millions = sum(math.prod(tensor.shape) for tensor in tensors) / 1e6
    nowhere = Origin({}, None, {})
    card = model_card(source.config, CardSettings("tiny"), nowhere, task=find_task(source))
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["pipeline_tag"] == "text-classification"
    assert front["tags"] == ["bert", "text-classification", "distillation"]
    text = "million parameters, fine-tuned on pairs with a teacher's logits. It takes up to 64"
    assert f" {millions:.2f} {text} tokens.\n" in card
    assert "model = AutoModelForSequenceClassification.from_pretrained('tiny')\n" in card
    lines = card.splitlines()
    for name, text in MAKING.items():
        assert f"| {name} | {text} |" in lines
    assert "| accuracy on pairs, dev | 0.75 |" in lines


def test_a_run_without_training_has_only_its_start_and_scores(run_dir) -> None:
    request = {**REQUEST, "do_train": False, "teacher": None}
    del request["distill_weight"]
    _write(run_dir, request, {"metrics": {"accuracy": 0.5}, "counts": {"num_eval_examples": 3}})
    finetuning = _find(run_dir / "model").finetuning
    assert finetuning.training == {"initial weights": "a model with SHA-256 `abc`"}
    assert finetuning.scores == {"accuracy on pairs, dev": 0.5} and not finetuning.distilled


def test_files_of_another_run_are_ignored(run_dir) -> None:
    other = {**REQUEST, "task": {**REQUEST["task"], "labels": ["yes", "no"]}}
    bare = ModelTask(Head(CLASSIFICATION, ("0", "1")))
    for request in (other, {"kind": "student"}):
        _write(run_dir, request, REPORT)
        assert _find(run_dir / "model") == bare
    (run_dir / "request.json").unlink()
    assert _find(run_dir / "model") == bare
    # Without information on the inputs, one text is assumed.
    assert bare.num_texts == 1
    assert bare.rows() == [("input", "one text"), ("output", "one of 2 labels: `0`, `1`")]


@pytest.mark.parametrize("field", ["task", "model", "learning_rate"])
def test_a_missing_key_of_a_run_configuration_is_named(run_dir, field: str) -> None:
    request = {name: value for name, value in REQUEST.items() if name != field}
    _write(run_dir, request, REPORT)
    with pytest.raises(InputError) as caught:
        _find(run_dir / "model")
    path = (run_dir / "request.json").resolve()
    assert caught.value.subject == str(path) and field in caught.value.received


def test_heads_give_names_and_rows_of_their_tasks(span_teacher_dir, teacher_dir, tmp_path) -> None:
    task = _find(span_teacher_dir)
    assert task.head == Head(SPAN) and task.num_texts == 2
    assert task.hub == HubNames("AutoModelForQuestionAnswering", *["question-answering"] * 2)
    assert task.rows() == [
        ("input", "a question and its context"),
        ("output", "the answer's first and last token"),
    ]
    tags = Head(TOKEN_CLASSIFICATION, ("O", "B-X"))
    task = _find(save_tiny_head(tmp_path / "tags", teacher_dir, tags))
    assert task.hub == HubNames("AutoModelForTokenClassification", *["token-classification"] * 2)
    output = "at each word's first token one of 2 labels: `O`, `B-X`"
    assert task.rows() == [("input", "one text"), ("output", output)]
    task = _find(save_tiny_head(tmp_path / "number", teacher_dir, Head(REGRESSION)))
    assert task.hub.auto_class == "AutoModelForSequenceClassification"
    assert task.rows() == [("input", "one text"), ("output", "a number")]


def test_a_masked_lm_has_no_task(teacher_dir) -> None:
    task = _find(teacher_dir)
    assert task == ModelTask() and task.num_texts == 1 and task.rows() == []
    assert (task.hub.auto_class, task.hub.pipeline_tag) == ("AutoModelForMaskedLM", "fill-mask")


def test_labels_are_escaped_in_a_table() -> None:
    task = ModelTask(Head(CLASSIFICATION, ("a|b", "c\nd")))
    assert task.rows()[1] == ("output", r"one of 2 labels: `a\|b`, `c\x0ad`")
