"""The report's sections on students: speed and size, scores on tasks."""

import collections
import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping, Sequence

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import LocalLocation, Location
from tools.report.charts import Axis, Point, Series, figure, interval_figure
from tools.report.curves import ACCURACY, megabytes, percents
from tools.report.inputs import Speed, Spread, Summary, read_struct
from tools.report.page import Chart, Charts, Note, Section, Table, chart
from tools.report.runs import Run, short_names
from tools.report.text_width import escape_unprintable


def find_run(model: str, runs: Sequence[Run]) -> Run | None:
    """Returns the run that made a model, found by the model's path or its folder's name."""
    path = LocalLocation(model).resolve()
    for run in runs:
        if model == str(run.directory) or path == run.directory.resolve():
            return run
    named = [run for run in runs if run.directory.resolve().name == model]
    return named[0] if len(named) == 1 else None


@dataclasses.dataclass(frozen=True)
class _ModelCost:
    """The accuracy of a run's student and its cost, for example its latency."""

    color_index: int
    name: str
    accuracy: float
    cost: float


def _short(value: float) -> str:
    # The format g writes 1,260 as 1.26e+03.
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}"


def _cost_axis(title: str, models: Sequence[_ModelCost]) -> Axis:
    costs = [model.cost for model in models]
    return Axis(title, _short, logarithmic=max(costs) > 8.0 * min(costs), bounds=(0.0, math.inf))


def _cost_chart(models: Sequence[_ModelCost], axis: Axis, cheap: str, note: str) -> Chart:
    """Returns a chart of the accuracy of two or more models against their cost.

    `cheap` is a comparison for a model with a smaller cost, for example `as fast as`.
    """
    best = max(models, key=lambda model: model.accuracy)
    least = min(models, key=lambda model: model.cost)
    if best == least:
        title = f"{best.name} costs least and has the highest accuracy"
    else:
        title = f"{least.name}: {best.cost / least.cost:.1f} times {cheap} {best.name}"
        if best.accuracy:
            title += f", {least.accuracy / best.accuracy:.0%} of its accuracy"
    series = []
    for model in models:
        hint = f"{model.name}: {axis.format(model.cost)}, {percents(model.accuracy)}"
        point = Point(model.cost, model.accuracy, hint)
        series.append(Series(model.name, (point,), model.color_index, joined=False))
    return chart(title, note, figure(series, axis, ACCURACY.y_axis()))


def _latency_chart(runs: Sequence[Run], speeds: Sequence[Speed]) -> Chart | None:
    computed = speeds[0].computed if speeds else ""
    models = []
    for speed in speeds:
        run = find_run(speed.model, runs)
        if speed.computed == computed and run is not None and ACCURACY.key in run.final:
            place, cost = runs.index(run), 1000.0 * speed.latency.median
            models.append(_ModelCost(place, run.name, run.final[ACCURACY.key], cost))
    if len(models) < 2:
        return None
    axis = _cost_axis("latency of one sequence, ms", models)
    return _cost_chart(models, axis, "as fast as", f"{computed}, medians")


def _size_chart(runs: Sequence[Run]) -> Chart | None:
    models = [
        _ModelCost(place, run.name, run.final[ACCURACY.key], run.bytes / 1e6)
        for place, run in enumerate(runs)
        if run.bytes and ACCURACY.key in run.final
    ]
    if len({model.cost for model in models}) < 2:
        return None
    axis = _cost_axis("weights, MB", models)
    return _cost_chart(models, axis, "smaller than", "size of model.safetensors")


def _range(spread: Spread, factor: float = 1.0) -> str:
    smallest, largest = _short(factor * spread.smallest), _short(factor * spread.largest)
    return f"{_short(factor * spread.median)} ({smallest}–{largest})"


def speed_section(runs: Sequence[Run], speeds: Sequence[Speed]) -> Section | None:
    """Returns the section on accuracy against latency and size; None without data."""
    charts = list(filter(None, (_latency_chart(runs, speeds), _size_chart(runs))))
    if not charts and not speeds:
        return None
    contents: list[Charts | Table | Note] = [Charts(charts)] if charts else []
    if speeds:
        rows = []
        for speed in speeds:
            sizes = [f"{speed.parameters / 1e6:,.2f} M", megabytes(1e6 * speed.megabytes)]
            times = [_range(speed.latency, 1000.0), _range(speed.throughput)]
            rows.append([escape_unprintable(speed.model), speed.computed, *sizes, *times])
        titles = ["model", "computation", "parameters", "weights", "latency, ms", "sequences/s"]
        contents.append(Table(titles, rows, texts=2))
        contents.append(Note("Medians, with minimum and maximum."))
    return Section("Accuracy against latency and size", contents)


@dataclasses.dataclass(frozen=True)
class Score:
    """A model's score on a task, at the learning rate with the best mean.

    `metric` is the task's main metric. `deviation` is the sample standard deviation over seeds;
    None with one seed.
    """

    model: str
    task: str
    split: str
    metric: str
    mean: float
    deviation: float | None
    seeds: int
    learning_rate: float

    @property
    def text(self) -> str:
        """The score times 100, with its deviation."""
        deviation = "" if self.deviation is None else f" ± {100.0 * self.deviation:.2f}"
        return f"{100.0 * self.mean:.2f}{deviation}"


def model_folder(directory: Location, task: str) -> Location:
    """Returns the folder that identifies the model of a directory of `finetune`, without the task.

    Example: `study/distilled/tnews` and `study/tnews_distilled` become `study/distilled`.
    """
    name = re.sub(rf"[-_.]?{re.escape(task)}(?=$|[-_.])[-_.]?", "", directory.name, flags=re.I)
    return directory.with_name(name) if name else directory.parent


def _model_paths(paths: Sequence[Location], summaries: Sequence[Summary]) -> list[pathlib.PurePath]:
    """Returns a path that identifies the model of each summary.

    This is the model's name. If several models of a task have the same name, or a model was
    fine-tuned on a task in several ways, it is the folder.
    """
    names = [pathlib.PurePath(summary.model).name for summary in summaries]
    tasks = [summary.task for summary in summaries]
    pairs = collections.Counter(zip(names, tasks, strict=True))
    twice = {name for (name, _), count in pairs.items() if count > 1}
    return [
        pathlib.PurePath(name)
        if name and name not in twice
        else model_folder(path.absolute().parent, task)
        for path, name, task in zip(paths, names, tasks, strict=True)
    ]


def read_scores(paths: Sequence[Location]) -> list[Score]:
    """Reads several files `summary.json` of `finetune`.

    Raises:
        InputError: a file is malformed, or two files have the same model and task.
    """
    summaries = [read_struct(path, Summary) for path in paths]
    folders = _model_paths(paths, summaries)
    seen: set[tuple[pathlib.PurePath, str]] = set()
    for path, folder, summary in zip(paths, folders, summaries, strict=True):
        if (folder, summary.task) in seen:
            received = f"{path}, whose folder has the same name as another's"
            hint = "put each in a folder named after its model"
            expected = "files in which each model occurs once per task"
            raise InputError(Setting("finetune"), expected, received, hint)
        seen.add((folder, summary.task))
    distinct = list(dict.fromkeys(folders))
    names = dict(zip(distinct, short_names(distinct), strict=True))
    return [
        _read_score(path, summary, names[folder])
        for path, summary, folder in zip(paths, summaries, folders, strict=True)
    ]


def _read_score(path: Location, summary: Summary, model: str) -> Score:
    best, metric = summary.best_learning_rate, summary.main_metric
    rate = next((rate for rate in summary.rates if rate.learning_rate == best), None)
    if rate is None or metric not in rate.metrics:
        raise InputError(
            path, f"{escape_unprintable(metric)[:80]} at the learning rate {best:g}", "none"
        )
    score, texts = (
        rate.metrics[metric],
        map(escape_unprintable, (summary.task, summary.split, metric)),
    )
    return Score(model, *texts, score.mean, score.std, rate.num_seeds, best)


def _task_chart(scores: Sequence[Score], colors: Mapping[str, int]) -> Chart:
    best = max(scores, key=lambda score: score.mean)
    title = f"{best.task}: {best.model} scores highest, {best.text}"
    if len(scores) == 1:
        title = f"{best.task}: {best.text}"
    rows = []
    for score in scores:
        origin = f"{score.seeds} seeds, learning rate {score.learning_rate:g}"
        hint = f"{score.model}: {score.text}, {origin}"
        spread = None if score.deviation is None else 100.0 * score.deviation
        point = Point(100.0 * score.mean, 0.0, hint, spread=spread)
        rows.append(Series(score.model, (point,), colors[score.model], value=f"{point.x:.2f}"))
    axis = Axis(f"{best.metric} × 100, {best.split}")
    note = "mean ± standard deviation over seeds, at the best learning rate"
    return chart(title, note, interval_figure(rows, axis))


def tasks_section(runs: Sequence[Run], scores: Sequence[Score]) -> Section | None:
    """Returns the section with scores on tasks; None without scores."""
    if not scores:
        return None
    models = list(dict.fromkeys(score.model for score in scores))
    # A model has the color of the run with its name.
    colored = dict.fromkeys([*(run.name for run in runs), *models])
    colors = {name: color for color, name in enumerate(colored)}
    names = list(dict.fromkeys(score.task for score in scores))
    charts = [
        _task_chart([score for score in scores if score.task == name], colors) for name in names
    ]
    by_model_and_task = {(score.model, score.task): score for score in scores}
    rows, best = [], []
    for place, model in enumerate(models):
        row_scores = [by_model_and_task.get((model, name)) for name in names]
        rows.append([model, *("–" if score is None else score.text for score in row_scores)])
        for column, score in enumerate(row_scores, 1):
            rivals = [other.mean for other in scores if score and other.task == score.task]
            if len(rivals) > 1 and score.mean == max(rivals):
                best.append((place, column))
    metrics = {score.task: score.metric for score in scores}
    titles = ["model", *(f"{name}, {metrics[name]}" for name in names)]
    return Section("Scores on tasks", [Table(titles, rows, best=best), Charts(charts)])
