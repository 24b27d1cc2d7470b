"""Runs jobs on the nodes of a Ray cluster.

    the command ─ jobs ─► Ray ─► tasks in worker processes, on any node
        ▲                          │ small results, counts for the progress bar
        └──────────────────────────┘

If a task is lost with its worker or node, Ray runs it again. Ray may lose contact with a node
that still works, so two copies of a task run at once. Tasks therefore stage their files. The
command receives one of the results, and publishes its files.
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
# Timeouts for the TCP connection to a cluster's head, and for joining the cluster.
_CONNECT_SECONDS, _JOIN_SECONDS = 10.0, 60.0
# Interval at which the nodes are counted.
_COUNT_NODES_SECONDS = 5.0
# Patterns of the files that killed commands and their jobs leave.
_ABANDONED_FILES = (".ray-*.tmp", ".*.tfrecord.*.tmp", ".*.spill.*.tmp")
# Timeout for canceled jobs to end.
_CANCEL_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class RayConfig(Settings):
    """Settings of Ray, for `runner`=ray.

    Without a `ray_address`, Ray runs on this machine alone. It is started and stopped with the
    jobs.
    """

    ray_address: str | None = setting(
        None,
        "Requires `runner`=ray. Address of the cluster: host:port, or auto on one of its nodes. "
        "By default, Ray is started on this machine for the run.",
        decides_output=False,
    )
    cpus_per_job: int = setting(
        1,
        "Requires `runner`=ray. Number of processors and threads of a job.",
        low=1,
        decides_output=False,
    )
    gpus_per_job: int = setting(
        0, "Requires `runner`=ray. Number of GPUs of a job.", low=0, decides_output=False
    )

    def import_ray(self) -> Any:
        """Returns the package `ray`, which must not have been imported before."""
        if self.ray_address is None:
            # This makes Ray listen on the loopback interface only, so that no other machine can
            # send it jobs.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        return ray_job.import_ray()


def _expect_answer(address: str) -> None:
    """Checks that a server listens at an address."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or "/" in host or not port.isdecimal():
        expected = f"host:port of the cluster's head, or {AUTO} if this machine is one of its nodes"
        raise InputError(Setting("ray_address"), expected, address)
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError, ValueError) as error:
        received = f"no server answers at {address}: {error}"
        raise InputError(Setting("ray_address"), received=received) from error


def _expect_cluster(address: str) -> None:
    """Checks in another process that a Ray cluster can be joined.

    If it cannot be joined, `ray.init` retries for minutes and then ends its process.
    """
    code = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False)"
    command = [sys.executable, "-c", code, address]
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=_JOIN_SECONDS, check=True)
        return
    except subprocess.TimeoutExpired:
        received = f"no Ray cluster answers at {address} within {_JOIN_SECONDS:.0f} s"
    except subprocess.CalledProcessError as error:
        last_line = [f"exit status {error.returncode}", *error.stderr.strip().splitlines()][-1]
        received = f"cannot join the Ray cluster at {address}: {last_line}"
    raise InputError(Setting("ray_address"), received=received)


def _environment(config: RayConfig) -> tuple[tuple[str, str], ...]:
    """Returns the environment variables of jobs."""
    threads = str(config.cpus_per_job)
    # The number of threads of TensorFlow, of JAX on a CPU, and of the tokenizers.
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "NPROC", "RAYON_NUM_THREADS")
    environment = dict.fromkeys(names, threads)
    if not config.gpus_per_job:
        # The node's GPUs, if any, may be in use by other jobs.
        environment |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    names = (
        "KERAS_BACKEND",
        "TF_CPP_MIN_LOG_LEVEL",
        CACHE_VARIABLE,
        LIMIT_VARIABLE,
        FOLDER_VARIABLE,
    )
    for name in names:
        if name in os.environ:
            environment[name] = os.environ[name]
    return tuple(environment.items())


class _ProgressTotal:
    """Converts the progress reports of jobs to steps of one progress bar."""

    def __init__(self, ray: Any, on_progress: Callable[[int], Any]) -> None:
        this_node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._ray, self._on_progress = ray, on_progress
        make_actor = ray.remote(num_cpus=0, scheduling_strategy=this_node)(ray_job.Progress)
        self.actor = make_actor.remote()
        self._request = self.actor.take.remote()
        self._running: dict[int, int] = {}
        self._done: dict[int, int] = {}
        self._shown = 0

    def add(self, ended: dict[int, int]) -> None:
        """Adds the counts of ended jobs and the latest reports of running ones.

        Args:
            ended: counts of the ended jobs, keyed by their numbers.
        """
        self._done |= ended
        # The run continues if the actor fails; only the progress bar stops.
        with contextlib.suppress(self._ray.exceptions.RayError):
            if self._ray.wait([self._request], timeout=0)[0]:
                self._running |= self._ray.get(self._request)
                self._request = self.actor.take.remote()
        # The total decreases if a job was started again.
        count = sum((self._running | self._done).values())
        self._on_progress(count - self._shown)
        self._shown = count


class RayWorkers:
    """Worker processes of a cluster; see `pipeline.runners.workers.Workers`.

    Args:
        config: address of the cluster, and resources of a job.
        directory: the directory that jobs write to. It exists when jobs start, on a file system
            that all nodes share. No other command may write to it.
        shared: an existing folder on such a file system, in which jobs exchange files. If
            `directory` is in a bucket, it is in the local mirror.
    """

    # If Ray loses contact with a node, the node continues its job while another repeats it.
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
        self._slots, self._count_time = 1, -_COUNT_NODES_SECONDS

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
            # Ray raises various exceptions on a slow machine or a full disk.
            except Exception as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise InterruptedRunError(
                    Setting("runner"),
                    received=f"Ray cannot be started: {reason}",
                    hint="run the command again",
                ) from error
            self._expect_slots()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def warm_up(self, function: Callable[[], object]) -> None:
        """See `Workers`: no job runs in this process."""

    def _count_slots(self) -> int:
        """Returns the number of jobs that the nodes can run at once, updated every few seconds."""
        if time.monotonic() - self._count_time >= _COUNT_NODES_SECONDS:
            config = self._config
            self._slots = 0
            for node in self._ray.nodes():
                resources = node["Resources"] if node["Alive"] else {}
                slots = int(resources.get("CPU", 0.0)) // config.cpus_per_job
                if config.gpus_per_job:
                    slots = min(slots, int(resources.get("GPU", 0.0)) // config.gpus_per_job)
                self._slots += slots
            self._count_time = time.monotonic()
        return self._slots

    def _expect_slots(self) -> None:
        """Checks that a node has the resources of a job.

        If a node of a cluster may still join, a line about the wait is printed instead.
        """
        if self._count_slots():
            return
        required = f"{self._config.cpus_per_job} CPUs and {self._config.gpus_per_job} GPUs"
        if self._config.ray_address is None:
            resources = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            cpus, gpus = (
                int(sum(amounts.get(name, 0.0) for amounts in resources)) for name in ("CPU", "GPU")
            )
            expected = f"at most the {cpus} CPUs and {gpus} GPUs of this machine"
            raise InputError(Setting("cpus_per_job"), expected, required)
        # An autoscaler may start such a node.
        print(f"waiting for a node of the cluster with {required} for a job", file=sys.stderr)

    def _share(self) -> ray_job.Node:
        """Locks the directory at the first call. Returns the requirements for worker processes."""
        if self._node is None:
            self._stack.enter_context(self._directory.lock())
            marks = [(Setting("output_dir"), self._mark(self._directory))]
            if self._shared is not None:
                marks.append((CACHE_VARIABLE, self._mark(self._shared)))
            environment = _environment(self._config)
            self._node = ray_job.Node(environment, ray_job.versions(), tuple(marks))
        return self._node

    def _mark(self, folder: Location) -> Location:
        """Writes a marker file by which nodes recognize a folder, and removes abandoned files."""
        # A bucket has no locks, so its files may belong to another running command.
        if folder.is_local:
            for path in itertools.chain(*map(folder.glob, _ABANDONED_FILES)):
                path.unlink(missing_ok=True)
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
        total = None if on_progress is None else _ProgressTotal(self._ray, on_progress)
        results: dict[int, Any] = {}
        next_index = 0
        with contextlib.closing(self._completed(function, jobs, total)) as completed:
            for index, result in completed:
                results[index] = result if finish is None else finish(result)
                while next_index in results:
                    yield results.pop(next_index)
                    next_index += 1

    def _completed(
        self, function: Callable[..., Any], jobs: Iterable[Any], total: _ProgressTotal | None
    ) -> Iterator[tuple[int, Any]]:
        """Yields the numbers and results of jobs, in the order in which the jobs end."""
        submit = self._submitter(function, total and total.actor)
        running: dict[Any, int] = {}
        try:
            for index, job in enumerate(jobs):
                running[submit(index, job)] = index
                while len(running) >= 2 * max(1, self._count_slots()):
                    yield from self._collect(running, total)
            while running:
                yield from self._collect(running, total)
        # These are errors of the cluster, for example a full disk or the loss of its head.
        except self._ray.exceptions.RayError as error:
            raise InterruptedRunError(
                Setting("runner"),
                received=f"Ray cannot continue: {_one_line(error)}",
                hint="re-run the command to resume",
            ) from error
        finally:
            if running and self._ray.is_initialized():
                for reference in running:
                    self._ray.cancel(reference, force=True)
                # Until they end, the canceled jobs may write to the directory.
                self._ray.wait(list(running), num_returns=len(running), timeout=_CANCEL_SECONDS)

    def _submitter(self, function: Callable[..., Any], progress: Any) -> Callable[[int, Any], Any]:
        """Returns a function that submits a job with its number as a task."""
        ray = self._ray
        task = ray.remote(
            num_cpus=self._config.cpus_per_job,
            num_gpus=self._config.gpus_per_job,
            max_retries=ray_job.MAX_RETRIES,
            # Worker processes are reused, so that each loads its models only once.
            max_calls=0,
        )(ray_job.run_job)
        node, pickled = ray.put(self._share()), ray.put(ray.cloudpickle.dumps(function))
        return functools.partial(task.remote, node, pickled, progress)

    def _collect(
        self, running: dict[Any, int], total: _ProgressTotal | None
    ) -> list[tuple[int, Any]]:
        """Waits for a job to end, until a timeout, and removes ended jobs from `running`.

        Returns:
            the numbers and results of the ended jobs.
        """
        ended, _ = self._ray.wait(list(running), timeout=ray_job.PROGRESS_SECONDS)
        results = [(self._get(reference), running.pop(reference)) for reference in ended]
        if total is not None:
            total.add({index: count for (_, count), index in results})
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
                    "a cluster whose nodes have the packages of this command",
                    missing[0],
                    hint="install the package on every node",
                ) from error
            raise
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
            raise InterruptedRunError(
                Setting("runner"),
                received=f"a job was lost with its worker or node {ray_job.MAX_RETRIES + 1} times, "
                f"perhaps because memory ran out: {_one_line(error)}",
                hint="re-run the command to resume",
            ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
