"""The output layer of a teacher whose head states are in the cache."""

from typing import Any

import keras
import numpy as np
from keras import ops

from pipeline.models.masked_lm import vocabulary_logits
from pipeline.storage import output_table
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.codecs.base import NO_ID, NO_ID_LOGIT
from pipeline.storage.codecs.states import OutputTable


class CachedHead(keras.layers.Layer):
    """Rebuilds a teacher's logits from cached head states, as a live teacher computes them.

    Args:
        table: float16 [V, E], rotated as the states are.
        bias: float32 [V].
    """

    def __init__(self, table: np.ndarray, bias: np.ndarray) -> None:
        super().__init__(name="cached_head", dtype="float32", trainable=False)
        # float16 takes half the memory and holds the file's numbers without rounding.
        self.table = self._constant("table", table, "float16")
        self.bias = self._constant("bias", bias, "float32")
        self.built = True

    def _constant(self, name: str, values: np.ndarray, dtype: str) -> keras.Variable:
        return self.add_weight(
            name=name,
            shape=values.shape,
            dtype=dtype,
            initializer=lambda shape, dtype: ops.convert_to_tensor(values, dtype),
            trainable=False,
            autocast=False,
        )

    def output_layer(self) -> tuple[Any, Any]:
        """Returns the output table [V, E] and bias [V]; see `MaskedLM.output_layer`."""
        return ops.convert_to_tensor(self.table), ops.convert_to_tensor(self.bias)

    def vocabulary_logits(self, states: Any, table: Any, bias: Any) -> Any:
        """Maps rotated head states [..., E] to logits, float32 [..., V]."""
        return vocabulary_logits(states, table, bias, dtype="float32")


def open_head(cache: CacheInput, student_size: int) -> CachedHead:
    """Returns the output layer of a cache of head states, its tokens in the student's order.

    The tokens that the student lacks come after those that it has. They also have mass in the
    teacher's distribution.

    Args:
        cache: a cache of head states.
        student_size: V of the student.

    Raises:
        InputError: the output table's file is missing or invalid.
    """
    manifest = cache.manifest
    size = manifest.teacher_info.state_size
    output = output_table.read_table(cache.directory, manifest.vocab.size, size)
    if cache.vocab_subset is not None:
        output = _in_student_order(output, cache.vocab_subset.table, student_size)
    return CachedHead(output.table, output.bias)


def _in_student_order(output: OutputTable, ids: np.ndarray, student_size: int) -> OutputTable:
    """Moves the rows of a cache's tokens to a student's ids, int32 [V], or to rows after them.

    Example: with the ids [0, −1, 1] of three tokens, and 2 tokens of the student, the rows
    [a, b, c] become [a, c, b].
    """
    unknown = np.flatnonzero(ids == NO_ID)
    rows = ids.copy()
    rows[unknown] = student_size + np.arange(len(unknown))
    # A student's row without a token in the cache has no mass.
    table = np.zeros((student_size + len(unknown), output.table.shape[1]), output.table.dtype)
    bias = np.full(len(table), NO_ID_LOGIT, output.bias.dtype)
    table[rows], bias[rows] = output.table, output.bias
    return OutputTable(table, bias)
