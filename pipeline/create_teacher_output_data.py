"""Captures a teacher: runs it once over masked examples and stores its targets.

create_teacher_output_data --input_dir=EXAMPLES --teacher=MODEL --output_dir=CACHE
"""

import dataclasses
import sys
from collections.abc import Sequence

from absl import flags as absl_flags

from pipeline.base.compute_dtype import AUTO, BFLOAT16, FLOAT32
from pipeline.base.errors import InputError, Setting
from pipeline.commands import flags, running
from pipeline.commands.settings import BackendSettings, ProcessSettings, RunnerSettings
from pipeline.runners.ray import RayConfig
from pipeline.teacher.settings import TeacherCacheConfig

FLAGS = flags.FlagSet(
    (TeacherCacheConfig, BackendSettings, ProcessSettings, RunnerSettings, RayConfig)
)
define_flags = FLAGS.define


def _create(values: absl_flags.FlagValues) -> None:
    config = flags.read_config(values, TeacherCacheConfig, ray=running.choose_runner(values))
    running.join_processes(values)
    if config.ray is None:
        devices = running.choose_backend(values)
        policy = running.choose_compute_dtype(values, devices)
        config = dataclasses.replace(config, compute_dtype=policy)
    elif config.compute_dtype == AUTO:
        expected = f"{FLOAT32} or {BFLOAT16} with `runner`=ray, whose nodes may differ"
        raise InputError(Setting("compute_dtype"), expected, AUTO)
    else:
        # Only the jobs use the devices, so this process initializes none.
        running.import_backend(values)

    from pipeline.teacher import capture, summary

    manifest = capture.create_teacher_cache(config)
    if manifest is None:
        print(f"task {config.task_index} of {config.num_tasks} is done; others are not")
        return
    print("\n".join(summary.describe(manifest)))
    for line in summary.describe_mass(config.output_dir, manifest):
        print(line)
    print(f"teacher cache: {config.output_dir}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return running.run(define_flags(), _create, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
