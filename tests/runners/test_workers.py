"""Tests that workers write shards, or stage and publish them."""

import pytest

from pipeline.runners import local, workers
from pipeline.runners.workers import ShardJob
from pipeline.storage import manifest as manifests
from pipeline.storage import serialization


def make(job: ShardJob):
    """Returns the records of a shard, without sums."""
    return [job.file.encode()] * (job.index + 1), None


@pytest.mark.parametrize("may_repeat_jobs", [False, True])
def test_shards_are_written_or_staged_and_published(tmp_path, may_repeat_jobs: bool) -> None:
    jobs = [ShardJob("train", index, manifests.shard_file("train", index, 3)) for index in range(3)]
    with local.LocalWorkers(1) as local_workers:
        local_workers.may_repeat_jobs = may_repeat_jobs
        shards = list(workers.make_shards(local_workers, tmp_path, make, jobs))
    assert [shard.num_examples for shard in shards] == [1, 2, 3]
    for job, shard in zip(jobs, shards, strict=True):
        assert manifests.completed_shard(tmp_path, job.file) == shard
        assert list(serialization.read_records(tmp_path / job.file)) == make(job)[0]
    assert not list(tmp_path.glob("*.tmp"))
