"""The report's sections on runs: results, settings, curves."""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from tools.report.charts import NUM_COLORS, Axis, Format, Point, Series, figure
from tools.report.inputs import CacheFacts
from tools.report.page import Chart, Charts, Note, Section, Table, chart
from tools.report.runs import Run, compare_settings
from tools.report.text_width import escape_unprintable

# A line with more points is drawn through means of consecutive points.
_MAX_POINTS = 200
_SHAPE = ("num_hidden_layers", "hidden_size")


def percents(share: float) -> str:
    """Formats a share, for example as 41.2%."""
    return f"{share:.1%}"


def whole_percents(share: float) -> str:
    """Formats a share for an axis, with as few digits as possible: 40%, or 41.25%."""
    return f"{100.0 * share:.4g}%"


@dataclasses.dataclass(frozen=True)
class Measure:
    """A metric of an evaluation.

    Attributes:
        key: name in `metrics.jsonl`.
        title: title of a column.
        sentence: beginning of a chart's title.
        axis: title of a chart's axis, with the unit.
        format: formats a value.
        tick: formats a value at an axis.
        higher_is_better: whether a higher value is better.
        ceiling: largest possible value; the smallest is 0.
        definition: explanation of the title, for a note below the table.
    """

    key: str
    title: str
    sentence: str
    axis: str
    format: Format
    tick: Format = "{:g}".format
    higher_is_better: bool = False
    ceiling: float = math.inf
    definition: str = ""

    def y_axis(self) -> Axis:
        """Returns the vertical axis of a chart of this metric."""
        return Axis(self.axis, self.tick, bounds=(0.0, self.ceiling))

    def best(self, values: Sequence[float]) -> float | None:
        """Returns the best of the finite values; None without finite values."""
        finite = [value for value in values if math.isfinite(value)]
        return (max if self.higher_is_better else min)(finite, default=None)


_SHARE = (percents, whole_percents, True, 1.0)
ACCURACY = Measure(
    "masked_lm_accuracy",
    "accuracy",
    "Masked-token accuracy",
    "share of held-out masked tokens",
    *_SHARE,
)
AGREEMENT = Measure(
    "teacher_agreement",
    "agreement",
    "Agreement with the teacher",
    "share of predictions equal to the teacher's",
    *_SHARE,
    definition="agreement: share of the student's predictions that equal the teacher's",
)
_THREE, _FOUR = "{:.3f}".format, "{:.4f}".format
TRAINING = Measure("loss", "loss", "Training loss", "weighted sum of losses", _THREE)
LOSS = Measure(
    "masked_lm", "loss", "Loss on held-out tokens", "masked LM cross-entropy, nats", _THREE
)
DIVERGENCE = Measure(
    "kl_divergence",
    "KL",
    "Divergence from the teacher",
    "KL(teacher ‖ student), nats",
    _FOUR,
    definition="KL: mean Kullback-Leibler divergence of the student's distribution from the "
    "teacher's, KL(teacher ‖ student) in nats",
)
CALIBRATION = Measure(
    "calibration_error",
    "calibration error",
    "Calibration error",
    "expected calibration error, 0 at best",
    _FOUR,
)
_PERPLEXITY = Measure("masked_lm_perplexity", "perplexity", "", "", "{:,.1f}".format)
_CURVES = (AGREEMENT, ACCURACY, LOSS, DIVERGENCE)
COLUMNS = (ACCURACY, AGREEMENT, LOSS, _PERPLEXITY, DIVERGENCE, CALIBRATION)


def megabytes(size: float) -> str:
    """Formats a size in bytes, for example as 28.8 MB."""
    return f"{size / 1e6:,.1f} MB"


def _cell(value: float | None, form: Format) -> str:
    return "–" if value is None else form(value)


def results_section(runs: Sequence[Run], caches: Sequence[CacheFacts]) -> Section:
    """Returns the section with a table of the runs: last evaluation, size, steps.

    Args:
        runs: the runs.
        caches: known caches, which tell what examples a run was evaluated on.
    """
    measures = [measure for measure in COLUMNS if any(measure.key in run.final for run in runs)]
    named = {"step", "split", *(measure.key for measure in COLUMNS)}
    others = dict.fromkeys(name for run in runs for name in run.final if name not in named)
    rows, best = [], []
    for run in runs:
        cells = [_cell(run.final.get(measure.key), measure.format) for measure in measures]
        parameters = _cell(run.parameters, lambda count: f"{count / 1e6:,.2f} M")
        size = _cell(run.bytes, megabytes)
        rows.append([run.name, *cells, _shape(run), parameters, size, f"{run.updates:,}"])
    for column, measure in enumerate(measures, 1):
        values = [run.final[measure.key] for run in runs if measure.key in run.final]
        top = measure.best(values) if len(values) > 1 else None
        shown = None if top is None else measure.format(top)
        best += [(place, column) for place, row in enumerate(rows) if row[column] == shown]
    titles = ["run", *(measure.title for measure in measures)]
    titles += ["layers × width", "parameters", "weights", "steps"]
    contents = [Table(titles, rows, best=best), _result_note(runs, caches)]
    if definitions := [measure.definition for measure in measures if measure.definition]:
        contents.append(Note(f"{'; '.join(definitions)}."))
    if others:
        rows = [
            [run.name, *(_cell(run.final.get(name), "{:.4g}".format) for name in others)]
            for run in runs
        ]
        # The table above has a column `loss` for another loss.
        names = (TRAINING.axis if name == TRAINING.key else name for name in others)
        titles = ["run", *map(escape_unprintable, names)]
        contents.append(Table(titles, rows, summary="Other metrics"))
    return Section("Results", contents)


def _shape(run: Run) -> str:
    config = (run.settings.get(f"student.config.{name}") for name in _SHAPE)
    return " × ".join("–" if size is None else setting_text(size) for size in config)


def headline(runs: Sequence[Run]) -> str | None:
    """Returns the best accuracy as a sentence; None if no run measured its accuracy.

    Example: `distilled predicts 21.1% of the held-out masked tokens correctly, 96% of the
    teacher's 22.1%; next is baseline with 20.8%.`
    """
    # The run that trained the teacher is left out.
    students = [run for run in runs if _has(run)] or runs
    scores = [(run.final[ACCURACY.key], run) for run in students if ACCURACY.key in run.final]
    best = ACCURACY.best([score for score, _ in scores])
    if best is None:
        return None
    run = next(run for score, run in scores if score == best)
    text = f"{run.name} predicts {percents(best)} of the held-out masked tokens correctly"
    teacher = run.final.get("teacher_accuracy", 0.0)
    if teacher > 0.0:
        text += f", {best / teacher:.0%} of the teacher's {percents(teacher)}"
    others = [(score, other.name) for score, other in scores if other is not run]
    if others:
        second = ACCURACY.best([score for score, _ in others])
        name = next(name for score, name in others if score == second)
        text += f"; next is {name} with {percents(second)}"
    return f"{text}."


def _examples(runs: Sequence[Run], caches: Sequence[CacheFacts]) -> tuple[set[str], bool]:
    """Returns the digests of the masked examples that runs read, and whether all are known.

    A run names its input, which may be a teacher cache of the examples.
    """
    inputs = {str(run.settings.get("cache")) for run in runs}
    parents = {cache.sha256: cache.examples_sha256 for cache in caches}
    examples = {parents.get(name, name) for name in inputs}
    return examples, examples <= set(parents.values())


def _result_note(runs: Sequence[Run], caches: Sequence[CacheFacts]) -> Note:
    text = "Last evaluation of each run; the best value of a column is bold."
    teachers = sorted({percents(run.final["teacher_accuracy"]) for run in runs if _has(run)})
    if teachers:
        text += f" The teacher's accuracy: {', '.join(teachers)}."
    examples, are_known = _examples(runs, caches)
    if len(examples) == 1:
        return Note(text)
    if are_known:
        return Note(
            text,
            "The runs read different masked examples, and may have been evaluated on different "
            "ones.",
        )
    text += " The runs read different inputs, which may be caches of the same masked examples."
    return Note(f"{text} The report compares the examples of the caches in --caches.")


def _has(run: Run) -> bool:
    return "teacher_accuracy" in run.final


def setting_text(value: Any) -> str:
    """Formats a setting's value as on the command line; checksums are cut."""
    if isinstance(value, str):
        text = value or "–"
    elif isinstance(value, float):
        text = f"{value:g}"
    else:
        text = "–" if value is None else json.dumps(value, ensure_ascii=False)
    is_checksum = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return f"{text[:8]}…" if is_checksum else escape_unprintable(text)


def _short(name: str) -> str:
    if name == "student.sha256":
        return "first weights"
    return escape_unprintable(name.removeprefix("student.config.").removeprefix("student."))


def settings_section(runs: Sequence[Run]) -> Section:
    """Returns the section with the settings that differ between runs, and those they share."""
    differing, shared = compare_settings(runs)
    contents = []
    if differing:
        # The table is transposed if it then has fewer columns.
        titles = ["run", *map(_short, differing)]
        rows = [
            [run.name, *(setting_text(run.settings.get(name)) for name in differing)]
            for run in runs
        ]
        if len(runs) <= len(differing):
            titles, *rows = zip(titles, *rows, strict=True)
            titles = ("setting", *titles[1:])
        contents.append(Table(titles, rows, texts=len(titles)))
    same = [[_short(name), setting_text(value)] for name, value in sorted(shared.items())]
    title = "Settings that all runs share" if len(runs) > 1 else "All settings"
    contents.append(Table(["setting", "value"], same, texts=2, summary=title))
    return Section("Settings that differ" if differing else "Settings", contents)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns at most `_MAX_POINTS` points: means of consecutive points, and the last point."""
    size = math.ceil(len(points) / _MAX_POINTS)
    if size <= 1:
        return list(points)
    groups = [points[start : start + size] for start in range(0, len(points) - 1, size)]
    means = [
        tuple(sum(values) / len(group) for values in zip(*group, strict=True)) for group in groups
    ]
    return [*means, points[-1]]


def _curves(runs: Sequence[Run], measure: Measure, *, training: bool = False) -> list[Series]:
    """Returns a curve of a metric over the steps for each run that has two values of it."""
    curves, form = [], measure.format
    for place, run in enumerate(runs):
        lines = run.train if training else run.evaluations
        points = [(line["step"], line[measure.key]) for line in lines if measure.key in line]
        points = _thinned([(x, y) for x, y in points if math.isfinite(y)])
        if len(points) > 1:
            hints = (f"{run.name}, step {x:,.0f}: {form(y)}" for x, y in points)
            drawn = tuple(Point(*point, hint) for point, hint in zip(points, hints, strict=True))
            curves.append(Series(run.name, drawn, place, value=form(points[-1][1])))
    return curves


def chart_title(measure: Measure, series: Sequence[Series]) -> str:
    """Returns the title of a chart, which states the result of the curves.

    Example: `Agreement with the teacher: distilled ends highest, at 78.8%`.
    """
    last = [curve.points[-1].y for curve in series]
    if len(series) == 1:
        first = measure.format(series[0].points[0].y)
        return f"{measure.sentence}: from {first} to {measure.format(last[0])}"
    best = measure.format(measure.best(last))
    winners = [curve.name for curve in series if measure.format(curve.points[-1].y) == best]
    word = "highest" if measure.higher_is_better else "lowest"
    who = f"{winners[0]} ends" if len(winners) == 1 else f"{len(winners)} runs end"
    return f"{measure.sentence}: {who} {word}, at {best}"


STEPS = Axis("optimizer steps", "{:,.0f}".format, whole=True, bounds=(0.0, math.inf))


def measure_chart(
    runs: Sequence[Run], measure: Measure, reference: tuple[str, float] | None = None
) -> Chart | None:
    """Returns a chart of a metric at the evaluations; None if no run has two values of it."""
    series = _curves(runs, measure)
    if not series:
        return None
    drawn = figure(series, STEPS, measure.y_axis(), reference=reference)
    return chart(chart_title(measure, series), "at each evaluation", drawn)


def _teacher_accuracy(runs: Sequence[Run]) -> tuple[str, float] | None:
    accuracies = {run.final["teacher_accuracy"] for run in runs if _has(run)}
    if not accuracies or max(accuracies) - min(accuracies) > 1e-3:
        return None
    return f"the teacher  {percents(max(accuracies))}", max(accuracies)


def _training_chart(runs: Sequence[Run]) -> Chart | None:
    series = _curves(runs, TRAINING, training=True)
    if not series:
        return None
    title, note = chart_title(TRAINING, series), "mean since the previous logged step"
    losses = [{k: v for k, v in run.settings.items() if k.startswith("losses.")} for run in runs]
    if any(weights != losses[0] for weights in losses):
        title = "Training loss: each run minimizes a different loss"
        note = "weighted sums of different losses, whose values cannot be compared"
    return chart(title, note, figure(series, STEPS, TRAINING.y_axis()))


def _without_curves(runs: Sequence[Run]) -> Note | None:
    """Returns a note on the runs with a single evaluation; None if there are none."""
    names = [run.name for run in runs if len(run.evaluations) < 2]
    if not names:
        return None
    return Note(
        f"Evaluated once, and therefore without curves: {', '.join(names)}. "
        "run_distill --save_checkpoints_steps=N evaluates the student every N steps."
    )


def curves_section(runs: Sequence[Run]) -> Section:
    """Returns the section with metrics over the steps."""
    teacher = _teacher_accuracy(runs)
    charts = [
        measure_chart(runs, measure, teacher if measure is ACCURACY else None)
        for measure in _CURVES
    ]
    charts.append(_training_chart(runs))
    contents: list[Note | Charts] = [Charts(list(filter(None, charts)))]
    if (note := _without_curves(runs)) is not None:
        contents.append(note)
    if len(runs) > NUM_COLORS:
        gray = len(runs) - NUM_COLORS
        contents.insert(0, Note(f"The first {NUM_COLORS} runs are in color, {gray} more are gray."))
    return Section("Curves", contents)
