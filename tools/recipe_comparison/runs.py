"""Students that are trained side by side: the steps of their making, and the files these leave."""

import abc
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.storage import manifest as manifests
from pipeline.storage.manifest import EVAL, TRAIN
from tools.commands import SeparateProcess, Step, run_command
from tools.finetuning import short_runs
from tools.recipe_comparison import measuring
from tools.recipe_comparison.mixes import LABELS, LIVE, MASKED_LM, CacheSpec, Mix
from tools.recipe_comparison.settings import StudentRunsConfig

# The texts that students are evaluated on.
LIKE, OTHER = "like", "other"
_BASELINE = {"losses": f"{MASKED_LM}=1"}
# Imported by the process that measures and fine-tunes.
_BACKEND = ("keras", "tensorflow")
# Of the caches that students are evaluated on.
_JUDGE = {"logit_encoding": "compact", "truncation_factor": 128}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A mix with a seed: one student.

    Attributes:
        mix: the losses.
        seed: of all that is random.
        base: the mix of the student, of the same seed, that this one continues; None for one that
            starts from layers of the teacher.
    """

    mix: Mix
    seed: int
    base: Mix | None = None

    @property
    def kind(self) -> str:
        """The name of the students of all seeds, for files."""
        return self.mix.key if self.base is None else f"{self.base.key}_then_{self.mix.key}"

    @property
    def key(self) -> str:
        """The name of its directories."""
        return f"{self.kind}_seed{self.seed}"

    @property
    def title(self) -> str:
        """The cell for people."""
        start = "" if self.base is None else f"{self.base.title}, then "
        return f"{start}{self.mix.title}, seed {self.seed}"


def link_first_shards(source: Location, target: Location, count: int) -> None:
    """Makes a directory of the first training shards of another alone, without copying them."""
    manifest = manifests.load(source)
    shards = manifest.splits[TRAIN][:count]
    every = {shard.file for split in manifest.splits.values() for shard in split}
    left_out = every - {shard.file for shard in shards} | {manifests.MANIFEST_FILE}
    target.make_directory()
    for path in source.iterdir():
        if path.name not in left_out and not path.name.startswith("."):
            (target / path.name).unlink(missing_ok=True)
            os.link(path, target / path.name)
    manifests.publish(target, dataclasses.replace(manifest, splits={TRAIN: shards}))


class StudentRuns(abc.ABC):
    """The steps that all such tools have, and the files that they leave.

    Args:
        config: of the tool.
        mixes: that students are trained by.
        student_layers: of the students that start from layers of the teacher.

    Attributes:
        teacher: a model directory with a masked-LM head.
    """

    def __init__(
        self, config: StudentRunsConfig, mixes: Sequence[Mix], student_layers: int
    ) -> None:
        self.config = config
        self.mixes = tuple(mixes)
        self.work = config.work
        self.teacher = config.teacher
        self.student_layers = student_layers
        self._process = SeparateProcess(_BACKEND)
        # The task that the process fine-tunes on.
        self._task: str | None = None

    @property
    @abc.abstractmethod
    def cells(self) -> list[Cell]:
        """All students, those first that others continue."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts that students are evaluated on."""
        return (LIKE,)

    @property
    def start(self) -> dict[str, Any]:
        """Settings of `run_distill` on where students start."""
        return {"init_from": self.teacher, "student_layers": self.student_layers}

    @property
    def eval_fraction(self) -> float | None:
        """Share of the documents that students are evaluated on; None for the command's own."""
        return None

    @property
    def timed_steps(self) -> int:
        """Steps of each run in a measurement of step times."""
        return 16

    @property
    def has_live_teacher(self) -> bool:
        """Whether a mix computes the teacher in training."""
        return any(mix.source == LIVE for mix in self.mixes)

    @property
    def cache_specs(self) -> tuple[CacheSpec, ...]:
        """The caches that students are trained from."""
        return tuple(dict.fromkeys(mix.cache for mix in self.mixes if mix.cache is not None))

    @abc.abstractmethod
    def num_train_steps(self, cell: Cell) -> int:
        """Returns the steps of a student."""

    @abc.abstractmethod
    def task_changes(self, task: str) -> dict[str, Any]:
        """Returns settings of `finetune` in place of the task's own."""

    def training_cache(self, spec: CacheSpec) -> Location:
        """Returns the cache that students are trained from."""
        return self.work / "caches" / spec.key

    def training_data(self, *, live: bool) -> Location:
        """Returns the masked examples for labels and caches, or the windows for a live teacher."""
        return self.work / ("windows" if live else "examples")

    def student(self, cell: Cell) -> Location:
        """Returns where a student goes."""
        return self.work / "students" / cell.key

    def scores_file(self, cell: Cell) -> Location:
        """Returns the file of a student's evaluations."""
        return self.work / "scores" / f"{cell.key}.json"

    def task_directory(self, key: str, task: str) -> Location:
        """Returns where the fine-tuning of a model, named by its key, on a task goes."""
        return self.work / "tasks" / short_runs.task_name(task) / key

    def step_time_file(self, mix: Mix) -> Location:
        """Returns the file of a mix's step time."""
        return self.work / "step_times" / f"{mix.key}.json"

    @property
    def _baseline_file(self) -> Location:
        return self.work / "step_times" / "baseline.json"

    def judge(self, text: str) -> Location:
        """Returns the cache that students are evaluated on."""
        return self.work / "judges" / text

    def _claim(self, request: dict[str, Any], contents: str) -> None:
        """Marks the directory, and those of mixes and tasks, as of this run of a tool.

        Args:
            request: the settings that decide all cells, as JSON values.
            contents: the tool's work, for people.

        Raises:
            InputError: results of other settings are there.
        """
        manifests.reserve_output_dir(self.work, request)
        for mix in self.mixes:
            cache = None if mix.cache is None else mix.cache.key
            request = {"kind": "mix of losses", "source": mix.source, "cache": cache}
            manifests.reserve_output_dir(
                self.work / "mixes" / mix.key, request | dict(mix.arguments())
            )
        for task, folder in self.config.tasks.items():
            request = {"kind": f"task of a {contents}", "data_dir": str(folder.resolve())}
            request |= dataclasses.asdict(short_runs.task_settings(task))
            name = short_runs.task_name(task)
            manifests.reserve_output_dir(self.work / "tasks" / name, request)

    def close(self) -> None:
        """Ends the process that measures and fine-tunes."""
        self._process.close()

    def published(self, title: str, directory: Location, make: Callable[[], None]) -> Step:
        """Returns the step that makes a directory with a manifest."""
        return Step(title, directory / manifests.MANIFEST_FILE, make, "data")

    def data_steps(self) -> Iterator[Step]:
        """Yields the steps of masked examples, and of windows where a mix has a live teacher."""
        yield self.published("masked examples", self.work / "examples", self._mask_text)
        if self.has_live_teacher:
            yield self.published("unmasked windows", self.work / "windows", self._store_windows)

    def judge_steps(self) -> Iterator[Step]:
        """Yields the steps of the caches that students are evaluated on."""
        for text in self.texts:
            make = functools.partial(self._capture_judge, text)
            yield self.published(f"teacher targets for evaluation, {text}", self.judge(text), make)

    def cache_steps(self) -> Iterator[Step]:
        """Yields the steps of the caches of all mixes."""
        for spec in self.cache_specs:
            make = functools.partial(self._capture, spec)
            yield self.published(f"cache {spec.key}", self.work / "caches" / spec.key, make)

    def time_steps(self) -> Iterator[Step]:
        """Yields the steps that time the losses, and find recipes that cannot be trained."""
        baseline = f"step time of the baseline, {MASKED_LM}"
        yield Step(baseline, self._baseline_file, self._time_baseline, "time")
        for mix in self.mixes:
            make = functools.partial(self._time, mix)
            yield Step(f"step time: {mix.title}", self.step_time_file(mix), make, "time")

    def train_steps(self) -> Iterator[Step]:
        """Yields the steps that train students."""
        for cell in self.cells:
            make = functools.partial(self._train, cell)
            yield Step(f"train: {cell.title}", self.student(cell) / "config.json", make, "train")

    def evaluate_steps(self) -> Iterator[Step]:
        """Yields the steps that evaluate students."""
        for cell in self.cells:
            make = functools.partial(self._evaluate, cell)
            yield Step(f"evaluate: {cell.title}", self.scores_file(cell), make, "evaluate")

    def finetune_steps(self, task: str) -> Iterator[Step]:
        """Yields the steps that fine-tune students on a task."""
        for cell in self.cells:
            yield self.finetune_step(task, self.student(cell), cell.key, cell.title, cell.seed)

    def finetune_step(self, task: str, model: Location, key: str, title: str, seed: int) -> Step:
        """Returns the step that fine-tunes a model on a task.

        Args:
            task: a task of the settings.
            model: its directory.
            key: names the directory of the run.
            title: the model, for people.
            seed: of the run.
        """
        output_dir = self.task_directory(key, task)
        make = functools.partial(self._finetune, task, model, output_dir, seed)
        name = short_runs.task_name(task)
        return Step(f"{name}: {title}", output_dir / "summary.json", make, task)

    def mask(self, text: str, output_dir: Location, **settings: Any) -> None:
        """Makes masked examples of a text, or windows."""
        length = self.config.max_seq_length
        run_command(
            "create_pretraining_data",
            input_dir=text,
            vocab_file=self.config.teacher,
            output_dir=output_dir,
            segments="single",
            max_seq_length=length,
            doc_stride=length - 2,
            max_predictions_per_seq=-(-length * 15 // 100),
            do_whole_word_mask=self.config.do_whole_word_mask,
            **settings,
        )

    def _mask_text(self) -> None:
        copies, shards = self.config.dupe_factor, self.config.num_shards
        examples = self.work / "examples"
        self.mask(
            self.config.input_dir,
            examples,
            dupe_factor=copies,
            num_shards=shards,
            eval_fraction=self.eval_fraction,
        )

    def _store_windows(self) -> None:
        self.mask(
            self.config.input_dir,
            self.work / "windows",
            masking="dynamic",
            eval_fraction=self.eval_fraction,
        )

    def _capture_judge(self, text: str) -> None:
        examples = self.work / ("examples" if text == LIKE else OTHER)
        self._run_teacher(examples, EVAL, self.judge(text), **_JUDGE)

    def _capture(self, spec: CacheSpec) -> None:
        cache = self.work / "caches" / spec.key
        self._run_teacher(self.training_data(live=False), TRAIN, cache, **spec.settings())

    def _run_teacher(
        self, examples: Location, split: str, output_dir: Location, **settings: Any
    ) -> None:
        run_command(
            "create_teacher_output_data",
            input_file=examples / f"{split}-*.tfrecord",
            teacher=self.teacher,
            output_dir=output_dir,
            compute_dtype=self.config.compute_dtype,
            **settings,
        )

    def run_arguments(
        self, settings: dict[str, str], mix: Mix | None, seed: int, base: Location | None = None
    ) -> dict[str, Any]:
        """Returns the settings of `run_distill` but its output directory and steps.

        Args:
            settings: those of the losses.
            mix: of the student; None for the labels alone.
            seed: of the student.
            base: the model that it continues; None for one that begins.
        """
        source = LABELS if mix is None else mix.source
        data = {"input_dir": self.training_data(live=source == LIVE)}
        if source == LIVE:
            data["teacher"] = self.teacher
        elif source != LABELS:
            data["input_dir"] = self.training_cache(mix.cache)
        return {
            **settings,
            **data,
            **(self.start if base is None else {"student": base}),
            "train_batch_size": self.config.train_batch_size,
            "learning_rate": self.config.learning_rate,
            "random_seed": seed,
            "do_eval": False,
            "verify": "sizes",
        }

    def measure(self, *runs: dict[str, Any]) -> list[float]:
        """Returns the median seconds of a step of each run, given by settings of `run_distill`."""
        shared = {"output_dir": self.work / "unused", "compute_dtype": self.config.compute_dtype}
        arguments = [
            [f"--{name}={value}" for name, value in (run | shared).items()] for run in runs
        ]
        step_seconds = functools.partial(measuring.step_seconds, repeats=self.timed_steps)
        return self._process.call(step_seconds, arguments)

    def _step_seconds(self, *mixes: Mix | None) -> list[float]:
        return self.measure(
            *(
                self.run_arguments(
                    dict(_BASELINE) if mix is None else mix.arguments(), mix, self.config.seeds[0]
                )
                for mix in mixes
            )
        )

    def _time_baseline(self) -> None:
        (seconds,) = self._step_seconds(None)
        self._baseline_file.parent.make_directory()
        self._baseline_file.write_json({"seconds": seconds})

    def _time(self, mix: Mix) -> None:
        """Writes a mix's step time, as a ratio to the baseline's, and what follows from it."""
        ratio = 1.0
        if mix.arguments() != _BASELINE:
            try:
                own, baseline = self._step_seconds(mix, None)
            except InputError as error:
                raise InputError(Setting("recipes"), received=f"{mix.title}: {error}") from error
            ratio = own / baseline
        seconds = ratio * self._baseline_file.read_json()["seconds"]
        value = {"ratio": ratio, "seconds": seconds, **self.sizes_for(ratio, seconds)}
        self.step_time_file(mix).write_json(value)

    def sizes_for(self, ratio: float, seconds: float) -> dict[str, int]:
        """Returns sizes that follow from a step time and its ratio to the baseline's, if any."""
        del ratio, seconds
        return {}

    def _train(self, cell: Cell) -> None:
        # Its memory is for the student now.
        self._process.close()
        steps = self.num_train_steps(cell)
        base = None
        if cell.base is not None:
            base = self.student(Cell(cell.base, cell.seed))
        run_command(
            "run_distill",
            output_dir=self.student(cell),
            num_train_steps=steps,
            save_checkpoints_steps=max(1, steps // 2),
            compute_dtype=self.config.compute_dtype,
            **self.run_arguments(cell.mix.arguments(), cell.mix, cell.seed, base),
        )

    def _evaluate(self, cell: Cell) -> None:
        caches = {text: self.judge(text) for text in self.texts}
        student, most = self.student(cell), self.config.max_eval_steps
        reports = self._process.call(measuring.evaluate_on, student, caches, most)
        path = self.scores_file(cell)
        path.parent.make_directory()
        path.write_json(reports)

    def _finetune(self, task: str, model: Location, output_dir: Location, seed: int) -> None:
        if task != self._task:
            # Keras never returns all memory of the models before.
            self._process.close()
            self._task = task
        short_runs.finetune(
            task,
            self.config.tasks[task],
            model,
            output_dir,
            seed=seed,
            process=self._process,
            max_seq_length=self.config.max_seq_length,
            **self.task_changes(task),
        )
