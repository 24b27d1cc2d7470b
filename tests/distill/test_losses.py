"""The losses: hand-computed values, and what must hold of each."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.distill.losses import distributions
from pipeline.distill.losses.base import TAIL_POLICIES
from pipeline.distill.losses.distributions import StudentDistribution, TeacherDistribution
from pipeline.distill.losses.kl_divergence import KLDivergence
from pipeline.distill.losses.masked_lm import MaskedLMLoss
from pipeline.distill.losses.probability_cosine import ProbabilityCosine
from pipeline.distill.losses.soft_cross_entropy import SoftCrossEntropy

# One position, four tokens. The teacher keeps tokens 2 and 0, half and a quarter of the
# mass; the student has 0.4, 0.1, 0.2, 0.3; the true token is 3.
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


def test_the_tail_joins_the_label_within_the_top_k() -> None:
    # The label is token 2: its probability becomes 0.75, and nothing is outside.
    student = _student(label=np.array([2]))
    entropy = 0.75 * LOG(0.75) + 0.25 * LOG(0.25)
    cross = -(0.75 * LOG(0.2) + 0.25 * LOG(0.4))
    loss = KLDivergence(tail="label", temperature=1.0)(student, _teacher(), {})
    np.testing.assert_allclose(loss, [entropy + cross], rtol=1e-5)


def test_hand_computed_cosine_and_label() -> None:
    cosine = (0.5 * 0.2 + 0.25 * 0.4) / math.sqrt((0.25 + 0.0625) * (0.04 + 0.16))
    loss = ProbabilityCosine()(_student(), _teacher(), {})
    np.testing.assert_allclose(loss, [1 - cosine], rtol=1e-5)
    np.testing.assert_allclose(MaskedLMLoss()(_student(), None, {}), [-LOG(0.3)], rtol=1e-5)


def test_hand_computed_temperature() -> None:
    # At T = 2 a distribution over two tokens of logits 0 and −2 is softmax(0, −1).
    teacher = distributions.teacher_distribution(
        np.array([[0, 1]]),
        np.array([[0.0, -2.0]], "float32"),
        np.array([-np.inf], "float32"),
        temperature=2.0,
        truncation_factor=2,
    )
    p = 1.0 / (1.0 + math.exp(-1.0))
    np.testing.assert_allclose(teacher.probabilities, [[p, 1 - p]], rtol=1e-6)
    student = distributions.student_log_probs(
        np.array([[1.0, 1.0]], "float32"), np.array([[0, 1]]), np.array([0]), temperature=2.0
    )
    divergence = 4.0 * (p * LOG(2 * p) + (1 - p) * LOG(2 * (1 - p)))
    for tail in TAIL_POLICIES:
        loss = KLDivergence(tail=tail, temperature=2.0)(student, teacher, {})
        np.testing.assert_allclose(loss, [divergence], rtol=1e-5)


def test_a_prefix_moves_the_rest_into_the_tail() -> None:
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
    return logits, random.integers(0, 20, 3), draw(st.integers(1, 20))


def _from_logits(logits: np.ndarray, k: int, temperature: float) -> TeacherDistribution:
    p = np.exp(logits / temperature)
    p /= p.sum(-1, keepdims=True)
    ids = np.argsort(-logits, axis=-1)[:, :k]
    outside = p.copy()
    np.put_along_axis(outside, ids, 0.0, -1)
    with np.errstate(divide="ignore"):
        log_tail = np.log(outside.sum(-1)).astype("float32")
    kept = np.take_along_axis(logits, ids, -1).astype("float32")
    return distributions.teacher_distribution(
        ids, kept, log_tail, temperature=temperature, truncation_factor=k
    )


@given(_dense(), st.sampled_from([1.0, 2.0]))
def test_a_student_that_equals_the_teacher(case, temperature: float) -> None:
    logits, labels, k = case
    teacher = _from_logits(logits, k, temperature)
    student = distributions.student_log_probs(
        logits.astype("float32"), teacher.ids, labels, temperature=temperature
    )
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


@given(_dense())
def test_under_label_the_ideal_student_has_the_tail_at_the_label(case) -> None:
    logits, labels, k = case
    teacher = _from_logits(logits, k, 1.0)
    ideal = np.full(logits.shape, 1e-30)
    np.put_along_axis(ideal, np.asarray(teacher.ids), np.asarray(teacher.probabilities), -1)
    ideal[np.arange(3), labels] += np.asarray(teacher.tail)
    student = distributions.student_log_probs(
        np.log(ideal).astype("float32"), teacher.ids, labels, temperature=1.0
    )
    loss = KLDivergence(tail="label", temperature=1.0)(student, teacher, {})
    np.testing.assert_allclose(loss, 0.0, atol=2e-5)
    entropy = -np.asarray(distributions.negative_entropy(teacher, labels, tail="label"))
    loss = SoftCrossEntropy(tail="label")(student, teacher, {})
    np.testing.assert_allclose(loss, entropy, atol=2e-5)


@given(_dense(), st.sampled_from([1.0, 2.0]), st.integers(0, 10**6))
def test_all_of_the_vocabulary_is_the_dense_loss(case, temperature: float, seed: int) -> None:
    logits, labels, _ = case
    other = np.random.default_rng(seed).normal(0.0, 2.0, logits.shape)
    teacher = _from_logits(logits, 20, temperature)
    student = distributions.student_log_probs(
        other.astype("float32"), teacher.ids, labels, temperature=temperature
    )

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x / temperature
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    p, log_p, log_q = np.exp(log_softmax(logits)), log_softmax(logits), log_softmax(other)
    for tail in TAIL_POLICIES:
        loss = SoftCrossEntropy(tail=tail)(student, teacher, {})
        np.testing.assert_allclose(loss, -(p * log_q).sum(-1), rtol=1e-4)
        loss = KLDivergence(tail=tail, temperature=temperature)(student, teacher, {})
        exact = temperature**2 * (p * (log_p - log_q)).sum(-1)
        np.testing.assert_allclose(loss, exact, rtol=1e-3, atol=1e-4)


@given(_dense(), st.integers(0, 10**6))
def test_divergence_is_never_below_zero_but_for_drop(case, seed: int) -> None:
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
