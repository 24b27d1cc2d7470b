"""The codec of a teacher cache, from its manifest."""

import dataclasses
import zlib

from pipeline.base.location import Location
from pipeline.storage import manifest as manifests
from pipeline.storage import token_counts
from pipeline.storage.codecs.base import TopKCodec
from pipeline.storage.codecs.float16 import CODECS
from pipeline.storage.manifest import Manifest
from pipeline.storage.shard_info import FileInfo
from pipeline.storage.teacher_info import TeacherInfo


def open_codec(directory: Location, manifest: Manifest) -> TopKCodec:
    """Returns the codec that reads a teacher cache.

    Args:
        directory: the cache directory, where some codecs have a file.
        manifest: its manifest.

    Raises:
        InputError: the file is missing, or is not what the manifest says.
    """
    # No shards: only the file of token counts, where there is one.
    manifests.verify(directory, dataclasses.replace(manifest, splits={}), full=True)
    return make_codec(directory, manifest.teacher_info, manifest.vocab.size)


def count_tokens(
    directory: Location, info: TeacherInfo, source: Location, manifest: Manifest
) -> FileInfo | None:
    """Writes what the codec of a cache that is being made needs to know of the text.

    Args:
        directory: of the cache.
        info: what it will hold.
        source: the directory of the masked examples, or of a cache made from them.
        manifest: its manifest.

    Returns:
        the file of token counts; None where the codec needs none.
    """
    if not CODECS[info.logit_encoding].needs_token_counts:
        return None
    shards = [shard for shards in manifest.splits.values() for shard in shards]
    paths = [source / shard.file for shard in shards]
    return token_counts.ensure_counts(directory, paths, manifest.vocab.size)


def environment(logit_encoding: str) -> dict[str, str]:
    """Returns what equal bytes need beside the settings: the version of what compresses them."""
    return {"zlib": zlib.ZLIB_RUNTIME_VERSION} if CODECS[logit_encoding].compresses else {}


def make_codec(directory: Location, info: TeacherInfo, vocab_size: int) -> TopKCodec:
    """Returns the codec of a cache, also of one that is being made.

    Args:
        directory: of the cache; where the codec needs token counts, they are there.
        info: what the cache holds.
        vocab_size: V.

    Raises:
        InputError: the file of token counts holds something else.
    """
    codec, counts = CODECS[info.logit_encoding], None
    if codec.needs_token_counts:
        path = directory / token_counts.TOKEN_COUNTS_FILE
        counts = token_counts.sum_counts([path], vocab_size)
    return codec(vocab_size, info.truncation_factor, info.variable, counts)
