"""Fault injection: faults that strike a command while it runs, and the outcome of a run."""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from pipeline.base.location import Location
from tools.dev.benchmarks import processes

DISK_FULL = "disk full"
_STAGES = ("create_pretraining_data", "create_teacher_output_data", "run_distill")
_MODULE = "pipeline.{}"
_SHARDS = "*-of-*.tfrecord"
_CHECKPOINTS = "checkpoints/step-*.safetensors"
_INTERVAL = 0.05
# Seconds after the end of a command within which its processes must end.
_PATIENCE = 30.0
# A command normally takes seconds. If it takes more seconds than this, it hangs.
_HANGING = 900.0


@dataclasses.dataclass(frozen=True)
class Stage:
    """A command of a round; `settings` are its flags except those of input and output."""

    name: str
    command: str
    input: Location
    output: Location
    settings: Mapping[str, object]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a command.

    Attributes:
        status: exit status; if negative, the number of the signal that killed it.
        message: the last line that begins with `error: `, or else the last line of its output.
        seconds: time from its start to its end.
        peak: peak of the resident bytes of all its processes.
        has_traceback: whether it printed a traceback.
        num_left: number of its processes that outlived it.
    """

    status: int
    message: str
    seconds: float
    peak: int
    has_traceback: bool
    num_left: int


class Running:
    """A running command of a stage, in a new session; its output goes to a log file."""

    def __init__(self, stage: Stage, log: pathlib.Path) -> None:
        settings = {"input_dir": stage.input, "output_dir": stage.output, **stage.settings}
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        self._log = log
        self._begun = time.monotonic()
        self._peak = 0
        with open(log, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _MODULE.format(stage.command), *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # A shell that starts a soak with `&` makes it ignore interrupts.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    @property
    def seconds(self) -> float:
        """Seconds since the start of the command."""
        return time.monotonic() - self._begun

    def runs(self) -> bool:
        """Waits for a moment, and returns whether the command still runs."""
        self._peak = max(self._peak, processes.resident_bytes(self._process.pid))
        try:
            self._process.wait(_INTERVAL)
        except subprocess.TimeoutExpired:
            return True
        return False

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the command."""
        self._process.send_signal(number)

    def workers(self) -> list[int]:
        """Returns its children and grandchildren, because workers are children of a fork server."""
        children = processes.children(self._process.pid)
        grandchildren = itertools.chain.from_iterable(map(processes.children, children))
        return sorted({*children, *grandchildren})

    def finish(self) -> Outcome:
        """Waits for the end of the command; kills it if it hangs, and processes that outlive it."""
        while self.runs():
            if self.seconds > _HANGING:
                self.send(signal.SIGKILL)
        seconds = self.seconds
        while self._num_members() and self.seconds < seconds + _PATIENCE:
            time.sleep(_INTERVAL)
        num_left = self._num_members()
        if num_left:
            os.killpg(self._process.pid, signal.SIGKILL)
        text = self._log.read_text("utf-8", "replace")
        lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return Outcome(
            self._process.returncode,
            (errors or lines or [""])[-1],
            seconds,
            self._peak,
            "Traceback (most recent call last)" in text,
            num_left,
        )

    def _num_members(self) -> int:
        """Returns the number of processes of the session that are alive."""
        return sum(session == self._process.pid for session in _sessions())


def _sessions() -> Iterator[int]:
    """Yields the session of each process that has not ended (Linux's `/proc`)."""
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name of the process, in parentheses, may contain spaces.
            state, *_ = rest = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if state not in "ZX":
            yield int(rest[3])


@dataclasses.dataclass(frozen=True)
class Disturbance:
    """A run of a stage that is to be disturbed.

    Attributes:
        stage: the stage.
        seconds: duration of an undisturbed run.
        num_bytes: size of the output of an undisturbed run.
        random: decides when and where the fault strikes.
        log: the file for the output of the stage.
        cleanup: callbacks that restore the system at the end of the round.
    """

    stage: Stage
    seconds: float
    num_bytes: int
    random: np.random.Generator
    log: pathlib.Path
    cleanup: contextlib.ExitStack

    def start(self) -> Running:
        """Starts the stage."""
        return Running(self.stage, self.log)

    def moment(self) -> float:
        """Returns a random time within a run, in seconds from its start."""
        return float(self.random.uniform(0.05, 1.0)) * self.seconds

    def choose(self, paths: list[pathlib.Path]) -> pathlib.Path:
        """Returns a random one of several files."""
        return paths[int(self.random.integers(len(paths)))]

    def damage(self, path: pathlib.Path, *, cut: bool) -> None:
        """Cuts off the end of a file, or changes one of its bytes."""
        content = bytearray(path.read_bytes())
        offset = int(self.random.integers(len(content)))
        if cut:
            del content[offset:]
        else:
            content[offset] ^= int(self.random.integers(1, 256))
        path.write_bytes(bytes(content))


# A function that returns the outcome of the disturbed run, or None if the fault came too late.
Fault = Callable[[Disturbance], Outcome | None]


def _signal(number: signal.Signals) -> Fault:
    def send(disturbance: Disturbance) -> Outcome | None:
        running, moment = disturbance.start(), disturbance.moment()
        while running.runs() and running.seconds < moment:
            pass
        struck = running.runs()
        if struck:
            running.send(number)
        outcome = running.finish()
        return outcome if struck and outcome.status else None

    return send


def _kill_worker(disturbance: Disturbance) -> Outcome | None:
    """Kills one of a command's processes, as a system does when it runs out of memory."""
    running, moment = disturbance.start(), disturbance.moment()
    while running.runs():
        workers = running.workers()
        if running.seconds >= moment and workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(disturbance.random.choice(workers)), signal.SIGKILL)
            break
    outcome = running.finish()
    return outcome if outcome.status else None


def _fill_disk(disturbance: Disturbance) -> Outcome | None:
    """Runs a stage on a file system that is too small, and enlarges this afterwards."""
    folder = disturbance.stage.output
    folder.mkdir()
    size = int(disturbance.random.uniform(0.02, 0.98) * disturbance.num_bytes)
    # At least a few pages of memory.
    _mount(folder, max(16_384, size))
    disturbance.cleanup.callback(subprocess.run, ["umount", str(folder)], check=True)
    outcome = disturbance.start().finish()
    subprocess.run(["mount", "-o", "remount,size=2g", str(folder)], check=True)
    return outcome if outcome.status else None


def _mount(folder: pathlib.Path, num_bytes: int) -> None:
    options = f"size={num_bytes},mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def can_mount(folder: pathlib.Path) -> bool:
    """Returns whether this process may mount a file system; `folder` must be empty."""
    try:
        _mount(folder, 16_384)
    except (OSError, subprocess.CalledProcessError):
        return False
    subprocess.run(["umount", str(folder)], check=True)
    return True


def _damaged_input(*, cut: bool) -> Fault:
    """Returns a fault that damages an input file, and restores it afterwards."""

    def run(disturbance: Disturbance) -> Outcome | None:
        folder = disturbance.stage.input
        # A truncated text is still a valid text. Only compressed texts show the damage.
        path = disturbance.choose(sorted(folder.glob(_SHARDS)) or sorted(folder.glob("*.gz")))
        content = path.read_bytes()
        disturbance.damage(path, cut=cut)
        try:
            outcome = disturbance.start().finish()
        finally:
            path.write_bytes(content)
        return outcome if outcome.status else None

    return run


def _break_checkpoint(disturbance: Disturbance) -> Outcome | None:
    """Kills a run that has two checkpoints, and damages the newest checkpoint."""
    running = disturbance.start()
    while running.runs():
        if len(list(disturbance.stage.output.glob(_CHECKPOINTS))) > 1:
            running.send(signal.SIGKILL)
            break
    killed = running.finish()
    if not killed.status:
        return None
    newest = max(disturbance.stage.output.glob(_CHECKPOINTS))
    disturbance.damage(newest, cut=bool(disturbance.random.random() < 0.5))
    return killed


def _truncate_output(disturbance: Disturbance) -> Outcome | None:
    """Kills a run, and truncates a finished shard, as a crash of the system may do."""
    outcome = _signal(signal.SIGKILL)(disturbance)
    finished = sorted(disturbance.stage.output.glob(_SHARDS))
    if outcome is None or not finished:
        return None
    disturbance.damage(disturbance.choose(finished), cut=True)
    return outcome


# Faults by name, with the commands that each can strike.
FAULTS: Mapping[str, tuple[Fault, tuple[str, ...]]] = {
    "SIGKILL": (_signal(signal.SIGKILL), _STAGES),
    "SIGTERM": (_signal(signal.SIGTERM), _STAGES),
    "SIGINT": (_signal(signal.SIGINT), _STAGES),
    "worker killed": (_kill_worker, _STAGES[:1]),
    DISK_FULL: (_fill_disk, _STAGES),
    "input truncated": (_damaged_input(cut=True), _STAGES),
    "input byte flipped": (_damaged_input(cut=False), _STAGES[1:]),
    "output truncated after a kill": (_truncate_output, _STAGES[:2]),
    "newest checkpoint broken": (_break_checkpoint, _STAGES[2:]),
}
