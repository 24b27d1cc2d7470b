"""The ordered steps of a comparison of recipes with equal training time."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.storage import manifest as manifests
from pipeline.storage.manifest import TRAIN
from tools.commands import Step
from tools.recipe_comparison.runs import LIKE, OTHER, StudentRuns, Trial, link_first_shards
from tools.recipe_comparison.variants import CacheSpec


class RecipeComparison(StudentRuns):
    """A comparison with equal time for each student and equal bytes for each cache."""

    @property
    def trials(self) -> list[Trial]:
        """All students, seed by seed."""
        return [Trial(variant, seed) for seed in self.config.seeds for variant in self.variants]

    @property
    def texts(self) -> tuple[str, ...]:
        """See `StudentRuns`; the other text is the second, if there is one."""
        return (LIKE,) if self.config.other_text is None else (LIKE, OTHER)

    @property
    def start(self) -> dict[str, Any]:
        """See `StudentRuns`; the setting `student` may replace it."""
        return super().start if self.config.student is None else {"student": self.config.student}

    def reserve(self) -> None:
        """Reserves the directory for this comparison.

        Raises:
            InputError: the directory holds results of other settings.
        """
        self._reserve(self.config.run_config(), "comparison")

    def num_train_steps(self, trial: Trial) -> int:
        """See `StudentRuns`: the number of steps that fits in the common time."""
        return self.step_time_file(trial.variant).read_json()["num_train_steps"]

    def training_cache(self, spec: CacheSpec) -> Location:
        """See `StudentRuns`: the cache truncated to the common size in bytes."""
        return self.work / "equal_bytes" / spec.key

    def steps(self) -> Iterator[Step]:
        """Yields all steps, in an order that reveals errors in recipes before training."""
        yield from self.data_steps()
        yield from self.time_steps()
        yield from self.train_steps()
        yield from self.evaluate_steps()
        for task in self.config.tasks:
            yield from self.finetune_steps(task)

    def data_steps(self) -> Iterator[Step]:
        """See `StudentRuns`; adds the steps of the other text and of all caches."""
        yield from super().data_steps()
        if OTHER in self.texts:
            yield self.published("masked examples, other text", self.work / OTHER, self._mask_other)
        yield from self.evaluation_cache_steps()
        yield from self.cache_steps()
        for spec in self.cache_specs:
            make = functools.partial(self._cut, spec, self.cache_specs)
            yield self.published(
                f"cache {spec.key} in equal bytes", self.training_cache(spec), make
            )

    def _mask_other(self) -> None:
        # Only the eval split of the other text is read.
        self.mask(
            self.config.other_text,
            self.work / OTHER,
            dupe_factor=1,
            eval_fraction=0.5,
            num_shards=1,
        )

    def _cut(self, spec: CacheSpec, specs: Sequence[CacheSpec]) -> None:
        """Makes a cache from the first shards of another cache that fit in the common bytes."""
        source, max_bytes = self.work / "caches" / spec.key, self._common_bytes(specs)
        shards = manifests.load(source).splits[TRAIN]
        total, count = 0, 0
        while count < len(shards) and total + shards[count].bytes <= max_bytes:
            total, count = total + shards[count].bytes, count + 1
        if not count:
            expected = f"at least {shards[0].bytes}, the bytes of a shard of {spec.key}"
            hint = "or set a larger `num_shards` with another `work`"
            raise InputError(Setting("cache_bytes"), expected, max_bytes, hint)
        link_first_shards(source, self.training_cache(spec), count)

    def _common_bytes(self, specs: Sequence[CacheSpec]) -> int:
        """Returns the number of bytes of each cache; by default the first run decides it."""
        if self.config.cache_bytes is not None:
            return self.config.cache_bytes
        path = self.work / "cache_bytes.json"
        if not path.is_file():
            loaded = [manifests.load(self.work / "caches" / spec.key) for spec in specs]
            sizes = [sum(shard.bytes for shard in manifest.splits[TRAIN]) for manifest in loaded]
            path.write_json({"bytes": min(sizes)})
        return path.read_json()["bytes"]

    def sizes_for(self, ratio: float, seconds: float) -> dict[str, int]:
        """See `StudentRuns`: the number of steps of a variant."""
        steps = self.config.train_seconds / seconds
        if self.config.baseline_steps is not None:
            steps = self.config.baseline_steps / ratio
        return {"num_train_steps": max(1, round(steps))}
