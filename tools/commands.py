"""Runs commands and other tools as the steps of a tool, and prints them as command lines."""

import collections
import concurrent.futures
import ctypes
import dataclasses
import importlib
import multiprocessing
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.commands import running
from pipeline.storage import manifest as manifests

_SETTINGS_FILE = "settings.json"
# Function of Linux. It is loaded here, because a forked process should not load anything.
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None)
_PR_SET_PDEATHSIG = 1
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of a tool.

    Attributes:
        title: description of the step.
        result: file that the step writes last. The step is done if it exists.
        make: function that runs the step.
        kind: steps of the same kind take about the same time. The time left is estimated from
            finished steps of each kind. None for a step of unknown duration.
    """

    title: str
    result: Location
    make: Callable[[], None]
    kind: str | None = None


def run_steps(steps: Sequence[Step], start: float, num_more: int = 0) -> None:
    """Runs the steps that are not done.

    Args:
        steps: the steps, in order.
        start: start time of the program, on the monotonic clock.
        num_more: number of steps that follow these.
    """
    seconds: dict[str | None, list[float]] = collections.defaultdict(list)
    for number, step in enumerate(steps, 1):
        done = " (done before)" if step.result.is_file() else ""
        seconds_left = time_left(steps[number - 1 :], seconds)
        print_step(number, len(steps) + num_more, f"{step.title}{done}", start, seconds_left)
        if not done:
            step_start = time.monotonic()
            step.make()
            seconds[step.kind].append(time.monotonic() - step_start)


def time_left(steps: Sequence[Step], seconds: Mapping[str | None, Sequence[float]]) -> float | None:
    """Returns the seconds that the steps without a result will take.

    Args:
        steps: the steps, also those that are done.
        seconds: durations of finished steps, keyed by kind.

    Returns:
        the sum of the mean durations of the steps' kinds. None if a step has no kind, or if no
        step of its kind is finished.
    """
    kinds = [step.kind for step in steps if not step.result.is_file()]
    if any(kind is None or not seconds.get(kind) for kind in kinds):
        return None
    return sum(statistics.fmean(seconds[kind]) for kind in kinds)


def print_step(
    number: int, num_steps: int, title: str, start: float, seconds_left: float | None = None
) -> None:
    """Prints the number and title of a step, the minutes so far, and those left if known."""
    minutes = f"{(time.monotonic() - start) / 60:.1f} min elapsed"
    if seconds_left is not None:
        minutes += f", about {seconds_left / 60:.0f} min left"
    print(f"\n[{number}/{num_steps}] {title}   ({minutes})", flush=True)


def _end_with_parent() -> None:
    """Asks Linux to send SIGTERM to this process when its parent is killed."""
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _begin(*modules: str) -> None:
    _end_with_parent()
    running.import_quietly(*modules)


class SeparateProcess:
    """A process that calls functions. Closing it frees all its memory, also that of a GPU.

    Args:
        imports: modules that the process imports at its start, without output.
    """

    def __init__(self, imports: Sequence[str] = ()) -> None:
        self._imports = tuple(imports)
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Calls a function in the process.

        The function, its arguments and its result must be picklable.
        """
        if self._pool is None:
            self._pool = concurrent.futures.ProcessPoolExecutor(
                1,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=self._imports,
            )
        return self._pool.submit(function, *arguments).result()

    def close(self) -> None:
        """Ends the process. The next call starts another one."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def reserve_directory(
    work: Location, settings: dict[str, Any], contents: str, hint: str = "choose another"
) -> None:
    """Makes the directory of a tool's run, or checks that it belongs to the same run.

    Args:
        work: the directory, from the setting `work`.
        settings: settings that decide its contents, as JSON values.
        contents: description of the run, for messages.
        hint: a correction that the user can make, for messages.

    Raises:
        InputError: the directory contains another run, or other files.
    """
    path = work.make_directory() / _SETTINGS_FILE
    names = (item.name for item in work.iterdir())
    present = sorted(name for name in names if not name.endswith(".tmp"))
    if present and not path.is_file():
        raise InputError(
            Setting("work"),
            "an empty folder, or the folder of an earlier run of this tool",
            f"{work}, which contains {present[0]!r}",
            hint=hint,
        )
    recorded = path.read_json() if path.is_file() else settings
    if recorded != settings:
        difference = manifests.describe_difference(recorded, settings)
        raise InputError(
            Setting("work"), received=f"{work} contains {contents}: {difference}", hint=hint
        )
    path.write_json(settings)


def run_command(command: str, *arguments: str, **settings: object) -> None:
    """Prints the command line of a command, and runs it in a separate process.

    Args:
        command: `create_pretraining_data`, `create_teacher_output_data` or `run_distill`.
        *arguments: flags in the syntax of the command line.
        **settings: values of flags, keyed by name; None for the default.

    Raises:
        SystemExit: the command failed. It has printed the error, and its status is passed on.
    """
    _run(f"pipeline.{command}", command, [*arguments, *_flags(settings)])


def run_tool(tool: str, *, process: SeparateProcess | None = None, **settings: object) -> None:
    """Prints the command line of another tool, and runs it in a separate process.

    Args:
        tool: name of the tool's module.
        process: process that runs the tool. None for a new one, which imports everything again.
        **settings: values of flags, keyed by name; None for the default.

    Raises:
        SystemExit: the tool failed. It has printed the error, and its status is passed on.
    """
    module, shown_name, flags = f"tools.{tool}", f"offline_distill {tool}", _flags(settings)
    if process is None:
        _run(module, shown_name, flags)
        return
    print(f"$ {shown_name} {shlex.join(flags)}", flush=True)
    if status := process.call(_call_main, module, [tool, *flags]):
        raise SystemExit(status)


def _call_main(module: str, argv: Sequence[str]) -> int:
    return importlib.import_module(module).main(argv)


def _flags(settings: dict[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items() if value is not None]


def _run(module: str, shown_name: str, flags: list[str]) -> None:
    print(f"$ {shown_name} {shlex.join(flags)}", flush=True)
    # A command that outlives a killed tool would hold the lock of its directory.
    status = subprocess.run(
        [sys.executable, "-m", module, *flags], check=False, preexec_fn=_end_with_parent
    ).returncode
    if status:
        raise SystemExit(status)
