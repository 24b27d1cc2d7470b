"""Runs jobs in processes of this machine."""

import collections
import concurrent.futures
import contextlib
import functools
import gc
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

# Maximum length of a socket's path that all systems support, in bytes.
_MAX_SOCKET_PATH_BYTES = 103


def num_cpus() -> int:
    """Returns the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _initialize_worker() -> None:
    """Configures this worker's allocator, and makes the worker end together with its parent.

    Otherwise a worker whose parent was killed would wait for jobs forever.
    """
    memory.retain_freed_memory(os.environ.get("KERAS_BACKEND"))
    # The objects of imported modules live as long as the worker: the garbage collector skips them.
    gc.freeze()
    parent = multiprocessing.parent_process()

    def exit_with_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


def _process_context() -> multiprocessing.context.BaseContext:
    """Returns a context that never forks this process, because it may have threads."""
    method = "spawn"
    if "forkserver" in multiprocessing.get_all_start_methods():
        # The server's socket is in the temporary folder, whose path may be too long.
        address = multiprocessing.connection.arbitrary_address("AF_UNIX")
        method = "forkserver" if len(os.fsencode(address)) <= _MAX_SOCKET_PATH_BYTES else "spawn"
    return multiprocessing.get_context(method)


def prepare(*modules: str) -> None:
    """Starts a fork server that imports modules, so that workers start with them.

    Without a fork server, each worker takes about a second to import them.
    """
    context = _process_context()
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["__main__", *modules])
        multiprocessing.forkserver.ensure_running()


def _run_counting(function: Callable[..., Any], reports: bool, job: Any) -> tuple[Any, int]:
    """Runs a job in a worker. Returns its result and the total of the counts that it reported."""
    counts: list[int] = []
    return function(job, *[counts.append] * reports), sum(counts)


class LocalWorkers:
    """Worker processes on this machine; see `pipeline.runners.workers.Workers`.

    All calls of `run` use the same processes.

    Args:
        max_workers: number of processes. With 1, all jobs run in this process.
    """

    may_repeat_jobs = False

    def __init__(self, max_workers: int) -> None:
        self.cpus_per_job = num_cpus()
        self._max_workers = max_workers
        self._pool = concurrent.futures.ProcessPoolExecutor(
            max_workers, mp_context=_process_context(), initializer=_initialize_worker
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
        """See `Workers`. With one worker, functions and jobs need not be picklable.

        Raises:
            InterruptedRunError: a worker was killed, for example because memory ran out.
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
                received=f"one of {self._max_workers} worker processes was killed, perhaps because "
                "memory ran out",
                hint="re-run the command to resume, with fewer workers if memory ran out",
            ) from error
        finally:
            for future in pending:
                future.cancel()
