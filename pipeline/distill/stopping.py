"""Stops a run on a signal, after the current step.

A preempted machine sends SIGTERM about 30 seconds before it stops. Ctrl-C sends SIGINT.
"""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from pipeline.base.errors import StoppedRunError


class StopRequest:
    """A request to stop, made by a signal; signals are handled while a `with` block runs.

    A second SIGINT interrupts at once. Outside the main thread no signal is handled, because
    Python delivers signals only to the main thread. After `jax.distributed` is initialized,
    also with a single process, JAX handles SIGTERM and makes all processes stop at the same
    step.
    """

    def __init__(self) -> None:
        self._is_distributed = _is_distributed()
        self._checks = 0
        self._interrupted = False
        self._received: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT] if self._is_distributed else [signal.SIGTERM, signal.SIGINT]
            for number in numbers:
                self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
        if self._is_distributed:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._received = signal.Signals(number)

    def check(self) -> bool:
        """Returns whether to stop now, after the last step or batch is complete.

        Processes that train together call it equally often and get the same answer.
        """
        self._checks += 1
        if self._is_distributed and self._received is None:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(self._checks):
                self._received = signal.SIGINT if self._interrupted else signal.SIGTERM
        return self._received is not None

    def stop_error(self, step: int) -> StoppedRunError:
        """Returns the error to raise after a checkpoint of `step` is written."""
        return self._stopped(f"at step {step}; re-run the command to resume")

    def evaluation_stop_error(self) -> StoppedRunError:
        """Returns the error to raise in an evaluation that no checkpoint records."""
        return self._stopped("in the evaluation; re-run the command to repeat it")

    def _stopped(self, where: str) -> StoppedRunError:
        return StoppedRunError(f"stopped by {self._received.name} {where}", self._received)


def _is_distributed() -> bool:
    # If JAX is not imported, this process cannot have joined others.
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()
