"""The losses on distributions: hand-computed values and general properties."""

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from pipeline.distill.losses import distributions
from pipeline.distill.losses.base import TAIL_POLICIES
from pipeline.distill.losses.distributions import StudentDistribution, TeacherDistribution
from pipeline.distill.losses.kl_divergence import KLDivergence
from pipeline.distill.losses.masked_lm import MaskedLMLoss
from pipeline.distill.losses.probability_cosine import ProbabilityCosine
from pipeline.distill.losses.soft_cross_entropy import SoftCrossEntropy

# One position and four tokens. The teacher's top-k has the tokens 2 and 0, with half and a quarter
# of the mass. The student has 0.4, 0.1, 0.2, 0.3. The true token is 3.
P, TAIL = np.array([0.5, 0.25]), 0.25
Q = np.array([0.4, 0.1, 0.2, 0.3])
IDS, LABEL = np.array([[2, 0]]), np.array([3])
LOG = math.log

HAND = {
    "drop": -(0.5 * LOG(0.2) + 0.25 * LOG(0.4)),
    "renormalize": -(2 / 3 * LOG(0.2 / 0.6) + 1 / 3 * LOG(0.4 / 0.6)),
    "bucket": -(0.5 * LOG(0.2) + 0.25 * LOG(0.4) + 0.25 * LOG(0.4)),
    "label": -(0.5 * LOG(0.2) + 0.25 * LOG(0.4) + 0.25 * LOG(0.3)),
}
HAND_ENTROPY = {
    "drop": 0.5 * LOG(0.5) + 0.25 * LOG(0.25),
    "renormalize": 2 / 3 * LOG(2 / 3) + 1 / 3 * LOG(1 / 3),
    "bucket": 0.5 * LOG(0.5) + 2 * 0.25 * LOG(0.25),
    "label": 0.5 * LOG(0.5) + 2 * 0.25 * LOG(0.25),
}


def _teacher(p=P, tail=TAIL, ids=IDS) -> TeacherDistribution:
    return distributions.teacher_distribution(
        ids,
        np.log(np.asarray([p], "float32")),
        np.log(np.asarray([tail], "float32")) if tail else np.array([-np.inf], "float32"),
        temperature=1.0,
        truncation_factor=len(p),
    )


def _student(q=Q, ids=IDS, label=LABEL, temperature=1.0) -> StudentDistribution:
    logits = np.log(np.asarray([q], "float32")) + 3.0
    return distributions.student_log_probs(logits, ids, label, temperature=temperature)


@pytest.mark.parametrize("tail", TAIL_POLICIES)
def test_hand_computed_cross_entropy_and_divergence(tail: str) -> None:
    loss = SoftCrossEntropy(tail=tail)(_student(), _teacher(), {})
    np.testing.assert_allclose(loss, [HAND[tail]], rtol=1e-5)
    loss = KLDivergence(tail=tail, temperature=1.0)(_student(), _teacher(), {})
    np.testing.assert_allclose(loss, [HAND[tail] + HAND_ENTROPY[tail]], rtol=1e-4)


def test_smaller_truncation_factor_moves_mass_into_the_tail() -> None:
    teacher = distributions.teacher_distribution(
        np.array([[2, 0]]),
        np.log(np.array([[0.5, 0.25]], "float32")),
        np.log(np.array([0.25], "float32")),
        temperature=1.0,
        truncation_factor=1,
    )
    np.testing.assert_allclose(teacher.probabilities, [[0.5]], rtol=1e-6)
    np.testing.assert_allclose(teacher.tail, [0.5], rtol=1e-6)


@st.composite
def _dense(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    seed = draw(st.integers(0, 10**6))
    scale = draw(st.sampled_from([0.3, 2.0, 6.0]))
    random = np.random.default_rng(seed)
    logits = random.normal(0.0, scale, (3, 20))
    return logits, random.integers(0, 20, 3), draw(st.sampled_from([1, 4, 12, 19, 20]))


def _from_logits(
    logits: np.ndarray, k: int, temperature: float, lacking: np.ndarray | None = None
) -> TeacherDistribution:
    """Returns the top-k of a dense teacher; ids that the student lacks join the tail."""
    p = np.exp(logits / temperature)
    p /= p.sum(-1, keepdims=True)
    ids = np.argsort(-logits, axis=-1)[:, :k]
    outside = p.copy()
    np.put_along_axis(outside, ids, 0.0, -1)
    with np.errstate(divide="ignore"):
        log_tail = np.log(outside.sum(-1)).astype("float32")
    top = np.take_along_axis(logits, ids, -1).astype("float32")
    teacher = distributions.teacher_distribution(
        ids, top, log_tail, temperature=temperature, truncation_factor=k
    )
    if lacking is None:
        return teacher
    inside, masses = np.where(lacking[ids], 0.0, 1.0), np.asarray(teacher.probabilities)
    tail = np.asarray(teacher.tail) + (masses * (1.0 - inside)).sum(-1)
    probabilities = (masses * inside).astype("float32")
    return TeacherDistribution(np.where(inside > 0, ids, -1), probabilities, tail.astype("float32"))


@given(_dense(), st.sampled_from([1.0, 2.0]))
def test_student_equal_to_the_teacher_has_zero_divergence(case, temperature: float) -> None:
    logits, labels, k = case
    teacher = _from_logits(logits, k, temperature)
    same = logits.astype("float32")
    student = distributions.student_log_probs(same, teacher.ids, labels, temperature=temperature)
    for tail in ("renormalize", "bucket"):
        loss = KLDivergence(tail=tail, temperature=temperature)(student, teacher, {})
        np.testing.assert_allclose(loss, 0.0, atol=3e-5)
    for tail in ("drop", "renormalize", "bucket"):
        entropy = -np.asarray(distributions.negative_entropy(teacher, labels, tail=tail))
        loss = SoftCrossEntropy(tail=tail)(student, teacher, {})
        np.testing.assert_allclose(loss, entropy, atol=2e-5, rtol=1e-5)
    if temperature == 1.0:
        cosine = ProbabilityCosine()(student, teacher, {})
        np.testing.assert_allclose(cosine, 0.0, atol=1e-6)


def _plain_losses(
    p: np.ndarray, log_q: np.ndarray, inside: list[int], label: int, tail: str
) -> tuple[float, float]:
    """Returns Σ −p log q and Σ p log(p / q) of one position, over the whole vocabulary.

    The top-k has the ids `inside`; the teacher's other mass is the tail.
    """
    classes = {i: (p[i], log_q[i]) for i in inside}
    outside = [i for i in range(len(p)) if i not in classes]
    if tail == "renormalize":
        norm_p, norm_q = p[inside].sum(), np.exp(log_q[inside]).sum()
        classes = {i: (x / norm_p, y - LOG(norm_q)) for i, (x, y) in classes.items()}
    if tail == "bucket" and outside:
        classes["rest"] = p[outside].sum(), LOG(np.exp(log_q[outside]).sum())
    if tail == "label":
        mass = classes.get(label, (0.0, 0.0))[0] + p[outside].sum()
        classes[label] = mass, log_q[label]
    cross = -sum(x * y for x, y in classes.values())
    return cross, cross + sum(x * LOG(x) for x, _ in classes.values() if x > 0)


@pytest.mark.parametrize("tail", TAIL_POLICIES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@given(_dense(), st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 0.8]))
def test_losses_equal_a_plain_computation(tail, temperature, case, seed, share) -> None:
    """Cases are the whole vocabulary, a top-k, and a student that lacks tokens of the top-k."""
    logits, labels, k = case
    random = np.random.default_rng(seed)
    other = random.normal(0.0, 2.0, logits.shape)
    teacher = _from_logits(logits, k, temperature, lacking=random.random(20) < share)
    student = distributions.student_log_probs(
        other.astype("float32"), teacher.ids, labels, temperature=temperature
    )
    cross = SoftCrossEntropy(tail=tail)(student, teacher, {})
    divergence = KLDivergence(tail=tail, temperature=temperature)(student, teacher, {})
    cosine = ProbabilityCosine()(student, teacher, {})

    def softmax(x: np.ndarray) -> np.ndarray:
        p = np.exp(x / temperature)
        return p / p.sum(-1, keepdims=True)

    for row, (p, q) in enumerate(zip(softmax(logits), softmax(other), strict=True)):
        inside = [int(i) for i in np.asarray(teacher.ids)[row] if i >= 0]
        if not inside:
            continue
        expected = _plain_losses(p, np.log(q), inside, int(labels[row]), tail)
        # In float32 1 − Σ q, the student's mass of the bucket, has the rounding errors of 1.
        rest = np.delete([p, q], inside, axis=1).sum(axis=1)
        slack = 2.0**-21 * rest[0] / rest[1] if tail == "bucket" and rest[1] else 0.0
        np.testing.assert_allclose(cross[row], expected[0], rtol=2e-5, atol=2e-5 + slack)
        slack = temperature**2 * (1e-4 + slack)
        exact = temperature**2 * expected[1]
        np.testing.assert_allclose(divergence[row], exact, rtol=1e-3, atol=slack)
        p_top, q_top = p[inside], q[inside]
        exact = 1.0 - p_top @ q_top / math.sqrt((p_top @ p_top) * (q_top @ q_top))
        np.testing.assert_allclose(cosine[row], exact, atol=2e-5)
        np.testing.assert_allclose(student.label_log_probs[row], LOG(q[labels[row]]), rtol=1e-4)


@pytest.mark.parametrize("tail", TAIL_POLICIES)
def test_gradients_are_finite_and_zero_for_lacking_tokens(tail: str) -> None:
    """The student lacks two ids of the top-k."""
    ids, p = np.array([[2, -1, -1]]), np.array([[0.4, 0.0, 0.0]], "float32")
    teacher = TeacherDistribution(ids, p, np.array([0.6], "float32"))
    logits = tf.Variable(np.random.default_rng(0).normal(size=(1, 4)).astype("float32"))
    for loss in (SoftCrossEntropy, KLDivergence, ProbabilityCosine, MaskedLMLoss):
        with tf.GradientTape() as tape:
            student = distributions.student_log_probs(
                logits.value(), ids, np.array([3]), temperature=1.0
            )
            value = loss(tail=tail)(student, teacher, {})
        assert np.isfinite(value).all() and np.isfinite(tape.gradient(value, logits)).all(), loss
    # The entries of missing ids have no gradient.
    with tf.GradientTape() as tape:
        student = distributions.student_log_probs(logits.value(), ids, ids[:, 0], temperature=1.0)
        lacking = student.log_probs[0, 1:]
    assert tape.gradient(lacking, logits).numpy().tolist() == [[0.0] * 4]
    assert lacking.numpy().tolist() == [-1e4, -1e4]


@given(_dense(), st.integers(0, 10**6))
def test_divergence_is_never_negative_except_for_drop(case, seed: int) -> None:
    logits, labels, k = case
    other = np.random.default_rng(seed).normal(0.0, 4.0, logits.shape).astype("float32")
    teacher = _from_logits(logits, k, 1.0)
    student = distributions.student_log_probs(other, teacher.ids, labels, temperature=1.0)
    for tail in ("renormalize", "bucket", "label"):
        loss = KLDivergence(tail=tail, temperature=1.0)(student, teacher, {})
        assert (np.asarray(loss) > -1e-4).all()
        assert np.isfinite(np.asarray(loss)).all()
    cosine = np.asarray(ProbabilityCosine()(student, teacher, {}))
    assert ((cosine > -1e-6) & (cosine <= 1.0 + 1e-6)).all()
