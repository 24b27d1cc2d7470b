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
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from data_specs.tasks import load_task
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.commands import running
from pipeline.models.formats import model_directory
from pipeline.storage import manifest as manifests
from tools.commands import run_command, run_tool
from tools.dev import study_report
from tools.dev.study_report import TEACHER, StudyModel, task_name
from tools.finetuning.task_data import find_files

_MAX_SEQ_LENGTH = 128
_LOSSES = {
    "distilled": "soft_cross_entropy=1,probability_cosine=1",
    "undistilled": "masked_lm=1",
}


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """How a task is trained, in a study.

    Attributes:
        num_train_epochs: passes over its training inputs.
        learning_rate: the peak.
        max_seq_length: tokens of an input at most.
        max_train_examples: so many training examples, drawn at random; None for all.
        num_seeds: how many of the study's seeds, the first ones; None for all.
    """

    num_train_epochs: float = 2.0
    learning_rate: float = 2e-4
    max_seq_length: int = _MAX_SEQ_LENGTH
    max_train_examples: int | None = None
    num_seeds: int | None = None


# What is not said here is `TaskSettings`' own. A study of four layers and four tasks is to end
# within two hours on two cores.
_TASK_SETTINGS: Mapping[str, TaskSettings] = {
    "chnsenticorp": TaskSettings(num_train_epochs=1.0, max_train_examples=6_000),
    # With half of the steps it is chance which models have left the plateau near a third.
    "ocnli": TaskSettings(num_train_epochs=3.0, learning_rate=1e-4),
    "tnews": TaskSettings(num_train_epochs=8.0),
    # A question has a dozen windows.
    "cmrc2018": TaskSettings(
        num_train_epochs=1.0, learning_rate=5e-4, max_train_examples=2_500, num_seeds=1
    ),
}


def parse_tasks(text: str) -> dict[str, str]:
    """Reads `--tasks`.

    Raises:
        InputError: a part is no task=folder, there is no such task, or its files are not there.
    """
    tasks: dict[str, str] = {}
    for part in text.split(","):
        name, _, folder = part.strip().partition("=")
        if not name or not folder or task_name(name) in map(task_name, tasks):
            raise InputError(Setting("tasks"), "task=folder,…, each task once", f"{part!r}")
        if not pathlib.Path(folder).is_dir():
            raise InputError(Setting("tasks"), f"a folder for {name}", folder)
        tasks[name] = folder
    # They are read last of all, when hours have gone by.
    for name, folder in tasks.items():
        try:
            spec = load_task(name)
        except ValueError as error:
            raise InputError(Setting("tasks"), received=error) from error
        for split in ("train", "dev"):
            find_files(spec, folder, split)
    return tasks


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """What a study is made of.

    Attributes:
        teacher: a model directory.
        input_dir: text, as `create_pretraining_data` takes it.
        tasks: the folder of each task's files.
        seeds: each trains and fine-tunes students of its own.
        do_whole_word_mask: whether whole words are masked, as the teacher has learned.
        num_shards: the masked examples are cut into so many shards, and the teacher
            runs over the first train shard alone.
        num_train_steps: updates of each student.
        train_batch_size: examples of an update.
        learning_rate: the peak of students.
    """

    teacher: str
    input_dir: str
    tasks: Mapping[str, str]
    seeds: tuple[int, ...]
    do_whole_word_mask: bool
    num_shards: int
    num_train_steps: int
    train_batch_size: int
    learning_rate: float

    def request(self) -> dict[str, Any]:
        """Returns what the folder of a study remembers of it; seeds and tasks may be added."""
        values = dataclasses.asdict(self)
        del values["tasks"], values["seeds"]
        for name in ("teacher", "input_dir"):
            values[name] = str(pathlib.Path(values[name]).resolve())
        return {"kind": "study", **values}


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of the study, done when the file it leaves is there."""

    title: str
    result: pathlib.Path
    make: Callable[[], None]


class Study:
    """The steps of a study, in order.

    Args:
        config: what was asked for.
        work: where everything goes.
    """

    def __init__(self, config: StudyConfig, work: pathlib.Path) -> None:
        self.config = config
        self.work = work
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

    def directory(self, model: StudyModel) -> pathlib.Path:
        """Returns a model's directory."""
        if model.key == TEACHER:
            return pathlib.Path(self.config.teacher)
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
                "data_dir": str(pathlib.Path(folder).resolve()),
                **dataclasses.asdict(task_settings(task)),
            }
            manifests.reserve_output_dir(self.work / "tasks" / task_name(task), request)

    def task_directory(self, model: StudyModel, task: str) -> pathlib.Path:
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
        settings = task_settings(task)
        run_tool(
            "finetune",
            task=task,
            data_dir=self.config.tasks[task],
            model=self.directory(model),
            output_dir=self.task_directory(model, task),
            learning_rates=settings.learning_rate,
            num_train_epochs=settings.num_train_epochs,
            max_seq_length=settings.max_seq_length,
            doc_stride=settings.max_seq_length // 2,
            max_train_examples=settings.max_train_examples,
            seeds=model.seed,
            skip_bad_rows=True,
        )


def _count(layers: int) -> str:
    return f"{layers} layer{'s' * (layers != 1)}"


def task_settings(task: str) -> TaskSettings:
    """Returns how a task is trained."""
    return _TASK_SETTINGS.get(task_name(task), TaskSettings())


def define_flags() -> flags.FlagValues:
    """Returns this program's flags."""
    table = running.FlagTable()
    table.string("teacher", None, "A model directory with its tokenizer.")
    table.string("input_dir", None, "Text: a file, a folder or a glob.")
    table.string("tasks", None, "task=folder,…: the tasks and where their files lie.")
    table.string("work", None, "Where everything goes; a study that was stopped continues there.")
    table.string("seeds", "1,2", "Each trains and fine-tunes students of its own.")
    table.boolean(
        "do_whole_word_mask", True, "Whether whole words are masked; best as the teacher learned."
    )
    table.integer("num_shards", 15, "The teacher runs over one train shard of so many.", low=1)
    table.integer("num_train_steps", 600, "Updates of each student.", low=2)
    table.integer("train_batch_size", 32, "Examples of an update.", low=1)
    table.number("learning_rate", 5e-4, "The peak of students.", low=0.0)
    table.require("teacher", "input_dir", "tasks", "work")
    return table.values


def _study(values: flags.FlagValues) -> None:
    begun = time.monotonic()
    config = StudyConfig(
        teacher=values.teacher,
        input_dir=values.input_dir,
        tasks=parse_tasks(values.tasks),
        seeds=tuple(running.parse_counts("seeds", values.seeds)),
        do_whole_word_mask=values.do_whole_word_mask,
        num_shards=values.num_shards,
        num_train_steps=values.num_train_steps,
        train_batch_size=values.train_batch_size,
        learning_rate=values.learning_rate,
    )
    Location.parse(values.work, "work").expect_local()
    study = Study(config, Location.parse(values.work, "work").make_directory())
    study.claim()
    _make(list(study.steps()), begun)
    report = study_report.read(study)
    (study.work / "study.json").write_json(report)
    print(f"\n{study_report.table(report)}")
    print(f"{(time.monotonic() - begun) / 60:.1f} minutes; study.json is in {study.work}")


def _make(steps: Sequence[Step], begun: float) -> None:
    """Makes the steps whose result is not there."""
    for number, step in enumerate(steps, 1):
        done = " (done before)" if step.result.is_file() else ""
        minutes = (time.monotonic() - begun) / 60
        print(f"\n[{number}/{len(steps)}] {step.title}{done}   {minutes:.1f} min", flush=True)
        if not done:
            step.make()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(define_flags(), _study, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
