"""Jobs of at most one shard each, and the workers that run them."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from pipeline.base.location import Location
from pipeline.runners import local, ray
from pipeline.storage import serialization
from pipeline.storage.manifest import ShardInfo


class Workers(Protocol):
    """Runs jobs in this process, in other processes of this machine or on a Ray cluster.

    Use it in a `with` block.

    Attributes:
        cpus_per_job: number of threads of a job.
        may_repeat_jobs: whether two copies of a job may run at once. Jobs must then stage their
            files, and the command publishes them.
    """

    cpus_per_job: int
    may_repeat_jobs: bool

    def __enter__(self) -> "Workers": ...

    def __exit__(self, *error: object) -> None: ...

    def warm_up(self, function: Callable[[], object]) -> None:
        """Calls a function if the jobs run in this process, so that it fails before the jobs."""

    def run(
        self,
        function: Callable[..., Any],
        jobs: Iterable[Any],
        *,
        finish: Callable[[Any], Any] | None = None,
        on_progress: Callable[[int], Any] | None = None,
    ) -> Iterator[Any]:
        """Runs a function over jobs and yields the results in the order of the jobs.

        From a lazy iterable, only a few jobs per worker are taken before their results are
        ready.

        Args:
            function: picklable function of a job. With `on_progress`, its second argument is a
                function to which the job may report counts. Results should be small.
            jobs: picklable jobs.
            finish: function that is called in this process with each result as soon as it is
                ready. Its return value is yielded instead of the result.
            on_progress: function that is called in this process with the counts that jobs
                report. The count is negative if a job was started again.

        Raises:
            InputError: the exception that a job raised. The job is not run again.
            InterruptedRunError: a job was lost with its worker or node.
        """


def open_workers(
    ray_config: ray.RayConfig | None,
    directory: Location,
    *,
    max_workers: int = 1,
    shared: Location | None = None,
) -> Workers:
    """Returns the workers of a command.

    Args:
        ray_config: settings of Ray; None for workers on this machine.
        directory: see `RayWorkers`.
        max_workers: see `LocalWorkers`.
        shared: see `RayWorkers`.
    """
    if ray_config is None:
        return local.LocalWorkers(max_workers)
    return ray.RayWorkers(ray_config, directory, shared)


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """A job that makes one shard.

    Attributes:
        split: the split of the shard.
        index: number of the shard in its split.
        file: name of the shard's file.
    """

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
    """Makes the shards of a directory and yields their manifest entries, in order of the jobs.

    Args:
        workers: the workers that run the jobs.
        directory: an existing directory for the shards.
        make: picklable function with the arguments of `function` in `Workers.run`. It returns a
            job's serialized examples and their sums for `serialization.write_shard`.
        jobs: the jobs, one for each shard.
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
