"""What a study found: its table, and where a taught student does better than an untaught."""

import dataclasses
import math
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.base.errors import InputError
from pipeline.models.formats import model_directory
from pipeline.models.weight_names import count_parameters
from tools.report.inputs import Summary, read_struct
from tools.report.runs import EVAL, METRICS_FILE, read_metrics
from tools.text_table import aligned_lines

if TYPE_CHECKING:
    from tools.dev.study import Study

TEACHER = "teacher"
ACCURACY, AGREEMENT = "masked LM", "agreement"
# Scores that are measured on held-out text, and their names in metrics.jsonl.
_LANGUAGE_METRICS = {ACCURACY: "masked_lm_accuracy", AGREEMENT: "teacher_agreement"}
# The taught beside the untaught of the same start.
PAIRS = tuple(
    (f"{start}-distilled", f"{start}-undistilled") for start in ("half", "quarter", "base")
)


@dataclasses.dataclass(frozen=True)
class StudyModel:
    """A model of a study.

    Attributes:
        name: for people.
        key: the same for all seeds.
        seed: of its training and fine-tuning.
    """

    name: str
    key: str
    seed: int


def read(study: "Study") -> dict[str, Any]:
    """Collects the scores of a finished study.

    Returns:
        JSON values: `models`, in order, each with `key`, `name`, `parameters`, `scores` (of
        each score `mean`, `std`, `values`) and `share_kept`, the mean over the tasks of
        its score over the teacher's, None where the teacher has none above 0; `gains`, as
        `compare` returns them.
    """
    rows: dict[str, dict[str, Any]] = {}
    values: dict[str, dict[str, list[float]]] = {}
    for model in study.models():
        if model.key not in rows:
            config = model_directory.find_model(str(study.directory(model))).config
            parameters = count_parameters(config)
            rows[model.key] = {"key": model.key, "name": model.name, "parameters": parameters}
        values.setdefault(model.key, {})
    for model in study.students():
        last = last_evaluation(study.directory(model))
        for score, metric in _LANGUAGE_METRICS.items():
            values[model.key].setdefault(score, []).append(last[metric])
        # The same of every student: the teacher's own.
        values[TEACHER][ACCURACY] = [last["teacher_accuracy"]]
    for task in study.config.tasks:
        for model in study.task_models(task):
            score = read_score(study.task_directory(model, task) / "summary.json")
            values[model.key].setdefault(task_name(task), []).append(score)
    tasks = [task_name(task) for task in study.config.tasks]
    for key, row in rows.items():
        row["scores"] = {score: _spread(found) for score, found in values[key].items()}
        row["share_kept"] = _share_kept(values[key], values[TEACHER], tasks)
    report = {"models": list(rows.values()), "tasks": tasks}
    return {**report, "gains": compare(rows, [ACCURACY, AGREEMENT, *tasks])}


def task_name(task: str) -> str:
    """Returns a task's name, which may be given as the path of a declaration."""
    return pathlib.Path(task).stem


def last_evaluation(directory: pathlib.Path) -> Mapping[str, float]:
    """Returns the last eval line of a run's `metrics.jsonl`.

    Raises:
        InputError: there is none, or it lacks a score.
    """
    path = directory / METRICS_FILE
    found = [line for line in read_metrics(path) if line["split"] == EVAL]
    missing = [
        name
        for name in (*_LANGUAGE_METRICS.values(), "teacher_accuracy")
        if not found or name not in found[-1]
    ]
    if missing:
        raise InputError(path, f"an evaluation with {missing[0]}", "none")
    return found[-1]


def read_score(path: pathlib.Path) -> float:
    """Returns the mean of the main score at the first rate of a `summary.json`.

    Raises:
        InputError: the file is missing, or is not as `finetune` writes it.
    """
    summary = read_struct(path, Summary)
    metrics = summary.rates[0].metrics
    if summary.main_metric not in metrics:
        raise InputError(path, f"a score {summary.main_metric}", "none")
    return metrics[summary.main_metric].mean


def _spread(values: Sequence[float]) -> dict[str, Any]:
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "values": list(values)}


def _share_kept(
    own: Mapping[str, Sequence[float]],
    teacher: Mapping[str, Sequence[float]],
    tasks: Iterable[str],
) -> float | None:
    pairs = [(statistics.fmean(own[task]), statistics.fmean(teacher[task])) for task in tasks]
    # Correlations may be 0, or below.
    if any(whole <= 0.0 for _, whole in pairs):
        return None
    return statistics.fmean(part / whole for part, whole in pairs)


def compare(rows: Mapping[str, Mapping[str, Any]], scores: Sequence[str]) -> list[dict[str, Any]]:
    """Returns how much better each taught student is than the untaught of the same start.

    Args:
        rows: by key, each with `scores`.
        scores: their names.

    Returns:
        for each pair and score `taught`, `untaught`, `score`, `difference` of the means,
        `spread`, the standard deviation of seeds pooled over both (None with one seed),
        and `verdict`: better, worse, equal, or within the spread.
    """
    gains = []
    for taught, untaught in PAIRS:
        for score in scores:
            ours, theirs = (rows[key]["scores"][score] for key in (taught, untaught))
            difference = ours["mean"] - theirs["mean"]
            spread = None
            if ours["std"] is not None:
                spread = math.sqrt((ours["std"] ** 2 + theirs["std"] ** 2) / 2)
            verdict = "better" if difference > 0 else "worse" if difference < 0 else "equal"
            if spread is None:
                verdict += ", one seed"
            elif abs(difference) <= spread:
                verdict = "within the spread"
            gains.append(
                {
                    "taught": taught,
                    "untaught": untaught,
                    "score": score,
                    "difference": difference,
                    "spread": spread,
                    "verdict": verdict,
                }
            )
    return gains


def table(report: Mapping[str, Any]) -> str:
    """Returns a report as text: scores in hundredths, mean and deviation of the seeds."""
    scores = [ACCURACY, AGREEMENT, *report["tasks"]]
    rows = [
        (
            model["name"],
            f"{model['parameters'] / 1e6:.2f} M",
            *(_cell(model["scores"].get(score)) for score in scores),
            "" if model["share_kept"] is None else f"{100 * model['share_kept']:.1f}%",
        )
        for model in report["models"]
    ]
    lines = aligned_lines(("", "parameters", *scores, "kept"), rows)
    lines += ["", f"kept: of the teacher's score, on average over {', '.join(report['tasks'])}", ""]
    names = {model["key"]: model["name"] for model in report["models"]}
    pairs = []
    for taught, _ in PAIRS:
        gains = {gain["score"]: gain for gain in report["gains"] if gain["taught"] == taught}
        pairs.append((names[taught], *(_gain(gains[score]) for score in scores)))
    lines += aligned_lines(("beside the untaught", *scores), pairs)
    lines.append("~: within the spread of the seeds")
    return "\n".join(lines)


def _cell(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return ""
    spread = "" if score["std"] is None else f" ±{100 * score['std']:.1f}"
    return f"{100 * score['mean']:.1f}{spread}"


def _gain(gain: Mapping[str, Any]) -> str:
    mark = " ~" if gain["verdict"] == "within the spread" else ""
    return f"{100 * gain['difference']:+.1f}{mark}"
