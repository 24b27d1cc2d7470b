"""Repair of a teacher cache: broken files are set aside, and capture makes them again.

A file that is set aside keeps its name, with `.broken` behind it, which is no shard's. On
equal hardware the new bytes are equal, and the manifest stays as it is.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from pipeline.base import compute_dtype, json_text
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.models.formats.model_directory import ModelSource
from pipeline.storage import cache_input, cache_tokenizer
from pipeline.storage import manifest as manifests
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.manifest import FileInfo, Manifest, ShardInfo
from pipeline.teacher import capture
from pipeline.teacher.capture import Inputs
from pipeline.teacher.settings import TeacherCacheConfig
from pipeline.tokenizers import loading
from pipeline.tokenizers.vocabulary import MAX_TOKENIZER_BYTES
from tools.verification.directory_checks import TOKENIZER, check_sidecar

BROKEN = "broken"
OLD = "old"


def recorded_config(
    directory: Location, manifest: Manifest, *, teacher: Location, examples: Location | None
) -> TeacherCacheConfig:
    """Returns the settings of a cache, as its manifest records them.

    Args:
        directory: of the cache.
        manifest: its manifest.
        teacher: a model directory.
        examples: the masked examples.

    Raises:
        InputError: the cache was merged from others, or a setting is missing.
    """
    info, path = manifest.teacher_info, directory / manifests.MANIFEST_FILE
    if "merged" in info.teacher:
        raise InputError(
            Setting("teacher"),
            f"none for {directory}, which was merged from {len(info.teacher['merged'])} caches",
            teacher,
            hint="run the same offline_distill merge_caches command in an empty folder",
        )
    names = ("compute_dtype", "predict_batch_size")
    dtype, batch_size = (manifest.flags.get(name) for name in names)
    if dtype not in (compute_dtype.FLOAT32, compute_dtype.BFLOAT16):
        raise InputError(path, "a compute_dtype among the flags", f"{dtype!r}")
    if type(batch_size) is not int or batch_size < 1:
        raise InputError(path, "a predict_batch_size among the flags", f"{batch_size!r}")
    return TeacherCacheConfig(
        output_dir=directory,
        input_dir=examples,
        teacher=teacher,
        truncation_factor=info.truncation_factor,
        temperatures=info.temperatures,
        truncation=info.truncation,
        truncation_mass=info.truncation_mass,
        logit_encoding=info.logit_encoding,
        cache_hidden_states=",".join(info.hidden_groups) or None,
        hidden_encoding=info.hidden_encoding or "float16",
        compute_dtype=dtype,
        predict_batch_size=batch_size,
    )


def expect_recorded_teacher(directory: Location, manifest: Manifest, source: ModelSource) -> None:
    """Checks that a teacher is the one that a cache was made with.

    Raises:
        InputError: it is another; prints both checksums.
    """
    recorded, received = manifest.teacher_info.teacher["sha256"], source.sha256()
    if recorded != received:
        raise InputError(
            Setting("teacher"),
            f"the teacher of {directory}, SHA-256 {recorded}",
            f"{source.directory}, SHA-256 {received}",
        )


@dataclasses.dataclass(frozen=True)
class Repair:
    """The means to repair a cache.

    Attributes:
        manifest: of the cache.
        inputs: of the capture that made it; its examples are narrowed to the cache's shards.
    """

    manifest: Manifest
    inputs: Inputs

    @property
    def directory(self) -> Location:
        """The cache."""
        return self.inputs.config.output_dir

    def run(self, problems: Mapping[str, Sequence[str]]) -> Iterator[str]:
        """Makes broken files again; no other file changes.

        Args:
            problems: what is wrong, by the name of the file.

        Yields:
            lines that report what has been done.

        Raises:
            InputError: another process is at work in the cache, or the masked
                examples are damaged, too.
        """
        with self.directory.lock():
            if manifests.REQUEST_FILE in problems:
                content = json_text.dump(self.inputs.run_configuration)
                yield _rewrite(self.directory / manifests.REQUEST_FILE, content, "written again")
            if TOKENIZER in problems:
                yield from self._copy_tokenizer()
            redone = []
            for shard in (shard for part in self.manifest.splits.values() for shard in part):
                if shard.file not in problems:
                    continue
                # First: capture would make a shard without a sidecar again.
                if list(problems[shard.file]) == check_sidecar(self.directory, shard):
                    sidecar = manifests.sidecar_path(self.directory, shard.file)
                    yield _rewrite(sidecar, json_text.dump(shard.to_json()), "written again")
                else:
                    redone.append(shard)
            counts = self.manifest.token_counts
            if counts is not None and counts.file in problems:
                yield self._count_again(counts)
            if redone:
                yield from self._capture_again(redone)

    def _copy_tokenizer(self) -> Iterator[str]:
        examples = self.inputs.cache
        # Before anything is moved: one of the two tokenizers must be sound.
        cache_tokenizer.load_cache_tokenizer(examples)
        for name in self.manifest.tokenizer_files:
            path, source = self.directory / name, examples.directory / name
            if not source.is_file():
                raise InputError(source, received="this tokenizer file is missing")
            content = source.read_limited(MAX_TOKENIZER_BYTES)
            is_same = path.is_file() and path.stat().st_size == len(content)
            if is_same and path.read_bytes() == content:
                continue
            # A vocabulary that is sound here and broken there stays.
            if not self._has_vocab(path) or self._has_vocab(source):
                yield _rewrite(path, content, f"copied from {examples.directory}")

    def _has_vocab(self, path: Location) -> bool:
        """Returns whether a file has the cache's tokens; a file of settings has none."""
        try:
            return loading.read_vocab_info(path) == self.manifest.vocab
        except InputError:
            return False

    def _count_again(self, expected: FileInfo) -> str:
        examples, info = self.inputs.cache, self.manifest.teacher_info
        # Before anything is moved: counts of other examples would be taken for theirs.
        manifests.verify(examples.directory, examples.manifest, full=True)
        with self.directory.stage_directory(last=expected.file) as stage:
            received = cache_input.count_tokens(stage, info, examples.directory, examples.manifest)
            if received != expected:
                raise InputError(
                    self.directory / expected.file,
                    f"SHA-256 {expected.sha256} of the tokens of {examples.directory}",
                    received.sha256,
                )
            aside = set_aside(self.directory / expected.file, BROKEN)
        return f"{expected.file}: counted again{_old_one(aside)}"

    def _capture_again(self, shards: Sequence[ShardInfo]) -> Iterator[str]:
        needed = _narrow(self.inputs.cache, [shard.file for shard in shards])
        # Before anything is moved.
        manifests.verify(needed.directory, needed.manifest, full=True)
        for shard in shards:
            aside = set_aside(self.directory / shard.file, BROKEN)
            set_aside(manifests.sidecar_path(self.directory, shard.file), BROKEN)
            if aside is not None:
                yield f"{shard.file}: set aside as {aside.name}"
        try:
            capture.make_missing_shards(self.inputs)
        finally:
            # Interrupted, too: the manifest must not contradict the new shards.
            made = {
                shard.file: manifests.completed_shard(self.directory, shard.file) or shard
                for shard in shards
            }
            lines = self._publish(made)
        for shard in shards:
            new = made[shard.file]
            text = "the same bytes" if new == shard else f"other bytes, SHA-256 {new.sha256}"
            yield f"{shard.file}: made again, {text}"
        yield from lines

    def _publish(self, made: Mapping[str, ShardInfo]) -> list[str]:
        """Publishes the manifest where shards came out in other bytes."""
        splits = {
            split: tuple(made.get(shard.file, shard) for shard in shards)
            for split, shards in self.manifest.splits.items()
        }
        if splits == self.manifest.splits:
            return []
        path = self.directory / manifests.MANIFEST_FILE
        copy = _free_name(path, OLD)
        copy.write_whole(path.read_bytes())
        manifests.publish(self.directory, dataclasses.replace(self.manifest, splits=splits))
        return [
            f"{path.name}: published again, as this hardware, its threads or versions are not "
            f"those that made the other shards; the old one is {copy.name}"
        ]


def open_repair(config: TeacherCacheConfig, manifest: Manifest, source: ModelSource) -> Repair:
    """Opens the masked examples and checks that a cache was made from them.

    Args:
        config: as `recorded_config` returns it.
        manifest: of the cache.
        source: its teacher, as `expect_recorded_teacher` knows it.

    Raises:
        InputError: they are others, incomplete, or do not fit the cache.
    """
    examples = capture.open_examples(config, source)
    recorded = manifest.teacher_info.parent
    received = {"sha256": examples.manifest.sha256()}
    if recorded != received:
        raise InputError(
            Setting("examples"),
            f"the masked examples of {config.output_dir}, whose manifest's checksum is {recorded}",
            f"{config.input_dir}, {received}",
        )
    names = [shard.file for shards in manifest.splits.values() for shard in shards]
    narrowed = _narrow(examples, names)
    settings = capture.run_configuration(config, narrowed, source)
    stated = {name: manifest.flags.get(name) for name in settings}
    difference = manifests.describe_difference(stated, settings)
    if difference:
        raise InputError(
            Setting("repair"),
            f"the run configuration of {config.output_dir} to be that of its manifest's settings",
            difference,
        )
    return Repair(manifest, Inputs(config, source, narrowed, settings))


def _narrow(cache: CacheInput, names: Sequence[str]) -> CacheInput:
    """Returns some shards of masked examples, in the manifest's order."""
    splits = {
        split: tuple(shard for shard in shards if shard.file in names)
        for split, shards in cache.manifest.splits.items()
    }
    splits = {split: shards for split, shards in splits.items() if shards}
    return dataclasses.replace(cache, manifest=dataclasses.replace(cache.manifest, splits=splits))


def _rewrite(path: Location, content: bytes, action: str) -> str:
    """Writes a file whose old content is set aside; returns a line that reports it."""
    aside = set_aside(path, BROKEN)
    path.write_whole(content)
    return f"{path.name}: {action}{_old_one(aside)}"


def _old_one(aside: Location | None) -> str:
    return "" if aside is None else f"; the old one is {aside.name}"


def _free_name(path: Location, suffix: str) -> Location:
    """Returns a name beside `path` that nothing has."""
    name, number = path.with_name(f"{path.name}.{suffix}"), 2
    while name.exists():
        name, number = path.with_name(f"{path.name}.{suffix}{number}"), number + 1
    return name


def set_aside(path: Location, suffix: str) -> Location | None:
    """Renames a file so that its name is free; returns the new one, None where there is no file.

    Args:
        path: the file.
        suffix: goes behind its name, with a number where that is taken.
    """
    if not path.exists():
        return None
    name = _free_name(path, suffix)
    path.publish(name)
    return name
