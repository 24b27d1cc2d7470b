"""Shards that appear whole or not at all."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable, Mapping

from pipeline.base.location import Location
from pipeline.storage import manifest, serialization


@dataclasses.dataclass(frozen=True)
class StagedShard:
    """A shard that is written, under a name of its writer's own.

    Attributes:
        info: what it will be.
        temporary: its file name until then.
    """

    info: manifest.ShardInfo
    temporary: str


def write_shard(
    directory: Location,
    file: str,
    records: Iterable[bytes],
    measured: Mapping[str, int] | None = None,
) -> manifest.ShardInfo:
    """Writes one shard and its sidecar.

    The sidecar is renamed first and the shard last, so that a shard under its
    final name always has one. If `records` raises, neither appears.

    Args:
        directory: the cache directory.
        file: the shard's name.
        records: serialised examples, in order; consumed as they are written.
        measured: what `ShardInfo` tells of them; read when all are written.

    Returns:
        the shard's count, size and checksum.
    """
    with (directory / file).atomic_write() as temporary:
        shard = _write_records(temporary, file, records, measured)
        manifest.sidecar_path(directory, file).write_json(shard.to_json())
    return shard


def stage_shard(
    directory: Location,
    file: str,
    records: Iterable[bytes],
    measured: Mapping[str, int] | None = None,
) -> StagedShard:
    """Writes one shard for another process to publish.

    For runners that may do a job twice at once, perhaps on machines that round
    differently: whichever is published, its checksum is its own. Arguments are those
    of `write_shard`.
    """
    place = (directory / file).own_temporary()
    with place.stage() as temporary:
        shard = _write_records(temporary, file, records, measured)
    return StagedShard(shard, place.name)


def publish_shard(directory: Location, staged: StagedShard) -> manifest.ShardInfo:
    """Gives a staged shard its name, its sidecar first; returns what it is."""
    directory, shard = directory, staged.info
    manifest.sidecar_path(directory, shard.file).write_json(shard.to_json())
    (directory / staged.temporary).publish(directory / shard.file)
    return shard


def _write_records(
    path: pathlib.Path, file: str, records: Iterable[bytes], measured: Mapping[str, int] | None
) -> manifest.ShardInfo:
    checksum = hashlib.sha256()
    num_examples = num_bytes = 0
    with open(path, "wb") as output:
        for record in records:
            framed = serialization.frame_record(record)
            checksum.update(framed)
            output.write(framed)
            num_examples += 1
            num_bytes += len(framed)
    told = None if measured is None else dict(measured)
    return manifest.ShardInfo(file, num_examples, num_bytes, checksum.hexdigest(), told)
