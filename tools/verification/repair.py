"""Repair of a teacher cache: broken files are renamed, and capture makes the missing files.

A renamed file gets the suffix `.broken`, the manifest gets `.old`. The cache is unfinished until
capture publishes the manifest again. To finish an interrupted repair, re-run the repair or the
original `create_teacher_output_data` command. On the same hardware, all bytes are the same.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from pipeline.base import compute_dtype
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.models.formats.model_directory import ModelSource
from pipeline.storage import cache_tokenizer
from pipeline.storage import manifest as manifests
from pipeline.storage.manifest import Manifest
from pipeline.teacher import capture
from pipeline.teacher.capture import Inputs
from pipeline.teacher.settings import TeacherCacheConfig
from tools.verification.directory_checks import OLD_MANIFEST, TOKENIZER, check_sidecar


def recorded_config(
    directory: Location, manifest: Manifest, *, teacher: Location, examples: Location | None
) -> TeacherCacheConfig:
    """Returns the settings that a manifest records for its cache.

    Raises:
        InputError: the cache is a merged one, or a setting is missing.
    """
    info, flags = manifest.teacher_info, manifest.flags
    if "merged" in info.teacher:
        expected = (
            f"unset for {directory}, which was merged from {len(info.teacher['merged'])} caches"
        )
        hint = "re-run offline_distill merge_caches with the same settings and an empty directory"
        raise InputError(Setting("teacher"), expected, teacher, hint)
    dtype, batch_size = flags.get("compute_dtype"), flags.get("predict_batch_size")
    is_size = type(batch_size) is int and batch_size >= 1
    if dtype not in (compute_dtype.FLOAT32, compute_dtype.BFLOAT16) or not is_size:
        expected = "a compute_dtype and a predict_batch_size among the flags"
        path = directory / manifests.MANIFEST_FILE
        raise InputError(path, expected, f"{dtype!r} and {batch_size!r}")
    return TeacherCacheConfig(
        output_dir=directory,
        input_dir=examples,
        teacher=teacher,
        **({} if info.holds_states else {"truncation_factor": info.truncation_factor}),
        temperatures=info.temperatures,
        truncation=info.truncation,
        truncation_mass=info.truncation_mass,
        logit_encoding=info.logit_encoding,
        state_bits=info.state_bits,
        cache_hidden_states=",".join(info.hidden_groups) or None,
        hidden_encoding=info.hidden_encoding or "float16",
        cache_embedding=info.embedding,
        compute_dtype=dtype,
        predict_batch_size=batch_size,
        # The other shards exist already, so a repair does not evaluate the teacher.
        force=True,
    )


def expect_recorded_teacher(directory: Location, manifest: Manifest, source: ModelSource) -> None:
    """Raises InputError unless the teacher is the one of the cache."""
    recorded, received = manifest.teacher_info.teacher["sha256"], source.sha256()
    if recorded != received:
        expected = f"the teacher of {directory}, SHA-256 {recorded}"
        raise InputError(Setting("teacher"), expected, f"{source.directory}, SHA-256 {received}")


def open_inputs(config: TeacherCacheConfig, manifest: Manifest, source: ModelSource) -> Inputs:
    """Opens the masked examples, restricted to the shards that the cache has.

    Raises:
        InputError: the cache was not made from these examples, or its manifest differs from the
            settings that a repair would use.
    """
    examples, source = capture.open_examples(config, source)
    recorded, digest = manifest.teacher_info.parent, examples.manifest.sha256()
    if recorded != {"sha256": digest}:
        expected = f"the masked examples of {config.output_dir} (manifest SHA-256 "
        expected += f"{recorded.get('sha256')})"
        received = f"{config.input_dir} (manifest SHA-256 {digest})"
        raise InputError(Setting("examples"), expected, received)
    names = {shard.file for shard in manifest.shards}
    splits = {
        split: captured
        for split, shards in examples.manifest.splits.items()
        if (captured := tuple(shard for shard in shards if shard.file in names))
    }
    restricted = dataclasses.replace(examples.manifest, splits=splits)
    examples = dataclasses.replace(examples, manifest=restricted)
    settings = capture.run_configuration(config, examples, source)
    recorded = {name: manifest.flags.get(name) for name in settings}
    sides = "manifest has", "repair would use"
    if difference := manifests.describe_difference(recorded, settings, sides):
        received = f"{config.output_dir} cannot be repaired, because its manifest differs from "
        received += f"the settings that a repair would use: {difference}"
        hint = "make the cache again in an empty directory"
        raise InputError(Setting("repair"), received=received, hint=hint)
    return Inputs(config, source, examples, settings, manifest.teacher_info.teacher.get("hub"))


def repair(
    inputs: Inputs, manifest: Manifest, problems: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Makes broken files again, and the missing files of an interrupted repair.

    Args:
        inputs: as `open_inputs` returns them.
        manifest: of the cache; the old one after an interruption.
        problems: of each broken file, by its name.

    Yields:
        a line for each action.

    Raises:
        InputError: another process works in the cache, or the masked examples are damaged.
    """
    directory, examples = inputs.config.output_dir, inputs.cache
    path, old = directory / manifests.MANIFEST_FILE, directory / OLD_MANIFEST
    with directory.lock():
        # The masked examples must be valid before any file is renamed.
        manifests.verify(examples.directory, examples.manifest, full=True)
        broken = list(_broken_files(inputs, manifest, problems))
        for name in broken:
            if new_path := _set_aside(directory / name, "broken"):
                yield f"{name}: renamed to {new_path.name}"
        if manifests.RUN_CONFIG_FILE in broken:
            (directory / manifests.RUN_CONFIG_FILE).write_json(dict(inputs.run_configuration))
        for shard in manifest.shards:
            sidecar = manifests.sidecar_path(directory, shard.file)
            if sidecar.name in broken and shard.file not in broken:
                sidecar.write_json(shard.to_json())
        # The manifest is renamed last. If the repair stops before, verification finds the
        # missing files.
        old = _set_aside(path, "old") or old
        capture.finish_teacher_cache(inputs)
        new_sha256 = {shard.file: shard.sha256 for shard in manifests.load(directory).shards}
        old_sha256 = {shard.file: shard.sha256 for shard in manifest.shards}
        for name, sha256 in old_sha256.items():
            if new_sha256[name] != sha256:
                yield f"{name}: made again, other bytes, SHA-256 {new_sha256[name]}"
        for name in broken:
            if name in new_sha256 and new_sha256[name] == old_sha256[name]:
                yield f"{name}: made again, the same bytes"
            elif name not in new_sha256:
                yield f"{name}: made again"
        if old.read_bytes() == path.read_bytes():
            old.unlink()
        else:
            yield f"{path.name}: published again with other values; the old one is {old.name}"


def _broken_files(
    inputs: Inputs, manifest: Manifest, problems: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Yields the names of the broken files, including the missing ones."""
    directory, examples = inputs.config.output_dir, inputs.cache
    if TOKENIZER in problems:
        # The tokenizer is copied from the masked examples, so the files there must be valid.
        cache_tokenizer.load_cache_tokenizer(examples)
        for name in manifest.tokenizer_files:
            path, expected = directory / name, (examples.directory / name).sha256()
            if not path.is_file() or path.sha256() != expected:
                yield name
    others = filter(None, (manifest.token_counts, manifest.output_table))
    for name in (manifests.RUN_CONFIG_FILE, *(info.file for info in others)):
        if name in problems:
            yield name
    for shard in manifest.shards:
        if shard.file in problems:
            if list(problems[shard.file]) != check_sidecar(directory, shard):
                yield shard.file
            yield manifests.sidecar_path(directory, shard.file).name


def _set_aside(path: Location, suffix: str) -> Location | None:
    """Renames a file to an unused name, which it returns; None if the file does not exist."""
    if not path.exists():
        return None
    new_path, number = path.with_name(f"{path.name}.{suffix}"), 2
    while new_path.exists():
        new_path, number = path.with_name(f"{path.name}.{suffix}{number}"), number + 1
    path.publish(new_path)
    return new_path
