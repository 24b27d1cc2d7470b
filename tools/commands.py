"""Running commands and other tools from a tool, as one would type it, step by step."""

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
# Of Linux, found here, as a forked process should load nothing.
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None)
_PR_SET_PDEATHSIG = 1
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of a tool, done when the file it leaves is there.

    Steps of one `kind` take about equally long: from those that are made follows how long those
    to come take.
    """

    title: str
    result: Location
    make: Callable[[], None]
    kind: str | None = None


def make_steps(steps: Sequence[Step], begun: float, num_more: int = 0) -> None:
    """Makes the steps whose result is not there.

    Args:
        steps: in order.
        begun: when the program began, on the monotonic clock.
        num_more: steps that follow these.
    """
    seconds: dict[str | None, list[float]] = collections.defaultdict(list)
    for number, step in enumerate(steps, 1):
        done = " (done before)" if step.result.is_file() else ""
        left = time_left(steps[number - 1 :], seconds)
        show_step(number, len(steps) + num_more, f"{step.title}{done}", begun, left)
        if not done:
            step_begun = time.monotonic()
            step.make()
            seconds[step.kind].append(time.monotonic() - step_begun)


def time_left(steps: Sequence[Step], seconds: Mapping[str | None, Sequence[float]]) -> float | None:
    """Returns the seconds that the steps without a result will take.

    Args:
        steps: those to come.
        seconds: of steps that were made, by kind.

    Returns:
        the sum over the steps of the mean of their kind; None where a step has no kind, or one
        of which none was made.
    """
    kinds = [step.kind for step in steps if not step.result.is_file()]
    if any(kind is None or not seconds.get(kind) for kind in kinds):
        return None
    return sum(statistics.fmean(seconds[kind]) for kind in kinds)


def show_step(
    number: int, num_steps: int, title: str, begun: float, left: float | None = None
) -> None:
    """Prints which step begins, after how many minutes, and how many are left if that is known."""
    minutes = f"{(time.monotonic() - begun) / 60:.1f} min"
    if left is not None:
        minutes += f", about {left / 60:.0f} min left"
    print(f"\n[{number}/{num_steps}] {title}   {minutes}", flush=True)


def _end_with_parent() -> None:
    """Asks Linux to stop this process, in order, when the one that began it is killed."""
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _begin(*modules: str) -> None:
    _end_with_parent()
    running.import_quietly(*modules)


class SeparateProcess:
    """A process that calls functions, and with its end returns all memory, that of a GPU included.

    Args:
        imports: modules that the process imports first, and quietly.
    """

    def __init__(self, imports: Sequence[str] = ()) -> None:
        self._imports = tuple(imports)
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Calls a function, which must be picklable as its arguments and its result."""
        if self._pool is None:
            self._pool = concurrent.futures.ProcessPoolExecutor(
                1,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=self._imports,
            )
        return self._pool.submit(function, *arguments).result()

    def close(self) -> None:
        """Ends the process; the next call begins another one."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def claim_directory(
    work: Location, settings: dict[str, Any], contents: str, way_out: str = "choose another"
) -> None:
    """Makes the directory of a tool's run, or recognises it as that of the same run.

    Args:
        work: the directory, from the setting `work`.
        settings: those that decide what is in it, as JSON values.
        contents: the run, for people.
        way_out: what the user can do.

    Raises:
        InputError: it holds another run, or other files.
    """
    path = work.make_directory() / _SETTINGS_FILE
    names = (item.name for item in work.iterdir())
    present = sorted(name for name in names if not name.endswith(".tmp"))
    if present and not path.is_file():
        raise InputError(
            Setting("work"),
            "an empty folder or that of an earlier run",
            f"{work}, which holds {present[0]!r}",
            hint=way_out,
        )
    recorded = path.read_json() if path.is_file() else settings
    if recorded != settings:
        difference = manifests.describe_difference(recorded, settings)
        raise InputError(
            Setting("work"), received=f"{work} holds {contents}: {difference}", hint=way_out
        )
    path.write_json(settings)


def run_command(command: str, *arguments: str, **settings: object) -> None:
    """Runs a command in a process of its own, after showing how one would type it.

    Args:
        command: `create_pretraining_data`, `create_teacher_output_data` or
            `run_distill`.
        *arguments: flags as one would type them.
        **settings: its flags, by name; None for what it does by itself.

    Raises:
        SystemExit: it failed, and has said why; with its status.
    """
    _run(f"pipeline.{command}", command, [*arguments, *_typed(settings)])


def run_tool(tool: str, *, process: SeparateProcess | None = None, **settings: object) -> None:
    """Runs another tool likewise.

    Args:
        tool: the name of its module.
        process: runs it, in place of a process of its own, which would import all once more.
        **settings: its flags, by name.

    Raises:
        SystemExit: it failed, and has said why; with its status.
    """
    module, shown, typed = f"tools.{tool}", f"offline_distill {tool}", _typed(settings)
    if process is None:
        _run(module, shown, typed)
        return
    print(f"$ {shown} {shlex.join(typed)}", flush=True)
    if status := process.call(_call_main, module, [tool, *typed]):
        raise SystemExit(status)


def _call_main(module: str, argv: Sequence[str]) -> int:
    return importlib.import_module(module).main(argv)


def _typed(settings: dict[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items() if value is not None]


def _run(module: str, shown: str, typed: list[str]) -> None:
    print(f"$ {shown} {shlex.join(typed)}", flush=True)
    # A command that outlives a killed tool would hold the lock of its directory.
    status = subprocess.run(
        [sys.executable, "-m", module, *typed], check=False, preexec_fn=_end_with_parent
    ).returncode
    if status:
        raise SystemExit(status)
