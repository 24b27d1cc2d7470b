"""What is known of one shard, or of another file of a directory."""

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.base.json_text import shown
from pipeline.storage.teacher_info import SHA256, expect_count

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
