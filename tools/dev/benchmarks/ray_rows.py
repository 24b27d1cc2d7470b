"""Stages 1a and 1b, whole processes, on a Ray of this machine alone against without."""

import functools
import statistics
import time
from collections.abc import Iterator
from typing import Any

from pipeline.runners import local
from pipeline.runners.ray import RayConfig, RayWorkers
from tools.dev.benchmarks import processes
from tools.dev.benchmarks.inputs import Inputs
from tools.dev.benchmarks.measurement import Row, alternate, compared


def _start(inputs: Inputs) -> float:
    """Returns the seconds in which Ray begins, a job runs that does nothing, and Ray ends."""
    directory = inputs.new_directory("started")
    directory.mkdir()
    begun = time.perf_counter()
    with RayWorkers(RayConfig(), directory) as workers:
        list(workers.run(abs, [-1]))
    seconds = time.perf_counter() - begun
    inputs.remove(directory)
    return seconds


def _seconds(inputs: Inputs, command: str, **settings: Any) -> float:
    output = inputs.new_directory("made")
    seconds = processes.run(command, output_dir=output, **settings).seconds
    inputs.remove(output)
    return seconds


def rows(inputs: Inputs) -> Iterator[Row]:
    """Yields what a runner costs where it gains nothing."""
    if not inputs.has("ray"):
        return
    cpus = local.num_cpus()
    starts = [_start(inputs) for _ in range(inputs.repeats)]
    yield Row(name="Ray, begun and ended", unit="s", ours=statistics.median(starts))
    masking = {
        "input_dir": inputs.corpus,
        "vocab_file": inputs.vocab,
        "max_seq_length": inputs.max_seq_length,
    }
    teacher = {"input_dir": inputs.examples(mixed=False).directory, "teacher": inputs.teacher}
    # The same processes and threads with and without.
    ways = (
        ("1a", "create_pretraining_data", masking, {"max_workers": cpus}, 1),
        ("1b", "create_teacher_output_data", teacher, {}, cpus),
    )
    for stage, command, settings, without, cpus_per_job in ways:
        run = functools.partial(_seconds, inputs, command, **settings)
        on_ray = functools.partial(run, runner="ray", cpus_per_job=cpus_per_job)
        yield compared(
            alternate(on_ray, functools.partial(run, **without), inputs.repeats),
            larger_is_better=False,
            name=f"stage {stage} on Ray, whole process",
            unit="s",
            against="--runner=local, as many processes and threads",
            note=f"{statistics.median(starts):.1f} s of it begin and end Ray",
        )
