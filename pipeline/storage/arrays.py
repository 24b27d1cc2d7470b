"""Arrays as bytes: the features of records in NumPy and TensorFlow, and the header of NumPy files.

`data_specs.records` declares each feature's dtype and shape. Its bytes become numbers here, and
nowhere else. TensorFlow is an argument, so that this module can be imported without it.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from data_specs.records import Feature


def decode(feature: Feature, content: bytes, vocab_size: int) -> np.ndarray:
    """Returns the numbers of one record's feature, flat.

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
    """One feature of n records, one record's numbers after another's.

    Attributes:
        values: the numbers of all records.
        counts: int64 [n], how many numbers each record has.
    """

    values: np.ndarray
    counts: np.ndarray

    @classmethod
    def decode(cls, feature: Feature, contents: Sequence[bytes], vocab_size: int) -> "Column":
        """Reads a feature of several records.

        `contents` are its bytes in each record; numbers that a record cuts off are not noticed.

        Raises:
            ValueError: all bytes together end inside a number.

        Example: the `masked_lm_positions` of records of 2 and 1 masked positions are the values
        [3, 7, 5] and the counts [2, 1].
        """
        size = feature.numpy_dtype(vocab_size).itemsize
        counts = np.fromiter(map(len, contents), np.int64, len(contents)) // size
        return cls(decode(feature, b"".join(contents), vocab_size), counts)

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """int64 [n]: where each record's numbers begin."""
        return np.cumsum(self.counts) - self.counts

    @functools.cached_property
    def owners(self) -> np.ndarray:
        """int64: the record that each number belongs to."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


def parse_tensors(tf: Any, serialized: Any, names: Iterable[str]) -> dict[str, Any]:
    """Returns the bytes of features, each string [B], of serialised records, string [B]."""
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
        sizes: the padded size of each letter of its shape.

    Returns:
        [B, *shape] of the feature's dtype, 0 at padding.
    """
    dtype = feature.numpy_dtype(vocab_size)
    shape = [sizes[letter] for letter in feature.shape]
    # Padded decoding knows no float16: the same bits are read as uint16.
    is_half = dtype == np.float16
    kind, size = tf.uint16 if is_half else tf.as_dtype(dtype), math.prod(shape) * dtype.itemsize
    values = tf.io.decode_raw(content, kind, fixed_length=size)
    return tf.reshape(tf.bitcast(values, tf.float16) if is_half else values, (-1, *shape))


def read_npy_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Reads the header of a `.npy` file of version 1 without trusting it; the array follows.

    Returns:
        the array's shape and dtype, as the file states them.

    Raises:
        ValueError: it is not such a header.
    """
    try:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    # A header is a Python literal: for what is none its parser has errors of many kinds.
    except Exception as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"{type(error).__name__}: {reason}") from error
    return shape, dtype
