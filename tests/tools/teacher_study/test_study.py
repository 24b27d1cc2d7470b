"""The steps of a study, and the report of their scores."""

import json
import pathlib

import pytest

from pipeline.base.errors import InputError, Setting
from pipeline.models.formats.model_directory import find_model
from pipeline.models.weight_names import count_parameters
from pipeline.storage import manifest as manifests
from pipeline.storage.manifest import TRAIN
from tools.recipe_comparison import table
from tools.recipe_comparison.variants import Recipe, Shapes, make_variants
from tools.teacher_study import report as reports
from tools.teacher_study.settings import StudyConfig
from tools.teacher_study.study import Study

_RECIPES = (
    Recipe("masked_lm", None, {"masked_lm": 1.0}),
    Recipe("wwm", None, {"soft_cross_entropy": 1.0}),
    Recipe("live", "live", {"kl_divergence": 1.0, "masked_lm": 1.0}),
)
_CACHE = "wwm@compact-8-labels"


def _study(
    work: pathlib.Path, teacher: pathlib.Path | None = None, has_head: bool = True, **settings
) -> Study:
    tasks = {"tnews": work / "a", "ocnli": work / "b"}
    required = {"teacher": teacher or work / "teacher", "input_dir": "text", "tasks": tasks}
    config = StudyConfig(**{**required, "work": work / "work", **settings})
    variants = make_variants(_RECIPES, shapes=Shapes(4, 2), cache="compact-8")
    return Study(config, variants, 2, has_head=has_head)


def test_recipes_keep_their_losses(tmp_path) -> None:
    losses = [dict(variant.losses) for variant in _study(tmp_path).variants]
    assert losses == [dict(recipe.losses) for recipe in _RECIPES]


def test_students_are_trained_before_their_continuations(tmp_path) -> None:
    study = _study(tmp_path)
    keys = [step.result.parent.name for step in study.steps() if step.kind == "train"]
    assert keys == [
        *(
            f"{key}_seed{seed}"
            for seed in (1, 2)
            for key in ("masked_lm", _CACHE, "live@live+labels")
        ),
        *(f"masked_lm_then_{key}_seed{seed}" for seed in (1, 2) for key in (_CACHE, "masked_lm")),
    ]
    # Five students and the teacher are fine-tuned with two seeds each on both tasks.
    kinds = [step.kind for step in study.steps()]
    assert kinds.count("tnews") == kinds.count("ocnli") == 12
    results = [step.result for step in study.steps()]
    assert len(set(results)) == len(results)


def test_teacher_without_a_head_gets_one_before_capture(tmp_path) -> None:
    with_head, without = _study(tmp_path), _study(tmp_path, has_head=False)
    assert with_head.teacher == tmp_path / "teacher"
    assert without.teacher == tmp_path / "work" / "teacher"
    titles = [step.title for step in without.steps()]
    assert titles.index("the teacher's head") < titles.index("teacher targets for evaluation, like")
    assert "the teacher's head" not in [step.title for step in with_head.steps()]


def test_students_have_equal_steps_and_base_models_continue_for_half(tmp_path) -> None:
    study = _study(tmp_path, num_train_steps=100)
    assert {study.num_train_steps(trial) for trial in study.trials if trial.base is None} == {100}
    assert {study.num_train_steps(trial) for trial in study.trials if trial.base is not None} == {
        50
    }


def test_continued_student_starts_from_the_baseline_of_its_seed(tmp_path, monkeypatch) -> None:
    run_settings = []
    name = "tools.recipe_comparison.runs.run_command"
    monkeypatch.setattr(name, lambda command, **settings: run_settings.append(settings))
    study = _study(tmp_path)
    for step in study.train_steps():
        step.make()
    last = run_settings[-2]
    assert last["student"] == study.work / "students" / "masked_lm_seed2"
    assert last["input_dir"] == study.training_cache(study.variants[1].cache)
    assert (last["num_train_steps"], last["random_seed"]) == (300, 2)
    assert "init_from" not in last
    assert run_settings[-1]["input_dir"] == study.training_data(live=False)
    assert run_settings[2]["input_dir"] == study.training_data(live=True)
    assert run_settings[2]["teacher"] == study.teacher


def test_budget_is_measured_first_and_tasks_are_sized_last(tmp_path) -> None:
    titles = [step.title for step in _study(tmp_path, has_head=False, budget="30m").steps()]
    sizes = ("size of the teacher's head", "sizes of the students", "sizes of the tasks")
    head, students, tasks = map(titles.index, sizes)
    assert titles[head + 1] == "the teacher's head"
    probe = [index for index, title in enumerate(titles) if title.startswith("probe: ")]
    assert head < min(probe) and max(probe) < students
    trained = [index for index, title in enumerate(titles) if title.startswith(("train:", "cache"))]
    assert students < min(trained)
    assert titles[tasks - 1].startswith("evaluate: ")
    assert titles[tasks + 1] == "tnews: teacher, seed 1"


def test_training_data_are_the_shards_that_the_steps_read(examples_dir, tmp_path) -> None:
    shards = manifests.load(examples_dir).splits[TRAIN]
    assert len(shards) > 2
    first = shards[0].num_examples
    study = _study(tmp_path, num_train_steps=first + 1, train_batch_size=1)
    study.work.make_directory()
    (study.work / "examples").symlink_to(examples_dir)
    study._take_data(live=False)
    data = study.training_data(live=False)
    manifest = manifests.load(data)
    assert manifest.splits == {TRAIN: shards[:2]}
    manifests.verify(data, manifest, full=True)
    longer_study = _study(tmp_path, num_train_steps=10**6)
    longer_study._take_data(live=False)
    assert manifests.load(data).splits == {TRAIN: shards}


def test_costs_are_computed_from_the_pilot_study(tmp_path, cache_dir, sentiment_dir) -> None:
    study = _study(tmp_path, budget="30m", tasks={"chnsenticorp": sentiment_dir})
    pilot, work = study._pilot, study.work
    (trial,) = pilot.trials
    (spec,) = study.cache_specs
    examples = manifests.load(cache_dir).num_examples(TRAIN)
    cache = work / "probe" / "caches" / spec.key
    cache.parent.make_directory()
    cache.symlink_to(cache_dir)
    seconds = {
        f"probe/caches/{spec.key}/manifest.json": 10.0 + 0.5 * examples,
        f"probe/students/{trial.key}/config.json": 10.0,
        f"probe/scores/{trial.key}.json": 5.0,
        "probe/tasks/chnsenticorp/teacher/summary.json": 12.0,
        f"probe/tasks/chnsenticorp/{trial.key}/summary.json": 7.0,
    }
    (work / "seconds.json").write_json(seconds)
    (work / "probe" / "step_times").make_directory()
    for variant, step in zip(study.variants, (1.0, 2.0, 4.0), strict=True):
        pilot.step_time_file(variant).write_json({"ratio": step, "seconds": step})
    for key, rate in (("teacher", 4.0), (trial.key, 8.0)):
        directory = pilot.task_directory(key, "chnsenticorp")
        (directory / "run").make_directory()
        counts = {"num_train_examples": 16, "num_train_inputs": 16}
        (directory / "summary.json").write_json({"runs": [{"directory": "run", "counts": counts}]})
        line = {"step": 1, "split": "train", "examples_per_second": rate}
        (directory / "run" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    costs = pilot.costs(study.trials)
    # There are six students and four continued students, two of them with the baseline's losses.
    assert costs.fixed == pytest.approx(10 * 15.0 + 10.0)
    assert costs.per_step == pytest.approx(2 * (1 + 2 + 4) + 2 * (2 + 1) / 2 + 32 * 0.5)
    task = costs.tasks["chnsenticorp"]
    # The 16 inputs take 4 of the teacher's 12 seconds and 2 of a student's 7 seconds.
    assert task.fixed == pytest.approx(2 * 8.0 + 10 * 5.0)
    assert task.per_example == pytest.approx(2 / 4 + 10 / 8)
    assert (task.num_examples, task.num_epochs) == (96, 1.0)
    # An evaluation that ended after its tool was killed has no recorded time.
    del seconds[f"probe/scores/{trial.key}.json"]
    (work / "seconds.json").write_json({**seconds, "probe/step_times/baseline.json": 3.0})
    assert pilot.costs(study.trials).fixed == pytest.approx(10 * 13.0 + 10.0)


@pytest.mark.parametrize("name", ["tasks", "recipes"])
def test_missing_tasks_or_recipes_are_refused(tmp_path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        _study(tmp_path, **{name: {} if name == "tasks" else ""})
    assert caught.value.subject == Setting(name)


def test_study_with_a_budget_cannot_be_extended(tmp_path) -> None:
    _study(tmp_path).reserve()
    three_tasks = {"tnews": tmp_path / "a", "ocnli": tmp_path / "b", "afqmc": tmp_path / "c"}
    _study(tmp_path, seeds=(1, 2, 3), tasks=three_tasks).reserve()
    with pytest.raises(InputError):
        _study(tmp_path, tasks={"tnews": tmp_path / "c"}).reserve()
    root = tmp_path / "budgeted"
    _study(root, budget="30m").reserve()
    _study(root, budget="30m").reserve()
    three_tasks = {"tnews": root / "a", "ocnli": root / "b", "afqmc": root / "c"}
    for change in ({"seeds": (1, 2, 3)}, {"tasks": three_tasks}, {"budget": "31m"}):
        with pytest.raises(InputError):
            _study(root, **{"budget": "30m", **change}).reserve()


def _write_results(study: Study, teacher: pathlib.Path, student: pathlib.Path) -> None:
    """Writes the results of finished steps.

    On tnews, the cached recipe gains 2 points. On ocnli, seeds differ by more than recipes do,
    and the teacher's 0.36 is not above 0.34 + 2·√(0.34 · 0.66 / 400) = 0.387.
    """
    for folder in ("scores", "students", "step_times"):
        (study.work / folder).make_directory()
    for variant in study.variants:
        study.step_time_file(variant).write_json({"ratio": 1.25, "seconds": 0.1})
    models = [("teacher", seed, None) for seed in study.config.seeds]
    for trial in study.trials:
        helped = "wwm" in trial.kind
        study.student(trial).symlink_to(student)
        scores = {
            "masked_lm_accuracy": 0.30 + 0.02 * helped + 0.01 * trial.seed,
            "teacher_agreement": 0.7,
            "kl_divergence": 1.0 - 0.1 * helped,
            "teacher_accuracy": 0.44,
        }
        study.scores_file(trial).write_json({"like": scores})
        models.append((trial.kind, trial.seed, helped))
    for key, seed, helped in models:
        is_teacher = key == "teacher"
        scores_of_tasks = {
            "tnews": 0.8 if is_teacher else 0.60 + 0.02 * helped,
            "ocnli": 0.36 if is_teacher else 0.2 + 0.1 * seed + 0.001 * helped,
        }
        for task, score in scores_of_tasks.items():
            metrics = {"accuracy": {"mean": score, "std": None}}
            path = study.task_directory(f"{key}_seed{seed}", task) / "summary.json"
            path.parent.make_directory()
            path.write_json(
                {
                    "task": task,
                    "split": "dev",
                    "best_learning_rate": 1e-4,
                    "main_metric": "accuracy",
                    "constant_score": 0.34 if task == "ocnli" else 0.1,
                    "num_eval_examples": 400,
                    "rates": [{"learning_rate": 1e-4, "num_seeds": 1, "metrics": metrics}],
                }
            )
    rows = [
        {
            "device": "cpu:0",
            "computation": "float32",
            "parameters": 1,
            "megabytes": 4.0 / factor,
            "latency": {"median": 0.1 / factor, "times_better": [factor, 1.0, 3.0]},
            "throughput": {"median": 10.0 * factor, "times_better": [factor, 1.5, 1.7]},
        }
        for factor in (1.0, 1.6)
    ]
    study.inference_file.write_json({"batch_size": 16, "seq_length": 128, "rows": rows})
    (study.work / "seconds.json").write_json({"a": 90.0})


@pytest.fixture
def finished(tmp_path, teacher_dir, model_dir) -> Study:
    study = _study(tmp_path, teacher=teacher_dir)
    study.work.make_directory()
    _write_results(study, teacher_dir, model_dir)
    return study


def test_report_collects_the_results_of_the_steps(finished, teacher_dir, model_dir) -> None:
    report = reports.read_report(finished)
    teacher, baseline, cached, live, continued, base = report["models"]
    assert teacher["scores"]["like/masked_lm_accuracy"] == {
        "mean": 0.44,
        "std": None,
        "values": [0.44, 0.44],
    }
    roles = [model["role"] for model in report["models"]]
    assert roles == ["teacher", "baseline", *["distilled"] * 2, *["continued"] * 2]
    assert (cached["baseline"], live["baseline"]) == ("masked_lm", "masked_lm")
    assert continued["baseline"] == base["key"] == "masked_lm_then_masked_lm"
    assert (cached["num_train_steps"], continued["num_train_steps"]) == (600, 300)
    accuracy = cached["scores"]["like/masked_lm_accuracy"]
    assert accuracy["mean"] == pytest.approx(0.335)
    assert accuracy["std"] == pytest.approx(0.01 / 2**0.5)
    # The teacher is at chance on ocnli, so the share is computed on tnews alone.
    assert {task: row["teacher_above"] for task, row in report["chance"].items()} == {
        "tnews": True,
        "ocnli": False,
    }
    assert report["chance"]["ocnli"]["constant_score"] == 0.34
    assert report["chance"]["ocnli"]["chance_limit"] == pytest.approx(0.387371, abs=1e-6)
    assert cached["share_kept"] == pytest.approx(0.62 / 0.8)
    assert baseline["share_kept"] == pytest.approx(0.75)
    sizes = [count_parameters(find_model(path).config) for path in (teacher_dir, model_dir)]
    assert [teacher["parameters"], cached["parameters"]] == sizes
    assert report["minutes"] == 1.5
    assert cached["step_time_ratio"] == 1.25
    assert report["sizes"]["task_examples"] == {"tnews": None, "ocnli": None}


def test_gains_are_compared_with_the_spread(finished) -> None:
    gains = {gain["model"]: gain["scores"] for gain in reports.read_report(finished)["gains"]}
    assert set(gains) == {_CACHE, "live@live+labels", f"masked_lm_then_{_CACHE}"}
    for key in (_CACHE, f"masked_lm_then_{_CACHE}"):
        assert gains[key]["tnews"]["difference"] == pytest.approx(0.02)
        assert gains[key]["tnews"]["verdict"] == "better"
        assert gains[key]["ocnli"]["verdict"] == "within the spread"
        # A smaller divergence is better.
        assert gains[key]["like/kl_divergence"]["verdict"] == "better"
        assert gains[key]["like/kl_divergence"]["difference"] == pytest.approx(-0.1)


def test_markdown_has_the_summary_and_the_tasks_without_gain(finished) -> None:
    report = reports.read_report(finished)
    sizes = [model["parameters"] for model in report["models"][:2]]
    smaller = round(100 * (1 - sizes[1] / sizes[0]))
    first, second = report["sentences"]
    assert first == (
        f"wwm, compact-8, without labels: {smaller}% smaller, 60% faster, 77.5% of the "
        "teacher's score kept (baseline student: 75.0%)"
    )
    assert second.startswith("live, live, with labels: ")
    text = reports.markdown(report, table.score_columns(finished))
    assert f"- {first}" in text.splitlines()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    of_students, of_gains = (row[1:] for row in rows if row[0].startswith("wwm, compact-8"))
    assert of_students[1:] == [
        "600",
        "1.25",
        "33.5 ± 0.7",
        "70.0 ± 0.0",
        "0.900 ± 0.000",
        "62.0 ± 0.0",
        "35.1 ± 7.1",
        "77.5%",
    ]
    assert of_gains == ["+2.0", "+0.0 ~", "-0.100", "+2.0", "+0.1 ~"]
    unhelped = [line for line in text.splitlines() if line.startswith("- live, live, with")]
    # The teacher is at chance on ocnli.
    assert unhelped[-1].endswith("with labels: tnews (+0.0, within the spread).")
    helped = [line for line in text.splitlines() if line.startswith("- wwm, compact-8")]
    assert helped[-1].endswith("it helps on every task that counts.")


def test_share_is_unknown_if_the_teacher_is_at_chance_on_all_tasks(finished) -> None:
    for seed in finished.config.seeds:
        path = finished.task_directory(f"teacher_seed{seed}", "tnews") / "summary.json"
        path.write_json({**path.read_json(), "constant_score": 0.8})
    report = reports.read_report(finished)
    assert {model["share_kept"] for model in report["models"]} == {None}
    assert all("kept" not in sentence for sentence in report["sentences"])
    text = reports.markdown(report, table.score_columns(finished))
    assert "tnews is excluded" in text and "ocnli is excluded" in text


def test_number_of_task_examples_replaces_the_number_that_fits_the_budget(tmp_path) -> None:
    study = _study(tmp_path, budget="30m", max_task_examples=500)
    assert study.task_changes("tnews") == {"max_train_examples": 500}
    assert "sizes of the tasks" not in [step.title for step in study.steps()]
    assert _study(tmp_path).task_changes("tnews") == {}


def test_markdown_names_students_better_on_every_task(finished) -> None:
    report = reports.read_report(finished)
    for gain in report["gains"]:
        for difference in gain["scores"].values():
            difference["verdict"] = "better"
    text = reports.markdown(report, table.score_columns(finished))
    assert text.count("it helps on every task") == 3


def test_report_contains_the_trained_head(finished) -> None:
    study = Study(finished.config, finished.variants, 2, has_head=False)
    line = {"step": 5, "split": "eval", "masked_lm_accuracy": 0.25}
    directory = study.teacher.make_directory()
    (directory / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (directory / "config.json").write_bytes((finished.config.teacher / "config.json").read_bytes())
    (directory / "model.safetensors").symlink_to(finished.config.teacher / "model.safetensors")
    report = reports.read_report(study)
    assert report["head"] == {"num_train_steps": 1000, "masked_lm_accuracy": 0.25}
    assert "25.0%" in reports.markdown(report, table.score_columns(study))


def test_pilot_study_writes_only_to_its_own_directory(tmp_path) -> None:
    study = _study(tmp_path, budget="30m")
    results = [step.result for step in study._pilot.steps()]
    assert all(result.is_inside(study.work / "probe") for result in results)
