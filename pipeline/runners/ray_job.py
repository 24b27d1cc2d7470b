"""The other side of `ray`: a job in a worker process of some node."""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import os
import socket
import time
from typing import Any

from pipeline.base import compiled_programs, memory
from pipeline.base.errors import InputError, InterruptedRunError, Setting
from pipeline.base.location import LocalLocation, Location

# How often a job may be lost with its worker before it is the job's fault.
MAX_RETRIES = 10
# Between two looks at what jobs say of their progress.
PROGRESS_SECONDS = 0.5
# Packages whose version may decide bytes.
_PACKAGES = ("jax", "keras", "numpy", "rjieba", "sentencepiece", "tensorflow", "tokenizers")


def import_ray() -> Any:
    """Returns the package; raises InputError where it is not installed."""
    # Nobody is told that it runs here.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise InputError(
            Setting("runner"),
            received=f"ray cannot be imported ({error})",
            hint="install it with pip install '.[ray]'",
        ) from error


@functools.lru_cache(maxsize=1)
def versions() -> tuple[tuple[str, str], ...]:
    """Returns what, beside its settings, decides the bytes that a job makes."""
    root = LocalLocation(__file__).parents[2]
    sources = sorted(
        path
        for folder in ("pipeline", "data_specs")
        for path in (root / folder).rglob("*")
        if path.suffix in (".py", ".yaml")
    )
    lines = [f"{path.relative_to(root)} {path.sha256()}\n" for path in sources]
    found = {"offline-distill": hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return tuple(sorted(found.items()))


@dataclasses.dataclass(frozen=True)
class Node:
    """Requirements for each worker process.

    Attributes:
        environment: variables, set before the job's modules are imported.
        versions: as `versions` returns them where the command runs.
        marks: files in folders that all nodes share, each with what names its folder.
    """

    environment: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    marks: tuple[tuple[str, Location], ...]


@functools.lru_cache(maxsize=1)
def enter(node: Node) -> None:
    """Makes a worker process ready for jobs, whose node must see the folders and packages."""
    os.environ.update(node.environment)
    backend = os.environ.get("KERAS_BACKEND")
    memory.keep_freed(backend)
    if backend == "jax":
        compiled_programs.keep_programs()
    name = socket.gethostname()
    for subject, mark in node.marks:
        if not mark.is_file():
            raise InterruptedRunError(
                subject,
                "a folder on a file system that all nodes of the Ray cluster share",
                f"{mark.parent}, which is not the same on {name}",
            )
    here, there = dict(node.versions), dict(versions())
    for package in sorted(here.keys() | there.keys()):
        if here.get(package) != there.get(package):
            raise InterruptedRunError(
                Setting("ray_address"),
                f"{package} {here.get(package)} on every node, as where the command runs",
                f"{there.get(package)} on {name}",
            )


# The GPUs of this process's jobs so far; empty before the first.
_gpus: list[tuple[str, ...]] = []


def _keep_to_gpus(gpus: tuple[str, ...]) -> None:
    """Ends a worker process that is to use other GPUs than those that it has begun with.

    What it has on them stays there as long as it lives. The job is done again elsewhere.
    """
    if not _gpus:
        _gpus.append(gpus)
    if _gpus[0] != gpus:
        os._exit(1)


class Progress:
    """An actor beside the command: what jobs say of themselves, until it is asked for."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def report(self, index: int, count: int) -> None:
        self._counts[index] = count

    def take(self) -> dict[int, int]:
        counts, self._counts = self._counts, {}
        return counts


class _Report:
    """Adds up what a job says that it has done, and tells the actor now and then."""

    def __init__(self, progress: Any, index: int) -> None:
        self.count = 0
        self._progress, self._index = progress, index
        self._told = time.monotonic()

    def __call__(self, count: int) -> None:
        self.count += count
        if time.monotonic() - self._told >= PROGRESS_SECONDS:
            self._told = time.monotonic()
            self._progress.report.remote(self._index, self.count)


def run_job(node: Node, function: bytes, progress: Any, index: int, job: Any) -> tuple[Any, int]:
    """The task: returns a job's result, and how much it said that it has done."""
    enter(node)
    ray = import_ray()
    _keep_to_gpus(tuple(ray.get_runtime_context().get_accelerator_ids().get("GPU", ())))
    # Not before: it imports what reads the environment.
    loaded = ray.cloudpickle.loads(function)
    if progress is None:
        return loaded(job), 0
    report = _Report(progress, index)
    return loaded(job, report), report.count
