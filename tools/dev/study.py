"""What distillation is worth on tasks: a teacher, smaller students of it, and the same untaught.

python -m tools.dev.study --teacher=MODEL --input_dir=TEXT --work=DIR \\
    --tasks=chnsenticorp=DATA,ocnli=DATA,tnews=DATA,cmrc2018=DATA

Students of half and of a quarter of the teacher's layers are trained on the text, each once
from what the teacher said and once from the true tokens alone, from the same start and for
the same steps; the half that was not taught then goes on for half as many steps, as a base
model of its own that may learn from a larger one. All are fine-tuned on the tasks. A study
that was stopped continues where it was.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags as absl_flags

from pipeline.base import hub_id
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.base.settings import Settings, parse_counts, setting
from pipeline.commands import flags, running
from pipeline.models.formats import model_directory
from pipeline.models.weight_names import count_parameters
from pipeline.storage import manifest as manifests
from tools import spreads
from tools.commands import Step, make_steps, run_command
from tools.finetune import parse_tasks
from tools.finetuning import short_runs
from tools.finetuning.short_runs import read_score, task_name, task_settings
from tools.report.runs import EVAL, METRICS_FILE, read_metrics
from tools.text_table import aligned_lines

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
    """A model of a study: its name for people, its key in the report, and its seed."""

    name: str
    key: str
    seed: int


def read_report(study: "Study") -> dict[str, Any]:
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
            config = model_directory.find_model(study.directory(model)).config
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
        row["scores"] = {score: spreads.spread(found) for score, found in values[key].items()}
        row["share_kept"] = _share_kept(values[key], values[TEACHER], tasks)
    report = {"models": list(rows.values()), "tasks": tasks}
    return {**report, "gains": compare(rows, [ACCURACY, AGREEMENT, *tasks])}


def last_evaluation(directory: Location) -> Mapping[str, float]:
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
    """Returns how much better each distilled student is than the baseline of the same start.

    The spread is the standard deviation of seeds pooled over both, None with one seed.
    """
    gains = []
    for taught, untaught in PAIRS:
        for score in scores:
            ours, theirs = (rows[key]["scores"][score] for key in (taught, untaught))
            gain = {"taught": taught, "untaught": untaught, "score": score}
            gains.append({**gain, **spreads.difference(ours, theirs)})
    return gains


def report_table(report: Mapping[str, Any]) -> str:
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
    mark = " ~" if gain["verdict"] == spreads.WITHIN_SPREAD else ""
    return f"{100 * gain['difference']:+.1f}{mark}"


_MAX_SEQ_LENGTH = 128
_LOSSES = {
    "distilled": "soft_cross_entropy=1,probability_cosine=1",
    "undistilled": "masked_lm=1",
}


@dataclasses.dataclass(frozen=True)
class StudyConfig(Settings):
    """The settings of this tool; its flags are generated from them."""

    teacher: Location = setting(
        dataclasses.MISSING,
        "A model directory with its tokenizer, or a model of the hub.",
        hub_files=hub_id.MODEL,
    )
    input_dir: Location = setting(dataclasses.MISSING, "Text: a file, a directory or a glob.")
    tasks: Mapping[str, Location] = setting(
        dataclasses.MISSING,
        "Tasks and the directories of their files, task=directory,….",
        parse=parse_tasks,
        decides_output=False,
    )
    work: Location = setting(
        dataclasses.MISSING,
        "Directory for everything; a study that was stopped continues there.",
        decides_output=False,
    )
    seeds: tuple[int, ...] = setting(
        (1, 2),
        "Seeds, each of which trains and fine-tunes students of its own.",
        parse=parse_counts,
        decides_output=False,
    )
    do_whole_word_mask: bool = setting(
        True, "Whether whole words are masked; best as the teacher learned."
    )
    num_shards: int = setting(
        15, "Train shards of the masked examples, of which the teacher reads one.", low=1
    )
    num_train_steps: int = setting(600, "Steps of each student.", low=2)
    train_batch_size: int = setting(32, "Examples of a step.", low=1)
    learning_rate: float = setting(5e-4, "Peak of the students' learning rate.", low=0.0)

    def request(self) -> dict[str, Any]:
        """Returns what the folder of a study remembers of it; seeds and tasks may be added."""
        paths = {name: str(getattr(self, name).resolve()) for name in ("teacher", "input_dir")}
        return {"kind": "study", **self.decisive(), **paths}


class Study:
    """The steps of a study, in order."""

    def __init__(self, config: StudyConfig) -> None:
        self.config = config
        self.work = config.work
        self.num_layers = model_directory.find_model(config.teacher).config.num_hidden_layers

    @property
    def depths(self) -> dict[str, int]:
        """The students' layers: half and a quarter of the teacher's."""
        return {"half": max(1, self.num_layers // 2), "quarter": max(1, self.num_layers // 4)}

    def students(self) -> Iterator[StudyModel]:
        """Yields the students of all seeds, those first that others begin with."""
        for seed in self.config.seeds:
            for depth, layers in self.depths.items():
                for losses in _LOSSES:
                    yield StudyModel(f"{_count(layers)}, {losses}", f"{depth}-{losses}", seed)
            layers = self.depths["half"]
            for losses in _LOSSES:
                name = f"{_count(layers)}, undistilled, then {losses}"
                yield StudyModel(name, f"base-{losses}", seed)

    def models(self) -> Iterator[StudyModel]:
        """Yields what is fine-tuned, with each seed."""
        for seed in self.config.seeds:
            yield StudyModel(f"teacher, {_count(self.num_layers)}", TEACHER, seed)
        yield from self.students()

    def directory(self, model: StudyModel) -> Location:
        """Returns a model's directory."""
        if model.key == TEACHER:
            return self.config.teacher
        return self.work / "students" / f"{model.key}-seed{model.seed}"

    def claim(self) -> None:
        """Marks the folder, and that of each task, as of this study.

        Raises:
            InputError: results of another study, other files or other settings are there.
        """
        manifests.reserve_output_dir(self.work, self.config.request())
        for task, folder in self.config.tasks.items():
            request = {
                "kind": "task of a study",
                "data_dir": str(folder.resolve()),
                **dataclasses.asdict(task_settings(task)),
            }
            manifests.reserve_output_dir(self.work / "tasks" / task_name(task), request)

    def task_directory(self, model: StudyModel, task: str) -> Location:
        """Returns where a model's fine-tuning on a task goes."""
        return self.work / "tasks" / task_name(task) / f"{model.key}-seed{model.seed}"

    def task_models(self, task: str) -> list[StudyModel]:
        """Returns the models that are fine-tuned on a task."""
        seeds = self.config.seeds[: task_settings(task).num_seeds]
        return [model for model in self.models() if model.seed in seeds]

    def steps(self) -> Iterator[Step]:
        """Yields all steps, in order."""
        yield Step("masked examples", self.work / "examples/manifest.json", self.mask)
        yield Step("the teacher runs once", self.work / "cache/manifest.json", self.run_teacher)
        for model in self.students():
            yield Step(
                f"{model.name}, seed {model.seed}",
                self.directory(model) / "config.json",
                lambda model=model: self.train(model),
            )
        for task in self.config.tasks:
            for model in self.task_models(task):
                yield Step(
                    f"{task}: {model.name}, seed {model.seed}",
                    self.task_directory(model, task) / "summary.json",
                    lambda model=model, task=task: self.finetune(model, task),
                )

    def mask(self) -> None:
        """Stage 1a: single segments of the length that students are fine-tuned at."""
        run_command(
            "create_pretraining_data",
            input_dir=self.config.input_dir,
            vocab_file=self.config.teacher,
            output_dir=self.work / "examples",
            segments="single",
            max_seq_length=_MAX_SEQ_LENGTH,
            doc_stride=_MAX_SEQ_LENGTH - 2,
            do_whole_word_mask=self.config.do_whole_word_mask,
            dupe_factor=1,
            eval_fraction=0.01,
            num_shards=self.config.num_shards,
        )

    def run_teacher(self) -> None:
        """Stage 1b, over the first shard of each split."""
        run_command(
            "create_teacher_output_data",
            input_file=self.work / "examples/*-00000-of-*.tfrecord",
            teacher=self.config.teacher,
            output_dir=self.work / "cache",
            predict_batch_size=64,
            compute_dtype="auto",
        )

    def train(self, model: StudyModel) -> None:
        """Stage 2: a student of the teacher's layers, or a base model that goes on."""
        depth, losses = model.key.split("-")
        num_train_steps = self.config.num_train_steps
        if depth == "base":
            base = StudyModel("", "half-undistilled", model.seed)
            start = {"student": self.directory(base)}
            num_train_steps //= 2
        else:
            start = {"init_from": self.config.teacher, "student_layers": self.depths[depth]}
        run_command(
            "run_distill",
            input_dir=self.work / "cache",
            output_dir=self.directory(model),
            losses=_LOSSES[losses],
            tail="bucket",
            num_train_steps=num_train_steps,
            train_batch_size=self.config.train_batch_size,
            learning_rate=self.config.learning_rate,
            save_checkpoints_steps=max(1, num_train_steps // 2),
            max_eval_steps=10_000,
            random_seed=model.seed,
            compute_dtype="auto",
            **start,
        )

    def finetune(self, model: StudyModel, task: str) -> None:
        """Fine-tunes a model on a task with its own seed."""
        short_runs.finetune(
            task,
            self.config.tasks[task],
            self.directory(model),
            self.task_directory(model, task),
            seed=model.seed,
        )


def _count(layers: int) -> str:
    return f"{layers} layer{'s' * (layers != 1)}"


def _study(values: absl_flags.FlagValues) -> None:
    begun = time.monotonic()
    config = flags.read_config(values, StudyConfig)
    config.work.expect_local().make_directory()
    study = Study(config)
    study.claim()
    make_steps(list(study.steps()), begun)
    report = read_report(study)
    (study.work / "study.json").write_json(report)
    print(f"\n{report_table(report)}")
    print(f"{(time.monotonic() - begun) / 60:.1f} minutes; study.json is in {study.work}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(flags.define_flags(StudyConfig), _study, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
