"""Tests of jobs in local processes: order, number of processes and number of waiting jobs."""

import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pipeline.base.errors import InterruptedRunError
from pipeline.runners import local

ROOT = pathlib.Path(__file__).parents[2]


def square(number: int) -> tuple[int, int]:
    """Returns a square, and the id of the process that computed it."""
    return number * number, os.getpid()


def end_process(number: int) -> None:
    """Kills the process, as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_single_worker_runs_jobs_in_this_process() -> None:
    with local.LocalWorkers(1) as workers:
        assert list(workers.run(square, range(3))) == [(n * n, os.getpid()) for n in range(3)]


def test_all_runs_use_the_same_processes() -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    with local.LocalWorkers(2) as workers:
        results = workers.run(square, numbers())
        first = next(results)
        assert first[0] == 0
        # At most two jobs per worker are taken in advance.
        assert len(taken) == 4
        rest = list(results)
        second_run = list(workers.run(square, range(20)))
    assert [square for square, _ in [first, *rest]] == [n * n for n in range(20)]
    assert [square for square, _ in second_run] == [n * n for n in range(20)]
    processes = {process for _, process in [first, *rest]}
    assert os.getpid() not in processes
    assert len(processes | {process for _, process in second_run}) <= 2


def test_workers_start_with_a_long_path_of_the_temporary_folder(tmp_path: pathlib.Path) -> None:
    """The path is longer than that of a socket may be."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    code = (
        "from pipeline.runners import local; local.prepare('json'); "
        "workers = local.LocalWorkers(2); print(list(workers.run(abs, [-1, 2])))"
    )
    environment = {**os.environ, "TMPDIR": str(folder)}
    settings = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    result = subprocess.run([sys.executable, "-c", code], **settings, timeout=60, check=False)
    assert result.stdout == "[1, 2]\n", result.stderr


def count(number: int, on_progress) -> int:
    """Reports a number in two steps."""
    on_progress(number)
    on_progress(1)
    return number


@pytest.mark.parametrize("max_workers", [1, 2])
def test_jobs_report_progress_and_finish_runs_in_this_process(max_workers: int) -> None:
    counts: list[int] = []
    with local.LocalWorkers(max_workers) as workers:
        results = workers.run(
            count, range(4), finish=lambda n: (n, os.getpid()), on_progress=counts.append
        )
        assert list(results) == [(n, os.getpid()) for n in range(4)]
    assert sum(counts) == 0 + 1 + 2 + 3 + 4


def test_killed_worker_raises_an_error_about_max_workers() -> None:
    with local.LocalWorkers(2) as workers, pytest.raises(InterruptedRunError) as raised:
        list(workers.run(end_process, range(4)))
    assert raised.value.subject == "max_workers"
