"""The quickstart's report: a table for the terminal, and an HTML page of tables and charts."""

import dataclasses
import datetime
import functools
import math
import statistics
from collections.abc import Sequence

import numpy as np

from pipeline.base.location import Location
from pipeline.models.formats import model_directory
from pipeline.models.weight_names import count_parameters
from pipeline.storage import cache_input, serialization
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.manifest import EVAL, Manifest
from pipeline.storage.records import MaskedExample, TeacherTargets, read_examples
from tools import measurement
from tools.report import charts, curves, page
from tools.report.runs import Run, read_runs
from tools.text_table import aligned_lines

STUDENTS = ("distilled", "baseline")
_LATENCY_RUNS = 60
# The number of records for the measurement of sizes.
_SAMPLE = 200
# With fewer masked tokens, differences between the models are mostly chance.
_MIN_POSITIONS = 1_000
_MEASURES = (curves.ACCURACY, curves.LOSS, curves.AGREEMENT)
_TITLES = ("model", "accuracy", "agreement", "loss", "parameters", "CPU latency")


@dataclasses.dataclass(frozen=True)
class ModelReport:
    """The results of a model on held-out masked positions; the latency is in milliseconds."""

    name: str
    parameters: int
    accuracy: float
    loss: float
    agreement: float
    latency: float


@dataclasses.dataclass(frozen=True)
class Report:
    """The numbers of the tables.

    Attributes:
        models: the teacher, the distilled student and the baseline student.
        num_positions: number of held-out masked positions.
        position_bytes: bytes of the cache per masked position, including inputs.
        list_bytes: bytes per masked position in padded lists of int64 and float, the format
            of the Chinese RoBERTa-wwm distillation.
        truncation_factor: k, the number of stored tokens per position.
        command: the command line.
        date: the day of the measurements, as 2026-01-31.
        machine: see `describe_machine`.
    """

    models: tuple[ModelReport, ...]
    num_positions: int
    position_bytes: float
    list_bytes: float
    truncation_factor: int
    command: str
    date: str
    machine: dict[str, object]


def read_students(work: Location) -> list[Run]:
    """Reads the runs of both students."""
    return read_runs([work / name for name in STUDENTS])


def measure(work: Location, teacher: Location, students: Sequence[Run], command: str) -> Report:
    """Returns the results of the runs in `work`, with measured latencies and sizes.

    Args:
        work: the directory of all results.
        teacher: the teacher's directory.
        students: the runs of both students.
        command: the command line, for the report.
    """
    cache = cache_input.open_cache(work / "cache", None)
    manifest = cache.manifest
    evaluation = [
        example
        for shard in manifest.splits[EVAL]
        for example in read_examples(cache.directory / shard.file, manifest)
    ]
    label_log_probs = _label_log_probs(cache, evaluation)
    accuracy = students[0].final["teacher_accuracy"]
    scores = [(accuracy, -float(label_log_probs.mean()), 1.0)]
    scores += [tuple(run.final[measure.key] for measure in _MEASURES) for run in students]
    directories = [teacher, *(run.directory for run in students)]
    latencies = _latencies(directories, manifest, evaluation[0])
    own_bytes, list_bytes = _position_bytes(cache, evaluation[:_SAMPLE])
    return Report(
        models=tuple(
            ModelReport(name, _num_parameters(directory), *score, latency)
            for name, directory, score, latency in zip(
                ("teacher", *STUDENTS), directories, scores, latencies, strict=True
            )
        ),
        num_positions=len(label_log_probs),
        position_bytes=own_bytes,
        list_bytes=list_bytes,
        truncation_factor=manifest.teacher_info.truncation_factor,
        command=command,
        date=datetime.date.today().isoformat(),
        machine=measurement.describe_machine(),
    )


def _label_log_probs(cache: CacheInput, examples: Sequence[MaskedExample]) -> np.ndarray:
    """Returns the teacher's log-probability of each label, float64 [positions]."""
    info = cache.manifest.teacher_info
    codec = cache_input.open_codec(cache.directory, cache.manifest)
    targets = (TeacherTargets.from_features(example.features, codec, info) for example in examples)
    return np.concatenate([target.label_log_probs for target in targets]).astype(np.float64)


def _position_bytes(cache: CacheInput, sample: Sequence[MaskedExample]) -> tuple[float, float]:
    """Returns the bytes per masked position of this cache, and of padded lists."""
    from tools import list_records

    own_records = [serialization.encode_example(example.features) for example in sample]
    padded = list_records.padded_examples(cache, EVAL, len(sample))
    num_positions = sum(len(example.masked_lm_positions) for example in sample)
    list_bytes = sum(len(list_records.list_record(arrays)) for arrays in padded)
    return sum(map(len, own_records)) / num_positions, list_bytes / num_positions


def _num_parameters(directory: Location) -> int:
    return count_parameters(model_directory.find_model(directory).config)


def _latencies(
    directories: Sequence[Location], manifest: Manifest, example: MaskedExample
) -> list[float]:
    """Returns each model's median milliseconds for one example; the models run alternately."""
    # Keras is imported only here, because the other functions do not need it.
    from pipeline.models.masked_lm import LOGITS
    from pipeline.teacher.forward import build_batch, compile_forward

    batch = build_batch(
        [example],
        batch_size=1,
        max_seq_length=manifest.max_seq_length,
        max_predictions_per_seq=manifest.max_predictions_per_seq,
    )
    forwards = [
        compile_forward(
            model_directory.load_masked_lm(model_directory.find_model(directory)),
            lambda outputs, _: {LOGITS: outputs[LOGITS]},
        )
        for directory in directories
    ]
    calls = [functools.partial(forward, batch) for forward in forwards]
    times = measurement.time_alternately(calls, _LATENCY_RUNS, warm_up=5)
    return [1000.0 * statistics.median(seconds) for seconds in times]


def _rows(report: Report) -> list[tuple[str, ...]]:
    return [
        (
            model.name,
            f"{model.accuracy:.1%}",
            f"{model.agreement:.1%}",
            f"{model.loss:.3f}",
            f"{model.parameters / 1e6:.2f} M",
            f"{model.latency:.1f} ms",
        )
        for model in report.models
    ]


def _notes(report: Report) -> list[str]:
    ratio = report.list_bytes / report.position_bytes
    return [
        f"accuracy, loss: on {report.num_positions:,} masked tokens of held-out documents",
        "agreement: share of predictions that equal the teacher's",
        f"cache: {report.position_bytes:.0f} bytes per masked position at "
        f"k={report.truncation_factor}, inputs included; "
        f"{report.list_bytes:.0f} in lists of int64 and float (a factor of {ratio:.2f})",
    ]


def _warning(report: Report) -> str:
    """Returns a warning about too few masked tokens; an empty text if they suffice."""
    count, accuracy = report.num_positions, report.models[0].accuracy
    if count >= _MIN_POSITIONS:
        return ""
    error = 100.0 * math.sqrt(accuracy * (1.0 - accuracy) / count)
    return (
        f"warning: this table is computed from only {count:,} masked tokens, fewer than "
        f"{_MIN_POSITIONS:,}. The standard error of the teacher's accuracy is {error:.1f} points. "
        "Use more text."
    )


def table(report: Report) -> str:
    """Returns the table as text."""
    notes = filter(None, [*_notes(report), _warning(report)])
    return "\n".join([*aligned_lines(_TITLES, _rows(report)), "", *notes])


def _size_chart(report: Report) -> page.Chart:
    """Returns a chart of the bytes per masked position in this cache and in lists."""
    sizes = {"this cache": report.position_bytes, "int64 and float lists": report.list_bytes}
    colors = (0, charts.NUM_COLORS)
    rows = []
    for color, (name, size) in zip(colors, sizes.items(), strict=True):
        point = charts.Point(size, 0.0, f"{name}: {size:,.1f} bytes")
        rows.append(charts.Series(name, (point,), color, value=f"{size:,.0f}"))
    axis = charts.Axis(
        "bytes per masked position", "{:,.0f}".format, limits=(0.0, 1.05 * max(sizes.values()))
    )
    ratio = report.list_bytes / report.position_bytes
    title = f"Lists of int64 and float take {ratio:.1f} times the bytes of this cache"
    return page.chart(title, "inputs included", charts.interval_figure(rows, axis))


def html_page(report: Report, students: Sequence[Run]) -> str:
    """Returns the page: the table, the size of the cache, curves and settings."""
    models = page.Table(_TITLES, _rows(report))
    note = "baseline: the same student, trained on labels only, from the same start"
    notes = [page.Note(text) for text in (note, *_notes(report)[:2])]
    if warning := _warning(report):
        notes.append(page.Note("", warning))
    results = page.Section("Teacher and students", [models, *notes])
    size = page.Section("Cache size", [page.Charts([_size_chart(report)])])
    origin = f"{report.date}, {measurement.machine_line(report.machine)}"
    made_by = page.Section("Command", [page.Note(report.command), page.Note(origin)])
    sections = [
        results,
        curves.curves_section(students),
        size,
        curves.settings_section(students),
        made_by,
    ]
    return page.report_page("Quickstart", curves.headline(students), sections)


def write(report: Report, students: Sequence[Run], work: Location) -> Location:
    """Writes the page, the table and the numbers; returns the page's path."""
    (work / "report.txt").write_whole((table(report) + "\n").encode("utf-8"))
    (work / "report.json").write_json(dataclasses.asdict(report))
    path = work / "report.html"
    path.write_whole(html_page(report, students).encode("utf-8"))
    return path
