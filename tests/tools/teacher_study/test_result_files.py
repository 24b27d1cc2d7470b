"""Readers of the files that the steps of a study write, and refused contents."""

import json

import pytest

from pipeline.base.errors import InputError
from tools.finetuning import short_runs
from tools.teacher_study import result_files


def test_last_evaluation_of_the_metrics_is_read(tmp_path) -> None:
    lines = [
        {"step": 1, "split": "eval", "masked_lm_accuracy": 0.1},
        {"step": 2, "split": "train", "loss": 1.0},
        {"step": 2, "split": "eval", "masked_lm_accuracy": 0.2},
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert result_files.last_evaluation(tmp_path)["masked_lm_accuracy"] == 0.2


@pytest.mark.parametrize(
    "content", ["", '{"step": 1, "split": "eval", "loss": 1}', "[" * 100_000, "[1]"]
)
def test_metrics_without_an_evaluation_are_refused(tmp_path, content: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(InputError) as error:
        result_files.last_evaluation(tmp_path)
    assert error.value.subject.startswith(str(tmp_path / "metrics.jsonl"))


@pytest.mark.parametrize(
    "changes",
    [
        {"rates": None},
        {"rates": []},
        {"rates": [{"metrics": []}]},
        {"rates": [{"metrics": {"f1": {}}}]},
        {},
    ],
)
def test_score_of_a_summary_is_read_and_a_missing_score_refused(tmp_path, changes) -> None:
    path = tmp_path / "summary.json"
    metrics = {"f1": {"mean": 0.25}, "accuracy": {"mean": 0.5}}
    rates = [{"learning_rate": 1e-4, "num_seeds": 1, "metrics": metrics}]
    summary = {"task": "x", "split": "dev", "best_learning_rate": 1e-4, "rates": rates}
    path.write_text(json.dumps({**summary, "main_metric": "f1", **changes}))
    if not changes:
        assert short_runs.read_score(path) == 0.25
        return
    with pytest.raises(InputError) as error:
        short_runs.read_score(path)
    assert error.value.subject.startswith(str(path))


def _write_run(folder, rates: list[float]) -> None:
    counts = {"num_train_examples": 64, "num_train_inputs": 96}
    summary = {"runs": [{"directory": "lr-1_seed-1", "counts": counts}]}
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = [
        {"step": step, "split": "train", "examples_per_second": rate}
        for step, rate in enumerate(rates, 1)
    ]
    lines.append({"step": len(rates), "split": "eval", "accuracy": 0.5})
    (folder / "lr-1_seed-1").mkdir()
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "lr-1_seed-1" / "metrics.jsonl").write_text(text)


def test_chance_limit_is_two_standard_errors_above_the_constant_score(tmp_path) -> None:
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({"constant_score": 0.5, "num_eval_examples": 400}))
    assert result_files.read_constant_score(tmp_path).chance_limit == pytest.approx(0.55)
    # Files of older versions have no constant score.
    path.write_text("{}")
    assert result_files.read_constant_score(tmp_path).chance_limit == 0.0
    path.write_text(json.dumps({"constant_score": 1.5, "num_eval_examples": 400}))
    with pytest.raises(InputError):
        result_files.read_constant_score(tmp_path)


@pytest.mark.parametrize(
    ("rates", "expected"),
    # The mean of equal numbers of inputs at 10 and at 30 per second is 15 per second.
    [([1.0, 1.0, 10.0, 30.0], 15.0), ([4.0, 4.0], 4.0)],
)
def test_rate_of_a_run_excludes_the_compilation_steps(tmp_path, rates, expected) -> None:
    _write_run(tmp_path, rates)
    assert result_files.examples_per_second(tmp_path) == pytest.approx(expected)
    assert result_files.read_task_counts(tmp_path) == result_files.TaskCounts(64, 96)
