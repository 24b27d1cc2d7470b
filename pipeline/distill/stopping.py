"""A run that is asked to stop: the update that is being made is finished first.

A machine that is taken away says so by SIGTERM some 30 seconds before; Ctrl-C is SIGINT.
"""

import signal
import threading
from types import FrameType

from pipeline.errors import StoppedRunError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether a signal asked to stop; it takes the signals while a `with` block runs.

    A second SIGINT interrupts at once. Outside the main thread nothing is taken, as
    Python gives signals to that one alone.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._handlers: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = signal.Signals(number)

    def check(self) -> bool:
        """Returns whether to stop now: the last update is complete."""
        return self._received is not None

    def stopped(self, step: int) -> StoppedRunError:
        """Returns what to raise once a checkpoint of `step` is written."""
        return StoppedRunError(
            f"stopped by {self._received.name} at step {step}; the same command continues "
            "from there",
            self._received,
        )
