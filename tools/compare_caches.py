"""Trains the same student from each of several caches, and compares the students.

offline_distill compare_caches --caches=CACHE,SMALLER --work=DIR --seeds=1,2 \\
  --distill_flags="--init_from=TEACHER --student_layers=2 --num_train_steps=400"

Each student is trained for the same number of steps, and evaluated on the eval split of the first
cache, so that all are compared with the same teacher targets. Re-run the command to resume an
interrupted comparison.
"""

import dataclasses
import pathlib
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

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

# Metrics of an evaluation, with the titles of their columns in the table.
METRICS: Mapping[str, str] = {
    "masked_lm_accuracy": "accuracy",
    "masked_lm": "masked LM",
    "teacher_agreement": "agreement",
    "kl_divergence": "KL",
    "calibration_error": "calibration",
}
_OWN_FLAGS = ("input_dir", "input_file", "output_dir", "random_seed", "do_train", "do_eval")


def _parse_flags(text: str) -> tuple[str, ...]:
    arguments = tuple(shlex.split(text))
    for argument in arguments:
        name = argument.lstrip("-").partition("=")[0]
        if name.removeprefix("no") in _OWN_FLAGS or name in _OWN_FLAGS:
            received = f"`{name}` cannot be set here, because this tool sets it for each run"
            raise InputError(None, received=received)
    return arguments


@dataclasses.dataclass(frozen=True)
class CompareConfig(Settings):
    """The settings of this tool; its flags are generated from them."""

    caches: tuple[Location, ...] = setting(
        dataclasses.MISSING,
        "Teacher caches of the same examples, separated by commas.",
        parse=parse_words,
    )
    work: Location = setting(dataclasses.MISSING, "Local directory for the students' directories.")
    distill_flags: tuple[str, ...] = setting(
        dataclasses.MISSING,
        "Flags of run_distill for all students, except those for the cache, the output directory "
        "and the seed.",
        parse=_parse_flags,
    )
    seeds: tuple[int, ...] = setting(
        (1, 2), "Random seeds. Each trains one student from each cache.", parse=parse_counts
    )
    max_eval_steps: int = setting(200, "Maximum number of evaluation batches of 32.", low=1)
    output: Location | None = setting(None, "New JSON file for the table.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.work.expect_local()
        if self.output is not None:
            self.output.expect_absent()


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A cache and the scores of its students.

    Attributes:
        cache: the directory, as text.
        num_ids: k; the mean number of ids at a position.
        logit_encoding: name of the codec.
        bytes_per_position: bytes that the cache adds for a masked position.
        scores: the values of `METRICS` by seed.
    """

    cache: str
    num_ids: tuple[int, float]
    logit_encoding: str
    bytes_per_position: float
    scores: Mapping[int, Mapping[str, float]]

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `output` holds."""
        value = dataclasses.asdict(self)
        return {**value, "kept": value.pop("num_ids")}

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
        InputError: a directory is not a teacher cache, or holds other examples than the first.
    """
    loaded = [manifests.load(path) for path in paths]
    for path, manifest in zip(paths, loaded, strict=True):
        if manifest.teacher_info is None:
            raise InputError(path, "a teacher cache", manifest.kind)
        if not manifest.num_examples(manifests.TRAIN):
            raise InputError(path, "train examples", "none")
        first, other = (
            (either.num_examples(manifests.TRAIN), either.teacher_info.parent["sha256"])
            for either in (loaded[0], manifest)
        )
        if first != other:
            raise InputError(
                Setting("caches"),
                "made from the same masked examples",
                f"{paths[0]} ({first[0]:,} train examples, parent {first[1][:8]}…) and "
                f"{path} ({other[0]:,}, parent {other[1][:8]}…)",
            )
    if not loaded[0].num_examples(manifests.EVAL):
        raise InputError(paths[0], "eval examples in the first cache", "none")
    return loaded


def compare(config: CompareConfig) -> list[Comparison]:
    """Trains a student from each cache with each seed, and evaluates it on the first cache.

    The students' directories are `<number of the cache>-<seed>` in `work`.

    Raises:
        InputError: a directory is not a teacher cache, or the caches hold different examples.
        SystemExit: a run failed and has printed its error.
    """
    loaded = _open(config.caches)
    config.work.make_directory()
    students = {}
    for number, cache in enumerate(config.caches):
        for seed in config.seeds:
            student = students[number, seed] = config.work / f"{number}-{seed}"
            settings = {"input_dir": cache, "output_dir": student, "random_seed": seed}
            run_command("run_distill", *config.distill_flags, do_eval=False, **settings)
    comparisons = []
    for number, (cache, manifest) in enumerate(zip(config.caches, loaded, strict=True)):
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
            pathlib.Path(comparison.cache).name,
            comparison.logit_encoding,
            str(comparison.num_ids[0]),
            f"{comparison.num_ids[1]:.1f}",
            f"{comparison.bytes_per_position:.1f}",
            *(_cell(comparison, name) for name in METRICS),
        )
        for comparison in comparisons
    ]
    titles = ("cache", "encoding", "k", "ids", "bytes", *METRICS.values())
    seeds = len(comparisons[0].scores)
    return "\n".join(
        [
            *aligned_lines(titles, rows),
            "",
            "ids, bytes: mean numbers of ids and bytes that the cache stores at a masked position",
            f"scores: on the eval split of {comparisons[0].cache}; mean and standard deviation of "
            f"{seeds} seed{'s' * (seeds > 1)}",
        ]
    )


def _compare(values: absl_flags.FlagValues) -> None:
    config = flags.read_config(values, CompareConfig)
    running.import_quietly("tensorflow")
    comparisons = compare(config)
    print(f"\n{table(comparisons)}")
    if config.output is not None:
        config.output.write_json([comparison.to_json() for comparison in comparisons])
        print(f"comparison: {config.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(flags.define_flags(CompareConfig), _compare, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
