"""What a model predicts of a split, scored and written for handing in."""

import time
from collections.abc import Sequence

import numpy as np

from pipeline.base.location import Location
from tools.finetuning import metrics, prediction, submissions
from tools.finetuning.answers import best_answers
from tools.finetuning.batches import Padding
from tools.finetuning.head_layout import REGRESSION, SPAN
from tools.finetuning.metrics import Predictions
from tools.finetuning.preparation import Preparation, Split
from tools.finetuning.settings import FinetuneConfig

PREDICTIONS_FOLDER = "predictions"


def predict(
    run: Preparation, config: FinetuneConfig, split: Split, forward: prediction.Forward
) -> tuple[Predictions, float]:
    """Returns what a model predicts, and how many inputs a second it read.

    Args:
        run: what was found.
        config: what was asked for.
        split: of the run.
        forward: the compiled model.

    Raises:
        InputError: the model says NaN or infinity.
    """
    size = config.predict_batch_size
    padding = Padding(size, run.max_seq_length, run.source.config.type_vocab_size)
    begun = time.perf_counter()
    logits = prediction.predict_logits(forward, split.features, padding)
    speed = len(split.features) / (time.perf_counter() - begun)
    if run.head.kind != SPAN:
        return label_predictions(run.head.kind, logits), speed
    starts, ends = ([value[side] for value in logits] for side in (0, 1))
    length = config.max_answer_length
    found = best_answers(split.examples, split.features, starts, ends, max_answer_length=length)
    return found, speed


def label_predictions(kind: str, logits: Sequence[np.ndarray]) -> list[int] | list[float]:
    """Returns the most probable classes, of equal ones the first; or the numbers themselves."""
    if kind == REGRESSION:
        return [float(value[0]) for value in logits]
    return [int(value.argmax()) for value in logits]


def score(run: Preparation, split: Split, predictions: Predictions) -> dict[str, float]:
    """Returns the task's official scores of a split."""
    return metrics.evaluate(run.spec, split.examples, predictions)


def write_predictions(
    run: Preparation, split: Split, predictions: Predictions, directory: Location
) -> Location:
    """Writes a split's predictions in the form that the benchmark expects.

    Returns:
        the file, in a folder of the split's name.
    """
    folder = (directory / PREDICTIONS_FOLDER / split.name).make_directory()
    path = folder / run.spec.submission.file_of(split.name)
    submissions.write_submission(run.spec, split.examples, predictions, path)
    return path
