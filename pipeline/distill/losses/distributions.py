"""Distributions of teacher p and student q under the tail policies.

K are the teacher's top-k ids, V is the vocabulary; `...` stands for [B, P], the masked
positions, or [B, L], all tokens. The teacher's mass outside the top-k, the tail, is 1 − Σ_K p.
Tail policies:
    drop         the tail is ignored: sums run over K and p does not sum to 1
    renormalize  both sides are rescaled to sum to 1 over K
    bucket       the tail is one more class, whose q is the student's mass outside K
    label        the tail is added to the true token's p
If K are all tokens of a reduced-vocabulary student, the student has no mass outside K to compare
with the tail. `bucket` then means `renormalize`.
"""

import dataclasses
from typing import Any

from keras import ops

# Smallest distance of the logarithm of the student's top-k mass from 0. float32 does not resolve
# smaller distances.
_SMALLEST_LOG_REST = 1e-7
# Smallest probability of the student's tokens if the teacher's mass is on other tokens. Sums of
# its squares are still above 0 in float32.
_SMALLEST_PROBABILITY = 1e-18
_LARGEST_LOG_TAIL = -1e-6
# The log-probability at an id below 0, which stands for no token. It is finite, and its
# exponential is 0.
_NO_ID_LOG_PROB = -1e4


@dataclasses.dataclass(frozen=True)
class TeacherDistribution:
    """The teacher's distribution at one temperature.

    Attributes:
        ids: int [..., K], −1 for no token; None if K is the student's whole vocabulary in its
            order.
        probabilities: float32 [..., K], 0 where the id is −1.
        tail: float32 [...], the mass outside K.
        has_tail: whether the tail may be more than 0.
    """

    ids: Any
    probabilities: Any
    tail: Any
    has_tail: bool = True


@dataclasses.dataclass(frozen=True)
class StudentDistribution:
    """The student's log-probabilities at the same temperature.

    Attributes:
        log_probs: float32 [..., K], at the teacher's ids.
        label_log_probs: float32 [...], at the true token.
        labels: int [...], the true token.
    """

    log_probs: Any
    label_log_probs: Any
    labels: Any


def teacher_distribution(
    ids: Any, logits: Any, log_tail: Any, *, temperature: float, truncation_factor: int
) -> TeacherDistribution:
    """Rebuilds the teacher's distribution: p_T = (1 − tail_T) · softmax_K(logits / T).

    Args:
        ids: int [..., K].
        logits: float32 [..., K], descending.
        log_tail: float32 [...], the log of the tail's mass at this temperature.
        temperature: T.
        truncation_factor: the number of ids to use; the mass of the others joins the tail.
    """
    tail = ops.exp(log_tail)
    probabilities = ops.expand_dims(1.0 - tail, -1) * ops.softmax(logits / temperature, axis=-1)
    top = probabilities[..., :truncation_factor]
    dropped = ops.sum(probabilities[..., truncation_factor:], axis=-1)
    return TeacherDistribution(ids[..., :truncation_factor], top, tail + dropped)


def dense_distribution(
    logits: Any, *, temperature: float, vocab_size: int | None = None
) -> TeacherDistribution:
    """Returns the distribution softmax(logits / T) over all logits of a teacher.

    Args:
        logits: [..., V of the teacher], the student's tokens first, in their order.
        temperature: T.
        vocab_size: V of the student if it is smaller; the mass of the teacher's other tokens
            is then the tail. None if the vocabularies are equal; there is then no tail.
    """
    probabilities = ops.softmax(logits / temperature, axis=-1)
    if vocab_size in (None, logits.shape[-1]):
        tail = ops.zeros_like(probabilities[..., 0])
        return TeacherDistribution(None, probabilities, tail, has_tail=False)
    tail = ops.sum(probabilities[..., vocab_size:], axis=-1)
    # If the student has none of the teacher's likely tokens, all its tokens are equally likely.
    known = ops.maximum(probabilities[..., :vocab_size], _SMALLEST_PROBABILITY)
    return TeacherDistribution(None, known, tail)


def join_tails(log_tail: Any, logits: Any, *, temperature: float, vocab_size: int) -> Any:
    """Returns the log mass of the student's tokens outside the top-k and of all tokens it lacks.

    Args:
        log_tail: float32 [..., 1], of the distribution over the student's tokens alone.
        logits: [..., V of the teacher], the student's tokens first.
        temperature: T.
        vocab_size: V of the student.
    """
    scaled = logits / temperature
    log_known = ops.logsumexp(scaled[..., :vocab_size], axis=-1, keepdims=True)
    log_others = ops.logsumexp(scaled[..., vocab_size:], axis=-1, keepdims=True)
    log_total = ops.logaddexp(log_known, log_others)
    joined = ops.logaddexp(log_tail + log_known - log_total, log_others - log_total)
    # Below 0, so that the mass inside the top-k is above 0 and can be divided by its sum.
    return ops.minimum(joined, _LARGEST_LOG_TAIL)


def student_log_probs(
    logits: Any, ids: Any, labels: Any, *, temperature: float
) -> StudentDistribution:
    """Returns the student's log-probabilities at the ids and the label.

    Args:
        logits: float32 [..., V].
        ids: int [..., K]; an id below 0 stands for a token that the student lacks, and has
            probability 0 and no gradient. None for the whole vocabulary.
        labels: int [...].
        temperature: T.
    """
    scaled = logits / temperature if temperature != 1.0 else logits
    normalizer = ops.logsumexp(scaled, axis=-1, keepdims=True)
    if ids is None:
        log_probs = scaled - normalizer
        at_label = ops.take_along_axis(log_probs, ops.expand_dims(labels, -1), axis=-1)
        return StudentDistribution(log_probs, at_label[..., 0], labels)
    wanted = ops.concatenate([ops.maximum(ids, 0), ops.expand_dims(labels, -1)], axis=-1)
    log_probs = ops.take_along_axis(scaled, wanted, axis=-1) - normalizer
    inside = ops.where(ops.less(ids, 0), _NO_ID_LOG_PROB, log_probs[..., :-1])
    return StudentDistribution(inside, log_probs[..., -1], labels)


def _xlogx(x: Any) -> Any:
    """Returns x · log x, which is 0 at 0."""
    return x * ops.log(ops.maximum(x, 1e-30))


def _log_rest(log_probs: Any) -> Any:
    """Returns log(1 − Σ_K q), the student's own tail, limited to the range of float32."""
    log_mass = ops.logsumexp(log_probs, axis=-1)
    return ops.log(-ops.expm1(ops.minimum(log_mass, -_SMALLEST_LOG_REST)))


def _renormalized(teacher: TeacherDistribution, student: StudentDistribution) -> tuple[Any, Any]:
    p = teacher.probabilities / ops.sum(teacher.probabilities, axis=-1, keepdims=True)
    log_q = student.log_probs - ops.logsumexp(student.log_probs, axis=-1, keepdims=True)
    return p, log_q


def _effective(tail: str, teacher: TeacherDistribution) -> str:
    """Returns the tail policy that applies to a teacher's distribution; see the module."""
    has_no_rest = teacher.ids is None and teacher.has_tail
    return "renormalize" if tail == "bucket" and has_no_rest else tail


def cross_entropy(teacher: TeacherDistribution, student: StudentDistribution, *, tail: str) -> Any:
    """Returns −Σ p log q of two distributions at the same temperature under a tail policy."""
    p, log_q = teacher.probabilities, student.log_probs
    tail = _effective(tail, teacher)
    if tail == "renormalize":
        p, log_q = _renormalized(teacher, student)
    inside = -ops.sum(p * log_q, axis=-1)
    if tail == "bucket":
        return inside - teacher.tail * _log_rest(log_q)
    if tail == "label":
        return inside - teacher.tail * student.label_log_probs
    return inside


def negative_entropy(teacher: TeacherDistribution, labels: Any, *, tail: str) -> Any:
    """Returns Σ p log p of the teacher's distribution under a tail policy.

    Args:
        teacher: the distribution.
        labels: the true tokens, int [...], which the policy `label` uses.
        tail: the tail policy.
    """
    p = teacher.probabilities
    tail = _effective(tail, teacher)
    if tail == "renormalize":
        p = p / ops.sum(p, axis=-1, keepdims=True)
    if tail == "bucket":
        return ops.sum(_xlogx(p), axis=-1) + _xlogx(teacher.tail)
    if tail == "label" and teacher.has_tail:
        ids = ops.arange(p.shape[-1], dtype=labels.dtype) if teacher.ids is None else teacher.ids
        hit = ops.cast(ops.equal(ids, ops.expand_dims(labels, -1)), p.dtype)
        inside = p + hit * ops.expand_dims(teacher.tail, -1)
        outside = teacher.tail * (1.0 - ops.sum(hit, axis=-1))
        return ops.sum(_xlogx(inside), axis=-1) + _xlogx(outside)
    return ops.sum(_xlogx(p), axis=-1)
