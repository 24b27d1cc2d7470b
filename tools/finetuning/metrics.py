"""A task's own scores, from 0 to 1 (correlations from -1), in NumPy alone."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data_specs.tasks import SPAN_SCORES, TaskSpec
from pipeline.base.errors import InputError
from tools.finetuning import answer_overlap
from tools.finetuning.answers import Prediction, answer_texts
from tools.finetuning.task_data import TaskExample

# Predictions: for classes their indices [examples], for a regression numbers [examples],
# for questions answers by key.
Predictions = np.ndarray | Sequence[int] | Sequence[float] | Mapping[str, Prediction | str]


def evaluate(
    spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions
) -> dict[str, float]:
    """Scores predictions as the task's benchmark does.

    Args:
        spec: the task.
        examples: with labels or answers.
        predictions: class indices int [examples], numbers float [examples], or the
            answers by the questions' keys; a question without one scores 0.

    Returns:
        for each of the task's metrics its value by its name; for questions `f1`
        and `exact_match`.

    Raises:
        InputError: an example has no label or answer, as in a benchmark's test file.
        ValueError: the predictions do not fit the examples.
    """
    if not examples:
        raise ValueError("expected examples to score, received none")
    unknown = [example.key for example in examples if example.label is None]
    if spec.kind == "span":
        unknown = [example.key for example in examples if not example.answers]
    if unknown:
        raise InputError(
            spec.name,
            "labelled examples to score",
            f"{len(unknown)} without a label, first {unknown[0]}",
        )
    if spec.kind == "span":
        return _evaluate_answers(spec.metrics[0], examples, answer_texts(predictions))
    labels = np.array([example.label for example in examples])
    found = np.asarray(predictions)
    if found.shape != labels.shape:
        raise ValueError(f"expected {len(labels)} predictions, received {list(found.shape)}")
    if spec.kind == "classification" and not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"expected class indices, received {found.dtype}")
    return {name: _METRICS[name](found, labels) for name in spec.metrics}


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of predictions that are right."""
    return float(np.mean(predictions == labels))


def _counts(predictions: np.ndarray, labels: np.ndarray, positive: int) -> tuple[int, ...]:
    """Returns true positives, false positives, false negatives and true negatives."""
    said, true = predictions == positive, labels == positive
    pairs = ((said, true), (said, ~true), (~said, true), (~said, ~true))
    return tuple(int(np.count_nonzero(first & second)) for first, second in pairs)


def f1(predictions: np.ndarray, labels: np.ndarray, *, positive: int = 1) -> float:
    """Returns 2·tp / (2·tp + fp + fn) of one class; 0 where it never occurs."""
    tp, fp, fn, _ = _counts(predictions, labels, positive)
    return 2 * tp / (2 * tp + fp + fn) if tp else 0.0


def f1_weighted(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean of each class's F1, weighted by how often it is right."""
    classes, counts = np.unique(labels, return_counts=True)
    scores = [f1(predictions, labels, positive=index) for index in classes]
    return float(np.average(scores, weights=counts))


def matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Returns Matthews' correlation of two classes (1975); 0 where one never occurs."""
    tp, fp, fn, tn = _counts(predictions, labels, 1)
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(product) if product else 0.0


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Returns Pearson's correlation; 0 where one side is constant, which has none."""
    first = predictions - np.mean(predictions, dtype=np.float64)
    second = labels - np.mean(labels, dtype=np.float64)
    # Divided by the largest first, so that no square underflows.
    scales = [float(np.max(np.abs(side))) for side in (first, second)]
    if not all(scales):
        return 0.0
    first, second = first / scales[0], second / scales[1]
    return float(first @ second / math.sqrt((first @ first) * (second @ second)))


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Returns Pearson's correlation of the ranks; equal values share their mean rank."""
    return pearson(_ranks(predictions), _ranks(labels))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Returns ranks from 1, float64; `[3, 1, 3]` has the ranks `[2.5, 1, 2.5]`."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


_METRICS: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "f1_weighted": f1_weighted,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}


def answer_scores(metric: str, answer: str, right: Sequence[str]) -> tuple[float, float]:
    """Returns the F1 and the exact match of an answer, each with the best of the right ones.

    Args:
        metric: `squad`, `mlqa_zh` or `cmrc`.
        answer: the answer.
        right: the right ones.
    """
    words = _WORDS[metric]
    overlap = answer_overlap.run_overlap if metric == "cmrc" else answer_overlap.bag_overlap
    compared = answer_overlap.cmrc_text if metric == "cmrc" else words
    found = words(answer)
    return (
        max(answer_overlap.f1(found, words(text), overlap) for text in right),
        max(float(compared(answer) == compared(text)) for text in right),
    )


_WORDS = {
    "squad": answer_overlap.squad_words,
    "mlqa_zh": answer_overlap.mlqa_chinese_words,
    "cmrc": answer_overlap.cmrc_words,
}


def _evaluate_answers(
    metric: str, examples: Sequence[TaskExample], answers: Mapping[str, str]
) -> dict[str, float]:
    scores = [
        answer_scores(metric, answers[example.key], [right.text for right in example.answers])
        if example.key in answers
        else (0.0, 0.0)
        for example in examples
    ]
    means = np.mean(np.array(scores, np.float64), axis=0).tolist()
    return dict(zip(SPAN_SCORES, means, strict=True))
