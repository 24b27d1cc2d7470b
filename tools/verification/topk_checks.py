"""Checks of the teacher targets at any masked position, many positions at once.

Letters as in `data_specs.records`: K top-k, T temperatures, V vocabulary. A position's
distribution is p_T = (1 − tail_T) · softmax_K(logits / T), so that its mass is 1 whatever
the tail is. What shows a wrong tail is the order of probabilities: no token outside the
top-k is more probable than the last inside.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from data_specs import records
from pipeline.storage.codecs.base import NO_ID, TopKCodec
from pipeline.storage.manifest import SAMPLED, TeacherInfo
from pipeline.storage.records import TeacherTargets

# What float32 makes of sums over a vocabulary and of their logarithms, and float16 of small
# numbers.
ROUNDING = 2e-3
# The part of a log tail that float32 is not sure of. It grows where a tail is nearly all.
_TAIL_ROUNDING = 1e-5
FLOAT16_STEP = 2.0**-10
# The log of a mass so small that float32 may take it for none.
_NO_MASS = -80.0

# What must hold, as a sentence, and at which positions it does not: bool [R].
Problems = Iterator[tuple[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)
class TopKRows(TeacherTargets):
    """Decoded targets at R masked positions, with their labels.

    Attributes:
        errors: float32 [R, K], how far each logit may be from the teacher's.
        labels: int [R], the true tokens.
    """

    errors: np.ndarray = dataclasses.field(kw_only=True)
    labels: np.ndarray = dataclasses.field(kw_only=True)

    @classmethod
    def of(cls, targets: TeacherTargets, codec: TopKCodec, labels: np.ndarray) -> "TopKRows":
        """Returns targets that a codec decoded, with their labels."""
        fields = {f.name: getattr(targets, f.name) for f in dataclasses.fields(targets)}
        return cls(**fields, errors=codec.errors(targets.logits), labels=labels.astype(np.int64))


def topk_problems(rows: TopKRows, info: TeacherInfo, vocab_size: int) -> Problems:
    """Yields what must hold, as a sentence, and where it does not: bool [R]."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        yield from _id_problems(rows)
        yield from _tail_problems(rows, info, vocab_size)
        problem = f"{records.LABEL_LOG_PROBS}: expected logarithms of probabilities, at most 0"
        yield problem, ~(rows.label_log_probs <= ROUNDING)
        if rows.hidden_states is not None:
            is_finite = np.isfinite(rows.hidden_states).all(axis=(1, 2))
            yield f"{records.HIDDEN_STATES}: expected finite numbers", ~is_finite
        # Draws and averages of several teachers have other probabilities of the ids.
        if info.truncation != SAMPLED and "merged" not in info.teacher:
            yield from _mass_problems(rows, info, vocab_size)


def _id_problems(rows: TopKRows) -> Problems:
    ordered = np.sort(rows.ids, axis=-1)
    doubles = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NO_ID)
    yield f"{records.TOPK_IDS}: expected no id twice at a position", doubles.any(axis=-1)
    name, logits = records.TOPK_LOGITS, rows.logits
    yield f"{name}: expected finite numbers", ~np.isfinite(logits).all(axis=-1)
    yield f"{name}: expected 0 at the first id", logits[:, 0] != 0.0
    falls = (logits[:, 1:] > logits[:, :-1]).any(axis=-1)
    yield f"{name}: expected descending numbers", falls


def _tail_problems(rows: TopKRows, info: TeacherInfo, vocab_size: int) -> Problems:
    name, tails = records.LOG_TAIL_MASSES, rows.log_tail_masses
    yield f"{name}: expected logarithms of masses, at most 0", ~(tails <= 1e-6).all(axis=-1)
    if info.truncation == SAMPLED:
        yield f"{name}: expected −inf, as draws have no tail", (tails != -np.inf).any(axis=-1)
        return
    if "merged" not in info.teacher:
        # One teacher's list of every token leaves nothing; another's may be shorter.
        bad = ((rows.ids != NO_ID).sum(axis=-1) == vocab_size) & (tails > -np.inf).any(axis=-1)
        yield f"{name}: expected −inf where every token is in the top-k", bad
    bad = (tails[:, 1:] < tails[:, :-1] - ROUNDING).any(axis=-1)
    yield f"{name}: expected more mass in the tail at a higher temperature", bad


def _mass_problems(rows: TopKRows, info: TeacherInfo, vocab_size: int) -> Problems:
    """Yields what one teacher's top-k, tail and label say of each other."""
    present = rows.ids != NO_ID
    counts = present.sum(axis=-1)
    for column, temperature in enumerate(info.temperatures):
        log_probs, slack = said_log_probs(rows, column, temperature)
        tail = rows.log_tail_masses[:, column]
        places = np.arange(len(counts)), counts - 1
        # Each of the tokens outside has at most the last one's mass.
        most = np.log(np.maximum(vocab_size - counts, 1)) + log_probs[places]
        yield (
            f"{records.LOG_TAIL_MASSES}: expected tokens in the tail that are less probable than "
            f"those in the top-k, at temperature {temperature:g}",
            tail > most + rows.errors[places] / temperature + slack,
        )
        if temperature == 1.0:
            yield from _label_problems(rows, log_probs, slack, tail)
            if info.truncation_mass is not None:
                kept = -np.expm1(np.minimum(tail, 0.0))
                yield (
                    f"{records.TOPK_COUNTS}: expected ids of {info.truncation_mass:g} of the mass "
                    f"where there are fewer than {info.truncation_factor}",
                    (counts < info.truncation_factor) & (kept < info.truncation_mass - ROUNDING),
                )


def said_log_probs(
    rows: TopKRows, column: int, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns log p_T of the ids, float32 [R, K], and how far all of a row may be off.

    The second, float64 [R], is the error of the row's sum and its tail, besides each id's own.
    It is infinite where the tail is so near to all mass that nothing is known. `column` is
    that of T among the cached temperatures.
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
    slack = (weights * errors).sum(axis=-1) / total / temperature + ROUNDING
    unsure = np.where(inside > 0.0, _TAIL_ROUNDING * np.exp(log_tail) / inside, np.inf)
    return log_probs, slack + np.where(unsure < 0.5, unsure, np.inf)


def _label_problems(
    rows: TopKRows, log_probs: np.ndarray, slack: np.ndarray, tail: np.ndarray
) -> Problems:
    is_label = rows.ids == rows.labels[:, np.newaxis]
    places = np.arange(len(rows.labels)), is_label.argmax(axis=-1)
    is_inside, said = is_label.any(axis=-1), rows.label_log_probs
    slack = slack + FLOAT16_STEP * np.abs(np.where(np.isfinite(said), said, 0.0))
    yield (
        f"{records.LABEL_LOG_PROBS}: expected the probability of the label in the top-k",
        is_inside & (np.abs(said - log_probs[places]) > slack + rows.errors[places]),
    )
    yield (
        f"{records.LABEL_LOG_PROBS}: expected at most the tail's mass where the label is outside "
        "the top-k",
        ~is_inside & (said > np.maximum(tail, _NO_MASS) + slack),
    )
