"""The manifest: what a directory of shards holds, published last.

A directory goes through three states. `reserve_output_dir` writes `request.json`: the
settings that decide the data. Then shards appear, each whole, each with a
hidden sidecar of its count and checksum. When all are there, `publish` writes
`manifest.json`; a directory without one is unfinished.
"""

import collections
import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_specs import records
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
from pipeline.base.json_text import MAX_DIGITS, shown
from pipeline.base.location import Location
from pipeline.storage.codecs import CODECS, HIDDEN_CODECS, HiddenCodec
from pipeline.tokenizers.vocabulary import MAX_TOKENIZER_BYTES, MAX_VOCAB_SIZE, VocabInfo

SHA256 = re.compile(r"[0-9a-f]{64}")
# How the ids of a masked position are chosen: the most probable, or by chance.
TOPK = "topk"
SAMPLED = "sampled"
TRUNCATIONS = (TOPK, SAMPLED)

# Of `TeacherInfo`: what caches made before there was such a thing lack.
_LATER_FIELDS = (
    "hidden_groups",
    "hidden_encoding",
    "hidden_size",
    "truncation",
    "truncation_mass",
)


@dataclasses.dataclass(frozen=True)
class TeacherInfo:
    """What a teacher cache adds.

    Attributes:
        truncation_factor: K, ids kept at a masked position, or the most where that
            varies; draws at one where `truncation` is `sampled`.
        logit_encoding: a name in `pipeline.storage.codecs.CODECS`.
        temperatures: those with a stored tail mass, ascending.
        teacher: the teacher's `config` and the `sha256` of its weights; of a merged
            cache `merged`, a list of its inputs' teachers, each with its `weight`.
        parent: the `sha256` of the masked examples' manifest.
        hidden_groups: the groups of teacher layers, such as `1-6`, whose mean
            hidden state is kept; empty where none is.
        hidden_encoding: a name in `pipeline.storage.codecs.HIDDEN_CODECS`.
        hidden_size: D of the kept states.
        truncation: one of `TRUNCATIONS`.
        truncation_mass: the mass at which a position's ids end; None for none.
    """

    truncation_factor: int
    logit_encoding: str
    temperatures: tuple[float, ...]
    teacher: Mapping[str, Any]
    parent: Mapping[str, str]
    hidden_groups: tuple[str, ...] = ()
    hidden_encoding: str | None = None
    hidden_size: int | None = None
    truncation: str = TOPK
    truncation_mass: float | None = None

    @property
    def variable(self) -> bool:
        """Whether positions may have fewer than K ids."""
        return self.truncation == SAMPLED or self.truncation_mass is not None

    def hidden_codec(self) -> HiddenCodec | None:
        """Returns the codec of the hidden states; None where none are cached."""
        if not self.hidden_groups:
            return None
        return HIDDEN_CODECS[self.hidden_encoding](len(self.hidden_groups), self.hidden_size)

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes by the letters of `data_specs.records`."""
        return {
            "K": self.truncation_factor,
            "T": len(self.temperatures),
            "G": len(self.hidden_groups),
            "D": self.hidden_size or 0,
        }

    def to_json(self) -> dict[str, Any]:
        """Returns the fields of a manifest.

        What is kept is told only where it is not simply the top-k, as in manifests
        from before there was a choice.
        """
        value = dataclasses.asdict(self)
        if self.truncation == TOPK:
            del value["truncation"]
        if self.truncation_mass is None:
            del value["truncation_mass"]
        return value


def parse_teacher_info(value: Mapping[str, Any], path: str) -> TeacherInfo:
    """Reads and checks the fields of a manifest.

    Args:
        value: the manifest's object.
        path: its file, for messages.

    Raises:
        InputError: a value is not as it must be.
        KeyError: a field is missing.
    """
    fields = dataclasses.fields(TeacherInfo)
    required = [field.name for field in fields if field.name not in _LATER_FIELDS]
    given = {name: value[name] for name in _LATER_FIELDS if value.get(name) is not None}
    info = TeacherInfo(**{name: value[name] for name in required}, **given)
    if info.logit_encoding not in CODECS:
        raise InputError(path, f"logit_encoding in {sorted(CODECS)}", shown(info.logit_encoding))
    expect_count(info.truncation_factor, f"{path}: truncation_factor")
    _expect_truncation(info, path)
    _expect_teacher(info.teacher, path)
    if info.hidden_groups:
        _expect_hidden_states(info, path)
    return dataclasses.replace(
        info,
        temperatures=tuple(float(t) for t in info.temperatures),
        hidden_groups=tuple(str(group) for group in info.hidden_groups),
    )


def expect_count(value: Any, what: str) -> None:
    """Raises InputError unless a value is an integer of at least 0, and of 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise InputError(what, "a count", shown(value))


def _expect_truncation(info: TeacherInfo, path: str) -> None:
    if info.truncation not in TRUNCATIONS:
        raise InputError(path, f"truncation in {sorted(TRUNCATIONS)}", shown(info.truncation))
    if info.truncation_mass is not None and not 0.0 < info.truncation_mass <= 1.0:
        raise InputError(
            path, "a truncation_mass above 0 and at most 1", shown(info.truncation_mass)
        )


def _expect_hidden_states(info: TeacherInfo, path: str) -> None:
    if info.hidden_encoding not in HIDDEN_FEATURES:
        raise InputError(
            path, f"hidden_encoding in {sorted(HIDDEN_FEATURES)}", shown(info.hidden_encoding)
        )
    expect_count(info.hidden_size, f"{path}: hidden_size")


def _expect_teacher(teacher: Mapping[str, Any], path: str) -> None:
    if "merged" not in teacher:
        if not SHA256.fullmatch(teacher["sha256"]):
            raise InputError(path, "a teacher's SHA-256", shown(teacher["sha256"]))
        return
    for part in teacher["merged"]:
        if not 0.0 < part["weight"] <= 1.0:
            raise InputError(path, "a teacher's weight", shown(part["weight"]))
        _expect_teacher(part, path)


SHARD_FILE = re.compile(r"(train|eval)-([0-9]{5})-of-([0-9]{5})\.tfrecord")
# In `ShardInfo.measured`: masked positions, and ids kept at them.
NUM_POSITIONS = "num_positions"
NUM_IDS = "num_ids"
# Beside the shards; see `pipeline.storage.token_counts`.
TOKEN_COUNTS_FILE = "token_counts.npy"


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """One shard: its file's name, examples, bytes and SHA-256 (hexadecimal).

    Where records of equal shape differ in size, `measured` tells of all records
    together the bytes of each feature that a teacher cache adds, by name, and
    `NUM_POSITIONS` and `NUM_IDS`.
    """

    file: str
    num_examples: int
    bytes: int
    sha256: str
    measured: Mapping[str, int] | None = dataclasses.field(default=None, hash=False)

    def to_json(self) -> dict[str, Any]:
        """Returns what the sidecar and the manifest hold."""
        value = dataclasses.asdict(self)
        if self.measured is None:
            del value["measured"]
        return value


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """A file beside the shards: its name, bytes and SHA-256 (hexadecimal)."""

    file: str
    bytes: int
    sha256: str


def measure_record(
    measured: collections.Counter[str], features: Mapping[str, bytes], truncation_factor: int
) -> None:
    """Adds a record to `ShardInfo.measured`.

    Args:
        measured: what the numbers are added to.
        features: those that a teacher cache adds.
        truncation_factor: K, ids at a position where no feature tells.
    """
    measured.update({name: len(content) for name, content in features.items()})
    num_positions = len(features[records.LABEL_LOG_PROBS]) // 2
    measured[NUM_POSITIONS] += num_positions
    if records.TOPK_COUNTS in features:
        counts = np.frombuffer(features[records.TOPK_COUNTS], records.TOPK_COUNTS_FEATURE.dtype)
        measured[NUM_IDS] += int(counts.sum())
    else:
        measured[NUM_IDS] += num_positions * truncation_factor


def is_shard_file(file: str) -> bool:
    """Returns whether a name is that of a shard."""
    match = SHARD_FILE.fullmatch(file)
    return match is not None and int(match[2]) < int(match[3])


def parse_shard(value: Mapping[str, Any], path: str) -> ShardInfo:
    """Reads and checks a shard's description.

    Args:
        value: the object in a manifest or a sidecar.
        path: that file, for messages.

    Raises:
        InputError: a value is not as it must be.
    """
    try:
        shard = ShardInfo(**value)
    except TypeError as error:
        raise InputError(path, "a shard's description", shown(value)) from error
    if not (isinstance(shard.file, str) and is_shard_file(shard.file)):
        raise InputError(path, "the name of a shard", shown(shard.file))
    expect_count(shard.num_examples, f"{path}: num_examples of {shard.file}")
    expect_contents(shard, path)
    if shard.measured is not None:
        _expect_measures(shard, path)
    return shard


def _expect_measures(shard: ShardInfo, path: str) -> None:
    if not isinstance(shard.measured, Mapping) or NUM_POSITIONS not in shard.measured:
        raise InputError(
            path, f"{NUM_POSITIONS} and other counts of {shard.file}", shown(shard.measured)
        )
    for name, count in shard.measured.items():
        expect_count(count, f"{path}: {shown(name)} of {shard.file}")


def expect_contents(info: ShardInfo | FileInfo, path: str) -> None:
    """Raises InputError unless a file's size and checksum can be such."""
    if not (isinstance(info.sha256, str) and SHA256.fullmatch(info.sha256)):
        raise InputError(path, f"a SHA-256 for {info.file}", shown(info.sha256))
    expect_count(info.bytes, f"{path}: bytes of {info.file}")


def measured_means(shards: Sequence[ShardInfo], names: Sequence[str]) -> dict[str, float] | None:
    """Returns the means at a masked position of what shards have measured.

    Args:
        shards: of one cache.
        names: of numbers in `ShardInfo.measured`.

    Returns:
        the means by name; None where a shard does not tell, as all its records of
        a shape have the same size.
    """
    told = [shard.measured for shard in shards]
    if not told or None in told:
        return None
    positions = max(1, sum(measured[NUM_POSITIONS] for measured in told))
    return {name: sum(measured.get(name, 0) for measured in told) / positions for name in names}


# Positions are uint16 in a record.
MAX_LENGTH = 2**16
# No array has more items.
_MAX_COUNT = 2**63 - 1
# Of a position, of all groups together.
_MAX_HIDDEN_SIZE = 2**20
_MAX_GROUPS = 2**10
_MAX_TEMPERATURES = 64

# What may be copied from one directory into another, and is nothing else there.
_TOKENIZER_FILE = re.compile(r"vocab\.txt|tokenizer(_config)?\.json|[A-Za-z0-9_.\-]{1,64}\.model")
# The largest counts, by name.
_COUNTS: Mapping[str, int] = {
    "max_seq_length": MAX_LENGTH,
    "max_predictions_per_seq": MAX_LENGTH,
    "dupe_factor": _MAX_COUNT,
    # Any that JSON may hold: it is hashed.
    "seed": 10**MAX_DIGITS,
}
_SPLITS = ("train", "eval")


def expect_manifest(value: Mapping[str, Any], path: str) -> None:
    """Checks what becomes a size, a name or an id.

    Args:
        value: the object in the file.
        path: of the file, for messages.

    Raises:
        InputError: a value is missing, or is not what it may be.
    """
    if _field(value, "kind", path) not in tuple(FEATURES):
        raise InputError(path, f"kind in {sorted(FEATURES)}", shown(value["kind"]))
    for name, most in _COUNTS.items():
        _expect_count(value, name, path, most=most)
    _expect_vocab(value, path)
    for name in ("flags", "statistics"):
        if name in value or name == "flags":
            _expect_object(value, name, path)
    for name in _expect_list(value, "tokenizer_files", path):
        if not isinstance(name, str) or not _TOKENIZER_FILE.fullmatch(name):
            raise InputError(
                path,
                "a plain file name",
                shown(name),
                hint="a tokenizer's are vocab.txt, tokenizer.json, tokenizer_config.json and "
                "*.model",
            )
    _expect_file_name(value, path)
    _expect_splits(value, path)
    _expect_text(value, path)
    if value["kind"] == TEACHER_CACHE:
        _expect_teacher_values(value, path)


def _expect_vocab(value: Mapping[str, Any], path: str) -> None:
    vocab = _expect_object(value, "vocab", path)
    if set(vocab) != {"size", "sha256"}:
        raise InputError(
            path,
            received="missing or misshapen field vocab: expected size and sha256, received "
            f"{shown(sorted(vocab))}",
        )
    _expect_count(vocab, "size", path, least=1, most=MAX_VOCAB_SIZE)
    _expect_sha256(vocab, path)
    special_ids = _expect_object(value, "special_ids", path)
    for name in special_ids:
        _expect_count(special_ids, name, path, most=vocab["size"] - 1)


def _expect_file_name(value: Mapping[str, Any], path: str) -> None:
    counts = value.get("token_counts")
    # What reads it knows no other name.
    if isinstance(counts, dict) and counts.get("file") != TOKEN_COUNTS_FILE:
        raise InputError(
            path,
            received=f"token_counts: expected the file {TOKEN_COUNTS_FILE}, received "
            f"{shown(counts.get('file'))}",
        )


def _expect_splits(value: Mapping[str, Any], path: str) -> None:
    seen: set[str] = set()
    for split, shards in _expect_object(value, "splits", path).items():
        if split not in _SPLITS:
            raise InputError(path, "splits train and eval", shown(split))
        for shard in _expect_list({split: shards}, split, path):
            if not isinstance(shard, dict) or not isinstance(shard.get("file"), str):
                raise InputError(path, "a shard's description", shown(shard))
            match = SHARD_FILE.fullmatch(shard["file"])
            if match is not None and match[1] != split:
                raise InputError(path, f"a shard of the split {split}", shard["file"])
            if shard["file"] in seen:
                raise InputError(path, "each shard once", f"{shard['file']} twice")
            seen.add(shard["file"])


def _expect_text(value: Mapping[str, Any], path: str) -> None:
    """JSON can spell halves of letters, which no file can hold."""
    try:
        json_text.dump(value)
    except UnicodeEncodeError as error:
        raise InputError(path, "text", f"half a letter ({error.reason})") from (error)


def _expect_teacher_values(value: Mapping[str, Any], path: str) -> None:
    _expect_count(value, "truncation_factor", path, least=1, most=value["vocab"]["size"])
    for name in ("teacher", "parent"):
        _expect_object(value, name, path)
    temperatures = _expect_list(value, "temperatures", path, most=_MAX_TEMPERATURES)
    if not all(_is_number(one) and one > 0 for one in temperatures):
        raise InputError(
            path, received=f"temperatures: expected numbers above 0, received {shown(temperatures)}"
        )
    if temperatures[:1] != [1] or list(temperatures) != sorted(set(temperatures)):
        raise InputError(
            path,
            received="temperatures: expected ascending numbers from 1, received "
            f"{shown(temperatures)}",
        )
    groups = value.get("hidden_groups")
    # Without groups, no one reads the size.
    if not groups:
        return
    for group in _expect_list(value, "hidden_groups", path, most=_MAX_GROUPS):
        if not isinstance(group, str):
            raise InputError(
                path, received=f"hidden_groups: expected words, received {shown(group)}"
            )
    _expect_count(value, "hidden_size", path, least=1, most=_MAX_HIDDEN_SIZE // len(groups))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _field(value: Mapping[str, Any], name: str, path: str) -> Any:
    if name not in value:
        raise InputError(path, received=f"missing or misshapen field {shown(name)}")
    return value[name]


def _expect_object(value: Mapping[str, Any], name: str, path: str) -> dict[str, Any]:
    found = _field(value, name, path)
    if not isinstance(found, dict):
        raise InputError(path, received=f"{name}: expected an object, received {shown(found)}")
    return found


def _expect_list(
    value: Mapping[str, Any], name: str, path: str, *, most: int = 2**20
) -> Sequence[Any]:
    found = _field(value, name, path)
    if not isinstance(found, list) or len(found) > most:
        raise InputError(path, received=f"{name}: expected a list, received {shown(found)}")
    return found


def _expect_count(
    value: Mapping[str, Any], name: str, path: str, *, least: int = 0, most: int
) -> None:
    found = _field(value, name, path)
    if isinstance(found, bool) or not isinstance(found, int) or found < least:
        raise InputError(path, received=f"{_key(name)}: expected a count, received {shown(found)}")
    if found > most:
        raise InputError(
            path,
            received=f"{_key(name)}: expected a count of at most {most}, received {shown(found)}",
        )


def _key(name: str) -> str:
    """Returns a key as it is where it is a plain word, else as a value is shown."""
    return name if re.fullmatch(r"\w{1,64}", name, re.ASCII) else shown(name)


def _expect_sha256(vocab: Mapping[str, Any], path: str) -> None:
    sha256 = vocab["sha256"]
    if not (isinstance(sha256, str) and SHA256.fullmatch(sha256)):
        raise InputError(path, received=f"vocab: expected a SHA-256, received {shown(sha256)}")


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


def check_output_dir(directory: Location, request: Mapping[str, Any]) -> bool:
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


def reserve_output_dir(directory: Location, request: Mapping[str, Any]) -> bool:
    """Marks a directory, which is made, as the place of a request, or recognises its own.

    Arguments, result and errors are those of `check_output_dir`. Call it when nothing
    that the user could mend is left to go wrong: a corrected command may then
    still use the directory.
    """
    is_new = check_output_dir(directory, request)
    if is_new:
        directory = directory.make_directory()
        if not (directory / REQUEST_FILE).write_new(json_text.dump(request)):
            # Another command has begun at the same moment.
            return check_output_dir(directory, request)
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
