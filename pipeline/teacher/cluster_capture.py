"""Stage 1b on the nodes of a Ray cluster: the teacher is loaded once a worker process."""

import dataclasses
import functools
import socket
from collections.abc import Callable, Iterator, Sequence

from pipeline.base.errors import InputError, Setting
from pipeline.models.formats import model_directory
from pipeline.runners import ray
from pipeline.runners.shard_job import ShardJob
from pipeline.storage import manifest as manifests
from pipeline.storage import serialization
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.manifest import ShardInfo
from pipeline.storage.serialization import StagedShard
from pipeline.teacher import cache_request, shard_capture, teacher_input
from pipeline.teacher.settings import TeacherCacheConfig
from pipeline.teacher.shard_capture import Capture

_PATHS = (
    "output_dir",
    "input_dir",
    "input_file",
    "teacher",
    "bert_config_file",
    "init_checkpoint",
)


@functools.lru_cache(maxsize=1)
def _open(config: TeacherCacheConfig) -> tuple[Capture, CacheInput]:
    """Returns the teacher, loaded, and the masked examples; one of each a process.

    Raises:
        InputError: this node sees others than the command did.
    """
    source = teacher_input.find_teacher(config)
    cache = teacher_input.open_examples(config, source)
    request = cache_request.make_request(config, cache, source)
    wanted = (config.output_dir / manifests.REQUEST_FILE).read_json()
    difference = manifests.describe_difference(wanted, request)
    if difference:
        raise InputError(
            Setting("runner"),
            "each node to see the teacher and the masked examples under the same paths",
            f"other ones on {socket.gethostname()}: {difference}",
        )
    model = model_directory.load_masked_lm(
        source, dtype=config.compute_dtype, logits_dtype="float32"
    )
    info = cache_request.teacher_info(request)
    return shard_capture.make_capture(config, cache, source, model, info), cache


def _stage_shard(
    config: TeacherCacheConfig, job: ShardJob, on_examples: Callable[[int], None]
) -> StagedShard:
    """The job: runs on a node."""
    capture, cache = _open(config)
    only = {job.split: (cache.manifest.splits[job.split][job.index],)}
    narrowed = dataclasses.replace(cache.manifest, splits=only, token_counts=None)
    manifests.verify(cache.directory, narrowed, full=False)
    stage = functools.partial(serialization.stage_shard, config.output_dir)
    told = dataclasses.replace(capture, on_examples=on_examples)
    return shard_capture.capture_shard(told, cache.directory / job.file, stage)


def make_shards(
    config: TeacherCacheConfig,
    workers: ray.Workers,
    jobs: Sequence[ShardJob],
    on_examples: Callable[[int], object],
) -> Iterator[ShardInfo]:
    """Makes shards on a cluster and yields what they are.

    Args:
        config: what was asked for; its directory is claimed.
        workers: the cluster, for that directory.
        jobs: the shards.
        on_examples: called with numbers of examples just done.

    Raises:
        InputError: a node does not see what the command sees, or a shard cannot be made.
    """
    # Worker processes begin in other folders.
    paths = {name: getattr(config, name) for name in _PATHS}
    whole = {name: str(path.absolute()) for name, path in paths.items() if path is not None}
    stage = functools.partial(_stage_shard, dataclasses.replace(config, **whole))
    publish = functools.partial(serialization.publish_shard, config.output_dir)
    return workers.run(stage, jobs, finish=publish, on_progress=on_examples)
