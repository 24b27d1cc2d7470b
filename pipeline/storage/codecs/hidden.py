"""How hidden states at masked positions are packed into a record, and read back.

Letters as in `data_specs.records`: P masked positions, G layer groups, D hidden
size. Encoding is NumPy; `decode_tensors` takes the TensorFlow module as an
argument, as `logit_codec` does.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np

from data_specs.records import HIDDEN_SCALES, HIDDEN_STATES

_FLOAT16_HIGHEST = np.float32(65504.0)
_STEPS = 127


def _split(values: np.ndarray, row_splits: np.ndarray) -> list[bytes]:
    return [values[start:end].tobytes() for start, end in itertools.pairwise(row_splits)]


@dataclasses.dataclass(frozen=True)
class Float16HiddenCodec:
    """Two bytes a number."""

    num_groups: int
    hidden_size: int

    def encode(self, states: np.ndarray, row_splits: np.ndarray) -> list[dict[str, bytes]]:
        """Packs the positions of several records.

        Args:
            states: float32 [positions, G, D].
            row_splits: int [records + 1], where each record's positions begin.

        Returns:
            for each record its features.
        """
        clipped = np.clip(states, -_FLOAT16_HIGHEST, _FLOAT16_HIGHEST).astype("<f2")
        return [{HIDDEN_STATES: part} for part in _split(clipped, row_splits)]

    def decode(self, features: dict[str, bytes], num_positions: int) -> np.ndarray:
        """Unpacks one record: float32 [P, G, D]."""
        values = np.frombuffer(features[HIDDEN_STATES], "<f2").astype(np.float32)
        return values.reshape(num_positions, self.num_groups, self.hidden_size)

    def decode_tensors(self, tf: Any, features: dict[str, Any], max_positions: int) -> Any:
        """Unpacks a batch of records in a TensorFlow graph.

        Args:
            tf: the TensorFlow module.
            features: each feature as a string tensor [B].
            max_positions: P to pad to; padding is 0.

        Returns:
            float32 [B, P, G, D].
        """
        count = max_positions * self.num_groups * self.hidden_size
        bits = tf.io.decode_raw(features[HIDDEN_STATES], tf.uint16, fixed_length=count * 2)
        values = tf.cast(tf.bitcast(bits, tf.float16), tf.float32)
        return tf.reshape(values, (-1, max_positions, self.num_groups, self.hidden_size))


@dataclasses.dataclass(frozen=True)
class Int8HiddenCodec:
    """One byte a number, in 127 steps up to the largest of each state.

    A number is off by at most half a step: 1/254 of the state's largest.
    """

    num_groups: int
    hidden_size: int

    def encode(self, states: np.ndarray, row_splits: np.ndarray) -> list[dict[str, bytes]]:
        """Packs the positions of several records; see `Float16HiddenCodec.encode`."""
        largest = np.abs(states).max(axis=-1)
        scales = (largest / _STEPS).astype("<f4")
        # A state of zeros has no scale.
        steps = np.rint(states / np.where(scales > 0, scales, 1.0)[..., None]).astype(np.int8)
        parts = zip(_split(steps, row_splits), _split(scales, row_splits), strict=True)
        return [{HIDDEN_STATES: one, HIDDEN_SCALES: two} for one, two in parts]

    def decode(self, features: dict[str, bytes], num_positions: int) -> np.ndarray:
        """Unpacks one record: float32 [P, G, D]."""
        shape = (num_positions, self.num_groups)
        steps = np.frombuffer(features[HIDDEN_STATES], np.int8).astype(np.float32)
        scales = np.frombuffer(features[HIDDEN_SCALES], "<f4").reshape(*shape, 1)
        return steps.reshape(*shape, self.hidden_size) * scales

    def decode_tensors(self, tf: Any, features: dict[str, Any], max_positions: int) -> Any:
        """Unpacks a batch of records; see `Float16HiddenCodec.decode_tensors`."""
        count = max_positions * self.num_groups
        steps = tf.io.decode_raw(
            features[HIDDEN_STATES], tf.int8, fixed_length=count * self.hidden_size
        )
        scales = tf.io.decode_raw(features[HIDDEN_SCALES], tf.float32, fixed_length=count * 4)
        shape = (-1, max_positions, self.num_groups)
        steps = tf.reshape(tf.cast(steps, tf.float32), (*shape, self.hidden_size))
        return steps * tf.reshape(scales, (*shape, 1))


HiddenCodec = Float16HiddenCodec | Int8HiddenCodec
# The one place to add a codec: the names that `--hidden_encoding` takes.
HIDDEN_CODECS = {"float16": Float16HiddenCodec, "int8": Int8HiddenCodec}
