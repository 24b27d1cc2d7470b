"""The report: values in its tables and charts, what it leaves out, and mistakes."""

import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest

from pipeline.storage import manifest as manifests
from tests.conftest import make_cache
from tests.tools.page_reading import charts, parse, read_points
from tools import report as tool
from tools.pages.report_curves import AGREEMENT, finding, setting_text
from tools.pages.report_inputs import read_cache, reliability
from tools.pages.report_runs import flattened, short_names
from tools.pages.report_scores import _short, model_folder
from tools.pages.svg_parts import Point, Series

TRAIN = [
    {"step": step, "split": "train", "loss": 5.0 - step / 100, "learning_rate": 1e-3}
    for step in (20, 40, 60)
]


def _evaluation(step: int, accuracy: float, **others: float) -> dict[str, Any]:
    return {
        "step": step,
        "split": "eval",
        "loss": 5.0,
        "masked_lm": 4.5 - accuracy,
        "masked_lm_perplexity": 120.0,
        "masked_lm_accuracy": accuracy,
        "teacher_agreement": 2 * accuracy,
        "teacher_accuracy": 0.45,
        "kl_divergence": 0.3 - accuracy / 2,
        "calibration_error": 0.02 + accuracy / 100,
        "examples_per_second": 99.0,
        **others,
    }


def _make_run(folder: pathlib.Path, scores: list[float], **settings: Any) -> pathlib.Path:
    """Writes what a run leaves behind, without a model."""
    folder.mkdir(parents=True)
    lines = [*TRAIN, *(_evaluation(20 * (at + 1), score) for at, score in enumerate(scores))]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    request = {
        "kind": "student",
        "cache": "a" * 64,
        "learning_rate": 1e-3,
        "losses": {"masked_lm": 1.0},
        "student": {"config": {"num_hidden_layers": 2}, "layer_map": [0, 3]},
        **settings,
    }
    (folder / "request.json").write_json(request)
    return folder


@pytest.fixture
def two_runs(tmp_path) -> list[pathlib.Path]:
    """One better than the other."""
    return [
        _make_run(tmp_path / "distilled", [0.1, 0.2, 0.31]),
        _make_run(tmp_path / "plain", [0.1, 0.15, 0.25], learning_rate=5e-4, random_seed=3),
    ]


def _report(tmp_path, *flags: str) -> str:
    output = tmp_path / "report.html"
    output.unlink(missing_ok=True)
    assert tool.main(["report", *flags, f"--output={output}"]) == 0
    return output.read_text(encoding="utf-8")


def _runs_flag(runs) -> str:
    return f"--runs={','.join(map(str, runs))}"


def _fails(tmp_path, capsys, *flags: str) -> str:
    output = tmp_path / "failed.html"
    assert tool.main(["report", f"--output={output}", *flags]) == 1
    assert not output.exists()
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_tables(two_runs, tmp_path) -> None:
    found = parse(_report(tmp_path, _runs_flag(two_runs)))
    results, _, settings, shared = found.tables
    titles = [
        "run",
        "layers × width",
        "parameters",
        "weights",
        "updates",
        "accuracy",
        "agreement",
        "loss",
    ]
    titles += ["perplexity", "KL", "calibration error"]
    assert results == [
        titles,
        [
            "distilled",
            "2 × –",
            "–",
            "–",
            "60",
            "31.0%",
            "62.0%",
            "4.190",
            "120.0",
            "0.1450",
            "0.0231",
        ],
        ["plain", "2 × –", "–", "–", "60", "25.0%", "50.0%", "4.250", "120.0", "0.1750", "0.0225"],
    ]
    assert settings == [
        ["setting", "distilled", "plain"],
        ["learning_rate", "0.001", "0.0005"],
        ["random_seed", "–", "3"],
    ]
    assert ["cache", "aaaaaaaa…"] in shared and ["num_hidden_layers", "2"] in shared
    assert not [row for row in shared if row[0] in ("learning_rate", "kind")]
    assert (
        "distilled guesses 31.0% of the held-out masked tokens, 69% of the teacher's 45.0%. "
        "From 2 runs."
    ) in found.text
    best = [a["class"] for tag, a in found.tags if tag == "td" and "best" in a.get("class", "")]
    # Accuracy, agreement, loss, two equal perplexities, divergence; calibration of the other.
    assert len(best) == 7


def test_curves(two_runs, tmp_path) -> None:
    page = _report(tmp_path, _runs_flag(two_runs))
    agreement, accuracy, loss, divergence, training, calibration = charts(page)
    points = read_points(agreement)
    assert [x for x, _ in points["distilled"]] == pytest.approx([20, 40, 60], abs=0.2)
    for name, chart, expected in (
        ("distilled", agreement, [0.2, 0.4, 0.62]),
        ("plain", agreement, [0.2, 0.3, 0.5]),
        ("distilled", accuracy, [0.1, 0.2, 0.31]),
        ("plain", loss, [4.4, 4.35, 4.25]),
        ("plain", divergence, [0.25, 0.225, 0.175]),
        ("distilled", training, [4.8, 4.6, 4.4]),
        ("plain", calibration, [0.021, 0.0215, 0.0225]),
    ):
        heights = [y for _, y in read_points(chart)[name]]
        assert heights == pytest.approx(expected, rel=3e-3), chart.get("aria-label")
    assert agreement.get("aria-label") == (
        "Agreement with the teacher: distilled ends highest, at 62.0%"
    )
    assert loss.get("aria-label") == "Loss on held-out tokens: distilled ends lowest, at 4.190"
    # The teacher is a line across the accuracies.
    texts = [one.text for one in accuracy.iter("text") if one.get("class") == "label"]
    assert texts == ["distilled 31.0%", "plain 25.0%", "the teacher 45.0%"]


def test_one_run_and_what_is_missing(tmp_path) -> None:
    run = _make_run(tmp_path / "only", [0.1, 0.2])
    text = (run / "metrics.jsonl").read_text().replace('"teacher_agreement"', '"other"')
    (run / "metrics.jsonl").write_text(text.replace("0.2,", "NaN,", 1))
    page = _report(tmp_path, _runs_flag([run]))
    found = "".join(parse(page).text)
    assert "Masked tokens guessed: from 10.0% to 20.0%" in found
    assert "Agreement" not in found and "What sets the runs apart" not in found
    for title in ("Scores on tasks", "Cache size", "Quality against latency"):
        assert title not in found
    assert "nan" not in page.lower().replace("pinned", "")


def test_losses_that_differ_are_not_compared(tmp_path) -> None:
    runs = [
        _make_run(tmp_path / "a", [0.1]),
        _make_run(tmp_path / "b", [0.2], losses={"kl_divergence": 1.0}, cache="b" * 64),
    ]
    page = parse(_report(tmp_path, _runs_flag(runs)))
    # More runs than settings are rows.
    runs.append(_make_run(tmp_path / "c", [0.2], learning_rate=1.0, cache="c" * 64))
    runs[1:2] = []
    settings = parse(_report(tmp_path, _runs_flag([*runs, _make_run(tmp_path / "d", [0.3])])))
    assert settings.tables[2] == [
        ["run", "cache", "learning_rate"],
        ["a", "aaaaaaaa…", "0.001"],
        ["c", "cccccccc…", "1"],
        ["d", "aaaaaaaa…", "0.001"],
    ]
    found = "".join(page.text)
    assert "Training loss: each run minimises its own" in found
    assert "The runs read different caches," in found


def test_names_are_escaped(tmp_path) -> None:
    nasty = "<script>alert(1)<" + "!--"
    runs = [_make_run(tmp_path / nasty, [0.3]), _make_run(tmp_path / "b\x1b", [0.2], note='"><b>')]
    page = _report(tmp_path, _runs_flag(runs), "--title=<i>&")
    found = parse(page)
    assert found.tables[0][1][0] == nasty and found.tables[0][2][0] == "b\\x1b"
    assert "<script" not in page and "<i>" not in page and '"><b>' not in page
    assert ("title", {}) in found.tags and "<i>&" in found.text


def test_many_runs(tmp_path) -> None:
    runs = [_make_run(tmp_path / f"run-{at}", [0.1, 0.1 + at / 100]) for at in range(11)]
    page = _report(tmp_path, _runs_flag(runs))
    assert "The first 8 runs are in colour, 3 more are grey." in "".join(parse(page).text)
    assert len(read_points(charts(page)[0])) == 11


def test_the_same_page_twice(two_runs, tmp_path) -> None:
    assert _report(tmp_path, _runs_flag(two_runs)) == _report(tmp_path, _runs_flag(two_runs))


def _speed(model: str, latency: float, computation: str = "float32") -> dict[str, Any]:
    figures = {"smallest": 0.9, "largest": 1.1}
    return {
        "model": model,
        "device": "cpu:0",
        "computation": computation,
        "parameters": 2_500_000,
        "megabytes": 10.0,
        "latency": {"median": latency, **{k: latency * v for k, v in figures.items()}},
        "throughput": {"median": 100.0, "smallest": 90.0, "largest": 110.0},
    }


def test_speed(two_runs, tmp_path) -> None:
    path = tmp_path / "bench.json"
    rows = [_speed("distilled", 0.02), _speed(str(two_runs[1]), 0.005), _speed("teacher", 0.1)]
    path.write_json({"rows": [*rows, _speed("plain", 0.004, "int8")]})
    page = _report(tmp_path, _runs_flag(two_runs), f"--inference={path}")
    (chart,) = [one for one in charts(page) if "times as fast" in one.get("aria-label")]
    assert chart.get("aria-label") == "plain: 4.0 times as fast as distilled, 81% of its accuracy"
    points = read_points(chart)
    assert points["distilled"][0] == pytest.approx((20.0, 0.31), rel=0.02)
    assert points["plain"][0] == pytest.approx((5.0, 0.25), rel=0.02)
    (table,) = [one for one in parse(page).tables if "sequences/s" in one[0]]
    assert table[1] == [
        "distilled",
        "float32 on cpu:0",
        "2.50 M",
        "10.0 MB",
        "20 (18–22)",
        "100 (90–110)",
    ]
    assert [row[0] for row in table[1:]] == ["distilled", str(two_runs[1]), "teacher", "plain"]


def test_size(tmp_path, teacher_dir) -> None:
    runs = [_make_run(tmp_path / name, [score]) for name, score in (("a", 0.2), ("b", 0.4))]
    (runs[0] / "model.safetensors").write_bytes(b"\0" * 1_000_000)
    (runs[1] / "model.safetensors").write_bytes(b"\0" * 3_000_000)
    (runs[1] / "config.json").write_bytes((teacher_dir / "config.json").read_bytes())
    page = _report(tmp_path, _runs_flag(runs))
    label = "a: 3.0 times smaller than b, 50% of its accuracy"
    assert label in [chart.get("aria-label") for chart in charts(page)]
    table = parse(page).tables[0]
    assert [row[3] for row in table[1:]] == ["1.0 MB", "3.0 MB"]
    assert table[1][2] == "–" and table[2][2].endswith(" M")


def test_size_of_students_that_guess_nothing(tmp_path) -> None:
    runs = [_make_run(tmp_path / name, [0.0]) for name in ("a", "b")]
    for run, size in zip(runs, (3, 1), strict=True):
        (run / "model.safetensors").write_bytes(b"\0" * size)
    labels = [chart.get("aria-label") for chart in charts(_report(tmp_path, _runs_flag(runs)))]
    assert "b: 3.0 times smaller than a" in labels


def _summary(
    folder: pathlib.Path, task: str, mean: float, std: float | None, **more: object
) -> str:
    folder.mkdir(parents=True)
    value = {
        "task": task,
        "split": "dev",
        "main_metric": "accuracy",
        "best_learning_rate": 3e-5,
        "rates": [
            {
                "learning_rate": rate,
                "num_seeds": 2,
                "metrics": {"accuracy": {"mean": mean - loss, "std": std}},
            }
            for rate, loss in ((1e-5, 0.1), (3e-5, 0.0))
        ],
        "runs": [],
        **more,
    }
    (folder / "summary.json").write_json(value)
    return str(folder / "summary.json")


def test_scores_on_tasks(tmp_path) -> None:
    paths = [
        _summary(tmp_path / "distilled" / "tnews", "tnews", 0.5612, 0.0021),
        _summary(tmp_path / "plain" / "tnews", "tnews", 0.55, None),
        _summary(tmp_path / "distilled" / "ocnli", "ocnli", 0.61, 0.01),
    ]
    page = _report(tmp_path, f"--finetune={','.join(paths)}")
    found = parse(page)
    assert found.tables == [
        [
            ["model", "tnews, accuracy", "ocnli, accuracy"],
            ["distilled", "56.12 ± 0.21", "61.00 ± 1.00"],
            ["plain", "55.00", "–"],
        ]
    ]
    first, second = charts(page)
    assert first.get("aria-label") == "tnews: distilled scores highest, 56.12 ± 0.21"
    assert second.get("aria-label") == "ocnli: 61.00 ± 1.00"
    assert len(list(first.iter("circle"))) == 2 and "Curves" not in found.text


def test_a_model_is_called_as_its_summary_says(tmp_path) -> None:
    paths = [
        _summary(tmp_path / "first", "tnews", 0.5, None, model="student"),
        _summary(tmp_path / "second", "ocnli", 0.6, None, model="student"),
        _summary(tmp_path / "third", "tnews", 0.4, None, model="teacher"),
        # Of an older version.
        _summary(tmp_path / "student", "cmnli", 0.7, None),
    ]
    found = parse(_report(tmp_path, f"--finetune={','.join(paths)}"))
    names = [row[0] for row in found.tables[0][1:]]
    assert names == ["student", "teacher", f"{tmp_path.name}/student"]
    assert found.tables[0][1][1:] == ["50.00", "60.00", "–"]


@pytest.mark.parametrize("name", ["model", "", ".", "/"])
def test_names_that_tell_nothing_give_way_to_folders(tmp_path, name: str) -> None:
    paths = [
        _summary(tmp_path / "distilled", "tnews", 0.5, None, model=name),
        _summary(tmp_path / "plain", "tnews", 0.4, None, model=name),
        _summary(tmp_path / "plain_ocnli", "ocnli", 0.6, None, model=name),
    ]
    found = parse(_report(tmp_path, f"--finetune={','.join(paths)}"))
    assert [row[0] for row in found.tables[0][1:]] == ["distilled", "plain"]


def test_a_models_name_is_text(tmp_path, capsys) -> None:
    path = _summary(tmp_path / "plain", "tnews", 0.5, None, model=3)
    message = f"error: {path}: model: expected a text, received 3"
    assert _fails(tmp_path, capsys, f"--finetune={path}").startswith(message)


def test_two_scores_of_one_model(tmp_path, capsys) -> None:
    paths = [
        _summary(tmp_path / name, "tnews", 0.5, None) for name in ("student_tnews", "tnews-student")
    ]
    assert _fails(tmp_path, capsys, f"--finetune={','.join(paths)}") == (
        f"error: --finetune: expected each model once for a task, received {paths[1]}, whose "
        "folder is called as another's; put each in a folder named after its model"
    )


@pytest.mark.parametrize("folder", ["s/distilled/tnews", "s/tnews_distilled", "s/distilled-TNEWS"])
def test_the_model_of_a_folder(folder: str) -> None:
    assert model_folder(pathlib.Path(folder), "tnews") == pathlib.Path("s/distilled")
    assert model_folder(pathlib.Path("s/distilled"), "tnews") == pathlib.Path("s/distilled")


def _planned(encoding: str, k: int, size: float, divergence: float) -> dict[str, Any]:
    return {
        "logit_encoding": encoding,
        "truncation_factor": k,
        "position_bytes": size,
        "mass_kept": 0.9,
        "kl_dense": {"mean": divergence, "max": 1.0},
    }


def test_a_plan(tmp_path) -> None:
    plans = [_planned("float16", k, 10 + 4 * k, 3 / k) for k in (16, 64, 256)]
    plans += [_planned("compact", k, 10 + 1.5 * k, 3 / k + 1e-4) for k in (16, 64, 256)]
    path = tmp_path / "plan.json"
    path.write_json({"plans": plans})
    page = _report(tmp_path, f"--plan={path}")
    (chart,) = charts(page)
    points = read_points(chart, log_x=True, log_y=True)
    assert [x for x, _ in points["compact"]] == pytest.approx([34, 106, 394], rel=0.02)
    assert [y for _, y in points["float16"]] == pytest.approx([3 / 16, 3 / 64, 3 / 256], rel=0.03)
    assert chart.get("aria-label") == (
        "At k = 256 compact takes 38% of float16's bytes for the same divergence"
    )
    (table,) = parse(page).tables
    assert table[1] == ["float16", "16", "74.0", "90.0%", "0.19"]


def test_students_from_several_caches(tmp_path) -> None:
    rows = [
        {
            "cache": f"/caches/{name}",
            "bytes_per_position": size,
            "scores": {"1": {"teacher_agreement": first}, "2": {"teacher_agreement": second}},
        }
        for name, size, first, second in (("large", 500, 0.8, 0.84), ("small", 50, 0.7, 0.7))
    ]
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(rows))
    (chart,) = charts(_report(tmp_path, f"--comparison={path}"))
    assert chart.get("aria-label") == (
        "Students agree with the teacher in 70.0% from small, in 82.0% from large"
    )
    points = read_points(chart, log_x=True)
    assert points["large"][0] == pytest.approx((500, 0.82), rel=0.01)
    assert points["small"][0] == pytest.approx((50, 0.7), rel=0.01)
    (bar,) = [one for one in chart.iter("line") if one.get("stroke") == "var(--series0)"]
    assert float(bar.get("y1")) > float(bar.get("y2"))


def test_reports_on_caches_and_caches(cache_dir, examples_dir, teacher_dir, tmp_path) -> None:
    drawn = make_cache(
        tmp_path / "drawn",
        examples_dir,
        teacher_dir,
        truncation="sampled",
        temperatures=(1.0,),
    )
    fidelity = tmp_path / "float16.json"
    report = {
        "logit_encoding": "float16",
        "truncation_factor": 16,
        "bytes_per_position": {"ids": 32.0, "logits": 32.0},
        "mass_kept": 0.8,
        "kl_divergence": {"1": {"mean": 1e-7, "max": 1.0}},
    }
    fidelity.write_json(report)
    page = _report(tmp_path, f"--fidelity={fidelity}", f"--caches={cache_dir},{drawn}")
    measured, made = parse(page).tables
    assert measured[1] == ["float16", "float16", "16", "64.0", "80.0%", "1e-07"]
    manifest = manifests.load(cache_dir)
    examples = sum(map(manifest.num_examples, manifest.splits))
    assert made[1][:6] == [cache_dir.name, "float16", "16", "16.0", "74.0", f"{examples:,}"]
    assert made[2][1] == "float16, drawn"
    # One teacher, whose reliability is drawn once.
    labels = [chart.get("aria-label") for chart in charts(page)]
    assert (
        sum(label.startswith("The teacher's own probabilities are off by") for label in labels) == 1
    )


def test_reliability() -> None:
    found = reliability(np.array([0.91, 0.92, 0.95, 0.1]), np.array([True, False, False, True]))
    assert found.counts == (1, 2, 1)
    assert found.confidence == pytest.approx((0.1, 0.915, 0.95))
    assert found.accuracy == (1.0, 0.5, 0.0)
    assert found.error == pytest.approx((0.9 + 2 * 0.415 + 0.95) / 4)


def test_the_teachers_reliability_is_that_of_its_cache(cache_dir) -> None:
    """As `fidelity_report` has it, which asks the teacher itself."""
    found = read_cache(str(cache_dir), "x").reliability
    from pipeline.storage.cache_input import open_cache
    from tools.pages.shown_examples import ExampleReader, Selection

    reader = ExampleReader(open_cache(str(cache_dir), None), num_guesses=1)
    words = [
        position.teacher
        for one in reader.read(Selection("eval", count=10_000))
        for position in one.positions
    ]
    confidence = np.array([word.guesses[0].probability for word in words])
    right = np.array([word.right for word in words])
    assert sum(found.counts) == len(words)
    bins = np.minimum((confidence * 15).astype(int), 14)
    error = sum(
        abs(right[bins == place].sum() - confidence[bins == place].sum()) for place in range(15)
    )
    assert found.error == pytest.approx(error / len(words))


def test_names() -> None:
    paths = [pathlib.Path(text) for text in ("/a/quick/s", "/b/quick/s", "/c/teacher")]
    assert short_names(paths) == ["a/quick/s", "b/quick/s", "teacher"]
    assert flattened({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
    assert [setting_text(value) for value in (True, 5e-4, "", None, [0, 3], "x")] == [
        "true",
        "0.0005",
        "–",
        "–",
        "[0, 3]",
        "x",
    ]


def test_titles_of_ties() -> None:
    from tools.pages.report_curves import ACCURACY
    from tools.pages.svg_parts import Point, Series

    series = [Series(name, (Point(1, 0.1), Point(2, 0.5))) for name in ("a", "b")]
    assert finding(ACCURACY, series) == "Masked tokens guessed: 2 runs end highest, at 50.0%"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "not JSON (Expecting property name"),
        ("[1]", "expected an object, received list"),
        ('{"split": "eval"}', "expected a count of updates as step, received None"),
        ('{"step": 1, "split": "test"}', "expected the split train or eval, received 'test'"),
        ('{"step": 1, "split": "eval", "loss": "x"}', "expected a number as loss, received 'x'"),
    ],
)
def test_broken_lines(two_runs, tmp_path, capsys, line: str, message: str) -> None:
    path = two_runs[0] / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:]]))
    assert _fails(tmp_path, capsys, _runs_flag(two_runs)).startswith(
        f"error: {path}, line 3: {message}"
    )


def test_mistakes(two_runs, tmp_path, capsys) -> None:
    assert _fails(tmp_path, capsys) == (
        "error: --runs: expected it or one of --inference, --finetune, --plan, --fidelity, "
        "--comparison, --caches, received none"
    )
    assert _fails(tmp_path, capsys, "--runs=/nowhere") == (
        "error: --runs: expected a directory of run_distill, received /nowhere, which has no "
        "metrics.jsonl"
    )
    assert _fails(tmp_path, capsys, _runs_flag([two_runs[0]] * 2)) == (
        f"error: --runs: expected each directory once, received {two_runs[0]} twice"
    )
    path = two_runs[0] / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in TRAIN))
    assert _fails(tmp_path, capsys, _runs_flag(two_runs)) == (
        f"error: --runs: expected evaluations, received {path}, which has not one line of the "
        "split eval"
    )
    (two_runs[1] / "request.json").unlink()
    assert _fails(tmp_path, capsys, f"--runs={two_runs[1]}") == (
        f"error: {two_runs[1] / 'request.json'}: no such file"
    )
    other = tmp_path / "other.json"
    other.write_json({"plans": [{"logit_encoding": "float16", "truncation_factor": "x"}]})
    assert _fails(tmp_path, capsys, f"--plan={other}") == (
        f"error: {other}: plans[0].truncation_factor: expected a number, received 'x'"
    )
    assert _fails(tmp_path, capsys, f"--inference={other}") == (
        f"error: {other}: rows: expected a list of objects, received none"
    )
    assert _fails(tmp_path, capsys, f"--finetune={other}") == (
        f"error: {other}: task: expected a text, received none"
    )
    assert _fails(tmp_path, capsys, f"--comparison={other}") == (
        f"error: {other}: expected a list of objects"
    )
    assert _fails(tmp_path, capsys, f"--fidelity={tmp_path / 'no.json'}") == (
        f"error: {tmp_path / 'no.json'}: no such file"
    )


def test_examples_are_no_cache(examples_dir, tmp_path, capsys) -> None:
    assert _fails(tmp_path, capsys, f"--caches={examples_dir}") == (
        f"error: --caches: expected teacher caches, received {examples_dir}, which is none"
    )


def test_nothing_is_overwritten(two_runs, tmp_path, capsys) -> None:
    path = tmp_path / "mine.html"
    path.write_text("mine")
    assert tool.main(["x", _runs_flag(two_runs), f"--output={path}"]) == 1
    assert capsys.readouterr().err.startswith("error: --output: expected a new file, received")
    assert path.read_text() == "mine"


def test_numbers_above_a_thousand_are_written_out() -> None:
    assert [_short(value) for value in (1264.2, 999.4, 6.134)] == [
        "1,264",
        "999",
        "6.13",
    ]


def test_one_evaluation_is_no_way_from_here_to_there() -> None:
    series = [Series("student", (Point(200, 0.941),))]
    assert finding(AGREEMENT, series) == f"{AGREEMENT.sentence}: 94.1%"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 100_000, "not JSON .expected at most 64 levels of brackets"),
        ('{"step": ' + "9" * 400 + ', "split": "eval"}', "not JSON .expected numbers of at most"),
        ('{"step": ' + "9" * 30 + ', "split": "eval"}', "expected a count of updates as step"),
        ('{"step": 1, "split": "eval", "two\\nlines": "x"}', r"a number as two\\x0alines, rec"),
        ('{"step": 1, "split": "eval", "loss": 1e300}', "expected a number as loss, received"),
    ],
)
def test_hostile_metrics_are_refused(two_runs, tmp_path, capsys, line: str, message: str) -> None:
    path = two_runs[0] / "metrics.jsonl"
    path.write_text(line + "\n")
    assert re.search(f"{path}, line 1: .*{message}", _fails(tmp_path, capsys, _runs_flag(two_runs)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truncation_factor": float("nan")}, r"plans\[0\].truncation_factor: expected a number"),
        ({"position_bytes": -3.0}, r"plans\[0\].position_bytes: expected a number above 0"),
        ({"position_bytes": 1e300}, r"plans\[0\].position_bytes: expected a number of at most"),
        ({"kl_dense": {"mean": 10**299}}, r"plans\[0\].kl_dense.mean: expected a number of"),
    ],
)
def test_hostile_plans_are_refused(tmp_path, capsys, changes, message: str) -> None:
    plan = {
        "logit_encoding": "compact",
        "truncation_factor": 8,
        "position_bytes": 24.0,
        "mass_kept": 0.9,
        "kl_dense": {"mean": 0.1},
    }
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"plans": [plan | changes]}))
    assert re.search(f"{path}: {message}", _fails(tmp_path, capsys, f"--plan={path}"))
