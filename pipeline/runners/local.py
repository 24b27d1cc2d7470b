"""Jobs over the processes of this machine."""

import collections
import concurrent.futures
import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import multiprocessing.context
import multiprocessing.forkserver
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pipeline.base import memory
from pipeline.base.errors import InterruptedRunError, Setting

# Bytes of the path of a socket: what all systems take.
_MAX_SOCKET_PATH = 103


def num_cpus() -> int:
    """Returns how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _begin_worker() -> None:
    """Prepares this worker: it ends with its parent, else it would wait for jobs for ever."""
    memory.keep_freed(os.environ.get("KERAS_BACKEND"))
    parent = multiprocessing.parent_process()

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _process_context() -> multiprocessing.context.BaseContext:
    """Returns how processes begin: never as copies of this one, which may have threads."""
    way = "spawn"
    if "forkserver" in multiprocessing.get_all_start_methods():
        # It is reached below the temporary folder, whose name may be too long for that.
        address = multiprocessing.connection.arbitrary_address("AF_UNIX")
        way = "forkserver" if len(os.fsencode(address)) <= _MAX_SOCKET_PATH else "spawn"
    return multiprocessing.get_context(way)


def prepare(*modules: str) -> None:
    """Imports modules for the workers to come, which begin as copies of a process with these.

    Otherwise, and where the system has no such process, each takes a second to import them.
    """
    context = _process_context()
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["__main__", *modules])
        multiprocessing.forkserver.ensure_running()


def _run_counting(function: Callable[..., Any], reports: bool, job: Any) -> tuple[Any, int]:
    """Runs a job in a worker; returns its result, and how much it reported to have done."""
    counts: list[int] = []
    return function(job, *[counts.append] * reports), sum(counts)


class LocalWorkers:
    """Worker processes of this machine; see `pipeline.runners.workers.Workers`.

    They are the same ones for all calls of `run`.

    Args:
        max_workers: processes; with 1 all is done in this one.
    """

    may_repeat_jobs = False

    def __init__(self, max_workers: int) -> None:
        self.cpus_per_job = num_cpus()
        self._max_workers = max_workers
        self._pool = concurrent.futures.ProcessPoolExecutor(
            max_workers, mp_context=_process_context(), initializer=_begin_worker
        )

    def __enter__(self) -> "LocalWorkers":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def warm_up(self, function: Callable[[], object]) -> None:
        """See `Workers`."""
        if self._max_workers == 1:
            function()

    def run(
        self,
        function: Callable[..., Any],
        jobs: Iterable[Any],
        *,
        finish: Callable[[Any], Any] | None = None,
        on_progress: Callable[[int], Any] | None = None,
    ) -> Iterator[Any]:
        """See `Workers`; with one worker, neither functions nor jobs need be picklable.

        Raises:
            InterruptedRunError: a worker was killed, for example for want of memory.
        """
        finish = finish or (lambda result: result)
        if self._max_workers == 1:
            report = [] if on_progress is None else [on_progress]
            for job in jobs:
                yield finish(function(job, *report))
            return
        counting = functools.partial(_run_counting, function, on_progress is not None)
        with contextlib.closing(self._run_in_processes(counting, jobs)) as results:
            for result, count in results:
                if on_progress is not None:
                    on_progress(count)
                yield finish(result)

    def _run_in_processes(self, function: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator:
        pending: collections.deque[concurrent.futures.Future] = collections.deque()
        try:
            for job in jobs:
                pending.append(self._pool.submit(function, job))
                if len(pending) >= 2 * self._max_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise InterruptedRunError(
                Setting("max_workers"),
                received="a worker process was killed, perhaps for want of memory",
                hint=f"received {self._max_workers} workers. Re-run the command to resume",
            ) from error
        finally:
            for future in pending:
                future.cancel()
