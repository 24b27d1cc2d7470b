"""Stage 2: a student is trained from a cache."""

import pathlib
import sys
import time
from collections.abc import Iterator, Mapping

import keras
import tensorflow as tf

from pipeline.distill import checkpoint_files, optimization, targets, training_state
from pipeline.distill.checkpoint_files import Checkpoint, CheckpointFiles
from pipeline.distill.distiller import Distiller
from pipeline.distill.preparation import Preparation, prepare
from pipeline.distill.progress import EndsEarly, Progress
from pipeline.distill.run_log import RunLog
from pipeline.distill.settings import DistillConfig
from pipeline.distill.stopping import StopRequest
from pipeline.errors import InputError
from pipeline.models import checkpoints
from pipeline.storage import manifest as manifests
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.length_buckets import Chunking
from pipeline.storage.manifest import EVAL


def _find_chunking(config: DistillConfig, cache: CacheInput) -> Chunking:
    devices = keras.distribution.list_devices()
    return targets.plan_chunks(
        cache,
        batch_size=config.train_batch_size,
        num_batches=config.gradient_accumulation_steps,
        buckets=config.length_buckets,
        on_cpu=all(device.startswith("cpu") for device in devices),
    )


def _steps_per_update(config: DistillConfig, chunking: Chunking) -> int:
    """Returns how many chunks make an update."""
    return config.examples_per_step * chunking.num_chunks // chunking.group_size


def build_distiller(run: Preparation, steps_per_update: int = 1) -> Distiller:
    """Returns the student of a run with its objective and optimizer, ready to `fit`.

    Args:
        run: what was found and checked.
        steps_per_update: calls of the optimizer that make one update.
    """
    config, teacher = run.config, None
    if run.teacher is not None:
        teacher = checkpoints.load_masked_lm(
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
    """

    def __init__(self, config: DistillConfig, cache: CacheInput) -> None:
        size = config.eval_batch_size
        self._count = min(config.max_eval_steps * size, cache.manifest.num_examples(EVAL))
        self._steps = -(-self._count // size)
        self._batches = targets.evaluation_batches(
            cache, batch_size=size, max_steps=self._steps, buckets=config.length_buckets
        )

    def run(self, distiller: Distiller, stop: StopRequest | None = None) -> dict[str, float] | None:
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


def _find_evaluation(config: DistillConfig, cache: CacheInput) -> _Evaluation | None:
    if not (config.do_eval and cache.manifest.num_examples(EVAL)):
        return None
    return _Evaluation(config, cache)


def distill(config: DistillConfig) -> Mapping[str, float]:
    """Trains a student, or finishes a run that was killed, and evaluates it.

    Args:
        config: what was asked for.

    Returns:
        what the last evaluation measured; empty without one.

    Raises:
        InputError: the cache, the student or the directory is not as it must
            be. Checkpoints that are whole stay.
    """
    run = prepare(config)
    cache, request = run.cache, run.request()
    if cache.vocab_subset is not None:
        print(cache.vocab_subset.describe(cache.manifest), file=sys.stderr)
    if config.do_train:
        manifests.check_claim(config.output_dir, request, flag="--output_dir")
    manifests.verify(cache.directory, cache.manifest, full=config.verify == "full")
    if keras.config.backend() == "jax":
        # TensorFlow only reads records here; it would take the GPU's memory from JAX.
        tf.config.set_visible_devices([], "GPU")
    keras.utils.set_random_seed(config.random_seed)
    if config.deterministic and keras.config.backend() == "tensorflow":
        tf.config.experimental.enable_op_determinism()
    evaluation = _find_evaluation(config, cache)
    try:
        if not config.do_train:
            return evaluation.run(build_distiller(run))
        chunking = _find_chunking(config, cache)
        distiller = build_distiller(run, _steps_per_update(config, chunking))
        manifests.claim(config.output_dir, request, flag="--output_dir")
        return _train(run, chunking, distiller, evaluation)
    except tf.errors.DataLossError as error:
        # A record's own checksum failed: this names the shard.
        manifests.verify(cache.directory, cache.manifest, full=True)
        raise InputError(f"{cache.flag}: {cache.directory}: {error.message}") from error


def _train(
    run: Preparation,
    chunking: Chunking,
    distiller: Distiller,
    evaluation: _Evaluation | None,
) -> Mapping[str, float]:
    config, cache = run.config, run.cache
    kept = CheckpointFiles(config.output_dir, keep=config.keep_checkpoints)
    found = kept.find_newest() or Checkpoint(0)
    start, metrics = found.step, {}
    if start:
        metrics = training_state.restore(config.output_dir, distiller, start)
        if start < config.num_train_steps:
            print(f"continuing from step {start}", file=sys.stderr)
    with StopRequest() as stop:
        progress = Progress(
            config,
            evaluation,
            RunLog(config.output_dir, start=start),
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
                _fit(run, chunking, distiller, progress, start)
        finally:
            progress.close()
    report: Mapping[str, float] = progress.last_report
    if not report and evaluation is not None:
        report = evaluation.run(distiller)
    if cache.vocab_subset is None:
        manifests.copy_tokenizer(cache.directory, cache.manifest, config.output_dir)
    else:
        cache.vocab_subset.write_tokenizer(config.output_dir)
    checkpoints.save_hf(pathlib.Path(config.output_dir), distiller.student)
    return report


def _fit(
    run: Preparation, chunking: Chunking, distiller: Distiller, progress: Progress, start: int
) -> None:
    """Makes the updates from `start` on."""
    config = run.config
    remaining = (config.num_train_steps - start) * _steps_per_update(config, chunking)
    batches = targets.training_batches(
        run.cache,
        chunking,
        seed=config.random_seed,
        start=start * config.examples_per_step,
        shuffle_buffer_size=config.shuffle_buffer_size,
    )
    # An endless stream would still be read ahead while the process ends.
    batches = batches.take(remaining)
    try:
        distiller.fit(
            batches, steps_per_epoch=remaining, callbacks=[progress], verbose=0, shuffle=False
        )
    except KeyboardInterrupt as interrupt:
        saved = checkpoint_files.checkpoint_steps(config.output_dir)[-1:] or [0]
        raise KeyboardInterrupt(
            f"interrupted; the same command continues from step {saved[0]}, the last "
            f"checkpoint (--save_checkpoints_steps={config.save_checkpoints_steps})"
        ) from interrupt


def describe(report: Mapping[str, float]) -> Iterator[str]:
    """Yields the lines of the summary."""
    for name, value in report.items():
        yield f"{name:<22} {value:.4f}"
