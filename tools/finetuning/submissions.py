"""Predictions in the form in which a benchmark takes them."""

import json
from collections.abc import Callable, Sequence

import numpy as np

from data_specs.tasks import TaskSpec
from pipeline.base.location import Location
from tools.finetuning.answers import answer_texts
from tools.finetuning.metrics import Predictions
from tools.finetuning.task_data import TaskExample


def write_submission(
    spec: TaskSpec,
    examples: Sequence[TaskExample],
    predictions: Predictions,
    path: Location,
) -> None:
    """Writes predictions, atomically.

    CLUE takes JSON lines, `{"id": 0, "label": "1"}`; GLUE a TSV with the header
    `index`, `prediction`, classes by their names and numbers with three decimals
    within the task's range; SQuAD and CMRC 2018 one JSON object of answers by id.

    Args:
        spec: the task.
        examples: in the order of the file.
        predictions: as for `metrics.evaluate`.
        path: the file; its name is `spec.submission.file_of(split)`.

    Raises:
        ValueError: the predictions do not fit the examples.
    """
    path.write_whole(_FORMATS[spec.submission.format](spec, examples, predictions))


def _said(
    spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions
) -> list[tuple[str, str]]:
    """Returns each example's key, and what is predicted in the file's words."""
    if len(predictions) != len(examples):
        raise ValueError(f"expected {len(examples)} predictions, received {len(predictions)}")
    if spec.kind == "regression":
        values = np.clip(np.asarray(predictions, np.float64), *spec.score_range)
        words = [f"{value:.3f}" for value in values]
    else:
        words = [spec.labels[index] for index in predictions]
    return [(example.key, word) for example, word in zip(examples, words, strict=True)]


def _clue(spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions) -> bytes:
    lines = (
        {"id": int(key) if key.isascii() and key.isdigit() else key, "label": word}
        for key, word in _said(spec, examples, predictions)
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8")


def _glue(spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions) -> bytes:
    rows = [("index", "prediction"), *_said(spec, examples, predictions)]
    return "".join(f"{key}\t{word}\n" for key, word in rows).encode("utf-8")


def _squad(spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions) -> bytes:
    texts = answer_texts(predictions)
    answers = {example.key: texts.get(example.key, "") for example in examples}
    return (json.dumps(answers, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


_FORMATS: dict[str, Callable[..., bytes]] = {"clue": _clue, "glue": _glue, "squad": _squad}
