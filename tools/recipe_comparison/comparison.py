"""The steps of a comparison of recipes in equal time, in order."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.storage import manifest as manifests
from pipeline.storage.manifest import TRAIN
from tools.commands import Step
from tools.recipe_comparison.mixes import CacheSpec
from tools.recipe_comparison.runs import LIKE, OTHER, Cell, StudentRuns, link_first_shards


class RecipeComparison(StudentRuns):
    """A comparison: equal time for each student, equal bytes for each cache."""

    @property
    def cells(self) -> list[Cell]:
        """All students, seed by seed."""
        return [Cell(mix, seed) for seed in self.config.seeds for mix in self.mixes]

    @property
    def texts(self) -> tuple[str, ...]:
        """See `StudentRuns`; the other text, where there is one, is the second."""
        return (LIKE,) if self.config.other_text is None else (LIKE, OTHER)

    @property
    def start(self) -> dict[str, Any]:
        """See `StudentRuns`; or a model of the settings."""
        return super().start if self.config.student is None else {"student": self.config.student}

    def claim(self) -> None:
        """Marks the directory as of this comparison.

        Raises:
            InputError: results of other settings are there.
        """
        self._claim(self.config.request(), "comparison")

    def num_train_steps(self, cell: Cell) -> int:
        """See `StudentRuns`: as many as fit in the common time."""
        return self.step_time_file(cell.mix).read_json()["num_train_steps"]

    def task_changes(self, task: str) -> dict[str, Any]:
        """See `StudentRuns`: one number of examples for all tasks."""
        del task
        most = self.config.max_task_examples
        return {} if most is None else {"max_train_examples": most}

    def training_cache(self, spec: CacheSpec) -> Location:
        """See `StudentRuns`: cut to the common bytes."""
        return self.work / "equal_bytes" / spec.key

    def steps(self) -> Iterator[Step]:
        """Yields all steps, in order: errors in recipes show before the first training."""
        yield from self.data_steps()
        yield from self.time_steps()
        yield from self.train_steps()
        yield from self.evaluate_steps()
        for task in self.config.tasks:
            yield from self.finetune_steps(task)

    def data_steps(self) -> Iterator[Step]:
        """See `StudentRuns`; and the steps of the other text, of judges and of caches."""
        yield from super().data_steps()
        if OTHER in self.texts:
            yield self.published("masked examples, other text", self.work / OTHER, self._mask_other)
        yield from self.judge_steps()
        yield from self.cache_steps()
        for spec in self.cache_specs:
            make = functools.partial(self._cut, spec, self.cache_specs)
            yield self.published(
                f"cache {spec.key} in equal bytes", self.training_cache(spec), make
            )

    def _mask_other(self) -> None:
        # Only its eval split is read.
        self.mask(
            self.config.other_text,
            self.work / OTHER,
            dupe_factor=1,
            eval_fraction=0.5,
            num_shards=1,
        )

    def _cut(self, spec: CacheSpec, specs: Sequence[CacheSpec]) -> None:
        """Makes a cache of the first shards of another, as many as the common bytes allow."""
        source, most = self.work / "caches" / spec.key, self._common_bytes(specs)
        shards = manifests.load(source).splits[TRAIN]
        total, count = 0, 0
        while count < len(shards) and total + shards[count].bytes <= most:
            total, count = total + shards[count].bytes, count + 1
        if not count:
            expected = f"at least {shards[0].bytes}, the bytes of a shard of {spec.key}"
            hint = "or more of `num_shards` in another `work`"
            raise InputError(Setting("cache_bytes"), expected, most, hint)
        link_first_shards(source, self.training_cache(spec), count)

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

    def sizes_for(self, ratio: float, seconds: float) -> dict[str, int]:
        """See `StudentRuns`: the steps of a mix."""
        steps = self.config.train_seconds / seconds
        if self.config.baseline_steps is not None:
            steps = self.config.baseline_steps / ratio
        return {"num_train_steps": max(1, round(steps))}
