"""The manifest: what a directory of shards holds, published last.

A directory goes through three states. `claim` writes `request.json`: the
settings that decide the data. Then shards appear, each whole, each with a
hidden sidecar of its count and checksum. When all are there, `publish` writes
`manifest.json`; a directory without one is unfinished.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from data_specs.records import (
    FEATURES,
    HIDDEN_FEATURES,
    MASKED_EXAMPLE_FEATURES,
    MASS_FEATURES,
    TEACHER_CACHE,
    TOPK_COUNTS_FEATURE,
    UNMASKED_WINDOWS,
    Feature,
)
from pipeline.base import json_text
from pipeline.base.errors import InputError
from pipeline.base.json_text import shown
from pipeline.base.location import Location
from pipeline.storage.codecs.float16 import CODECS
from pipeline.storage.manifest_checks import expect_manifest
from pipeline.storage.shard_info import (
    NUM_IDS,
    SHARD_FILE,
    FileInfo,
    ShardInfo,
    expect_contents,
    measured_means,
    parse_shard,
)
from pipeline.storage.teacher_info import TeacherInfo, parse_teacher_info
from pipeline.tokenizers.vocabulary import MAX_TOKENIZER_BYTES, VocabInfo

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
CHECKSUM_FILE = ".manifest.json.sha256"
REQUEST_FILE = "request.json"
TRAIN = "train"
EVAL = "eval"
SPLITS = (TRAIN, EVAL)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a cache directory holds. Attributes are named as in `manifest.json`.

    A teacher cache alone has `teacher_info`; `token_counts` have unmasked windows, and
    teacher caches of codecs that need them.
    """

    kind: str
    vocab: VocabInfo
    special_ids: Mapping[str, int]
    max_seq_length: int
    max_predictions_per_seq: int
    dupe_factor: int
    seed: int
    flags: Mapping[str, Any]
    splits: Mapping[str, Sequence[ShardInfo]]
    tokenizer_files: tuple[str, ...] = ()
    statistics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    teacher_info: TeacherInfo | None = None
    token_counts: FileInfo | None = None

    @property
    def features(self) -> tuple[Feature, ...]:
        """The features of a record."""
        info = self.teacher_info
        if info is None:
            return FEATURES[self.kind]
        features = MASKED_EXAMPLE_FEATURES + CODECS[info.logit_encoding].stored
        if info.variable:
            features += (TOPK_COUNTS_FEATURE,)
        features += MASS_FEATURES
        if info.hidden_groups:
            features += HIDDEN_FEATURES[info.hidden_encoding]
        return features

    def bytes_per_position(self) -> dict[str, float]:
        """Returns what each feature of a teacher cache takes at a masked position.

        The mean, as measured, where that varies.
        """
        sizes = {"P": 1, **self.teacher_info.sizes}
        added = [feature for feature in self.features if feature not in MASKED_EXAMPLE_FEATURES]
        means = measured_means(
            [shard for shards in self.splits.values() for shard in shards],
            [feature.name for feature in added],
        )
        if means is not None:
            return {name: round(mean, 2) for name, mean in means.items()}
        return {
            feature.name: math.prod(sizes[letter] for letter in feature.shape)
            * feature.numpy_dtype(self.vocab.size).itemsize
            for feature in added
        }

    def ids_per_position(self) -> float:
        """Returns how many ids a teacher cache holds at a masked position, in the mean."""
        shards = [shard for shards in self.splits.values() for shard in shards]
        means = measured_means(shards, [NUM_IDS])
        return self.teacher_info.truncation_factor if means is None else means[NUM_IDS]

    def num_examples(self, split: str) -> int:
        """Returns how many examples a split has; 0 where there is none."""
        return sum(shard.num_examples for shard in self.splits.get(split, ()))

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `manifest.json` holds."""
        value = dataclasses.asdict(self)
        value["format_version"] = FORMAT_VERSION
        value["splits"] = {
            split: [shard.to_json() for shard in shards] for split, shards in self.splits.items()
        }
        del value["teacher_info"]
        if self.teacher_info is not None:
            value.update(self.teacher_info.to_json())
            # For people: it follows from the rest.
            value["bytes_per_position"] = self.bytes_per_position()
        if self.token_counts is None:
            del value["token_counts"]
        return value

    def sha256(self) -> str:
        """Returns the SHA-256 of the manifest as it is written."""
        return hashlib.sha256(json_text.dump(self.to_json())).hexdigest()


def shard_file(split: str, index: int, num_shards: int) -> str:
    """Returns a shard's file name, such as `train-00000-of-00008.tfrecord`."""
    return f"{split}-{index:05d}-of-{num_shards:05d}.tfrecord"


def shard_place(file: str) -> tuple[int, int]:
    """Returns (index, number of shards) of a file named by `shard_file`."""
    match = SHARD_FILE.fullmatch(file)
    if match is None:
        raise ValueError(f"file: expected the name of a shard, received {file!r}")
    return int(match[2]), int(match[3])


def sidecar_path(directory: Location, file: str) -> Location:
    """Returns the path of a shard's sidecar; hidden, so that no glob of shards meets it."""
    return directory / f".{file}.json"


def completed_shard(directory: Location, file: str) -> ShardInfo | None:
    """Returns the sidecar of a shard that is whole, or None."""
    path, sidecar = directory / file, sidecar_path(directory, file)
    if not (path.is_file() and sidecar.is_file()):
        return None
    try:
        shard = parse_shard(sidecar.read_json(), str(sidecar))
    except InputError:
        # A damaged sidecar: the shard is made again.
        return None
    return shard if path.stat().st_size == shard.bytes else None


def describe_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Returns, in one line, the first setting in which two requests differ.

    The kind comes first: other settings follow from it.
    """
    for name in sorted(set(there) | set(here), key=lambda key: (key != "kind", key)):
        if there.get(name) != here.get(name):
            said = name if name.isidentifier() else shown(name)
            return f"{said} is {shown(there.get(name))} there and {shown(here.get(name))} here"
    return ""


def check_claim(directory: Location, request: Mapping[str, Any]) -> bool:
    """Checks that a directory may be the place of a request; changes nothing.

    Args:
        directory: the output directory; it need not exist.
        request: the settings that decide the data, as JSON values.

    Returns:
        whether the directory is new; False where it holds this very request.

    Raises:
        InputError: it holds another request, or files that no request of ours made.
    """
    path = directory / REQUEST_FILE
    # Listed before the request is looked for: another task may be writing it now.
    names = [item.name for item in directory.iterdir()] if directory.is_dir() else []
    present = sorted(name for name in names if not name.endswith(".tmp"))
    if path.is_file():
        difference = describe_difference(path.read_json(), request)
        if difference:
            raise InputError(
                directory,
                received=f"it holds the output of another request: {difference}",
                hint="choose another directory, or delete this one",
            )
        return False
    if present:
        raise InputError(
            directory,
            "an empty directory or one of the same request",
            f"one with {present[0]!r} and without {REQUEST_FILE}",
        )
    return True


def claim(directory: Location, request: Mapping[str, Any]) -> bool:
    """Marks a directory, which is made, as the place of a request, or recognises its own.

    Arguments, result and errors are those of `check_claim`. Call it when nothing
    that the user could mend is left to go wrong: a corrected command may then
    still use the directory.
    """
    is_new = check_claim(directory, request)
    if is_new:
        directory = directory.make_directory()
        if not (directory / REQUEST_FILE).write_new(json_text.dump(request)):
            # Another command has begun at the same moment.
            return check_claim(directory, request)
    return is_new


def publish(directory: Location, manifest: Manifest) -> None:
    """Writes the manifest: from now on the directory is complete."""
    # The whole shards are beside them.
    shards = {shard.file for split in manifest.splits.values() for shard in split}
    directory.remove_temporaries(shards)
    # As `sha256sum` writes it. The manifest tells of all other files; this tells of it.
    checksum = f"{manifest.sha256()}  {MANIFEST_FILE}\n"
    (directory / CHECKSUM_FILE).write_whole(checksum.encode("ascii"))
    (directory / MANIFEST_FILE).write_json(manifest.to_json())


def load(directory: Location) -> Manifest:
    """Reads and checks a manifest.

    Args:
        directory: a cache directory.

    Raises:
        InputError: there is none, or a field is missing or not as it must be.
    """
    path = directory / MANIFEST_FILE
    if not path.is_file():
        state = "no cache"
        if (path.parent / REQUEST_FILE).is_file():
            state = "an unfinished one: run the command that makes it again"
        raise InputError(
            directory,
            f"a complete cache directory with {MANIFEST_FILE} (masked examples of "
            "create_pretraining_data, or a teacher cache)",
            f"one that is {state}",
        )
    value = path.read_json()
    if value.get("format_version") != FORMAT_VERSION:
        raise InputError(
            path, f"format_version {FORMAT_VERSION}", shown(value.get("format_version"))
        )
    try:
        return _parse(value, str(path))
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise InputError(path, received=f"missing or misshapen field {reason}") from error


def _parse(value: Mapping[str, Any], path: str) -> Manifest:
    expect_manifest(value, path)
    teacher_info = None
    if value["kind"] == TEACHER_CACHE:
        teacher_info = parse_teacher_info(value, path)
    token_counts = None
    if value["kind"] == UNMASKED_WINDOWS or _needs_token_counts(teacher_info):
        token_counts = FileInfo(**value["token_counts"])
        expect_contents(token_counts, path)
    splits = {
        split: tuple(parse_shard(shard, path) for shard in shards)
        for split, shards in value["splits"].items()
    }
    sizes = ("max_seq_length", "max_predictions_per_seq", "dupe_factor", "seed")
    if teacher_info is not None and varies_in_size(teacher_info):
        for shard in (shard for shards in splits.values() for shard in shards):
            if shard.measured is None:
                raise InputError(path, f"what was measured of {shard.file}")
    return Manifest(
        kind=value["kind"],
        vocab=VocabInfo(**value["vocab"]),
        special_ids=dict(value["special_ids"]),
        flags=dict(value["flags"]),
        splits=splits,
        tokenizer_files=tuple(value["tokenizer_files"]),
        statistics=dict(value.get("statistics", {})),
        teacher_info=teacher_info,
        token_counts=token_counts,
        **{name: value[name] for name in sizes},
    )


def varies_in_size(info: TeacherInfo) -> bool:
    """Returns whether records of equal shape may differ in size, so that shards are measured."""
    return info.variable or CODECS[info.logit_encoding].compresses


def _needs_token_counts(info: TeacherInfo | None) -> bool:
    return info is not None and CODECS[info.logit_encoding].needs_token_counts


def copy_tokenizer(source: Location, manifest: Manifest, target: Location) -> None:
    """Copies the tokenizer's files from one directory to another.

    Raises:
        InputError: one is missing.
    """
    for name in manifest.tokenizer_files:
        path = source / name
        if not path.is_file():
            raise InputError(path, received="this tokenizer file is missing")
        content = path.read_limited(MAX_TOKENIZER_BYTES)
        (target / name).write_whole(content)


def verify(directory: Location, manifest: Manifest, *, full: bool) -> None:
    """Checks a directory's shards, and its token counts, against its manifest.

    Args:
        directory: the cache directory.
        manifest: its manifest, or one narrowed to some of its shards.
        full: whether to check every byte (SHA-256), or sizes only.

    Raises:
        InputError: a file is missing, of another size, or has other bytes.
    """
    for shard in (shard for split in manifest.splits.values() for shard in split):
        _verify_file(directory / shard.file, shard, "shard", full=full)
    if manifest.token_counts is not None:
        info = manifest.token_counts
        _verify_file(directory / info.file, info, "file of token counts", full=full)


def _verify_file(path: Location, info: ShardInfo | FileInfo, what: str, *, full: bool) -> None:
    if not path.is_file():
        raise InputError(path, received=f"this {what} is missing")
    size = path.stat().st_size
    if size != info.bytes:
        raise InputError(
            path,
            received=f"this {what} is truncated or damaged: expected {info.bytes} bytes, "
            f"received {size}",
        )
    if full and (received := path.sha256()) != info.sha256:
        raise InputError(
            path,
            received=f"this {what} is damaged: expected SHA-256 {info.sha256}, received {received}",
        )
