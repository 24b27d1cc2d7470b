"""The shard directory that a stage reads; opened, filtered and checked before any work."""

import dataclasses
import fnmatch
import glob

from data_specs.records import TASK_LOGITS
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import Location
from pipeline.storage import manifest as manifests
from pipeline.storage import output_table, token_counts
from pipeline.storage.codecs import CODECS, ENCODINGS
from pipeline.storage.codecs.base import TargetCodec
from pipeline.storage.codecs.states import StatesCodec
from pipeline.storage.manifest import FileInfo, Manifest, TeacherInfo
from pipeline.storage.vocab_subset import VocabSubset


@dataclasses.dataclass(frozen=True)
class CacheInput:
    """A complete shard directory, or some of its shards.

    Attributes:
        directory: the shard directory.
        manifest: its manifest, with only the shards to read.
        vocab_subset: the reduced vocabulary of the student; None if the student has the whole
            vocabulary.
        copy_errors: errors of copying shards from a bucket, added by `pipeline.storage.reader`.
    """

    directory: Location
    manifest: Manifest
    vocab_subset: VocabSubset | None = None
    copy_errors: list[Exception] = dataclasses.field(
        default_factory=list, repr=False, compare=False
    )


def open_cache(input_dir: Location | None, input_file: Location | None) -> CacheInput:
    """Opens a shard directory, or some of its shards.

    Args:
        input_dir: a shard directory.
        input_file: a glob of its shards, or the directory.

    Raises:
        InputError: not exactly one argument is given, nothing matches, or the directory is
            incomplete.
    """
    if (input_dir is None) == (input_file is None):
        received = "neither" if input_dir is None else "both"
        raise InputError(Setting("input_dir"), "set, or `input_file` in its place", received)
    location = input_dir if input_file is None else input_file
    if input_file is None or input_file.is_dir():
        return CacheInput(location, _load(location))
    directory, pattern = input_file.parent, input_file.name
    if input_file.is_file():
        # The name of an existing file is taken literally, even if it contains `*` or `[`.
        pattern = glob.escape(pattern)
    manifest = _load(directory)
    splits = {}
    for split, shards in manifest.splits.items():
        chosen = tuple(shard for shard in shards if fnmatch.fnmatch(shard.file, pattern))
        splits |= {split: chosen} if chosen else {}
    if not splits:
        expected = f"a glob of shards such as {directory}/train-*.tfrecord"
        raise InputError(input_file, expected, "one that matches no shard")
    return CacheInput(directory, dataclasses.replace(manifest, splits=splits))


def _load(directory: Location) -> Manifest:
    manifest = manifests.load(directory)
    if manifest.kind == TASK_LOGITS:
        expected = "masked examples, unmasked windows or a teacher cache"
        raise InputError(directory, expected, f"{manifest.kind}, which only fine-tuning reads")
    return manifest


def expect_settings(cache: CacheInput, **settings: int | None) -> None:
    """Raises InputError if a setting that is not None differs from the manifest's value."""
    for name, value in settings.items():
        recorded = getattr(cache.manifest, name)
        if value is not None and value != recorded:
            expected = f"{recorded}, as in {cache.directory / manifests.MANIFEST_FILE}"
            raise InputError(Setting(name), expected, value)


def expect_segments(cache: CacheInput, type_vocab_size: int) -> None:
    """Raises InputError if a model has fewer segment types than the examples."""
    if cache.manifest.flags.get("segments") == "pair" and type_vocab_size < 2:
        expected = f"a model with two segments, because {cache.directory} has `segments`=pair"
        hint = "prepare the masked examples with `segments`=single"
        raise InputError(None, expected, f"type_vocab_size {type_vocab_size}", hint)


def expect_positions(cache: CacheInput, max_position_embeddings: int) -> None:
    """Raises InputError if a model has fewer positions than the longest possible example."""
    length = cache.manifest.max_seq_length
    if length > max_position_embeddings:
        expected = f"a model of at least {length} positions (max_seq_length of {cache.directory})"
        hint = f"prepare the masked examples with `max_seq_length`={max_position_embeddings}"
        raise InputError(None, expected, max_position_embeddings, hint)


def open_codec(directory: Location, manifest: Manifest) -> TargetCodec:
    """Returns the codec that reads a teacher cache; checks the file that the codec needs, if any.

    Raises:
        InputError: the file is missing, or does not match the manifest.
    """
    # Without shards, only the files of token counts and of the output table are verified.
    manifests.verify(directory, dataclasses.replace(manifest, splits={}), full=True)
    return make_codec(directory, manifest.teacher_info, manifest.vocab.size)


def count_tokens(
    directory: Location, info: TeacherInfo, source: Location, manifest: Manifest
) -> FileInfo | None:
    """Writes the file of token counts of a cache that is being made, if its codec needs it.

    Args:
        directory: of the cache.
        info: of the cache.
        source: the directory of the masked examples, or of a cache made from them.
        manifest: of `source`.

    Returns:
        the file of token counts; None if the codec does not need it.
    """
    if not ENCODINGS[info.logit_encoding].needs_token_counts:
        return None
    paths = [source / shard.file for shard in manifest.shards]
    return token_counts.ensure_counts(directory, paths, manifest.vocab.size)


def make_codec(directory: Location, info: TeacherInfo, vocab_size: int) -> TargetCodec:
    """Returns the codec of a cache, which may still be incomplete.

    The directory must hold the file of token counts or of the output table if the codec needs
    it.

    Raises:
        InputError: the file is malformed.
    """
    if info.holds_states:
        output = output_table.read_table(directory, vocab_size, info.state_size)
        return StatesCodec(vocab_size, info.state_packing(), output)
    codec, counts = CODECS[info.logit_encoding], None
    if codec.needs_token_counts:
        path = directory / token_counts.TOKEN_COUNTS_FILE
        counts = token_counts.sum_counts([path], vocab_size)
    return codec(vocab_size, info.truncation_factor, info.variable, counts)
