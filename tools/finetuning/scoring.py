"""Benchmark scores of predictions, and submission files."""

from collections.abc import Sequence

from data_specs.tasks import TaskSpec
from pipeline.base.location import Location
from tools.finetuning.kinds import KINDS
from tools.finetuning.kinds.base import Predictions
from tools.finetuning.task_files import TaskExample


def evaluate(
    spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions
) -> dict[str, float]:
    """Scores predictions as the task's benchmark does.

    Args:
        spec: the task.
        examples: at least one; all have labels or answers.
        predictions: class indices int [examples], numbers float [examples], answers by
            question key, or for each example the tag indices of its words.

    Returns:
        the value of each of the task's metrics, by name; `f1` and `exact_match` for
        span tasks.

    Raises:
        ValueError: the predictions do not fit the examples.
    """
    return KINDS[spec.kind].evaluate(spec, examples, predictions)


def constant_score(spec: TaskSpec, examples: Sequence[TaskExample]) -> float:
    """Returns the highest main score of a constant prediction.

    A constant prediction is the same for all inputs, for example the most frequent class. A model
    that scores no higher has learned nothing about the inputs.

    Args:
        spec: the task.
        examples: at least one; all have labels or answers.
    """
    kind = KINDS[spec.kind]
    scores = (
        kind.evaluate(spec, examples, predictions)[spec.main_metric]
        for predictions in kind.constant_predictions(examples, spec.labels)
    )
    return max(scores, default=0.0)


def write_submission(
    spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions, path: Location
) -> None:
    """Writes predictions atomically in the task's submission format.

    Args:
        spec: the task.
        examples: in the order of the file.
        predictions: as for `evaluate`.
        path: the file; its name is `spec.submission.file_of(split)`.

    Raises:
        ValueError: the predictions do not fit the examples.
    """
    write_submission_content = KINDS[spec.kind].submissions[spec.submission.format]
    path.write_whole(write_submission_content(spec, examples, predictions))
