"""What caches of several k and codecs would keep and cost, measured on a sample."""

import collections
import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_specs import records
from pipeline.models.masked_lm import LOGITS, MaskedLM
from pipeline.storage import serialization, token_counts
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.codecs import CODECS
from pipeline.storage.codecs.base import TopKCodec
from pipeline.storage.records import TeacherTargets
from pipeline.teacher import truncation
from pipeline.teacher.judgement import ENTROPIES, Judgement, LabelScores
from pipeline.teacher.settings import TeacherCacheConfig
from tools.cache_analysis import dense_sample, fidelity
from tools.cache_analysis.dense_sample import DenseBatch


@dataclasses.dataclass(frozen=True)
class Spread:
    """The mean and the largest of a number that each masked position has."""

    mean: float
    max: float


@dataclasses.dataclass(frozen=True)
class CachePlan:
    """One way to cache, as measured on a sample. Divergences are in nats.

    Attributes:
        logit_encoding: names the codec.
        truncation_factor: K.
        ids_per_position: how many are kept, in the mean.
        mass_kept: the mean mass of the ids that are kept.
        kl_dense: KL(teacher ‖ decoded), the tail's mass spread evenly over its tokens:
            all that the student is not told.
        kl_bucket: KL(teacher ‖ decoded), the tail being one class: the codec's error.
        kl_reverse: KL(decoded ‖ teacher's top-k), the tail being one class.
        bytes_per_position: of each feature that a teacher cache adds.
        example_bytes: of a whole record, in the mean.
        seconds: an example takes in capture.
    """

    logit_encoding: str
    truncation_factor: int
    ids_per_position: float
    mass_kept: float
    kl_dense: Spread
    kl_bucket: Spread
    kl_reverse: Spread
    bytes_per_position: Mapping[str, float]
    example_bytes: float
    seconds: float

    @property
    def position_bytes(self) -> float:
        """What a masked position adds to the masked examples, in bytes."""
        return sum(self.bytes_per_position.values())


@dataclasses.dataclass
class _Candidate:
    """Sums over the sample of one k and codec; `positions` has arrays of [positions]."""

    name: str
    codec: TopKCodec
    sizes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    record_bytes: int = 0
    seconds: float = 0.0
    positions: dict[str, list[np.ndarray]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )

    def pack(self, batch: DenseBatch) -> tuple[np.ndarray, np.ndarray]:
        """Packs a batch as capture does, and returns the ids and logits that are read back."""
        k = self.codec.truncation_factor
        targets = TeacherTargets(
            ids=batch.kept[records.TOPK_IDS][:, :k],
            logits=batch.kept[records.TOPK_LOGITS][:, :k],
            # Tails of the largest k: they take as many bytes.
            log_tail_masses=batch.kept[records.LOG_TAIL_MASSES],
            label_log_probs=batch.kept[records.LABEL_LOG_PROBS],
            temperatures=(),
        )
        begun = time.perf_counter()
        packed = targets.to_features(self.codec, batch.row_splits)
        for example, features in zip(batch.examples, packed, strict=True):
            record = serialization.encode_example({**example.features, **features})
            self.record_bytes += len(serialization.frame_record(record))
        self.seconds += time.perf_counter() - begun
        for features in packed:
            self.sizes.update({name: len(content) for name, content in features.items()})
        decoded = [
            self.codec.decode(features, len(example.masked_lm_ids))
            for example, features in zip(batch.examples, packed, strict=True)
        ]
        ids, logits = zip(*decoded, strict=True)
        return np.concatenate(ids), np.concatenate(logits)

    def compare(
        self, log_probs: np.ndarray, tail: fidelity.Tail, ids: np.ndarray, logits: np.ndarray
    ) -> None:
        """Compares decoded positions with the teacher's log-probabilities, [positions, V]."""
        stored_tail = tail.log_mass.astype(np.float32).astype(np.float64)
        exact = fidelity.take_log_probs(log_probs, ids)
        cached = fidelity.cached_log_probs(ids, logits, stored_tail)
        bucket = fidelity.bucket_divergence(exact, tail.log_mass, cached, stored_tail)
        reverse = fidelity.bucket_divergence(cached, stored_tail, exact, tail.log_mass)
        self.positions["ids_per_position"].append((ids >= 0).sum(axis=-1))
        self.positions["mass_kept"].append(np.exp(exact).sum(axis=-1))
        self.positions["kl_bucket"].append(bucket)
        self.positions["kl_dense"].append(bucket + tail.spread_divergence())
        self.positions["kl_reverse"].append(reverse)

    def plan(self, num_examples: int, forward_seconds: float) -> CachePlan:
        """Returns the means."""
        joined = {name: np.concatenate(values) for name, values in self.positions.items()}
        num_positions = len(joined["mass_kept"])
        spreads = {
            name: Spread(float(values.mean()), float(values.max()))
            for name, values in joined.items()
            if name.startswith("kl_")
        }
        return CachePlan(
            logit_encoding=self.name,
            truncation_factor=self.codec.truncation_factor,
            ids_per_position=float(joined["ids_per_position"].mean()),
            mass_kept=float(joined["mass_kept"].mean()),
            bytes_per_position={name: size / num_positions for name, size in self.sizes.items()},
            example_bytes=self.record_bytes / num_examples,
            seconds=(forward_seconds + self.seconds) / num_examples,
            **spreads,
        )


@dataclasses.dataclass(frozen=True)
class SamplePlans:
    """The sizes of the sample, the teacher's predictions, and a plan for each k and codec."""

    num_examples: int
    num_positions: int
    labels: Judgement
    plans: tuple[CachePlan, ...]


def _candidates(
    cache: CacheInput,
    config: TeacherCacheConfig,
    truncation_factors: Sequence[int],
    logit_encodings: Sequence[str],
) -> list[_Candidate]:
    """Returns one for each codec and k: the one place where codecs are made here."""
    vocab_size, counts = cache.manifest.vocab.size, None
    if any(CODECS[name].needs_token_counts for name in logit_encodings):
        # Of all examples, as in the cache itself.
        paths = [cache.directory / shard.file for shard in cache.manifest.shards]
        serialized = itertools.chain.from_iterable(map(serialization.read_records, paths))
        counts = token_counts.count_tokens(serialized, vocab_size)
    variable = config.truncation_mass is not None
    return [
        _Candidate(name, CODECS[name](vocab_size, k, variable, counts))
        for name in logit_encodings
        for k in truncation_factors
    ]


def measure_plans(
    model: MaskedLM,
    cache: CacheInput,
    config: TeacherCacheConfig,
    *,
    sample: int,
    truncation_factors: Sequence[int],
    logit_encodings: Sequence[str],
) -> SamplePlans:
    """Runs the teacher over `sample` masked examples, and packs its output in several ways.

    Args:
        model: the teacher.
        cache: the masked examples.
        config: batch size, temperatures and mass are those of capture.
        sample: how many examples.
        truncation_factors: values of K, ascending, at most V.
        logit_encodings: names of codecs.

    Returns:
        codec by codec a plan for each K. The time is that of the forward pass, the
        largest top-k and the packing; unlike capture's it includes that whole
        distributions leave the device.
    """
    examples = dense_sample.draw(cache, sample)
    candidates = _candidates(cache, config, truncation_factors, logit_encodings)

    def keep(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        kept = truncation.truncate(
            outputs[LOGITS],
            batch[records.MASKED_LM_IDS],
            truncation_factor=max(truncation_factors),
            temperatures=config.temperatures,
            truncation_mass=config.truncation_mass,
        )
        return {**kept, ENTROPIES: truncation.entropies(outputs[LOGITS])}

    scores = LabelScores(cache.manifest.vocab.size)
    num_examples, num_positions, seconds = 0, 0, 0.0
    batches = dense_sample.run_teacher(
        model, examples, cache.manifest, batch_size=config.predict_batch_size, keep=keep
    )
    for batch in batches:
        num_examples += len(batch.examples)
        num_positions += len(batch.logits)
        seconds += batch.seconds * len(batch.examples)
        scores.add(batch.labels, batch.kept)
        _measure_batch(batch, candidates)
    plans = tuple(candidate.plan(num_examples, seconds) for candidate in candidates)
    return SamplePlans(num_examples, num_positions, scores.judgement(), plans)


def _measure_batch(batch: DenseBatch, candidates: Sequence[_Candidate]) -> None:
    decoded = [candidate.pack(batch) for candidate in candidates]
    for block in batch.blocks():
        log_probs = fidelity.log_softmax(batch.logits[block])
        tails: dict[int, fidelity.Tail] = {}
        for candidate, (ids, logits) in zip(candidates, decoded, strict=True):
            k = candidate.codec.truncation_factor
            if k not in tails:
                # Codecs change the order of ids, never which they are.
                tails[k] = fidelity.measure_tail(log_probs, ids[block])
            candidate.compare(log_probs, tails[k], ids[block], logits[block])
