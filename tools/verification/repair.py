"""Broken parts of a teacher cache made again, with the settings that its manifest recorded.

What is broken is moved aside, never deleted: it keeps its name, with `.broken` behind it,
which is no shard's. Where the hardware is the same, so are the bytes, and the manifest
stays as it is.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.base import compute_dtype
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.models.formats import model_directory
from pipeline.models.formats.model_directory import ModelSource
from pipeline.runners.shard_job import ShardJob
from pipeline.storage import cache_input, cache_tokenizer, serialization
from pipeline.storage import manifest as manifests
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.manifest import Manifest, ShardInfo
from pipeline.teacher import cache_request, shard_capture, teacher_input
from pipeline.teacher.capture import progress_bar
from pipeline.teacher.settings import TeacherCacheConfig
from pipeline.tokenizers import loading
from pipeline.tokenizers.vocabulary import MAX_TOKENIZER_BYTES
from tools.verification import shard_checks
from tools.verification.directory_checks import TOKENIZER

BROKEN = "broken"
OLD = "old"


def recorded_config(
    directory: Location, manifest: Manifest, *, teacher: str, examples: str | None
) -> TeacherCacheConfig:
    """Returns how a cache was made, as its manifest has recorded it.

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
            f"none for {directory}, which was merged from "
            f"{len(info.teacher['merged'])} caches: the same tools.merge_caches "
            "command makes it again in an empty folder",
        )
    dtype, batch_size = (
        manifest.flags.get(name) for name in ("compute_dtype", "predict_batch_size")
    )
    if dtype not in (compute_dtype.FLOAT32, compute_dtype.BFLOAT16):
        raise InputError(path, "a compute_dtype among the flags", f"{dtype!r}")
    if type(batch_size) is not int or batch_size < 1:
        raise InputError(path, "a predict_batch_size among the flags", f"{batch_size!r}")
    return TeacherCacheConfig(
        output_dir=str(directory),
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
    """What broken shards of a cache are made again from.

    Attributes:
        manifest: of the cache.
        config: how it was made; its `output_dir` is the cache.
        source: the teacher.
        examples: the masked examples, narrowed to the cache's shards.
        request: what the cache was asked to hold.
    """

    manifest: Manifest
    config: TeacherCacheConfig
    source: ModelSource
    examples: CacheInput
    request: Mapping[str, Any]

    @property
    def directory(self) -> Location:
        """The cache."""
        return self.config.output_dir

    def run(self, problems: Mapping[str, Sequence[str]]) -> Iterator[str]:
        """Makes what is broken again; nothing else is touched.

        Args:
            problems: what is wrong, by the name of the file.

        Yields:
            lines that say what has been done.

        Raises:
            InputError: another process is at work in the cache, or the masked
                examples are damaged, too.
        """
        with self.directory.lock():
            if manifests.REQUEST_FILE in problems:
                aside = set_aside(self.directory / manifests.REQUEST_FILE, BROKEN)
                (self.directory / manifests.REQUEST_FILE).write_json(self.request)
                yield f"{manifests.REQUEST_FILE}: written again{_kept(aside)}"
            yield from self._mend_tokenizer(problems)
            yield from self._mend_token_counts(problems)
            shards = [
                (split, index, shard)
                for split, shards in self.manifest.splits.items()
                for index, shard in enumerate(shards)
                if shard.file in problems
            ]
            redone = []
            for split, index, shard in shards:
                if list(problems[shard.file]) == shard_checks.check_sidecar(self.directory, shard):
                    yield self._mend_sidecar(shard)
                else:
                    redone.append(ShardJob(split, index, shard.file))
            if redone:
                yield from self._redo(redone)

    def _mend_tokenizer(self, problems: Mapping[str, Sequence[str]]) -> Iterator[str]:
        if TOKENIZER not in problems:
            return
        # First of all that one of them is sound; else nothing is moved.
        cache_tokenizer.load_cache_tokenizer(self.examples)
        for name in self.manifest.tokenizer_files:
            path, source = self.directory / name, self.examples.directory / name
            if not source.is_file():
                raise InputError(source, received="this tokenizer file is missing")
            content = source.read_limited(MAX_TOKENIZER_BYTES)
            is_same = path.is_file() and path.stat().st_size == len(content)
            if is_same and path.read_bytes() == content:
                continue
            if self._has_vocab(path) and not self._has_vocab(source):
                # What is broken there is sound here.
                continue
            aside = set_aside(path, BROKEN)
            path.write_whole(content)
            yield f"{name}: copied from {self.examples.directory}{_kept(aside)}"

    def _has_vocab(self, path: Location) -> bool:
        """Returns whether a file has the cache's tokens; one of settings has none."""
        try:
            return loading.read_vocab_info(path) == self.manifest.vocab
        except InputError:
            return False

    def _mend_token_counts(self, problems: Mapping[str, Sequence[str]]) -> Iterator[str]:
        expected = self.manifest.token_counts
        if expected is None or expected.file not in problems:
            return
        # Before anything is moved: else the counts of other examples would be told as theirs.
        manifests.verify(self.examples.directory, self.examples.manifest, full=True)
        info, source = self.manifest.teacher_info, self.examples
        with self.directory.stage_directory(last=expected.file) as stage:
            received = cache_input.count_tokens(stage, info, source.directory, source.manifest)
            if received != expected:
                raise InputError(
                    self.directory / expected.file,
                    f"SHA-256 {expected.sha256} of the tokens of {source.directory}",
                    received.sha256,
                )
            aside = set_aside(self.directory / expected.file, BROKEN)
        yield f"{expected.file}: counted again{_kept(aside)}"

    def _mend_sidecar(self, shard: ShardInfo) -> str:
        sidecar = manifests.sidecar_path(self.directory, shard.file)
        aside = set_aside(sidecar, BROKEN)
        sidecar.write_json(shard.to_json())
        return f"{shard.file}: its sidecar written again{_kept(aside)}"

    def _redo(self, jobs: Sequence[ShardJob]) -> Iterator[str]:
        parents = _narrow(self.examples, [job.file for job in jobs])
        manifests.verify(parents.directory, parents.manifest, full=True)
        model = model_directory.load_masked_lm(
            self.source, dtype=self.config.compute_dtype, logits_dtype="float32"
        )
        write = functools.partial(_replace_shard, self.directory)
        capture = shard_capture.make_capture(
            self.config, self.examples, self.source, model, self.manifest.teacher_info
        )
        whole = {shard.file: shard for part in self.manifest.splits.values() for shard in part}
        changed: dict[str, ShardInfo] = {}
        try:
            with progress_bar(self.examples, jobs) as bar:
                told = dataclasses.replace(capture, on_examples=bar.update)
                for job in jobs:
                    path = self.examples.directory / job.file
                    shard, aside = shard_capture.capture_shard(told, path, write)
                    if shard != whole[job.file]:
                        changed[job.file] = shard
                    yield f"{job.file}: {_made_again(shard, whole[job.file])}{_kept(aside)}"
        finally:
            # Interrupted, too: the manifest must not contradict what is made by then.
            said = [self._publish(changed)] if changed else []
        yield from said

    def _publish(self, made: Mapping[str, ShardInfo]) -> str:
        """Writes the manifest, where shards came out in other bytes."""
        path = self.directory / manifests.MANIFEST_FILE
        copy = _free_name(path, OLD)
        copy.write_whole(path.read_bytes())
        splits = {
            split: tuple(made.get(shard.file, shard) for shard in shards)
            for split, shards in self.manifest.splits.items()
        }
        manifests.publish(self.directory, dataclasses.replace(self.manifest, splits=splits))
        return (
            f"{path.name}: written again with their checksums, as this hardware, its threads or "
            f"versions are not those that made the others; what was there is {copy.name}"
        )


def open_repair(config: TeacherCacheConfig, manifest: Manifest, source: ModelSource) -> Repair:
    """Opens the masked examples and checks that a cache was made from them.

    Args:
        config: how it was made, as `recorded_config` returns it.
        manifest: of the cache.
        source: its teacher, as `expect_recorded_teacher` knows it.

    Raises:
        InputError: they are others, not complete, or do not fit the cache.
    """
    examples = teacher_input.open_examples(config, source)
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
    request = cache_request.make_request(config, narrowed, source)
    there = {name: manifest.flags.get(name) for name in request}
    difference = manifests.describe_difference(there, request)
    if difference:
        raise InputError(
            Setting("repair"),
            f"the request of {config.output_dir} to be that of its manifest's "
            f"settings: {difference}",
        )
    return Repair(manifest, config, source, narrowed, request)


def _narrow(cache: CacheInput, names: Sequence[str]) -> CacheInput:
    """Returns some shards of masked examples, in the manifest's order."""
    splits = {
        split: tuple(shard for shard in shards if shard.file in names)
        for split, shards in cache.manifest.splits.items()
    }
    splits = {split: shards for split, shards in splits.items() if shards}
    return dataclasses.replace(cache, manifest=dataclasses.replace(cache.manifest, splits=splits))


def _replace_shard(
    directory: Location,
    file: str,
    serialized: Iterator[bytes],
    measured: Mapping[str, int] | None,
) -> tuple[ShardInfo, Location | None]:
    """Writes a shard; only when it is whole, what has its name moves aside, and it gets it."""
    with directory.stage_directory(last=file) as stage:
        shard = serialization.write_shard(stage, file, serialized, measured)
        aside = set_aside(directory / file, BROKEN)
        set_aside(manifests.sidecar_path(directory, file), BROKEN)
    return shard, aside


def _made_again(shard: ShardInfo, before: ShardInfo) -> str:
    said = "the same bytes" if shard == before else f"other bytes, SHA-256 {shard.sha256}"
    return f"made again, {said}"


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
        suffix: what stands behind its name, and a number where that is taken.
    """
    if not path.exists():
        return None
    name = _free_name(path, suffix)
    path.publish(name)
    return name


def _kept(aside: Location | None) -> str:
    return "" if aside is None else f"; what was there is {aside.name}"
