"""Shards that appear whole or not at all."""

import hashlib
from collections.abc import Iterable, Mapping

from pipeline import files
from pipeline.storage import manifest, serialization


def write_shard(
    directory: files.PathLike,
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
    path = files.as_path(directory) / file
    checksum = hashlib.sha256()
    num_examples = num_bytes = 0
    with files.atomic_path(path) as temporary:
        with open(temporary, "wb") as output:
            for record in records:
                framed = serialization.frame_record(record)
                checksum.update(framed)
                output.write(framed)
                num_examples += 1
                num_bytes += len(framed)
        sha256 = checksum.hexdigest()
        told = None if measured is None else dict(measured)
        shard = manifest.ShardInfo(file, num_examples, num_bytes, sha256, told)
        files.write_json(manifest.sidecar_path(directory, file), shard.to_json())
    return shard
