"""The steps that train and score several students, and the files of these steps."""

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
from tools.recipe_comparison.settings import StudentRunsConfig
from tools.recipe_comparison.variants import LABELS, LIVE, MASKED_LM, CacheSpec, RecipeVariant

# The evaluation texts: text like the training text, and other text.
LIKE, OTHER = "like", "other"
_BASELINE = {"losses": f"{MASKED_LM}=1"}
# The packages that the process for measuring and fine-tuning imports.
_BACKEND = ("keras", "tensorflow")
# The capture settings of the caches for evaluation.
_EVALUATION_CAPTURE = {"logit_encoding": "compact", "truncation_factor": 128}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One student: a variant with a seed.

    Attributes:
        variant: the losses.
        seed: seed of the run.
        base: the variant of the student of the same seed from which this one continues; None for
            a student that starts from layers of the teacher.
    """

    variant: RecipeVariant
    seed: int
    base: RecipeVariant | None = None

    @property
    def kind(self) -> str:
        """The name that the students of all seeds share, for files."""
        return self.variant.key if self.base is None else f"{self.base.key}_then_{self.variant.key}"

    @property
    def key(self) -> str:
        """The name of its directories."""
        return f"{self.kind}_seed{self.seed}"

    @property
    def title(self) -> str:
        """The name of the student in tables and messages."""
        start = "" if self.base is None else f"{self.base.title}, then "
        return f"{start}{self.variant.title}, seed {self.seed}"


def link_first_shards(source: Location, target: Location, count: int) -> None:
    """Makes a directory of hard links to the first training shards of another directory."""
    manifest = manifests.load(source)
    shards = manifest.splits[TRAIN][:count]
    all_files = {shard.file for split in manifest.splits.values() for shard in split}
    left_out = all_files - {shard.file for shard in shards} | {manifests.MANIFEST_FILE}
    target.make_directory()
    for path in source.iterdir():
        if path.name not in left_out and not path.name.startswith("."):
            (target / path.name).unlink(missing_ok=True)
            os.link(path, target / path.name)
    manifests.publish(target, dataclasses.replace(manifest, splits={TRAIN: shards}))


class StudentRuns(abc.ABC):
    """The steps that tools with several students share, and the files of these steps.

    Args:
        config: the settings of the tool.
        variants: the variants of losses that train students.
        student_layers: number of layers of students that start from layers of the teacher.

    Attributes:
        teacher: a model directory with a masked-LM head.
    """

    def __init__(
        self, config: StudentRunsConfig, variants: Sequence[RecipeVariant], student_layers: int
    ) -> None:
        self.config = config
        self.variants = tuple(variants)
        self.work = config.work
        self.teacher = config.teacher
        self.student_layers = student_layers
        self._process = SeparateProcess(_BACKEND)
        # The task on which the process has fine-tuned last.
        self._task: str | None = None

    @property
    @abc.abstractmethod
    def trials(self) -> list[Trial]:
        """All students; a student comes before those that continue from it."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The names of the evaluation texts."""
        return (LIKE,)

    @property
    def start(self) -> dict[str, Any]:
        """Settings of `run_distill` for the initial weights of students."""
        return {"init_from": self.teacher, "student_layers": self.student_layers}

    @property
    def eval_fraction(self) -> float | None:
        """Share of documents for evaluation; None for the command's default."""
        return None

    @property
    def timed_steps(self) -> int:
        """Number of timed steps of each run in a measurement of step times."""
        return 16

    @property
    def has_live_teacher(self) -> bool:
        """Whether a variant runs the teacher during training."""
        return any(variant.source == LIVE for variant in self.variants)

    @property
    def cache_specs(self) -> tuple[CacheSpec, ...]:
        """The training caches of all variants."""
        return tuple(
            dict.fromkeys(variant.cache for variant in self.variants if variant.cache is not None)
        )

    @abc.abstractmethod
    def num_train_steps(self, trial: Trial) -> int:
        """Returns the number of training steps of a student."""

    def task_changes(self, task: str) -> dict[str, Any]:
        """Returns settings of `finetune` that override those of the task."""
        del task
        max_examples = self.config.max_task_examples
        return {} if max_examples is None else {"max_train_examples": max_examples}

    def training_cache(self, spec: CacheSpec) -> Location:
        """Returns the directory of a training cache."""
        return self.work / "caches" / spec.key

    def training_data(self, *, live: bool) -> Location:
        """Returns the masked examples for labels and caches, or the windows for a live teacher."""
        return self.work / ("windows" if live else "examples")

    def student(self, trial: Trial) -> Location:
        """Returns the directory of a student."""
        return self.work / "students" / trial.key

    def scores_file(self, trial: Trial) -> Location:
        """Returns the file of a student's evaluations."""
        return self.work / "scores" / f"{trial.key}.json"

    def task_directory(self, key: str, task: str) -> Location:
        """Returns the directory for the fine-tuning on a task of the model with a key."""
        return self.work / "tasks" / short_runs.task_name(task) / key

    def step_time_file(self, variant: RecipeVariant) -> Location:
        """Returns the file of a variant's step time."""
        return self.work / "step_times" / f"{variant.key}.json"

    @property
    def _baseline_file(self) -> Location:
        return self.work / "step_times" / "baseline.json"

    def evaluation_cache(self, text: str) -> Location:
        """Returns the directory of the evaluation cache of a text."""
        return self.work / "judges" / text

    def _reserve(self, run_config: dict[str, Any], contents: str) -> None:
        """Reserves the directory, and those of variants and tasks, for this run of a tool.

        Args:
            run_config: the settings that decide all trials, as JSON values.
            contents: a name for the results, used in messages.

        Raises:
            InputError: a directory contains results of other settings.
        """
        manifests.reserve_output_dir(self.work, run_config)
        for variant in self.variants:
            cache = None if variant.cache is None else variant.cache.key
            run_config = {"kind": "mix of losses", "source": variant.source, "cache": cache}
            manifests.reserve_output_dir(
                self.work / "mixes" / variant.key, run_config | dict(variant.arguments())
            )
        for task, folder in self.config.tasks.items():
            run_config = {"kind": f"task of a {contents}", "data_dir": str(folder.resolve())}
            run_config |= dataclasses.asdict(short_runs.task_settings(task))
            name = short_runs.task_name(task)
            manifests.reserve_output_dir(self.work / "tasks" / name, run_config)

    def close(self) -> None:
        """Ends the process that measures and fine-tunes."""
        self._process.close()

    def published(self, title: str, directory: Location, make: Callable[[], None]) -> Step:
        """Returns the step that makes a directory with a manifest."""
        return Step(title, directory / manifests.MANIFEST_FILE, make, "data")

    def data_steps(self) -> Iterator[Step]:
        """Yields the step of masked examples, and that of windows for a live teacher."""
        yield self.published("masked examples", self.work / "examples", self._mask_text)
        if self.has_live_teacher:
            yield self.published("unmasked windows", self.work / "windows", self._store_windows)

    def evaluation_cache_steps(self) -> Iterator[Step]:
        """Yields the steps of the evaluation caches."""
        for text in self.texts:
            make = functools.partial(self._capture_evaluation_cache, text)
            yield self.published(
                f"teacher targets for evaluation, {text}", self.evaluation_cache(text), make
            )

    def cache_steps(self) -> Iterator[Step]:
        """Yields the steps of the training caches."""
        for spec in self.cache_specs:
            make = functools.partial(self._capture, spec)
            yield self.published(f"cache {spec.key}", self.work / "caches" / spec.key, make)

    def time_steps(self) -> Iterator[Step]:
        """Yields the steps that time each variant, which reveals recipes that cannot be trained."""
        baseline = f"step time of the baseline, {MASKED_LM}"
        yield Step(baseline, self._baseline_file, self._time_baseline, "time")
        for variant in self.variants:
            make = functools.partial(self._time, variant)
            yield Step(f"step time: {variant.title}", self.step_time_file(variant), make, "time")

    def train_steps(self) -> Iterator[Step]:
        """Yields the steps that train students."""
        for trial in self.trials:
            make = functools.partial(self._train, trial)
            yield Step(f"train: {trial.title}", self.student(trial) / "config.json", make, "train")

    def evaluate_steps(self) -> Iterator[Step]:
        """Yields the steps that evaluate students."""
        for trial in self.trials:
            make = functools.partial(self._evaluate, trial)
            yield Step(f"evaluate: {trial.title}", self.scores_file(trial), make, "evaluate")

    def finetune_steps(self, task: str) -> Iterator[Step]:
        """Yields the steps that fine-tune students on a task."""
        for trial in self.trials:
            yield self.finetune_step(task, self.student(trial), trial.key, trial.title, trial.seed)

    def finetune_step(self, task: str, model: Location, key: str, title: str, seed: int) -> Step:
        """Returns the step that fine-tunes a model on a task.

        Args:
            task: a task of the settings.
            model: its directory.
            key: name of the run's directory.
            title: name of the model in messages.
            seed: seed of the run.
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

    def _capture_evaluation_cache(self, text: str) -> None:
        examples = self.work / ("examples" if text == LIKE else OTHER)
        self._run_teacher(examples, EVAL, self.evaluation_cache(text), **_EVALUATION_CAPTURE)

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
        self,
        settings: dict[str, str],
        variant: RecipeVariant | None,
        seed: int,
        base: Location | None = None,
    ) -> dict[str, Any]:
        """Returns the settings of `run_distill`, except its output directory and steps.

        Args:
            settings: the settings of the losses.
            variant: the variant of the student; None for labels only.
            seed: the seed of the student.
            base: the model from which it continues; None for a student that starts from the
                teacher.
        """
        source = LABELS if variant is None else variant.source
        data = {"input_dir": self.training_data(live=source == LIVE)}
        if source == LIVE:
            data["teacher"] = self.teacher
        elif source != LABELS:
            data["input_dir"] = self.training_cache(variant.cache)
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
        """Returns the median step time in seconds of runs, given as `run_distill` settings."""
        shared = {"output_dir": self.work / "unused", "compute_dtype": self.config.compute_dtype}
        arguments = [
            [f"--{name}={value}" for name, value in (run | shared).items()] for run in runs
        ]
        step_seconds = functools.partial(measuring.step_seconds, repeats=self.timed_steps)
        return self._process.call(step_seconds, arguments)

    def _step_seconds(self, *variants: RecipeVariant | None) -> list[float]:
        return self.measure(
            *(
                self.run_arguments(
                    dict(_BASELINE) if variant is None else variant.arguments(),
                    variant,
                    self.config.seeds[0],
                )
                for variant in variants
            )
        )

    def _time_baseline(self) -> None:
        (seconds,) = self._step_seconds(None)
        self._baseline_file.parent.make_directory()
        self._baseline_file.write_json({"seconds": seconds})

    def _time(self, variant: RecipeVariant) -> None:
        """Writes a variant's step time, its ratio to the baseline's, and the sizes that follow."""
        ratio = 1.0
        if variant.arguments() != _BASELINE:
            try:
                variant_seconds, baseline_seconds = self._step_seconds(variant, None)
            except InputError as error:
                raise InputError(
                    Setting("recipes"), received=f"{variant.title}: {error}"
                ) from error
            ratio = variant_seconds / baseline_seconds
        seconds = ratio * self._baseline_file.read_json()["seconds"]
        value = {"ratio": ratio, "seconds": seconds, **self.sizes_for(ratio, seconds)}
        self.step_time_file(variant).write_json(value)

    def sizes_for(self, ratio: float, seconds: float) -> dict[str, int]:
        """Returns sizes that follow from a step time and its ratio to the baseline's, if any."""
        del ratio, seconds
        return {}

    def _train(self, trial: Trial) -> None:
        # The student needs the memory of the process.
        self._process.close()
        steps = self.num_train_steps(trial)
        base = None
        if trial.base is not None:
            base = self.student(Trial(trial.base, trial.seed))
        run_command(
            "run_distill",
            output_dir=self.student(trial),
            num_train_steps=steps,
            save_checkpoints_steps=max(1, steps // 2),
            compute_dtype=self.config.compute_dtype,
            **self.run_arguments(trial.variant.arguments(), trial.variant, trial.seed, base),
        )

    def _evaluate(self, trial: Trial) -> None:
        caches = {text: self.evaluation_cache(text) for text in self.texts}
        student, max_steps = self.student(trial), self.config.max_eval_steps
        reports = self._process.call(measuring.evaluate_on, student, caches, max_steps)
        path = self.scores_file(trial)
        path.parent.make_directory()
        path.write_json(reports)

    def _finetune(self, task: str, model: Location, output_dir: Location, seed: int) -> None:
        if task != self._task:
            # Keras never frees all memory of earlier models, so each task has a new process.
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
