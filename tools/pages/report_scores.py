"""The report's parts about what a student is worth: speed and size, scores on tasks."""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from tools.pages.html_page import Markup, element, figure, section, table
from tools.pages.report_curves import ACCURACY, megabytes, percents
from tools.pages.report_inputs import JsonFile
from tools.pages.report_runs import Run, short_names
from tools.pages.svg_chart import point_chart
from tools.pages.svg_intervals import Interval, interval_chart
from tools.pages.svg_parts import Point, Series
from tools.pages.svg_scales import Axis
from tools.pages.text_width import visible


@dataclasses.dataclass(frozen=True)
class Speed:
    """A model, computed in one way.

    Attributes:
        model: its name, or its path where another has the same name.
        computed: the type of numbers, and on which device.
        parameters: of encoder and head.
        megabytes: of its weights.
        latency: seconds of one sequence: median, smallest and largest.
        throughput: sequences a second, likewise.
    """

    model: str
    computed: str
    parameters: int
    megabytes: float
    latency: tuple[float, float, float]
    throughput: tuple[float, float, float]


def read_speeds(path: str) -> list[Speed]:
    """Reads the JSON of `benchmark_inference`.

    Raises:
        InputError: a field is missing or not as it must be.
    """
    figures = ("median", "smallest", "largest")
    return [
        Speed(
            row.text("model"),
            f"{row.text('computation')} on {row.text('device')}",
            int(row.number("parameters")),
            row.number("megabytes"),
            row.object("latency").numbers(*figures),
            row.object("throughput").numbers(*figures),
        )
        for row in JsonFile.read(path).objects("rows")
    ]


def find_run(model: str, runs: Sequence[Run]) -> Run | None:
    """Returns the run that made a model, known by its path or its folder's name."""
    path = model
    for run in runs:
        if path.resolve() == run.directory.resolve():
            return run
    named = [run for run in runs if run.directory.resolve().name == model]
    return named[0] if len(named) == 1 else None


@dataclasses.dataclass(frozen=True)
class _Worth:
    """A run's accuracy beside what its student costs; `place` is the run's colour."""

    place: int
    name: str
    accuracy: float
    cost: float


def _short(value: float) -> str:
    # The format g writes 1,260 as 1.26e+03.
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}"


def _cost_axis(title: str, found: Sequence[_Worth]) -> Axis:
    costs = [one.cost for one in found]
    return Axis(title, _short, logarithmic=max(costs) > 8.0 * min(costs), floor=0.0)


def _worth_chart(found: Sequence[_Worth], axis: Axis, cheap: str, note: str) -> Markup:
    """Returns a chart of accuracy against cost.

    Args:
        found: at least two models.
        axis: of the cost.
        cheap: what a model of a smaller cost is, such as `times as fast`.
        note: what is drawn.
    """
    best = max(found, key=lambda one: one.accuracy)
    least = min(found, key=lambda one: one.cost)
    if best == least:
        title = f"{best.name} costs least and guesses most"
    else:
        title = f"{least.name}: {best.cost / least.cost:.1f} times {cheap} {best.name}"
        if best.accuracy:
            title += f", {least.accuracy / best.accuracy:.0%} of its accuracy"
    series = [
        Series(
            one.name,
            (
                Point(
                    one.cost,
                    one.accuracy,
                    f"{one.name}: {axis.format(one.cost)}, {percents(one.accuracy)}",
                    one.name,
                ),
            ),
            one.place,
            joined=False,
        )
        for one in found
    ]
    chart = point_chart(series, axis, ACCURACY.y_axis(), description=title)
    return figure(title, note, chart)


def _latency_chart(runs: Sequence[Run], speeds: Sequence[Speed]) -> Markup | None:
    computed = speeds[0].computed if speeds else ""
    found = []
    for speed in speeds:
        run = find_run(speed.model, runs)
        if speed.computed == computed and run is not None and ACCURACY.key in run.final:
            place, cost = runs.index(run), 1000.0 * speed.latency[0]
            found.append(_Worth(place, run.name, run.final[ACCURACY.key], cost))
    if len(found) < 2:
        return None
    axis = _cost_axis("latency of one sequence, ms", found)
    return _worth_chart(found, axis, "as fast as", f"{computed}, medians")


def _size_chart(runs: Sequence[Run]) -> Markup | None:
    found = [
        _Worth(place, run.name, run.final[ACCURACY.key], run.bytes / 1e6)
        for place, run in enumerate(runs)
        if run.bytes and ACCURACY.key in run.final
    ]
    if len({one.cost for one in found}) < 2:
        return None
    axis = _cost_axis("weights, MB", found)
    return _worth_chart(found, axis, "smaller than", "model.safetensors as it is")


def _range(figures: tuple[float, float, float], factor: float = 1.0) -> str:
    median, smallest, largest = (factor * figure for figure in figures)
    return f"{_short(median)} ({_short(smallest)}–{_short(largest)})"


def speed(runs: Sequence[Run], speeds: Sequence[Speed]) -> Markup | None:
    """Returns quality against latency and size; None where neither tells a difference."""
    charts = [one for one in (_latency_chart(runs, speeds), _size_chart(runs)) if one]
    if not charts and not speeds:
        return None
    parts: list[object] = [element("div", *charts, class_="charts")] if charts else []
    if speeds:
        rows = [
            [
                one.model,
                one.computed,
                f"{one.parameters / 1e6:,.2f} M",
                megabytes(1e6 * one.megabytes),
                _range(one.latency, 1000.0),
                _range(one.throughput),
            ]
            for one in speeds
        ]
        titles = ["model", "computed", "parameters", "weights", "latency, ms", "sequences/s"]
        parts.append(table(titles, rows, texts=2))
        parts.append(element("p", "Medians, with the smallest and the largest.", class_="note"))
    return section("Quality against latency and size", *parts)


@dataclasses.dataclass(frozen=True)
class Score:
    """A model's score on a task, at the learning rate that is best by its mean.

    Attributes:
        task: its name.
        split: what was scored.
        model: as the folder is called.
        metric: the one that decides.
        mean: over seeds.
        deviation: of the sample; None of one seed.
        seeds: how many.
        learning_rate: the best one.
    """

    task: str
    split: str
    model: str
    metric: str
    mean: float
    deviation: float | None
    seeds: int
    learning_rate: float

    @property
    def text(self) -> str:
        """In hundredths, as tables of tasks have it."""
        deviation = "" if self.deviation is None else f" ± {100.0 * self.deviation:.2f}"
        return f"{100.0 * self.mean:.2f}{deviation}"


def model_folder(directory: Location, task: str) -> Location:
    """Returns what tells the model of a folder of `finetune`, whose name may have the task in it.

    Example: `study/distilled/tnews` and `study/tnews_distilled` become `study/distilled`.
    """
    name = re.sub(rf"[-_.]?{re.escape(task)}(?=$|[-_.])[-_.]?", "", directory.name, flags=re.I)
    return directory.with_name(name) if name else directory.parent


def _model_paths(summaries: Sequence[JsonFile]) -> list[Location]:
    """Returns what tells the model of each: its name, or its folder where that is not enough.

    Several models may have one name, and a model may learn a task in several ways.
    """
    named = [
        (pathlib.Path(summary.text("model")).name if "model" in summary.value else "", summary)
        for summary in summaries
    ]
    pairs = collections.Counter((name, summary.text("task")) for name, summary in named)
    twice = {name for (name, _), count in pairs.items() if count > 1}
    return [
        pathlib.Path(name)
        if name and name not in twice
        else model_folder(summary.path.absolute().parent, summary.text("task"))
        for name, summary in named
    ]


def read_scores(paths: Sequence[str]) -> list[Score]:
    """Reads several `summary.json` of `finetune`.

    Raises:
        InputError: a field is missing or not as it must be.
    """
    summaries = [JsonFile.read(path) for path in paths]
    tasks = [summary.text("task") for summary in summaries]
    folders = _model_paths(summaries)
    seen: set[tuple[Location, str]] = set()
    for path, pair in zip(paths, zip(folders, tasks, strict=True), strict=True):
        if pair in seen:
            raise InputError(
                Setting("finetune"),
                "each model once for a task",
                f"{path}, whose folder is called as another's",
                hint="put each in a folder named after its model",
            )
        seen.add(pair)
    distinct = list(dict.fromkeys(folders))
    names = dict(zip(distinct, short_names(distinct), strict=True))
    return [
        _read_score(summary, names[folder])
        for summary, folder in zip(summaries, folders, strict=True)
    ]


def _read_score(summary: JsonFile, model: str) -> Score:
    best = summary.number("best_learning_rate")
    metric = summary.text("main_metric")
    rates = [row for row in summary.objects("rates") if row.number("learning_rate") == best]
    if not rates:
        raise InputError(summary.path, received=f"rates: expected one of {best:g}, received none")
    spread = rates[0].object("metrics").object(metric)
    deviation = None if spread.value.get("std") is None else spread.number("std")
    return Score(
        summary.text("task"),
        summary.text("split"),
        model,
        visible(metric),
        spread.number("mean"),
        deviation,
        int(rates[0].number("num_seeds")),
        best,
    )


def _places(runs: Sequence[Run], models: Sequence[str]) -> dict[str, int]:
    """Returns the number of each model's colour: that of the run of its name, or one more."""
    known = {run.name: place for place, run in enumerate(runs)}
    others = [model for model in models if model not in known]
    return known | {model: place for place, model in enumerate(others, len(runs))}


def _task_chart(scores: Sequence[Score], places: Mapping[str, int]) -> Markup:
    best = max(scores, key=lambda one: one.mean)
    title = f"{best.task}: {best.model} scores highest, {best.text}"
    if len(scores) == 1:
        title = f"{best.task}: {best.text}"
    rows = [
        Interval(
            one.model,
            100.0 * one.mean,
            None if one.deviation is None else 100.0 * one.deviation,
            f"{one.model}: {one.text}, {one.seeds} seeds, learning rate {one.learning_rate:g}",
            places[one.model],
        )
        for one in scores
    ]
    axis = Axis(f"{best.metric} × 100, {best.split}", "{:g}".format)
    chart = interval_chart(rows, axis, value="{:.2f}".format, description=title)
    note = "mean over seeds ± the sample's standard deviation, at the best learning rate"
    return figure(title, note, chart)


def tasks(runs: Sequence[Run], scores: Sequence[Score]) -> Markup | None:
    """Returns the scores on tasks; None without any."""
    if not scores:
        return None
    models = list(dict.fromkeys(one.model for one in scores))
    places = _places(runs, models)
    names = list(dict.fromkeys(one.task for one in scores))
    charts = [_task_chart([one for one in scores if one.task == name], places) for name in names]
    found = {(one.model, one.task): one for one in scores}
    rows, best = [], []
    for place, model in enumerate(models):
        cells = [found.get((model, name)) for name in names]
        rows.append([model, *("–" if one is None else one.text for one in cells)])
        for column, one in enumerate(cells, 1):
            rivals = [other.mean for other in scores if one and other.task == one.task]
            if one is not None and len(rivals) > 1 and one.mean == max(rivals):
                best.append((place, column))
    metrics = {one.task: one.metric for one in scores}
    titles = ["model", *(f"{name}, {metrics[name]}" for name in names)]
    return section(
        "Scores on tasks",
        table(titles, rows, best=best),
        element("div", *charts, class_="charts"),
    )
