"""Codecs of hidden states at masked positions.

Letters as in `data_specs.records`: P masked positions, G layer groups, D hidden size.
"""

import abc
import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from data_specs.records import HIDDEN_FEATURES, HIDDEN_SCALES, HIDDEN_STATES, Feature
from pipeline.storage import arrays

_FLOAT16_HIGHEST = np.float32(65504.0)
_STEPS = 127


def _split(values: np.ndarray, row_splits: np.ndarray) -> list[bytes]:
    return [values[start:end].tobytes() for start, end in itertools.pairwise(row_splits)]


@dataclasses.dataclass(frozen=True)
class HiddenCodec(abc.ABC):
    """Packs hidden states into features of a record.

    Attributes:
        num_groups: G.
        hidden_size: D.
        stored: the features that it writes.
    """

    num_groups: int
    hidden_size: int

    stored: ClassVar[tuple[Feature, ...]]

    @abc.abstractmethod
    def encode(self, states: np.ndarray, row_splits: np.ndarray) -> list[dict[str, bytes]]:
        """Packs the positions of several records.

        Args:
            states: float32 [positions, G, D].
            row_splits: int [records + 1], where each record's positions begin.

        Returns:
            the features of each record.
        """

    @abc.abstractmethod
    def decode(self, features: Mapping[str, bytes], num_positions: int) -> np.ndarray:
        """Unpacks one record: float32 [P, G, D].

        Raises:
            KeyError: a feature is missing.
            ValueError: one is damaged.
        """

    @abc.abstractmethod
    def decode_tensors(self, tf: Any, features: dict[str, Any], max_positions: int) -> Any:
        """Unpacks a batch of records inside a TensorFlow graph.

        Args:
            tf: the TensorFlow module.
            features: each feature as a string tensor [B].
            max_positions: P to pad to; padding is 0.

        Returns:
            float32 [B, P, G, D].
        """

    def _array(
        self, feature: Feature, features: Mapping[str, bytes], num_positions: int
    ) -> np.ndarray:
        sizes = {"P": num_positions, "G": self.num_groups, "D": self.hidden_size}
        values = arrays.decode(feature, features[feature.name], vocab_size=0)
        return values.reshape([sizes[letter] for letter in feature.shape])

    def _tensor(self, tf: Any, feature: Feature, features: dict[str, Any], positions: int) -> Any:
        sizes = {"P": positions, "G": self.num_groups, "D": self.hidden_size}
        return arrays.padded_tensor(tf, feature, features[feature.name], 0, sizes)


@dataclasses.dataclass(frozen=True)
class Float16HiddenCodec(HiddenCodec):
    """Two bytes a number."""

    stored: ClassVar[tuple[Feature, ...]] = HIDDEN_FEATURES["float16"]

    def encode(self, states: np.ndarray, row_splits: np.ndarray) -> list[dict[str, bytes]]:
        """Packs the positions of several records; see `HiddenCodec.encode`."""
        clipped = np.clip(states, -_FLOAT16_HIGHEST, _FLOAT16_HIGHEST).astype("<f2")
        return [{HIDDEN_STATES: content} for content in _split(clipped, row_splits)]

    def decode(self, features: Mapping[str, bytes], num_positions: int) -> np.ndarray:
        """Unpacks one record; see `HiddenCodec.decode`."""
        return self._array(*self.stored, features, num_positions).astype(np.float32)

    def decode_tensors(self, tf: Any, features: dict[str, Any], max_positions: int) -> Any:
        """Unpacks a batch of records; see `HiddenCodec.decode_tensors`."""
        return tf.cast(self._tensor(tf, *self.stored, features, max_positions), tf.float32)


@dataclasses.dataclass(frozen=True)
class Int8HiddenCodec(HiddenCodec):
    """One byte a number, in 127 steps up to the largest of each state.

    A number is off by at most half a step: 1/254 of the state's largest.
    """

    stored: ClassVar[tuple[Feature, ...]] = HIDDEN_FEATURES["int8"]

    def encode(self, states: np.ndarray, row_splits: np.ndarray) -> list[dict[str, bytes]]:
        """Packs the positions of several records; see `HiddenCodec.encode`."""
        largest = np.abs(states).max(axis=-1)
        scales = (largest / _STEPS).astype("<f4")
        # A state of zeros has no scale.
        steps = np.rint(states / np.where(scales > 0, scales, 1.0)[..., None]).astype(np.int8)
        columns = zip(_split(steps, row_splits), _split(scales, row_splits), strict=True)
        return [{HIDDEN_STATES: one, HIDDEN_SCALES: two} for one, two in columns]

    def decode(self, features: Mapping[str, bytes], num_positions: int) -> np.ndarray:
        """Unpacks one record; see `HiddenCodec.decode`."""
        steps, scales = (self._array(one, features, num_positions) for one in self.stored)
        return steps.astype(np.float32) * scales[..., np.newaxis]

    def decode_tensors(self, tf: Any, features: dict[str, Any], max_positions: int) -> Any:
        """Unpacks a batch of records; see `HiddenCodec.decode_tensors`."""
        steps, scales = (self._tensor(tf, one, features, max_positions) for one in self.stored)
        return tf.cast(steps, tf.float32) * scales[..., tf.newaxis]
