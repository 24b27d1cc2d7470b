"""Stage 2: a student is trained from a cache."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping

import keras
import numpy as np
import tensorflow as tf

from pipeline.base.errors import InputError
from pipeline.distill import batches, checkpoints, optimization
from pipeline.distill.batches import Batch
from pipeline.distill.checkpoints import Checkpoint, CheckpointFiles
from pipeline.distill.distiller import Distiller
from pipeline.distill.preparation import Preparation, prepare
from pipeline.distill.progress import EndsEarly, TrainingCallback
from pipeline.distill.replicas import (
    Replicas,
    barrier,
    broadcast_from_primary,
    choose_streams,
    expect_equal_parts,
    find_replicas,
    make_gather,
    microbatch_multiple,
    scope,
    select_shards,
)
from pipeline.distill.run_log import RunLog
from pipeline.distill.settings import DistillConfig
from pipeline.distill.stopping import StopRequest
from pipeline.models.formats import model_directory
from pipeline.storage import manifest as manifests
from pipeline.storage import reader
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.length_buckets import Chunking
from pipeline.storage.manifest import EVAL


def _find_chunking(config: DistillConfig, cache: CacheInput, replicas: Replicas) -> Chunking:
    devices = keras.distribution.list_devices()
    return batches.plan_microbatches(
        cache,
        batch_size=config.train_batch_size,
        num_batches=config.gradient_accumulation_steps,
        buckets=config.length_buckets,
        on_cpu=all(device.startswith("cpu") for device in devices),
        num_devices=replicas.num_devices,
        multiple=microbatch_multiple(config, replicas),
    )


def _steps_per_update(config: DistillConfig, chunking: Chunking) -> int:
    """Returns how many microbatches make an update."""
    return config.examples_per_step * chunking.num_chunks // chunking.group_size


def build_distiller(run: Preparation, steps_per_update: int = 1) -> Distiller:
    """Returns the student of a run with its objective and optimizer, ready to `fit`.

    Args:
        run: what was found and checked.
        steps_per_update: calls of the optimizer that make one update.
    """
    config, teacher = run.config, None
    if run.teacher is not None:
        teacher = model_directory.load_masked_lm(
            run.teacher, dtype=config.compute_dtype, logits_dtype="float32"
        )
    distiller = Distiller(
        run.start.build(config),
        run.objective,
        teacher=teacher,
        teacher_hidden_size=run.teacher_hidden_size,
        num_steps=config.num_train_steps,
        steps_per_update=steps_per_update,
        seed=config.random_seed,
    )
    optimization.compile_distiller(distiller, config, steps_per_update=steps_per_update)
    return distiller


class _Evaluation:
    """The eval split, or as much of it as is asked for, in batches that are made once.

    Args:
        config: what was asked for.
        cache: has eval examples.
        replicas: what computes.
    """

    def __init__(self, config: DistillConfig, cache: CacheInput, replicas: Replicas) -> None:
        size = config.eval_batch_size
        self._count = min(config.max_eval_steps * size, cache.manifest.num_examples(EVAL))
        self._steps = -(-self._count // size)
        self._batches = batches.evaluation_batches(
            cache,
            batch_size=size,
            max_steps=self._steps,
            buckets=config.length_buckets,
            process=replicas.process,
            num_processes=replicas.num_processes,
        )

    def run(self, distiller: Distiller, stop: StopRequest) -> dict[str, float] | None:
        """Returns the report of a student, None if it was stopped before it was complete."""
        begun = time.perf_counter()
        ends = EndsEarly(stop)
        distiller.evaluate(
            self._batches, steps=self._steps, callbacks=[ends], verbose=0, return_dict=True
        )
        if ends.stopped:
            return None
        report = distiller.evaluation_report()
        seconds = time.perf_counter() - begun
        return {**report, "examples_per_second": self._count / seconds}

    def run_alone(self, distiller: Distiller, stop: StopRequest) -> dict[str, float]:
        """Returns the report where nothing else is left to be done.

        Raises:
            StoppedRunError: a signal asked to stop.
        """
        report = self.run(distiller, stop)
        if report is None:
            raise stop.stopped_evaluation()
        return report


def _find_evaluation(
    config: DistillConfig, cache: CacheInput, replicas: Replicas
) -> _Evaluation | None:
    if not (config.do_eval and cache.manifest.num_examples(EVAL)):
        return None
    return _Evaluation(config, cache, replicas)


@contextlib.contextmanager
def _broken_records_told(cache: CacheInput) -> Iterator[None]:
    """Raises, in place of TensorFlow's errors, an `InputError` that says where to look."""
    try:
        yield
    except tf.errors.DataLossError as error:
        # A record's own checksum failed: this names the shard.
        manifests.verify(cache.directory, cache.manifest, full=True)
        raise InputError(cache.directory, received=error.message) from error
    except tf.errors.InvalidArgumentError as error:
        # A record that is whole, and wrong: whoever made the shard made its checksums, too.
        raise InputError(
            cache.directory,
            f"records as {manifests.MANIFEST_FILE} describes them",
            "another",
            hint="run offline_distill verify_cache",
        ) from error


def distill(config: DistillConfig) -> Mapping[str, float]:
    """Trains a student, or finishes a run that was killed, and evaluates it.

    Args:
        config: what was asked for.

    Returns:
        what the last evaluation measured; empty without one.

    Raises:
        InputError: the cache, the student or the directory is not as it must
            be. Checkpoints that are whole stay.
        StoppedRunError: a signal asked to stop; a checkpoint is written.
    """
    replicas = find_replicas(config.distribution)
    config = dataclasses.replace(config, num_data_streams=choose_streams(config, replicas))
    run = prepare(config)
    cache = run.cache
    expect_equal_parts(config, replicas, cache.manifest)
    if cache.vocab_subset is not None:
        print(cache.vocab_subset.describe(cache.manifest), file=sys.stderr)
    if config.do_train:
        manifests.check_output_dir(config.output_dir, run.request())
    with barrier(replicas):
        own = select_shards(cache.manifest, replicas)
        manifests.verify(cache.directory, own, full=config.verify == "full")
    if keras.config.backend() == "jax":
        # TensorFlow only reads records here; it would take the GPU's memory from JAX.
        tf.config.set_visible_devices([], "GPU")
    keras.utils.set_random_seed(config.random_seed)
    if config.deterministic and keras.config.backend() == "tensorflow":
        tf.config.experimental.enable_op_determinism()
    with _broken_records_told(cache), reader.copy_errors_raised(cache), scope(replicas):
        return _run(run, replicas)


def _run(run: Preparation, replicas: Replicas) -> Mapping[str, float]:
    config, cache = run.config, run.cache
    evaluation = _find_evaluation(config, cache, replicas)
    if not config.do_train:
        with StopRequest() as stop:
            return evaluation.run_alone(build_distiller(run), stop)
    chunking = _find_chunking(config, cache, replicas)
    distiller = build_distiller(run, _steps_per_update(config, chunking))
    with barrier(replicas):
        if replicas.writes:
            manifests.reserve_output_dir(config.output_dir, run.request())
    report = _train(run, replicas, chunking, distiller, evaluation)
    with barrier(replicas):
        if replicas.writes:
            _write_model(cache, config, distiller)
    return report


def _write_model(cache: CacheInput, config: DistillConfig, distiller: Distiller) -> None:
    if cache.vocab_subset is None:
        manifests.copy_tokenizer(cache.directory, cache.manifest, config.output_dir)
    else:
        cache.vocab_subset.write_tokenizer(config.output_dir)
    model_directory.save_hf(config.output_dir, distiller.student)


def _train(
    run: Preparation,
    replicas: Replicas,
    chunking: Chunking,
    distiller: Distiller,
    evaluation: _Evaluation | None,
) -> Mapping[str, float]:
    """Makes all updates that are not made yet and returns the last report."""
    config = run.config
    kept, log, found = _find_start(config, replicas)
    start, metrics = found.step, _restore(config, replicas, distiller, found.step)
    with StopRequest() as stop:
        progress = TrainingCallback(
            config,
            replicas,
            evaluation,
            log,
            kept,
            stop,
            start=start,
            metrics=metrics,
            steps_per_update=_steps_per_update(config, chunking),
        )
        try:
            if found.evaluation_due:
                progress.catch_up(distiller)
            if start < config.num_train_steps:
                _fit(run, replicas, chunking, distiller, progress, start)
        except BaseException:
            progress.close_after_error()
            raise
        with barrier(replicas):
            progress.close()
        report: Mapping[str, float] = progress.last_report
        if not report and evaluation is not None:
            report = evaluation.run_alone(distiller, stop)
    return report


def _restore(
    config: DistillConfig, replicas: Replicas, distiller: Distiller, step: int
) -> dict[str, np.ndarray]:
    """Goes back to a checkpoint, if there is one, and returns its sums of what is measured."""
    if not step:
        return {}
    with barrier(replicas):
        metrics = checkpoints.restore(config.output_dir, distiller, step)
    # Processes of one machine have read the same copy.
    checkpoints.forget_copy(config.output_dir, step)
    if step < config.num_train_steps:
        print(f"continuing from step {step}", file=sys.stderr)
    return metrics


def _find_start(
    config: DistillConfig, replicas: Replicas
) -> tuple[CheckpointFiles | None, RunLog | None, Checkpoint]:
    """Returns where checkpoints and lines go, if this process writes, and where all go on."""
    kept = log = None

    def find() -> tuple[int, bool]:
        nonlocal kept, log
        kept = CheckpointFiles(config.output_dir, keep=config.keep_checkpoints)
        found = kept.find_newest() or Checkpoint(0)
        log = RunLog(config.output_dir, start=found.step)
        return found.step, found.evaluation_due and not log.has_evaluation(found.step)

    step, due = broadcast_from_primary(replicas, find, size=2)
    return kept, log, Checkpoint(step, bool(due))


def _training_batches(
    run: Preparation, replicas: Replicas, chunking: Chunking, start: int
) -> tf.data.Dataset | Iterator[Batch]:
    """Returns the microbatches from an update on to the last one: this process's rows of them."""
    config = run.config
    updates = config.num_train_steps - start
    settings = {
        "seed": config.random_seed,
        "start": start * config.examples_per_step,
        "shuffle_buffer_size": config.shuffle_buffer_size,
        "streams": replicas.streams(config.num_data_streams),
    }
    # An endless stream would still be read ahead while the process ends.
    if replicas.num_processes == 1:
        microbatches = batches.training_batches(run.cache, chunking, **settings)
        return microbatches.take(updates * _steps_per_update(config, chunking))
    groups = batches.training_groups(run.cache, chunking, **settings)
    groups = groups.take(updates * config.examples_per_step // chunking.group_size)
    return batches.agreed_batches(
        groups.as_numpy_iterator(),
        run.cache.manifest,
        num_lengths=chunking.num_lengths,
        gather=make_gather(),
    )


def _fit(
    run: Preparation,
    replicas: Replicas,
    chunking: Chunking,
    distiller: Distiller,
    progress: TrainingCallback,
    start: int,
) -> None:
    """Makes the updates from `start` on."""
    config = run.config
    calls = (config.num_train_steps - start) * _steps_per_update(config, chunking)
    microbatches = _training_batches(run, replicas, chunking, start)
    try:
        distiller.fit(
            microbatches, steps_per_epoch=calls, callbacks=[progress], verbose=0, shuffle=False
        )
    except KeyboardInterrupt as interrupt:
        saved = checkpoints.checkpoint_steps(config.output_dir)[-1:] or [0]
        raise KeyboardInterrupt(
            f"interrupted; the same command continues from step {saved[0]}, the last "
            f"checkpoint (--save_checkpoints_steps={config.save_checkpoints_steps})"
        ) from interrupt


def describe(report: Mapping[str, float]) -> Iterator[str]:
    """Yields the lines of the summary."""
    for name, value in report.items():
        yield f"{name:<22} {value:.4f}"
