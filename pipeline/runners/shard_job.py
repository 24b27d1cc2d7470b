"""The unit of work of every stage: one shard."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """One shard to be made.

    Attributes:
        split: `train` or `eval`.
        index: its number within the split.
        file: its file name.
    """

    split: str
    index: int
    file: str


def assigned_jobs(
    jobs: Sequence[ShardJob], *, num_tasks: int, task_index: int
) -> tuple[ShardJob, ...]:
    """Returns the share of one of several processes that were started by hand.

    Args:
        jobs: all jobs, in the same order in every process.
        num_tasks: how many processes there are.
        task_index: which one this is, from 0.
    """
    return tuple(jobs[task_index::num_tasks])
