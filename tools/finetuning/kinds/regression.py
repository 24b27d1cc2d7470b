"""Regression: a number for a text or for a pair of texts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from data_specs.tasks import REGRESSION, TaskSpec
from tools.finetuning.inputs import Feature
from tools.finetuning.kinds.base import Predictions
from tools.finetuning.kinds.labeled_rows import LabeledRows, Score
from tools.finetuning.task_files import TaskExample


def means_number(settings: Mapping[str, Any], labels: Sequence[str]) -> bool:
    """Returns whether a `config.json` with these labels belongs to a regression model."""
    return settings.get("problem_type") == REGRESSION or len(labels) == 1


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Returns Pearson's correlation; 0 if one side is constant, where it is undefined."""
    first = predictions - np.mean(predictions, dtype=np.float64)
    second = labels - np.mean(labels, dtype=np.float64)
    # Division by the largest value prevents squares from underflowing.
    scales = [float(np.max(np.abs(side))) for side in (first, second)]
    if not all(scales):
        return 0.0
    first, second = first / scales[0], second / scales[1]
    return float(first @ second / math.sqrt((first @ first) * (second @ second)))


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Returns Pearson's correlation of the ranks; equal values share their mean rank."""
    return pearson(_ranks(predictions), _ranks(labels))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Returns the ranks from 1, float64. Example: `[3, 1, 3]` has the ranks `[2.5, 1, 2.5]`."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


class Regression(LabeledRows):
    """A number for each input."""

    name = REGRESSION
    problem_type = REGRESSION
    output = "a number"
    predicts_number = True
    label_dtype = np.float32
    metrics: ClassVar[Mapping[str, Score]] = {"pearson": pearson, "spearman": spearman}

    def num_outputs(self, labels: Sequence[str]) -> int:
        """Returns 1."""
        return 1

    def is_meant_by(self, settings: Mapping[str, Any], labels: Sequence[str]) -> bool:
        """Returns whether the model is a regression."""
        return means_number(settings, labels)

    def parse_label(self, spec: TaskSpec, text: str) -> float | None:
        """Returns the number, which must be finite."""
        try:
            value = float(text)
        except ValueError:
            return None
        return value if math.isfinite(value) else None

    def describe_label(self, spec: TaskSpec) -> str:
        """Returns the phrase for a valid label."""
        return "a number"

    def label_words(self, spec: TaskSpec, predictions: Predictions) -> list[str]:
        """Returns numbers within the task's range, with three decimals."""
        values = np.clip(np.asarray(predictions, np.float64), *spec.score_range)
        return [f"{value:.3f}" for value in values]

    def predict(
        self,
        examples: Sequence[TaskExample],
        features: Sequence[Feature],
        logits: Sequence[np.ndarray],
        *,
        max_answer_length: int,
    ) -> list[float]:
        """Returns the predicted number of each input."""
        return [float(value[0]) for value in logits]


KIND = Regression()
