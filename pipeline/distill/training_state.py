"""What the next step of a run depends on, as named tensors of a checkpoint.

Weights, the optimizer's slots, dropout's seed states, and the sums of what is measured
since the last line of the log; the place in the data follows from the step. Between
updates no gradient is accumulated.
"""

from collections.abc import Iterator

import keras
import numpy as np
from safetensors import SafetensorError, safe_open

from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.distill import checkpoint_files
from pipeline.distill.distiller import Distiller

_ACCUMULATED = "gradient_accumulator"
_METRICS = "metrics"


def _numbered(group: str, variables: list[keras.Variable]) -> Iterator[tuple[str, keras.Variable]]:
    for index, variable in enumerate(variables):
        yield f"{group}/{index:05d}", variable


def _variables(model: Distiller) -> Iterator[tuple[str, keras.Variable]]:
    """Yields every variable of the run but the metrics', under a name that is unique and stable.

    Seeds and optimizer slots have their number instead of Keras's name, which
    counts what else the process has made.
    """
    for variable in model.trainable_variables:
        yield variable.path, variable
    slots = [one for one in model.optimizer.variables if not one.name.endswith(_ACCUMULATED)]
    yield from _numbered("state", model.state_variables)
    yield from _numbered("optimizer", slots)


def to_arrays(model: Distiller) -> dict[str, np.ndarray]:
    """Returns what a checkpoint holds.

    Args:
        model: compiled; its optimizer is built.
    """
    named = [*_variables(model), *_numbered(_METRICS, model.metrics_variables)]
    return {
        name: np.array(keras.ops.convert_to_numpy(variable.value), order="C")
        for name, variable in named
    }


def restore(output_dir: Location, model: Distiller, step: int) -> dict[str, np.ndarray]:
    """Reads a checkpoint back, of a run whose updates may have been computed in other parts.

    Args:
        output_dir: the run's directory.
        model: built and compiled as when it was saved.
        step: one of `checkpoint_files.checkpoint_steps`.

    Returns:
        what `restore_metrics` takes, once `fit` has begun; nothing where the checkpoint is
        of a version that did not keep it.

    Raises:
        InputError: the file is damaged or of another model.
    """
    path = checkpoint_files.checkpoint_path(output_dir, step)
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
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            path, received=f"a damaged checkpoint ({reason})", hint="delete it"
        ) from error
    return metrics


def restore_metrics(model: Distiller, metrics: dict[str, np.ndarray]) -> None:
    """Goes on with the sums that were measured before a run was stopped.

    Where other things are measured than then, as after an update of this program, they
    begin anew.

    Args:
        model: as for `restore`.
        metrics: what it returned.
    """
    named = dict(_numbered(_METRICS, model.metrics_variables))
    shapes = {name: tuple(variable.shape) for name, variable in named.items()}
    if shapes == {name: value.shape for name, value in metrics.items()}:
        for name, value in metrics.items():
            named[name].assign(value)
