"""Task distillation: a cache of a fine-tuned teacher's logits of the training inputs.

The directory has the layout of a teacher cache: `request.json`, shards with their
sidecars, and the manifest, which is written last. It is valid for exactly these inputs.
Every student that reads the same inputs learns from it without the teacher.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from data_specs.records import EXAMPLE_ID, TASK_LOGITS, TASK_LOGITS_FEATURES, TEACHER_LOGITS
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.models.formats.model_directory import ModelSource
from pipeline.storage import arrays, serialization
from pipeline.storage import manifest as manifests
from pipeline.storage.manifest import TRAIN, Manifest, ShardInfo
from tools.finetuning import heads, prediction
from tools.finetuning.inputs import Feature, Padding, input_digest
from tools.finetuning.task_inputs import TaskInputs

_, _LOGITS = TASK_LOGITS_FEATURES
# The number of inputs in a shard. A resumed run repeats at most one shard.
_SHARD_SIZE = 4_096
_BATCH_SIZE = 64


def cached_logits(
    directory: Location, inputs: TaskInputs, teacher: ModelSource | None, *, compute_dtype: str
) -> list[np.ndarray]:
    """Returns a teacher's logits of inputs from a cache, which is created if it is missing.

    Args:
        directory: directory of the cache.
        inputs: the inputs.
        teacher: a teacher that was fine-tuned on the task; None to take a complete cache of
            any teacher.
        compute_dtype: dtype policy of the teacher's encoder.

    Returns:
        the logits of each input, float32 [C], [2, L] or [L, C].

    Raises:
        InputError: the cache has a different task, tokens, lengths or teacher, or is damaged.
    """
    check_cache(directory, inputs, teacher, compute_dtype=compute_dtype)
    if teacher is None:
        manifest = manifests.load(directory)
    else:
        manifest = _make_cache(directory, inputs, teacher, compute_dtype)
    manifests.verify(directory, manifest, full=True)
    paths = [directory / shard.file for shard in manifest.splits.get(TRAIN, ())]
    return list(_read_logits(paths, inputs))


def check_cache(
    directory: Location, inputs: TaskInputs, teacher: ModelSource | None, *, compute_dtype: str
) -> None:
    """Checks that a directory has a teacher's logits or can receive them; changes nothing.

    Arguments and errors are those of `cached_logits`.
    """
    _expect_task(directory, inputs.task)
    if teacher is None:
        _expect_inputs(directory, manifests.load(directory), inputs)
    else:
        manifests.check_output_dir(directory, _run_config(inputs, teacher, compute_dtype))


def _run_config(inputs: TaskInputs, teacher: ModelSource, compute_dtype: str) -> dict[str, Any]:
    return {
        "kind": TASK_LOGITS,
        **inputs.describe(),
        "teacher": teacher.sha256(),
        "compute_dtype": compute_dtype,
    }


def _expect_task(directory: Location, task: str) -> None:
    """Checks the task first, because another task explains all other differences."""
    path = directory / manifests.RUN_CONFIG_FILE
    cached_task = path.read_json().get("task", task) if path.is_file() else task
    if cached_task != task:
        raise InputError(directory, f"logits of {task}", f"those of {cached_task}")


def _expect_inputs(directory: Location, manifest: Manifest, inputs: TaskInputs) -> None:
    if manifest.kind != TASK_LOGITS:
        raise InputError(directory, f"{TASK_LOGITS} of a fine-tuned teacher", manifest.kind)
    expected_inputs = inputs.describe()
    cached_inputs = {name: manifest.flags.get(name) for name in expected_inputs}
    difference = manifests.describe_difference(cached_inputs, expected_inputs)
    if difference:
        raise InputError(directory, received=f"it holds logits of other inputs: {difference}")


def _make_cache(
    directory: Location, inputs: TaskInputs, teacher: ModelSource, compute_dtype: str
) -> Manifest:
    if (directory / manifests.MANIFEST_FILE).is_file():
        return manifests.load(directory)
    run_config = _run_config(inputs, teacher, compute_dtype)
    manifests.reserve_output_dir(directory, run_config)
    manifest = Manifest(
        kind=TASK_LOGITS,
        vocab=inputs.vocab,
        special_ids=inputs.special_ids,
        max_seq_length=inputs.max_seq_length,
        max_predictions_per_seq=0,
        dupe_factor=1,
        seed=0,
        flags=run_config,
        splits={TRAIN: _write_shards(directory, inputs, teacher, compute_dtype)},
    )
    manifests.publish(directory, manifest)
    return manifest


def _write_shards(
    directory: Location, inputs: TaskInputs, teacher: ModelSource, compute_dtype: str
) -> tuple[ShardInfo, ...]:
    """Writes the missing shards; loads the teacher only if a shard is missing."""
    features = inputs.features
    count = math.ceil(len(features) / _SHARD_SIZE)
    starts = range(0, len(features), _SHARD_SIZE)
    features_by_file = {
        manifests.shard_file(TRAIN, index, count): features[start : start + _SHARD_SIZE]
        for index, start in enumerate(starts)
    }
    shards = {file: manifests.completed_shard(directory, file) for file in features_by_file}
    missing = [file for file, shard in shards.items() if shard is None]
    if missing:
        forward = _load_teacher(inputs, teacher, compute_dtype)
        total = sum(len(features_by_file[file]) for file in missing)
        padding = Padding(_BATCH_SIZE, inputs.max_seq_length, teacher.config.type_vocab_size)
        with tqdm.tqdm(total=total, unit=" inputs", desc="teacher", smoothing=0.1) as bar:
            for file in missing:
                logits = prediction.predict_logits(
                    forward, features_by_file[file], padding, bar=bar
                )
                records = _records(features_by_file[file], logits)
                shards[file] = serialization.write_shard(directory, file, records)
    return tuple(shards[file] for file in features_by_file)


def _load_teacher(
    inputs: TaskInputs, teacher: ModelSource, compute_dtype: str
) -> prediction.Forward:
    model = heads.build_head(teacher, inputs.head, dtype=compute_dtype, keep_head=True)
    return prediction.compile_forward(model)


def _records(features: Sequence[Feature], logits: Sequence[np.ndarray]) -> Iterator[bytes]:
    for feature, value in zip(features, logits, strict=True):
        record = {
            EXAMPLE_ID: input_digest(feature),
            TEACHER_LOGITS: arrays.encode(_LOGITS, value, vocab_size=0),
        }
        yield serialization.encode_example(record)


def _read_logits(paths: Sequence[Location], inputs: TaskInputs) -> Iterator[np.ndarray]:
    """Yields the logits of each input, after a check that they belong to it."""
    stored = ((path, record) for path in paths for record in serialization.read_records(path))
    for number, feature in enumerate(inputs.features):
        path, record = next(stored, (None, b""))
        if path is None:
            raise InputError(paths[0].parent, f"{len(inputs.features)} records", number)
        shape = [inputs.head.num_outputs]
        if feature.token_axis is not None:
            shape.insert(feature.token_axis, len(feature.input_ids))
        try:
            yield _decode(serialization.decode_example(record), feature, shape)
        except (KeyError, ValueError) as error:
            raise InputError(path, received=f"a damaged record ({error})") from error


def _decode(record: Mapping[str, bytes], feature: Feature, shape: Sequence[int]) -> np.ndarray:
    if record[EXAMPLE_ID] != input_digest(feature):
        raise ValueError("it belongs to another input")
    return arrays.decode(_LOGITS, record[TEACHER_LOGITS], vocab_size=0).reshape(shape)
