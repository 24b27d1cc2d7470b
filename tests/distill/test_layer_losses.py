"""Losses on layers: hand-computed values, and comparisons with PyTorch's functions."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import InputError
from pipeline.distill.comparison import Comparison, mean_over_weights
from pipeline.distill.losses import distributions
from pipeline.distill.losses.attention_mse import AttentionMSE
from pipeline.distill.losses.attention_score_mse import AttentionScoreMSE
from pipeline.distill.losses.embedding_cosine import EmbeddingCosine
from pipeline.distill.losses.embedding_mse import EmbeddingMSE
from pipeline.distill.losses.hidden_cosine import HiddenCosine
from pipeline.distill.losses.hidden_mse import HiddenMSE, HiddenMSEMasked
from pipeline.distill.losses.kl_divergence import KLDivergence
from pipeline.distill.losses.masked_lm import MaskedLMLoss
from pipeline.distill.losses.probability_cosine import ProbabilityCosine
from pipeline.distill.losses.relation_kl import RelationKL
from pipeline.distill.losses.weights import WeightSchedule, parse_loss_schedules
from pipeline.distill.objective import Objective
from tests.distill.running import loss_values


def _mask(random: np.random.Generator, batch: int, length: int) -> np.ndarray:
    counts = random.integers(1, length + 1, (batch, 1))
    return (np.arange(length) < counts).astype("float32")


def _attention_mse(
    teacher: np.ndarray,
    student: np.ndarray,
    mask: np.ndarray,
    loss: type[AttentionMSE] = AttentionMSE,
) -> float:
    values = loss()(student, teacher, {})
    mask = mask.astype("float32")
    return float(mean_over_weights(values, mask[:, :, None] * mask[:, None, :]))


def test_hidden_cosine_equals_hand_computed_values() -> None:
    teacher = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]], "float32")
    student = np.array([[6.0, 8.0], [0.0, 5.0], [0.0, -1.0]], "float32")
    for loss in (HiddenCosine, EmbeddingCosine):
        np.testing.assert_allclose(loss()(student, teacher, {}), [0.0, 1.0, 2.0], atol=1e-6)


def test_hidden_mse_equals_hand_computed_values() -> None:
    teacher = np.array([[3.0, 4.0], [1.0, 0.0]], "float32")
    student = np.array([[3.0, 4.0], [0.0, 5.0]], "float32")
    for loss in (HiddenMSE, HiddenMSEMasked, EmbeddingMSE):
        np.testing.assert_allclose(loss()(student, teacher, {}), [0.0, (1 + 25) / 2], rtol=1e-6)


def test_attention_mse_equals_hand_computed_values() -> None:
    """One head, and a row of two tokens and one padding token: four pairs count."""
    teacher = np.zeros((1, 1, 3, 3), "float32")
    student = np.arange(9, dtype="float32").reshape(1, 1, 3, 3)
    mask = np.array([[1, 1, 0]], "int32")
    expected = (0 + 1 + 9 + 16) / 4
    assert (_attention_mse(teacher, student, mask)) == pytest.approx(expected)
    assert (_attention_mse(teacher, student, mask, AttentionScoreMSE)) == pytest.approx(expected)


def _relation_kl(teacher: Any, student: Any, mask: np.ndarray) -> float:
    batch = {"input_mask": mask.astype("int32")}
    values = RelationKL()(list(student), list(teacher), batch)
    return float(mean_over_weights(values, mask.astype("float32")))


def test_relation_kl_equals_hand_computed_values() -> None:
    """One head of size 1, two tokens and one padding token; only the keys differ.

    The relations of the teacher's keys 0 and 1 are softmax(0, 0) and softmax(0, 1). Those of
    the student's keys 0 and 0 are uniform.
    """
    teacher = np.zeros((3, 1, 1, 3, 1), "float32")
    student = np.zeros((3, 1, 1, 3, 1), "float32")
    teacher[1, 0, 0, :, 0] = 0.0, 1.0, 7.0
    mask = np.array([[1, 1, 0]])
    p = np.array([1.0, np.e]) / (1.0 + np.e)
    expected = (0.0 + (p * np.log(p / 0.5)).sum()) / 2
    assert _relation_kl(teacher, student, mask) == pytest.approx(expected, rel=1e-5)


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 4]))
def test_relations_equal_a_plain_computation(seed: int, heads: int) -> None:
    """The models have 8 and 4 dimensions; padding is neither a key nor a query."""
    random = np.random.default_rng(seed)
    mask = _mask(random, 2, 5)
    sides = [random.normal(0, 1.5, (3, 2, heads, 5, size // heads)) for size in (8, 4)]
    total = 0.0
    for row, length in enumerate(mask.sum(axis=1).astype(int)):
        for relation in range(3):
            logs = []
            for side in sides:
                vectors = side[relation, row, :, :length]
                scaled = vectors @ np.swapaxes(vectors, 1, 2) / np.sqrt(vectors.shape[-1])
                weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
                logs.append(np.log(weights / weights.sum(axis=-1, keepdims=True)))
            total += (np.exp(logs[0]) * (logs[0] - logs[1])).sum() / heads
    received = _relation_kl(*(side.astype("float32") for side in sides), mask)
    assert received == pytest.approx(total / mask.sum(), rel=1e-4, abs=1e-5)
    assert _relation_kl(sides[0].astype("float32"), sides[0].astype("float32"), mask) == 0.0


@given(st.integers(0, 10**6))
def test_padding_does_not_change_attention_losses(seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = _mask(random, 3, 5)
    maps = random.random((2, 3, 2, 5, 5)).astype("float32")
    value = _attention_mse(maps[0], maps[1], mask)
    pairs = (mask[:, :, None] * mask[:, None, :])[:, None]
    noise = random.random(maps[1].shape).astype("float32") * (1 - pairs)
    assert (_attention_mse(maps[0], maps[1] + noise, mask)) == pytest.approx(value)
    assert (_attention_mse(maps[0], maps[0], mask)) == 0.0


def test_losses_of_the_whole_distribution_equal_hand_computed_values() -> None:
    """p = (0.5, 0.25, 0.25), q = (0.2, 0.4, 0.4)."""
    p, q = np.array([[0.5, 0.25, 0.25]], "float32"), np.array([[0.2, 0.4, 0.4]], "float32")
    teacher = distributions.dense_distribution(np.log(p) + 2.0, temperature=1.0)
    labels = np.array([1])
    student = distributions.student_log_probs(np.log(q), None, labels, temperature=1.0)
    expected = 0.5 * np.log(0.5 / 0.2) + 0.5 * np.log(0.25 / 0.4)
    for tail in ("drop", "renormalize", "bucket", "label"):
        value = KLDivergence(tail=tail, temperature=1.0)(student, teacher, {})
        np.testing.assert_allclose(value, [expected], rtol=1e-5, err_msg=tail)
    np.testing.assert_allclose(MaskedLMLoss()(student, None, {}), [-np.log(0.4)], rtol=1e-6)
    cosine = (0.1 + 0.1 + 0.1) / np.sqrt(0.375 * 0.36)
    np.testing.assert_allclose(ProbabilityCosine()(student, teacher, {}), [1 - cosine], rtol=1e-5)


def test_scheduled_weights_equal_hand_computed_values() -> None:
    schedules = {"masked_lm": WeightSchedule("linear", 0.0)}
    objective = Objective({"masked_lm": 2.0}, schedules=schedules)
    assert [float(objective.weight("masked_lm", t)) for t in (0.0, 0.25, 1.0)] == [2.0, 1.5, 0.0]
    schedules = {"masked_lm": WeightSchedule("cosine", 1.0)}
    objective = Objective({"masked_lm": 3.0}, schedules=schedules)
    values = [float(objective.weight("masked_lm", t)) for t in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(values, [3.0, 2.0, 1.0], atol=1e-6)
    assert float(objective.total({"masked_lm": 0.5}, 0.5)) == pytest.approx(1.0)


def test_loss_schedules_are_parsed() -> None:
    assert parse_loss_schedules("masked_lm=linear:0, kl_divergence=constant") == {
        "masked_lm": WeightSchedule("linear", 0.0),
        "kl_divergence": WeightSchedule("constant", None),
    }
    assert parse_loss_schedules("") == {}


@pytest.mark.parametrize(
    ("text", "received"),
    [
        ("masked_lm=linear:0,masked_lm=linear:1", "masked_lm twice"),
        ("masked_lm=linear", "'masked_lm=linear'"),
        ("masked_lm=step:0", "'masked_lm=step:0'"),
        ("masked_lm=cosine:-1", "'masked_lm=cosine:-1'"),
        ("masked_lm=cosine:x", "'masked_lm=cosine:x'"),
    ],
)
def test_invalid_schedules_are_refused(text: str, received: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_loss_schedules(text)
    assert caught.value.received == received


def _expect(name: str, received: float, expected: Any) -> None:
    print(name, received, float(expected))
    assert received == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.peers
def test_distilberts_three_losses_equal_pytorchs() -> None:
    """The functions are KLDivLoss, CrossEntropyLoss and CosineEmbeddingLoss."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(2)
    batch, length, vocab_size, temperature = 3, 7, 50, 2.0
    mask = _mask(random, batch, length)
    teacher, student = random.normal(0, 3, (2, batch, length, vocab_size)).astype("float32")
    labels = random.integers(0, vocab_size, (batch, length))
    masked = mask * (random.random((batch, length)) < 0.4)
    masked[0, 0] = 1.0
    tokens = np.tile(np.arange(length, dtype="int32"), (batch, 1))
    ours = loss_values(
        Comparison(temperature=temperature, live=True, loss_positions="all"),
        student,
        {"masked_lm_ids": labels.astype("int32"), "masked_lm_weights": masked},
        ("kl_divergence", "masked_lm"),
        teacher_logits=teacher,
        inputs={"input_ids": tokens, "masked_lm_positions": tokens},
    )
    real = torch.tensor(mask) > 0
    kl = torch.nn.KLDivLoss(reduction="batchmean")(
        torch.log_softmax(torch.tensor(student)[real] / temperature, dim=-1),
        torch.softmax(torch.tensor(teacher)[real] / temperature, dim=-1),
    )
    expected = float(kl) * temperature**2
    _expect("kl_divergence", float(mean_over_weights(ours["kl_divergence"], mask)), expected)
    targets = torch.where(torch.tensor(masked) > 0, torch.tensor(labels), -100)
    expected = torch.nn.CrossEntropyLoss(ignore_index=-100)(
        torch.tensor(student).reshape(-1, vocab_size), targets.reshape(-1)
    )
    received = mean_over_weights(ours["masked_lm"], masked.astype("float32"))
    _expect("masked_lm", float(received), expected)
    states = random.normal(0, 1, (2, batch, length, 16)).astype("float32")
    first, second = (torch.tensor(state)[real] for state in states)
    expected = torch.nn.CosineEmbeddingLoss()(second, first, torch.ones(len(first)))
    _expect("hidden_cosine", float(mean_over_weights(HiddenCosine()(*states, {}), mask)), expected)


@pytest.mark.peers
def test_hidden_mse_equals_pytorchs() -> None:
    """The function is MSELoss over the elements of real tokens."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(5)
    mask = _mask(random, 3, 7)
    student, teacher = random.normal(0, 1, (2, 3, 7, 16)).astype("float32")
    real = torch.tensor(mask) > 0
    expected = torch.nn.MSELoss()(torch.tensor(student)[real], torch.tensor(teacher)[real])
    _expect(
        "hidden_mse", float(mean_over_weights(HiddenMSE()(student, teacher, {}), mask)), expected
    )


@pytest.mark.peers
def test_losses_on_embeddings_equal_pytorchs() -> None:
    """The functions are CosineEmbeddingLoss and MSELoss of pooled vectors."""
    torch = pytest.importorskip("torch")
    student, teacher = np.random.default_rng(8).normal(0, 1, (2, 5, 16)).astype("float32")
    weights = np.ones(5, "float32")
    expected = torch.nn.CosineEmbeddingLoss()(
        torch.tensor(student), torch.tensor(teacher), torch.ones(5)
    )
    received = mean_over_weights(EmbeddingCosine()(student, teacher, {}), weights)
    _expect("embedding_cosine", float(received), expected)
    expected = torch.nn.MSELoss()(torch.tensor(student), torch.tensor(teacher))
    received = mean_over_weights(EmbeddingMSE()(student, teacher, {}), weights)
    _expect("embedding_mse", float(received), expected)


@pytest.mark.peers
def test_minilms_relations_equal_pytorchs() -> None:
    """The function is KLDivLoss over each row's real tokens, for three relations."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(6)
    mask = _mask(random, 3, 7)
    teacher, student = (
        random.normal(0, 1, (3, 3, 4, 7, size)).astype("float32") for size in (12, 5)
    )
    total = 0.0
    for row, length in enumerate(mask.sum(axis=1).astype(int)):
        for relation in range(3):
            vectors = [torch.tensor(side[relation, row, :, :length]) for side in (teacher, student)]
            scores = [x @ x.transpose(-1, -2) / x.shape[-1] ** 0.5 for x in vectors]
            total += torch.nn.KLDivLoss(reduction="sum")(
                torch.log_softmax(scores[1], dim=-1), torch.softmax(scores[0], dim=-1)
            ) / len(vectors[0])
    _expect("relation_kl", _relation_kl(teacher, student, mask), float(total) / mask.sum())


@pytest.mark.peers
def test_tinyberts_attention_loss_equals_pytorchs() -> None:
    """The function is MSELoss over the scores of pairs of real tokens."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(7)
    mask = _mask(random, 3, 6)
    teacher, student = random.normal(0, 3, (2, 3, 4, 6, 6)).astype("float32")
    real = torch.tensor(mask) > 0
    pairs = (real[:, None, :, None] & real[:, None, None, :]).expand(3, 4, 6, 6)
    expected = torch.nn.MSELoss()(torch.tensor(student)[pairs], torch.tensor(teacher)[pairs])
    received = _attention_mse(teacher, student, mask, AttentionScoreMSE)
    _expect("attention_score_mse", received, expected)


@pytest.mark.peers
def test_distilruberts_layer_losses_equal_pytorchs() -> None:
    """The functions are CosineEmbeddingLoss and MSELoss, of means over six layers."""
    torch = pytest.importorskip("torch")
    from pipeline.models.layer_groups import TeacherGroup, mean_attention, mean_state

    random = np.random.default_rng(4)
    batch, length = 3, 6
    mask = _mask(random, batch, length)
    states = random.normal(0, 1, (13, batch, length, 16)).astype("float32")
    maps = random.random((12, batch, 4, length, length)).astype("float32")
    student_state = random.normal(0, 1, (batch, length, 16)).astype("float32")
    student_map = random.random((batch, 4, length, length)).astype("float32")
    group = TeacherGroup(7, 12)
    real = torch.tensor(mask) > 0
    mean = torch.stack([torch.tensor(state) for state in states[7:]]).mean(dim=0)
    expected = torch.nn.CosineEmbeddingLoss()(
        torch.tensor(student_state)[real], mean[real], torch.ones(int(real.sum()))
    )
    value = HiddenCosine()(student_state, mean_state(list(states), group), {})
    _expect("hidden_cosine", float(mean_over_weights(value, mask)), expected)
    pairs = (real[:, None, :, None] & real[:, None, None, :]).expand(batch, 4, length, length)
    mean = torch.stack([torch.tensor(layer_map) for layer_map in maps[6:]]).mean(dim=0)
    expected = torch.nn.MSELoss()(torch.tensor(student_map)[pairs], mean[pairs])
    received = _attention_mse(mean_attention(list(maps), group), student_map, mask)
    _expect("attention_mse", received, expected)
