"""Which example goes into which shard, once all documents have been masked."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.base import seeding
from pipeline.base.errors import InputError, Setting
from pipeline.corpora.documents import CorpusFile
from pipeline.masking.settings import MaskedExamplesConfig
from pipeline.runners.workers import ShardJob
from pipeline.storage import manifest as manifests
from pipeline.storage import spill
from pipeline.storage.manifest import EVAL, TRAIN

# A teacher cache has one shard for each of ours. This is what one may grow to
# at the usual k, so that ours are smaller.
_MAX_SHARD_BYTES = 128 * 2**20
_USUAL_TRUNCATION_FACTOR = 128


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """What is known once every document has been seen.

    Attributes:
        corpus_digest: of all chunks.
        fingerprints: of each chunk, which has a spill file.
        eval_below: a document whose hash is below this is in the eval split.
        num_shards: shards of each split.
        record_bytes: of all records.
        statistics: for the manifest and the summary.
    """

    corpus_digest: str
    fingerprints: tuple[str, ...]
    eval_below: int
    num_shards: Mapping[str, int]
    record_bytes: int
    statistics: Mapping[str, Any]

    def keys(self, job: ShardJob) -> spill.KeyRange:
        """Returns what belongs into a shard."""
        count = self.num_shards[job.split]
        low, high = (spill.KEY_SPACE * number // count for number in (job.index, job.index + 1))
        if job.split == EVAL:
            return spill.KeyRange(low, high, 0, self.eval_below)
        return spill.KeyRange(low, high, self.eval_below, spill.KEY_SPACE)

    def jobs(self) -> tuple[ShardJob, ...]:
        """Returns every shard to be made."""
        return tuple(
            ShardJob(split, index, manifests.shard_file(split, index, count))
            for split, count in self.num_shards.items()
            for index in range(count)
        )


def eval_threshold(fraction: float, lowest: int, highest: int) -> int:
    """Returns the document hash below which a document is in the eval split.

    At least one document is in it where two differ, and never all of them.

    Args:
        fraction: the wanted share of the documents.
        lowest: the smallest hash of any document.
        highest: the largest.
    """
    threshold = int(fraction * spill.KEY_SPACE)
    if not threshold or lowest == highest:
        return 0
    return min(max(threshold, lowest + 1), highest)


def make_plan(
    config: MaskedExamplesConfig,
    headers: Sequence[Mapping[str, Any]],
    corpus_files: Sequence[CorpusFile],
    id_bytes: int,
) -> ShardPlan:
    """Returns the plan of a corpus whose chunks are all masked.

    Args:
        config: what was asked for.
        headers: of all spill files.
        corpus_files: all files.
        id_bytes: bytes of a token id in a record.

    Raises:
        InputError: nothing was masked.
    """
    statistics, skipped, by_corpus = (
        _total(headers, name) for name in ("statistics", "skipped", "examples")
    )
    ranges = [header["groups"] for header in headers if header["groups"]]
    if not ranges:
        raise InputError(
            Setting("input_dir"),
            "text to mask",
            f"{statistics['documents']} documents, all skipped: "
            f"{_describe_counts(skipped)} (`min_chars`={config.min_chars})",
        )
    lowest, highest = min(low for low, _ in ranges), max(high for _, high in ranges)
    eval_below = eval_threshold(config.eval_fraction, lowest, highest)
    record_bytes = sum(header["bytes"] for header in headers)
    cached_bytes = _USUAL_TRUNCATION_FACTOR * (id_bytes + 2) * statistics["masked_positions"]
    num_shards = _num_shards(config, record_bytes + cached_bytes, has_eval=eval_below > 0)
    counts = dict(statistics) | {
        "skipped": dict(skipped),
        "examples_by_corpus": dict(by_corpus),
        "corpus_files": len(corpus_files),
        "corpus_bytes": sum(file.bytes for file in corpus_files),
    }
    fingerprints = tuple(header["fingerprint"] for header in headers)
    digest = seeding.digest(*fingerprints).hex()
    return ShardPlan(digest, fingerprints, eval_below, num_shards, record_bytes, counts)


def _num_shards(
    config: MaskedExamplesConfig, total_bytes: int, *, has_eval: bool
) -> dict[str, int]:
    shards = total_bytes / _MAX_SHARD_BYTES
    eval_share = config.eval_fraction if has_eval else 0.0
    counts = {TRAIN: config.num_shards or max(1, -int(-shards * (1.0 - eval_share) // 1))}
    if has_eval:
        counts[EVAL] = max(1, -int(-shards * eval_share // 1))
    return counts


def _total(headers: Sequence[Mapping[str, Any]], name: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for header in headers:
        total.update(header[name])
    return total


def _describe_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items())) or "none"
