"""Stops a run on a signal, after the current update.

A preempted machine sends SIGTERM some 30 seconds before it ends; Ctrl-C is SIGINT.
"""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from pipeline.base.errors import StoppedRunError


class StopRequest:
    """Whether a signal asked to stop; it takes the signals while a `with` block runs.

    A second SIGINT interrupts at once. Outside the main thread nothing is taken, as
    Python gives signals to that one alone. Where processes have joined, be it a single
    one, JAX has taken SIGTERM since then, and lets all of them stop at one moment.
    """

    def __init__(self) -> None:
        self._together = _have_joined()
        self._checks = 0
        self._interrupted = False
        self._received: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT,) if self._together else (signal.SIGTERM, signal.SIGINT):
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
        if self._together:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._received = signal.Signals(number)

    def check(self) -> bool:
        """Returns whether to stop now, when the last update or batch is complete.

        Processes that train together call it equally often, and are told the same.
        """
        self._checks += 1
        if self._together and self._received is None:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(self._checks):
                self._received = signal.SIGINT if self._interrupted else signal.SIGTERM
        return self._received is not None

    def stopped(self, step: int) -> StoppedRunError:
        """Returns what to raise once a checkpoint of `step` is written."""
        return self._stopped(f"at step {step}; the same command continues from there")

    def stopped_evaluation(self) -> StoppedRunError:
        """Returns what to raise in an evaluation that no checkpoint remembers."""
        return self._stopped("in the evaluation; the same command makes it again")

    def _stopped(self, where: str) -> StoppedRunError:
        return StoppedRunError(f"stopped by {self._received.name} {where}", self._received)


def _have_joined() -> bool:
    # Without JAX there is nothing to join.
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()
