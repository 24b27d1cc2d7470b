"""Jobs, each of one shard or less, and the workers that run them."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from pipeline.base.location import Location
from pipeline.runners import local, ray
from pipeline.storage import serialization
from pipeline.storage.manifest import ShardInfo


class Workers(Protocol):
    """Runs jobs in this process, in others of this machine, or on a Ray cluster: in a `with` block.

    Attributes:
        cpus_per_job: how many threads a job has.
        may_repeat_jobs: whether two copies of a job may run at once, so that its files must
            be staged, and published by the command.
    """

    cpus_per_job: int
    may_repeat_jobs: bool

    def __enter__(self) -> "Workers": ...

    def __exit__(self, *error: object) -> None: ...

    def warm_up(self, function: Callable[[], object]) -> None:
        """Calls a function if the jobs run in this process, so that it fails before them."""

    def run(
        self,
        function: Callable[..., Any],
        jobs: Iterable[Any],
        *,
        finish: Callable[[Any], Any] | None = None,
        on_progress: Callable[[int], Any] | None = None,
    ) -> Iterator[Any]:
        """Runs a function over jobs and yields the results in the jobs' order.

        Of a lazy `jobs` at most a few a worker are taken ahead of their results.

        Args:
            function: picklable; called with a job and, with `on_progress`, a function that
                the job may tell of what it has done. Results are small.
            jobs: picklable.
            finish: called in this process with each result, as soon as it comes; what it
                returns is yielded instead.
            on_progress: called in this process with what jobs report; with a negative number
                where a job has begun anew.

        Raises:
            InputError: what a job raised; it is not run again.
            InterruptedRunError: a job was lost with its worker or node.
        """


def open_workers(
    ray_config: ray.RayConfig | None,
    directory: Location,
    *,
    max_workers: int = 1,
    shared: Location | None = None,
) -> Workers:
    """Returns `LocalWorkers`, or, where it is configured, `RayWorkers`; see these."""
    if ray_config is None:
        return local.LocalWorkers(max_workers)
    return ray.RayWorkers(ray_config, directory, shared)


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """One shard to be made, by its split, its index there and its file's name."""

    split: str
    index: int
    file: str


def make_shards(
    workers: Workers,
    directory: Location,
    make: Callable[..., tuple[Iterable[bytes], serialization.Sums | None]],
    jobs: Iterable[ShardJob],
    on_progress: Callable[[int], Any] | None = None,
) -> Iterator[ShardInfo]:
    """Makes shards of a directory and yields what they are, in the jobs' order.

    Args:
        workers: what runs the jobs.
        directory: where the shards go; it exists.
        make: picklable; called as `Workers.run` says. Returns a job's serialized examples,
            and what `serialization.write_shard` takes as their sums.
        jobs: the shards.
        on_progress: see `Workers.run`.
    """
    directory, finish, write = directory.absolute(), None, serialization.write_shard
    if workers.may_repeat_jobs:
        finish = functools.partial(serialization.publish_shard, directory)
        write = serialization.stage_shard
    job = functools.partial(_write_shard, make, functools.partial(write, directory))
    return workers.run(job, jobs, finish=finish, on_progress=on_progress)


def _write_shard(make: Callable[..., Any], write: Callable[..., Any], job: ShardJob, *on_progress):
    return write(job.file, *make(job, *on_progress))
