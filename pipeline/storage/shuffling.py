"""The order in which training reads a split: a function of seed and epoch alone.

An epoch visits the shards in a random order, a group of them at a time; within
a group records are taken from each in turn and go through a shuffle buffer. A
run that resumes skips whole groups by the manifest's counts and only re-reads
the group it stopped in. Where several data streams are asked for, each epoch's
shards are dealt to them in turn, and each stream goes its own way.

Example: shards of 10, 10 and 5 records in groups of two. Record 27 of the
stream is in epoch 1 (25 records each) and, if that epoch's order is (2, 0, 1),
in its first group, after two others: `RecordGroup(("c", "a"), skip=2, …, epoch=1)`.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from pipeline.base import seeding
from pipeline.storage.manifest import ShardInfo

# Shards read in turn. More would mix better and cost open files and memory.
GROUP_SIZE = 8


@dataclasses.dataclass(frozen=True)
class DataStreams:
    """The streams that the examples of an update come from, and which of them are read here.

    Attributes:
        count: S; each gives an S-th part of every update.
        first: the first that this process reads.
        own: how many it reads, from there on.
    """

    count: int = 1
    first: int = 0
    own: int = 1


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
    shards: Sequence[ShardInfo],
    seed: int,
    *,
    start: int,
    group_size: int = GROUP_SIZE,
    num_streams: int = 1,
    stream: int = 0,
) -> Iterator[RecordGroup]:
    """Yields the endless stream of a split from its `start`-th record on.

    Example: of two streams and an epoch's order (2, 0, 1), stream 0 reads the shards 2
    and 1, stream 1 the shard 0; in another epoch others.

    Args:
        shards: the split's shards, in the manifest's order; at least `num_streams`.
        seed: the run's seed.
        start: records already used of this stream, over all epochs.
        group_size: shards read in turn.
        num_streams: S.
        stream: which of them.
    """
    epoch, skip = 0, start
    if num_streams == 1:
        epoch, skip = divmod(start, sum(shard.num_examples for shard in shards))
    while True:
        order = seeding.stream(seed, "shard order", epoch).permutation(len(shards))
        order = order[stream::num_streams]
        for begin in range(0, len(order), group_size):
            group = [shards[index] for index in order[begin : begin + group_size]]
            count = sum(shard.num_examples for shard in group)
            if skip < count:
                # By the place among all streams' shards.
                place = begin * num_streams + stream
                yield RecordGroup(
                    files=tuple(shard.file for shard in group),
                    skip=skip,
                    shuffle_seed=seeding.hash64(seed, "record order", epoch, place) >> 1,
                    epoch=epoch,
                )
            skip = max(0, skip - count)
        epoch += 1
