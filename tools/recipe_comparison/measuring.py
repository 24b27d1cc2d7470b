"""Step times and evaluations, which run in a separate process (`commands.SeparateProcess`)."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf

from pipeline import run_distill
from pipeline.base.location import Location
from pipeline.commands import running
from pipeline.distill import batches, training
from pipeline.distill.preparation import prepare
from pipeline.distill.replicas import find_replicas
from pipeline.distill.settings import DistillConfig
from tools.measurement import time_alternately
from tools.student_evaluation import evaluate

# The number of untimed first steps, which compile.
_WARM_UP = 4


def step_seconds(runs: Sequence[Sequence[str]], *, repeats: int) -> list[float]:
    """Returns the median step time of each run in seconds; their steps alternate.

    The time includes reading the input and excludes compiling.

    Args:
        runs: the `run_distill` arguments of each run.
        repeats: number of timed steps of each run.

    Raises:
        InputError: a run cannot start.
    """
    steps = [_make_step(_read_config(arguments)) for arguments in runs]
    times = time_alternately(steps, repeats, warm_up=_WARM_UP)
    keras.backend.clear_session()
    return [statistics.median(seconds) for seconds in times]


def _read_config(arguments: Sequence[str]) -> DistillConfig:
    values = run_distill.define_flags()
    values(["run_distill", *arguments])
    config = run_distill.read_config(values)
    dtype = running.choose_compute_dtype(values, keras.distribution.list_devices())
    return dataclasses.replace(config, compute_dtype=dtype)


def _make_step(config: DistillConfig) -> Callable[[], None]:
    """Returns a function that runs the next step of a run and waits for its result."""
    replicas = find_replicas(config.distribution)
    config = training.choose_for_devices(config, replicas)
    run = prepare(config)
    keras.utils.set_random_seed(config.random_seed)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    lengths = training.sample_lengths(run.cache)
    plan = training.choose_microbatch_plan(config, run.cache, replicas, lengths)
    count = training.steps_per_update(config, plan)
    distiller = training.build_distiller(run, count)
    order = {"seed": config.random_seed, "shuffle_buffer_size": config.shuffle_buffer_size}
    batch_iterator = iter(batches.training_batches(run.cache, plan, start=0, **order))
    train = distiller.make_train_function() or distiller.train_function

    def step() -> None:
        for _ in range(count):
            metrics = train(batch_iterator)
        keras.tree.map_structure(float, metrics)

    return step


def evaluate_on(
    student: Location, caches: Mapping[str, Location], max_steps: int
) -> dict[str, dict[str, float]]:
    """Returns the evaluation reports of a student on several caches, by the caches' names."""
    return {name: dict(evaluate(student, cache, max_steps)) for name, cache in caches.items()}
