"""The ordered steps of a study, and the pilot study that measures their costs for a budget."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_specs.tasks import load_task
from pipeline.base.location import Location
from pipeline.storage import manifest as manifests
from pipeline.storage.manifest import TRAIN
from tools.commands import Step, run_command, run_tool
from tools.finetuning import short_runs
from tools.finetuning.task_data import read_split
from tools.recipe_comparison.runs import StudentRuns, Trial, link_first_shards
from tools.recipe_comparison.variants import MASKED_LM, RecipeVariant
from tools.teacher_study import sizes
from tools.teacher_study.result_files import examples_per_second, read_task_counts
from tools.teacher_study.settings import DEFAULT_STEPS, StudyConfig
from tools.teacher_study.sizes import Costs, TaskCost
from tools.teacher_study.step_durations import StepDurations

TEACHER = "teacher"
_HEAD_LEARNING_RATE = 2e-3
_EVAL_FRACTION = 0.02
# The number of training examples of a task in the pilot study: a few batches.
_PROBE_EXAMPLES = 256
# The number of timed steps with a budget: saving time matters more than a precise ratio.
_PROBE_STEPS = 5
# The seconds of the last step, which measures latency and throughput.
_INFERENCE_SECONDS = 60.0
_INFERENCE_REPEATS = 10


class PilotStudy(StudentRuns):
    """A measured study with one step, one seed and only the baseline student.

    Args:
        study: the study whose costs it measures.
        durations: the durations of the study.
    """

    def __init__(self, study: "Study", durations: StepDurations) -> None:
        config = dataclasses.replace(study.config, work=study.work / "probe")
        super().__init__(config, study.variants, study.student_layers)
        self.teacher = study.teacher
        self._study = study
        self._durations = durations

    @property
    def trials(self) -> list[Trial]:
        """The baseline student of the first seed."""
        return [Trial(self.variants[0], self.config.seeds[0])]

    def num_train_steps(self, trial: Trial) -> int:
        """Returns 1."""
        del trial
        return 1

    def task_changes(self, task: str) -> dict[str, Any]:
        """Returns the settings of a run of a few batches, each of which is logged."""
        del task
        return {"max_train_examples": _PROBE_EXAMPLES, "num_train_epochs": 1.0, "log_steps": 1}

    @property
    def timed_steps(self) -> int:
        """A few steps, to save time."""
        return _PROBE_STEPS

    def evaluation_cache(self, text: str) -> Location:
        """Returns the evaluation cache of the study."""
        return self._study.evaluation_cache(text)

    def steps(self) -> Iterator[Step]:
        """Yields all steps, in order."""
        for name in ("examples", "windows") if self.has_live_teacher else ("examples",):
            source, target = self._study.work / name, self.work / name
            make = functools.partial(link_first_shards, source, target, 1)
            yield self.published(f"first shard of {name}", target, make)
        yield from self.cache_steps()
        yield from self.time_steps()
        yield from self.train_steps()
        yield from self.evaluate_steps()
        for task in self.config.tasks:
            seed = self.config.seeds[0]
            yield self.finetune_step(task, self.config.teacher, TEACHER, TEACHER, seed)
            yield from self.finetune_steps(task)

    def costs(self, trials: Sequence[Trial]) -> Costs:
        """Returns the costs of a study with these students, after all steps of the pilot study."""
        (pilot_trial,) = self.trials
        seconds_per_process = self._seconds(self.student(pilot_trial) / "config.json")
        evaluation = self._seconds(self.scores_file(pilot_trial))
        seconds = {
            variant.key: self.step_time_file(variant).read_json()["seconds"]
            for variant in self.variants
        }
        per_step = sum(
            seconds[trial.variant.key] / (1 if trial.base is None else 2) for trial in trials
        ) + self.config.train_batch_size * sum(
            self._seconds_per_target(self.work / "caches" / spec.key, seconds_per_process)
            for spec in self.cache_specs
        )
        fixed = (
            len(trials) * (seconds_per_process + evaluation)
            + len(self.cache_specs) * seconds_per_process
        )
        tasks = {task: self._task_cost(task, len(trials)) for task in self.config.tasks}
        return Costs(fixed, per_step, tasks)

    def _seconds(self, result: Location) -> float:
        """Returns the seconds of a step; of the baseline's timing if the step was not timed."""
        return self._durations.seconds(result) or self._durations.seconds(self._baseline_file)

    def _seconds_per_target(self, cache: Location, process_seconds: float) -> float:
        """Returns the teacher's seconds per example, without the start of its process."""
        seconds = self._seconds(cache / manifests.MANIFEST_FILE)
        return max(seconds - process_seconds, seconds / 4) / manifests.load(cache).num_examples(
            TRAIN
        )

    def _task_cost(self, task: str, num_students: int) -> TaskCost:
        (pilot_trial,) = self.trials
        seeds = len(self.config.seeds)
        fixed = per_example = 0.0
        for key, count in ((TEACHER, seeds), (pilot_trial.key, num_students)):
            directory = self.task_directory(key, task)
            counts = read_task_counts(directory)
            training_seconds = counts.num_train_inputs / examples_per_second(directory)
            fixed += count * max(0.0, self._seconds(directory / "summary.json") - training_seconds)
            per_example += count * training_seconds / counts.num_train_examples
        settings = short_runs.task_settings(task)
        folder = self.config.tasks[task]
        rows = len(read_split(load_task(task), folder, TRAIN, skip_bad_rows=True).examples)
        most = self.config.max_task_examples or settings.max_train_examples or rows
        num_examples = min(rows, most)
        return TaskCost(num_examples, settings.num_train_epochs, fixed, per_example)


class Study(StudentRuns):
    """A study of a teacher.

    Args:
        config: the settings of the tool.
        variants: the baseline first, which has labels only; then the variants that distill.
        student_layers: number of layers of the students.
        has_head: whether the teacher has a masked-LM head; otherwise the study trains one.
    """

    def __init__(
        self,
        config: StudyConfig,
        variants: Sequence[RecipeVariant],
        student_layers: int,
        *,
        has_head: bool,
    ) -> None:
        super().__init__(config, variants, student_layers)
        self.has_head = has_head
        if not has_head:
            self.teacher = self.work / TEACHER
        self.durations = StepDurations(self.work / "seconds.json", self.work)
        self._pilot = PilotStudy(self, self.durations)

    @property
    def baseline(self) -> RecipeVariant:
        """The variant with labels only."""
        return self.variants[0]

    @property
    def trials(self) -> list[Trial]:
        """All students; those that continue a baseline student come last."""
        continuing = (self.variants[1], self.baseline)
        return [Trial(variant, seed) for seed in self.config.seeds for variant in self.variants] + [
            Trial(variant, seed, self.baseline)
            for seed in self.config.seeds
            for variant in continuing
        ]

    def reserve(self) -> None:
        """Reserves the directory for this study.

        Raises:
            InputError: the directory contains results of other settings.
        """
        self._reserve(self.config.run_config(), "study")

    def close(self) -> None:
        """Ends the processes that measure and fine-tune."""
        super().close()
        self._pilot.close()

    def num_train_steps(self, trial: Trial) -> int:
        """Returns the common number of steps, or half of it for a base model that is continued."""
        return self.common_steps // (1 if trial.base is None else 2)

    @property
    def eval_fraction(self) -> float:
        """Share of documents for evaluation."""
        return _EVAL_FRACTION

    @property
    def timed_steps(self) -> int:
        """See `StudentRuns`; fewer with a budget."""
        return super().timed_steps if self.config.budget is None else _PROBE_STEPS

    @property
    def common_steps(self) -> int:
        """Number of steps of each student."""
        if self.config.num_train_steps is not None:
            return self.config.num_train_steps
        if self.config.budget is None:
            return DEFAULT_STEPS
        return self._steps_file.read_json()["num_train_steps"]

    @property
    def head_steps(self) -> int:
        """Number of training steps of a teacher's new head."""
        if self.config.budget is None:
            return self.config.head_steps
        return self._head_file.read_json()["num_train_steps"]

    def step_time_ratio(self, variant: RecipeVariant) -> float:
        """Returns the step time of a variant as a multiple of the baseline's."""
        timed_runs = self if self.config.budget is None else self._pilot
        return timed_runs.step_time_file(variant).read_json()["ratio"]

    def task_changes(self, task: str) -> dict[str, Any]:
        """See `StudentRuns`; by default the number of examples that fits in the budget."""
        if self.config.budget is None or self.config.max_task_examples is not None:
            return super().task_changes(task)
        examples = self._examples_file.read_json()
        return {"max_train_examples": examples[short_runs.task_name(task)]}

    def training_data(self, *, live: bool) -> Location:
        """Returns the directory of the masked examples, or windows, that the steps read."""
        return self.work / ("train_windows" if live else "train_examples")

    @property
    def inference_file(self) -> Location:
        """The file with the table of latency and throughput."""
        return self.work / "inference.json"

    @property
    def _steps_file(self) -> Location:
        return self.work / "sizes" / "students.json"

    @property
    def _head_file(self) -> Location:
        return self.work / "sizes" / "head.json"

    @property
    def _examples_file(self) -> Location:
        return self.work / "sizes" / "tasks.json"

    def steps(self) -> Iterator[Step]:
        """Yields all steps, in order."""
        return map(self.durations.timed, self._steps())

    def _steps(self) -> Iterator[Step]:
        budgeted = self.config.budget is not None
        yield from self.data_steps()
        if not self.has_head:
            if budgeted:
                yield Step("size of the teacher's head", self._head_file, self._size_head)
            yield Step("the teacher's head", self.teacher / "config.json", self._train_head)
        yield from self.evaluation_cache_steps()
        if budgeted:
            for step in self._pilot.steps():
                yield dataclasses.replace(step, title=f"probe: {step.title}")
            yield Step("sizes of the students", self._steps_file, self._size_students)
        for live in (False, True) if self.has_live_teacher else (False,):
            make = functools.partial(self._take_data, live=live)
            yield self.published("training data", self.training_data(live=live), make)
        yield from self.cache_steps()
        if not budgeted:
            yield from self.time_steps()
        yield from self.train_steps()
        yield from self.evaluate_steps()
        if budgeted and self.config.max_task_examples is None:
            yield Step("sizes of the tasks", self._examples_file, self._size_tasks)
        for task in self.config.tasks:
            for seed in self.config.seeds:
                key, title = f"{TEACHER}_seed{seed}", f"teacher, seed {seed}"
                yield self.finetune_step(task, self.config.teacher, key, title, seed)
            yield from self.finetune_steps(task)
        yield Step("latency and throughput", self.inference_file, self._measure_inference)

    def _head_arguments(self) -> dict[str, Any]:
        return {
            "input_dir": self.work / "examples",
            "student": self.config.teacher,
            "losses": f"{MASKED_LM}=1",
            "freeze": "encoder",
            "train_batch_size": self.config.train_batch_size,
            "learning_rate": _HEAD_LEARNING_RATE,
            "random_seed": self.config.seeds[0],
            "verify": "sizes",
        }

    def _size_head(self) -> None:
        (seconds,) = self.measure(self._head_arguments())
        steps = sizes.choose_head_steps(self.config.budget, seconds, self.config.head_steps)
        self._write_sizes(self._head_file, {"num_train_steps": steps})

    def _train_head(self) -> None:
        self._process.close()
        run_command(
            "run_distill",
            output_dir=self.teacher,
            num_train_steps=self.head_steps,
            save_checkpoints_steps=self.head_steps,
            max_eval_steps=self.config.max_eval_steps,
            compute_dtype=self.config.compute_dtype,
            **self._head_arguments(),
        )

    @property
    def _seconds_left(self) -> float:
        """Remaining seconds of the budget, without the reserve and the last step."""
        usable = (1.0 - sizes.RESERVE) * self.config.budget
        return usable - self.durations.total - _INFERENCE_SECONDS

    def _size_students(self) -> None:
        self._pilot.close()
        costs, budget = self._pilot.costs(self.trials), self.config.budget
        steps = self.config.num_train_steps or sizes.choose_steps(self._seconds_left, costs)
        least = self.durations.total + costs.least_seconds(steps) + _INFERENCE_SECONDS
        if least > budget:
            print(
                f"the budget of {budget / 60:.1f} min is too short for these recipes, seeds and "
                f"tasks: with the fewest steps and examples the study takes {least / 60:.0f} min"
            )
        self._write_sizes(self._steps_file, {"num_train_steps": steps})

    def _size_tasks(self) -> None:
        tasks = self._pilot.costs(self.trials).tasks
        examples = sizes.choose_examples(self._seconds_left, tasks)
        names = {short_runs.task_name(task): count for task, count in examples.items()}
        self._write_sizes(self._examples_file, names)

    def _write_sizes(self, path: Location, chosen_sizes: Mapping[str, int]) -> None:
        spent_minutes, budget_minutes = self.durations.total / 60, self.config.budget / 60
        shown = ", ".join(f"{name} {count:,}" for name, count in chosen_sizes.items())
        print(
            f"{spent_minutes:.1f} of {budget_minutes:.1f} min are used; chosen sizes: {shown}",
            flush=True,
        )
        path.parent.make_directory()
        path.write_json(chosen_sizes)

    def _take_data(self, *, live: bool) -> None:
        """Makes a directory of the first shards of the data that cover the steps."""
        source = self.work / ("windows" if live else "examples")
        needed = self.common_steps * self.config.train_batch_size
        shards = manifests.load(source).splits[TRAIN]
        total, count = 0, 0
        while count < len(shards) and total < needed:
            total, count = total + shards[count].num_examples, count + 1
        link_first_shards(source, self.training_data(live=live), count)

    def _measure_inference(self) -> None:
        self.close()
        student = self.student(self.trials[0])
        run_tool(
            "benchmark_inference",
            models=f"{self.teacher},{student}",
            seq_length=self.config.max_seq_length,
            computations="float32,mixed_bfloat16",
            repeats=_INFERENCE_REPEATS,
            output=self.inference_file,
        )
