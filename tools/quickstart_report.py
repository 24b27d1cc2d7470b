"""The quickstart's last page: one table and one picture."""

import dataclasses
import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.base.location import Location
from pipeline.models.formats import model_directory
from pipeline.models.weight_names import count_parameters
from pipeline.storage import cache_input, serialization
from pipeline.storage.manifest import EVAL, Manifest
from pipeline.storage.records import MaskedExample, TeacherTargets, read_examples
from tools import measurement
from tools.report.charts import COLOURS, GREY
from tools.report.runs import METRICS_FILE, read_metrics
from tools.text_table import aligned_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LATENCY_RUNS = 60
# Records that sizes are measured on.
_SAMPLE = 200
_COLOURS = {"distilled": COLOURS[0], "undistilled": COLOURS[1], "teacher": GREY}


@dataclasses.dataclass(frozen=True)
class ModelReport:
    """One model: shares are of held-out masked positions, the latency is in milliseconds."""

    name: str
    parameters: int
    accuracy: float
    loss: float
    agreement: float
    latency: float


@dataclasses.dataclass(frozen=True)
class Report:
    """What the table and the picture show.

    Attributes:
        models: teacher, distilled and undistilled.
        curves: of each student, (step, accuracy, agreement) at each evaluation.
        num_positions: held-out masked positions.
        position_bytes: bytes of the cache for each masked position, inputs included.
        ancestor_bytes: the same in lists of int64 and float, padded, as the Chinese
            RoBERTa-wwm distillation stores them.
        truncation_factor: k.
    """

    models: tuple[ModelReport, ...]
    curves: Mapping[str, Sequence[tuple[int, float, float]]]
    num_positions: int
    position_bytes: float
    ancestor_bytes: float
    truncation_factor: int


def _evaluations(directory: Location) -> list[dict[str, float]]:
    """Returns the eval lines of a run."""
    return [line for line in read_metrics(directory / METRICS_FILE) if line["split"] == EVAL]


def measure(work: Location, teacher: Location) -> Report:
    """Collects what the runs below `work` have measured, and measures the rest."""
    from tools import list_records

    cache = cache_input.open_cache(work / "cache", None)
    manifest = cache.manifest
    evaluation = [
        example
        for shard in manifest.splits[EVAL]
        for example in read_examples(cache.directory / shard.file, manifest)
    ]
    codec = cache_input.open_codec(cache.directory, manifest)
    label_log_probs = np.concatenate(
        [
            TeacherTargets.from_features(
                example.features, codec, manifest.teacher_info
            ).label_log_probs
            for example in evaluation
        ]
    ).astype(np.float64)
    places = {"teacher": teacher, **{name: work / name for name in ("distilled", "undistilled")}}
    latencies = _latencies(list(places.values()), manifest, evaluation[0])
    lines = {name: _evaluations(work / name) for name in ("distilled", "undistilled")}
    scores = {
        name: (last[-1]["masked_lm_accuracy"], last[-1]["masked_lm"], last[-1]["teacher_agreement"])
        for name, last in lines.items()
    }
    teacher_accuracy = lines["distilled"][-1]["teacher_accuracy"]
    scores["teacher"] = (teacher_accuracy, -float(label_log_probs.mean()), 1.0)
    sample = evaluation[:_SAMPLE]
    own_records = [serialization.encode_example(example.features) for example in sample]
    padded = list_records.padded_examples(cache, EVAL, len(sample))
    num_positions = sum(len(example.masked_lm_positions) for example in sample)
    return Report(
        models=tuple(
            ModelReport(name, _num_parameters(place), *scores[name], latency)
            for (name, place), latency in zip(places.items(), latencies, strict=True)
        ),
        curves={
            name: [
                (int(line["step"]), line["masked_lm_accuracy"], line["teacher_agreement"])
                for line in found
            ]
            for name, found in lines.items()
        },
        num_positions=len(label_log_probs),
        position_bytes=sum(map(len, own_records)) / num_positions,
        ancestor_bytes=sum(len(list_records.list_record(arrays)) for arrays in padded)
        / num_positions,
        truncation_factor=manifest.teacher_info.truncation_factor,
    )


def _num_parameters(directory: Location) -> int:
    return count_parameters(model_directory.find_model(directory).config)


def _latencies(
    places: Sequence[Location], manifest: Manifest, example: MaskedExample
) -> list[float]:
    """Returns the median milliseconds that each model takes for one example, in turns."""
    # Keras is imported only now that there is something to compute.
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
            model_directory.load_masked_lm(model_directory.find_model(place)),
            lambda outputs, _: {LOGITS: outputs[LOGITS]},
        )
        for place in places
    ]
    calls = [functools.partial(forward, batch) for forward in forwards]
    times = measurement.in_turns(calls, _LATENCY_RUNS, warm_up=5)
    return [1000.0 * statistics.median(taken) for taken in times]


def table(report: Report) -> str:
    """Returns the table as text."""
    titles = ("", "parameters", "accuracy", "loss", "agreement", "CPU latency")
    rows = [
        (
            model.name,
            f"{model.parameters / 1e6:.2f} M",
            f"{model.accuracy:.1%}",
            f"{model.loss:.3f}",
            f"{model.agreement:.1%}",
            f"{model.latency:.1f} ms",
        )
        for model in report.models
    ]
    lines = aligned_lines(titles, rows)
    ratio = report.ancestor_bytes / report.position_bytes
    return "\n".join(
        [
            *lines,
            "",
            f"accuracy, loss: of {report.num_positions:,} masked tokens of documents kept aside",
            "agreement: how often the first guess is the teacher's",
            f"cache: {report.position_bytes:.0f} bytes a masked position at "
            f"k={report.truncation_factor}, inputs included; "
            f"{report.ancestor_bytes:.0f} in lists of int64 and float ({ratio:.2f} times as many)",
        ]
    )


def draw(report: Report, work: Location) -> Location:
    """Draws the picture, and writes the table beside it; returns the picture's path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (agreement, accuracy, sizes) = pyplot.subplots(
        1, 3, figsize=(13, 4.2), width_ratios=(3, 3, 2), layout="constrained"
    )
    _draw_curves(agreement, report, 2, "first guess is the teacher's, %")
    _draw_curves(accuracy, report, 1, "masked token guessed, %")
    of_teacher = 100.0 * report.models[0].accuracy
    accuracy.axhline(of_teacher, color=_COLOURS["teacher"], linestyle="--", label="teacher")
    bars = sizes.bar(
        ["this cache", "int64 and\nfloat lists"],
        [report.position_bytes, report.ancestor_bytes],
        color=[_COLOURS["distilled"], _COLOURS["teacher"]],
    )
    sizes.bar_label(bars, fmt="%.0f")
    sizes.set_title("bytes a masked position")
    for axes in (agreement, accuracy):
        axes.legend(frameon=False)
    for axes in (agreement, accuracy, sizes):
        axes.spines[["top", "right"]].set_visible(False)
    path = work / "report.png"
    with path.atomic_write() as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)
    (work / "report.txt").write_whole((table(report) + "\n").encode("utf-8"))
    (work / "report.json").write_json(dataclasses.asdict(report))
    return path


def _draw_curves(axes: "Axes", report: Report, column: int, title: str) -> None:
    """Draws one measure of each student over its updates, the last value beside its point."""
    for name, points in report.curves.items():
        steps = [point[0] for point in points]
        shares = [100.0 * point[column] for point in points]
        axes.plot(steps, shares, marker="o", color=_COLOURS[name], label=name)
        axes.annotate(
            f"{shares[-1]:.1f}%",
            (steps[-1], shares[-1]),
            textcoords="offset points",
            xytext=(6, -3),
            color=_COLOURS[name],
        )
    axes.set_title(title)
    axes.set_xlabel("updates")
    axes.margins(x=0.14)
    axes.grid(alpha=0.3)
