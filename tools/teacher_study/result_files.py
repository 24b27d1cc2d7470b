"""Readers of the files that the steps of a study write."""

import math
import statistics
from collections.abc import Mapping
from typing import Annotated

import msgspec

from pipeline.base.errors import InputError
from pipeline.base.location import Location
from tools.report.inputs import read_struct
from tools.report.runs import EVAL, METRICS_FILE, TRAIN, read_metrics

# The number of log lines whose steps include compiling.
_WARM_UP = 2
ACCURACY = "masked_lm_accuracy"
_Positive = Annotated[float, msgspec.Meta(gt=0.0)]


class TaskCounts(msgspec.Struct, frozen=True):
    """The counts of a `finetune` run; a long example has several inputs."""

    num_train_examples: _Positive
    num_train_inputs: _Positive


class _Run(msgspec.Struct, frozen=True):
    directory: str
    counts: TaskCounts


class _Summary(msgspec.Struct, frozen=True):
    runs: Annotated[list[_Run], msgspec.Meta(min_length=1)]


class ConstantScore(msgspec.Struct, frozen=True):
    """The best score of a constant prediction, in a `summary.json` of `finetune`.

    Attributes:
        constant_score: the score, 0 in files of older versions.
        num_eval_examples: number of scored examples.
    """

    constant_score: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0
    num_eval_examples: _Positive = 1.0

    @property
    def chance_limit(self) -> float:
        """The score above which a model is better than chance.

        It is two standard errors of a share above the constant score: s + 2·√(s·(1 − s) / n).
        """
        score = self.constant_score
        return score + 2.0 * math.sqrt(score * (1.0 - score) / self.num_eval_examples)


class _Times(msgspec.Struct, frozen=True):
    median: float
    times_better: tuple[float, float, float]


class _Speed(msgspec.Struct, frozen=True):
    device: str
    computation: str
    parameters: int
    megabytes: float
    latency: _Times
    throughput: _Times


class Inference(msgspec.Struct, frozen=True):
    """A table of `benchmark_inference`: for each computation a teacher row, then a student row."""

    batch_size: int
    seq_length: int
    rows: Annotated[list[_Speed], msgspec.Meta(min_length=2)]


def read_task_counts(directory: Location) -> TaskCounts:
    """Returns the counts of the first run in an output directory of `finetune`."""
    return read_struct(directory / "summary.json", _Summary).runs[0].counts


def read_constant_score(directory: Location) -> ConstantScore:
    """Returns the best score of a constant prediction on a task, from an output directory."""
    return read_struct(directory / "summary.json", ConstantScore)


def examples_per_second(directory: Location) -> float:
    """Returns the training speed of the first run of `finetune`, without compiling steps."""
    run = read_struct(directory / "summary.json", _Summary).runs[0]
    lines = read_metrics(directory / run.directory / METRICS_FILE)
    rates = [line["examples_per_second"] for line in lines if line["split"] == TRAIN]
    return statistics.harmonic_mean(rates[_WARM_UP:] or rates)


def read_inference(path: Location) -> Inference:
    """Reads a table of `benchmark_inference`."""
    return read_struct(path, Inference)


def last_evaluation(directory: Location) -> Mapping[str, float]:
    """Returns the last eval line of a run's `metrics.jsonl`.

    Raises:
        InputError: the file has no eval line, or the last one lacks the accuracy.
    """
    path = directory / METRICS_FILE
    lines = [line for line in read_metrics(path) if line["split"] == EVAL]
    if not lines or ACCURACY not in lines[-1]:
        raise InputError(path, f"an evaluation with {ACCURACY}", "none")
    return lines[-1]
