"""Codecs of hidden states at masked positions.

Letters as in `data_specs.records`: P masked positions, G layer groups, D hidden size.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from data_specs.records import HIDDEN_FEATURES, Feature
from pipeline.storage import arrays
from pipeline.storage.codecs.base import named, split_rows

_FLOAT16_HIGHEST = np.float32(65504.0)
_STEPS = 127


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
    def _pack(self, states: np.ndarray) -> tuple[np.ndarray, ...]:
        """Returns the arrays of `stored` for states, float32 [positions, G, D]."""

    @abc.abstractmethod
    def _unpack(self, *stored: Any) -> Any:
        """Returns the states of the arrays or tensors of `stored`, float32."""

    def encode(self, states: np.ndarray, row_splits: np.ndarray) -> list[dict[str, bytes]]:
        """Packs the positions of several records.

        Args:
            states: float32 [positions, G, D].
            row_splits: int [records + 1], where each record's positions begin.

        Returns:
            the features of each record.
        """
        columns = (split_rows(values, row_splits) for values in self._pack(states))
        return named((feature.name for feature in self.stored), *columns)

    def decode(self, features: Mapping[str, bytes], num_positions: int) -> np.ndarray:
        """Unpacks one record: float32 [P, G, D].

        Raises:
            KeyError: a feature is missing.
            ValueError: one is damaged.
        """
        sizes, stored = self._sizes(num_positions), []
        for feature in self.stored:
            values = arrays.decode(feature, features[feature.name], vocab_size=0)
            shape = [sizes[letter] for letter in feature.shape]
            stored.append(values.reshape(shape).astype(np.float32))
        return self._unpack(*stored)

    def decode_tensors(self, tf: Any, features: dict[str, Any], max_positions: int) -> Any:
        """Unpacks a batch of records inside a TensorFlow graph.

        Args:
            tf: the TensorFlow module.
            features: each feature as a string tensor [B].
            max_positions: P to pad to; padding is 0.

        Returns:
            float32 [B, P, G, D].
        """
        sizes = self._sizes(max_positions)
        tensors = (
            arrays.padded_tensor(tf, feature, features[feature.name], 0, sizes)
            for feature in self.stored
        )
        return self._unpack(*(tf.cast(tensor, tf.float32) for tensor in tensors))

    def _sizes(self, positions: int) -> dict[str, int]:
        return {"P": positions, "G": self.num_groups, "D": self.hidden_size}


@dataclasses.dataclass(frozen=True)
class Float16HiddenCodec(HiddenCodec):
    """Two bytes a number."""

    stored: ClassVar[tuple[Feature, ...]] = HIDDEN_FEATURES["float16"]

    def _pack(self, states: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.clip(states, -_FLOAT16_HIGHEST, _FLOAT16_HIGHEST).astype("<f2"),)

    def _unpack(self, states: Any) -> Any:
        return states


@dataclasses.dataclass(frozen=True)
class Int8HiddenCodec(HiddenCodec):
    """One byte a number, in 127 steps up to the largest of each state.

    A number is off by at most half a step: 1/254 of the state's largest.
    """

    stored: ClassVar[tuple[Feature, ...]] = HIDDEN_FEATURES["int8"]

    def _pack(self, states: np.ndarray) -> tuple[np.ndarray, ...]:
        scales = (np.abs(states).max(axis=-1) / _STEPS).astype("<f4")
        # A state of zeros has no scale.
        steps = np.rint(states / np.where(scales > 0, scales, 1.0)[..., None])
        return steps.astype(np.int8), scales

    def _unpack(self, steps: Any, scales: Any) -> Any:
        return steps * scales[..., None]
