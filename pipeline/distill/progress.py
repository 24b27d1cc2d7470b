"""What happens while `fit` runs: lines of the log, evaluations, checkpoints, and its end."""

import math
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

import keras
import numpy as np
import tqdm

from pipeline.base.errors import InputError, Setting
from pipeline.distill import checkpoints, optimization
from pipeline.distill.checkpoints import CheckpointFiles
from pipeline.distill.distiller import Distiller
from pipeline.distill.replicas import Replicas, barrier
from pipeline.distill.run_log import RunLog
from pipeline.distill.settings import DistillConfig
from pipeline.distill.stopping import StopRequest
from pipeline.storage.manifest import EVAL, TRAIN


class Evaluation(Protocol):
    """What a student is evaluated on."""

    def run(self, distiller: Distiller, stop: StopRequest) -> dict[str, float] | None:
        """Returns the report of a student, None if it was stopped before it was complete."""


class EndsEarly(keras.callbacks.Callback):
    """Ends an evaluation, which may take long, where the run is asked to stop."""

    def __init__(self, stop: StopRequest) -> None:
        super().__init__()
        self._stop = stop
        self.stopped = False

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """Looks whether to stop."""
        if self._stop.check():
            self.stopped = self.model.stop_evaluating = True


class TrainingCallback(keras.callbacks.Callback):
    """Logs, evaluates and writes checkpoints while `fit` runs, and ends it when asked to stop.

    Args:
        config: what was asked for.
        replicas: what computes.
        evaluation: what to evaluate on, if anything.
        log: where lines go; None in a process that writes nothing, like the next.
        checkpoints: where checkpoints go.
        stop: whether to stop.
        start: updates already done.
        metrics: what was measured since the last line of the log, before the run was stopped.
        steps_per_update: microbatches of an update.
    """

    def __init__(
        self,
        config: DistillConfig,
        replicas: Replicas,
        evaluation: Evaluation | None,
        log: RunLog | None,
        checkpoints: CheckpointFiles | None,
        stop: StopRequest,
        *,
        start: int,
        metrics: dict[str, np.ndarray],
        steps_per_update: int,
    ) -> None:
        super().__init__()
        self._steps_per_update = steps_per_update
        self._config = config
        self._replicas = replicas
        self._evaluation = evaluation
        self._log = log
        self._checkpoints = checkpoints
        self._stop = stop
        self._start = start
        self._metrics = metrics
        self._logged = start
        self._clock = time.perf_counter()
        self._bar = tqdm.tqdm(
            total=config.num_train_steps,
            initial=start,
            unit=" steps",
            desc="distill",
            disable=log is None or start == config.num_train_steps,
        )
        self.last_report: Mapping[str, float] = {}

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Puts back what `fit` has just set to zero."""
        checkpoints.restore_metrics(self.model, self._metrics)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Counts updates and does what is due."""
        done, rest = divmod(batch + 1, self._steps_per_update)
        if rest:
            return
        step, config = self._start + done, self._config
        self._bar.update()
        stopping = self._stop.check()
        due = step == config.num_train_steps or step % config.save_checkpoints_steps == 0
        logging = due or step % config.log_steps == 0
        if logging or stopping:
            self._synchronize()
        if logging:
            self._write_training_line(step)
        elif stopping:
            # No checkpoint is of a run that has diverged.
            self._read_losses(step)
        evaluation_due = due and self._evaluation is not None
        if evaluation_due and not stopping:
            stopping = not self._evaluate(self.model, step)
            evaluation_due = stopping
        if due or stopping:
            self._save(step, evaluation_due)
            self._clock = time.perf_counter()
        if stopping:
            raise self._stop.stopped(step)

    def _save(self, step: int, evaluation_due: bool) -> None:
        # A process that stops now must not end while another one still writes.
        with barrier(self._replicas):
            # The checkpoint last: what is measured up to it is never lost.
            if self._log is not None:
                self._log.publish()
            if self._checkpoints is not None:
                arrays = checkpoints.to_arrays(self.model)
                self._checkpoints.save(step, arrays, evaluation_due=evaluation_due)

    def _synchronize(self) -> None:
        # On JAX, variables are up to date only when asked.
        if keras.config.backend() == "jax":
            self.model.jax_state_sync()

    def _read_losses(self, step: int) -> dict[str, float]:
        report = self.model.training_report()
        if not math.isfinite(report["loss"]):
            raise InputError(
                Setting("learning_rate"),
                received=f"training diverged by step {step}: expected a finite loss, received "
                f"{report['loss']}",
                hint="the last checkpoint is from before",
            )
        return report

    def _write_training_line(self, step: int) -> None:
        report = self._read_losses(step)
        seconds = time.perf_counter() - self._clock
        config = self._config
        examples = (step - self._logged) * config.examples_per_step
        schedule = optimization.learning_rate_schedule(config)
        rate = float(schedule(step - 1))
        line = {**report, "learning_rate": rate, "examples_per_second": examples / seconds}
        if self._log is not None:
            self._log.write(step, TRAIN, line)
        self._bar.set_postfix({name: f"{value:.3f}" for name, value in report.items()})
        self.model.reset_metrics()
        self._logged, self._clock = step, time.perf_counter()

    def catch_up(self, distiller: Distiller) -> None:
        """Makes the evaluation that was due when the run was stopped.

        Raises:
            StoppedRunError: it was asked to stop again.
        """
        if self._evaluation is not None and not self._evaluate(distiller, self._start):
            raise self._stop.stopped(self._start)

    def _evaluate(self, distiller: Distiller, step: int) -> bool:
        """Evaluates and writes the line; returns False where the run is asked to stop in it."""
        report = self._evaluation.run(distiller, self._stop)
        distiller.reset_metrics()
        if report is None:
            return False
        self.last_report = report
        if self._log is not None:
            self._log.write(step, EVAL, report)
        return True

    def close(self) -> None:
        """Ends the bar and the log."""
        self._bar.close()
        if self._log is not None:
            self._log.close()

    def close_after_error(self) -> None:
        """As `close`; what ended the run says more than that its last lines cannot be written."""
        try:
            self.close()
        except OSError as error:
            print(f"the last lines of the log are not written: {error}", file=sys.stderr)
