"""Runs of whole commands, with time, memory and page faults of all their processes (Linux)."""

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
# Seconds to wait for processes that outlive their command.
_ORPHANS_END = 10.0
# Option of prctl(2): orphaned processes become children of this process, which can wait for them.
_PR_SET_CHILD_SUBREAPER = 36


@dataclasses.dataclass(frozen=True)
class CompletedCommand:
    """A command that ended successfully.

    Attributes:
        seconds: time from its start to its end.
        memory: resident bytes of all its processes, in each tenth of a second.
        user_seconds: CPU time of all its processes in user mode.
        system_seconds: CPU time of all its processes in the kernel.
        page_faults: number of minor page faults of all its processes.
    """

    seconds: float
    memory: tuple[int, ...]
    user_seconds: float
    system_seconds: float
    page_faults: int

    @property
    def peak(self) -> int:
        """Peak memory in bytes."""
        return max(self.memory, default=0)


def children(pid: int) -> list[int]:
    """Returns the process ids of the children of a process that still exist."""
    pids = []
    for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        pids += [int(child) for child in path.read_text().split()]
    return pids


def resident_bytes(pid: int) -> int:
    """Returns the resident bytes of a process and its descendants; 0 once it has ended."""
    try:
        pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") + sum(map(resident_bytes, children(pid)))
    except (OSError, IndexError):
        return 0


def run(command: str, **settings: object) -> CompletedCommand:
    """Runs one of the three commands in a new process.

    Args:
        command: `create_pretraining_data`, `create_teacher_output_data` or `run_distill`.
        **settings: its flags.

    Raises:
        SystemExit: it failed; the message has its output.
    """
    arguments = [f"--{name}={value}" for name, value in settings.items()]
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    old_children = set(children(os.getpid()))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", f"pipeline.{command}", *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        memory = []
        while process.poll() is None:
            memory.append(resident_bytes(process.pid))
            try:
                process.wait(_INTERVAL)
            except subprocess.TimeoutExpired:
                continue
        seconds = time.perf_counter() - start
        if process.returncode:
            output.seek(0)
            text = output.read().decode("utf-8", "replace")
            raise SystemExit(f"{command} {' '.join(arguments)}\n{text}")
    _wait_for_orphans(old_children)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return CompletedCommand(
        seconds,
        tuple(memory),
        after.ru_utime - before.ru_utime,
        after.ru_stime - before.ru_stime,
        after.ru_minflt - before.ru_minflt,
    )


def _wait_for_orphans(old_children: set[int]) -> None:
    """Waits for new children: the server of worker processes ends later than its command."""
    deadline = time.monotonic() + _ORPHANS_END
    while (orphans := set(children(os.getpid())) - old_children) and time.monotonic() < deadline:
        for pid in orphans:
            os.waitpid(pid, os.WNOHANG)
        time.sleep(_INTERVAL)
