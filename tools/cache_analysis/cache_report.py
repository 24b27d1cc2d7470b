"""Comparison of a finished cache with its teacher, on a sample."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_specs import records
from pipeline.base.errors import InputError, Setting, naming_setting
from pipeline.models import layer_groups
from pipeline.models.masked_lm import MaskedLM
from pipeline.storage import cache_input
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.manifest import SAMPLED, Manifest
from pipeline.storage.records import TeacherTargets
from pipeline.teacher import capture
from tools.cache_analysis import dense_sample, fidelity
from tools.cache_analysis.dense_sample import DenseBatch, StateTargets

# Temperatures at which a cache of head states is compared. It gives targets at any temperature.
STATES_TEMPERATURES = (1.0, 2.0, 4.0, 8.0)


@dataclasses.dataclass(frozen=True)
class Summary:
    """The mean, the 99th percentile and the maximum of a measure over masked positions."""

    mean: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Summary":
        """Summarizes a non-empty array."""
        return cls(float(values.mean()), float(np.quantile(values, 0.99)), float(values.max()))


@dataclasses.dataclass(frozen=True)
class HiddenReport:
    """Comparison of cached hidden states with the teacher's; a cosine is of a single state."""

    largest_error: float
    cosine_mean: float
    cosine_min: float


@dataclasses.dataclass(frozen=True)
class CacheReport:
    """Comparison of a cache with a teacher. Divergences are in nats.

    Attributes:
        num_examples: of the sample.
        num_positions: masked positions of the sample.
        kl_divergence: by temperature, KL(teacher ‖ cached) with the tail as a single class.
        top1_agreement: share of positions where both have the same most probable token.
        mass_kept: the teacher's mean mass of the cached ids.
        topk_error: largest error of a log-probability in the top-k.
        tail_error: largest error of the log of the tail's mass, at any temperature.
        label_error: largest error of `label_log_probs`.
        calibration_error: expected calibration error of the teacher's top-1 predictions.
        cached_calibration_error: the same, computed from the cache alone.
        hidden: by group of layers; empty if no hidden states are cached.
        bytes_per_position: of each feature that a teacher cache adds.
    """

    num_examples: int
    num_positions: int
    kl_divergence: Mapping[str, Summary]
    top1_agreement: float
    mass_kept: float
    topk_error: float
    tail_error: float
    label_error: float
    calibration_error: float
    cached_calibration_error: float
    hidden: Mapping[str, HiddenReport]
    bytes_per_position: Mapping[str, float]


class _Comparison:
    """Measures of a sample, collected batch by batch."""

    def __init__(self, temperatures: Sequence[float]) -> None:
        self.temperatures = temperatures
        # Arrays of [positions], by the name of the measure or the temperature.
        self.positions: dict[Any, list[np.ndarray]] = collections.defaultdict(list)
        self.largest: dict[str, float] = collections.defaultdict(float)

    def add(self, batch: DenseBatch, cached: TeacherTargets | StateTargets) -> None:
        labels = batch.labels
        for block in batch.blocks():
            targets, logits = cached[block], batch.logits[block]
            for temperature in self.temperatures:
                self._add_temperature(logits, targets, temperature)
            self._add_predictions(fidelity.log_softmax(logits), targets, labels[block])

    def _add_temperature(
        self, logits: np.ndarray, cached: TeacherTargets, temperature: float
    ) -> None:
        log_probs = fidelity.log_softmax(logits, temperature)
        exact_tail = fidelity.measure_tail(log_probs, cached.ids).log_mass
        tail = cached.log_tails(temperature)
        exact = fidelity.take_log_probs(log_probs, cached.ids)
        stored = fidelity.cached_log_probs(cached.ids, cached.logits, tail, temperature)
        self.positions[temperature].append(
            fidelity.bucket_divergence(exact, exact_tail, stored, tail)
        )
        self._note_largest("tail", exact_tail, tail)
        if temperature == 1.0:
            self._note_largest("topk", exact, stored)
            self.positions["mass"].append(np.exp(exact).sum(axis=-1))
            self.positions["cached_confidence"].append(np.exp(stored[:, 0]))

    def _add_predictions(
        self, log_probs: np.ndarray, cached: TeacherTargets, labels: np.ndarray
    ) -> None:
        predictions = log_probs.argmax(axis=-1)
        label_log_probs = log_probs[np.arange(len(labels)), labels]
        self._note_largest("label", label_log_probs, cached.label_log_probs)
        self.positions["agreement"].append(predictions == cached.ids[:, 0])
        self.positions["confidence"].append(np.exp(log_probs.max(axis=-1)))
        self.positions["is_right"].append(predictions == labels)
        self.positions["cached_is_right"].append(cached.ids[:, 0] == labels)

    def _note_largest(self, name: str, a: np.ndarray, b: np.ndarray) -> None:
        self.largest[name] = max(self.largest[name], fidelity.largest_difference(a, b))

    def report(self, **others: Any) -> CacheReport:
        """Returns the report; `others` are the fields that this class does not measure."""
        joined = {name: np.concatenate(values) for name, values in self.positions.items()}
        return CacheReport(
            num_positions=len(joined["mass"]),
            kl_divergence={f"{t:g}": Summary.of(joined[t]) for t in self.temperatures},
            top1_agreement=float(joined["agreement"].mean()),
            mass_kept=float(joined["mass"].mean()),
            topk_error=self.largest["topk"],
            tail_error=self.largest["tail"],
            label_error=self.largest["label"],
            calibration_error=fidelity.calibration_error(joined["confidence"], joined["is_right"]),
            cached_calibration_error=fidelity.calibration_error(
                joined["cached_confidence"], joined["cached_is_right"]
            ),
            **others,
        )


class _HiddenComparison:
    """Measures of the hidden states of a sample, by group of layers."""

    def __init__(self, manifest: Manifest) -> None:
        self.groups = manifest.teacher_info.hidden_groups
        self.error = np.zeros(len(self.groups))
        self.cosines: list[np.ndarray] = []

    def add(self, batch: DenseBatch, cached: TeacherTargets | StateTargets) -> None:
        exact = batch.outputs[records.HIDDEN_STATES].astype(np.float64)
        stored = cached.hidden_states.astype(np.float64)
        self.error = np.maximum(self.error, np.abs(exact - stored).max(axis=(0, 2)))
        norms = np.linalg.norm(exact, axis=-1) * np.linalg.norm(stored, axis=-1)
        # The cosine of a state of zeros is set to 0.
        norms = np.where(norms > 0.0, norms, 1.0)
        self.cosines.append((exact * stored).sum(axis=-1) / norms)

    def report(self) -> dict[str, HiddenReport]:
        """Returns a report for each group."""
        cosines = np.concatenate(self.cosines)
        return {
            group: HiddenReport(float(error), float(values.mean()), float(values.min()))
            for group, error, values in zip(self.groups, self.error, cosines.T, strict=True)
        }


def expect_comparable(cache: CacheInput) -> None:
    """Raises InputError unless single positions of a cache can be compared with a teacher."""
    manifest = cache.manifest
    if manifest.kind != records.TEACHER_CACHE:
        raise InputError(cache.directory, f"a {records.TEACHER_CACHE}", manifest.kind)
    if manifest.teacher_info.truncation == SAMPLED:
        received = "one of `truncation`=sampled, whose draws equal the teacher only on average"
        raise InputError(cache.directory, "a cache of the top-k", received)


def expect_teacher(cache: CacheInput, sha256: str) -> None:
    """Raises InputError unless a teacher is the only teacher of a cache."""
    teacher = cache.manifest.teacher_info.teacher
    if "merged" in teacher:
        received = f"merged from {len(teacher['merged'])} caches: no single teacher made it"
        hint = "set `any_teacher` to compare it with `teacher` nevertheless"
        raise InputError(cache.directory, received=received, hint=hint)
    if teacher["sha256"] != sha256:
        expected = f"the teacher of {cache.directory} (SHA-256 {teacher['sha256']})"
        hint = "set `any_teacher` to compare it nevertheless"
        raise InputError(Setting("teacher"), expected, f"SHA-256 {sha256}", hint)


def measure_cache(
    model: MaskedLM, cache: CacheInput, *, sample: int, batch_size: int
) -> CacheReport:
    """Runs a teacher over `sample` examples of a cache and compares its output.

    The cache must satisfy `expect_comparable`.

    Raises:
        InputError: records are damaged, the logits are not finite, or the teacher does not have
            the layers whose states are cached.
    """
    manifest = cache.manifest
    info = manifest.teacher_info
    codec = cache_input.open_codec(cache.directory, manifest)
    comparison, hidden, selection = _Comparison(info.temperatures or STATES_TEMPERATURES), None, {}
    if info.hidden_groups:
        if info.hidden_size != model.config.hidden_size:
            expected = (
                f"a model with hidden states of size {info.hidden_size}, as in {cache.directory}"
            )
            raise InputError(Setting("teacher"), expected, model.config.hidden_size)
        hidden = _HiddenComparison(manifest)
        with naming_setting("teacher"):
            groups = layer_groups.parse_teacher_groups(
                ",".join(info.hidden_groups), model.config.num_hidden_layers
            )
        name = records.HIDDEN_STATES
        selection = {"select": lambda *args: {name: capture.select_hidden_states(groups, *args)}}
    examples = dense_sample.draw(cache, sample)
    sizes: collections.Counter[str] = collections.Counter()
    num_examples = 0
    for batch in dense_sample.run_teacher(
        model, examples, manifest, batch_size=batch_size, **selection
    ):
        cached = dense_sample.decode_targets(cache, codec, batch.examples)
        comparison.add(batch, cached)
        if hidden is not None:
            hidden.add(batch, cached)
        num_examples += len(batch.examples)
        for example in batch.examples:
            sizes.update({name: len(content) for name, content in example.features.items()})
    num_positions = sum(len(values) for values in comparison.positions["mass"])
    return comparison.report(
        num_examples=num_examples,
        hidden={} if hidden is None else hidden.report(),
        bytes_per_position={
            feature.name: sizes[feature.name] / num_positions
            for feature in manifest.features
            if feature not in records.MASKED_EXAMPLE_FEATURES
        },
    )
