"""Comparison of a sample of a cache's records with a new run of its teacher.

Letters as in `data_specs.records`. Two runs of a teacher differ by the rounding of their
computation, and stored targets also by the rounding of their encoding. Two tokens whose
log-probabilities differ by less may be in either order.
"""

import collections
import dataclasses
from typing import NamedTuple

import numpy as np

from data_specs import records
from pipeline.base.compute_dtype import FLOAT32
from pipeline.models.masked_lm import MaskedLM
from pipeline.storage import cache_input
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.codecs.base import NO_ID
from pipeline.storage.codecs.states import StatesCodec
from pipeline.storage.manifest import SAMPLED, TeacherInfo
from pipeline.storage.records import MaskedExample
from tools.cache_analysis import dense_sample, fidelity
from tools.verification import topk_checks
from tools.verification.topk_checks import Problems, TopKRows

# Maximum difference of a log-probability between hardware or between batches. GPUs may multiply
# float32 with fewer bits.
_FLOAT32_ROUNDING = 0.05
_BFLOAT16_ROUNDING = 0.5
_FLOAT16_STEP = 2.0**-10
_FLOAT16_HIGHEST = 65_504.0
# The log of a mass that a float32 sum may lose.
_NO_MASS = -60.0


class SampleReport(NamedTuple):
    """The size of the sample, and its differences from the teacher.

    Attributes:
        num_examples: of the sample.
        num_positions: of the sample.
        largest: the largest difference of log-probabilities, by the kind of target.
        problems: by the name of the shard.
    """

    num_examples: int
    num_positions: int
    largest: dict[str, float]
    problems: dict[str, list[str]]


def draw_over_shards(cache: CacheInput, size: int) -> dict[str, list[MaskedExample]]:
    """Draws `size` records of a teacher cache, evenly from its shards.

    Returns:
        the records by the name of their shard; always the same for a cache and a size.
    """
    splits = cache.manifest.splits
    shards = [(split, shard) for split, in_split in splits.items() for shard in in_split]
    drawn = {}
    for index, (split, shard) in enumerate(shards):
        count = size * (index + 1) // len(shards) - size * index // len(shards)
        if count and shard.num_examples:
            of_shard = dataclasses.replace(cache.manifest, splits={split: (shard,)})
            drawn[shard.file] = dense_sample.draw(
                dataclasses.replace(cache, manifest=of_shard), count
            )
    return drawn


def check_sample(
    model: MaskedLM, cache: CacheInput, *, size: int, batch_size: int, compute_dtype: str
) -> SampleReport:
    """Runs a cache's teacher over a sample of `size` examples, and compares the targets.

    Raises:
        InputError: a shard is damaged, or the teacher's logits are not finite.
    """
    info = cache.manifest.teacher_info
    codec = cache_input.open_codec(cache.directory, cache.manifest)
    drawn = draw_over_shards(cache, size)
    shards = {example.example_id: file for file, examples in drawn.items() for example in examples}
    examples = [example for of_shard in drawn.values() for example in of_shard]
    rounding = _FLOAT32_ROUNDING if compute_dtype == FLOAT32 else _BFLOAT16_ROUNDING
    comparison = _Comparison(info, rounding, shards)
    batches = dense_sample.run_teacher(model, examples, cache.manifest, batch_size=batch_size)
    for batch in batches:
        owners = np.repeat(np.arange(len(batch.examples)), np.diff(batch.row_splits))
        targets = dense_sample.decode_targets(cache, codec, batch.examples)
        if isinstance(codec, StatesCodec):
            rows = StateRows(targets.states, batch.labels, targets.label_log_probs, codec)
        else:
            rows = TopKRows.of(targets, codec, batch.labels)
        for block in batch.blocks():
            comparison.add(batch.logits[block], rows[block], batch.examples, owners[block])
    return SampleReport(
        num_examples=len(examples),
        num_positions=comparison.num_positions,
        largest=dict(comparison.largest),
        problems=comparison.problems(),
    )


@dataclasses.dataclass(frozen=True)
class StateRows:
    """Decoded head states at R masked positions, with their labels.

    Attributes:
        states: rotated, float32 [R, E].
        labels: int [R], the true tokens.
        label_log_probs: float32 [R].
        codec: that of the cache.
    """

    states: np.ndarray
    labels: np.ndarray
    label_log_probs: np.ndarray
    codec: StatesCodec

    def __getitem__(self, positions: slice) -> "StateRows":
        """Returns the rows at some of the positions."""
        arrays = (self.states, self.labels, self.label_log_probs)
        return StateRows(*(values[positions] for values in arrays), self.codec)


class _Comparison:
    """Collects the differences between cached targets and the teacher's logits."""

    def __init__(self, info: TeacherInfo, rounding: float, shards: dict[bytes, str]) -> None:
        self.info, self.rounding, self.shards = info, rounding, shards
        self.num_positions = 0
        self.largest: dict[str, float] = collections.defaultdict(float)
        # The number of positions and the first example's id, by shard and problem.
        self._problems: dict[tuple[str, str], tuple[int, str]] = {}

    def add(
        self,
        logits: np.ndarray,
        rows: TopKRows | StateRows,
        examples: list[MaskedExample],
        owners: np.ndarray,
    ) -> None:
        """Compares cached positions with the teacher's logits, float32 [R, V].

        `owners`, int [R], holds the index of each position's example in the batch.
        """
        self.num_positions += len(logits)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            for problem, bad in self._differences(logits, rows):
                for row in np.flatnonzero(bad):
                    example_id = examples[owners[row]].example_id
                    key = self.shards[example_id], problem
                    count, first = self._problems.get(key, (0, example_id.hex()))
                    self._problems[key] = count + 1, first

    def problems(self) -> dict[str, list[str]]:
        """Returns the problems, by the name of the shard."""
        texts: dict[str, list[str]] = collections.defaultdict(list)
        for (file, problem), (count, example_id) in self._problems.items():
            text = f"example {example_id}: {problem} ({count:,} sampled positions)"
            texts[file].append(text)
        return dict(texts)

    def _differences(self, logits: np.ndarray, rows: TopKRows | StateRows) -> Problems:
        """Yields problems, as text, with the positions that have them: bool [R]."""
        exact = fidelity.log_softmax(logits)
        label = exact[np.arange(len(logits)), rows.labels]
        stored = rows.label_log_probs
        is_finite = np.isfinite(stored)
        # Float16 stores a log-probability beyond its range as infinity, which is then correct.
        is_beyond = label < self.rounding - _FLOAT16_HIGHEST
        infinity_error = np.where(is_beyond, 0.0, np.inf)
        difference = np.where(is_finite, np.abs(label - stored), infinity_error)
        self._note_largest("label", difference)
        limit = self.rounding + _FLOAT16_STEP * np.abs(np.where(is_finite, stored, 0.0))
        problem = (
            f"{records.LABEL_LOG_PROBS}: differs from the teacher's log-probability of the label"
        )
        yield problem, difference > limit
        if isinstance(rows, StateRows):
            yield from self._state_differences(exact, rows)
            return
        if self.info.truncation == SAMPLED:
            # Random draws equal the teacher's distribution only in expectation.
            return
        yield from self._id_differences(exact, rows)
        for column, temperature in enumerate(self.info.temperatures):
            log_probs = exact if temperature == 1.0 else fidelity.log_softmax(logits, temperature)
            yield from self._tail_differences(log_probs, rows, column, temperature)

    def _state_differences(self, exact: np.ndarray, rows: StateRows) -> Problems:
        stored = fidelity.log_softmax(rows.codec.output.logits(rows.states))
        divergence = (np.exp(exact) * (exact - stored)).sum(axis=-1)
        self._note_largest("KL", divergence)
        # Errors of logits with a standard deviation σ give a divergence of about σ² / 2.
        limit = self.rounding + 10.0 * rows.codec.logit_deviations(rows.states) ** 2
        problem = f"{records.HEAD_STATES}: the decoded distribution differs from the teacher's"
        yield problem, ~(divergence <= limit)

    def _id_differences(self, exact: np.ndarray, rows: TopKRows) -> Problems:
        taken = fidelity.take_log_probs(exact, rows.ids)
        present = rows.ids != NO_ID
        outside = exact.copy()
        outside[np.nonzero(present)[0], rows.ids[present]] = -np.inf
        least = np.where(present, taken, np.inf).min(axis=-1)
        bad = outside.max(axis=-1) > least + 2.0 * self.rounding
        yield f"{records.TOPK_IDS}: expected the teacher's most probable tokens", bad
        stored, tolerance = topk_checks.stored_log_probs(rows, 0, 1.0)
        known = present & np.isfinite(rows.errors) & np.isfinite(tolerance)[:, np.newaxis]
        difference = np.where(known, np.abs(taken - stored), 0.0)
        self._note_largest("top-k", difference)
        limit = np.where(known, self.rounding + tolerance[:, np.newaxis] + rows.errors, np.inf)
        problem = f"{records.TOPK_LOGITS}: differs from the teacher's logits"
        yield problem, (difference > limit).any(axis=-1)

    def _tail_differences(
        self, log_probs: np.ndarray, rows: TopKRows, column: int, temperature: float
    ) -> Problems:
        exact = fidelity.measure_tail(log_probs, rows.ids).log_mass
        stored = rows.log_tail_masses[:, column]
        has_mass = np.maximum(exact, stored) > _NO_MASS
        difference = np.where(has_mass, np.abs(exact - stored), 0.0)
        self._note_largest("tail", difference)
        problem = f"differs from the teacher's tail mass at temperature {temperature:g}"
        # Both the sum over the tail and the sum over all tokens are rounded.
        yield f"{records.LOG_TAIL_MASSES}: {problem}", difference > 2.0 * self.rounding

    def _note_largest(self, name: str, differences: np.ndarray) -> None:
        self.largest[name] = max(self.largest[name], float(differences.max(initial=0.0)))
