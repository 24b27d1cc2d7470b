"""Rates of training, its share of the device's peak, and the time spent waiting for input."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras

from pipeline.base.accelerators import find_accelerator

# Their fields in metrics.jsonl, which differ between repeated runs.
EXAMPLES, TOKENS = "examples_per_second", "tokens_per_second"
PEAK_SHARE, WAITED = "peak_share", "input_wait_seconds"
CLOCK_FIELDS = (EXAMPLES, TOKENS, PEAK_SHARE, WAITED)


class InputClock:
    """Seconds in which training waited for its next batch.

    Attributes:
        seconds: since the last reset.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def next(self, iterator: Iterator[Any]) -> Any:
        """Returns the next batch, and adds the time until it came."""
        begun = time.perf_counter()
        try:
            return next(iterator)
        finally:
            self.seconds += time.perf_counter() - begun

    def timed(self, iterator: Iterator[Any]) -> Iterator[Any]:
        """Yields batches, and adds the time until each came."""
        while True:
            try:
                yield self.next(iterator)
            except StopIteration:
                return


def time_inputs(
    train_function: Callable[..., Any], train_step: Callable[[Any], Any], clock: InputClock
) -> Callable[..., Any]:
    """Returns Keras's function of a training step with its wait for the batch timed.

    Args:
        train_function: as `make_train_function` leaves it: on JAX from the state and an iterator
            to logs and the new state; on TensorFlow from an iterator to logs.
        train_step: the model's, which TensorFlow computes of a batch that has come.
        clock: adds up the time.
    """
    if keras.config.backend() == "jax":
        return lambda state, iterator: train_function(state, clock.timed(iterator))
    import tensorflow as tf

    compiled: list[Callable[[Any], Any]] = []

    def step(iterator: Any) -> Any:
        if not isinstance(iterator, tf.data.Iterator):
            # The one batch of `train_on_batch`.
            return train_function(iterator)
        if not compiled:
            # One program for all shapes, as for Keras's own step, which takes the batch inside.
            compiled.append(tf.function(train_step, input_signature=[iterator.element_spec]))
        return compiled[0](clock.next(iterator))

    return step


@dataclasses.dataclass(frozen=True)
class Rates:
    """What an example costs, from which rates follow.

    Attributes:
        tokens: the mean length of an example.
        flops: operations of the step for one example.
        peak_flops: operations a second of all devices together; None where it is not known.
    """

    tokens: float
    flops: float
    peak_flops: float | None

    def measured(self, examples: float, seconds: float, waited: float) -> dict[str, float]:
        """Returns the fields of a line of metrics.jsonl.

        Args:
            examples: trained since the line before.
            seconds: that this took.
            waited: of these, in which the step waited for its batch.
        """
        rate = examples / seconds
        fields = {EXAMPLES: rate, TOKENS: rate * self.tokens, WAITED: waited}
        if self.peak_flops is not None:
            fields[PEAK_SHARE] = rate * self.flops / self.peak_flops
        return fields


def peak_flops(num_devices: int) -> float | None:
    """Returns the operations a second of so many devices of this machine's kind; None if unknown.

    Args:
        num_devices: of all processes that train together.
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
