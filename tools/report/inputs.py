"""Inputs of `tools.report` other than runs: JSON reports and teacher caches."""

import dataclasses
import itertools
import pathlib
import statistics
from typing import Annotated, TypeVar

import msgspec
import numpy as np

from pipeline.base import json_text
from pipeline.base.errors import InputError
from pipeline.base.location import MAX_JSON_BYTES, Location
from pipeline.storage import cache_input
from pipeline.storage import manifest as manifests
from pipeline.storage.cache_input import CacheInput, open_cache
from pipeline.storage.manifest import SAMPLED
from pipeline.storage.records import TeacherTargets, read_examples
from tools.report.text_width import escape_unprintable

# Bins of a reliability diagram, as in `pipeline.distill.distiller`.
NUM_BINS = 15
# Number of examples of a cache for a reliability diagram.
_SAMPLE = 2_000
# Larger numbers cannot be measurements, and no axis could show them.
_LARGEST = 1e15

Number = Annotated[float, msgspec.Meta(ge=-_LARGEST, le=_LARGEST)]
# A number for a logarithmic axis.
Positive = Annotated[float, msgspec.Meta(ge=1.0 / _LARGEST, le=_LARGEST)]
Count = Annotated[int, msgspec.Meta(ge=0, le=int(_LARGEST))]
_AT_LEAST_ONE = msgspec.Meta(min_length=1)
_Kind = TypeVar("_Kind")


def read_struct(path: Location, kind: type[_Kind]) -> _Kind:
    """Reads a JSON file as a msgspec struct; unknown keys are ignored.

    Raises:
        InputError: the file is missing, too large or not JSON, or a value is missing or has
            another type. The error names the value's key.
    """
    if not path.is_file():
        raise InputError(path, received="no such file")
    try:
        value = json_text.load(path.read_limited(MAX_JSON_BYTES))
    except ValueError as error:
        raise InputError(path, received=f"not JSON ({error})") from error
    return json_text.convert(value, kind, path)


class Mean(msgspec.Struct, frozen=True):
    """A mean, and the sample standard deviation if there is more than one value."""

    mean: Number
    std: Number | None = None


class _TemperatureFit(msgspec.Struct, frozen=True):
    mass_kept: Number
    kl: Mean


class _Plan(msgspec.Struct, frozen=True):
    logit_encoding: str
    truncation_factor: Count
    position_bytes: Positive
    temperatures: Annotated[dict[str, _TemperatureFit], _AT_LEAST_ONE]
    state_bits: Count | None = None


class _Plans(msgspec.Struct, frozen=True):
    plans: list[_Plan]


class _FidelityReport(msgspec.Struct, frozen=True):
    logit_encoding: str
    truncation_factor: Count
    mass_kept: Number
    bytes_per_position: Annotated[dict[str, Positive], _AT_LEAST_ONE]
    kl_divergence: Annotated[dict[str, Mean], _AT_LEAST_ONE]
    state_bits: Count | None = None


class _Agreement(msgspec.Struct, frozen=True):
    teacher_agreement: Number


class CacheStudents(msgspec.Struct, frozen=True):
    """The students of one cache, as `compare_caches` writes it."""

    cache: str
    bytes_per_position: Positive
    scores: Annotated[dict[str, _Agreement], _AT_LEAST_ONE]

    @property
    def name(self) -> str:
        """The name of the cache."""
        return escape_unprintable(pathlib.PurePath(self.cache).name)

    @property
    def agreement(self) -> float:
        """Agreement with the teacher: the mean over seeds."""
        return statistics.mean(score.teacher_agreement for score in self.scores.values())

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation of the agreement; None with one seed."""
        values = [score.teacher_agreement for score in self.scores.values()]
        return statistics.stdev(values) if len(values) > 1 else None


class Spread(msgspec.Struct, frozen=True):
    """The median, smallest and largest value of a measurement."""

    median: Number
    smallest: Number
    largest: Number


class Speed(msgspec.Struct, frozen=True):
    """The speed of a model with one computation, as `benchmark_inference` writes it.

    `model` is the model's name, or its path if several models have the same name. The latency is
    in seconds per sequence, the throughput in sequences per second.
    """

    model: str
    computation: str
    device: str
    parameters: Count
    megabytes: Number
    latency: Spread
    throughput: Spread

    @property
    def computed(self) -> str:
        """The computation and its device."""
        return escape_unprintable(f"{self.computation} on {self.device}")


class Speeds(msgspec.Struct, frozen=True):
    """The JSON of `benchmark_inference`."""

    rows: list[Speed]


class Rate(msgspec.Struct, frozen=True):
    """Scores at a learning rate."""

    learning_rate: Number
    num_seeds: Count
    metrics: dict[str, Mean]


class Summary(msgspec.Struct, frozen=True):
    """A `summary.json` of `finetune`. Files of older versions do not name the model."""

    task: str
    split: str
    main_metric: str
    best_learning_rate: Number
    rates: Annotated[list[Rate], _AT_LEAST_ONE]
    model: str = ""


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """Size and divergence of a cache at a masked position.

    Attributes:
        codec: name of the codec.
        state_bits: bits of head states; None for a top-k.
        truncation_factor: k; the size of the vocabulary for head states.
        bytes: bytes at a masked position.
        mass: probability mass of the cached ids.
        divergence: mean KL(teacher ‖ cached) in nats.
        temperature: temperature of mass and divergence, as text.
        name: name of the cache; empty for a planned cache.
    """

    codec: str
    state_bits: int | None
    truncation_factor: int
    bytes: float
    mass: float
    divergence: float
    temperature: str = "1"
    name: str = ""

    @property
    def encoding(self) -> str:
        """The codec, and the bits of head states."""
        return encoding_name(self.codec, self.state_bits)

    @property
    def k(self) -> str:
        """The number of cached ids; `all` for head states."""
        return "all" if self.state_bits is not None else str(self.truncation_factor)

    @property
    def label(self) -> str:
        """The cache's name, or the number that differs between caches of one codec."""
        return self.name or (self.k if self.state_bits is None else f"{self.state_bits} bits")


def encoding_name(encoding: str, state_bits: int | None) -> str:
    """Returns a codec's name, with the bits of head states."""
    return encoding if state_bits is None else f"{encoding}, {state_bits} bits"


def read_plan(path: Location) -> list[Fidelity]:
    """Reads the JSON of `plan_cache`; see `planned_caches` and `read_struct`."""
    return _planned(read_struct(path, _Plans))


def planned_caches(plan: object) -> list[Fidelity]:
    """Returns an entry for each plan and temperature of `plan_cache`'s JSON object.

    The tail's mass is spread evenly over the tokens that are not stored.
    """
    return _planned(msgspec.convert(plan, _Plans))


def _planned(plans: _Plans) -> list[Fidelity]:
    return [
        Fidelity(
            escape_unprintable(plan.logit_encoding),
            plan.state_bits,
            plan.truncation_factor,
            plan.position_bytes,
            fit.mass_kept,
            fit.kl.mean,
            escape_unprintable(temperature),
        )
        for plan in plans.plans
        for temperature, fit in plan.temperatures.items()
    ]


def read_fidelity(path: Location) -> Fidelity:
    """Reads the JSON of `fidelity_report`, with the tail as one class; see `read_struct`."""
    report = read_struct(path, _FidelityReport)
    first = next(iter(report.kl_divergence.values()))
    return Fidelity(
        escape_unprintable(report.logit_encoding),
        report.state_bits,
        report.truncation_factor,
        sum(report.bytes_per_position.values()),
        report.mass_kept,
        report.kl_divergence.get("1", first).mean,
        name=escape_unprintable(path.stem),
    )


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Reliability diagram of predictions.

    Attributes:
        confidence: mean probability of the predictions in each bin.
        accuracy: share of correct predictions.
        counts: masked positions.
    """

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def error(self) -> float:
        """The expected calibration error (Guo et al., 2017): Σ (n / N) · |accuracy − p|."""
        gaps = np.abs(np.subtract(self.accuracy, self.confidence))
        return float(np.average(gaps, weights=self.counts))


def reliability(confidence: np.ndarray, right: np.ndarray) -> Reliability:
    """Sorts predictions into bins of equal width by their probability; drops empty bins.

    Example: of 15 bins, a prediction of probability 0.91 is in the 14th, one of 0.95 in the 15th.

    Args:
        confidence: float [n], probabilities of the predictions.
        right: bool [n], whether each prediction is correct.
    """
    index = np.clip((confidence * NUM_BINS).astype(int), 0, NUM_BINS - 1)
    counts, sums, hits = (
        np.bincount(index, weights=weights, minlength=NUM_BINS)
        for weights in (np.ones(len(index)), confidence, right.astype(float))
    )
    full = counts > 0
    shares = ((sums / np.maximum(counts, 1))[full], (hits / np.maximum(counts, 1))[full])
    return Reliability(*(tuple(values.tolist()) for values in (*shares, counts[full].astype(int))))


@dataclasses.dataclass(frozen=True)
class CacheFacts:
    """Facts about a teacher cache.

    Attributes:
        name: short name.
        encoding: codec of the logits.
        truncation_factor: k.
        ids: mean number of ids at a masked position.
        position_bytes: bytes of the targets of a masked position.
        examples: number of examples in all splits.
        bytes: size of all shards.
        teacher: identity of the teacher.
        sha256: digest of the manifest.
        examples_sha256: digest of the manifest of the masked examples.
        reliability: reliability of the teacher's predictions in the eval split; None for a cache
            of random draws.
    """

    name: str
    encoding: str
    truncation_factor: int
    ids: float
    position_bytes: float
    examples: int
    bytes: int
    teacher: str
    sha256: str
    examples_sha256: str
    reliability: Reliability | None


def read_cache(path: Location, name: str) -> CacheFacts:
    """Reads the facts about a teacher cache from its manifest and its records.

    Raises:
        InputError: the directory is not a complete teacher cache, or a record is damaged.
    """
    cache = open_cache(path, None)
    manifest, info = cache.manifest, cache.manifest.teacher_info
    if info is None:
        raise InputError(path, "a teacher cache", cache.manifest.kind)
    shards = [shard for shards in manifest.splits.values() for shard in shards]
    is_sampled = info.truncation == SAMPLED
    return CacheFacts(
        name,
        encoding_name(info.logit_encoding, info.state_bits) + ", sampled" * is_sampled,
        info.truncation_factor,
        manifest.ids_per_position(),
        sum(manifest.bytes_per_position().values()),
        sum(shard.num_examples for shard in shards),
        sum(shard.bytes for shard in shards),
        str(sorted(info.teacher.items(), key=str)),
        manifest.sha256(),
        str(info.parent.get("sha256")),
        _teacher_reliability(cache),
    )


def _teacher_reliability(cache: CacheInput) -> Reliability | None:
    """Returns the reliability of the teacher; None for a cache of random draws."""
    manifest, info = cache.manifest, cache.manifest.teacher_info
    if info.truncation == SAMPLED:
        return None
    codec, outcomes = cache_input.open_codec(cache.directory, manifest), []
    shards = manifest.splits.get(manifests.EVAL, ())
    paths = [cache.directory / shard.file for shard in shards]
    examples = ((path, example) for path in paths for example in read_examples(path, manifest))
    for path, example in itertools.islice(examples, _SAMPLE):
        try:
            targets = TeacherTargets.from_features(example.features, codec, info)
        except (KeyError, ValueError) as error:
            place = f"{path}, example {example.example_id.hex()}"
            raise InputError(place, received=f"a broken record ({error})") from error
        p, _ = targets.probabilities(1.0, k=1)
        outcomes.append((p[:, 0], targets.ids[:, 0] == example.masked_lm_ids))
    if not outcomes:
        return None
    confidence, right = (np.concatenate(arrays) for arrays in zip(*outcomes, strict=True))
    return reliability(confidence, right) if len(right) else None
