"""A command that can be disturbed while it runs, and what was seen of it."""

import dataclasses
import itertools
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping

from tools.dev.benchmarks import processes

_MODULE = "pipeline.{}"
_INTERVAL = 0.05
# Whoever is told to end must have ended after so many seconds.
_PATIENCE = 30.0
# A command of seconds that still runs then hangs.
_HANGING = 900.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: of its exit; below 0 the signal that killed it.
        said: the last line that a user saw, or the one that begins with `error: `.
        seconds: from its start to its end.
        peak: resident bytes of all its processes at most.
        has_traceback: whether Python's showed.
        num_left: processes of its own that outlived it.
    """

    status: int
    said: str
    seconds: float
    peak: int
    has_traceback: bool
    num_left: int


class Running:
    """A command in a session of its own.

    Args:
        command: the module, such as `create_pretraining_data`.
        settings: its flags, by name.
        log: where what it says goes.
    """

    def __init__(self, command: str, settings: Mapping[str, object], log: pathlib.Path) -> None:
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        self._log = log
        self._begun = time.monotonic()
        self._peak = 0
        with open(log, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _MODULE.format(command), *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_heed_interrupts,
            )

    @property
    def seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self._begun

    def runs(self) -> bool:
        """Waits for a moment, and returns whether it still runs."""
        self._peak = max(self._peak, processes.resident_bytes(self._process.pid))
        try:
            self._process.wait(_INTERVAL)
        except subprocess.TimeoutExpired:
            return True
        return False

    def runs_until(self, seconds: float) -> bool:
        """Waits until so many seconds after its start, and returns whether it still runs."""
        while self.seconds < seconds:
            if not self.runs():
                return False
        return True

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the command."""
        self._process.send_signal(number)

    def workers(self) -> list[int]:
        """Returns its worker processes: what the fork server began, and all other children."""
        found = processes.children(self._process.pid)
        return sorted({*found, *itertools.chain.from_iterable(map(processes.children, found))})

    def finish(self) -> Outcome:
        """Waits for its end; kills what hangs, or is left of it after that."""
        while self.runs():
            if self.seconds > _HANGING:
                self.send(signal.SIGKILL)
        seconds = self.seconds
        while self._members() and self.seconds < seconds + _PATIENCE:
            time.sleep(_INTERVAL)
        left = self._members()
        if left:
            os.killpg(self._process.pid, signal.SIGKILL)
        text = self._log.read_text("utf-8", "replace")
        return Outcome(
            self._process.returncode,
            _last_line(text),
            seconds,
            self._peak,
            "Traceback (most recent call last)" in text,
            left,
        )

    def _members(self) -> int:
        """Returns how many processes of the session are alive."""
        return sum(session == self._process.pid for session in _sessions())


def _heed_interrupts() -> None:
    # A shell that starts a soak with `&` has it ignore them, and so would all that it starts.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _sessions() -> Iterator[int]:
    """Yields the session of each process that has not ended (Linux's `/proc`)."""
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in brackets, may hold blanks.
            state, *_ = rest = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if state not in "ZX":
            yield int(rest[3])


def _last_line(text: str) -> str:
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]
