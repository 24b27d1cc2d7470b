"""The scores of a task's benchmark, and files to hand in."""

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
        examples: one at least, all with labels or answers.
        predictions: class indices int [examples], numbers float [examples], the answers by
            the questions' keys, or of each example the indices of its words' tags.

    Returns:
        for each of the task's metrics its value by its name; for questions `f1`
        and `exact_match`.

    Raises:
        ValueError: the predictions do not fit the examples.
    """
    return KINDS[spec.kind].evaluate(spec, examples, predictions)


def write_submission(
    spec: TaskSpec, examples: Sequence[TaskExample], predictions: Predictions, path: Location
) -> None:
    """Writes predictions, atomically, in a form that the task's kind has.

    Args:
        spec: the task.
        examples: in the order of the file.
        predictions: as for `evaluate`.
        path: the file; its name is `spec.submission.file_of(split)`.

    Raises:
        ValueError: the predictions do not fit the examples.
    """
    form = KINDS[spec.kind].submissions[spec.submission.format]
    path.write_whole(form(spec, examples, predictions))
