"""Stage 1b: the teacher runs once over masked examples; what it says is cached."""

import dataclasses
import functools
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tqdm

from data_specs import records
from pipeline.models.formats import model_directory
from pipeline.runners import local, ray
from pipeline.runners.shard_job import ShardJob, assigned_jobs
from pipeline.storage import cache_input, serialization
from pipeline.storage import manifest as manifests
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.manifest import FileInfo, Manifest, ShardInfo
from pipeline.teacher import cache_request, cluster_capture, shard_capture, teacher_input
from pipeline.teacher.settings import TeacherCacheConfig


def create_teacher_cache(config: TeacherCacheConfig) -> Manifest | None:
    """Makes a teacher cache, or finishes one, or does this task's share of it.

    Args:
        config: what was asked for.

    Returns:
        the manifest, or None where shards of other tasks are still missing.

    Raises:
        InputError: the masked examples, the teacher or the directory is not as
            it must be. Shards that are whole stay.
    """
    source = teacher_input.find_teacher(config)
    cache = teacher_input.open_examples(config, source)
    request = cache_request.make_request(config, cache, source)
    manifests.check_output_dir(config.output_dir, request)
    if (config.output_dir / manifests.MANIFEST_FILE).is_file():
        return manifests.load(config.output_dir)
    manifests.verify(cache.directory, cache.manifest, full=config.verify == "full")
    jobs = [
        ShardJob(split, index, shard.file)
        for split, shards in cache.manifest.splits.items()
        for index, shard in enumerate(shards)
    ]
    mine = assigned_jobs(jobs, num_tasks=config.num_tasks, task_index=config.task_index)
    missing = [job for job in mine if not manifests.completed_shard(config.output_dir, job.file)]
    make = _make_shards if config.ray is None else _make_shards_on_ray
    made = make(config, cache, source, request, missing) if missing else []
    return _publish_when_complete(config, cache, request, made)


def _count_tokens(
    config: TeacherCacheConfig, cache: CacheInput, request: Mapping[str, Any]
) -> FileInfo | None:
    info = cache_request.teacher_info(request)
    return cache_input.count_tokens(config.output_dir, info, cache.directory, cache.manifest)


def _make_shards(
    config: TeacherCacheConfig,
    cache: CacheInput,
    source: model_directory.ModelSource,
    request: Mapping[str, Any],
    jobs: Sequence[ShardJob],
) -> list[ShardInfo]:
    """Makes shards in this process."""
    model = model_directory.load_masked_lm(
        source, dtype=config.compute_dtype, logits_dtype="float32"
    )
    manifests.reserve_output_dir(config.output_dir, request)
    _count_tokens(config, cache, request)
    info = cache_request.teacher_info(request)
    capture = shard_capture.make_capture(config, cache, source, model, info)
    write = functools.partial(serialization.write_shard, config.output_dir)
    with progress_bar(cache, jobs) as bar:
        told = dataclasses.replace(capture, on_examples=bar.update)
        return [
            shard_capture.capture_shard(told, cache.directory / job.file, write) for job in jobs
        ]


def _make_shards_on_ray(
    config: TeacherCacheConfig,
    cache: CacheInput,
    source: model_directory.ModelSource,
    request: Mapping[str, Any],
    jobs: Sequence[ShardJob],
) -> list[ShardInfo]:
    """Makes shards on the nodes of a cluster, each of which opens the teacher itself."""
    with ray.Workers(config.ray, config.output_dir) as workers:
        manifests.reserve_output_dir(config.output_dir, request)
        _count_tokens(config, cache, request)
        with progress_bar(cache, jobs) as bar:
            return list(cluster_capture.make_shards(config, workers, jobs, bar.update))


def progress_bar(cache: CacheInput, jobs: Sequence[ShardJob]) -> tqdm.tqdm:
    """Returns a bar of the examples of some shards of `cache`, the masked examples."""
    splits = cache.manifest.splits
    total = sum(splits[job.split][job.index].num_examples for job in jobs)
    return tqdm.tqdm(total=total, unit=" examples", desc="teacher", smoothing=0.1)


def _publish_when_complete(
    config: TeacherCacheConfig,
    cache: CacheInput,
    request: Mapping[str, Any],
    made: Sequence[ShardInfo],
) -> Manifest | None:
    """Publishes the cache, of which some shards have just been made, if none is missing."""
    here = {shard.file: shard for shard in made}
    splits: dict[str, tuple[ShardInfo, ...]] = {}
    for split, shards in cache.manifest.splits.items():
        done = [
            here.get(shard.file) or manifests.completed_shard(config.output_dir, shard.file)
            for shard in shards
        ]
        if None in done:
            return None
        splits[split] = tuple(shard for shard in done if shard is not None)
    manifests.copy_tokenizer(cache.directory, cache.manifest, config.output_dir)
    # What a byte-equal repetition needs, beside the request.
    environment = {
        "machine": platform.machine(),
        "threads": local.num_cpus() if config.ray is None else config.ray.cpus_per_job,
        "keras": keras.__version__,
        **cache_input.environment(config.logit_encoding),
    }
    manifest = dataclasses.replace(
        cache.manifest,
        kind=records.TEACHER_CACHE,
        flags={**cache.manifest.flags, **request},
        splits=splits,
        statistics={**cache.manifest.statistics, "environment": environment},
        teacher_info=cache_request.teacher_info(request),
        token_counts=_count_tokens(config, cache, request),
    )
    manifests.publish(config.output_dir, manifest)
    return manifest
