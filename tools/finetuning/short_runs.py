"""Fine-tuning runs of minutes, for tools that compare models on tasks."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from pipeline.base.errors import InputError
from pipeline.base.location import Location
from tools.commands import SeparateProcess, run_tool
from tools.report.inputs import Summary, read_struct


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """Settings of `finetune` for a task."""

    num_train_epochs: float = 2.0
    learning_rate: float = 2e-4
    max_seq_length: int = 128
    max_train_examples: int | None = None


# Tasks that are not listed use the defaults of `TaskSettings`. The values keep a study of four
# tasks to a few hours on two cores.
_TASK_SETTINGS: Mapping[str, TaskSettings] = {
    "chnsenticorp": TaskSettings(num_train_epochs=1.0, max_train_examples=6_000),
    # Accuracy starts on a plateau near one third. With half of the steps, chance decides which
    # models have left it.
    "ocnli": TaskSettings(num_train_epochs=3.0, learning_rate=1e-4),
    "tnews": TaskSettings(num_train_epochs=8.0),
    # Each question has about a dozen windows, so few examples take many steps.
    "cmrc2018": TaskSettings(num_train_epochs=1.0, learning_rate=5e-4, max_train_examples=2_500),
    "sst2": TaskSettings(num_train_epochs=1.0, learning_rate=1e-4, max_train_examples=20_000),
    "mrpc": TaskSettings(num_train_epochs=3.0, learning_rate=1e-4),
    # The task has few sentences, and most of their tokens belong to no entity.
    "wnut17": TaskSettings(num_train_epochs=4.0),
    "weibo_ner": TaskSettings(num_train_epochs=10.0, learning_rate=5e-4),
}


def task_name(task: str) -> str:
    """Returns the name of a task that is given by name or by the path of its declaration."""
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
    process: SeparateProcess,
    **changes: Any,
) -> None:
    """Fine-tunes a model on a task with one seed, in a process that other runs may share.

    `changes` override the settings of `task_settings`, or set other settings of `finetune`.

    Raises:
        SystemExit: the run failed and has printed the reason.
    """
    settings = dataclasses.asdict(task_settings(task)) | changes
    settings["learning_rates"] = settings.pop("learning_rate")
    run_tool(
        "finetune",
        process=process,
        task=task,
        data_dir=data_dir,
        model=model,
        output_dir=output_dir,
        doc_stride=settings["max_seq_length"] // 2,
        seeds=seed,
        skip_bad_rows=True,
        **settings,
    )


def read_score(path: Location) -> float:
    """Returns the mean main score at the first learning rate of a `summary.json`.

    Raises:
        InputError: the file is missing, or is malformed.
    """
    summary = read_struct(path, Summary)
    metrics = summary.rates[0].metrics
    if summary.main_metric not in metrics:
        raise InputError(path, f"a score {summary.main_metric}", "none")
    return metrics[summary.main_metric].mean
