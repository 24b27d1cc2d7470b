"""What a teacher cache is asked to hold, as its `request.json` says it."""

from collections.abc import Mapping
from typing import Any

import keras

from data_specs import records
from pipeline.base.errors import naming_setting
from pipeline.models import layer_groups
from pipeline.models.formats import model_directory
from pipeline.models.layer_groups import TeacherGroup
from pipeline.storage import manifest as manifests
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.manifest import TOPK, TeacherInfo
from pipeline.teacher.settings import TeacherCacheConfig


def truncation_factor(config: TeacherCacheConfig, source: model_directory.ModelSource) -> int:
    """Returns k, at most the vocabulary's size."""
    return min(config.truncation_factor, source.config.vocab_size)


def find_groups(
    config: TeacherCacheConfig, source: model_directory.ModelSource
) -> tuple[TeacherGroup, ...]:
    """Returns the groups of layers whose hidden states are kept; none unless asked for."""
    if config.cache_hidden_states is None:
        return ()
    with naming_setting("cache_hidden_states"):
        return layer_groups.parse_teacher_groups(
            config.cache_hidden_states, source.config.num_hidden_layers
        )


def make_request(
    config: TeacherCacheConfig, cache: CacheInput, source: model_directory.ModelSource
) -> dict[str, Any]:
    """Returns the settings that decide the data, as JSON values.

    Args:
        config: what was asked for.
        cache: the masked examples.
        source: the teacher, whose files are read for their digest.
    """
    groups = find_groups(config, source)
    hidden = {
        "hidden_groups": [str(group) for group in groups],
        "hidden_encoding": config.hidden_encoding,
        "hidden_size": source.config.hidden_size,
    }
    mass = config.truncation_mass
    shards = [shard.file for shards in cache.manifest.splits.values() for shard in shards]
    whole = manifests.load(cache.directory)
    return {
        "kind": records.TEACHER_CACHE,
        "parent": {"sha256": whole.sha256()},
        "shards": shards,
        "teacher": {"config": source.config.to_dict(), "sha256": source.sha256()},
        "truncation_factor": truncation_factor(config, source),
        "temperatures": list(config.temperatures),
        "logit_encoding": config.logit_encoding,
        # Absent without, as in requests from before there were any.
        **(hidden if groups else {}),
        **({} if config.truncation == TOPK else {"truncation": config.truncation}),
        **({} if mass is None else {"truncation_mass": mass}),
        "compute_dtype": config.compute_dtype,
        "predict_batch_size": config.predict_batch_size,
        "backend": keras.config.backend(),
    }


def teacher_info(request: Mapping[str, Any]) -> TeacherInfo:
    """Returns what a cache holds that a request asks for."""
    return TeacherInfo(
        truncation_factor=request["truncation_factor"],
        logit_encoding=request["logit_encoding"],
        temperatures=tuple(request["temperatures"]),
        teacher=request["teacher"],
        parent=request["parent"],
        hidden_groups=tuple(request.get("hidden_groups", ())),
        hidden_encoding=request.get("hidden_encoding"),
        hidden_size=request.get("hidden_size"),
        truncation=request.get("truncation", TOPK),
        truncation_mass=request.get("truncation_mass"),
    )
