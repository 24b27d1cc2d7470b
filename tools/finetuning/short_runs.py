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


# Tasks that are not named here have the defaults of `TaskSettings`. A study of four tasks is to
# end within hours on two cores.
_TASK_SETTINGS: Mapping[str, TaskSettings] = {
    "chnsenticorp": TaskSettings(num_train_epochs=1.0, max_train_examples=6_000),
    # With half of the steps it is chance which models have left the plateau near a third.
    "ocnli": TaskSettings(num_train_epochs=3.0, learning_rate=1e-4),
    "tnews": TaskSettings(num_train_epochs=8.0),
    # A question has a dozen windows.
    "cmrc2018": TaskSettings(num_train_epochs=1.0, learning_rate=5e-4, max_train_examples=2_500),
    "sst2": TaskSettings(num_train_epochs=1.0, learning_rate=1e-4, max_train_examples=20_000),
    "mrpc": TaskSettings(num_train_epochs=3.0, learning_rate=1e-4),
    # Few sentences, most of whose tokens are no entity.
    "wnut17": TaskSettings(num_train_epochs=4.0),
    "weibo_ner": TaskSettings(num_train_epochs=10.0, learning_rate=5e-4),
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
    process: SeparateProcess,
    **changes: Any,
) -> None:
    """Fine-tunes a model on a task with one seed, in a process that may have made other runs.

    `changes` take the place of the settings of `task_settings`, or are others of `finetune`.

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
    """Returns the mean of the main score at the first rate of a `summary.json`.

    Raises:
        InputError: the file is missing, or is not as `finetune` writes it.
    """
    summary = read_struct(path, Summary)
    metrics = summary.rates[0].metrics
    if summary.main_metric not in metrics:
        raise InputError(path, f"a score {summary.main_metric}", "none")
    return metrics[summary.main_metric].mean
