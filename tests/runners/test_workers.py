"""Shards made by workers, and configs for jobs that begin in other folders."""

import dataclasses

import pytest

from pipeline.base.location import Location
from pipeline.base.settings import Settings
from pipeline.runners import local, workers
from pipeline.runners.workers import ShardJob
from pipeline.storage import manifest as manifests
from pipeline.storage import serialization


@dataclasses.dataclass(frozen=True)
class Config(Settings):
    """Settings with locations."""

    output_dir: Location
    input_dir: Location | None = None
    size: int = 1


def test_locations_become_absolute_and_keep_their_setting(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    config = workers.absolute_locations(Config("made", "gs://bucket/there"))
    assert str(config.output_dir) == str(tmp_path / "made")
    assert config.output_dir.setting == "output_dir"
    assert str(config.input_dir) == "gs://bucket/there" and config.size == 1


def make(job: ShardJob):
    """Returns the records of a shard, of which nothing is measured."""
    return [job.file.encode()] * (job.index + 1), None


@pytest.mark.parametrize("may_repeat_jobs", [False, True])
def test_shards_are_written_or_staged_and_published(tmp_path, may_repeat_jobs: bool) -> None:
    jobs = [ShardJob("train", index, manifests.shard_file("train", index, 3)) for index in range(3)]
    with local.LocalWorkers(1) as these:
        these.may_repeat_jobs = may_repeat_jobs
        shards = list(workers.make_shards(these, tmp_path, make, jobs))
    assert [shard.num_examples for shard in shards] == [1, 2, 3]
    for job, shard in zip(jobs, shards, strict=True):
        assert manifests.completed_shard(tmp_path, job.file) == shard
        assert list(serialization.read_records(tmp_path / job.file)) == make(job)[0]
    assert not list(tmp_path.glob("*.tmp"))
