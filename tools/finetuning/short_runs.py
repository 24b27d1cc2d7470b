"""Fine-tuning runs of minutes, for tools that compare models on tasks."""

import dataclasses
import pathlib
from collections.abc import Mapping

from pipeline.base.errors import InputError
from pipeline.base.location import Location
from tools.commands import run_tool
from tools.report.inputs import Summary, read_struct


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """Settings of `finetune` for a task, and how many of a tool's seeds it takes."""

    num_train_epochs: float = 2.0
    learning_rate: float = 2e-4
    max_seq_length: int = 128
    max_train_examples: int | None = None
    num_seeds: int | None = None


# Tasks that are not named here have the defaults of `TaskSettings`. A study of four layers and
# four tasks is to end within two hours on two cores.
_TASK_SETTINGS: Mapping[str, TaskSettings] = {
    "chnsenticorp": TaskSettings(num_train_epochs=1.0, max_train_examples=6_000),
    # With half of the steps it is chance which models have left the plateau near a third.
    "ocnli": TaskSettings(num_train_epochs=3.0, learning_rate=1e-4),
    "tnews": TaskSettings(num_train_epochs=8.0),
    # A question has a dozen windows.
    "cmrc2018": TaskSettings(
        num_train_epochs=1.0, learning_rate=5e-4, max_train_examples=2_500, num_seeds=1
    ),
}


def task_name(task: str) -> str:
    """Returns a task's name, which may be given as the path of a declaration."""
    return pathlib.Path(task).stem


def task_settings(task: str) -> TaskSettings:
    """Returns the settings of a task's run."""
    return _TASK_SETTINGS.get(task_name(task), TaskSettings())


def finetune(
    task: str,
    data_dir: Location,
    model: Location,
    output_dir: Location,
    *,
    seed: int,
    max_seq_length: int | None = None,
    max_train_examples: int | None = None,
) -> None:
    """Fine-tunes a model on a task with one seed.

    `max_seq_length` and `max_train_examples` take the place of those of `task_settings`.

    Raises:
        SystemExit: the run failed and has printed the reason.
    """
    settings = task_settings(task)
    length = max_seq_length or settings.max_seq_length
    run_tool(
        "finetune",
        task=task,
        data_dir=data_dir,
        model=model,
        output_dir=output_dir,
        learning_rates=settings.learning_rate,
        num_train_epochs=settings.num_train_epochs,
        max_seq_length=length,
        doc_stride=length // 2,
        max_train_examples=max_train_examples or settings.max_train_examples,
        seeds=seed,
        skip_bad_rows=True,
    )


def read_score(path: Location) -> float:
    """Returns the mean of the main score at the first rate of a `summary.json`.

    Raises:
        InputError: the file is missing, or is not as `finetune` writes it.
    """
    summary = read_struct(path, Summary)
    metrics = summary.rates[0].metrics
    if summary.main_metric not in metrics:
        raise InputError(path, f"a score {summary.main_metric}", "none")
    return metrics[summary.main_metric].mean
