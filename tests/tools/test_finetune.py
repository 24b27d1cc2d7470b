"""`tools/finetune.py` end to end: a task of each kind, grids, and refused input."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from data_specs.tasks import CLASSIFICATION, SPAN, TOKEN_CLASSIFICATION
from pipeline.base.errors import InputError, Setting
from pipeline.models.families import FAMILIES
from tests.conftest import save_tiny_bert
from tests.tools.finetuning.conftest import save_tiny_head
from tools import finetune
from tools.finetuning import training
from tools.finetuning.head_layout import Head
from tools.finetuning.preparation import prepare

# With these settings, a run takes seconds.
SMALL = {"train_batch_size": 16, "max_seq_length": 48, "compute_dtype": "float32"}


def _run(**settings: object) -> int:
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return finetune.main(["finetune", *flags])


def _fails(capsys, **settings: object) -> str:
    """Runs the tool, which must fail, and returns the one line it prints."""
    capsys.readouterr()
    assert _run(**settings) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("error: ")


def _summary(folder: pathlib.Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture
def flags(sentiment_dir, model_dir, tmp_path) -> dict[str, object]:
    """The flags of a small classification run."""
    return {
        "task": "chnsenticorp",
        "data_dir": sentiment_dir,
        "model": model_dir,
        "output_dir": tmp_path / "runs",
        "num_train_epochs": 8,
        "learning_rates": "2e-3",
        **SMALL,
    }


def test_classification_is_trained_scored_and_predicted(capsys, flags) -> None:
    folder = flags["output_dir"]
    assert _run(**flags, predict_split="test", log_steps=10) == 0
    printed = capsys.readouterr()
    run = folder / "lr-0.002_seed-1"
    assert "train: 96 examples" in printed.err and str(run) in printed.err
    assert "head: new, a classification head with 2 labels (0, 1)" in printed.err
    summary = _summary(folder)
    score = summary["runs"][0]["metrics"]["accuracy"]
    assert score > 0.9
    assert summary["model"] == flags["model"].name
    rows = (flags["data_dir"] / "dev.tsv").read_text().splitlines()[1:]
    num_negative = sum(row.startswith("0\t") for row in rows)
    constant_score = max(num_negative, 32 - num_negative) / 32
    assert (summary["constant_score"], summary["num_eval_examples"]) == (constant_score, 32)
    assert f"best constant prediction: accuracy {100 * constant_score:.2f}\n" in printed.out
    assert "chnsenticorp, dev, 32 examples\nlearning rate  seeds  accuracy\n" in printed.out
    assert f"0.002 *            1  {100 * score:>8.2f}\n" in printed.out
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["counts"]["num_train_steps"] == 48
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 48, 48]
    assert lines[-1] == {"step": 48, "split": "eval", "accuracy": score}
    assert lines[4]["loss"] < lines[0]["loss"]
    # The last step has the smallest rate of the schedule: 2e-3 · 1 / (48 − 5).
    assert lines[4]["learning_rate"] == pytest.approx(2e-3 / 43)
    # Both splits have predictions in the benchmark's format.
    for split, count in (("dev", 32), ("test", 5)):
        rows = (run / f"predictions/{split}/ChnSentiCorp.tsv").read_text().splitlines()
        assert rows[0] == "index\tprediction" and len(rows) == count + 1
    predicted = (run / "predictions/dev/ChnSentiCorp.tsv").read_text().splitlines()[1:]
    truth = (flags["data_dir"] / "dev.tsv").read_text().splitlines()[1:]
    is_correct = [row[-1] == label[0] for row, label in zip(predicted, truth, strict=True)]
    assert np.mean(is_correct) == score
    config = json.loads((run / "model/config.json").read_text())
    assert config["id2label"] == {"0": "0", "1": "1"}
    assert (run / "model/vocab.txt").is_file()


def test_sentence_pairs_are_classified(flags, pair_dir) -> None:
    """The data has two of the three labels; a row without a label is skipped."""
    assert _run(**{**flags, "task": "ocnli", "data_dir": pair_dir, "num_train_epochs": 10}) == 0
    (run,) = _summary(flags["output_dir"])["runs"]
    assert run["metrics"]["accuracy"] > 0.9
    assert run["counts"]["num_train_examples"] == 95
    path = flags["output_dir"] / run["directory"] / "predictions/dev/ocnli_50k_predict.json"
    labels = {json.loads(line)["label"] for line in path.read_text().splitlines()}
    assert labels <= {"entailment", "neutral", "contradiction"}


@pytest.mark.long
def test_regression_learns_the_similarity(flags, similarity_dir) -> None:
    changes = {"data_dir": similarity_dir, "num_train_epochs": 10, "learning_rates": "5e-3"}
    assert _run(**{**flags, "task": "stsb", **changes}) == 0
    (run,) = _summary(flags["output_dir"])["runs"]
    assert run["metrics"]["pearson"] > 0.9
    config = flags["output_dir"] / run["directory"] / "model/config.json"
    assert json.loads(config.read_text())["problem_type"] == "regression"


@pytest.mark.long
def test_questions_are_answered_over_several_windows(flags, questions_dir) -> None:
    changes = {"task": "cmrc2018", "data_dir": questions_dir, "num_train_epochs": 12}
    assert _run(**{**flags, **changes, "max_seq_length": 40}, doc_stride=20) == 0
    (run,) = _summary(flags["output_dir"])["runs"]
    assert run["counts"]["num_train_inputs"] > run["counts"]["num_train_examples"] == 96
    assert run["metrics"]["f1"] > 0.8
    path = flags["output_dir"] / run["directory"] / "predictions/dev/cmrc2018_predict.json"
    answers = json.loads(path.read_text())
    assert len(answers) == 12 and "咖啡馆" in answers.values()


@pytest.mark.long
def test_words_are_tagged_over_several_windows(capsys, flags, tags_dir, tmp_path) -> None:
    """The labels come from the training file; the test file has none."""
    changes = {"task": tags_dir / "tags.yaml", "data_dir": tags_dir, "max_seq_length": 12}
    flags = {**flags, **changes, "num_train_epochs": 12}
    assert _run(**flags, predict_split="test") == 0
    text = "a token classification head with 5 labels (O, B-LOC, I-LOC, B-ORG, I-ORG)"
    assert f"head: new, {text}" in capsys.readouterr().err
    (run,) = _summary(flags["output_dir"])["runs"]
    assert run["counts"]["num_train_inputs"] > run["counts"]["num_train_examples"] == 96
    assert list(run["metrics"]) == ["f1", "precision", "recall"]
    # An untrained head predicts almost no entity correctly.
    assert run["metrics"]["f1"] > 0.5
    folder = flags["output_dir"] / run["directory"]
    for split in ("dev", "test"):
        predicted = (folder / f"predictions/{split}/wnut17.conll").read_text("utf-8").splitlines()
        words = (tags_dir / f"{split}.conll").read_text("utf-8").splitlines()
        assert [line.partition("\t")[0] for line in predicted] == [
            line.partition(" ")[0] for line in words
        ]
    config = json.loads((folder / "model/config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"]
    # Evaluation alone takes the labels from the model, without the training file.
    data = shutil.copytree(tags_dir, tmp_path / "data")
    (data / "train.conll").unlink()
    again = {**flags, "data_dir": data, "model": folder / "model", "do_train": False}
    assert _run(**{**again, "output_dir": tmp_path / "again"}) == 0
    printed = capsys.readouterr()
    assert f"head: the model's, {text}" in printed.err
    assert f"f1           {100 * run['metrics']['f1']:6.2f}\n" in printed.out


_TURNED = ("I-ORG", "B-ORG", "O", "B-LOC", "I-LOC")


def test_tags_that_the_head_lacks_are_refused(flags, tags_dir, tags_teacher_dir, tmp_path) -> None:
    data = shutil.copytree(tags_dir, tmp_path / "data")
    path = data / "dev.conll"
    path.write_text(path.read_text("utf-8").replace("B-ORG", "B-PER"), "utf-8")
    line = path.read_text("utf-8").splitlines().index("出 B-PER") + 1
    changes = {"task": tags_dir / "tags.yaml", "data_dir": data}
    for model in ({}, {"model": tags_teacher_dir, "do_train": False}):
        error = _refusal(flags, **changes, **model)
        assert error.subject == f"{path}, line {line}: tag" and error.received == "'B-PER'"
        assert error.expected == "one of O, B-LOC, I-LOC, B-ORG, I-ORG"
    # Tags are matched by name, so the model's labels may be in another order.
    other_model = save_tiny_head(
        tmp_path / "other", flags["model"], Head(TOKEN_CLASSIFICATION, _TURNED)
    )
    path = tmp_path / "declared.yaml"
    content = (tags_dir / "tags.yaml").read_text("utf-8")
    path.write_text(f"{content}labels: [O, B-LOC, I-LOC, B-ORG, I-ORG]\n", "utf-8")
    changes = {**flags, "task": path, "data_dir": tags_dir, "model": other_model}
    assert _run(**changes, do_train=False) == 0
    unnamed = tuple(f"LABEL_{number}" for number in range(5))
    other_model = save_tiny_head(
        tmp_path / "none", flags["model"], Head(TOKEN_CLASSIFICATION, unnamed)
    )
    changes = {"task": tags_dir / "tags.yaml", "data_dir": tags_dir, "model": other_model}
    assert _refusal(flags, **changes, do_train=False).subject == Setting("model")
    # The declaration and the model have different sets of labels.
    error = _refusal(
        flags, task="wnut17", data_dir=tags_dir, model=tags_teacher_dir, do_train=False
    )
    assert error.subject == Setting("model")
    assert error.received.endswith("with 5 labels (O, B-LOC, I-LOC, B-ORG, I-ORG)")


@pytest.mark.long
def test_modernbert_is_fine_tuned_on_both_kinds(flags, questions_dir, vocab_file, tmp_path) -> None:
    """The classification head reads the mean of all tokens; the span head reads each token."""
    config = {**FAMILIES["modernbert"].config_defaults, "model_type": "modernbert"}
    config |= {"type_vocab_size": 0, "local_attention": 16, "classifier_pooling": "mean"}
    config |= {"num_layers": 2, "initializer_range": 0.2}
    model = save_tiny_bert(tmp_path / "modernbert", vocab_file, seed=3, **config)
    flags = {**flags, "model": model}
    assert _run(**flags) == 0
    (run,) = _summary(flags["output_dir"])["runs"]
    assert run["metrics"]["accuracy"] > 0.9
    settings = json.loads(
        (flags["output_dir"] / run["directory"] / "model/config.json").read_text()
    )
    assert settings["architectures"] == ["ModernBertForSequenceClassification"]
    assert settings["classifier_pooling"] == "mean" and settings["local_attention"] == 16
    changes = {"task": "cmrc2018", "data_dir": questions_dir, "num_train_epochs": 12}
    changes |= {"output_dir": tmp_path / "questions", "max_seq_length": 40}
    assert _run(**{**flags, **changes}, doc_stride=20) == 0
    (run,) = _summary(tmp_path / "questions")["runs"]
    assert run["metrics"]["f1"] > 0.8


def test_untrained_head_scores_chance(flags, tmp_path) -> None:
    """The mean over six seeds is near one half, because each head predicts mostly one label."""
    # Some benchmarks, for example XQuAD, have no training file.
    data = shutil.copytree(flags["data_dir"], tmp_path / "data")
    (data / "train.tsv").unlink()
    changes = {"data_dir": data, "num_train_epochs": 0, "seeds": "1,2,3,4,5,6"}
    assert _run(**{**flags, **changes}) == 0
    (rate,) = _summary(flags["output_dir"])["rates"]
    assert 0.3 < rate["metrics"]["accuracy"]["mean"] < 0.7


@pytest.mark.long
def test_grid_of_runs_is_completed_and_extended(capsys, flags) -> None:
    folder = flags["output_dir"]
    flags = {**flags, "num_train_epochs": 2}
    assert _run(**flags, seeds="1,2") == 0
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("*/metrics.json")}
    assert len(stamps) == 2
    capsys.readouterr()
    assert _run(**{**flags, "learning_rates": "1e-9,2e-3"}, seeds="1,2") == 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    summary = _summary(folder)
    runs = [(run["learning_rate"], run["seed"]) for run in summary["runs"]]
    assert runs == [(1e-9, 1), (1e-9, 2), (2e-3, 1), (2e-3, 2)]
    assert summary["best_learning_rate"] == 2e-3
    for index, rate in enumerate(summary["rates"]):
        pair = summary["runs"][2 * index : 2 * index + 2]
        scores = [run["metrics"]["accuracy"] for run in pair]
        spread = rate["metrics"]["accuracy"]
        assert spread["mean"] == pytest.approx(sum(scores) / 2)
        # The sample standard deviation of two values is their distance divided by √2.
        assert spread["std"] == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
    assert " ± " in capsys.readouterr().out


@pytest.mark.long
def test_same_seed_gives_the_same_bits(flags, tmp_path) -> None:
    """Earlier training in the same process does not change the result."""
    flags = {**flags, "num_train_epochs": 2}
    assert _run(**flags, seeds="2") == 0
    again = {**flags, "output_dir": tmp_path / "again"}
    assert _run(**again, seeds="1,2") == 0
    folders = (flags["output_dir"], again["output_dir"], again["output_dir"])
    first, second, other_seed = (
        load_file(folder / f"lr-0.002_seed-{seed}/model/model.safetensors")
        for folder, seed in zip(folders, (2, 2, 1), strict=True)
    )
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])
    assert not np.array_equal(first["classifier.weight"], other_seed["classifier.weight"])


@pytest.mark.long
def test_killed_run_is_repeated(flags) -> None:
    flags = {**flags, "num_train_epochs": 1}
    assert _run(**flags) == 0
    run = flags["output_dir"] / "lr-0.002_seed-1"
    before = load_file(run / "model/model.safetensors")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.json").unlink()
    (run / "model/config.json").unlink()
    assert _run(**flags) == 0
    after = load_file(run / "model/model.safetensors")
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == len(lines)


def test_concurrent_run_in_the_same_directory_is_refused(capsys, flags, monkeypatch) -> None:
    """A second process would delete lines of metrics.jsonl that the first has written."""
    flags = {**flags, "num_train_epochs": 1}
    find_teacher_logits, messages = training.find_teacher_logits, []

    def second(*arguments: object) -> None:
        monkeypatch.setattr(training, "find_teacher_logits", find_teacher_logits)
        messages.append(_fails(capsys, **flags))

    monkeypatch.setattr(training, "find_teacher_logits", second)
    assert _run(**flags) == 0
    run = flags["output_dir"] / "lr-0.002_seed-1"
    assert len(messages) == 1 and str(run) in messages[0]
    # The first run has released the directory.
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == []


@pytest.mark.long
def test_fine_tuned_model_is_evaluated_and_fine_tuned_again(
    capsys, flags, tmp_path, pair_dir
) -> None:
    assert _run(**flags) == 0
    (run,) = _summary(flags["output_dir"])["runs"]
    model = flags["output_dir"] / run["directory"] / "model"
    again = {**flags, "model": model, "output_dir": tmp_path / "again"}
    capsys.readouterr()
    assert _run(**again, do_train=False) == 0
    printed = capsys.readouterr()
    assert f"accuracy     {100 * run['metrics']['accuracy']:.2f}\n" in printed.out
    assert "head: the model's, a classification head" in printed.err
    config = json.loads((model / "config.json").read_text())
    config["id2label"] = {"0": "LABEL_0", "1": "LABEL_1"}
    (model / "config.json").write_text(json.dumps(config))
    assert _run(**again, do_train=False) == 0
    assert "taken as 0, 1, in this order" in capsys.readouterr().err
    assert (tmp_path / "again/evaluated/metrics.json").is_file()
    # On another task the head is dropped, so evaluation without training is refused.
    other_task = {**again, "task": "ocnli", "data_dir": pair_dir, "num_train_epochs": 1}
    other_task["output_dir"] = tmp_path / "other"
    message = _fails(capsys, **other_task, do_train=False)
    assert "a classification head with 3 labels (entailment, neutral, contradiction)" in message
    labels = "2 labels (LABEL_0, LABEL_1)"
    assert message.endswith(f"got {model} with a classification head with {labels}")
    assert _run(**other_task) == 0


@pytest.mark.long
def test_runs_of_a_student_share_the_teacher_cache(flags, task_teacher_dir) -> None:
    teacher = {"finetune_teacher": task_teacher_dir, "distill_weight": 1.0}
    assert _run(**{**flags, "num_train_epochs": 1}, **teacher, seeds="1,2") == 0
    folder = flags["output_dir"]
    assert (folder / "teacher_cache/manifest.json").is_file()
    assert not list(folder.glob("lr-*/teacher_cache"))


def test_bfloat16_predictions_are_accurate(flags) -> None:
    assert _run(**{**flags, "compute_dtype": "mixed_bfloat16"}) == 0
    assert _summary(flags["output_dir"])["runs"][0]["metrics"]["accuracy"] > 0.9


def _refusal(flags: dict[str, object], **changes: object) -> InputError:
    table = finetune.define_flags()
    settings = {**flags, **changes}
    with pytest.raises(InputError) as caught:
        table(["finetune", *(f"--{name}={value}" for name, value in settings.items())])
        finetune.read_grid(table)
        prepare(finetune.read_config(table))
    return caught.value


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({"task": "sentiment"}, Setting("task")),
        ({"data_dir": "/nowhere"}, "/nowhere"),
        ({"model": "/nowhere"}, "/nowhere"),
        ({"max_seq_length": 65}, Setting("max_seq_length")),
        ({"eval_split": "validation"}, "chnsenticorp"),
        ({"learning_rates": "1e-3,0"}, Setting("learning_rates")),
        ({"do_train": False}, Setting("model")),
        ({"do_train": False, "finetune_teacher": "x"}, Setting("finetune_teacher")),
        ({"do_train": False, "teacher_cache": "x"}, Setting("teacher_cache")),
        ({"distill_weight": 0.7}, Setting("distill_weight")),
        ({"distill_temperature": 3}, Setting("distill_temperature")),
    ],
)
def test_invalid_settings_are_named(flags, changes, subject: str) -> None:
    error = _refusal(flags, **changes)
    assert error.subject == subject and type(error.subject) is type(subject)
    assert not flags["output_dir"].exists()


def test_models_that_do_not_fit_the_task_are_refused(
    flags, tmp_path, questions_dir, vocab_file, model_dir
) -> None:
    bare = shutil.copytree(model_dir, tmp_path / "bare")
    (bare / "vocab.txt").unlink()
    assert str(bare) in str(_refusal(flags, model=bare))
    small = save_tiny_bert(tmp_path / "small", vocab_file, seed=1, vocab_size=50)
    assert _refusal(flags, model=small).expected.startswith("a model of at least")
    labeled = save_tiny_head(tmp_path / "head", model_dir, Head(CLASSIFICATION, ("a", "b")))
    changes = {"task": "cmrc2018", "data_dir": questions_dir, "model": labeled}
    error = _refusal(flags, **changes, do_train=False)
    assert error.expected.startswith("a model with a span head")
    assert error.received == f"{labeled} with a classification head with 2 labels (a, b)"
    span = save_tiny_head(tmp_path / "span", model_dir, Head(SPAN))
    assert _refusal(flags, model=span, do_train=False).received == f"{span} with a span head"


def test_split_without_labels_is_not_scored(flags, tmp_path) -> None:
    data = shutil.copytree(flags["data_dir"], tmp_path / "data")
    (data / "test.tsv").write_text("text_a\n火车晚点了两个小时。\n", "utf-8")
    error = _refusal(flags, data_dir=data, eval_split="test")
    assert error.subject == Setting("eval_split") and "example 0" in error.received


def test_error_of_another_run_configuration_prints_both_values(capsys, flags, tmp_path) -> None:
    flags = {**flags, "num_train_epochs": 1}
    assert _run(**flags) == 0
    folder = flags["output_dir"]
    line = _fails(capsys, **{**flags, "num_train_epochs": 2})
    assert str(folder) in line and "num_train_epochs (recorded 1.0, now 2.0)" in line
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    assert "'notes.txt'" in _fails(capsys, **{**flags, "output_dir": full})
    assert (full / "notes.txt").read_text() == "mine"


@pytest.mark.long
def test_diverged_learning_rate_does_not_stop_the_others(capsys, flags) -> None:
    flags = {**flags, "clip_norm": 0, "log_steps": 1, "num_train_epochs": 2}
    line = _fails(capsys, **{**flags, "learning_rates": "1e30"})
    assert line.startswith("--learning_rates: ") and "training diverged" in line
    assert not list(flags["output_dir"].glob("*/metrics.json"))
    assert _run(**{**flags, "learning_rates": "1e30,2e-3"}) == 0
    printed = capsys.readouterr()
    assert "training diverged" in printed.err
    assert "1e+30" not in printed.out
    summary = _summary(flags["output_dir"])
    assert summary["diverged"] == [{"learning_rate": 1e30, "seed": 1}]
    assert [rate["learning_rate"] for rate in summary["rates"]] == [2e-3]
    assert [run["learning_rate"] for run in summary["runs"]] == [2e-3]
    assert summary["best_learning_rate"] == 2e-3
    line = _fails(capsys, **{**flags, "learning_rates": "1e30,1e31"})
    assert line.startswith("--learning_rates: ") and "1e+30,1e+31" in line
