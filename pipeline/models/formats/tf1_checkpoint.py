"""Checkpoints in Google's TensorFlow 1 layout; TensorFlow is imported when one is opened."""

import contextlib
from collections.abc import Collection, Iterator

import numpy as np

from pipeline.base.errors import InputError
from pipeline.base.location import Location, mirror_all
from pipeline.models.formats.base import WeightFiles
from pipeline.models.weight_names import TF1

_INDEX = ".index"


class Tf1Checkpoint(WeightFiles):
    """A checkpoint, named by its prefix such as `…/bert_model.ckpt`."""

    layout = TF1
    file_names = ("bert_model.ckpt.index",)

    def __init__(self, files: tuple[Location, ...]) -> None:
        import tensorflow as tf

        index = files[-1]
        self._prefix = index.with_name(index.name.removesuffix(_INDEX))
        copy = str(mirror_all(files)[-1]).removesuffix(_INDEX)
        with _reading(self._prefix):
            self._reader = tf.train.load_checkpoint(copy)
            shapes = self._reader.get_variable_to_shape_map()
            self._dtypes = self._reader.get_variable_to_dtype_map()
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}

    @classmethod
    def find(cls, location: Location) -> tuple[Location, ...]:
        """See `WeightFiles`; the index file must exist and is last in the result."""
        index = location.with_name(f"{location.name}{_INDEX}")
        if not index.is_file():
            raise InputError(location, "the prefix of a TensorFlow checkpoint", f"no file {index}")
        prefix, paths = f"{location.name}.data-", location.parent.iterdir()
        shards = sorted(path for path in paths if path.name.startswith(prefix))
        if not shards:
            raise InputError(location, received=f"no file {prefix}00000-of-00001")
        return (*shards, index)

    def read(self, names: Collection[str]) -> dict[str, np.ndarray]:
        """See `WeightFiles`."""
        for name in names:
            # Integers would be converted without an error, and text cannot be converted.
            if not self._dtypes[name].is_floating:
                raise InputError(f"{self._prefix}: {name}", "floats", self._dtypes[name].name)
        with _reading(self._prefix):
            return {name: np.asarray(self._reader.get_tensor(name), np.float32) for name in names}


@contextlib.contextmanager
def _reading(prefix: Location) -> Iterator[None]:
    """Replaces TensorFlow's errors about a damaged file by an `InputError`."""
    import tensorflow as tf

    try:
        yield
    # TensorFlow raises IndexError for a truncated file, and TypeError for an unknown dtype.
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError, TypeError) as error:
        reason = " ".join(str(error).split())
        received = f"an unreadable checkpoint ({reason})"
        raise InputError(prefix, "a valid TensorFlow checkpoint", received) from error
