"""The steps of a comparison of recipes, in order."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.storage import manifest as manifests
from pipeline.storage.manifest import EVAL, TRAIN
from tools.commands import SeparateProcess, Step, run_command
from tools.finetuning import short_runs
from tools.recipe_comparison import measuring
from tools.recipe_comparison.mixes import LABELS, LIVE, MASKED_LM, CacheSpec, Mix
from tools.recipe_comparison.settings import CompareRecipesConfig

# The texts that students are evaluated on.
LIKE, OTHER = "like", "other"
_BASELINE = {"losses": f"{MASKED_LM}=1"}
# Imported by the process that measures.
_BACKEND = ("keras", "tensorflow")
# Of the caches that students are evaluated on.
_JUDGE = {"logit_encoding": "compact", "truncation_factor": 128}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A mix with a seed: one student."""

    mix: Mix
    seed: int

    @property
    def key(self) -> str:
        """The name of its directories."""
        return f"{self.mix.key}_seed{self.seed}"

    @property
    def title(self) -> str:
        """The cell for people."""
        return f"{self.mix.title}, seed {self.seed}"


class RecipeComparison:
    """The steps of a comparison and the files that they leave.

    Args:
        config: of the tool.
        mixes: that are compared.
        student_layers: of the students that start from layers of the teacher.
    """

    def __init__(
        self, config: CompareRecipesConfig, mixes: Sequence[Mix], student_layers: int
    ) -> None:
        self.config = config
        self.mixes = tuple(mixes)
        self.work = config.work
        self._student_layers = student_layers
        self._measuring = SeparateProcess(_BACKEND)

    @property
    def cells(self) -> list[Cell]:
        """All students, seed by seed."""
        return [Cell(mix, seed) for seed in self.config.seeds for mix in self.mixes]

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts that students are evaluated on."""
        return (LIKE,) if self.config.other_text is None else (LIKE, OTHER)

    def claim(self) -> None:
        """Marks the directory, and those of mixes and tasks, as of this comparison.

        Raises:
            InputError: results of other settings are there.
        """
        manifests.reserve_output_dir(self.work, self.config.request())
        for mix in self.mixes:
            cache = None if mix.cache is None else mix.cache.key
            request = {"kind": "mix of losses", "source": mix.source, "cache": cache}
            manifests.reserve_output_dir(
                self.work / "mixes" / mix.key, request | dict(mix.arguments())
            )
        for task, folder in self.config.tasks.items():
            request = {"kind": "task of a comparison", "data_dir": str(folder.resolve())}
            request |= dataclasses.asdict(short_runs.task_settings(task))
            name = short_runs.task_name(task)
            manifests.reserve_output_dir(self.work / "tasks" / name, request)

    def student(self, cell: Cell) -> Location:
        """Returns where a student goes."""
        return self.work / "students" / cell.key

    def scores_file(self, cell: Cell) -> Location:
        """Returns the file of a student's evaluations."""
        return self.work / "scores" / f"{cell.key}.json"

    def task_directory(self, cell: Cell, task: str) -> Location:
        """Returns where a student's fine-tuning on a task goes."""
        return self.work / "tasks" / short_runs.task_name(task) / cell.key

    def training_cache(self, spec: CacheSpec) -> Location:
        """Returns the cache that students are trained from, cut to the common bytes."""
        return self.work / "equal_bytes" / spec.key

    def step_time_file(self, mix: Mix) -> Location:
        """Returns the file of a mix's step time."""
        return self.work / "step_times" / f"{mix.key}.json"

    @property
    def _baseline_file(self) -> Location:
        return self.work / "step_times" / "baseline.json"

    def close(self) -> None:
        """Ends the process that measures."""
        self._measuring.close()

    def steps(self) -> Iterator[Step]:
        """Yields all steps, in order: errors in recipes show before the first training."""
        yield from self._data_steps()
        yield Step(
            "step time of the baseline, masked_lm", self._baseline_file, self._time_baseline, "time"
        )
        for mix in self.mixes:
            yield Step(
                f"step time: {mix.title}",
                self.step_time_file(mix),
                lambda mix=mix: self._time(mix),
                "time",
            )
        for cell in self.cells:
            yield Step(
                f"train: {cell.title}",
                self.student(cell) / "config.json",
                lambda cell=cell: self._train(cell),
                "train",
            )
        for cell in self.cells:
            yield Step(
                f"evaluate: {cell.title}",
                self.scores_file(cell),
                lambda cell=cell: self._evaluate(cell),
                "evaluate",
            )
        for task in self.config.tasks:
            for cell in self.cells:
                yield Step(
                    f"{short_runs.task_name(task)}: {cell.title}",
                    self.task_directory(cell, task) / "summary.json",
                    lambda cell=cell, task=task: self._finetune(cell, task),
                    task,
                )

    def _data_steps(self) -> Iterator[Step]:
        work = self.work
        yield self._published("masked examples", work / "examples", self._mask_text)
        if any(mix.source == LIVE for mix in self.mixes):
            yield self._published("unmasked windows", work / "windows", self._store_windows)
        if OTHER in self.texts:
            yield self._published("masked examples, other text", work / OTHER, self._mask_other)
        for text in self.texts:
            yield self._published(
                f"teacher targets for evaluation, {text}",
                self._judge(text),
                lambda text=text: self._capture_judge(text),
            )
        specs = dict.fromkeys(mix.cache for mix in self.mixes if mix.cache is not None)
        for spec in specs:
            yield self._published(
                f"cache {spec.key}",
                work / "caches" / spec.key,
                lambda spec=spec: self._capture(spec),
            )
        for spec in specs:
            yield self._published(
                f"cache {spec.key} in equal bytes",
                self.training_cache(spec),
                lambda spec=spec: self._cut(spec, tuple(specs)),
            )

    def _published(self, title: str, directory: Location, make: Any) -> Step:
        return Step(title, directory / manifests.MANIFEST_FILE, make, "data")

    def _mask(self, text: str, output_dir: Location, **settings: Any) -> None:
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
        self._mask(self.config.input_dir, examples, dupe_factor=copies, num_shards=shards)

    def _store_windows(self) -> None:
        self._mask(self.config.input_dir, self.work / "windows", masking="dynamic")

    def _mask_other(self) -> None:
        # Only its eval split is read.
        self._mask(
            self.config.other_text,
            self.work / OTHER,
            dupe_factor=1,
            eval_fraction=0.5,
            num_shards=1,
        )

    def _judge(self, text: str) -> Location:
        return self.work / "judges" / text

    def _capture_judge(self, text: str) -> None:
        examples = self.work / ("examples" if text == LIKE else OTHER)
        self._run_teacher(examples, EVAL, self._judge(text), **_JUDGE)

    def _capture(self, spec: CacheSpec) -> None:
        examples, cache = self.work / "examples", self.work / "caches" / spec.key
        self._run_teacher(examples, TRAIN, cache, **spec.settings())

    def _run_teacher(
        self, examples: Location, split: str, output_dir: Location, **settings: Any
    ) -> None:
        run_command(
            "create_teacher_output_data",
            input_file=examples / f"{split}-*.tfrecord",
            teacher=self.config.teacher,
            output_dir=output_dir,
            compute_dtype=self.config.compute_dtype,
            **settings,
        )

    def _cut(self, spec: CacheSpec, specs: Sequence[CacheSpec]) -> None:
        """Makes a cache of the first shards of another, as many as the common bytes allow."""
        source, target = self.work / "caches" / spec.key, self.training_cache(spec)
        manifest = manifests.load(source)
        shards, most = manifest.splits[TRAIN], self._common_bytes(specs)
        total, count = 0, 0
        while count < len(shards) and total + shards[count].bytes <= most:
            total, count = total + shards[count].bytes, count + 1
        if not count:
            expected = f"at least {shards[0].bytes}, the bytes of a shard of {spec.key}"
            hint = "or more of `num_shards` in another `work`"
            raise InputError(Setting("cache_bytes"), expected, most, hint)
        left_out = {shard.file for shard in shards[count:]} | {manifests.MANIFEST_FILE}
        target.make_directory()
        for path in source.iterdir():
            if path.name not in left_out and not path.name.startswith("."):
                (target / path.name).unlink(missing_ok=True)
                os.link(path, target / path.name)
        manifests.publish(target, dataclasses.replace(manifest, splits={TRAIN: shards[:count]}))

    def _common_bytes(self, specs: Sequence[CacheSpec]) -> int:
        """Returns the bytes that each cache may have, which the first run decides."""
        if self.config.cache_bytes is not None:
            return self.config.cache_bytes
        path = self.work / "cache_bytes.json"
        if not path.is_file():
            loaded = [manifests.load(self.work / "caches" / spec.key) for spec in specs]
            sizes = [sum(shard.bytes for shard in one.splits[TRAIN]) for one in loaded]
            path.write_json({"bytes": min(sizes)})
        return path.read_json()["bytes"]

    def _run_arguments(self, settings: dict[str, str], mix: Mix | None, seed: int) -> dict:
        """Returns the settings of `run_distill` but its output directory and steps."""
        source = LABELS if mix is None else mix.source
        if source == LIVE:
            data = {"input_dir": self.work / "windows", "teacher": self.config.teacher}
        elif source == LABELS:
            data = {"input_dir": self.work / "examples"}
        else:
            data = {"input_dir": self.training_cache(mix.cache)}
        if self.config.student is not None:
            start = {"student": self.config.student}
        else:
            start = {"init_from": self.config.teacher, "student_layers": self._student_layers}
        return {
            **settings,
            **data,
            **start,
            "train_batch_size": self.config.train_batch_size,
            "learning_rate": self.config.learning_rate,
            "random_seed": seed,
            "do_eval": False,
            "verify": "sizes",
        }

    def _step_seconds(self, *mixes: Mix | None) -> list[float]:
        runs = []
        for mix in mixes:
            settings = dict(_BASELINE) if mix is None else mix.arguments()
            run = self._run_arguments(settings, mix, self.config.seeds[0])
            run |= {"output_dir": self.work / "unused", "compute_dtype": self.config.compute_dtype}
            runs.append([f"--{name}={value}" for name, value in run.items()])
        return self._measuring.call(measuring.step_seconds, runs)

    def _time_baseline(self) -> None:
        (seconds,) = self._step_seconds(None)
        self._baseline_file.parent.make_directory()
        self._baseline_file.write_json({"seconds": seconds})

    def _time(self, mix: Mix) -> None:
        """Writes a mix's step time, as a ratio to the baseline's, and its number of steps."""
        ratio = 1.0
        if mix.arguments() != _BASELINE:
            try:
                own, baseline = self._step_seconds(mix, None)
            except InputError as error:
                raise InputError(Setting("recipes"), received=f"{mix.title}: {error}") from error
            ratio = own / baseline
        seconds = ratio * self._baseline_file.read_json()["seconds"]
        steps = self.config.train_seconds / seconds
        if self.config.baseline_steps is not None:
            steps = self.config.baseline_steps / ratio
        steps = max(1, round(steps))
        value = {"ratio": ratio, "seconds": seconds, "num_train_steps": steps}
        self.step_time_file(mix).write_json(value)

    def _train(self, cell: Cell) -> None:
        # Its memory is for the student now.
        self._measuring.close()
        steps = self.step_time_file(cell.mix).read_json()["num_train_steps"]
        run_command(
            "run_distill",
            output_dir=self.student(cell),
            num_train_steps=steps,
            save_checkpoints_steps=max(1, steps // 2),
            compute_dtype=self.config.compute_dtype,
            **self._run_arguments(cell.mix.arguments(), cell.mix, cell.seed),
        )

    def _evaluate(self, cell: Cell) -> None:
        caches = {text: self._judge(text) for text in self.texts}
        student, most = self.student(cell), self.config.max_eval_steps
        reports = self._measuring.call(measuring.evaluate_on, student, caches, most)
        path = self.scores_file(cell)
        path.parent.make_directory()
        path.write_json(reports)

    def _finetune(self, cell: Cell, task: str) -> None:
        self._measuring.close()
        short_runs.finetune(
            task,
            self.config.tasks[task],
            self.student(cell),
            self.task_directory(cell, task),
            seed=cell.seed,
            max_seq_length=self.config.max_seq_length,
            max_train_examples=self.config.max_task_examples,
        )
