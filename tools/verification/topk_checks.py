"""Checks of the teacher targets at any masked position, many positions at once.

Letters as in `data_specs.records`: K top-k, T temperatures, V vocabulary. A position's
distribution is p_T = (1 − tail_T) · softmax_K(logits / T), so its mass is 1 for any tail.
The order of probabilities reveals a wrong tail: no token outside the top-k may be more probable
than the last token in it.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from data_specs import records
from pipeline.storage.codecs.base import NO_ID, TopKCodec
from pipeline.storage.manifest import SAMPLED, TeacherInfo
from pipeline.storage.records import TeacherTargets

# Absolute rounding error of sums over a vocabulary and their logarithms in float32, and of small
# numbers in float16.
ROUNDING = 2e-3
# Relative rounding error of a tail in float32. The error of 1 − tail grows as the tail nears 1.
_TAIL_ROUNDING = 1e-5
FLOAT16_STEP = 2.0**-10
# The log of a mass that float32 may round to 0.
_NO_MASS = -80.0

# Problems, as text, with the positions that have them: bool [R].
Problems = Iterator[tuple[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)
class TopKRows(TeacherTargets):
    """Decoded targets at R masked positions, with their labels.

    Attributes:
        errors: float32 [R, K], maximum absolute difference of each logit from the teacher's.
        labels: int [R], the true tokens.
    """

    errors: np.ndarray = dataclasses.field(kw_only=True)
    labels: np.ndarray = dataclasses.field(kw_only=True)

    @classmethod
    def of(cls, targets: TeacherTargets, codec: TopKCodec, labels: np.ndarray) -> "TopKRows":
        """Adds the codec's errors and the labels to decoded targets."""
        fields = {f.name: getattr(targets, f.name) for f in dataclasses.fields(targets)}
        return cls(**fields, errors=codec.errors(targets.logits), labels=labels.astype(np.int64))


def topk_problems(rows: TopKRows, info: TeacherInfo, vocab_size: int) -> Problems:
    """Yields problems, as text, with the positions that have them: bool [R]."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        yield from _id_problems(rows)
        yield from _tail_problems(rows, info, vocab_size)
        problem = f"{records.LABEL_LOG_PROBS}: expected logarithms of probabilities, at most 0"
        yield problem, ~(rows.label_log_probs <= ROUNDING)
        if rows.hidden_states is not None:
            is_finite = np.isfinite(rows.hidden_states).all(axis=(1, 2))
            yield f"{records.HIDDEN_STATES}: expected finite numbers", ~is_finite
        # Shares of random draws, and merged teachers' averages, differ from a teacher's own
        # probabilities.
        if info.truncation != SAMPLED and "merged" not in info.teacher:
            yield from _mass_problems(rows, info, vocab_size)


def _id_problems(rows: TopKRows) -> Problems:
    ordered = np.sort(rows.ids, axis=-1)
    is_repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NO_ID)
    yield f"{records.TOPK_IDS}: expected no id twice at a position", is_repeated.any(axis=-1)
    name, logits = records.TOPK_LOGITS, rows.logits
    yield f"{name}: expected finite numbers", ~np.isfinite(logits).all(axis=-1)
    yield f"{name}: expected 0 at the first id", logits[:, 0] != 0.0
    ascends = (logits[:, 1:] > logits[:, :-1]).any(axis=-1)
    yield f"{name}: expected descending numbers", ascends


def _tail_problems(rows: TopKRows, info: TeacherInfo, vocab_size: int) -> Problems:
    name, tails = records.LOG_TAIL_MASSES, rows.log_tail_masses
    yield f"{name}: expected logarithms of masses, at most 0", ~(tails <= 1e-6).all(axis=-1)
    if info.truncation == SAMPLED:
        yield f"{name}: expected −inf, as draws have no tail", (tails != -np.inf).any(axis=-1)
        return
    if "merged" not in info.teacher:
        # In a merged cache, another teacher's top-k may be shorter and have a tail.
        bad = ((rows.ids != NO_ID).sum(axis=-1) == vocab_size) & (tails > -np.inf).any(axis=-1)
        yield f"{name}: expected −inf where every token is in the top-k", bad
    bad = (tails[:, 1:] < tails[:, :-1] - ROUNDING).any(axis=-1)
    yield f"{name}: expected more mass in the tail at a higher temperature", bad


def _mass_problems(rows: TopKRows, info: TeacherInfo, vocab_size: int) -> Problems:
    """Yields contradictions between the top-k, the tail and the label of a single teacher."""
    present = rows.ids != NO_ID
    counts = present.sum(axis=-1)
    for column, temperature in enumerate(info.temperatures):
        log_probs, tolerance = stored_log_probs(rows, column, temperature)
        tail = rows.log_tail_masses[:, column]
        last = np.arange(len(counts)), counts - 1
        # A token outside the top-k has at most the probability of the last token in it.
        max_tail = np.log(np.maximum(vocab_size - counts, 1)) + log_probs[last]
        yield (
            f"{records.LOG_TAIL_MASSES}: expected tokens in the tail that are less probable than "
            f"those in the top-k, at temperature {temperature:g}",
            tail > max_tail + rows.errors[last] / temperature + tolerance,
        )
        if temperature == 1.0:
            yield from _label_problems(rows, log_probs, tolerance, tail)
            if info.truncation_mass is not None:
                mass = -np.expm1(np.minimum(tail, 0.0))
                yield (
                    f"{records.TOPK_COUNTS}: expected a mass of {info.truncation_mass:g} or more "
                    f"where there are fewer than {info.truncation_factor} ids",
                    (counts < info.truncation_factor) & (mass < info.truncation_mass - ROUNDING),
                )


def stored_log_probs(
    rows: TopKRows, column: int, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the log-probabilities of the stored ids at a temperature T.

    Args:
        rows: of the cache.
        column: index of T among the cached temperatures.
        temperature: T.

    Returns:
        log p_T of the ids, float32 [R, K]; the error of each row's normalization, float64 [R],
        which adds to the error of each id. It is infinite if the tail is too close to 1.
    """
    present = rows.ids != NO_ID
    # `NO_ID_LOGIT` has no weight at any temperature.
    scaled = rows.logits / np.float32(temperature)
    weights = np.exp(scaled)
    total = weights.sum(axis=-1)
    log_tail = rows.log_tail_masses[:, column].astype(np.float64)
    inside = -np.expm1(np.minimum(log_tail, 0.0))
    log_probs = scaled + (np.log(inside) - np.log(total)).astype(np.float32)[:, np.newaxis]
    errors = np.where(present & np.isfinite(rows.errors), rows.errors, 0.0)
    sum_error = (weights * errors).sum(axis=-1) / total / temperature + ROUNDING
    tail_error = np.where(inside > 0.0, _TAIL_ROUNDING * np.exp(log_tail) / inside, np.inf)
    return log_probs, sum_error + np.where(tail_error < 0.5, tail_error, np.inf)


def _label_problems(
    rows: TopKRows, log_probs: np.ndarray, tolerance: np.ndarray, tail: np.ndarray
) -> Problems:
    is_label = rows.ids == rows.labels[:, np.newaxis]
    label_index = np.arange(len(rows.labels)), is_label.argmax(axis=-1)
    is_inside, stored = is_label.any(axis=-1), rows.label_log_probs
    tolerance = tolerance + FLOAT16_STEP * np.abs(np.where(np.isfinite(stored), stored, 0.0))
    difference = np.abs(stored - log_probs[label_index])
    yield (
        f"{records.LABEL_LOG_PROBS}: expected the probability of the label in the top-k",
        is_inside & (difference > tolerance + rows.errors[label_index]),
    )
    yield (
        f"{records.LABEL_LOG_PROBS}: expected at most the tail's mass where the label is outside "
        "the top-k",
        ~is_inside & (stored > np.maximum(tail, _NO_MASS) + tolerance),
    )
