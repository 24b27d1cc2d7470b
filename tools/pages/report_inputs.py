"""What `tools.report` reads beside runs: plans, reports on caches, caches themselves."""

import dataclasses
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_specs import records
from pipeline.base import json_text
from pipeline.base.errors import InputError, Setting
from pipeline.base.location import MAX_JSON_BYTES, Location
from pipeline.storage import cache_input, serialization
from pipeline.storage import manifest as manifests
from pipeline.storage.cache_input import CacheInput, open_cache
from pipeline.storage.manifest import SAMPLED
from pipeline.storage.records import topk_probabilities
from tools.pages.text_width import visible

# Bins of a reliability diagram, as in `pipeline.distill.metrics`.
NUM_BINS = 15
# Examples of a cache that a reliability diagram is made from.
_SAMPLE = 2_000
# Of the numbers in a report; larger ones are none that were measured.
_LARGEST = 1e15


@dataclasses.dataclass(frozen=True)
class JsonFile:
    """An object of a JSON file, whose values are checked when they are looked up.

    Attributes:
        path: of the file, for messages.
        value: the object.
        place: where it is in the file, for messages.
    """

    path: str
    value: Mapping[str, Any]
    place: str = ""

    @classmethod
    def read(cls, path: str) -> "JsonFile":
        """Reads a file that holds an object."""
        return cls(path, path.read_json())

    @classmethod
    def read_list(cls, path: str) -> list["JsonFile"]:
        """Reads a file that holds a list of objects."""
        file = path
        if not file.is_file():
            raise InputError(path, received="no such file")
        if file.stat().st_size > MAX_JSON_BYTES:
            raise InputError(path, f"at most {MAX_JSON_BYTES} bytes", file.stat().st_size)
        try:
            found = json_text.load(file.read_bytes())
        except ValueError as error:
            raise InputError(path, received=f"not JSON ({error})") from error
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise InputError(path, "a list of objects")
        return [cls(path, one, f"[{index}].") for index, one in enumerate(found)]

    def _fail(self, name: str, expected: str) -> InputError:
        received = repr(self.value[name])[:80] if name in self.value else "none"
        return InputError(
            self.path,
            received=f"{visible(self.place + name)[:200]}: expected {expected}, received "
            f"{received}",
        )

    def number(self, name: str) -> float:
        """Returns a number that can be drawn."""
        value = self.value.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._fail(name, "a number")
        if not abs(value) <= _LARGEST:
            raise self._fail(name, f"a number of at most {_LARGEST:g}")
        return float(value)

    def positive(self, name: str) -> float:
        """Returns a number that can be drawn on a logarithmic axis."""
        value = self.number(name)
        if value < 1.0 / _LARGEST:
            raise self._fail(name, "a number above 0")
        return value

    def numbers(self, *names: str) -> tuple[float, ...]:
        """Returns several numbers."""
        return tuple(self.number(name) for name in names)

    def text(self, name: str) -> str:
        """Returns a text, with escapes for what does not print."""
        if not isinstance(self.value.get(name), str):
            raise self._fail(name, "a text")
        return visible(self.value[name])

    def object(self, name: str) -> "JsonFile":
        """Returns an object within."""
        if not isinstance(self.value.get(name), dict):
            raise self._fail(name, "an object")
        return JsonFile(self.path, self.value[name], f"{self.place}{name}.")

    def objects(self, name: str) -> list["JsonFile"]:
        """Returns a list of objects within."""
        found = self.value.get(name)
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise self._fail(name, "a list of objects")
        return [
            JsonFile(self.path, one, f"{self.place}{name}[{index}].")
            for index, one in enumerate(found)
        ]


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """What a cache costs at a masked position, and how far from the teacher it is.

    Attributes:
        encoding: of the logits.
        truncation_factor: k.
        bytes: at a masked position.
        mass: of the cached ids, or None where it was not measured.
        divergence: the mean KL(teacher ‖ cached) in nats.
        name: of the cache; empty for one that is only planned.
    """

    encoding: str
    truncation_factor: int
    bytes: float
    mass: float
    divergence: float
    name: str = ""


def read_plan(path: str) -> list[Fidelity]:
    """Reads the JSON of `plan_cache`: divergences with the tail spread evenly.

    Raises:
        InputError: a field is missing or not as it must be.
    """
    return [
        Fidelity(
            plan.text("logit_encoding"),
            int(plan.number("truncation_factor")),
            plan.positive("position_bytes"),
            plan.number("mass_kept"),
            plan.object("kl_dense").number("mean"),
        )
        for plan in JsonFile.read(path).objects("plans")
    ]


def read_fidelity(path: str) -> Fidelity:
    """Reads the JSON of `fidelity_report`: divergences with the tail as one class.

    Raises:
        InputError: a field is missing or not as it must be.
    """
    report = JsonFile.read(path)
    divergences = report.object("kl_divergence")
    temperature = "1" if "1" in divergences.value else next(iter(divergences.value), "1")
    sizes = report.object("bytes_per_position")
    bytes_each = sum(sizes.positive(name) for name in sizes.value)
    if not bytes_each:
        raise InputError(
            path, received="bytes_per_position: expected at least one feature, found none"
        )
    return Fidelity(
        report.text("logit_encoding"),
        int(report.number("truncation_factor")),
        bytes_each,
        report.number("mass_kept"),
        divergences.object(temperature).number("mean"),
        visible(pathlib.Path(path).stem),
    )


@dataclasses.dataclass(frozen=True)
class Taught:
    """What students are worth that learned from one cache.

    Attributes:
        cache: its name.
        bytes: of the cache, at a masked position.
        agreement: how often a student's first guess is the teacher's; the mean over seeds.
        deviation: of the sample; None of one seed.
    """

    cache: str
    bytes: float
    agreement: float
    deviation: float | None


def read_comparison(path: str) -> list[Taught]:
    """Reads the JSON of `compare_caches`.

    Raises:
        InputError: a field is missing or not as it must be.
    """
    found = []
    for row in JsonFile.read_list(path):
        scores = row.object("scores")
        values = [scores.object(seed).number("teacher_agreement") for seed in scores.value]
        if not values:
            raise InputError(
                path, received=f"{visible(scores.place[:-1])}: expected at least one seed"
            )
        found.append(
            Taught(
                pathlib.PurePath(row.text("cache")).name,
                row.positive("bytes_per_position"),
                statistics.mean(values),
                statistics.stdev(values) if len(values) > 1 else None,
            )
        )
    return found


@dataclasses.dataclass(frozen=True)
class Reliability:
    """How often first guesses are right, by how sure they are.

    Attributes:
        confidence: the mean probability of the first guess in each bin.
        accuracy: the share of right ones.
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
    """Sorts first guesses into bins of equal width; empty bins are left out.

    Args:
        confidence: float [n], from 0 to 1.
        right: bool [n].

    Example: 0.91 right and 0.95 wrong fall into the 14th and the 15th of 15 bins.
    """
    index = np.clip((confidence * NUM_BINS).astype(int), 0, NUM_BINS - 1)
    counts, sums, hits = (
        np.bincount(index, weights=weights, minlength=NUM_BINS)
        for weights in (np.ones(len(index)), confidence, right.astype(float))
    )
    there = counts > 0
    return Reliability(
        tuple((sums[there] / counts[there]).tolist()),
        tuple((hits[there] / counts[there]).tolist()),
        tuple(int(count) for count in counts[there]),
    )


@dataclasses.dataclass(frozen=True)
class CacheFacts:
    """A teacher cache.

    Attributes:
        name: short.
        encoding: of the logits.
        truncation_factor: k.
        ids: kept at a masked position in the mean.
        position_bytes: what it adds at a masked position.
        examples: in all splits.
        bytes: of all shards.
        teacher: what tells its teacher from others.
        reliability: of the teacher's first guesses in the split eval; None where that
            cannot be told.
    """

    name: str
    encoding: str
    truncation_factor: int
    ids: float
    position_bytes: float
    examples: int
    bytes: int
    teacher: str
    reliability: Reliability | None


def read_cache(path: str, name: str) -> CacheFacts:
    """Reads what a teacher cache says of itself, and of its teacher.

    Raises:
        InputError: it is no complete teacher cache, or a record is damaged.
    """
    cache = dataclasses.replace(open_cache(path, None), flag="--caches")
    manifest, info = cache.manifest, cache.manifest.teacher_info
    if info is None:
        raise InputError(Setting("caches"), "teacher caches", f"{path}, which is none")
    shards = [shard for shards in manifest.splits.values() for shard in shards]
    return CacheFacts(
        name,
        info.logit_encoding if info.truncation != SAMPLED else f"{info.logit_encoding}, drawn",
        info.truncation_factor,
        manifest.ids_per_position(),
        sum(manifest.bytes_per_position().values()),
        sum(shard.num_examples for shard in shards),
        sum(shard.bytes for shard in shards),
        str(sorted(info.teacher.items(), key=str)),
        _teacher_reliability(cache),
    )


def _teacher_reliability(cache: CacheInput) -> Reliability | None:
    """Returns how reliable the teacher is; None of draws."""
    manifest, info = cache.manifest, cache.manifest.teacher_info
    if info.truncation == SAMPLED:
        return None
    codec = cache_input.open_codec(cache.directory, manifest)
    column, found = info.temperatures.index(1.0), []
    for path, index, record in _first_records(cache):
        try:
            features = serialization.decode_example(record)
            dtype = records.id_dtype(manifest.vocab.size)
            labels = np.frombuffer(features[records.MASKED_LM_IDS], dtype)
            ids, logits = codec.decode(features, len(labels))
            tails = np.frombuffer(features[records.LOG_TAIL_MASSES], "<f4")
            tails = tails.reshape(len(labels), len(info.temperatures))[:, column]
            p, _ = topk_probabilities(logits, tails, 1.0, k=1)
        except (KeyError, ValueError) as error:
            raise InputError(path, received=f"broken record {index} ({error})") from error
        found.append((p[:, 0], ids[:, 0] == labels))
    if not found:
        return None
    confidence, right = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return reliability(confidence, right) if len(right) else None


def _first_records(cache: CacheInput) -> Iterator[tuple[Location, int, bytes]]:
    """Yields file, place in it, and bytes of the first records of the split eval."""
    left = _SAMPLE
    for shard in cache.manifest.splits.get(manifests.EVAL, ()):
        path = cache.directory / shard.file
        if left and not path.is_file():
            raise InputError(path, received="this shard is missing")
        for index, record in enumerate(serialization.read_records(path) if left else ()):
            yield path, index, record
            left -= 1
            if not left:
                break


def read_caches(paths: Sequence[str], names: Sequence[str]) -> list[CacheFacts]:
    """Reads several caches; see `read_cache`."""
    return [read_cache(path, name) for path, name in zip(paths, names, strict=True)]
