"""Classification: one class for a text or for a pair of texts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from data_specs.tasks import CLASSIFICATION, TaskSpec
from tools.finetuning.inputs import Feature
from tools.finetuning.kinds.base import Predictions
from tools.finetuning.kinds.labeled_rows import LabeledRows, Score
from tools.finetuning.kinds.regression import means_number
from tools.finetuning.task_files import TaskExample


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of correct predictions."""
    return float(np.mean(predictions == labels))


def _counts(predictions: np.ndarray, labels: np.ndarray, positive: int) -> tuple[int, ...]:
    """Returns true positives, false positives, false negatives and true negatives."""
    predicted, true = predictions == positive, labels == positive
    pairs = ((predicted, true), (predicted, ~true), (~predicted, true), (~predicted, ~true))
    return tuple(int(np.count_nonzero(first & second)) for first, second in pairs)


def f1(predictions: np.ndarray, labels: np.ndarray, *, positive: int = 1) -> float:
    """Returns 2·tp / (2·tp + fp + fn) of one class; 0 without true positives."""
    tp, fp, fn, _ = _counts(predictions, labels, positive)
    return 2 * tp / (2 * tp + fp + fn) if tp else 0.0


def f1_weighted(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean F1 of the classes, weighted by their frequency in the labels."""
    classes, counts = np.unique(labels, return_counts=True)
    scores = [f1(predictions, labels, positive=index) for index in classes]
    return float(np.average(scores, weights=counts))


def matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Returns Matthews' correlation of two classes (1975); 0 if only one class occurs."""
    tp, fp, fn, tn = _counts(predictions, labels, 1)
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(product) if product else 0.0


class Classification(LabeledRows):
    """Classification of an input; predictions are class indices."""

    name = CLASSIFICATION
    problem_type = f"single_label_{CLASSIFICATION}"
    output = "one of {labels}"
    label_dtype = np.int32
    metrics: ClassVar[Mapping[str, Score]] = {
        "accuracy": accuracy,
        "f1": f1,
        "f1_weighted": f1_weighted,
        "matthews": matthews,
    }

    def is_meant_by(self, settings: Mapping[str, Any], labels: Sequence[str]) -> bool:
        """Returns whether the model is not a regression."""
        return not means_number(settings, labels)

    def parse_label(self, spec: TaskSpec, text: str) -> int | None:
        """Returns the class index."""
        return spec.labels.index(text) if text in spec.labels else None

    def describe_label(self, spec: TaskSpec) -> str:
        """Returns the class names in one phrase."""
        return f"one of {', '.join(spec.labels)}"

    def label_words(self, spec: TaskSpec, predictions: Predictions) -> list[str]:
        """Returns the class names of predictions."""
        return [spec.labels[index] for index in predictions]

    def predict(
        self,
        examples: Sequence[TaskExample],
        features: Sequence[Feature],
        logits: Sequence[np.ndarray],
        *,
        max_answer_length: int,
    ) -> list[int]:
        """Returns the most probable class of each input, the first of equally probable ones."""
        return [int(value.argmax()) for value in logits]

    def constant_predictions(
        self, examples: Sequence[TaskExample], labels: Sequence[str]
    ) -> Iterator[list[int]]:
        """Yields one class for all inputs, for each class."""
        for index in range(len(labels)):
            yield [index] * len(examples)

    def evaluate(
        self, spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions
    ) -> dict[str, float]:
        """Returns the task's metrics for class indices, int [N]."""
        scores = super().evaluate(spec, examples, predictions)
        if not np.issubdtype(np.asarray(predictions).dtype, np.integer):
            raise ValueError(f"expected class indices, received {np.asarray(predictions).dtype}")
        return scores


KIND = Classification()
