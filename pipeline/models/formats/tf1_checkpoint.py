"""Checkpoints in Google's TensorFlow 1 layout: the one module here on TensorFlow."""

import errno
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.base.errors import InputError
from pipeline.models.config import BERT, EncoderConfig
from pipeline.models.weight_names import Shape, WeightName, check_tensors, weight_table

# What TensorFlow raises for a damaged file; IndexError stands for one that is cut short,
# TypeError for a dtype that it does not know.
_READ_ERRORS = (tf.errors.OpError, ValueError, RuntimeError, IndexError, TypeError)


def read_tf1_shapes(prefix: str) -> dict[str, Shape]:
    """Returns the shape of every tensor of a checkpoint by its name.

    Args:
        prefix: path of the checkpoint without `.index` or `.data-…`.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    return _open(prefix)[1]


def _open(prefix: str) -> tuple[Any, dict[str, Shape]]:
    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes = {name: tuple(s) for name, s in reader.get_variable_to_shape_map().items()}
    except _READ_ERRORS as error:
        raise _unreadable(prefix, error) from error
    return reader, shapes


def read_tf1_weights(
    prefix: str, config: EncoderConfig, table: Sequence[WeightName] | None = None
) -> dict[str, np.ndarray]:
    """Reads the weights of a model.

    Args:
        prefix: path of the checkpoint without `.index` or `.data-…`.
        config: the model's configuration.
        table: the weights to read; by default those of a masked LM, without the
            optimizer's slots, the pooler and the sentence-pair head.

    Returns:
        float32 arrays by our names (`weight_names`), every weight present.

    Raises:
        InputError: the checkpoint cannot be read, or its tensors are not those of
            the configuration, or no floats.
    """
    reader, shapes = _open(prefix)
    table = weight_table(config) if table is None else table
    check_tensors(shapes, config, layout="tf1", where=prefix, table=table)
    try:
        dtypes = reader.get_variable_to_dtype_map()
        others = [name.tf1 for name in table if not dtypes[name.tf1].is_floating]
        # Text would have to be read, and numbers of another kind would pass.
        tensors = {} if others else {name.ours: reader.get_tensor(name.tf1) for name in table}
    except _READ_ERRORS as error:
        raise _unreadable(prefix, error) from error
    if others:
        raise InputError(
            prefix, received=f"{others[0]}: expected floats, received {dtypes[others[0]].name}"
        )
    return {name: np.asarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}


def _other_heads(config: EncoderConfig) -> dict[str, Shape]:
    """Returns what Google's checkpoints hold besides a masked LM's weights."""
    size = config.hidden_size
    return {
        "bert/pooler/dense/kernel": (size, size),
        "bert/pooler/dense/bias": (size,),
        "cls/seq_relationship/output_weights": (2, size),
        "cls/seq_relationship/output_bias": (2,),
    }


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
        config: the model's configuration, of model type `bert`.
        weights: float32 arrays by our names (`weight_names`), every weight present.

    Raises:
        ValueError: another model type, for which Google has no names.
        OSError: it cannot be written, for example because the disk is full.
    """
    if config.model_type != BERT:
        raise ValueError(f"config: expected model_type {BERT}, received {config.model_type}")
    tensors = {row.tf1: weights[row.ours] for row in weight_table(config)}
    for name, shape in _other_heads(config).items():
        tensors[name] = np.zeros(shape, np.float32)
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


def _unreadable(prefix: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())
    return InputError(prefix, f"a TensorFlow checkpoint, cannot read it ({reason})")
