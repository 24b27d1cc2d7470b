"""Jobs over processes: their order, which processes, and how far ahead jobs are taken."""

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
    """Returns a square, and which process computed it."""
    return number * number, os.getpid()


def end_process(number: int) -> None:
    """Ends the process as the kernel does that is out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_one_worker_is_this_process() -> None:
    with local.LocalWorkers(1) as workers:
        assert list(workers.run(square, range(3))) == [(n * n, os.getpid()) for n in range(3)]


def test_the_same_processes_do_all_runs() -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    with local.LocalWorkers(2) as workers:
        results = workers.run(square, numbers())
        first = next(results)
        assert first[0] == 0
        # Two jobs wait for each worker, and no more.
        assert len(taken) == 4
        rest = list(results)
        again = list(workers.run(square, range(20)))
    assert [square for square, _ in [first, *rest]] == [n * n for n in range(20)]
    assert [square for square, _ in again] == [n * n for n in range(20)]
    processes = {process for _, process in [first, *rest]}
    assert os.getpid() not in processes
    assert len(processes | {process for _, process in again}) <= 2


def test_the_temporary_folder_may_have_a_long_name(tmp_path: pathlib.Path) -> None:
    """Longer than the path of a socket may be."""
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
def test_jobs_report_progress_and_results_are_finished_here(max_workers: int) -> None:
    counts: list[int] = []
    with local.LocalWorkers(max_workers) as workers:
        results = workers.run(
            count, range(4), finish=lambda n: (n, os.getpid()), on_progress=counts.append
        )
        assert list(results) == [(n, os.getpid()) for n in range(4)]
    assert sum(counts) == 0 + 1 + 2 + 3 + 4


def test_a_killed_worker_is_reported() -> None:
    with local.LocalWorkers(2) as workers, pytest.raises(InterruptedRunError) as raised:
        list(workers.run(end_process, range(4)))
    assert raised.value.subject == "max_workers"
