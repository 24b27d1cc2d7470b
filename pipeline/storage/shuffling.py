"""The order in which training reads a split: a function of seed and epoch alone.

An epoch visits the shards in a random order, a group of them at a time; within
a group records are taken from each in turn and go through a shuffle buffer. A
run that resumes skips whole groups by the manifest's counts and only re-reads
the group it stopped in.

Example: shards of 10, 10 and 5 records in groups of two. Record 27 of the
stream is in epoch 1 (25 records each) and, if that epoch's order is (2, 0, 1),
in its first group, after two others: `RecordGroup(("c", "a"), skip=2, …, epoch=1)`.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from pipeline import seeding
from pipeline.storage.manifest import ShardInfo

# Shards read in turn. More would mix better and cost open files and memory.
GROUP_SIZE = 8


@dataclasses.dataclass(frozen=True)
class RecordGroup:
    """A stretch of the stream.

    Attributes:
        files: the shards read in turn.
        skip: records at its beginning, in shuffled order, to leave out.
        shuffle_seed: seeds the group's shuffle buffer.
        epoch: which visit of the split it belongs to, from 0.
    """

    files: tuple[str, ...]
    skip: int
    shuffle_seed: int
    epoch: int


def record_groups(
    shards: Sequence[ShardInfo], seed: int, *, start: int, group_size: int = GROUP_SIZE
) -> Iterator[RecordGroup]:
    """Yields the endless stream of a split from its `start`-th record on.

    Args:
        shards: the split's shards, in the manifest's order.
        seed: the run's seed.
        start: records already used, over all epochs.
        group_size: shards read in turn.
    """
    total = sum(shard.num_examples for shard in shards)
    epoch, skip = divmod(start, total)
    while True:
        order = seeding.stream(seed, "shard order", epoch).permutation(len(shards))
        for begin in range(0, len(shards), group_size):
            group = [shards[index] for index in order[begin : begin + group_size]]
            count = sum(shard.num_examples for shard in group)
            if skip < count:
                yield RecordGroup(
                    files=tuple(shard.file for shard in group),
                    skip=skip,
                    shuffle_seed=seeding.hash64(seed, "record order", epoch, begin) >> 1,
                    epoch=epoch,
                )
            skip = max(0, skip - count)
        epoch += 1
