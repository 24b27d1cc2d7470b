"""The report: values in its tables and charts, omitted sections, and errors."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.storage import manifest as manifests
from pipeline.storage.cache_input import open_cache
from tests.conftest import make_cache
from tests.tools.page_reading import charts, hints, parse, texts
from tools.report import __main__ as tool
from tools.report.__main__ import ReportConfig, make_report
from tools.report.charts import NUM_COLORS, Point, Series
from tools.report.curves import ACCURACY, chart_title, results_section, setting_text
from tools.report.inputs import read_cache, reliability
from tools.report.runs import flatten, read_runs, short_names
from tools.report.scores import _short, model_folder
from tools.report.shown_examples import ExampleReader, Selection

TRAIN = [
    {"step": step, "split": "train", "loss": 5.0 - step / 100, "learning_rate": 1e-3}
    for step in (20, 40, 60)
]


def _evaluation(step: int, accuracy: float) -> dict[str, Any]:
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
    }


def _make_run(folder: Location, scores: list[float], **settings: Any) -> Location:
    """Writes the files of a finished run, without a model."""
    folder.mkdir(parents=True)
    lines = [*TRAIN, *(_evaluation(20 * (at + 1), score) for at, score in enumerate(scores))]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    student = {"config": {"num_hidden_layers": 2}, "layer_map": [0, 3]}
    request = {"kind": "student", "cache": "a" * 64, "learning_rate": 1e-3, "student": student}
    request |= {"losses": {"masked_lm": 1.0}, **settings}
    (folder / "request.json").write_json(request)
    return folder


def _make_runs(folder: Location, *scores: float) -> tuple[Location, ...]:
    """Writes runs `a`, `b`, … with one evaluation each."""
    return tuple(
        _make_run(folder / name, [score]) for name, score in zip("abcd", scores, strict=False)
    )


@pytest.fixture
def two_runs(tmp_path) -> tuple[Location, Location]:
    """Two runs; the first is better than the second."""
    return (
        _make_run(tmp_path / "distilled", [0.1, 0.2, 0.31]),
        _make_run(tmp_path / "plain", [0.1, 0.15, 0.25], learning_rate=5e-4, random_seed=3),
    )


def _report(**settings: Any) -> str:
    return make_report(ReportConfig(**settings))


def _error(**settings: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        _report(**settings)
    return caught.value


def _write(path: Location, value: Any) -> Location:
    path.write_text(json.dumps(value))
    return path


def test_results_and_settings_are_in_tables(two_runs) -> None:
    parsed = parse(_report(runs=two_runs))
    results, others, settings, shared = parsed.tables
    # `loss` is a column of the results: the title of the weighted sum differs.
    assert others[0] == ["run", "weighted sum of losses", "teacher_accuracy", "examples_per_second"]
    titles = "run|accuracy|agreement|loss|perplexity|KL|calibration error"
    distilled = "distilled|31.0%|62.0%|4.190|120.0|0.1450|0.0231|2 × –|–|–|60"
    plain = "plain|25.0%|50.0%|4.250|120.0|0.1750|0.0225|2 × –|–|–|60"
    expected = [f"{titles}|layers × width|parameters|weights|steps", distilled, plain]
    assert ["|".join(row) for row in results] == expected
    rows = ["setting distilled plain", "learning_rate 0.001 0.0005", "random_seed – 3"]
    assert [" ".join(row) for row in settings] == rows
    assert ["cache", "aaaaaaaa…"] in shared and ["num_hidden_layers", "2"] in shared
    assert not [row for row in shared if row[0] in ("learning_rate", "kind")]
    headline = (
        "31.0% of the held-out masked tokens correctly, 69% of the teacher's 45.0%; "
        "next is plain with 25.0%."
    )
    assert f"distilled predicts {headline} From 2 runs." in parsed.text
    best = [a["class"] for tag, a in parsed.tags if tag == "td" and "best" in a.get("class", "")]
    # The first run is best in six columns, of which perplexity is a tie; the second in one.
    assert len(best) == 7


def test_curves_show_each_evaluation(two_runs) -> None:
    page = _report(runs=two_runs)
    drawn_charts, values_shown = charts(page), parse(page).texts
    assert list(drawn_charts) == [
        "Agreement with the teacher: distilled ends highest, at 62.0%",
        "Masked-token accuracy: distilled ends highest, at 31.0%",
        "Loss on held-out tokens: distilled ends lowest, at 4.190",
        "Divergence from the teacher: distilled ends lowest, at 0.1450",
        "Training loss: 2 runs end lowest, at 4.400",
        "Calibration error: plain ends lowest, at 0.0225",
    ]
    agreement, accuracy, loss, _, training, _ = drawn_charts.values()
    for chart, name, values in (
        (agreement, "distilled", ["20.0%", "40.0%", "62.0%"]),
        (accuracy, "plain", ["10.0%", "15.0%", "25.0%"]),
        (loss, "plain", ["4.400", "4.350", "4.250"]),
        (training, "distilled", ["4.800", "4.600", "4.400"]),
    ):
        expected = [f"{name}, step {x}: {y}" for x, y in zip((20, 40, 60), values, strict=True)]
        assert hints(chart)[name] == expected
        # A phone shows no hints, so the page also has the values as text.
        assert set(expected) <= set(values_shown)
    legend = {" ".join(text.split()) for text in texts(accuracy)}
    assert {"distilled 31.0%", "plain 25.0%", "the teacher 45.0%"} <= legend


def test_missing_values_have_no_chart_or_section(tmp_path) -> None:
    run = _make_run(tmp_path / "only", [0.1, 0.2])
    text = (run / "metrics.jsonl").read_text().replace('"teacher_agreement"', '"other"')
    (run / "metrics.jsonl").write_text(text.replace("0.2,", "NaN,", 1))
    page = _report(runs=(run,))
    text = parse(page).text
    assert "Masked-token accuracy: from 10.0% to 20.0%" in text
    for title in ("Agreement", "that differ", "Scores on tasks", "Cache size", "against latency"):
        assert title not in text
    assert "nan" not in page.lower()


def test_different_losses_and_caches_are_not_compared(tmp_path) -> None:
    first = _make_run(tmp_path / "a", [0.1])
    second = _make_run(tmp_path / "b", [0.2], losses={"kl_divergence": 1.0}, cache="b" * 64)
    text = parse(_report(runs=(first, second))).text
    assert "Training loss: each run minimizes a different loss" in text
    assert "caches of the same masked examples" in text
    # With more runs than settings, each run is a row.
    more_runs = [_make_run(tmp_path / "c", [0.2], learning_rate=1.0, cache="c" * 64)]
    more_runs.append(_make_run(tmp_path / "d", [0.3]))
    rows = ["run cache learning_rate", "a aaaaaaaa… 0.001", "c cccccccc… 1", "d aaaaaaaa… 0.001"]
    table = parse(_report(runs=(first, *more_runs))).tables[2]
    assert [" ".join(row) for row in table] == rows


def test_runs_on_caches_of_the_same_examples_are_comparable(
    cache_dir, states_cache_dir, examples_dir, tmp_path
) -> None:
    digests = [manifests.load(path).sha256() for path in (cache_dir, examples_dir)]
    runs = [_make_run(tmp_path / name, [0.2], cache=name) for name in digests]
    other = _make_run(tmp_path / "other", [0.2], cache="b" * 64)

    def text(*runs: Location, caches: tuple[Location, ...] = ()) -> str:
        return parse(_report(runs=runs, caches=caches)).text

    unknown, different = "may be caches of the same", "on different ones"
    assert unknown in text(*runs)
    known = text(*runs, caches=(cache_dir,))
    assert unknown not in known and different not in known
    assert unknown in text(*runs, other, caches=(cache_dir,))
    facts = [read_cache(cache_dir, "x"), read_cache(states_cache_dir, "y")]
    facts[1] = dataclasses.replace(facts[1], examples_sha256="b" * 64)
    (_, note, *_) = results_section(read_runs([*runs, other]), facts).contents
    assert different in note.important


def test_runs_with_a_single_evaluation_have_no_curves(two_runs, tmp_path) -> None:
    once = _make_run(tmp_path / "once", [0.4])
    page = _report(runs=(*two_runs, once))
    accuracy = charts(page)["Masked-token accuracy: distilled ends highest, at 31.0%"]
    assert list(hints(accuracy)) == ["distilled", "plain"]
    assert "without curves: once. run_distill --save_checkpoints_steps=N" in parse(page).text
    assert list(charts(_report(runs=(once,)))) == ["Training loss: from 4.800 to 4.400"]


def test_a_columns_only_value_is_not_the_best(tmp_path) -> None:
    first, second = _make_runs(tmp_path, 0.2, 0.1)
    path = second / "metrics.jsonl"
    path.write_text(path.read_text().replace('"teacher_agreement"', '"other"'))
    rows = parse(_report(runs=(first, second))).tables[0]
    assert [row[2] for row in rows[1:]] == ["40.0%", "–"]
    table = results_section(read_runs((first, second)), []).contents[0]
    assert (0, 1) in table.best and (0, 2) not in table.best


def test_names_are_escaped_in_the_report(tmp_path) -> None:
    nasty = "<script>alert(1)<" + "!--"
    runs = (_make_run(tmp_path / nasty, [0.3]), _make_run(tmp_path / "b\x1b", [0.2], note='"><b>'))
    page = _report(runs=runs, title="<i>&")
    parsed = parse(page)
    assert parsed.tables[0][1][0] == nasty and parsed.tables[0][2][0] == "b\\x1b"
    assert "<script" not in page and "<i>" not in page and '"><b>' not in page
    assert ("title", {}) in parsed.tags and "<i>&" in parsed.texts


def test_runs_beyond_the_palette_are_gray(tmp_path) -> None:
    runs = tuple(
        _make_run(tmp_path / f"run-{index}", [0.1, 0.1 + index / 100]) for index in range(11)
    )
    page = _report(runs=runs)
    gray = 11 - NUM_COLORS
    assert f"The first {NUM_COLORS} runs are in color, {gray} more are gray." in parse(page).text
    assert len(hints(next(iter(charts(page).values())))) == 11


def test_report_of_the_same_runs_has_the_same_bytes(two_runs) -> None:
    assert _report(runs=two_runs) == _report(runs=two_runs)


def _speed(model: str, latency: float, computation: str = "float32") -> dict[str, Any]:
    sizes = {"device": "cpu:0", "parameters": 2_500_000, "megabytes": 10.0}
    speeds = {"latency": latency, "throughput": 100.0}
    spreads = {
        name: {"median": value, "smallest": 0.9 * value, "largest": 1.1 * value}
        for name, value in speeds.items()
    }
    return {"model": model, "computation": computation, **sizes, **spreads}


def test_speed_is_shown_against_accuracy(two_runs, tmp_path) -> None:
    rows = [_speed("distilled", 0.02), _speed(str(two_runs[1]), 0.005), _speed("teacher", 0.1)]
    rows.append(_speed("plain", 0.004, "int8"))
    page = _report(runs=two_runs, inference=_write(tmp_path / "bench.json", {"rows": rows}))
    chart = charts(page)["plain: 4.0 times as fast as distilled, 81% of its accuracy"]
    assert hints(chart) == {"distilled": ["distilled: 20, 31.0%"], "plain": ["plain: 5, 25.0%"]}
    (table,) = [rows for rows in parse(page).tables if "sequences/s" in rows[0]]
    expected = "distilled|float32 on cpu:0|2.50 M|10.0 MB|20 (18–22)|100 (90–110)"
    assert "|".join(table[1]) == expected
    assert [row[0] for row in table[1:]] == ["distilled", str(two_runs[1]), "teacher", "plain"]


def test_size_is_shown_against_accuracy(tmp_path, teacher_dir) -> None:
    runs = _make_runs(tmp_path, 0.2, 0.4)
    (runs[0] / "model.safetensors").write_bytes(b"\0" * 1_000_000)
    (runs[1] / "model.safetensors").write_bytes(b"\0" * 3_000_000)
    (runs[1] / "config.json").write_bytes((teacher_dir / "config.json").read_bytes())
    page = _report(runs=runs)
    assert "a: 3.0 times smaller than b, 50% of its accuracy" in charts(page)
    table = parse(page).tables[0]
    column = table[0].index("weights")
    assert [row[column] for row in table[1:]] == ["1.0 MB", "3.0 MB"]
    assert table[1][column - 1] == "–" and table[2][column - 1].endswith(" M")


def test_students_without_any_accuracy_are_compared_by_size_alone(tmp_path) -> None:
    runs = _make_runs(tmp_path, 0.0, 0.0)
    for run, size in zip(runs, (3, 1), strict=True):
        (run / "model.safetensors").write_bytes(b"\0" * size)
    assert "b: 3.0 times smaller than a" in charts(_report(runs=runs))


def _summary(folder: Location, task: str, mean: float, std: float | None, **changes: object):
    folder.mkdir(parents=True)
    rates = []
    for rate, loss in ((1e-5, 0.1), (3e-5, 0.0)):
        metrics = {"accuracy": {"mean": mean - loss, "std": std}}
        rates.append({"learning_rate": rate, "num_seeds": 2, "metrics": metrics})
    value = {"task": task, "split": "dev", "main_metric": "accuracy", "best_learning_rate": 3e-5}
    return _write(folder / "summary.json", {**value, "rates": rates, "runs": [], **changes})


def test_task_scores_are_in_a_table_and_charts(tmp_path) -> None:
    paths = (
        _summary(tmp_path / "distilled" / "tnews", "tnews", 0.5612, 0.0021),
        _summary(tmp_path / "plain" / "tnews", "tnews", 0.55, None),
        _summary(tmp_path / "distilled" / "ocnli", "ocnli", 0.61, 0.01),
    )
    page = _report(finetune=paths)
    parsed = parse(page)
    rows = ["model|tnews, accuracy|ocnli, accuracy", "distilled|56.12 ± 0.21|61.00 ± 1.00"]
    assert ["|".join(row) for row in parsed.tables[0]] == [*rows, "plain|55.00|–"]
    tnews, ocnli = charts(page).items()
    assert tnews[0] == "tnews: distilled scores highest, 56.12 ± 0.21"
    assert ocnli[0] == "ocnli: 61.00 ± 1.00"
    assert list(hints(tnews[1])) == ["distilled", "plain"] and "Curves" not in parsed.text


def test_model_has_the_name_in_its_summary(tmp_path) -> None:
    paths = (
        _summary(tmp_path / "first", "tnews", 0.5, None, model="student"),
        _summary(tmp_path / "second", "ocnli", 0.6, None, model="student"),
        _summary(tmp_path / "third", "tnews", 0.4, None, model="teacher"),
        # A summary of an older version has no model.
        _summary(tmp_path / "student", "cmnli", 0.7, None),
    )
    parsed = parse(_report(finetune=paths))
    names = [row[0] for row in parsed.tables[0][1:]]
    assert names == ["student", "teacher", f"{tmp_path.name}/student"]
    assert parsed.tables[0][1][1:] == ["50.00", "60.00", "–"]


@pytest.mark.parametrize("name", ["model", "", ".", "/"])
def test_uninformative_names_are_replaced_by_folders(tmp_path, name: str) -> None:
    paths = (
        _summary(tmp_path / "distilled", "tnews", 0.5, None, model=name),
        _summary(tmp_path / "plain", "tnews", 0.4, None, model=name),
        _summary(tmp_path / "plain_ocnli", "ocnli", 0.6, None, model=name),
    )
    parsed = parse(_report(finetune=paths))
    assert [row[0] for row in parsed.tables[0][1:]] == ["distilled", "plain"]


def test_two_scores_of_one_model_on_a_task_are_refused(tmp_path) -> None:
    names = ("student_tnews", "tnews-student")
    paths = tuple(_summary(tmp_path / name, "tnews", 0.5, None) for name in names)
    error = _error(finetune=paths)
    assert error.subject == Setting("finetune") and str(paths[1]) in error.received


@pytest.mark.parametrize("folder", ["s/distilled/tnews", "s/tnews_distilled", "s/distilled-TNEWS"])
def test_model_folder_is_found_without_the_task_name(folder: str) -> None:
    assert model_folder(pathlib.Path(folder), "tnews") == pathlib.Path("s/distilled")
    assert model_folder(pathlib.Path("s/distilled"), "tnews") == pathlib.Path("s/distilled")


def _planned(encoding: str, k: int, size: float, divergence: float) -> dict[str, Any]:
    plan = {"logit_encoding": encoding, "truncation_factor": k, "position_bytes": size}
    fits = {
        temperature: {"mass_kept": mass, "kl": {"mean": factor * divergence, "max": 1.0}}
        for temperature, mass, factor in (("1", 0.9, 1.0), ("2", 0.5, 2.0))
    }
    return {**plan, "temperatures": fits}


def _fit(**changes: Any) -> dict[str, Any]:
    return {"temperatures": {"1": {"mass_kept": 0.9, "kl": {"mean": 0.1}, **changes}}}


def test_plan_has_a_line_for_each_codec(tmp_path) -> None:
    plans = [_planned("float16", k, 10 + 4 * k, 3 / k) for k in (16, 64, 256)]
    plans += [_planned("compact", k, 10 + 1.5 * k, 3 / k + 1e-4) for k in (16, 64, 256)]
    page = _report(plan=_write(tmp_path / "plan.json", {"plans": plans}))
    (title, chart), (hot_title, hot) = charts(page).items()
    assert title == (
        "T = 1: KL 0.012 at 394 bytes (compact, k = 256), 0.012 at 1,034 (float16, k = 256)"
    )
    assert hot_title.startswith("T = 2: KL 0.024 at 394 bytes (compact, k = 256)")
    hint = "34 bytes per masked position, KL 0.19 nats, 90.0% of the mass kept"
    assert hints(chart)["compact"][0] == f"compact, k = 16: {hint}"
    assert len(hints(chart)["float16"]) == 3 and {"16", "64", "256"} <= set(texts(chart))
    assert "k = 16: 34 bytes per masked position, KL 0.38 nats, 50.0%" in hints(hot)["compact"][0]
    (table,) = parse(page).tables
    assert table[1] == ["float16", "16", "74.0", "90.0%", "0.19", "50.0%", "0.38"]


@pytest.mark.parametrize(
    ("states", "title"),
    [
        # Head states are more exact than a top-k, and smaller.
        ({4: (56, 4.7e-4), 8: (104, 1.6e-6)}, "KL 0.00047 at 56 bytes (states, 4 bits), 0.4 at 77"),
        # They are more exact, but a top-k is smaller.
        ({8: (104, 1.6e-6)}, "KL 0.4 at 77 bytes (compact, k = 64), 1.6e-06 at 104"),
    ],
)
def test_plan_names_the_smallest_cache_of_a_low_divergence(tmp_path, states, title: str) -> None:
    plans = [_planned("compact", 8, 26, 0.79), _planned("compact", 64, 77, 0.4)]
    plans += [_planned("float16", 64, 266, 0.4)]
    for bits, (size, divergence) in states.items():
        plans.append({**_planned("states", 400, size, divergence), "state_bits": bits})
    page = _report(plan=_write(tmp_path / "plan.json", {"plans": plans}))
    (first, _) = charts(page)
    assert first.startswith(f"T = 1: {title} (")


def test_students_of_several_caches_are_compared(tmp_path) -> None:
    rows = []
    for name, size, *shares in (("large", 500, 0.8, 0.84), ("small", 50, 0.7, 0.7)):
        scores = {f"{seed}": {"teacher_agreement": share} for seed, share in enumerate(shares)}
        rows.append({"cache": f"/caches/{name}", "bytes_per_position": size, "scores": scores})
    ((title, chart),) = charts(_report(comparison=_write(tmp_path / "c.json", rows))).items()
    assert title == "Agreement with the teacher: 70.0% with small, 82.0% with large"
    expected = {"large": ["large: 500 bytes, 82.0%"], "small": ["small: 50 bytes, 70.0%"]}
    assert hints(chart) == expected


def test_caches_and_fidelity_reports_are_in_tables(
    cache_dir, examples_dir, teacher_dir, tmp_path
) -> None:
    settings = {"truncation": "sampled", "temperatures": (1.0,)}
    sampled_cache = make_cache(tmp_path / "drawn", examples_dir, teacher_dir, **settings)
    report = {
        "logit_encoding": "float16",
        "truncation_factor": 16,
        "bytes_per_position": {"ids": 32.0, "logits": 32.0},
        "mass_kept": 0.8,
        "kl_divergence": {"1": {"mean": 1e-7, "max": 1.0}},
    }
    fidelity = _write(tmp_path / "float16.json", report)
    page = _report(fidelity=(fidelity,), caches=(cache_dir, sampled_cache))
    fidelity_table, cache_table = parse(page).tables
    assert fidelity_table[1] == ["float16", "float16", "16", "64.0", "80.0%", "1e-07"]
    manifest = manifests.load(cache_dir)
    examples = sum(map(manifest.num_examples, manifest.splits))
    assert cache_table[1][:6] == [cache_dir.name, "float16", "16", "16.0", "74.0", f"{examples:,}"]
    assert cache_table[2][1] == "float16, sampled"
    # Both caches have the same teacher, so its reliability has one chart.
    title = "The teacher's expected calibration error: "
    assert sum(name.startswith(title) for name in charts(page)) == 1


def test_reliability_equals_values_computed_by_hand() -> None:
    measured = reliability(np.array([0.91, 0.92, 0.95, 0.1]), np.array([True, False, False, True]))
    assert measured.counts == (1, 2, 1)
    assert measured.confidence == pytest.approx((0.1, 0.915, 0.95))
    assert measured.accuracy == (1.0, 0.5, 0.0)
    assert measured.error == pytest.approx((0.9 + 2 * 0.415 + 0.95) / 4)


def test_teacher_reliability_equals_that_of_the_stored_examples(cache_dir) -> None:
    measured = read_cache(cache_dir, "x").reliability
    reader = ExampleReader(open_cache(cache_dir, None), num_guesses=1)
    examples = reader.read(Selection("eval", count=10_000))
    predictions = [position.teacher for example in examples for position in example.positions]
    confidence = np.array([prediction.guesses[0].probability for prediction in predictions])
    is_correct = np.array([prediction.right for prediction in predictions])
    assert sum(measured.counts) == len(predictions)
    bins = np.minimum((confidence * 15).astype(int), 14)
    error = sum(abs((is_correct - confidence)[bins == index].sum()) for index in range(15))
    assert measured.error == pytest.approx(error / len(predictions))


def test_names_are_shortened_and_settings_flattened() -> None:
    paths = [pathlib.Path(text) for text in ("/a/quick/s", "/b/quick/s", "/c/teacher")]
    assert short_names(paths) == ["a/quick/s", "b/quick/s", "teacher"]
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
    setting_texts = [setting_text(value) for value in (True, 5e-4, "", None, [0, 3], "x")]
    assert setting_texts == ["true", "0.0005", "–", "–", "[0, 3]", "x"]
    assert [_short(value) for value in (1264.2, 999.4, 6.134)] == ["1,264", "999", "6.13"]


def test_titles_name_ties() -> None:
    series = [Series(name, (Point(1, 0.1), Point(2, 0.5))) for name in ("a", "b")]
    assert chart_title(ACCURACY, series) == "Masked-token accuracy: 2 runs end highest, at 50.0%"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{broken", "not JSON (Expecting property name"),
        ("[1]", "an object"),
        ('{"split": "eval"}', "the field step with a number of steps"),
        ('{"step": 1, "split": "test"}', "the split train or eval"),
        ('{"step": 1, "split": "eval", "loss": "x"}', "a number as loss"),
        ("[" * 100_000, "not JSON (expected at most 64 levels"),
        ('{"step": ' + "9" * 400 + ', "split": "eval"}', "not JSON (expected numbers of at most"),
        ('{"step": ' + "9" * 30 + ', "split": "eval"}', "the field step with a number of steps"),
        ('{"step": 1, "split": "eval", "two\\nlines": "x"}', "a number as two\\x0alines"),
        ('{"step": 1, "split": "eval", "loss": 1e300}', "a number as loss"),
    ],
)
def test_malformed_metrics_are_refused_with_their_line(two_runs, line: str, expected: str) -> None:
    path = two_runs[0] / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:]]))
    error = _error(runs=two_runs)
    assert error.subject == f"{path}, line 3"
    assert (error.expected or error.received).startswith(expected)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"truncation_factor": float("nan")}, "plans[0].truncation_factor"),
        ({"truncation_factor": "x"}, "plans[0].truncation_factor"),
        ({"position_bytes": -3.0}, "plans[0].position_bytes"),
        ({"position_bytes": 1e300}, "plans[0].position_bytes"),
        (_fit(mass_kept=True), "plans[0].temperatures[...].mass_kept"),
        (_fit(mass_kept=float("nan")), "plans[0].temperatures[...].mass_kept"),
        (_fit(kl={"mean": 10**299}), "plans[0].temperatures[...].kl.mean"),
        (_fit(kl=None), "plans[0].temperatures[...].kl"),
        ({"temperatures": {}}, "plans[0].temperatures"),
        ({"temperatures": None}, "plans[0].temperatures"),
    ],
)
def test_malformed_plans_are_refused_with_their_field(tmp_path, changes, field: str) -> None:
    plan = {**_planned("compact", 8, 24.0, 0.1), **changes}
    path = _write(tmp_path / "plan.json", {"plans": [plan]})
    error = _error(plan=path)
    assert error.subject == f"{path}: {field}"


@pytest.mark.parametrize("name", ["plan", "inference", "finetune", "comparison", "fidelity"])
@pytest.mark.parametrize("content", ["{}", "[3]", "{", None])
def test_files_with_other_content_are_refused(tmp_path, name: str, content: str | None) -> None:
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    value = (path,) if name in ("finetune", "fidelity") else path
    assert _error(**{name: value}).subject.startswith(str(path))


def test_directory_without_a_run_or_repeated_is_refused(two_runs, tmp_path, examples_dir) -> None:
    assert _error().subject == Setting("runs")
    error = _error(runs=(two_runs[0], two_runs[0]))
    assert error.subject == Setting("runs") and str(two_runs[0]) in error.received
    error = _error(runs=(tmp_path / "nowhere",))
    assert error.subject == Setting("runs") and "nowhere" in error.received
    path = two_runs[0] / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in TRAIN))
    error = _error(runs=two_runs)
    assert "at least one evaluation" in error.expected and str(path) in error.received
    (two_runs[1] / "request.json").unlink()
    assert _error(runs=two_runs[1:]).subject == str(two_runs[1] / "request.json")
    assert _error(caches=(examples_dir,)).subject == str(examples_dir)


def test_command_does_not_overwrite_an_existing_file(two_runs, tmp_path, capsys) -> None:
    path = tmp_path / "report.html"
    runs = f"--runs={','.join(map(str, two_runs))}"
    assert tool.main(["report", runs, f"--output={path}"]) == 0
    assert parse(path.read_text(encoding="utf-8")).tables
    path.write_text("mine")
    assert tool.main(["report", runs, f"--output={path}"]) == 1
    assert capsys.readouterr().err.startswith(f"error: --output: {path}: ")
    assert path.read_text() == "mine"
    # A missing file is named together with its flag.
    assert tool.main(["report", "--plan=/nowhere", f"--output={tmp_path / 'other'}"]) == 1
    assert capsys.readouterr().err.startswith("error: --plan: /nowhere: ")
    assert not (tmp_path / "other").exists()
