"""Training reads each record once per epoch; a resumed stream continues the original order."""

import itertools
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.records import MASKED_EXAMPLES
from pipeline.storage import manifest, reader, serialization, shuffling
from pipeline.storage.cache_input import CacheInput
from pipeline.tokenizers import vocabulary

COUNTS = st.lists(st.integers(1, 20), min_size=1, max_size=12)


def _shards(counts: list[int]) -> list[manifest.ShardInfo]:
    return [
        manifest.ShardInfo(manifest.shard_file("train", i, len(counts)), count, 0, "0" * 64)
        for i, count in enumerate(counts)
    ]


@given(COUNTS, st.integers(0, 100), st.integers(0, 300), st.integers(1, 4))
def test_groups_of_a_resumed_stream_continue_the_original_groups(
    counts: list[int], seed: int, start: int, group_size: int
) -> None:
    shards = _shards(counts)
    sizes = {shard.file: shard.num_examples for shard in shards}

    def positions(begin: int) -> list[tuple[int, int]]:
        """Identifies each of the next 100 records by its group's seed and its index in it."""
        groups = shuffling.record_groups(shards, seed, start=begin, group_size=group_size)
        stream = (
            (group.shuffle_seed, index)
            for group in groups
            for index in range(group.skip, sum(sizes[file] for file in group.files))
        )
        return list(itertools.islice(stream, 100))

    groups = shuffling.record_groups(shards, seed, start=0, group_size=group_size)
    stream = (
        (group.shuffle_seed, index)
        for group in groups
        for index in range(sum(sizes[file] for file in group.files))
    )
    assert positions(start) == list(itertools.islice(stream, start, start + 100))


@given(COUNTS, st.integers(0, 100))
def test_an_epoch_reads_every_shard_once(counts: list[int], seed: int) -> None:
    shards = _shards(counts)
    groups = shuffling.record_groups(shards, seed, start=0, group_size=3)
    per_epoch = -(-len(counts) // 3)
    for _ in range(3):
        files = [file for group in itertools.islice(groups, per_epoch) for file in group.files]
        assert sorted(files) == [shard.file for shard in shards]


@given(COUNTS, st.integers(0, 100), st.integers(1, 4), st.integers(0, 300))
def test_streams_divide_an_epoch_and_resume_independently(
    counts: list[int], seed: int, streams: int, start: int
) -> None:
    """Each shard is in one stream; streams have different seeds of their shuffle buffers."""
    streams = min(streams, len(counts))
    shards = _shards(counts)
    sizes = {shard.file: shard.num_examples for shard in shards}

    def epochs(stream: int, begin: int = 0) -> list[shuffling.RecordGroup]:
        groups = shuffling.record_groups(
            shards, seed, start=begin, group_size=2, num_streams=streams, stream=stream
        )
        return list(itertools.takewhile(lambda group: group.epoch < 5, groups))

    groups_of_streams = [epochs(stream) for stream in range(streams)]
    all_groups = list(itertools.chain.from_iterable(groups_of_streams))
    for epoch in range(5):
        files = [file for group in all_groups if group.epoch == epoch for file in group.files]
        assert sorted(files) == sorted(sizes)
    seeds = [group.shuffle_seed for group in all_groups]
    assert len(seeds) == len(set(seeds))
    for stream, groups in enumerate(groups_of_streams):
        records = [
            (group.shuffle_seed, index)
            for group in groups
            for index in range(sum(sizes[file] for file in group.files))
        ]
        resumed = [
            (group.shuffle_seed, index)
            for group in epochs(stream, start)
            for index in range(group.skip, sum(sizes[file] for file in group.files))
        ]
        assert resumed == records[start:]


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> tuple[pathlib.Path, manifest.Manifest]:
    """Eleven shards of five records, each of which names its shard and its index."""
    infos = [
        serialization.write_shard(
            tmp_path,
            manifest.shard_file("train", shard, 11),
            [b"%d/%d" % (shard, index) for index in range(5)],
        )
        for shard in range(11)
    ]
    described = manifest.Manifest(
        kind=MASKED_EXAMPLES,
        vocab=vocabulary.vocab_info(["x"]),
        special_ids={},
        max_seq_length=1,
        max_predictions_per_seq=1,
        dupe_factor=1,
        seed=0,
        flags={},
        splits={"train": tuple(infos)},
    )
    return tmp_path, described


def _take(directory, *, seed: int, start: int, count: int) -> list[bytes]:
    path, described = directory
    dataset = reader.training_records(
        CacheInput(path, described), "train", seed=seed, start=start, buffer=20
    )
    taken = list(dataset.take(count).as_numpy_iterator())
    # An epoch has eleven shards of five records.
    assert [epoch for _, epoch in taken] == [(start + n) // 55 for n in range(count)]
    return [record for record, _ in taken]


def test_records_of_different_shards_are_mixed(directory) -> None:
    records = _take(directory, seed=1, start=0, count=165)
    epochs = [records[begin : begin + 55] for begin in (0, 55, 110)]
    assert all(len(set(epoch)) == 55 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert len({record.split(b"/")[0] for record in records[:8]}) >= 4
    assert records == _take(directory, seed=1, start=0, count=165)
    assert records != _take(directory, seed=2, start=0, count=165)


@pytest.mark.parametrize("start", [1, 17, 40, 54, 55, 56, 100, 163])
def test_records_of_a_resumed_stream_continue_the_original_order(directory, start: int) -> None:
    uninterrupted = _take(directory, seed=3, start=0, count=165)
    assert _take(directory, seed=3, start=start, count=165 - start) == uninterrupted[start:]
