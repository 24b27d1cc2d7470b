"""Conversion between arrays and bytes: features of records, and headers of NumPy files.

`data_specs.records` declares each feature's dtype and shape. Only this module converts its bytes
to numbers, in NumPy and in TensorFlow. Functions take TensorFlow as an argument, so that this
module can be imported without it.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from data_specs.records import Feature


def decode(feature: Feature, content: bytes, vocab_size: int) -> np.ndarray:
    """Returns the numbers of a feature of one record, as a flat array.

    Raises:
        ValueError: the bytes end inside a number.
    """
    dtype = feature.numpy_dtype(vocab_size)
    if len(content) % dtype.itemsize:
        expected = f"expected numbers of {dtype.itemsize} bytes"
        raise ValueError(f"{feature.name}: {expected}, received {len(content)} bytes")
    return np.frombuffer(content, dtype)


def encode(feature: Feature, values: np.ndarray, vocab_size: int) -> bytes:
    """Returns the bytes of a feature: `values` in its dtype, row-major."""
    return np.asarray(values).astype(feature.numpy_dtype(vocab_size), copy=False).tobytes()


@dataclasses.dataclass(frozen=True)
class Column:
    """The numbers of one feature in n records, concatenated.

    Attributes:
        values: the numbers of all records, flat.
        counts: int64 [n], the number of values of each record.
    """

    values: np.ndarray
    counts: np.ndarray

    @classmethod
    def decode(cls, feature: Feature, contents: Sequence[bytes], vocab_size: int) -> "Column":
        """Reads a feature of several records.

        `contents` holds the feature's bytes in each record. A number that is cut off at the end of
        a record is not detected.

        Raises:
            ValueError: the concatenated bytes end inside a number.

        Example: `masked_lm_positions` of two records with 2 and 1 masked positions gives the
        values [3, 7, 5] and the counts [2, 1].
        """
        size = feature.numpy_dtype(vocab_size).itemsize
        counts = np.fromiter(map(len, contents), np.int64, len(contents)) // size
        return cls(decode(feature, b"".join(contents), vocab_size), counts)

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """int64 [n]: the index of each record's first value."""
        return np.cumsum(self.counts) - self.counts

    @functools.cached_property
    def owners(self) -> np.ndarray:
        """int64: the index of the record that each value belongs to."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


def group_bounds(sizes: np.ndarray, limit: int) -> np.ndarray:
    """Divides rows into groups of consecutive rows whose sizes sum to about `limit`.

    Args:
        sizes: int [R].
        limit: the sizes of a group, except its last row, sum to less than this.

    Returns:
        int [groups + 1]: 0, the index after the last row of each group; only 0 without rows.

    Example:
        `group_bounds([3, 3, 3, 9, 1], 6) == [0, 2, 4, 5]`
    """
    group = (np.cumsum(sizes) - sizes) // limit
    ends = np.flatnonzero(np.diff(group)) + 1
    return np.unique(np.concatenate([[0], ends, [len(sizes)]]))


def parse_tensors(tf: Any, serialized: Any, names: Iterable[str]) -> dict[str, Any]:
    """Returns the bytes of features, string [B] each, of serialized records, string [B]."""
    text = tf.io.FixedLenFeature([], tf.string)
    return tf.io.parse_example(serialized, dict.fromkeys(names, text))


def padded_tensor(
    tf: Any, feature: Feature, content: Any, vocab_size: int, sizes: Mapping[str, int]
) -> Any:
    """Decodes a feature of a batch of records inside a TensorFlow graph.

    Args:
        tf: the TensorFlow module.
        feature: its declaration.
        content: string [B].
        vocab_size: V; decides the dtype of ids.
        sizes: the padded size for each letter in the feature's shape.

    Returns:
        [B, *shape] of the feature's dtype, 0 at padding.
    """
    dtype = feature.numpy_dtype(vocab_size)
    shape = [sizes[letter] for letter in feature.shape]
    # TensorFlow's padded decoding does not support float16, so the bits are read as uint16.
    is_half = dtype == np.float16
    kind, size = tf.uint16 if is_half else tf.as_dtype(dtype), math.prod(shape) * dtype.itemsize
    values = tf.io.decode_raw(content, kind, fixed_length=size)
    return tf.reshape(tf.bitcast(values, tf.float16) if is_half else values, (-1, *shape))


def read_npy_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Reads the header of a `.npy` file of version 1; the file may be malformed.

    Returns:
        the array's shape and dtype, as the file states them.

    Raises:
        ValueError: the header is malformed.
    """
    try:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    # The header is a Python literal, and its parser raises many types of exceptions.
    except Exception as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"{type(error).__name__}: {reason}") from error
    return shape, dtype
