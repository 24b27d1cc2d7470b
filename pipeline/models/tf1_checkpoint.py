"""Reading checkpoints in Google's TensorFlow 1 layout: the one module here on TensorFlow."""

import numpy as np
import tensorflow as tf

from pipeline.errors import InputError
from pipeline.models.config import EncoderConfig
from pipeline.models.weight_names import check_tensors, weight_table

# What TensorFlow raises for a damaged file; IndexError stands for one that is cut short.
_READ_ERRORS = (tf.errors.OpError, ValueError, RuntimeError, IndexError)


def read_tf1_weights(prefix: str, config: EncoderConfig) -> dict[str, np.ndarray]:
    """Reads the weights of a masked-LM model.

    The optimizer's slots, the pooler and the sentence-pair head are passed over.

    Args:
        prefix: path of the checkpoint without `.index` or `.data-…`.
        config: the model's configuration.

    Returns:
        float32 arrays by our names (`weight_names`), every weight present.

    Raises:
        InputError: the checkpoint cannot be read, or its tensors are not those of
            the configuration.
    """
    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes = {name: tuple(s) for name, s in reader.get_variable_to_shape_map().items()}
    except _READ_ERRORS as error:
        raise _unreadable(prefix, error) from error
    table = weight_table(config)
    check_tensors(shapes, config, layout="tf1", where=prefix)
    try:
        tensors = {name.ours: reader.get_tensor(name.tf1) for name in table}
    except _READ_ERRORS as error:
        raise _unreadable(prefix, error) from error
    return {name: np.asarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}


def _unreadable(prefix: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())
    return InputError(f"{prefix}: expected a TensorFlow checkpoint, cannot read it ({reason})")
