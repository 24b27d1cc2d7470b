"""Fixtures: caches of two random teachers over the same examples, and the merged cache."""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.storage import manifest as manifests
from pipeline.storage import serialization
from tests.conftest import make_cache, save_tiny_bert
from tests.tools.finetuning.conftest import (  # noqa: F401  (fixtures)
    model_dir,
    pair_dir,
    questions_dir,
    sentiment_dir,
    similarity_dir,
    span_teacher_dir,
    tags_dir,
    tags_teacher_dir,
    task_teacher_dir,
)
from tools.merge_caches import MergeConfig, merge_caches

Features = dict[str, bytes]


@pytest.fixture(scope="session")
def other_teacher_dir(tmp_path_factory, vocab_file) -> pathlib.Path:
    """Another random teacher."""
    return save_tiny_bert(tmp_path_factory.mktemp("other"), vocab_file, seed=8, num_layers=2)


@pytest.fixture(scope="session")
def other_cache_dir(tmp_path_factory, examples_dir, other_teacher_dir) -> pathlib.Path:
    """The other teacher's cache of the examples of `cache_dir`, with k = 12; read only."""
    folder = tmp_path_factory.mktemp("other_cache") / "teacher"
    return make_cache(folder, examples_dir, other_teacher_dir, truncation_factor=12)


@pytest.fixture(scope="session")
def merged_dir(tmp_path_factory, cache_dir, other_cache_dir) -> pathlib.Path:
    """Both caches merged with weights of 3 to 1; read only."""
    folder = tmp_path_factory.mktemp("merged") / "cache"
    merge_caches(MergeConfig((str(cache_dir), str(other_cache_dir)), str(folder), (3.0, 1.0)))
    return folder


def read_shard(folder: pathlib.Path, file: str) -> list[Features]:
    """Returns the features of each record of a shard."""
    return [
        serialization.decode_example(record) for record in serialization.read_records(folder / file)
    ]


def read_rows(folder: pathlib.Path, *splits: str) -> list[Features]:
    """Returns the features of each record of the named splits, or of all splits."""
    loaded = manifests.load(folder).splits
    shards = [shard for split in splits or loaded for shard in loaded[split]]
    return [row for shard in shards for row in read_shard(folder, shard.file)]


def copy_cache(source: pathlib.Path, folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    """Copies a cache and changes fields of its manifest."""
    shutil.copytree(source, folder)
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def rewrite_cache(
    source: pathlib.Path,
    folder: pathlib.Path,
    change: Callable[[list[Features]], list[Features]],
    **changes: Any,
) -> pathlib.Path:
    """Copies a cache with changed records in every shard, and updates its manifest."""
    copy_cache(source, folder, **changes)
    value = json.loads((folder / "manifest.json").read_text())
    for shards in value["splits"].values():
        for index, shard in enumerate(shards):
            changed = change(read_shard(source, shard["file"]))
            written_shard = serialization.write_shard(
                folder, shard["file"], [serialization.encode_example(row) for row in changed]
            )
            # The recorded number of examples stays, so it may differ from the number of records.
            recorded_count = {"num_examples": shard["num_examples"]}
            shards[index] = {**written_shard.to_json(), **recorded_count}
    (folder / "manifest.json").write_text(json.dumps(value))
    return folder
