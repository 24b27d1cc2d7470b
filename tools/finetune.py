"""Fine-tunes a model on a task for several learning rates and seeds, and scores it.

offline_distill finetune --task=chnsenticorp --data_dir=DATA --model=MODEL --output_dir=RUNS
    --learning_rates=2e-5,3e-5,5e-5 --seeds=1,2,3

Each run has a separate directory in --output_dir with the fine-tuned model, its scores and
its predictions in the benchmark's format. Finished runs are not repeated. With
--finetune_teacher, the model also learns from the logits of a fine-tuned teacher.
"""

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags as absl_flags

from data_specs.tasks import load_task
from pipeline.base import compute_dtype, hub_id
from pipeline.base.errors import DivergedError, InputError, Setting
from pipeline.base.location import Location
from pipeline.commands import flags, running
from pipeline.storage import manifest as manifests
from tools.finetuning.settings import FinetuneConfig, GridSettings
from tools.finetuning.short_runs import task_name
from tools.finetuning.task_files import find_files
from tools.text_table import aligned_lines

if TYPE_CHECKING:
    from tools.finetuning.preparation import Preparation
    from tools.finetuning.training import Result

SUMMARY_FILE = "summary.json"
# The settings that differ between the runs of a grid.
_OWN_SETTINGS = ("learning_rate", "random_seed")
FLAGS = flags.FlagSet(
    (FinetuneConfig, GridSettings),
    leave_out=_OWN_SETTINGS,
    defaults={"compute_dtype": compute_dtype.AUTO},
)


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of this tool."""
    return FLAGS.define()


def read_config(values: absl_flags.FlagValues) -> FinetuneConfig:
    """Returns the settings that all runs of the grid share.

    Raises:
        InputError: the settings contradict each other.
    """
    for name in ("distill_temperature", "distill_weight"):
        if values[name].present and not (values.finetune_teacher or values.teacher_cache):
            raise InputError(
                Setting(name), "used together with `finetune_teacher` or `teacher_cache`"
            )
    return flags.read_config(values, FinetuneConfig)


def parse_tasks(text: str) -> dict[str, Location]:
    """Parses tasks and the directories of their files, TASK=DIRECTORY,….

    Raises:
        InputError: an entry is malformed, a task does not exist, or its files are missing.
    """
    tasks: dict[str, Location] = {}
    for entry in text.split(","):
        name, _, folder = entry.strip().partition("=")
        if not name or not folder or task_name(name) in map(task_name, tasks):
            raise InputError(None, "a list task=directory,… with each task only once", f"{entry!r}")
        tasks[name] = Location.parse(folder, "tasks").expect_local()
    # The files are read last, after hours of work, so their existence is checked here.
    for name, folder in tasks.items():
        try:
            spec = load_task(name)
        except ValueError as error:
            raise InputError(None, received=error) from error
        for split in ("train", "dev"):
            find_files(spec, folder, split)
    return tasks


def read_grid(values: absl_flags.FlagValues) -> list[tuple[float, int]]:
    """Returns the learning rate and the seed of each run; a single run without training.

    Raises:
        InputError: a learning rate is not above 0.
    """
    settings = flags.read_config(values, GridSettings)
    rates = dict.fromkeys(settings.learning_rates)
    grid = [(rate, seed) for rate in rates for seed in settings.seeds]
    return grid if values.do_train else grid[:1]


def run_folder(config: FinetuneConfig) -> str:
    """Returns the name of a run's directory, for example `lr-3e-05_seed-1`."""
    if not config.do_train:
        return "evaluated"
    return f"lr-{config.learning_rate:g}_seed-{config.random_seed}"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of the grid and its result; None if the run diverged."""

    learning_rate: float
    seed: int
    result: "Result | None"


def make_runs(
    config: FinetuneConfig, preparation: "Preparation", grid: Sequence[tuple[float, int]]
) -> Iterator[Run]:
    """Makes the runs in order; reads the results of finished runs.

    Args:
        config: the settings that all runs share.
        preparation: the preparation that all runs share.
        grid: the learning rate and the seed of each run.

    Raises:
        DivergedError: the only run of the grid diverged.
    """
    from tools.finetuning import training

    for number, (rate, seed) in enumerate(grid, 1):
        run = dataclasses.replace(config, learning_rate=rate, random_seed=seed)
        directory = config.output_dir / run_folder(run)
        print(f"[{number}/{len(grid)}] {directory}", file=sys.stderr)
        run = dataclasses.replace(run, output_dir=directory)
        try:
            result = training.finetune(run, preparation)
        except DivergedError as error:
            if len(grid) == 1:
                raise
            # A learning rate that is too high must not stop the other runs.
            print(f"{error}; this run is left out", file=sys.stderr)
            result = None
        yield Run(rate, seed, result)


def summarize(runs: Sequence[Run], main_metric: str) -> dict[str, Any]:
    """Returns means and deviations over seeds, and the learning rate with the best mean.

    Args:
        runs: all runs of a grid.
        main_metric: the score that decides the best learning rate.

    Returns:
        JSON values. `rates` is a list of `learning_rate`, `num_seeds` and `metrics`, which
        has the `mean` of each score and its sample standard deviation `std`, None for a
        single seed. `best_learning_rate` is the first of equally good ones. `runs` lists the
        runs. `diverged` has the learning rate and the seed of diverged runs; their rates are
        left out everywhere else.

    Raises:
        InputError: at least one run diverged at every learning rate.
    """
    diverged = [run for run in runs if run.result is None]
    runs = _without_rates(runs, {run.learning_rate for run in diverged})
    rates = []
    for rate in dict.fromkeys(run.learning_rate for run in runs):
        scores = [run.result.metrics for run in runs if run.learning_rate == rate]
        rates.append(
            {
                "learning_rate": rate,
                "num_seeds": len(scores),
                "metrics": {name: _spread([score[name] for score in scores]) for name in scores[0]},
            }
        )
    best = max(rates, key=lambda row: row["metrics"][main_metric]["mean"])
    return {
        "main_metric": main_metric,
        "rates": rates,
        "best_learning_rate": best["learning_rate"],
        "diverged": [{"learning_rate": run.learning_rate, "seed": run.seed} for run in diverged],
        "runs": [
            {
                "learning_rate": run.learning_rate,
                "seed": run.seed,
                "directory": run.result.directory.name,
                "metrics": dict(run.result.metrics),
                "counts": dict(run.result.counts),
            }
            for run in runs
        ],
    }


def _without_rates(runs: Sequence[Run], unfit: set[float]) -> list[Run]:
    """Leaves out the runs of learning rates at which a run diverged."""
    remaining = [run for run in runs if run.learning_rate not in unfit]
    if not remaining:
        listed = ",".join(f"{rate:g}" for rate in sorted(unfit))
        expected, hint = "a learning rate at which no seed diverges", "add a lower learning rate"
        raise InputError(Setting("learning_rates"), expected, listed, hint)
    return remaining


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std}


def table(summary: Mapping[str, Any]) -> list[str]:
    """Returns the table of a summary: scores times 100, and a star at the best learning rate."""
    rows, names = [], list(summary["rates"][0]["metrics"])
    for row in summary["rates"]:
        star = " *" if row["learning_rate"] == summary["best_learning_rate"] else ""
        cells = [_cell(**row["metrics"][name]) for name in names]
        rows.append([f"{row['learning_rate']:g}{star}", str(row["num_seeds"]), *cells])
    return aligned_lines(["learning rate", "seeds", *names], rows)


def _cell(mean: float, std: float | None) -> str:
    return f"{100 * mean:.2f}" + ("" if std is None else f" ± {100 * std:.2f}")


def _reserve_output_dir(config: FinetuneConfig, preparation: "Preparation") -> None:
    """Reserves the directory for this grid; learning rates and seeds may be added later."""
    run_config = preparation.run_config(config)
    for name in _OWN_SETTINGS:
        del run_config[name]
    run_config["kind"] = "finetuning"
    manifests.reserve_output_dir(config.output_dir, run_config)


def _import_backend() -> list[str]:
    os.environ["KERAS_BACKEND"] = "tensorflow"
    running.import_quietly("keras", "tensorflow")
    return running.print_devices("tensorflow")


def _finetune(values: absl_flags.FlagValues) -> None:
    grid = read_grid(values)
    config = read_config(values)

    from tools.finetuning.preparation import prepare

    # Errors in the input are reported before TensorFlow is imported.
    preparation = prepare(config)
    spec = preparation.spec
    print("\n".join(preparation.describe()), file=sys.stderr)
    chosen = running.choose_compute_dtype(values, _import_backend())
    config = dataclasses.replace(config, compute_dtype=chosen)

    from tools.finetuning import scoring, training

    training.check_teacher_cache(preparation, config)
    _reserve_output_dir(config, preparation)
    runs = list(make_runs(config, preparation, grid))
    summary = summarize(runs, spec.main_metric)
    summary = {
        "task": spec.name,
        "split": config.eval_split,
        "model": hub_id.display_name(config.model.absolute()),
        "num_eval_examples": len(preparation.evaluation.examples),
        "constant_score": scoring.constant_score(spec, preparation.evaluation.examples),
        **summary,
    }
    (config.output_dir / SUMMARY_FILE).write_json(summary)
    print(f"{spec.name}, {config.eval_split}, {len(preparation.evaluation.examples):,} examples")
    print("\n".join(table(summary) if config.do_train else _scores(runs[0])))
    if constant := summary["constant_score"]:
        print(f"best constant prediction: {spec.main_metric} {100 * constant:.2f}")
    print(f"runs and {SUMMARY_FILE}: {config.output_dir}")


def _scores(run: Run) -> Iterator[str]:
    for name, value in run.result.metrics.items():
        yield f"{name:<12} {100 * value:6.2f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    return running.run(define_flags(), _finetune, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
