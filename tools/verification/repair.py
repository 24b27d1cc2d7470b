"""Repair of a teacher cache: what is broken is set aside, and capture makes what is missing.

A file that is set aside keeps its name, with `.broken` behind it, or `.old` behind that of the
manifest. The cache is unfinished until capture publishes the manifest again: a repair, or
`create_teacher_output_data` as it was run, finishes it. On equal hardware all bytes are equal.
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
    """Returns the settings of a cache, as its manifest records them.

    Raises:
        InputError: the cache was merged from others, or a setting is missing.
    """
    info, flags = manifest.teacher_info, manifest.flags
    if "merged" in info.teacher:
        expected = (
            f"unset for {directory}, which was merged from {len(info.teacher['merged'])} caches"
        )
        hint = "run the same offline_distill merge_caches command in an empty folder"
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
        # The rest of the cache is there, whatever its teacher knows.
        force=True,
    )


def expect_recorded_teacher(directory: Location, manifest: Manifest, source: ModelSource) -> None:
    """Raises InputError unless a teacher is the one that a cache was made with."""
    recorded, received = manifest.teacher_info.teacher["sha256"], source.sha256()
    if recorded != received:
        expected = f"the teacher of {directory}, SHA-256 {recorded}"
        raise InputError(Setting("teacher"), expected, f"{source.directory}, SHA-256 {received}")


def open_inputs(config: TeacherCacheConfig, manifest: Manifest, source: ModelSource) -> Inputs:
    """Opens the shards of masked examples that a cache has.

    Raises:
        InputError: the cache was not made from them, or its manifest contradicts itself.
    """
    examples, source = capture.open_examples(config, source)
    recorded, received = manifest.teacher_info.parent, {"sha256": examples.manifest.sha256()}
    if recorded != received:
        expected = f"the masked examples of {config.output_dir}, whose manifest has {recorded}"
        raise InputError(Setting("examples"), expected, f"{config.input_dir}, {received}")
    names = {shard.file for shard in manifest.shards}
    splits = {
        split: kept
        for split, shards in examples.manifest.splits.items()
        if (kept := tuple(shard for shard in shards if shard.file in names))
    }
    narrowed = dataclasses.replace(examples.manifest, splits=splits)
    examples = dataclasses.replace(examples, manifest=narrowed)
    settings = capture.run_configuration(config, examples, source)
    stated = {name: manifest.flags.get(name) for name in settings}
    if difference := manifests.describe_difference(stated, settings):
        expected = f"the run configuration of {config.output_dir} as its manifest records it"
        raise InputError(Setting("repair"), expected, difference)
    return Inputs(config, source, examples, settings, manifest.teacher_info.teacher.get("hub"))


def repair(
    inputs: Inputs, manifest: Manifest, problems: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Makes broken files again, or what an interrupted repair has left to be made.

    Args:
        inputs: as `open_inputs` returns them.
        manifest: of the cache; the old one after an interruption.
        problems: of each file, by its name.

    Yields:
        lines that report each action.

    Raises:
        InputError: another process is at work in the cache, or the masked examples
            are damaged, too.
    """
    directory, examples = inputs.config.output_dir, inputs.cache
    path, old = directory / manifests.MANIFEST_FILE, directory / OLD_MANIFEST
    with directory.lock():
        # Before anything is moved.
        manifests.verify(examples.directory, examples.manifest, full=True)
        redone = list(_broken_files(inputs, manifest, problems))
        for name in redone:
            if aside := _set_aside(directory / name, "broken"):
                yield f"{name}: set aside as {aside.name}"
        if manifests.REQUEST_FILE in redone:
            (directory / manifests.REQUEST_FILE).write_json(dict(inputs.run_configuration))
        for shard in manifest.shards:
            sidecar = manifests.sidecar_path(directory, shard.file)
            if sidecar.name in redone and shard.file not in redone:
                sidecar.write_json(shard.to_json())
        # Last: until then, what is missing is missed.
        old = _set_aside(path, "old") or old
        capture.finish_teacher_cache(inputs)
        made = {shard.file: shard.sha256 for shard in manifests.load(directory).shards}
        recorded = {shard.file: shard.sha256 for shard in manifest.shards}
        for name, sha256 in recorded.items():
            if made[name] != sha256:
                yield f"{name}: made again, other bytes, SHA-256 {made[name]}"
        for name in redone:
            if name in made and made[name] == recorded[name]:
                yield f"{name}: made again, the same bytes"
            elif name not in made:
                yield f"{name}: made again"
        if old.read_bytes() == path.read_bytes():
            old.unlink()
        else:
            yield f"{path.name}: published again with other values; the old one is {old.name}"


def _broken_files(
    inputs: Inputs, manifest: Manifest, problems: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Yields the names of the files to be set aside, the missing ones included."""
    directory, examples = inputs.config.output_dir, inputs.cache
    if TOKENIZER in problems:
        # One of the two tokenizers must be sound.
        cache_tokenizer.load_cache_tokenizer(examples)
        for name in manifest.tokenizer_files:
            path, wanted = directory / name, (examples.directory / name).sha256()
            if not path.is_file() or path.sha256() != wanted:
                yield name
    others = filter(None, (manifest.token_counts, manifest.output_table))
    for name in (manifests.REQUEST_FILE, *(info.file for info in others)):
        if name in problems:
            yield name
    for shard in manifest.shards:
        if shard.file in problems:
            if list(problems[shard.file]) != check_sidecar(directory, shard):
                yield shard.file
            yield manifests.sidecar_path(directory, shard.file).name


def _set_aside(path: Location, suffix: str) -> Location | None:
    """Renames a file to a name that nothing has; returns it, None where there is no file."""
    if not path.exists():
        return None
    aside, number = path.with_name(f"{path.name}.{suffix}"), 2
    while aside.exists():
        aside, number = path.with_name(f"{path.name}.{suffix}{number}"), number + 1
    path.publish(aside)
    return aside
