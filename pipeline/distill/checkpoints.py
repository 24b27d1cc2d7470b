"""Checkpoints of a run: their files, and their contents.

Beside each `step-N.safetensors` lies `step-N.json`, written before it: the SHA-256 of its
bytes, as safetensors has no checksum, and what is still due at its step. Either file
appears whole or not at all.

A checkpoint holds everything the next step depends on: weights, the optimizer's slots,
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


def _described(path: Location) -> dict[str, Any]:
    """Returns what stands beside a checkpoint; nothing beside one of an earlier version."""
    sidecar = _sidecar(path)
    return sidecar.read_json() if sidecar.exists() else {}


def find_defect(path: Location) -> str | None:
    """Returns what is wrong with the content of a checkpoint's file, if anything is.

    Without a checksum beside it, only the header and the number of bytes are checked.

    Raises:
        OSError: it cannot be read, which says nothing of its content.
    """
    copy = path.mirror()
    if not copy.is_file():
        return "expected a file"
    try:
        described = _described(path)
        with safe_open(copy, framework="numpy"):
            pass
    except (SafetensorError, InputError) as error:
        return _in_one_line(error)
    received = copy.sha256()
    expected = described.get(_CHECKSUM, None if described else received)
    if received != expected:
        return f"expected SHA-256 {expected}, received {received}"
    return None


def _in_one_line(error: Exception) -> str:
    # A tensor may be called anything, also in several lines.
    return " ".join(str(error).split())[:200]


class CheckpointFiles:
    """Writes a run's checkpoints and finds the one to go on from.

    Args:
        output_dir: the run's directory.
        keep: so many of the newest are kept; a broken one counts for none, and stays.
    """

    def __init__(self, output_dir: Location, *, keep: int) -> None:
        self._output_dir = output_dir
        self._keep = keep
        self._broken: set[int] = set()
        # Read or written by this process: not read again, which in a bucket is a download.
        self._whole: set[int] = set()

    def _path(self, step: int) -> Location:
        return checkpoint_path(self._output_dir, step)

    def find_newest(self) -> Checkpoint | None:
        """Returns the newest checkpoint that verifies, None where there is none at all.

        Those that do not are named on stderr. Of one in a bucket the copy stays.

        Raises:
            InputError: none verifies.
            OSError: one cannot be read: it may be whole.
        """
        defects: list[str] = []
        for step in reversed(checkpoint_steps(self._output_dir)):
            path = self._path(step)
            defect = find_defect(path)
            if defect is None:
                if defects:
                    print(f"going on from an older checkpoint, {path}", file=sys.stderr)
                self._whole.add(step)
                return Checkpoint(step, bool(_described(path).get(_EVALUATION_DUE)))
            self._broken.add(step)
            path.forget_mirror()
            defects.append(f"{path}: a damaged checkpoint ({defect})")
            print(f"{defects[-1]}; it is left as it is", file=sys.stderr)
        if defects:
            hint = f"to begin again, delete the folder {self._path(0).parent}"
            raise InputError("; ".join(defects), "one that verifies", hint=hint)
        return None

    def save(
        self, step: int, tensors: Mapping[str, np.ndarray], *, evaluation_due: bool = False
    ) -> None:
        """Writes a `Checkpoint` of contiguous arrays by name, and removes those that are too old.

        A file that has its name already is a broken one: it is set aside under a new name.
        """
        path = self._path(step)
        path.parent.mkdir(exist_ok=True)
        if path.exists():
            _set_aside(path)
            self._broken.discard(step)
            self._whole.discard(step)

        def describe(written: Location) -> None:
            described = {_CHECKSUM: written.sha256(), _EVALUATION_DUE: evaluation_due}
            _sidecar(path).write_json(described)

        model_directory.save_tensors(path, tensors, before_publishing=describe)
        self._whole.add(step)
        self._remove_old()

    def _remove_old(self) -> None:
        steps = [step for step in checkpoint_steps(self._output_dir) if step not in self._broken]
        for step in steps[: -self._keep]:
            path = self._path(step)
            if step not in self._whole:
                # Older than the one that this process went on from.
                defect = find_defect(path)
                path.forget_mirror()
                if defect is not None:
                    self._broken.add(step)
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
    print(f"{path}: a checkpoint of this step is there; it is now {aside.name}", file=sys.stderr)


def _numbered(group: str, variables: list[keras.Variable]) -> Iterator[tuple[str, keras.Variable]]:
    for index, variable in enumerate(variables):
        yield f"{group}/{index:05d}", variable


def _variables(model: Distiller) -> Iterator[tuple[str, keras.Variable]]:
    """Yields every variable of the run but the metrics', under a name that is unique and stable.

    Keras's names of seeds and slots count what else the process has made: they are numbered.
    """
    for variable in model.trainable_variables:
        yield variable.path, variable
    slots = [one for one in model.optimizer.variables if not one.name.endswith(_ACCUMULATED)]
    yield from _numbered("state", model.state_variables)
    yield from _numbered("optimizer", slots)


def to_arrays(model: Distiller) -> dict[str, np.ndarray]:
    """Returns what a checkpoint of a compiled model holds."""
    named = [*_variables(model), *_numbered(_METRICS, model.metrics_variables)]
    to_numpy = keras.ops.convert_to_numpy
    return {name: np.array(to_numpy(variable.value), order="C") for name, variable in named}


def restore(output_dir: Location, model: Distiller, step: int) -> dict[str, np.ndarray]:
    """Reads a checkpoint back, of a run whose updates may have been computed in other parts.

    Returns:
        what `restore_metrics` takes, once `fit` has begun; nothing from an earlier version.

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
        raise InputError(path, received=received, hint="delete it") from error
    return metrics


def restore_metrics(model: Distiller, metrics: dict[str, np.ndarray]) -> None:
    """Continues the sums of the metrics that `restore` returned.

    If the metrics differ from those, as after an update of this program, they begin anew.
    """
    named = dict(_numbered(_METRICS, model.metrics_variables))
    shapes = {name: tuple(variable.shape) for name, variable in named.items()}
    if shapes == {name: value.shape for name, value in metrics.items()}:
        for name, value in metrics.items():
            named[name].assign(value)
