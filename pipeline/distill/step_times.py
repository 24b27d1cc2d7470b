"""Rates of training, its share of the device's peak, and the time spent waiting for input."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras

from pipeline.base.accelerators import find_accelerator

# Fields of metrics.jsonl that differ between repeated runs.
EXAMPLES, TOKENS = "examples_per_second", "tokens_per_second"
PEAK_SHARE, WAITED = "peak_share", "input_wait_seconds"
CLOCK_FIELDS = (EXAMPLES, TOKENS, PEAK_SHARE, WAITED)


class InputClock:
    """A clock of the seconds that training waits for its next batch.

    Attributes:
        seconds: the time waited since the last reset.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def next(self, iterator: Iterator[Any]) -> Any:
        """Returns the next batch, and adds the time that it took."""
        start = time.perf_counter()
        try:
            return next(iterator)
        finally:
            self.seconds += time.perf_counter() - start

    def timed(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """Yields batches, and adds the time that each took."""
        while True:
            try:
                yield self.next(iterator)
            except StopIteration:
                return


def time_inputs(
    train_function: Callable[..., Any], train_step: Callable[[Any], Any], clock: InputClock
) -> Callable[..., Any]:
    """Returns Keras's function of a training step, with the time of its input measured.

    Args:
        train_function: the function that `make_train_function` has made. On JAX it maps the
            state and an iterator to logs and the new state; on TensorFlow it maps an iterator
            to logs.
        train_step: the model's step on one batch, which TensorFlow compiles.
        clock: adds up the time.
    """
    if keras.config.backend() == "jax":
        return lambda state, iterator: train_function(state, clock.timed(iterator))
    import tensorflow as tf

    compiled: list[Callable[[Any], Any]] = []

    def step(iterator: Any) -> Any:
        if not isinstance(iterator, tf.data.Iterator):
            # `train_on_batch` gives an iterator of a single batch.
            return train_function(iterator)
        if not compiled:
            # One program serves all shapes, as in Keras, whose step takes the batch inside.
            compiled.append(tf.function(train_step, input_signature=[iterator.element_spec]))
        return compiled[0](clock.next(iterator))

    return step


@dataclasses.dataclass(frozen=True)
class Rates:
    """The cost of an example, from which rates are computed.

    Attributes:
        tokens: the mean length of an example.
        flops: floating-point operations of a training step for one example.
        peak_flops: peak operations per second, summed over all devices; None if unknown.
    """

    tokens: float
    flops: float
    peak_flops: float | None

    def log_fields(self, examples: float, seconds: float, waited: float) -> dict[str, float]:
        """Returns the fields of a line of metrics.jsonl.

        Args:
            examples: the number of examples since the previous line.
            seconds: the time that they took.
            waited: the part of this time in which training waited for a batch.
        """
        rate = examples / seconds
        fields = {EXAMPLES: rate, TOKENS: rate * self.tokens, WAITED: waited}
        if self.peak_flops is not None:
            fields[PEAK_SHARE] = rate * self.flops / self.peak_flops
        return fields


def peak_flops(num_devices: int) -> float | None:
    """Returns the peak operations per second of devices of this machine's kind; None if unknown.

    Args:
        num_devices: the number of devices of all processes that train together.
    """
    if keras.config.backend() == "jax":
        import jax

        kind = jax.devices()[0].device_kind
    else:
        import tensorflow as tf

        devices = tf.config.get_visible_devices("GPU")
        details = tf.config.experimental.get_device_details(devices[0]) if devices else {}
        kind = details.get("device_name", "")
    accelerator = find_accelerator(kind)
    return None if accelerator is None else accelerator.peak_flops * num_devices
