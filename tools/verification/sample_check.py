"""A sample of a cache's records beside its teacher: what is stored is what the teacher says.

Letters as in `data_specs.records`. Two runs of a teacher differ by the rounding of what
they were computed in, and what is stored by that of its encoding as well. Of two tokens
that are nearer to each other than that, either may come first or last.
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

# How far a log-probability may be off on other hardware, or in a batch of other examples:
# GPUs multiply float32 in fewer bits, too.
_FLOAT32_ROUNDING = 0.05
_BFLOAT16_ROUNDING = 0.5
_FLOAT16_STEP = 2.0**-10
_FLOAT16_MOST = 65_504.0
# The log of masses that float32 sums may lose.
_NO_MASS = -60.0


class SampleReport(NamedTuple):
    """Sizes of the sample, and its differences from the teacher.

    `largest` is the largest difference of a log-probability by its kind; `problems` are by the
    name of the shard.
    """

    num_examples: int
    num_positions: int
    largest: dict[str, float]
    problems: dict[str, list[str]]


def draw_over_shards(cache: CacheInput, size: int) -> dict[str, list[MaskedExample]]:
    """Draws `size` records of a teacher cache, as many of every shard where that is possible.

    Returns:
        the same ones for the same cache and size, by the name of their shard.
    """
    splits = cache.manifest.splits
    places = [(split, shard) for split, shards in splits.items() for shard in shards]
    drawn = {}
    for index, (split, shard) in enumerate(places):
        share = size * (index + 1) // len(places) - size * index // len(places)
        if share and shard.num_examples:
            part = dataclasses.replace(cache.manifest, splits={split: (shard,)})
            narrowed = dataclasses.replace(cache, manifest=part)
            drawn[shard.file] = dense_sample.draw(narrowed, share)
    return drawn


def check_sample(
    model: MaskedLM, cache: CacheInput, *, size: int, batch_size: int, compute_dtype: str
) -> SampleReport:
    """Runs a cache's teacher over a sample of `size` examples, and compares.

    Raises:
        InputError: a shard is damaged, or the teacher's logits are not finite.
    """
    info = cache.manifest.teacher_info
    codec = cache_input.open_codec(cache.directory, cache.manifest)
    drawn = draw_over_shards(cache, size)
    shards = {example.example_id: file for file, examples in drawn.items() for example in examples}
    examples = [example for part in drawn.values() for example in part]
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
        parts = (self.states, self.labels, self.label_log_probs)
        return StateRows(*(part[positions] for part in parts), self.codec)


class _Comparison:
    """What differs too much, position by position."""

    def __init__(self, info: TeacherInfo, rounding: float, shards: dict[bytes, str]) -> None:
        self.info, self.rounding, self.shards = info, rounding, shards
        self.num_positions = 0
        self.largest: dict[str, float] = collections.defaultdict(float)
        # By shard and problem the number of positions, and the first one's example.
        self._found: dict[tuple[str, str], tuple[int, str]] = {}

    def add(
        self,
        logits: np.ndarray,
        rows: TopKRows | StateRows,
        examples: list[MaskedExample],
        owners: np.ndarray,
    ) -> None:
        """Compares cached positions with the teacher's logits, float32 [R, V].

        `owners`, int [R], say which of the batch's examples each position belongs to.
        """
        self.num_positions += len(logits)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            for problem, bad in self._differences(logits, rows):
                for row in np.flatnonzero(bad):
                    example_id = examples[owners[row]].example_id
                    key = self.shards[example_id], problem
                    count, first = self._found.get(key, (0, example_id.hex()))
                    self._found[key] = count + 1, first

    def problems(self) -> dict[str, list[str]]:
        """Returns what is wrong, by the name of the shard."""
        found: dict[str, list[str]] = collections.defaultdict(list)
        for (file, problem), (count, example_id) in self._found.items():
            text = f"example {example_id}: {problem} ({count:,} sampled positions)"
            found[file].append(text)
        return dict(found)

    def _differences(self, logits: np.ndarray, rows: TopKRows | StateRows) -> Problems:
        """Yields what must hold, and at which positions it does not: bool [R]."""
        exact = fidelity.log_softmax(logits)
        label = exact[np.arange(len(logits)), rows.labels]
        said = rows.label_log_probs
        known = np.isfinite(said)
        # Beyond its range float16 has infinity only, and is right to say so.
        beyond = label < self.rounding - _FLOAT16_MOST
        difference = np.where(known, np.abs(label - said), np.where(beyond, 0.0, np.inf))
        self._raise("label", difference)
        limit = self.rounding + _FLOAT16_STEP * np.abs(np.where(known, said, 0.0))
        yield f"{records.LABEL_LOG_PROBS}: expected the teacher's", difference > limit
        if isinstance(rows, StateRows):
            yield from self._state_differences(exact, rows)
            return
        if self.info.truncation == SAMPLED:
            # Draws are right on average, not at a position.
            return
        yield from self._id_differences(exact, rows)
        for column, temperature in enumerate(self.info.temperatures):
            log_probs = exact if temperature == 1.0 else fidelity.log_softmax(logits, temperature)
            yield from self._tail_differences(log_probs, rows, column, temperature)

    def _state_differences(self, exact: np.ndarray, rows: StateRows) -> Problems:
        said = fidelity.log_softmax(rows.codec.output.logits(rows.states))
        divergence = (np.exp(exact) * (exact - said)).sum(axis=-1)
        self._raise("KL", divergence)
        # That of equal logits but for errors of this deviation is half its square.
        limit = self.rounding + 10.0 * rows.codec.logit_deviations(rows.states) ** 2
        yield f"{records.HEAD_STATES}: expected the teacher's distribution", ~(divergence <= limit)

    def _id_differences(self, exact: np.ndarray, rows: TopKRows) -> Problems:
        taken = fidelity.take_log_probs(exact, rows.ids)
        present = rows.ids != NO_ID
        outside = exact.copy()
        places = np.nonzero(present)
        outside[places[0], rows.ids[present]] = -np.inf
        least = np.where(present, taken, np.inf).min(axis=-1)
        bad = outside.max(axis=-1) > least + 2.0 * self.rounding
        yield f"{records.TOPK_IDS}: expected the teacher's most probable tokens", bad
        said, slack = topk_checks.said_log_probs(rows, 0, 1.0)
        known = present & np.isfinite(rows.errors) & np.isfinite(slack)[:, np.newaxis]
        difference = np.where(known, np.abs(taken - said), 0.0)
        self._raise("top-k", difference)
        limit = np.where(known, self.rounding + slack[:, np.newaxis] + rows.errors, np.inf)
        yield f"{records.TOPK_LOGITS}: expected the teacher's", (difference > limit).any(axis=-1)

    def _tail_differences(
        self, log_probs: np.ndarray, rows: TopKRows, column: int, temperature: float
    ) -> Problems:
        exact = fidelity.measure_tail(log_probs, rows.ids).log_mass
        said = rows.log_tail_masses[:, column]
        difference = np.where(np.maximum(exact, said) > _NO_MASS, np.abs(exact - said), 0.0)
        self._raise("tail", difference)
        problem = f"expected the teacher's, at temperature {temperature:g}"
        # The sum over the tail and that over all, one of which may be rounded up.
        yield f"{records.LOG_TAIL_MASSES}: {problem}", difference > 2.0 * self.rounding

    def _raise(self, name: str, differences: np.ndarray) -> None:
        self.largest[name] = max(self.largest[name], float(differences.max(initial=0.0)))
