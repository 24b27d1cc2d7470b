"""Whole commands, timed, with memory and page faults of all their processes (on Linux)."""

import ctypes
import dataclasses
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

_INTERVAL = 0.1
# Seconds for the processes that a command leaves behind to end.
_ORPHANS_END = 10.0
# Of prctl(2): orphaned processes become this one's children, which can be waited for.
_PR_SET_CHILD_SUBREAPER = 36


@dataclasses.dataclass(frozen=True)
class Finished:
    """A command that ended well.

    Attributes:
        seconds: from its start to its end.
        memory: resident bytes of all its processes, each tenth of a second.
        user_seconds: processor time of all its processes in their own code.
        system_seconds: processor time of all its processes in the kernel.
        page_faults: of all its processes, without input or output.
    """

    seconds: float
    memory: tuple[int, ...]
    user_seconds: float
    system_seconds: float
    page_faults: int

    @property
    def peak(self) -> int:
        """The most memory at one time, in bytes."""
        return max(self.memory, default=0)


def children(pid: int) -> list[int]:
    """Returns the processes that a process began and that are there still."""
    found = []
    for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in path.read_text().split()]
    return found


def resident_bytes(pid: int) -> int:
    """Returns the resident bytes of a process and all that it began; 0 once it has ended."""
    try:
        pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") + sum(map(resident_bytes, children(pid)))
    except (OSError, IndexError):
        return 0


def run(command: str, **settings: object) -> Finished:
    """Runs one of the three commands in a process of its own.

    Args:
        command: `create_pretraining_data`, `create_teacher_output_data` or
            `run_distill`.
        **settings: its flags.

    Raises:
        SystemExit: it failed; shows what it said.
    """
    arguments = [f"--{name}={value}" for name, value in settings.items()]
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    own, before = set(children(os.getpid())), resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryFile() as said:
        begun = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", f"pipeline.{command}", *arguments],
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        memory = []
        while process.poll() is None:
            memory.append(resident_bytes(process.pid))
            try:
                process.wait(_INTERVAL)
            except subprocess.TimeoutExpired:
                continue
        seconds = time.perf_counter() - begun
        if process.returncode:
            said.seek(0)
            text = said.read().decode("utf-8", "replace")
            raise SystemExit(f"{command} {' '.join(arguments)}\n{text}")
    _wait_for_orphans(own)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Finished(
        seconds,
        tuple(memory),
        after.ru_utime - before.ru_utime,
        after.ru_stime - before.ru_stime,
        after.ru_minflt - before.ru_minflt,
    )


def _wait_for_orphans(own: set[int]) -> None:
    """Waits for children other than `own`: a server of worker processes ends after its command."""
    deadline = time.monotonic() + _ORPHANS_END
    while (orphans := set(children(os.getpid())) - own) and time.monotonic() < deadline:
        for pid in orphans:
            os.waitpid(pid, os.WNOHANG)
        time.sleep(_INTERVAL)
