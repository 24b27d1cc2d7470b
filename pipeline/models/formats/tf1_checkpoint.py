"""Checkpoints in Google's TensorFlow 1 layout; TensorFlow is imported when one is opened."""

import contextlib
import errno
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from pipeline.base.errors import InputError
from pipeline.base.location import Location, mirror_all
from pipeline.models.config import EncoderConfig
from pipeline.models.formats.base import WeightFiles
from pipeline.models.weight_names import TF1, weight_table

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
        """See `WeightFiles`; the index is the last, and must be there."""
        index = location.with_name(f"{location.name}{_INDEX}")
        if not index.is_file():
            raise InputError(location, "the prefix of a TensorFlow checkpoint", f"no file {index}")
        shards = sorted(
            path
            for path in location.parent.iterdir()
            if path.name.startswith(f"{location.name}.data-")
        )
        if not shards:
            raise InputError(location, received=f"no file {location.name}.data-00000-of-00001")
        return (*shards, index)

    def read(self, names: Collection[str]) -> dict[str, np.ndarray]:
        """See `WeightFiles`."""
        for name in names:
            # Text would have to be read, and numbers of another kind would pass.
            if not self._dtypes[name].is_floating:
                raise InputError(f"{self._prefix}: {name}", "floats", self._dtypes[name].name)
        with _reading(self._prefix):
            return {name: np.asarray(self._reader.get_tensor(name), np.float32) for name in names}


@contextlib.contextmanager
def _reading(prefix: Location) -> Iterator[None]:
    """Turns what TensorFlow raises in the block, of a damaged file, into an `InputError`."""
    import tensorflow as tf

    try:
        yield
    # IndexError stands for a file that is cut short, TypeError for a dtype that
    # TensorFlow does not know.
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(prefix, f"a TensorFlow checkpoint, cannot read it ({reason})") from error


def write_tf1_weights(
    prefix: str, config: EncoderConfig, weights: Mapping[str, np.ndarray]
) -> None:
    """Writes the weights of a masked-LM model by Google's names.

    The pooler and the sentence-pair head, which a masked LM here does not have,
    are zeros, so that code which restores every variable of a pre-trained BERT
    finds them.

    Args:
        prefix: path of the checkpoint; `.index` and `.data-00000-of-00001` are
            written, not atomically.
        config: the model's configuration, of a family that Google's layout describes.
        weights: float32 arrays by our names (`weight_names`), every weight present.

    Raises:
        ValueError: another family.
        OSError: it cannot be written, for example because the disk is full.
    """
    import tensorflow as tf

    if not config.family.in_google_layout:
        raise ValueError(f"config: Google's layout has no {config.model_type}")
    size = config.hidden_size
    other_heads = {
        "bert/pooler/dense/kernel": (size, size),
        "bert/pooler/dense/bias": (size,),
        "cls/seq_relationship/output_weights": (2, size),
        "cls/seq_relationship/output_bias": (2,),
    }
    tensors = {name: np.zeros(shape, np.float32) for name, shape in other_heads.items()}
    tensors |= {row.tf1: weights[row.ours] for row in weight_table(config)}
    names = sorted(tensors)
    try:
        with tf.device("CPU"):
            tf.raw_ops.SaveV2(
                prefix=prefix,
                tensor_names=names,
                shape_and_slices=[""] * len(names),
                tensors=[tf.constant(tensors[name]) for name in names],
            )
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, " ".join(str(error).split()), prefix) from error
