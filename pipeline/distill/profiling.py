"""Traces of training steps, for TensorBoard's profiler and Perfetto."""

import sys
from collections.abc import Callable

import keras

from pipeline.base.location import LocalLocation
from pipeline.distill.settings import StepRange

FOLDER = "profile"


class Profiler:
    """Writes the trace of some steps.

    On JAX the file `perfetto_trace.json.gz` opens in ui.perfetto.dev; the others are for
    TensorBoard's profiler on both backends.

    Args:
        steps: those of the trace.
        folder: a new folder for it.
    """

    def __init__(self, steps: StepRange, folder: LocalLocation) -> None:
        self._steps, self._folder = steps, folder
        self._is_running = False

    def before(self, step: int) -> None:
        """Begins the trace where the step is the first."""
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
        """Ends the trace where the step is the last.

        Args:
            step: that is done, or on JAX has begun.
            wait: called to wait until it is done.
        """
        if self._is_running and step >= self._steps.last:
            wait()
            self.close()
            print(f"trace of steps {self._steps}: {self._folder}", file=sys.stderr)

    def close(self) -> None:
        """Ends the trace where it is still running."""
        if not self._is_running:
            return
        self._is_running = False
        if keras.config.backend() == "jax":
            import jax

            jax.profiler.stop_trace()
        else:
            import tensorflow as tf

            tf.profiler.experimental.stop()
