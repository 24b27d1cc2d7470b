"""Checkpoints of a run: their files and their contents.

Each `step-N.safetensors` has a sidecar file `step-N.json`, which is written first. It holds
the SHA-256 of the checkpoint's bytes, because safetensors has no checksum. It also holds
whether the evaluation of this step is still due. Each file appears complete or not at all.

A checkpoint holds everything that the next step depends on: weights, the optimizer's slots,
dropout's seed states, and the sums of the metrics since the last line of the log. The
position in the data follows from the step. Between updates no gradient is accumulated.
"""

import dataclasses
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
from safetensors import SafetensorError, safe_open

from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.distill.distiller import Distiller
from pipeline.models.formats import model_directory

CHECKPOINTS_FOLDER = "checkpoints"
_FILE = re.compile(r"step-(\d{8})\.safetensors")
_CHECKSUM = "sha256"
_EVALUATION_DUE = "evaluation_due"
_ACCUMULATED = "gradient_accumulator"
_METRICS = "metrics"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The step that a run resumes from.

    Attributes:
        step: updates done.
        evaluation_due: whether the run was stopped before the evaluation of this step, or in it.
    """

    step: int
    evaluation_due: bool = False


def checkpoint_steps(output_dir: Location) -> list[int]:
    """Returns the steps that have a checkpoint, ascending."""
    folder = output_dir / CHECKPOINTS_FOLDER
    matches = [_FILE.fullmatch(path.name) for path in folder.glob("*")]
    return sorted(int(match[1]) for match in matches if match)


def checkpoint_path(output_dir: Location, step: int) -> Location:
    """Returns the file of a step's checkpoint."""
    return output_dir / CHECKPOINTS_FOLDER / f"step-{step:08d}.safetensors"


def _sidecar(path: Location) -> Location:
    return path.with_name(f"{path.stem}.json")


def _read_sidecar(path: Location) -> dict[str, Any]:
    """Returns the values of a checkpoint's sidecar; none for a checkpoint without a sidecar."""
    sidecar = _sidecar(path)
    return sidecar.read_json() if sidecar.exists() else {}


def find_defect(path: Location) -> str | None:
    """Returns the defect in the content of a checkpoint's file; None for a valid file.

    Without a recorded checksum, only the header and the number of bytes are checked.

    Raises:
        OSError: the file cannot be read; its content may be valid.
    """
    copy = path.mirror()
    if not copy.is_file():
        return "expected a file"
    try:
        sidecar = _read_sidecar(path)
        with safe_open(copy, framework="numpy"):
            pass
    except (SafetensorError, InputError) as error:
        return _in_one_line(error)
    received = copy.sha256()
    expected = sidecar.get(_CHECKSUM, None if sidecar else received)
    if received != expected:
        return f"expected SHA-256 {expected}, received {received}"
    return None


def _in_one_line(error: Exception) -> str:
    # The message holds names of tensors, and these may have several lines.
    return " ".join(str(error).split())[:200]


class CheckpointFiles:
    """Writes a run's checkpoints and finds the one to resume from.

    Args:
        output_dir: the run's directory.
        keep: the number of newest checkpoints to keep. Damaged checkpoints are not counted
            and are never removed.
    """

    def __init__(self, output_dir: Location, *, keep: int) -> None:
        self._output_dir = output_dir
        self._keep = keep
        self._damaged: set[int] = set()
        # Checkpoints that this process has verified or written. They are not read again, because
        # a read from a bucket is a download.
        self._valid: set[int] = set()

    def _path(self, step: int) -> Location:
        return checkpoint_path(self._output_dir, step)

    def find_newest(self) -> Checkpoint | None:
        """Returns the newest valid checkpoint; None if the run has no checkpoint.

        Damaged checkpoints are named on stderr. The local copy of a valid one from a bucket
        stays.

        Raises:
            InputError: no checkpoint is valid.
            OSError: a checkpoint cannot be read; it may be valid.
        """
        defects: list[str] = []
        for step in reversed(checkpoint_steps(self._output_dir)):
            path = self._path(step)
            defect = find_defect(path)
            if defect is None:
                if defects:
                    print(f"resuming from an older checkpoint, {path}", file=sys.stderr)
                self._valid.add(step)
                return Checkpoint(step, bool(_read_sidecar(path).get(_EVALUATION_DUE)))
            self._damaged.add(step)
            path.remove_mirror()
            defects.append(f"{path}: a damaged checkpoint ({defect})")
            print(f"{defects[-1]}; the file is left unchanged", file=sys.stderr)
        if defects:
            hint = f"to train from the beginning, delete the folder {self._path(0).parent}"
            raise InputError("; ".join(defects), "a valid checkpoint", hint=hint)
        return None

    def save(
        self, step: int, tensors: Mapping[str, np.ndarray], *, evaluation_due: bool = False
    ) -> None:
        """Writes a checkpoint of contiguous arrays by name, and removes checkpoints beyond `keep`.

        A file that already has the name is a damaged checkpoint. It is renamed, not overwritten.
        """
        path = self._path(step)
        path.parent.mkdir(exist_ok=True)
        if path.exists():
            _set_aside(path)
            self._damaged.discard(step)
            self._valid.discard(step)

        def write_sidecar(written: Location) -> None:
            values = {_CHECKSUM: written.sha256(), _EVALUATION_DUE: evaluation_due}
            _sidecar(path).write_json(values)

        model_directory.save_tensors(path, tensors, before_publishing=write_sidecar)
        self._valid.add(step)
        self._remove_old()

    def _remove_old(self) -> None:
        steps = [step for step in checkpoint_steps(self._output_dir) if step not in self._damaged]
        for step in steps[: -self._keep]:
            path = self._path(step)
            if step not in self._valid:
                # It is older than the checkpoint that this process resumed from, so unverified.
                defect = find_defect(path)
                path.remove_mirror()
                if defect is not None:
                    self._damaged.add(step)
                    continue
            path.unlink()
            _sidecar(path).unlink(missing_ok=True)


def _set_aside(path: Location) -> None:
    number = 1
    while (aside := path.with_name(f"{path.name}.broken-{number}")).exists():
        number += 1
    path.publish(aside)
    sidecar = _sidecar(path)
    if sidecar.exists():
        sidecar.publish(sidecar.with_name(f"{sidecar.name}.broken-{number}"))
    print(
        f"{path}: a damaged checkpoint has this name; renamed it to {aside.name}", file=sys.stderr
    )


def _numbered(group: str, variables: list[keras.Variable]) -> Iterator[tuple[str, keras.Variable]]:
    for index, variable in enumerate(variables):
        yield f"{group}/{index:05d}", variable


def _variables(model: Distiller) -> Iterator[tuple[str, keras.Variable]]:
    """Yields every variable of the run except the metrics', under a unique and stable name.

    Seeds and slots get numbers, because their names in Keras depend on other objects of the
    process.
    """
    for variable in model.trainable_variables:
        yield variable.path, variable
    slots = [slot for slot in model.optimizer.variables if not slot.name.endswith(_ACCUMULATED)]
    yield from _numbered("state", model.state_variables)
    yield from _numbered("optimizer", slots)


def to_arrays(model: Distiller) -> dict[str, np.ndarray]:
    """Returns the arrays of a compiled model's checkpoint, by name."""
    named = [*_variables(model), *_numbered(_METRICS, model.metrics_variables)]
    to_numpy = keras.ops.convert_to_numpy
    return {name: np.array(to_numpy(variable.value), order="C") for name, variable in named}


def restore(output_dir: Location, model: Distiller, step: int) -> dict[str, np.ndarray]:
    """Restores a checkpoint; the run may have used another number of microbatches.

    Returns:
        sums of the metrics for `restore_metrics`, which is called after `fit` has begun; empty
        if the checkpoint holds none.

    Raises:
        InputError: the file is damaged or of another model.
    """
    path = checkpoint_path(output_dir, step)
    try:
        with safe_open(path.mirror(), framework="numpy") as file:
            stored = set(file.keys())
            for name, variable in _variables(model):
                if name not in stored:
                    raise InputError(path, name, "none")
                value = file.get_tensor(name)
                if value.shape != tuple(variable.shape):
                    raise InputError(path, f"{name} of shape {tuple(variable.shape)}", value.shape)
                variable.assign(value)
            names = sorted(name for name in stored if name.startswith(f"{_METRICS}/"))
            metrics = {name: file.get_tensor(name) for name in names}
        model.set_updates(step)
    except SafetensorError as error:
        received = f"a damaged checkpoint ({_in_one_line(error)})"
        raise InputError(path, received=received, hint="delete the file") from error
    return metrics


def restore_metrics(model: Distiller, metrics: dict[str, np.ndarray]) -> None:
    """Sets the metrics to the sums that `restore` returned.

    If the model has other metrics, as after an update of this program, all start from zero.
    """
    named = dict(_numbered(_METRICS, model.metrics_variables))
    shapes = {name: tuple(variable.shape) for name, variable in named.items()}
    if shapes == {name: value.shape for name, value in metrics.items()}:
        for name, value in metrics.items():
            named[name].assign(value)
