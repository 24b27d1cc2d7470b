"""Distills a student: trains it from a teacher cache, from a live teacher, or from labels only.

run_distill --input_dir=CACHE --init_from=TEACHER --student_layers=2 --output_dir=STUDENT
"""

import dataclasses
import sys
from collections.abc import Sequence

from absl import flags as absl_flags

from pipeline.commands import flags, running
from pipeline.commands.settings import BackendSettings, ProcessSettings, RecipeSettings
from pipeline.distill.settings import DistillConfig, StudentConfig, short_run_settings

FLAGS = flags.FlagSet(
    (RecipeSettings, StudentConfig, DistillConfig, BackendSettings, ProcessSettings)
)
define_flags = FLAGS.define


def read_config(values: absl_flags.FlagValues) -> DistillConfig:
    """Returns the config of parsed flags.

    Args:
        values: parsed flags of `define_flags`. `--compute_dtype=auto` is not resolved here.

    Raises:
        InputError: settings contradict each other.
    """
    changes = (
        short_run_settings(flags.read_values(values, DistillConfig)) if values.run_local else {}
    )
    if changes:
        changed_values = ", ".join(f"{name}={value:g}" for name, value in changes.items())
        print(f"--run_local: {changed_values}", file=sys.stderr)
    student = flags.build_config(values, StudentConfig)
    return flags.read_config(values, DistillConfig, student=student, **changes)


def _distill(values: absl_flags.FlagValues) -> None:
    config = read_config(values)
    running.join_processes(values)
    devices = running.choose_backend(values, "tensorflow")
    policy = running.choose_compute_dtype(values, devices)
    config = dataclasses.replace(config, compute_dtype=policy)

    from pipeline.distill import replicas, training

    process = replicas.find_replicas(config.distribution)
    if process.distributed:
        print(f"process {process.process} of {process.num_processes}", file=sys.stderr)
    report = training.distill(config)
    if not process.is_primary:
        return
    print("\n".join(training.describe(config, report)))
    if config.do_train:
        print(f"student: {config.output_dir}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return running.run(define_flags(), _distill, __doc__, argv, with_recipes=True)


if __name__ == "__main__":
    sys.exit(main())
