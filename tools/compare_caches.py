"""Trains the same student from each of several caches, and compares the students.

offline_distill compare_caches --caches=CACHE,SMALLER --work=DIR --seeds=1,2 \\
  --distill_flags="--init_from=TEACHER --student_layers=2 --num_train_steps=400"

Each student is trained for the same steps and evaluated on the eval split of the first
cache, so that all are measured by the same teacher's word. Stopped at any moment, the
same command continues.
"""

import dataclasses
import pathlib
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence

from absl import flags as absl_flags

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.base.settings import Settings, parse_counts, parse_words, setting
from pipeline.commands import flags, running
from pipeline.storage import manifest as manifests
from pipeline.storage.manifest import Manifest
from tools.commands import run_command
from tools.student_evaluation import evaluate
from tools.text_table import aligned_lines

# Of the report on an eval split: its names there, and over the columns of the table.
METRICS: Mapping[str, str] = {
    "masked_lm_accuracy": "accuracy",
    "masked_lm": "masked LM",
    "teacher_agreement": "agreement",
    "kl_divergence": "KL",
    "calibration_error": "calibration",
}
_OWN_FLAGS = ("input_dir", "input_file", "output_dir", "random_seed", "do_train", "do_eval")


def _parse_flags(text: str) -> tuple[str, ...]:
    found = tuple(shlex.split(text))
    for argument in found:
        name = argument.lstrip("-").partition("=")[0]
        if name.removeprefix("no") in _OWN_FLAGS or name in _OWN_FLAGS:
            raise InputError(None, f"no `{name}`, which is chosen for each run")
    return found


@dataclasses.dataclass(frozen=True)
class CompareConfig(Settings):
    """The settings of this tool; its flags are generated from them."""

    caches: tuple[Location, ...] = setting(
        dataclasses.MISSING,
        "Teacher caches of the same examples, separated by commas.",
        parse=parse_words,
    )
    work: Location = setting(
        dataclasses.MISSING, "Directory for the students' directories, on this machine."
    )
    distill_flags: tuple[str, ...] = setting(
        dataclasses.MISSING, "Flags of run_distill besides the cache.", parse=_parse_flags
    )
    seeds: tuple[int, ...] = setting(
        (1, 2), "Seeds, each of which trains one student from each cache.", parse=parse_counts
    )
    max_eval_steps: int = setting(200, "Batches of 32 of evaluation at most.", low=1)
    output: Location | None = setting(None, "New JSON file for the table.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.work.expect_local()
        if self.output is not None:
            self.output.expect_absent()


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One cache and its students.

    Attributes:
        cache: the directory, as text.
        kept: k, and how many ids a position has on average.
        logit_encoding: how they are packed.
        bytes_per_position: the cache adds at a masked position.
        scores: for each seed, each of `METRICS`.
    """

    cache: str
    kept: tuple[int, float]
    logit_encoding: str
    bytes_per_position: float
    scores: Mapping[int, Mapping[str, float]]

    def mean(self, name: str) -> float:
        """Returns a metric's mean over the seeds."""
        return statistics.fmean(score[name] for score in self.scores.values())

    def deviation(self, name: str) -> float | None:
        """Returns a metric's standard deviation over the seeds; None with one seed."""
        values = [score[name] for score in self.scores.values()]
        return statistics.stdev(values) if len(values) > 1 else None


def _open(paths: Sequence[Location]) -> list[Manifest]:
    """Returns the manifests of caches of the same examples.

    Raises:
        InputError: one is no teacher cache, or holds other examples than the first.
    """
    found = [manifests.load(path) for path in paths]
    for path, manifest in zip(paths, found, strict=True):
        if manifest.teacher_info is None:
            raise InputError(path, "a teacher cache", manifest.kind)
        if not manifest.num_examples(manifests.TRAIN):
            raise InputError(path, "train examples", "none")
        first, other = (
            (one.num_examples(manifests.TRAIN), one.teacher_info.parent["sha256"])
            for one in (found[0], manifest)
        )
        if first != other:
            raise InputError(
                Setting("caches"),
                "caches of the same masked examples",
                f"{paths[0]} ({first[0]:,} train examples, parent {first[1][:8]}…) and "
                f"{path} ({other[0]:,}, parent {other[1][:8]}…)",
            )
    if not found[0].num_examples(manifests.EVAL):
        raise InputError(paths[0], "eval examples in the first cache", "none")
    return found


def compare(config: CompareConfig) -> list[Comparison]:
    """Trains a student from each cache with each seed, and evaluates it on the first cache.

    The students' directories are `<number of the cache>-<seed>` in `work`.

    Raises:
        InputError: a cache is none, or they are not of the same masked examples.
        SystemExit: a run failed and has said why.
    """
    found = _open(config.caches)
    config.work.make_directory()
    students = {}
    for number, cache in enumerate(config.caches):
        for seed in config.seeds:
            student = students[number, seed] = config.work / f"{number}-{seed}"
            settings = {"input_dir": cache, "output_dir": student, "random_seed": seed}
            run_command("run_distill", *config.distill_flags, do_eval=False, **settings)
    comparisons = []
    for number, (cache, manifest) in enumerate(zip(config.caches, found, strict=True)):
        scores = {}
        for seed in config.seeds:
            report = evaluate(students[number, seed], config.caches[0], config.max_eval_steps)
            scores[seed] = {name: report[name] for name in METRICS}
        info = manifest.teacher_info
        comparisons.append(
            Comparison(
                str(cache),
                (info.truncation_factor, manifest.ids_per_position()),
                info.logit_encoding,
                sum(manifest.bytes_per_position().values()),
                scores,
            )
        )
    return comparisons


def _cell(comparison: Comparison, name: str) -> str:
    deviation = comparison.deviation(name)
    spread = "" if deviation is None else f" ±{deviation:.4f}"
    return f"{comparison.mean(name):.4f}{spread}"


def table(comparisons: Sequence[Comparison]) -> str:
    """Returns the comparison as text."""
    rows = [
        (
            pathlib.Path(one.cache).name,
            one.logit_encoding,
            str(one.kept[0]),
            f"{one.kept[1]:.1f}",
            f"{one.bytes_per_position:.1f}",
            *(_cell(one, name) for name in METRICS),
        )
        for one in comparisons
    ]
    titles = ("cache", "encoding", "k", "ids", "bytes", *METRICS.values())
    seeds = len(comparisons[0].scores)
    return "\n".join(
        [
            *aligned_lines(titles, rows),
            "",
            "bytes: the cache adds at a masked position; ids: kept there on average",
            f"on the eval split of {comparisons[0].cache}; mean and deviation of {seeds} "
            f"seed{'s' * (seeds > 1)}",
        ]
    )


def _compare(values: absl_flags.FlagValues) -> None:
    config = flags.read_config(values, CompareConfig)
    running.import_quietly("tensorflow")
    found = compare(config)
    print(f"\n{table(found)}")
    if config.output is not None:
        config.output.write_json([dataclasses.asdict(one) for one in found])
        print(f"comparison: {config.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(flags.define_flags(CompareConfig), _compare, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
