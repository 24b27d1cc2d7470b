"""Task losses against values by hand and plain NumPy."""

import math

import numpy as np
import pytest

from data_specs.records import INPUT_MASK, TEACHER_LOGITS
from data_specs.tasks import CLASSIFICATION, REGRESSION, SPAN
from tools.finetuning.inputs import TARGETS, WEIGHTS
from tools.finetuning.objective import TaskObjective


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _f32(*values: object) -> np.ndarray:
    return np.array(values, np.float32)


def test_cross_entropy_equals_values_computed_by_hand() -> None:
    """The labels have probabilities 3/4 and 1/2; a third row has weight 0."""
    logits = _f32([0.0, math.log(3)], [0.0, 0.0], [9.0, 0.0])
    batch = {TARGETS: np.array([1, 0, 0], np.int32), WEIGHTS: _f32(1, 1, 0)}
    expected = (math.log(4 / 3) + math.log(2)) / 2
    assert float(TaskObjective(CLASSIFICATION).loss(logits, batch)) == pytest.approx(expected)


def test_distillation_loss_equals_values_computed_by_hand() -> None:
    """T = 2: p = (3/4, 1/4) of logits (2·log 3, 0), q = (1/2, 1/2): KL = log 2 − H(p)."""
    batch = {
        TARGETS: np.array([0], np.int32),
        WEIGHTS: _f32(1),
        TEACHER_LOGITS: _f32([2 * math.log(3), 0.0]),
    }
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    divergence = math.log(2) - entropy
    assert divergence == pytest.approx(0.130812, abs=1e-6)
    expected = 0.3 * 4 * divergence + 0.7 * math.log(2)
    objective = TaskObjective(CLASSIFICATION, 0.3, 2.0)
    assert float(objective.loss(_f32([1.0, 1.0]), batch)) == pytest.approx(expected, rel=1e-5)


def test_starts_and_ends_are_averaged_over_real_tokens() -> None:
    random = np.random.default_rng(2)
    student, teacher = (random.normal(0, 2, (2, 2, 6)).astype(np.float32) for _ in range(2))
    lengths, targets = (6, 4), np.array([[1, 2], [0, 3]], np.int32)
    mask = (np.arange(6) < np.array(lengths)[:, None]).astype(np.int32)
    batch = {
        INPUT_MASK: mask,
        TARGETS: targets,
        WEIGHTS: np.ones(2, np.float32),
        TEACHER_LOGITS: teacher,
    }
    weight, temperature = 0.25, 1.5
    losses = []
    for row, length in enumerate(lengths):
        for side in (0, 1):
            student_logits, teacher_logits = (
                value[row, side, :length] for value in (student, teacher)
            )
            p, q = _softmax(teacher_logits / temperature), _softmax(student_logits / temperature)
            divergence = float((p * np.log(p / q)).sum())
            label = -math.log(_softmax(student_logits)[targets[row, side]])
            losses.append(weight * temperature**2 * divergence + (1 - weight) * label)
    objective = TaskObjective(SPAN, weight, temperature)
    assert float(objective.loss(student, batch)) == pytest.approx(np.mean(losses), rel=1e-5)
    # Longer padding does not change the loss.
    longer = {**batch, INPUT_MASK: np.pad(mask, ((0, 0), (0, 3)))}
    longer[TEACHER_LOGITS] = np.pad(teacher, ((0, 0), (0, 0), (0, 3)))
    padded = np.pad(student, ((0, 0), (0, 0), (0, 3)), constant_values=7.0)
    assert float(objective.loss(padded, longer)) == pytest.approx(np.mean(losses), rel=1e-5)


def test_squared_error_equals_values_computed_by_hand() -> None:
    batch = {TARGETS: _f32(1.0, 2.0), WEIGHTS: _f32(1, 1), TEACHER_LOGITS: _f32([2.0], [2.0])}
    logits = _f32([3.0], [2.5])
    assert float(TaskObjective(REGRESSION).loss(logits, batch)) == pytest.approx((4 + 0.25) / 2)
    # The squared errors of the labels have weight 1/4, those of the teacher (1 and 0.25) 3/4.
    expected = 0.25 * 2.125 + 0.75 * 0.625
    objective = TaskObjective(REGRESSION, 0.75)
    assert float(objective.loss(logits, batch)) == pytest.approx(expected)
