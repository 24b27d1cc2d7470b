"""The study: its steps, and what its report makes of the scores that they leave."""

import json
import pathlib

import pytest

from pipeline.base.errors import InputError
from pipeline.base.location import LocalLocation
from pipeline.models.formats import model_directory
from tools import commands, spreads
from tools.dev import study
from tools.dev.study import Study, StudyConfig


def _config(teacher: pathlib.Path, **settings) -> StudyConfig:
    return StudyConfig(
        **{
            "teacher": teacher,
            "input_dir": LocalLocation("text"),
            "tasks": {"tnews": LocalLocation("a"), "cmrc2018": LocalLocation("b")},
            "work": teacher,
            **settings,
        }
    )


@pytest.fixture
def four_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Source:
        class config:
            num_hidden_layers = 4

    monkeypatch.setattr(model_directory, "find_model", lambda path: Source)


@pytest.mark.usefixtures("four_layers")
def test_students_come_before_those_that_begin_with_them(tmp_path: pathlib.Path) -> None:
    made = Study(_config(tmp_path))
    titles = [step.title for step in made.steps()]
    assert titles[:2] == ["masked examples", "the teacher runs once"]
    assert titles[2:8] == [
        "2 layers, distilled, seed 1",
        "2 layers, undistilled, seed 1",
        "1 layer, distilled, seed 1",
        "1 layer, undistilled, seed 1",
        "2 layers, undistilled, then distilled, seed 1",
        "2 layers, undistilled, then undistilled, seed 1",
    ]
    # Two seeds of a teacher and six students on one task, one seed on the other.
    assert sum(title.startswith("tnews: ") for title in titles) == 14
    assert sum(title.startswith("cmrc2018: ") for title in titles) == 7


@pytest.mark.usefixtures("four_layers")
def test_a_finished_step_is_not_made_again(tmp_path: pathlib.Path, capsys) -> None:
    made = []
    done = tmp_path / "done"
    done.touch()
    steps = [
        commands.Step("one", done, lambda: made.append("one")),
        commands.Step("two", tmp_path / "missing", lambda: made.append("two")),
    ]
    commands.make_steps(steps, 0.0)
    assert made == ["two"]
    assert "[1/2] one (done before)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "received"),
    [
        ("tnews", "'tnews'"),
        ("tnews=.,tnews=.", "'tnews=.'"),
        ("tnews=.,own/tnews.yaml=.", "'own/tnews.yaml=.'"),
        ("tnews=nowhere", "no such folder"),
        ("tnews=.", "no such file"),
        ("news=.", "news"),
    ],
)
def test_tasks_that_cannot_be_read_are_refused_before_anything_is_trained(
    tmp_path, given: str, received: str
) -> None:
    with pytest.raises(InputError) as error:
        _config(tmp_path, tasks=given)
    assert "tasks" in (error.value.subject, error.value.setting)
    assert received in str(error.value.received)


@pytest.mark.usefixtures("four_layers")
def test_results_of_a_task_of_ones_own_are_within_the_work(tmp_path: pathlib.Path) -> None:
    own = str(tmp_path / "own.yaml")
    made = Study(_config(tmp_path, tasks={own: tmp_path / "a"}, work=tmp_path / "work"))
    model = next(made.models())
    assert made.task_directory(model, own) == tmp_path / "work/tasks/own/teacher-seed1"


@pytest.mark.usefixtures("four_layers")
def test_results_of_other_files_are_not_taken_for_these(tmp_path: pathlib.Path) -> None:
    work, teacher = tmp_path / "work", tmp_path / "teacher"
    tasks = {"tnews": tmp_path / "a"}
    Study(_config(teacher, tasks=tasks, work=work)).claim()
    # Tasks and seeds may be added.
    more = {**tasks, "ocnli": tmp_path / "b"}
    Study(_config(teacher, tasks=more, seeds=(1, 2, 3), work=work)).claim()
    with pytest.raises(InputError) as error:
        Study(_config(teacher, tasks={"tnews": tmp_path / "c"}, work=work)).claim()
    assert error.value.subject == str(work / "tasks/tnews")
    assert str(tmp_path / "a") in error.value.received


def test_a_gain_is_weighed_against_the_spread() -> None:
    # Standard deviations of two values are their distance over the root of 2.
    scores = {
        "half-distilled": spreads.spread([0.72, 0.74]),
        "half-undistilled": spreads.spread([0.70, 0.70]),
        "quarter-distilled": spreads.spread([0.60, 0.64]),
        "quarter-undistilled": spreads.spread([0.61, 0.65]),
        "base-distilled": spreads.spread([0.5]),
        "base-undistilled": spreads.spread([0.6]),
    }
    rows = {key: {"scores": {"tnews": score}} for key, score in scores.items()}
    half, quarter, base = study.compare(rows, ["tnews"])
    assert half["difference"] == pytest.approx(0.03)
    assert half["spread"] == pytest.approx(0.01)
    assert half["verdict"] == "better"
    assert quarter["difference"] == pytest.approx(-0.01)
    assert quarter["spread"] == pytest.approx(0.02 * 2**0.5)
    assert quarter["verdict"] == "within the spread"
    assert base["spread"] is None
    assert base["verdict"] == "worse, one seed"
    rows["base-distilled"] = rows["base-undistilled"]
    assert study.compare(rows, ["tnews"])[2]["verdict"] == "equal, one seed"


def _write_results(made: Study, *, teacher: float = 0.8) -> None:
    """Writes what finished steps leave: the taught are better by 2 points, seeds by 1."""
    for model in made.students():
        taught = model.key.endswith("-distilled")
        line = {
            "split": "eval",
            "masked_lm_accuracy": 0.30 + 0.02 * taught + 0.01 * model.seed,
            "teacher_agreement": 0.7,
            "teacher_accuracy": 0.4,
        }
        directory = made.directory(model)
        directory.mkdir(parents=True)
        lines = [{"split": "train"}, {"split": "eval", "masked_lm_accuracy": 0.0}, line]
        lines = [{"step": step, **one} for step, one in enumerate(lines)]
        text = "\n".join(map(json.dumps, lines)) + "\n"
        (directory / "metrics.jsonl").write_text(text, encoding="utf-8")
    for task in made.config.tasks:
        for model in made.task_models(task):
            mean = teacher if model.key == study.TEACHER else 0.6
            metrics = {"accuracy": {"mean": mean, "std": None}}
            directory = made.task_directory(model, task)
            directory.mkdir(parents=True)
            (directory / "summary.json").write_json(
                {
                    "task": task,
                    "split": "dev",
                    "best_learning_rate": 1e-4,
                    "main_metric": "accuracy",
                    "rates": [{"learning_rate": 1e-4, "num_seeds": 1, "metrics": metrics}],
                }
            )


@pytest.mark.usefixtures("four_layers")
@pytest.mark.parametrize(("teacher_score", "share_kept"), [(0.8, 0.75), (0.0, None)])
def test_the_report_collects_what_the_steps_left(
    tmp_path: pathlib.Path, monkeypatch, teacher_score: float, share_kept: float | None
) -> None:
    made = Study(_config(tmp_path))
    _write_results(made, teacher=teacher_score)
    monkeypatch.setattr(study, "count_parameters", lambda config: 2_500_000)
    report = study.read_report(made)
    teacher, half, *_ = report["models"]
    assert teacher["key"] == "teacher"
    assert teacher["scores"]["masked LM"]["values"] == [0.4]
    assert half["key"] == "half-distilled"
    assert half["parameters"] == 2_500_000
    assert half["scores"]["masked LM"]["values"] == pytest.approx([0.33, 0.34])
    assert half["scores"]["tnews"]["values"] == [0.6, 0.6]
    assert half["scores"]["cmrc2018"]["values"] == [0.6]
    students = [model for model in report["models"] if model["key"] != "teacher"]
    # Nothing is kept of a score that the teacher has not.
    assert {model["share_kept"] and round(model["share_kept"], 9) for model in students} == {
        share_kept
    }
    text = study.report_table(report)
    line = next(line for line in text.splitlines() if line.startswith("2 layers, distilled"))
    cells = ["2.50", "M", "33.5", "±0.7", "70.0", "±0.0", "60.0", "±0.0", "60.0"]
    assert line.split()[3:] == [*cells, *(["75.0%"] if share_kept else [])]
    assert "+2.0" in text


@pytest.mark.parametrize(
    "content", ["", '{"step": 1, "split": "eval", "loss": 1}', "[" * 100_000, "[1]"]
)
def test_metrics_without_an_evaluation_are_refused(tmp_path, content: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(InputError) as error:
        study.last_evaluation(tmp_path)
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
def test_the_score_of_a_summary_is_read_or_its_absence_refused(tmp_path, changes) -> None:
    path = tmp_path / "summary.json"
    metrics = {"f1": {"mean": 0.25}, "accuracy": {"mean": 0.5}}
    rates = [{"learning_rate": 1e-4, "num_seeds": 1, "metrics": metrics}]
    summary = {"task": "x", "split": "dev", "best_learning_rate": 1e-4, "rates": rates}
    path.write_text(json.dumps({**summary, "main_metric": "f1", **changes}))
    if not changes:
        assert study.read_score(path) == 0.25
        return
    with pytest.raises(InputError) as error:
        study.read_score(path)
    assert error.value.subject.startswith(str(path))
