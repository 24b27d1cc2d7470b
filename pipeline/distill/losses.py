"""The losses between teacher p and student q.

Letters as in DESIGN: K top-k ids, V vocabulary; `...` stands for [B, P], the masked
positions, or [B, L], all tokens. Every function returns one value a position;
averaging is the objective's. Only `attention_mse` compares pairs of positions.

What is outside the top-k, the tail, has mass 1 − Σ_K p. A tail policy says what
becomes of it:
    drop         nothing: sums run over K and p does not sum to 1
    renormalize  both sides are rescaled to sum to 1 over K
    bucket       it is one more class, and the student's own rest its q
    label        it is added to the true token's p
"""

import dataclasses
from typing import Any

from keras import ops

# Smallest distance of the student's top-k mass from 1, in its logarithm:
# float32 knows it no better.
_SMALLEST_LOG_REST = 1e-7
# The log-probability beside an id below 0, which is none: e to it is 0, and it is finite.
_NO_ID_LOG_PROB = -1e4


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The teacher's distribution at one temperature.

    Attributes:
        ids: int [..., K], −1 where there is none; None where K is the whole
            vocabulary in its order.
        probabilities: float32 [..., K], 0 where there is no id.
        tail: float32 [...], the mass outside K.
    """

    ids: Any
    probabilities: Any
    tail: Any


@dataclasses.dataclass(frozen=True)
class Student:
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
) -> Teacher:
    """Rebuilds the teacher's distribution: p_T = (1 − tail_T) · softmax_K(logits / T).

    Args:
        ids: int [..., K].
        logits: float32 [..., K], descending.
        log_tail: float32 [...], the log of the tail's mass at this temperature.
        temperature: T.
        truncation_factor: how many ids to keep; the dropped mass joins the tail.
    """
    tail = ops.exp(log_tail)
    probabilities = ops.expand_dims(1.0 - tail, -1) * ops.softmax(logits / temperature, axis=-1)
    kept = probabilities[..., :truncation_factor]
    dropped = ops.sum(probabilities[..., truncation_factor:], axis=-1)
    return Teacher(ids[..., :truncation_factor], kept, tail + dropped)


def dense_distribution(logits: Any, *, temperature: float) -> Teacher:
    """Returns the whole of a live teacher's distribution: softmax(logits / T), no tail.

    Args:
        logits: float32 [..., V].
        temperature: T.
    """
    probabilities = ops.softmax(logits / temperature, axis=-1)
    return Teacher(None, probabilities, ops.zeros_like(probabilities[..., 0]))


def student_log_probs(logits: Any, ids: Any, labels: Any, *, temperature: float) -> Student:
    """Returns the student's log-probabilities at the ids and the label.

    Args:
        logits: float32 [..., V].
        ids: int [..., K]; one below 0 is no id (the teacher's is a token that the
            student lacks) and has no probability and no gradient. None for the
            whole vocabulary.
        labels: int [...].
        temperature: T.
    """
    scaled = logits / temperature if temperature != 1.0 else logits
    normaliser = ops.logsumexp(scaled, axis=-1, keepdims=True)
    if ids is None:
        log_probs = scaled - normaliser
        at_label = ops.take_along_axis(log_probs, ops.expand_dims(labels, -1), axis=-1)
        return Student(log_probs, at_label[..., 0], labels)
    wanted = ops.concatenate([ops.maximum(ids, 0), ops.expand_dims(labels, -1)], axis=-1)
    log_probs = ops.take_along_axis(scaled, wanted, axis=-1) - normaliser
    inside = ops.where(ops.less(ids, 0), _NO_ID_LOG_PROB, log_probs[..., :-1])
    return Student(inside, log_probs[..., -1], labels)


def _xlogx(x: Any) -> Any:
    """x · log x, 0 at 0."""
    return x * ops.log(ops.maximum(x, 1e-30))


def _log_rest(log_probs: Any) -> Any:
    """log(1 − Σ_K q), the student's own tail, in float32's reach."""
    log_mass = ops.logsumexp(log_probs, axis=-1)
    return ops.log(-ops.expm1(ops.minimum(log_mass, -_SMALLEST_LOG_REST)))


def _renormalized(teacher: Teacher, student: Student) -> tuple[Any, Any]:
    p = teacher.probabilities / ops.sum(teacher.probabilities, axis=-1, keepdims=True)
    log_q = student.log_probs - ops.logsumexp(student.log_probs, axis=-1, keepdims=True)
    return p, log_q


def soft_cross_entropy(teacher: Teacher, student: Student, *, tail: str) -> Any:
    """−Σ p log q: the first loss of the Chinese RoBERTa-wwm distillation (tail dropped).

    Args:
        teacher: p.
        student: q, at the same temperature.
        tail: the policy.
    """
    p, log_q = teacher.probabilities, student.log_probs
    if tail == "renormalize":
        p, log_q = _renormalized(teacher, student)
    inside = -ops.sum(p * log_q, axis=-1)
    if tail == "bucket":
        return inside - teacher.tail * _log_rest(log_q)
    if tail == "label":
        return inside - teacher.tail * student.label_log_probs
    return inside


def negative_entropy(teacher: Teacher, labels: Any, *, tail: str) -> Any:
    """Σ p log p of the distribution that a tail policy makes of the teacher's.

    Args:
        teacher: p.
        labels: int [...], the true tokens, for the policy `label`.
        tail: the policy.
    """
    p = teacher.probabilities
    if tail == "renormalize":
        p = p / ops.sum(p, axis=-1, keepdims=True)
    if tail == "bucket":
        return ops.sum(_xlogx(p), axis=-1) + _xlogx(teacher.tail)
    if tail == "label" and teacher.ids is not None:
        hit = ops.cast(ops.equal(teacher.ids, ops.expand_dims(labels, -1)), p.dtype)
        inside = p + hit * ops.expand_dims(teacher.tail, -1)
        outside = teacher.tail * (1.0 - ops.sum(hit, axis=-1))
        return ops.sum(_xlogx(inside), axis=-1) + _xlogx(outside)
    return ops.sum(_xlogx(p), axis=-1)


def kl_divergence(teacher: Teacher, student: Student, *, tail: str, temperature: float) -> Any:
    """T² · Σ p log(p / q): Hinton et al., 2015, with their factor T².

    Zero where the student equals the teacher, whatever the policy; never below
    zero but for `drop`, whose p and q do not sum to the same.

    Args:
        teacher: p.
        student: q, at the same temperature.
        tail: the policy.
        temperature: T of both.
    """
    entropy = negative_entropy(teacher, student.labels, tail=tail)
    return temperature**2 * (entropy + soft_cross_entropy(teacher, student, tail=tail))


def probability_cosine(teacher: Teacher, student: Student) -> Any:
    """1 − cos(p_K, q_K): the second loss of the Chinese RoBERTa-wwm distillation.

    Args:
        teacher: p, at temperature 1.
        student: q, at temperature 1. The cosine does not see the scale of
            either, so that each is divided by its largest value first.
    """
    p = teacher.probabilities / ops.max(teacher.probabilities, axis=-1, keepdims=True)
    log_q = student.log_probs
    q = ops.exp(log_q - ops.stop_gradient(ops.max(log_q, axis=-1, keepdims=True)))
    lengths = ops.sum(p * p, axis=-1) * ops.sum(q * q, axis=-1)
    return 1.0 - ops.sum(p * q, axis=-1) * ops.rsqrt(lengths)


def masked_lm(student: Student) -> Any:
    """−log q(label), at temperature 1: Devlin et al., 2019."""
    return -student.label_log_probs


# Below this a length counts as this, as in PyTorch's CosineEmbeddingLoss.
_SMALLEST_LENGTH_SQUARED = 1e-12


def hidden_cosine(teacher: Any, student: Any) -> Any:
    """1 − cos of two hidden states: DistilBERT's third loss (Sanh et al., 2019).

    Args:
        teacher: float [..., D], or the mean of several layers' (DistilRuBERT).
        student: float [..., D], projected to the teacher's size where it has another.

    Returns:
        float32 [...], from 0 to 2.
    """
    teacher, student = ops.cast(teacher, "float32"), ops.cast(student, "float32")
    product = ops.sum(teacher * student, axis=-1)
    lengths = [
        ops.sum(state * state, axis=-1) + _SMALLEST_LENGTH_SQUARED for state in (teacher, student)
    ]
    return 1.0 - product * ops.rsqrt(lengths[0] * lengths[1])


def attention_mse(teacher: Any, student: Any, input_mask: Any) -> Any:
    """Mean squared difference of two attention maps, over heads and pairs of real tokens.

    Padding is left out as a query and as a key: what `MSELoss` gives on the
    elements that belong to real tokens (DistilRuBERT's fourth loss).

    Args:
        teacher: float32 [B, H, L, L], or the mean of several layers'.
        student: float32 [B, H, L, L].
        input_mask: [B, L], 1 at real tokens.

    Returns:
        float32 [], one number for the batch.
    """
    mask = ops.cast(input_mask, "float32")
    pairs = ops.expand_dims(mask, 2) * ops.expand_dims(mask, 1)
    squares = ops.mean(ops.square(teacher - student), axis=1)
    return ops.sum(squares * pairs) / ops.maximum(ops.sum(pairs), 1.0)
