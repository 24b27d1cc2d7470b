"""The order in which training reads a split; a function of the seed and the epoch.

An epoch reads the shards in a random order, in shard groups. Within a group, records are taken
from each shard in turn and pass through a shuffle buffer. A resumed run skips complete groups by
the manifest's counts, and reads again only the group in which it stopped. With several data
streams, each epoch's shards are dealt to the streams in turn, and each stream is read
independently.

Example: shards a, b and c of 10, 10 and 5 records are read in groups of two. An epoch has 25
records, so record 27 is in epoch 1. If the order of that epoch is (2, 0, 1), the record is
in its first group, after two others: `RecordGroup(("c", "a"), skip=2, …, epoch=1)`.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from pipeline.base import seeding
from pipeline.storage.manifest import ShardInfo

# Shards of a group. More shards would mix better, but need more open files and memory.
GROUP_SIZE = 8


@dataclasses.dataclass(frozen=True)
class DataStreams:
    """The data streams of an update, and those that this process reads.

    Attributes:
        count: S, the number of streams; each supplies 1/S of the examples of an update.
        first: index of the first stream that this process reads.
        own: number of consecutive streams that this process reads.
    """

    count: int = 1
    first: int = 0
    own: int = 1


@dataclasses.dataclass(frozen=True)
class RecordGroup:
    """A shard group of a stream.

    Attributes:
        files: names of the shards.
        skip: number of records to skip at the beginning, in shuffled order.
        shuffle_seed: seed of the group's shuffle buffer.
        epoch: number of the epoch, from 0.
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
    """Yields the shard groups of the endless stream of a split, from its `start`-th record.

    Example: with two streams and an epoch's order (2, 0, 1), stream 0 reads the shards 2 and 1,
    and stream 1 reads the shard 0. Other epochs have other orders.

    Args:
        shards: the split's shards, in the manifest's order; at least `num_streams`.
        seed: the run's seed.
        start: number of records of this stream that were used before, over all epochs.
        group_size: shards of a group.
        num_streams: S.
        stream: index of the stream.
    """
    epoch, skip = 0, start
    if num_streams == 1:
        epoch, skip = divmod(start, sum(shard.num_examples for shard in shards))
    while True:
        order = seeding.keyed_rng(seed, "shard order", epoch).permutation(len(shards))
        order = order[stream::num_streams]
        for begin in range(0, len(order), group_size):
            group = [shards[index] for index in order[begin : begin + group_size]]
            count = sum(shard.num_examples for shard in group)
            if skip < count:
                # The index of the group's first shard among the shards of all streams.
                index = begin * num_streams + stream
                yield RecordGroup(
                    files=tuple(shard.file for shard in group),
                    skip=skip,
                    shuffle_seed=seeding.hash64(seed, "record order", epoch, index) >> 1,
                    epoch=epoch,
                )
            skip = max(0, skip - count)
        epoch += 1
