"""Traces of training steps, for TensorBoard's profiler and Perfetto."""

import sys
from collections.abc import Callable

import keras

from pipeline.base.location import LocalLocation
from pipeline.distill.settings import StepRange

FOLDER = "profile"


class Profiler:
    """Writes a trace of a range of steps.

    TensorBoard's profiler reads the files of both backends. On JAX the file
    `perfetto_trace.json.gz` also opens in ui.perfetto.dev.

    Args:
        steps: the steps to trace.
        folder: a new folder for the trace.
    """

    def __init__(self, steps: StepRange, folder: LocalLocation) -> None:
        self._steps, self._folder = steps, folder
        self._is_running = False

    def before(self, step: int) -> None:
        """Starts the trace if the step is the first one."""
        if step != self._steps.first:
            return
        self._is_running = True
        if keras.config.backend() == "jax":
            import jax

            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
        else:
            import tensorflow as tf

            tf.profiler.experimental.start(str(self._folder))

    def after(self, step: int, wait: Callable[[], object]) -> None:
        """Ends the trace if the step is the last one.

        Args:
            step: the step that is done; on JAX it may still be running.
            wait: called to wait until the step is done.
        """
        if self._is_running and step >= self._steps.last:
            wait()
            self.close()
            print(f"trace of steps {self._steps}: {self._folder}", file=sys.stderr)

    def close(self) -> None:
        """Ends the trace if it is still running."""
        if not self._is_running:
            return
        self._is_running = False
        if keras.config.backend() == "jax":
            import jax

            jax.profiler.stop_trace()
        else:
            import tensorflow as tf

            tf.profiler.experimental.stop()
