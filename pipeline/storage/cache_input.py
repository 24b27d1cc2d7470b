"""The directory of shards that a stage reads: found, narrowed, checked before any work."""

import dataclasses
import fnmatch
import glob
import os

from data_specs.records import TASK_LOGITS
from pipeline.base import files
from pipeline.base.errors import InputError
from pipeline.storage import manifest as manifests
from pipeline.storage.manifest import Manifest
from pipeline.storage.vocab_subset import VocabSubset


@dataclasses.dataclass(frozen=True)
class CacheInput:
    """A complete cache directory, or some of its shards.

    Attributes:
        directory: the cache directory.
        manifest: its manifest, with the shards that are to be read.
        flag: the flag that named it.
        vocab_subset: the tokens of a student that knows only some of the cache's;
            None for one that knows all.
    """

    directory: files.AnyPath
    manifest: Manifest
    flag: str
    vocab_subset: VocabSubset | None = None


def open_cache(input_dir: str | None, input_file: str | None) -> CacheInput:
    """Opens what `--input_dir` or `--input_file` names.

    Args:
        input_dir: a cache directory.
        input_file: a glob of its shards (or the directory).

    Raises:
        InputError: not exactly one is given, nothing is there, or the
            directory is not complete.
    """
    if (input_dir is None) == (input_file is None):
        raise InputError(
            "--input_dir: expected either it or --input_file, "
            f"received {'neither' if input_dir is None else 'both'}"
        )
    flag = "--input_dir" if input_file is None else "--input_file"
    given = input_dir if input_file is None else input_file
    if input_file is None or files.as_path(input_file).is_dir():
        return CacheInput(files.as_path(given), _load(files.as_path(given), flag), flag)
    directory, pattern = os.path.split(input_file)
    directory = files.as_path(directory or ".")
    if files.as_path(input_file).is_file():
        # A name is no pattern, whatever characters are in it.
        pattern = glob.escape(pattern)
    manifest = _load(directory, flag)
    splits = {
        split: tuple(shard for shard in shards if fnmatch.fnmatch(shard.file, pattern))
        for split, shards in manifest.splits.items()
    }
    splits = {split: shards for split, shards in splits.items() if shards}
    if not splits:
        raise InputError(
            f"{flag}: expected a glob of shards such as {directory}/train-*.tfrecord, "
            f"received {input_file}, which matches none"
        )
    return CacheInput(directory, dataclasses.replace(manifest, splits=splits), flag)


def _load(directory: files.AnyPath, flag: str) -> Manifest:
    manifest = manifests.load(directory, flag=flag)
    if manifest.kind == TASK_LOGITS:
        raise InputError(
            f"{flag}: expected masked examples, unmasked windows or a teacher cache, received "
            f"{directory}, which holds {manifest.kind}: a teacher's word on a task, for fine-tuning"
        )
    return manifest


def expect_settings(cache: CacheInput, **given: int | None) -> None:
    """Checks flags against the manifest that holds their values.

    Args:
        cache: the directory.
        **given: the values of flags by name; None where a flag was not given.

    Raises:
        InputError: one contradicts the manifest; prints both values.
    """
    for name, value in given.items():
        there = getattr(cache.manifest, name)
        if value is not None and value != there:
            raise InputError(
                f"--{name}: expected {there}, as in {cache.directory / manifests.MANIFEST_FILE}, "
                f"received {value}"
            )


def expect_segments(cache: CacheInput, type_vocab_size: int, flag: str) -> None:
    """Checks that a model knows as many segments as a cache's inputs have.

    Raises:
        InputError: it knows fewer; prints both.
    """
    if cache.manifest.flags.get("segments") == "pair" and type_vocab_size < 2:
        raise InputError(
            f"{flag}: expected a model of two segments, as --segments=pair made "
            f"{cache.directory}, received one with type_vocab_size {type_vocab_size}; make the "
            "masked examples with --segments=single"
        )


def expect_positions(cache: CacheInput, max_position_embeddings: int, flag: str) -> None:
    """Checks that a model takes inputs as long as a cache's.

    Raises:
        InputError: it has fewer positions; prints both.
    """
    if cache.manifest.max_seq_length > max_position_embeddings:
        raise InputError(
            f"{flag}: expected a model of at least {cache.manifest.max_seq_length} positions "
            f"(max_seq_length of {cache.directory}), received {max_position_embeddings}"
        )
