"""Training and evaluation of a student on a cache."""

import contextlib
import dataclasses
import math
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tqdm

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.distill import batches, checkpoints, optimization, profiling, step_times
from pipeline.distill.cached_head import open_head
from pipeline.distill.checkpoints import Checkpoint, CheckpointFiles
from pipeline.distill.distiller import Distiller
from pipeline.distill.optimization import WarmupLinearDecay
from pipeline.distill.preparation import Preparation, prepare
from pipeline.distill.profiling import Profiler
from pipeline.distill.replicas import (
    Replicas,
    barrier,
    broadcast_from_primary,
    choose_streams,
    expect_equal_parts,
    find_replicas,
    make_gather,
    scope,
)
from pipeline.distill.run_log import RunLog
from pipeline.distill.settings import DistillConfig, StepRange
from pipeline.distill.step_times import Rates
from pipeline.distill.stopping import StopRequest
from pipeline.models import flops
from pipeline.models.formats import model_directory
from pipeline.storage import length_buckets, reader
from pipeline.storage import manifest as manifests
from pipeline.storage.cache_input import CacheInput, open_cache
from pipeline.storage.length_buckets import MicrobatchPlan
from pipeline.storage.manifest import EVAL, TRAIN, Manifest

# Number of inputs whose lengths decide the sizes of microbatches.
_SAMPLE_SIZE = 1024
# The fixed cost of a microbatch, in tokens: adding up gradients and starting kernels. On two cores
# it is 77 tokens for inputs of 512 tokens (2 layers x 256), and 430 for 64 tokens (4 x 192).
_MICROBATCH_COSTS = {"cpu": 512, "other": 8192}


def num_evaluated(config: DistillConfig, manifest: Manifest) -> int:
    """Returns the number of held-out examples that an evaluation computes."""
    return min(config.max_eval_steps * config.eval_batch_size, manifest.num_examples(EVAL))


class _EvaluationStop(keras.callbacks.Callback):
    """Ends an evaluation early if the run is asked to stop."""

    def __init__(self, stop: StopRequest) -> None:
        super().__init__()
        self._stop = stop
        self.stopped = False

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Checks whether to stop."""
        if self._stop.check():
            self.stopped = self.model.stop_evaluating = True


class _Evaluation:
    """Evaluation on the first `max_eval_steps` batches of the eval split."""

    def __init__(self, config: DistillConfig, cache: CacheInput, replicas: Replicas) -> None:
        size = config.eval_batch_size
        self._count = num_evaluated(config, cache.manifest)
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
        """Returns the report of a student; None if the evaluation was stopped."""
        start = time.perf_counter()
        callback = _EvaluationStop(stop)
        distiller.evaluate(
            self._batches, steps=self._steps, callbacks=[callback], verbose=0, return_dict=True
        )
        if callback.stopped:
            return None
        report = distiller.evaluation_report()
        seconds = time.perf_counter() - start
        return {**report, step_times.EXAMPLES: self._count / seconds}

    def run_alone(self, distiller: Distiller, stop: StopRequest) -> dict[str, float]:
        """Returns the report of an evaluation without training, or after the end of training.

        Raises:
            StoppedRunError: a signal asked to stop.
        """
        report = self.run(distiller, stop)
        if report is None:
            raise stop.evaluation_stop_error()
        return report


class _TrainingCallback(keras.callbacks.Callback):
    """Logs, evaluates and writes checkpoints while `fit` runs, and ends it when asked to stop.

    Only process 0 has a log and checkpoints.

    Attributes:
        start: the checkpoint that the run resumes from.
        last_report: the report of the last evaluation; empty before the first one.
    """

    def __init__(
        self,
        config: DistillConfig,
        replicas: Replicas,
        evaluation: _Evaluation | None,
        stop: StopRequest,
        *,
        steps_per_update: int,
        rates: Rates,
    ) -> None:
        super().__init__()
        self._steps_per_update = steps_per_update
        self._rates = rates
        self._config = config
        self._replicas = replicas
        self._evaluation = evaluation
        self._stop = stop
        self._log: RunLog | None = None
        self._checkpoints: CheckpointFiles | None = None
        step, due = broadcast_from_primary(replicas, self._find_start)
        self.start = Checkpoint(step, bool(due))
        self._metrics: dict[str, np.ndarray] = {}
        self._logged, self._clock = step, 0.0
        if 0 < step < config.num_train_steps:
            print(f"resuming from step {step}", file=sys.stderr)
        elif step == config.num_train_steps:
            print(f"already complete: trained to step {step}", file=sys.stderr)
        self._profiler: Profiler | None = None
        if self._log is not None and config.profile_steps is not None:
            self._profiler = self._open_profiler(config.profile_steps, self._log)
        self._bar = tqdm.tqdm(
            total=config.num_train_steps,
            initial=step,
            unit=" steps",
            desc="distill",
            disable=self._log is None or step == config.num_train_steps,
        )
        self.last_report: Mapping[str, float] = {}

    def _open_profiler(self, steps: StepRange, log: RunLog) -> Profiler | None:
        if steps.first > self.start.step:
            return Profiler(steps, log.directory / profiling.FOLDER)
        line = f"no trace of steps {steps}: the run resumes from step {self.start.step}"
        print(line, file=sys.stderr)
        return None

    def _find_start(self) -> tuple[int, bool]:
        """Opens checkpoints and log.

        Returns:
            the step of the newest checkpoint, 0 without one, and whether its evaluation is due.
        """
        config = self._config
        self._checkpoints = CheckpointFiles(config.output_dir, keep=config.keep_checkpoints)
        newest = self._checkpoints.find_newest() or Checkpoint(0)
        self._log = RunLog(config.output_dir, start=newest.step)
        return newest.step, newest.evaluation_due and not self._log.has_evaluation(newest.step)

    def restore(self, distiller: Distiller) -> None:
        """Restores the checkpoint, if any, and runs the evaluation that is due.

        Raises:
            StoppedRunError: a signal asked to stop in the evaluation.
        """
        step, output_dir = self.start.step, self._config.output_dir
        if step:
            with barrier(self._replicas):
                self._metrics = checkpoints.restore(output_dir, distiller, step)
            # Processes of one machine share the copy, so it is removed only after the barrier.
            checkpoints.checkpoint_path(output_dir, step).remove_mirror()
        due = self.start.evaluation_due and self._evaluation is not None
        if due and not self._evaluate(distiller, step):
            raise self._stop.stop_error(step)
        self._clock = time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Restores the sums of the metrics, which `fit` has just set to zero."""
        checkpoints.restore_metrics(self.model, self._metrics)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Starts the requested trace at its first step."""
        if self._profiler is not None and batch % self._steps_per_update == 0:
            self._profiler.before(self.start.step + batch // self._steps_per_update + 1)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Counts updates; logs, evaluates and saves when each is due."""
        updates, remainder = divmod(batch + 1, self._steps_per_update)
        if remainder:
            return
        step, config = self.start.step + updates, self._config
        self._bar.update()
        if self._profiler is not None:
            self._profiler.after(step, self._synchronize)
        stopping = self._stop.check()
        due = step == config.num_train_steps or step % config.save_checkpoints_steps == 0
        logging = due or step % config.log_steps == 0
        if (logging or stopping) and keras.config.backend() == "jax":
            # On JAX, Keras updates the variables only on this call.
            self.model.jax_state_sync()
        if logging:
            self._write_training_line(step)
        elif stopping:
            # This raises if the run has diverged, so that no checkpoint of it is written.
            self._read_losses(step)
        evaluation_due = due and self._evaluation is not None
        if evaluation_due and not stopping:
            stopping = not self._evaluate(self.model, step)
            evaluation_due = stopping
        if due or stopping:
            self._save(step, evaluation_due)
            self._clock = time.perf_counter()
        if stopping:
            raise self._stop.stop_error(step)

    def _synchronize(self) -> dict[str, float]:
        """Updates the variables and waits until the device has finished its work."""
        if keras.config.backend() == "jax":
            self.model.jax_state_sync()
        return self.model.training_report()

    def _save(self, step: int, evaluation_due: bool) -> None:
        # The barrier keeps all processes alive until process 0 has written.
        with barrier(self._replicas):
            # The log is uploaded before the checkpoint. So a resumed run never lacks lines of
            # steps before the checkpoint.
            if self._log is not None:
                self._log.publish()
            if self._checkpoints is not None:
                arrays = checkpoints.to_arrays(self.model)
                self._checkpoints.save(step, arrays, evaluation_due=evaluation_due)

    def _read_losses(self, step: int) -> dict[str, float]:
        report = self.model.training_report()
        if not math.isfinite(report["loss"]):
            values = (
                f"{name} {value}" for name, value in report.items() if not math.isfinite(value)
            )
            received = f"expected finite losses, received {', '.join(values)}"
            received = f"training diverged by step {step}: {received}"
            hint = (
                "lower `learning_rate` and choose another `output_dir`; checkpoints from before "
                "the divergence are kept"
            )
            raise InputError(Setting("learning_rate"), received=received, hint=hint)
        return report

    def _write_training_line(self, step: int) -> None:
        report = self._read_losses(step)
        seconds = time.perf_counter() - self._clock
        examples = (step - self._logged) * self._config.examples_per_step
        rate = float(WarmupLinearDecay.of(self._config)(step - 1))
        clock = self.model.input_clock
        times = self._rates.log_fields(examples, seconds, clock.seconds)
        clock.seconds = 0.0
        line = {**report, "learning_rate": rate, **times}
        if self._log is not None:
            self._log.write(step, TRAIN, line)
        self._bar.set_postfix({name: f"{value:.3f}" for name, value in report.items()})
        self.model.reset_metrics()
        self._logged, self._clock = step, time.perf_counter()

    def _evaluate(self, distiller: Distiller, step: int) -> bool:
        """Evaluates and logs the report; returns False if the evaluation was stopped."""
        report = self._evaluation.run(distiller, self._stop)
        distiller.reset_metrics()
        if report is None:
            return False
        self.last_report = report
        if self._log is not None:
            self._log.write(step, EVAL, report)
        return True

    def close(self) -> None:
        """Closes the progress bar, the trace and the log."""
        self._bar.close()
        if self._profiler is not None:
            self._profiler.close()
        if self._log is not None:
            self._log.close()

    def close_after_error(self) -> None:
        """Closes as `close` does, but prints errors, because raising would hide the first one."""
        try:
            self.close()
        except OSError as error:
            print(f"the last lines of the log were not written: {error}", file=sys.stderr)


def sample_lengths(cache: CacheInput) -> np.ndarray:
    """Returns the numbers of tokens of a sample of the inputs, int32 [N]."""
    return reader.sample_lengths(cache, TRAIN, count=_SAMPLE_SIZE)


def choose_microbatch_plan(
    config: DistillConfig, cache: CacheInput, replicas: Replicas, lengths: np.ndarray
) -> MicrobatchPlan:
    """Returns the sizes of groups and microbatches, given the lengths of a sample of inputs."""
    on_cpu = all(device.startswith("cpu") for device in keras.distribution.list_devices())
    return length_buckets.plan_microbatches(
        lengths,
        batch_size=config.train_batch_size,
        num_batches=config.gradient_accumulation_steps,
        max_seq_length=cache.manifest.max_seq_length,
        num_lengths=config.length_buckets,
        # Devices compute tokens in parallel, but each device has the fixed cost.
        microbatch_cost=_MICROBATCH_COSTS["cpu" if on_cpu else "other"] * replicas.num_devices,
        # Each device and each data stream has an equal part of a microbatch.
        multiple=math.lcm(replicas.num_devices, config.num_data_streams),
    )


def steps_per_update(config: DistillConfig, plan: MicrobatchPlan) -> int:
    """Returns the number of microbatches in an update."""
    return config.examples_per_step * plan.num_microbatches // plan.group_size


def _find_rates(run: Preparation, replicas: Replicas, lengths: np.ndarray) -> Rates:
    """Returns the cost of an example, given the lengths of a sample of inputs."""
    config, manifest = run.config, run.cache.manifest
    length = float(lengths.mean())
    positions = length
    if config.loss_positions == "masked":
        positions *= manifest.max_predictions_per_seq / manifest.max_seq_length
    teacher = None if run.teacher is None else run.teacher.config
    return Rates(
        tokens=length,
        flops=flops.step_flops(
            run.start.config,
            teacher,
            length,
            positions,
            embeds=run.objective.compares_embeddings,
        ),
        peak_flops=step_times.peak_flops(replicas.num_devices),
    )


def build_distiller(
    run: Preparation, steps_per_update: int = 1, *, num_devices: int = 1
) -> Distiller:
    """Returns the student of a run with its objective and optimizer, ready to `fit`."""
    config, teacher = run.config, None
    if run.teacher is not None:
        teacher = model_directory.load_masked_lm(
            run.teacher, dtype=config.compute_dtype, logits_dtype="float32"
        )
    cached_head = None
    if run.objective.comparison.from_states:
        cached_head = open_head(run.cache, run.start.config.vocab_size)
    distiller = Distiller(
        run.start.build(config, run.cache),
        run.objective,
        teacher=teacher,
        cached_head=cached_head,
        teacher_hidden_size=run.teacher_hidden_size,
        teacher_embedding_size=run.teacher_embedding_size,
        num_steps=config.num_train_steps,
        steps_per_update=steps_per_update,
        seed=config.random_seed,
        block_size=run.block_size(num_devices),
    )
    optimization.compile_distiller(distiller, config, steps_per_update=steps_per_update)
    return distiller


@contextlib.contextmanager
def _explain_damaged_records(cache: CacheInput) -> Iterator[None]:
    """Replaces TensorFlow's errors about records by an `InputError` that names the file."""
    try:
        yield
    except tf.errors.DataLossError as error:
        # A record's own checksum failed. The verification raises an error that names the shard.
        manifests.verify(cache.directory, cache.manifest, full=True)
        received = f"a record cannot be read ({error.message})"
        hint = "run offline_distill verify_cache"
        raise InputError(cache.directory, received=received, hint=hint) from error
    except tf.errors.InvalidArgumentError as error:
        # The checksum matches but the content is malformed, so the writer was at fault.
        expected = f"records as {manifests.MANIFEST_FILE} describes them"
        hint = "run offline_distill verify_cache"
        raise InputError(cache.directory, expected, "malformed records", hint) from error


def choose_for_devices(config: DistillConfig, replicas: Replicas) -> DistillConfig:
    """Returns the settings of a run, with defaults that depend on its devices and processes."""
    return dataclasses.replace(
        config,
        num_data_streams=choose_streams(config, replicas),
        length_buckets=config.length_buckets or _choose_length_buckets(config.output_dir),
    )


def _choose_length_buckets(output_dir: Location | None) -> int:
    """Returns the number of lengths: the recorded one of a resumed run, else by the devices."""
    if output_dir is not None and (output_dir / manifests.RUN_CONFIG_FILE).is_file():
        recorded = (output_dir / manifests.RUN_CONFIG_FILE).read_json().get("length_buckets")
        if isinstance(recorded, int) and recorded > 0:
            return recorded
    return length_buckets.choose_num_lengths(keras.distribution.list_devices())


def distill(config: DistillConfig) -> Mapping[str, float]:
    """Trains and evaluates a student; resumes an interrupted run.

    Returns:
        the metrics of the last evaluation; empty without one.

    Raises:
        InputError: the cache, the student or the directory is invalid. Valid checkpoints
            stay.
        StoppedRunError: a signal asked to stop; a checkpoint is written.
    """
    replicas = find_replicas(config.distribution)
    config = choose_for_devices(config, replicas)
    run = prepare(config)
    cache = run.cache
    for source in (run.start.source, run.teacher):
        if source is not None:
            source.print_unused()
    expect_equal_parts(config, replicas, cache.manifest)
    if cache.vocab_subset is not None:
        print(cache.vocab_subset.describe(cache.manifest), file=sys.stderr)
    if config.do_eval:
        for line in cache.manifest.evaluation_notes():
            print(line, file=sys.stderr)
    if (line := run.start.describe_new_head()) is not None:
        print(line, file=sys.stderr)
    if config.do_train and not run.objective.trains_head:
        names = ", ".join(run.objective.weights)
        line = f"note: the losses ({names}) do not train the masked-LM head, so it stays unchanged"
        print(f"{line}; add masked_lm to train it", file=sys.stderr)
    if config.do_train:
        manifests.check_output_dir(config.output_dir, run.run_config())
    with barrier(replicas):
        # The processes divide the shards, so that each shard is verified once.
        splits = {
            split: shards[replicas.process :: replicas.num_processes]
            for split, shards in cache.manifest.splits.items()
        }
        own = dataclasses.replace(cache.manifest, splits=splits)
        manifests.verify(cache.directory, own, full=config.verify == "full")
    for line in run.temperature_warnings():
        print(line, file=sys.stderr)
    if keras.config.backend() == "jax":
        # TensorFlow only reads records here, and must not take the GPU's memory from JAX.
        tf.config.set_visible_devices([], "GPU")
    keras.utils.set_random_seed(config.random_seed)
    if config.deterministic and keras.config.backend() == "tensorflow":
        tf.config.experimental.enable_op_determinism()
    with _explain_damaged_records(cache), reader.raising_copy_errors(cache), scope(replicas):
        return _run(run, replicas)


def _run(run: Preparation, replicas: Replicas) -> Mapping[str, float]:
    config, cache, evaluation = run.config, run.cache, None
    if config.do_eval and cache.manifest.num_examples(EVAL):
        evaluation = _Evaluation(config, cache, replicas)
    if not config.do_train:
        with StopRequest() as stop:
            distiller = build_distiller(run, num_devices=replicas.num_devices)
            return evaluation.run_alone(distiller, stop)
    lengths = sample_lengths(cache)
    plan = choose_microbatch_plan(config, cache, replicas, lengths)
    count = steps_per_update(config, plan)
    distiller = build_distiller(run, count, num_devices=replicas.num_devices)
    with barrier(replicas):
        if replicas.is_primary:
            manifests.reserve_output_dir(config.output_dir, run.run_config())
    rates = _find_rates(run, replicas, lengths)
    report = _train(run, replicas, plan, distiller, evaluation, rates)
    with barrier(replicas):
        if replicas.is_primary:
            if cache.vocab_subset is None:
                manifests.copy_tokenizer(cache.directory, cache.manifest, config.output_dir)
            else:
                cache.vocab_subset.write_tokenizer(config.output_dir)
            model_directory.save_hf(config.output_dir, distiller.student)
    return report


def _train(
    run: Preparation,
    replicas: Replicas,
    plan: MicrobatchPlan,
    distiller: Distiller,
    evaluation: _Evaluation | None,
    rates: Rates,
) -> Mapping[str, float]:
    """Trains until all updates are done and returns the last report."""
    stop, steps = StopRequest(), steps_per_update(run.config, plan)
    progress = _TrainingCallback(
        run.config, replicas, evaluation, stop, steps_per_update=steps, rates=rates
    )
    with stop:
        try:
            progress.restore(distiller)
            if progress.start.step < run.config.num_train_steps:
                _fit(run, replicas, plan, distiller, progress)
        except BaseException:
            progress.close_after_error()
            raise
        with barrier(replicas):
            progress.close()
        if not progress.last_report and evaluation is not None:
            return evaluation.run_alone(distiller, stop)
    return progress.last_report


def _fit(
    run: Preparation,
    replicas: Replicas,
    plan: MicrobatchPlan,
    distiller: Distiller,
    progress: _TrainingCallback,
) -> None:
    """Fits the remaining updates on this process's rows of each microbatch."""
    config, start = run.config, progress.start.step
    updates = config.num_train_steps - start
    calls = updates * steps_per_update(config, plan)
    order = {
        "seed": config.random_seed,
        "start": start * config.examples_per_step,
        "shuffle_buffer_size": config.shuffle_buffer_size,
        "streams": replicas.streams(config.num_data_streams),
    }
    # `take` ends the dataset. Otherwise it would prefetch while the process ends.
    if replicas.num_processes == 1:
        microbatches = batches.training_batches(run.cache, plan, **order).take(calls)
    else:
        groups = batches.training_groups(run.cache, plan, **order)
        groups = groups.take(updates * config.examples_per_step // plan.group_size)
        microbatches = batches.synchronized_batches(
            groups.as_numpy_iterator(),
            run.cache.manifest,
            num_lengths=plan.num_lengths,
            gather=make_gather(),
        )
    fitting = {"steps_per_epoch": calls, "callbacks": [progress], "verbose": 0, "shuffle": False}
    try:
        with warnings.catch_warnings():
            # A loss on a layer gives no gradient for the layers after it.
            warnings.filterwarnings("ignore", "Gradients do not exist for variables")
            distiller.fit(microbatches, **fitting)
    except KeyboardInterrupt as interrupt:
        saved = checkpoints.checkpoint_steps(config.output_dir)[-1:] or [0]
        raise KeyboardInterrupt(
            f"interrupted; re-run the command to resume from step {saved[0]}, the last "
            f"checkpoint (--save_checkpoints_steps={config.save_checkpoints_steps})"
        ) from interrupt


def describe(config: DistillConfig, report: Mapping[str, float]) -> Iterator[str]:
    """Yields the lines of the summary of an evaluation; none for an empty report."""
    if report:
        manifest = open_cache(config.input_dir, config.input_file).manifest
        yield f"evaluation on {num_evaluated(config, manifest):,} held-out examples:"
    for name, value in report.items():
        yield f"{name:<22} {value:.4f}"
