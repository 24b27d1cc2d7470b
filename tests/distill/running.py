"""Helpers of the distillation tests: losses of plain arrays, and the output of runs."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.distill import training
from pipeline.distill.comparison import STUDENT, TEACHER, BatchComparison, Comparison
from pipeline.distill.settings import DistillConfig
from pipeline.distill.step_times import CLOCK_FIELDS
from pipeline.models.masked_lm import LOGITS


def loss_values(
    comparison: Comparison,
    logits: Any,
    targets: Mapping[str, Any],
    names: Iterable[str],
    *,
    teacher_logits: Any = None,
    inputs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns losses on distributions and labels at each position, by name."""
    activations = {STUDENT: {LOGITS: logits}}
    if teacher_logits is not None:
        activations[TEACHER] = {LOGITS: teacher_logits}
    batch = BatchComparison(comparison, inputs or {}, targets, activations)
    return batch.at_positions(comparison.losses(names))


@contextlib.contextmanager
def refused(setting: str | None, received: object = None) -> Iterator[None]:
    """Checks that the block raises an `InputError` about a setting.

    Args:
        setting: the setting that the error names; None if it names none.
        received: the received value, or a part of its text; None for any.
    """
    with pytest.raises(InputError) as caught:
        yield
    error = caught.value
    assert setting in (error.setting, error.subject), error
    assert received is None or str(received) in str(error.received), error


def read_lines(folder: Location, split: str | None = None) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl, or of one split, without fields of the clock."""
    parsed = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name not in CLOCK_FIELDS}
        for line in parsed
        if split in (None, line["split"])
    ]


def read_weights(folder: Location) -> dict[str, np.ndarray]:
    """Returns a student's weights by name."""
    return load_file(folder / "model.safetensors")


def assert_equal_arrays(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> None:
    """Checks that two mappings hold the same arrays, bit by bit."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value, err_msg=name)


def assert_same_weights(first: Location, second: Location) -> None:
    """Checks that two runs made the same student, bit by bit."""
    assert_equal_arrays(read_weights(first), read_weights(second))


def assert_close_lines(
    first: Location, second: Location, last: int = 0, close: float = 1e-3
) -> None:
    """Checks that two runs logged the same numbers within float error.

    Args:
        first: a run's directory.
        second: the other run's directory.
        last: the number of last lines to compare; 0 for all.
        close: the tolerance.
    """
    pairs = zip(read_lines(first)[-last:], read_lines(second)[-last:], strict=True)
    for line, other in pairs:
        assert line.keys() == other.keys()
        names = sorted(line.keys() - {"split"})
        received, expected = ([values[name] for name in names] for values in (line, other))
        np.testing.assert_allclose(received, expected, rtol=close, atol=close, err_msg=str(names))


def call_at_update(patch: Any, number: int, action: Callable[[], None]) -> None:
    """Makes the next run call an action in its update `number`, before counting the update."""
    update, calls = training.tqdm.tqdm.update, []

    def counted(bar: Any, count: int = 1) -> Any:
        calls.append(count)
        if len(calls) == number:
            action()
        return update(bar, count)

    patch.setattr(training.tqdm.tqdm, "update", counted)


def interrupt() -> None:
    """Ends a run at once, like a second Ctrl-C."""
    raise KeyboardInterrupt


def distilled(config: DistillConfig, **changes: Any) -> dict[str, float]:
    """Returns the report of a run with changed settings."""
    return dict(training.distill(dataclasses.replace(config, **changes)))


def interrupt_at(patch: Any, config: DistillConfig, update: int, step: int) -> None:
    """Runs until an interruption in an update, after which the run resumes from a step."""
    with patch.context() as context:
        call_at_update(context, update, interrupt)
        with pytest.raises(KeyboardInterrupt, match=f"from step {step}, the last"):
            training.distill(config)
    assert not (config.output_dir / "model.safetensors").exists()


def expect_same_after_interrupt(patch: Any, config: DistillConfig, update: int, step: int) -> None:
    """Checks that an interrupted and resumed run gives the same bits as an uninterrupted one."""
    training.distill(config)
    cut = dataclasses.replace(config, output_dir=f"{config.output_dir}-cut")
    interrupt_at(patch, cut, update, step)
    training.distill(cut)
    assert read_lines(cut.output_dir)[-3:] == read_lines(config.output_dir)[-3:]
    assert_same_weights(cut.output_dir, config.output_dir)


def flip_bit(path: Location, index: int | None = None) -> bytes:
    """Flips a bit of one byte, by default the middle one, and returns the new content."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if index is None else index] ^= 4
    path.write_bytes(bytes(content))
    return bytes(content)


def damaged_copy(folder: Location, copy: Location, file: str, index: int | None = None) -> Location:
    """Copies a directory, flips a bit of one of its files, and returns that file."""
    shutil.copytree(folder, copy)
    flip_bit(copy / file, index)
    return copy / file


def start_command(
    config: DistillConfig, folder: Location, stderr: int | None = None, **changes: Any
) -> subprocess.Popen[str]:
    """Starts `run_distill` on two layers of the run's teacher, in a new process."""
    settings = {
        "input_dir": config.input_dir,
        "init_from": config.student.init_from,
        "student_layers": 2,
        "output_dir": folder,
        "train_batch_size": 8,
        **changes,
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    command = [sys.executable, "-m", "pipeline.run_distill", *flags]
    root = pathlib.Path(__file__).parents[2]
    return subprocess.Popen(command, cwd=root, env=environment, stderr=stderr, text=True)
