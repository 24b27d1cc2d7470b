"""The faults: each disturbs one run of a stage and says what was seen."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
from collections.abc import Callable, Mapping

import numpy as np

from tools.dev.soaking.running import Outcome, Running
from tools.dev.soaking.stages import STUDENT, Stage

_SHARDS = "*-of-*.tfrecord"
DISK_FULL = "disk full"
_CHECKPOINTS = "checkpoints/step-*.safetensors"


@dataclasses.dataclass(frozen=True)
class Disturbance:
    """One run of a stage that is to be disturbed.

    Attributes:
        stage: the stage.
        seconds: what it takes undisturbed.
        num_bytes: what its output has undisturbed.
        random: decides when and where.
        log: where what it says goes.
        cleanup: undoes, at the end of the round, what the fault has set up.
    """

    stage: Stage
    seconds: float
    num_bytes: int
    random: np.random.Generator
    log: pathlib.Path
    cleanup: contextlib.ExitStack

    def start(self) -> Running:
        """Starts the stage."""
        return Running(self.stage.command, self.stage.settings, self.log)

    def moment(self) -> float:
        """Returns a time within a run, in seconds from its start."""
        return float(self.random.uniform(0.05, 1.0)) * self.seconds


# Returns how the disturbed run ended; None where the fault came too late to meet it.
Fault = Callable[[Disturbance], Outcome | None]


def _signal(number: signal.Signals) -> Fault:
    def send(disturbance: Disturbance) -> Outcome | None:
        running = disturbance.start()
        hit = running.runs_until(disturbance.moment())
        if hit:
            running.send(number)
        outcome = running.finish()
        return outcome if hit and outcome.status else None

    return send


def kill_worker(disturbance: Disturbance) -> Outcome | None:
    """Kills one of the processes that a command began, as a system short of memory does."""
    running = disturbance.start()
    moment = disturbance.moment()
    while running.runs():
        workers = running.workers()
        if running.seconds >= moment and workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(disturbance.random.choice(workers)), signal.SIGKILL)
            break
    outcome = running.finish()
    return outcome if outcome.status else None


def fill_disk(disturbance: Disturbance) -> Outcome | None:
    """Lets the output's file system run full, and makes it large enough afterwards."""
    folder = disturbance.stage.output
    folder.mkdir()
    size = int(disturbance.random.uniform(0.02, 0.98) * disturbance.num_bytes)
    # Of whole pages.
    _mount(folder, max(16_384, size))
    disturbance.cleanup.callback(subprocess.run, ["umount", str(folder)], check=True)
    outcome = disturbance.start().finish()
    subprocess.run(["mount", "-o", "remount,size=2g", str(folder)], check=True)
    return outcome if outcome.status else None


def _mount(folder: pathlib.Path, num_bytes: int) -> None:
    options = f"size={num_bytes},mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def can_mount(folder: pathlib.Path) -> bool:
    """Returns whether this process may mount a file system, on an empty folder of its own."""
    try:
        _mount(folder, 16_384)
    except (OSError, subprocess.CalledProcessError):
        return False
    subprocess.run(["umount", str(folder)], check=True)
    return True


def truncate_input(disturbance: Disturbance) -> Outcome | None:
    """Cuts off the end of a file that is read, and gives it back afterwards."""
    path = _input_file(disturbance)
    content = path.read_bytes()
    path.write_bytes(content[: int(disturbance.random.integers(len(content)))])
    return _with_damage(disturbance, path, content)


def flip_byte(disturbance: Disturbance) -> Outcome | None:
    """Changes one byte of a shard that is read, which `--verify=sizes` does not see."""
    path = _input_file(disturbance)
    content = path.read_bytes()
    place = int(disturbance.random.integers(len(content)))
    change = int(disturbance.random.integers(1, 256))
    damaged = bytearray(content)
    damaged[place] ^= change
    path.write_bytes(bytes(damaged))
    return _with_damage(disturbance, path, content)


def _input_file(disturbance: Disturbance) -> pathlib.Path:
    """Returns a shard, or of text a compressed file: of plain text any part is as good."""
    folder = disturbance.stage.input
    found = sorted(folder.glob(_SHARDS)) or sorted(folder.glob("*.gz"))
    return found[int(disturbance.random.integers(len(found)))]


def _with_damage(disturbance: Disturbance, path: pathlib.Path, content: bytes) -> Outcome | None:
    try:
        outcome = disturbance.start().finish()
    finally:
        path.write_bytes(content)
    return outcome if outcome.status else None


def break_checkpoint(disturbance: Disturbance) -> Outcome | None:
    """Kills a run that has two checkpoints, and damages the newest."""
    running = disturbance.start()
    while running.runs():
        if len(list(disturbance.stage.output.glob(_CHECKPOINTS))) > 1:
            running.send(signal.SIGKILL)
            break
    killed = running.finish()
    if not killed.status:
        return None
    newest = max(disturbance.stage.output.glob(_CHECKPOINTS))
    content = bytearray(newest.read_bytes())
    place = int(disturbance.random.integers(len(content)))
    if disturbance.random.random() < 0.5:
        del content[place:]
    else:
        content[place] ^= int(disturbance.random.integers(1, 256))
    newest.write_bytes(bytes(content))
    return killed


def truncate_output(disturbance: Disturbance) -> Outcome | None:
    """Kills a run, and cuts a shard that it had finished, as a crash of the system may."""
    outcome = _signal(signal.SIGKILL)(disturbance)
    finished = sorted(disturbance.stage.output.glob(_SHARDS))
    if outcome is None or not finished:
        return None
    path = finished[int(disturbance.random.integers(len(finished)))]
    os.truncate(path, int(disturbance.random.integers(path.stat().st_size)))
    return outcome


_STAGES = ("create_pretraining_data", "create_teacher_output_data", STUDENT)
# Of each fault: what it does, and the commands that it can meet.
FAULTS: Mapping[str, tuple[Fault, tuple[str, ...]]] = {
    "SIGKILL": (_signal(signal.SIGKILL), _STAGES),
    "SIGTERM": (_signal(signal.SIGTERM), _STAGES),
    "SIGINT": (_signal(signal.SIGINT), _STAGES),
    "worker killed": (kill_worker, _STAGES[:1]),
    DISK_FULL: (fill_disk, _STAGES),
    "input truncated": (truncate_input, _STAGES),
    "input byte flipped": (flip_byte, _STAGES[1:]),
    "output truncated after a kill": (truncate_output, _STAGES[:2]),
    "newest checkpoint broken": (break_checkpoint, _STAGES[2:]),
}
