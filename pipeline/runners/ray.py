"""Jobs over the nodes of a Ray cluster.

    the command ─ jobs ─► Ray ─► tasks in worker processes, on any node
        ▲                          │ small results, counts for the progress bar
        └──────────────────────────┘

A task that was lost with its worker or node is done again by Ray, elsewhere. Ray may
lose sight of a node that works on, so that two copies of a task run at once: what
they make must be staged, and published by the command, which gets one of the results.
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pipeline.base.compiled_programs import FOLDER_VARIABLE
from pipeline.base.errors import InputError, InterruptedRunError, Setting
from pipeline.base.local_mirror import CACHE_VARIABLE, LIMIT_VARIABLE
from pipeline.base.location import Location
from pipeline.base.settings import Settings, setting
from pipeline.runners import local, ray_job

AUTO = "auto"
# Seconds: for a cluster to answer at all, and for a first connection to it.
_ANSWER, _CONNECTION = 10.0, 60.0
# Seconds between two looks at the nodes.
_NODES = 5.0
# What killed commands and their jobs leave.
_LEFT = (".ray-*.tmp", ".*.tfrecord.*.tmp", ".*.spill.*.tmp")
# Seconds for jobs that are not wanted any more to end.
_END = 30.0


@dataclasses.dataclass(frozen=True)
class RayConfig(Settings):
    """How jobs run on Ray; the flags of `runner`=ray are generated from it.

    `ray_address` is None for a Ray of this machine alone, which begins and ends with
    the jobs.
    """

    ray_address: str | None = setting(
        None,
        "Requires `runner`=ray. Address of the cluster: host:port, or auto on one of its nodes. "
        "By default Ray is started on this machine alone for the run.",
        decides_output=False,
    )
    cpus_per_job: int = setting(
        1, "Requires `runner`=ray. Processors, and threads, of a job.", low=1, decides_output=False
    )
    gpus_per_job: int = setting(
        0, "Requires `runner`=ray. GPUs of a job.", low=0, decides_output=False
    )

    def import_ray(self) -> Any:
        """Returns the package, which must not have been imported before."""
        if self.ray_address is None:
            # Ray's way to stay on the loopback, where nobody else can send it jobs.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        return ray_job.import_ray()


def _expect_answer(address: str) -> None:
    """Refuses an address at which nothing listens."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or "/" in host or not port.isdecimal():
        expected = f"{AUTO} or host:port of the cluster's head, from one of its nodes"
        raise InputError(Setting("ray_address"), expected, address)
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER).close()
    except (OSError, OverflowError, ValueError) as error:
        received = f"nothing answers at {address}: {error}"
        raise InputError(Setting("ray_address"), received=received) from error


def _expect_cluster(address: str) -> None:
    """Tries in another process whether Ray answers; else it tries for minutes, and ends it."""
    code = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False)"
    command = [sys.executable, "-c", code, address]
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=_CONNECTION, check=True)
        return
    except subprocess.TimeoutExpired:
        received = f"no Ray cluster answers at {address} within {_CONNECTION:.0f} s"
    except subprocess.CalledProcessError as error:
        last = [f"exit status {error.returncode}", *error.stderr.strip().splitlines()][-1]
        received = f"cannot join the Ray cluster at {address}: {last}"
    raise InputError(Setting("ray_address"), received=received)


def _environment(config: RayConfig) -> tuple[tuple[str, str], ...]:
    threads = str(config.cpus_per_job)
    # TensorFlow's, those of JAX on a CPU, and the tokenizers'.
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "NPROC", "RAYON_NUM_THREADS")
    found = dict.fromkeys(names, threads)
    if not config.gpus_per_job:
        # Other jobs may have been given those that are there.
        found |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    names = (
        "KERAS_BACKEND",
        "TF_CPP_MIN_LOG_LEVEL",
        CACHE_VARIABLE,
        LIMIT_VARIABLE,
        FOLDER_VARIABLE,
    )
    for name in names:
        if name in os.environ:
            found[name] = os.environ[name]
    return tuple(found.items())


class _Tally:
    """Turns what jobs say of themselves into steps of one progress bar."""

    def __init__(self, ray: Any, on_progress: Callable[[int], Any]) -> None:
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._ray, self._on_progress = ray, on_progress
        self.actor = ray.remote(num_cpus=0, scheduling_strategy=here)(ray_job.Progress).remote()
        self._asked = self.actor.take.remote()
        self._running: dict[int, int] = {}
        self._done: dict[int, int] = {}
        self._shown = 0

    def add(self, ended: dict[int, int]) -> None:
        """Notes what jobs have done that have ended, and those that are at work."""
        self._done |= ended
        # A bar that stands still is no reason to stop.
        with contextlib.suppress(self._ray.exceptions.RayError):
            if self._ray.wait([self._asked], timeout=0)[0]:
                self._running |= self._ray.get(self._asked)
                self._asked = self.actor.take.remote()
        # Less than before where a job has begun anew.
        count = sum((self._running | self._done).values())
        self._on_progress(count - self._shown)
        self._shown = count


class RayWorkers:
    """Worker processes of a cluster; see `pipeline.runners.workers.Workers`.

    Args:
        config: which cluster, and what a job needs of a node.
        directory: what jobs write into: on a file system that all nodes share, and
            there when jobs begin. No other such command may be at work in it.
        shared: a folder of such a file system, there as well, in which jobs find what
            others have made; where `directory` is in a bucket, in the cache folder.
    """

    # A node of which Ray loses sight works on, beside the job's second run.
    may_repeat_jobs = True

    def __init__(
        self, config: RayConfig, directory: Location, shared: Location | None = None
    ) -> None:
        self.cpus_per_job = config.cpus_per_job
        self._config = config
        self._directory = directory.absolute()
        self._shared = None if shared is None else shared.absolute()
        self._stack = contextlib.ExitStack()
        self._node: ray_job.Node | None = None
        self._slots, self._counted = 1, -_NODES

    def __enter__(self) -> "RayWorkers":
        address = self._config.ray_address
        if address not in (None, AUTO):
            _expect_answer(address)
        self._ray = self._config.import_ray()
        settings: dict[str, Any] = {"address": address or "local"}
        if address is None:
            settings |= {"num_cpus": local.num_cpus(), "include_dashboard": False}
        else:
            _expect_cluster(address)
        with contextlib.ExitStack() as stack:
            stack.callback(self._ray.shutdown)
            try:
                self._ray.init(**settings, log_to_driver=False, logging_level=logging.CRITICAL)
            # Ray has no class of its own for a machine that is too slow, or has no room.
            except Exception as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise InterruptedRunError(
                    Setting("runner"),
                    received=f"Ray does not begin: {reason}",
                    hint="run the command again",
                ) from error
            self._expect_room()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def warm_up(self, function: Callable[[], object]) -> None:
        """See `Workers`: no job runs in this process."""

    def _count_slots(self) -> int:
        """Returns how many jobs the nodes can do at once, as far as is known now."""
        if time.monotonic() - self._counted >= _NODES:
            config = self._config
            self._slots = 0
            for node in self._ray.nodes():
                has = node["Resources"] if node["Alive"] else {}
                fit = int(has.get("CPU", 0.0)) // config.cpus_per_job
                if config.gpus_per_job:
                    fit = min(fit, int(has.get("GPU", 0.0)) // config.gpus_per_job)
                self._slots += fit
            self._counted = time.monotonic()
        return self._slots

    def _expect_room(self) -> None:
        if self._count_slots():
            return
        wanted = f"{self._config.cpus_per_job} CPUs and {self._config.gpus_per_job} GPUs"
        if self._config.ray_address is None:
            expected = "what this machine has, as `gpus_per_job`"
            raise InputError(Setting("cpus_per_job"), expected, wanted)
        # An autoscaler may bring one.
        print(f"no node of the cluster has the {wanted} of a job yet: waiting", file=sys.stderr)

    def _share(self) -> ray_job.Node:
        """Marks the directory as this command's, once."""
        if self._node is None:
            self._stack.enter_context(self._directory.lock())
            marks = [(Setting("output_dir"), self._mark(self._directory))]
            if self._shared is not None:
                marks.append((CACHE_VARIABLE, self._mark(self._shared)))
            environment = _environment(self._config)
            self._node = ray_job.Node(environment, ray_job.versions(), tuple(marks))
        return self._node

    def _mark(self, folder: Location) -> Location:
        """Writes a file by which nodes know the folder, which is this command's alone."""
        # In a bucket nothing is locked: what is there may be another command's.
        if folder.is_local:
            for left in itertools.chain(*map(folder.glob, _LEFT)):
                left.unlink(missing_ok=True)
        mark = folder / f".ray-{secrets.token_hex(8)}.tmp"
        mark.write_bytes(b"")
        self._stack.callback(mark.unlink, missing_ok=True)
        return mark

    def run(
        self,
        function: Callable[..., Any],
        jobs: Iterable[Any],
        *,
        finish: Callable[[Any], Any] | None = None,
        on_progress: Callable[[int], Any] | None = None,
    ) -> Iterator[Any]:
        """See `Workers`."""
        tally = None if on_progress is None else _Tally(self._ray, on_progress)
        made: dict[int, Any] = {}
        due = 0
        with contextlib.closing(self._completed(function, jobs, tally)) as completed:
            for index, result in completed:
                made[index] = result if finish is None else finish(result)
                while due in made:
                    yield made.pop(due)
                    due += 1

    def _completed(
        self, function: Callable[..., Any], jobs: Iterable[Any], tally: _Tally | None
    ) -> Iterator[tuple[int, Any]]:
        """Yields jobs' numbers and results, in the order in which they end."""
        submit = self._submitter(function, tally and tally.actor)
        at_work: dict[Any, int] = {}
        try:
            for index, job in enumerate(jobs):
                at_work[submit(index, job)] = index
                while len(at_work) >= 2 * max(1, self._count_slots()):
                    yield from self._collect(at_work, tally)
            while at_work:
                yield from self._collect(at_work, tally)
        # Of the cluster itself: its store or its disk is full, its head is gone.
        except self._ray.exceptions.RayError as error:
            raise InterruptedRunError(
                Setting("runner"),
                received=f"Ray cannot go on: {_said(error)}",
                hint="re-run the command to resume",
            ) from error
        finally:
            if at_work and self._ray.is_initialized():
                for reference in at_work:
                    self._ray.cancel(reference, force=True)
                # They write into the directory.
                self._ray.wait(list(at_work), num_returns=len(at_work), timeout=_END)

    def _submitter(self, function: Callable[..., Any], progress: Any) -> Callable[[int, Any], Any]:
        """Returns what makes a job, and its number, a task."""
        ray = self._ray
        task = ray.remote(
            num_cpus=self._config.cpus_per_job,
            num_gpus=self._config.gpus_per_job,
            max_retries=ray_job.MAX_RETRIES,
            # Worker processes stay, with what they have loaded.
            max_calls=0,
        )(ray_job.run_job)
        node, pickled = ray.put(self._share()), ray.put(ray.cloudpickle.dumps(function))
        return functools.partial(task.remote, node, pickled, progress)

    def _collect(self, at_work: dict[Any, int], tally: _Tally | None) -> list[tuple[int, Any]]:
        """Waits a little for a job to end and takes it out of `at_work`."""
        ended, _ = self._ray.wait(list(at_work), timeout=ray_job.PROGRESS_SECONDS)
        results = [(self._get(reference), at_work.pop(reference)) for reference in ended]
        if tally is not None:
            tally.add({index: count for (_, count), index in results})
        return [(index, result) for (result, _), index in results]

    def _get(self, reference: Any) -> tuple[Any, int]:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, InputError | OSError):
                raise error.cause from None
            missing = re.search(r"No module named '[^']*'", str(error.cause))
            if missing:
                raise InterruptedRunError(
                    Setting("ray_address"),
                    f"the packages of this command on every node, one says: {missing[0]}",
                    hint="install them there",
                ) from error
            raise
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
            raise InterruptedRunError(
                Setting("runner"),
                received=f"a job was lost with its worker or node {ray_job.MAX_RETRIES + 1} times, "
                f"perhaps for want of memory: {_said(error)}",
                hint="re-run the command to resume",
            ) from error


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
