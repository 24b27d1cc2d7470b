"""Directories of `run_distill`, read for `tools.report`."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.base import json_text
from pipeline.base.errors import InputError, Setting
from pipeline.base.json_text import format_value
from pipeline.base.location import Location
from pipeline.models.config import EncoderConfig
from pipeline.models.formats.model_directory import HF_CONFIG
from pipeline.models.weight_names import count_parameters
from pipeline.storage.manifest import EVAL, RUN_CONFIG_FILE, TRAIN
from tools.report.text_width import escape_unprintable

METRICS_FILE = "metrics.jsonl"
# A line has about 600 bytes.
_MAX_METRICS_BYTES = 1 << 30
# This is beyond single precision. Larger numbers would overflow in the computations of charts.
_LARGEST = 1e40


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of `run_distill`.

    Attributes:
        name: short, unique name.
        directory: its output directory.
        settings: settings of its run configuration. Names of nested settings are joined, for
            example `student.config.hidden_size`.
        train: lines of training, in the order of their steps.
        evaluations: lines of evaluation, at least one.
        parameters: number of parameters of the student; None if the run has not written one.
        bytes: size of `model.safetensors`; None if there is none.
    """

    name: str
    directory: Location
    settings: Mapping[str, Any]
    train: tuple[Mapping[str, float], ...]
    evaluations: tuple[Mapping[str, float], ...]
    parameters: int | None
    bytes: int | None

    @property
    def final(self) -> Mapping[str, float]:
        """The last evaluation."""
        return self.evaluations[-1]

    @property
    def updates(self) -> int:
        """Number of updates at the last line."""
        return int(max(line["step"] for line in (*self.train, *self.evaluations)))


def read_metrics(path: Location) -> list[dict[str, Any]]:
    """Reads a `metrics.jsonl`.

    Raises:
        InputError: the file is missing, or a line is malformed. The error names file and line.
    """
    if not path.is_file():
        received = f"{path.parent}, which has no {METRICS_FILE}"
        raise InputError(Setting("runs"), "a directory of run_distill", received)
    if path.stat().st_size > _MAX_METRICS_BYTES:
        raise InputError(path, f"at most {_MAX_METRICS_BYTES} bytes", path.stat().st_size)
    lines = []
    for number, content in enumerate(path.read_bytes().split(b"\n"), 1):
        if content.strip():
            lines.append(_parse_line(content, f"{path}, line {number}"))
    return lines


def _parse_line(content: bytes, place: str) -> dict[str, Any]:
    try:
        line = json_text.load(content)
    except ValueError as error:
        raise InputError(place, received=f"not JSON ({error})") from error
    if not isinstance(line, dict):
        raise InputError(place, "an object", type(line).__name__)
    step, split = line.get("step"), line.get("split")
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 2**63:
        raise InputError(place, "the field step with a number of steps", format_value(step))
    if split not in (TRAIN, EVAL):
        raise InputError(place, "the split train or eval", format_value(split))
    for name, value in line.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # NaN and infinity are allowed: runs that diverge have them.
        if is_number and math.isfinite(value) and abs(value) > _LARGEST:
            is_number = False
        if name != "split" and not is_number:
            raise InputError(
                place, f"a number as {escape_unprintable(name)[:80]}", format_value(value)
            )
    return line


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested objects: joins the names with dots.

    Example: `{"student": {"layers": 2}}` becomes `{"student.layers": 2}`.
    """
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            flat |= flatten(inner, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = inner
    return flat


def short_names(directories: Sequence[Location]) -> list[str]:
    """Returns the shortest end of each path that differs from the ends of the others.

    Example: `a/quick/student`, `b/quick/student` and `c/teacher` become
    `a/quick/student`, `b/quick/student` and `teacher`.
    """
    names_of_paths = [path.parts for path in directories]
    names = []
    for own in names_of_paths:
        for count in range(1, len(own) + 1):
            if sum(other[-count:] == own[-count:] for other in names_of_paths) == 1:
                break
        names.append(escape_unprintable("/".join(own[-count:]).replace("//", "/")))
    return names


def read_run(directory: Location, name: str) -> Run:
    """Reads one run.

    Raises:
        InputError: a file is missing or malformed.
    """
    path = directory / METRICS_FILE
    lines = read_metrics(path)
    train, evaluations = (
        tuple(line for line in lines if line["split"] == split) for split in (TRAIN, EVAL)
    )
    if not evaluations:
        received = f"{path}, which has no line of the split eval"
        raise InputError(Setting("runs"), "directories with at least one evaluation", received)
    settings = flatten((directory / RUN_CONFIG_FILE).read_json())
    settings.pop("kind", None)
    config, weights = (directory / name for name in (HF_CONFIG, "model.safetensors"))
    parameters = count_parameters(EncoderConfig.from_json(config)) if config.is_file() else None
    size = weights.stat().st_size if weights.is_file() else None
    return Run(name, directory, settings, train, evaluations, parameters, size)


def read_runs(paths: Sequence[Location]) -> list[Run]:
    """Reads runs.

    Raises:
        InputError: a directory is named twice, or is invalid.
    """
    directories = [path.absolute() for path in paths]
    for directory, count in collections.Counter(directories).items():
        if count > 1:
            raise InputError(
                Setting("runs"), "a list of different directories", f"{directory} twice"
            )
    return list(map(read_run, directories, short_names(directories)))


def compare_settings(runs: Sequence[Run]) -> tuple[list[str], dict[str, Any]]:
    """Returns the names of the settings that differ between runs, and the shared settings."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    missing = object()
    differing, shared = [], {}
    for name in names:
        values = [run.settings.get(name, missing) for run in runs]
        if all(value == values[0] for value in values):
            shared[name] = values[0]
        else:
            differing.append(name)
    return differing, shared
