"""Runs a job in a worker process on a node of a Ray cluster."""

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

# Number of times that a job is run again after its worker died. After that, the job fails.
MAX_RETRIES = 10
# Interval of progress reports.
PROGRESS_SECONDS = 0.5
# Packages whose version may change the bytes of shards.
_PACKAGES = ("jax", "keras", "numpy", "rjieba", "sentencepiece", "tensorflow", "tokenizers")


def import_ray() -> Any:
    """Returns the package `ray`.

    Raises:
        InputError: the package is not installed.
    """
    # Ray would otherwise send usage statistics to its makers.
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
    """Returns a digest of the source code, and the versions of packages that decide bytes."""
    root = LocalLocation(__file__).parents[2]
    sources = sorted(
        path
        for folder in ("pipeline", "data_specs")
        for path in (root / folder).rglob("*")
        if path.suffix in (".py", ".yaml")
    )
    lines = [f"{path.relative_to(root)} {path.sha256()}\n" for path in sources]
    by_package = {"offline-distill": hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            by_package[name] = importlib.metadata.version(name)
    return tuple(sorted(by_package.items()))


@dataclasses.dataclass(frozen=True)
class Node:
    """Requirements for each worker process.

    Attributes:
        environment: environment variables to set before the job's modules are imported.
        versions: the result of `versions` on the machine of the command.
        marks: marker files in folders that all nodes share, each with the setting or variable
            that names its folder.
    """

    environment: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]
    marks: tuple[tuple[str, Location], ...]


@functools.lru_cache(maxsize=1)
def set_up_worker(node: Node) -> None:
    """Sets up a worker process, and checks that its node has the same folders and packages.

    Raises:
        InterruptedRunError: a folder is not shared, or the version of a package differs.
    """
    os.environ.update(node.environment)
    backend = os.environ.get("KERAS_BACKEND")
    memory.retain_freed_memory(backend)
    if backend == "jax":
        compiled_programs.enable_compilation_cache()
    name = socket.gethostname()
    for subject, mark in node.marks:
        if not mark.is_file():
            raise InterruptedRunError(
                subject,
                "a folder on a file system that all nodes of the Ray cluster share",
                f"{mark.parent}, which is not the same on {name}",
            )
    expected, actual = dict(node.versions), dict(versions())
    for package in sorted(expected.keys() | actual.keys()):
        if expected.get(package) != actual.get(package):
            wanted = f"do not have {package}"
            if package in expected:
                wanted = f"have {package} {expected[package]}"
            raise InterruptedRunError(
                Setting("ray_address"),
                f"a cluster whose nodes {wanted}",
                f"{actual.get(package, 'none')} on {name}",
            )


# The GPUs that this process uses; empty before its first job.
_gpus: list[tuple[str, ...]] = []


def _keep_to_gpus(gpus: tuple[str, ...]) -> None:
    """Ends this worker process if its new job has other GPUs than its first one.

    The process would keep memory on the first GPUs until it ends. Ray runs the job again in
    another process.
    """
    if not _gpus:
        _gpus.append(gpus)
    if _gpus[0] != gpus:
        os._exit(1)


class Progress:
    """An actor that collects the progress reports of jobs until the command takes them."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def report(self, index: int, count: int) -> None:
        self._counts[index] = count

    def take(self) -> dict[int, int]:
        counts, self._counts = self._counts, {}
        return counts


class _Report:
    """Adds up the counts of a job, and reports the total to the actor at intervals."""

    def __init__(self, progress: Any, index: int) -> None:
        self.count = 0
        self._progress, self._index = progress, index
        self._last_report = time.monotonic()

    def __call__(self, count: int) -> None:
        self.count += count
        if time.monotonic() - self._last_report >= PROGRESS_SECONDS:
            self._last_report = time.monotonic()
            self._progress.report.remote(self._index, self.count)


def run_job(node: Node, function: bytes, progress: Any, index: int, job: Any) -> tuple[Any, int]:
    """Runs a job as a task of Ray.

    Args:
        node: requirements for the worker process.
        function: pickled function that is called with the job.
        progress: the actor `Progress`; None if progress is not reported.
        index: number of the job.
        job: the job.

    Returns:
        the result of the job, and the total of the counts that it reported.
    """
    set_up_worker(node)
    ray = import_ray()
    _keep_to_gpus(tuple(ray.get_runtime_context().get_accelerator_ids().get("GPU", ())))
    # Loading the function imports modules that read the environment, which must be set up before.
    run = ray.cloudpickle.loads(function)
    if progress is None:
        return run(job), 0
    report = _Report(progress, index)
    return run(job, report), report.count
