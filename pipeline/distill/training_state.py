"""Checkpoints of a run: everything that the next step depends on, in one safetensors file.

Weights, the optimizer's slots and dropout's seed states; the place in the data
follows from the step. Between updates no gradient is accumulated. A file appears
whole or not at all.
"""

import pathlib
import re
from collections.abc import Iterator

import keras
import numpy as np
from safetensors import SafetensorError, safe_open

from pipeline import files
from pipeline.distill.distiller import Distiller
from pipeline.errors import InputError
from pipeline.models import checkpoints

CHECKPOINTS_FOLDER = "checkpoints"
# The newest, and the one before it: should the newest be damaged, the run goes
# on from the other once the user deletes it.
_KEPT = 2
_ACCUMULATED = "gradient_accumulator"
_FILE = re.compile(r"step-(\d{8})\.safetensors")


def _variables(model: Distiller) -> Iterator[tuple[str, keras.Variable]]:
    """Yields every variable of the run under a name that is unique and stable.

    Seeds and optimizer slots have their number instead of Keras's name, which
    counts what else the process has made.
    """
    for variable in model.trainable_variables:
        yield variable.path, variable
    slots = [one for one in model.optimizer.variables if not one.name.endswith(_ACCUMULATED)]
    groups = {"state": model.state_variables, "optimizer": slots}
    for group, variables in groups.items():
        for index, variable in enumerate(variables):
            yield f"{group}/{index:05d}", variable


def checkpoint_steps(output_dir: files.PathLike) -> list[int]:
    """Returns the steps that have a checkpoint, ascending."""
    folder = pathlib.Path(output_dir) / CHECKPOINTS_FOLDER
    matches = [_FILE.fullmatch(path.name) for path in folder.glob("*")]
    return sorted(int(match[1]) for match in matches if match)


def _path(output_dir: files.PathLike, step: int) -> pathlib.Path:
    return pathlib.Path(output_dir) / CHECKPOINTS_FOLDER / f"step-{step:08d}.safetensors"


def save(output_dir: files.PathLike, model: Distiller, step: int) -> None:
    """Writes a checkpoint and removes all but the newest two.

    Args:
        output_dir: the run's directory.
        model: compiled; its optimizer is built.
        step: updates done.
    """
    path = _path(output_dir, step)
    path.parent.mkdir(exist_ok=True)
    tensors = {
        name: np.array(keras.ops.convert_to_numpy(variable.value), order="C")
        for name, variable in _variables(model)
    }
    checkpoints.save_tensors(path, tensors)
    for old in checkpoint_steps(output_dir)[:-_KEPT]:
        _path(output_dir, old).unlink()


def restore(output_dir: files.PathLike, model: Distiller, step: int) -> None:
    """Reads a checkpoint back, of a run whose updates may have been computed in other parts.

    Args:
        output_dir: the run's directory.
        model: built and compiled as when it was saved.
        step: one of `checkpoint_steps`.

    Raises:
        InputError: the file is damaged or of another model.
    """
    path = _path(output_dir, step)
    try:
        with safe_open(path, framework="numpy") as file:
            stored = set(file.keys())
            for name, variable in _variables(model):
                if name not in stored:
                    raise InputError(f"{path}: expected {name}, received none")
                value = file.get_tensor(name)
                if value.shape != tuple(variable.shape):
                    raise InputError(
                        f"{path}: expected {name} of shape {tuple(variable.shape)}, "
                        f"received {value.shape}"
                    )
                variable.assign(value)
        model.set_updates(step)
    except SafetensorError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: a damaged checkpoint ({reason}); delete it") from error
