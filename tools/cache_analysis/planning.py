"""Measurement of the fidelity and the cost of caches with several k and codecs, on a sample."""

import collections
import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from data_specs import records
from pipeline.models.config import EncoderConfig
from pipeline.models.masked_lm import LOGITS, MaskedLM
from pipeline.storage import arrays, serialization, token_counts
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.codecs import CODECS, ENCODINGS, HIDDEN_CODECS, STATES
from pipeline.storage.codecs.base import TopKCodec
from pipeline.storage.codecs.hidden import HiddenCodec
from pipeline.storage.codecs.states import STATE_PACKINGS, OutputTable, StatesCodec
from pipeline.storage.records import TeacherTargets
from pipeline.teacher import capture, truncation
from pipeline.teacher.label_scores import ENTROPIES, LabelScoreAccumulator, LabelScores
from pipeline.teacher.settings import TeacherCacheConfig
from tools.cache_analysis import dense_sample, fidelity
from tools.cache_analysis.dense_sample import DenseBatch


@dataclasses.dataclass(frozen=True)
class Spread:
    """The mean and the maximum of a measure over masked positions."""

    mean: float
    max: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread":
        """Summarizes a non-empty array."""
        return cls(float(values.mean()), float(values.max()))


@dataclasses.dataclass(frozen=True)
class TemperatureFit:
    """The fit of the decoded distribution to the teacher's at a temperature.

    Attributes:
        mass_kept: see `CachePlan`.
        kl: KL(teacher ‖ decoded) in nats, without the factor T² of the loss `kl_divergence`. The
            tail's mass at this temperature is spread evenly over the tokens that are not stored.
    """

    mass_kept: float
    kl: Spread


@dataclasses.dataclass(frozen=True)
class CachePlan:
    """A possible configuration of a cache, as measured on a sample.

    Divergences are in nats, at temperature 1.

    Attributes:
        logit_encoding: name of the codec.
        truncation_factor: K; V for head states.
        state_bits: of head states; None for a top-k.
        ids_per_position: mean number of stored ids.
        mass_kept: mean mass of the stored ids.
        kl_dense: KL(teacher ‖ decoded) with the tail's mass spread evenly over the tokens that are
            not stored, the total loss of information.
        kl_bucket: KL(teacher ‖ decoded) with the tail as a single class, the codec's error.
        kl_reverse: KL(decoded ‖ teacher's top-k) with the tail as a single class.
        temperatures: the fit at each requested temperature, by its text.
        bytes_per_position: of each feature that a teacher cache adds, without embeddings.
        example_bytes: mean size of a whole record.
        seconds: mean time of an example in capture.
    """

    logit_encoding: str
    truncation_factor: int
    state_bits: int | None
    ids_per_position: float
    mass_kept: float
    kl_dense: Spread
    kl_bucket: Spread
    kl_reverse: Spread
    temperatures: Mapping[str, TemperatureFit]
    bytes_per_position: Mapping[str, float]
    example_bytes: float
    seconds: float

    @property
    def position_bytes(self) -> float:
        """The number of bytes that a cache adds for a masked position."""
        return sum(self.bytes_per_position.values())

    @property
    def label(self) -> str:
        """The number that distinguishes plans of the same codec: k, or bits."""
        return str(self.truncation_factor if self.state_bits is None else self.state_bits)


@dataclasses.dataclass(frozen=True)
class _PlannedStates:
    """The targets of a cache besides the teacher's distributions.

    Attributes:
        hidden_codec: packs the hidden states; None if none are planned.
        embedding: the feature of an embedding of zeros, which has the size of any embedding;
            empty if none are planned.
    """

    hidden_codec: HiddenCodec | None
    embedding: Mapping[str, bytes]

    @classmethod
    def of(cls, config: TeacherCacheConfig, teacher: EncoderConfig) -> "_PlannedStates":
        """Returns the targets that a capture with these settings stores."""
        groups, size = capture.find_groups(config, teacher), teacher.hidden_size
        codec = HIDDEN_CODECS[config.hidden_encoding](len(groups), size) if groups else None
        if config.cache_embedding is None:
            return cls(codec, {})
        feature = records.EMBEDDING_FEATURE
        zeros = np.zeros(size, np.float32)
        return cls(codec, {feature.name: arrays.encode(feature, zeros, teacher.vocab_size)})


@dataclasses.dataclass
class _Candidate:
    """The measures of a configuration, collected batch by batch.

    `positions` holds arrays of [positions] by the name of a measure; `masses` and `divergences`
    hold them by temperature.
    """

    name: str
    codec: TopKCodec | StatesCodec
    sizes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    record_bytes: int = 0
    seconds: float = 0.0
    positions: dict[str, list[np.ndarray]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    masses: dict[float, list[np.ndarray]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    divergences: dict[float, list[np.ndarray]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )

    def pack(self, batch: DenseBatch, states: "_PlannedStates") -> list[Any]:
        """Packs a batch as capture does; returns the decoded targets of each block."""
        begun = time.perf_counter()
        targets = dataclasses.replace(
            self._targets(batch), hidden_states=batch.outputs.get(records.HIDDEN_STATES)
        )
        packed = targets.to_features(self.codec, batch.row_splits, states.hidden_codec)
        for example, features in zip(batch.examples, packed, strict=True):
            record = serialization.encode_example(
                {**example.features, **features, **states.embedding}
            )
            self.record_bytes += len(serialization.frame_record(record))
        self.seconds += time.perf_counter() - begun
        for features in packed:
            self.sizes.update({name: len(content) for name, content in features.items()})
        counts = [len(example.masked_lm_ids) for example in batch.examples]
        return self._decoded(batch, packed, counts)

    def _targets(self, batch: DenseBatch) -> TeacherTargets:
        k = self.codec.truncation_factor
        return TeacherTargets(
            ids=batch.outputs[records.TOPK_IDS][:, :k],
            logits=batch.outputs[records.TOPK_LOGITS][:, :k],
            # These are the tails of the largest k. Only their number of bytes matters here.
            log_tail_masses=batch.outputs[records.LOG_TAIL_MASSES],
            label_log_probs=batch.outputs[records.LABEL_LOG_PROBS],
            temperatures=(),
        )

    def _decoded(
        self, batch: DenseBatch, packed: Sequence[Mapping[str, bytes]], counts: Sequence[int]
    ) -> list[Any]:
        """Returns ids and logits of each block of positions."""
        decoded = [self.codec.decode(*pair) for pair in zip(packed, counts, strict=True)]
        ids, logits = map(np.concatenate, zip(*decoded, strict=True))
        return [(ids[block], logits[block]) for block in batch.blocks()]

    def compare(self, teacher: "_DenseBlock", decoded: tuple[np.ndarray, np.ndarray]) -> None:
        """Compares decoded positions with the teacher's distributions."""
        ids, logits = decoded
        self.positions["ids_per_position"].append((ids >= 0).sum(axis=-1))
        for temperature in teacher.temperatures:
            log_probs, tail = teacher.at(temperature), teacher.tail(temperature, ids)
            stored_tail = tail.log_mass.astype(np.float32).astype(np.float64)
            exact = fidelity.take_log_probs(log_probs, ids)
            cached = fidelity.cached_log_probs(ids, logits, stored_tail, temperature)
            bucket = fidelity.bucket_divergence(exact, tail.log_mass, cached, stored_tail)
            mass = np.exp(exact).sum(axis=-1)
            self._add(temperature, mass, bucket + tail.spread_divergence())
            if temperature == 1.0:
                reverse = fidelity.bucket_divergence(cached, stored_tail, exact, tail.log_mass)
                self.positions["kl_bucket"].append(bucket)
                self.positions["kl_reverse"].append(reverse)

    def _add(self, temperature: float, mass: np.ndarray, divergence: np.ndarray) -> None:
        self.masses[temperature].append(mass)
        self.divergences[temperature].append(divergence)

    def plan(self, num_examples: int, forward_seconds: float) -> CachePlan:
        """Returns the plan with the means of the measures."""
        joined = {name: np.concatenate(values) for name, values in self.positions.items()}
        num_positions = len(joined["ids_per_position"])
        fits = {
            temperature: TemperatureFit(
                float(np.concatenate(masses).mean()),
                Spread.of(np.concatenate(self.divergences[temperature])),
            )
            for temperature, masses in self.masses.items()
        }
        return CachePlan(
            logit_encoding=self.name,
            truncation_factor=self.codec.truncation_factor,
            state_bits=self._state_bits,
            ids_per_position=float(joined["ids_per_position"].mean()),
            mass_kept=fits[1.0].mass_kept,
            kl_dense=fits[1.0].kl,
            kl_bucket=Spread.of(joined["kl_bucket"]),
            kl_reverse=Spread.of(joined["kl_reverse"]),
            temperatures={f"{temperature:g}": fit for temperature, fit in fits.items()},
            bytes_per_position={name: size / num_positions for name, size in self.sizes.items()},
            example_bytes=self.record_bytes / num_examples,
            seconds=(forward_seconds + self.seconds) / num_examples,
        )

    @property
    def _state_bits(self) -> int | None:
        return None


@dataclasses.dataclass
class _StatesCandidate(_Candidate):
    """The measures of a configuration with head states."""

    def _targets(self, batch: DenseBatch) -> TeacherTargets:
        return TeacherTargets(
            ids=batch.outputs[records.TOPK_IDS],
            logits=batch.outputs[records.TOPK_LOGITS],
            log_tail_masses=np.zeros((len(batch.logits), 0), np.float32),
            label_log_probs=batch.outputs[records.LABEL_LOG_PROBS],
            temperatures=(),
            head_states=batch.outputs[records.HEAD_STATES],
        )

    def _decoded(
        self, batch: DenseBatch, packed: Sequence[Mapping[str, bytes]], counts: Sequence[int]
    ) -> list[Any]:
        """Returns the rotated states of each block of positions."""
        packing = self.codec.packing
        states = [packing.decode(*pair) for pair in zip(packed, counts, strict=True)]
        states = np.concatenate(states)
        return [states[block] for block in batch.blocks()]

    def compare(self, teacher: "_DenseBlock", decoded: np.ndarray) -> None:
        """Compares the states' distributions with the teacher's; they have no tail."""
        logits = self.codec.output.logits(decoded)
        counts = np.full(len(logits), self.codec.vocab_size)
        self.positions["ids_per_position"].append(counts)
        for temperature in teacher.temperatures:
            log_probs = teacher.at(temperature)
            cached = fidelity.log_softmax(logits, temperature)
            divergence = (np.exp(log_probs) * (log_probs - cached)).sum(axis=-1)
            self._add(temperature, np.ones(len(logits)), divergence)
            if temperature == 1.0:
                reverse = (np.exp(cached) * (cached - log_probs)).sum(axis=-1)
                self.positions["kl_bucket"].append(divergence)
                self.positions["kl_reverse"].append(reverse)

    @property
    def _state_bits(self) -> int:
        return next(
            bits for bits, kind in STATE_PACKINGS.items() if isinstance(self.codec.packing, kind)
        )


class _DenseBlock:
    """The teacher's distributions at some positions, each computed once.

    Args:
        logits: float32 [positions, V].
        temperatures: ascending from 1.
    """

    def __init__(self, logits: np.ndarray, temperatures: Sequence[float]) -> None:
        self.temperatures = temperatures
        self._log_probs = {
            temperature: fidelity.log_softmax(logits, temperature) for temperature in temperatures
        }
        self._tails: dict[tuple[float, int], fidelity.Tail] = {}

    def at(self, temperature: float) -> np.ndarray:
        """Returns the log-probabilities at a temperature, float64 [positions, V]."""
        return self._log_probs[temperature]

    def tail(self, temperature: float, ids: np.ndarray) -> fidelity.Tail:
        """Returns the tail outside a top-k.

        The tail is computed once for each k, as codecs may change the order of ids but not the
        set.
        """
        key = temperature, ids.shape[-1]
        if key not in self._tails:
            self._tails[key] = fidelity.measure_tail(self.at(temperature), ids)
        return self._tails[key]


@dataclasses.dataclass(frozen=True)
class SamplePlans:
    """The sizes of the sample, the teacher's scores, and a plan for each k and codec."""

    num_examples: int
    num_positions: int
    labels: LabelScores
    plans: tuple[CachePlan, ...]


def _candidates(
    cache: CacheInput,
    config: TeacherCacheConfig,
    truncation_factors: Sequence[int],
    logit_encodings: Sequence[str],
    read_output: Callable[[], OutputTable],
) -> list[_Candidate]:
    """Returns a candidate for each codec and k, or number of bits."""
    vocab_size, counts = cache.manifest.vocab.size, None
    if any(ENCODINGS[name].needs_token_counts for name in logit_encodings):
        # The counts are over all examples, not only the sample, as in a cache.
        paths = [cache.directory / shard.file for shard in cache.manifest.shards]
        serialized = itertools.chain.from_iterable(map(serialization.read_records, paths))
        counts = token_counts.count_tokens(serialized, vocab_size)
    variable, candidates = config.truncation_mass is not None, []
    for name in logit_encodings:
        if name == STATES:
            output = read_output()
            packings = [kind(output.table.shape[-1]) for kind in STATE_PACKINGS.values()]
            codecs = [StatesCodec(vocab_size, packing, output) for packing in packings]
            candidates += [_StatesCandidate(name, codec) for codec in codecs]
            continue
        for k in truncation_factors:
            candidates.append(_Candidate(name, CODECS[name](vocab_size, k, variable, counts)))
    return candidates


def measure_plans(
    model: MaskedLM,
    cache: CacheInput,
    config: TeacherCacheConfig,
    *,
    sample: int,
    truncation_factors: Sequence[int],
    logit_encodings: Sequence[str],
    temperatures: Sequence[float] = (1.0,),
) -> SamplePlans:
    """Runs the teacher over `sample` masked examples, and packs its output with several codecs.

    Args:
        model: the teacher.
        cache: the masked examples.
        config: settings of capture: batch size, temperatures of stored tails, truncation mass,
            hidden states, embeddings.
        sample: number of examples.
        truncation_factors: values of K, ascending, at most V.
        logit_encodings: names of codecs.
        temperatures: at which the decoded distributions are compared, ascending from 1.

    Returns:
        plans for each K or number of bits, codec by codec. The time includes the forward pass,
        the largest top-k and the packing. Unlike in capture, it also includes the transfer of
        whole distributions from the device.
    """
    examples = dense_sample.draw(cache, sample)
    candidates = _candidates(
        cache,
        config,
        truncation_factors,
        logit_encodings,
        lambda: OutputTable.of(*map(keras.ops.convert_to_numpy, model.output_layer())),
    )

    def select(outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        selected = truncation.truncate(
            outputs[LOGITS],
            batch[records.MASKED_LM_IDS],
            truncation_factor=max(truncation_factors),
            temperatures=config.temperatures,
            truncation_mass=config.truncation_mass,
        )
        if STATES in logit_encodings:
            states = outputs[records.HEAD_STATES]
            selected[records.HEAD_STATES] = keras.ops.cast(states, "float32")
        selected[ENTROPIES] = truncation.entropies(outputs[LOGITS])
        return {**selected, **capture.select_states(config, model, outputs, batch)}

    scores = LabelScoreAccumulator(cache.manifest.vocab.size)
    states = _PlannedStates.of(config, model.config)
    num_examples, num_positions, seconds = 0, 0, 0.0
    batches = dense_sample.run_teacher(
        model, examples, cache.manifest, batch_size=config.predict_batch_size, select=select
    )
    for batch in batches:
        num_examples += len(batch.examples)
        num_positions += len(batch.logits)
        seconds += batch.seconds * len(batch.examples)
        scores.add(batch.labels, batch.outputs)
        _measure_batch(batch, candidates, states, temperatures)
    plans = tuple(candidate.plan(num_examples, seconds) for candidate in candidates)
    return SamplePlans(num_examples, num_positions, scores.scores(), plans)


def _measure_batch(
    batch: DenseBatch,
    candidates: Sequence[_Candidate],
    states: _PlannedStates,
    temperatures: Sequence[float],
) -> None:
    decoded = [candidate.pack(batch, states) for candidate in candidates]
    for block, *decoded_blocks in zip(batch.blocks(), *decoded, strict=True):
        teacher = _DenseBlock(batch.logits[block], temperatures)
        for candidate, decoded_block in zip(candidates, decoded_blocks, strict=True):
            candidate.compare(teacher, decoded_block)
