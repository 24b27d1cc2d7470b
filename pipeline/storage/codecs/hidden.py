"""Codecs of hidden states at masked positions.

Letters as in `data_specs.records`: P masked positions, G layer groups, D hidden size.
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from data_specs.records import HIDDEN_FEATURES, Feature
from pipeline.storage.codecs.base import ArrayCodec

_FLOAT16_HIGHEST = np.float32(65504.0)
_STEPS = 127


@dataclasses.dataclass(frozen=True)
class HiddenCodec(ArrayCodec):
    """Packs hidden states, [P, G, D], into features of a record.

    Attributes:
        num_groups: G.
        hidden_size: D.
    """

    num_groups: int
    hidden_size: int

    def _sizes(self, positions: int) -> dict[str, int]:
        return {"P": positions, "G": self.num_groups, "D": self.hidden_size}


@dataclasses.dataclass(frozen=True)
class Float16HiddenCodec(HiddenCodec):
    """Hidden states in float16: two bytes per number."""

    stored: ClassVar[tuple[Feature, ...]] = HIDDEN_FEATURES["float16"]

    def _pack(self, states: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.clip(states, -_FLOAT16_HIGHEST, _FLOAT16_HIGHEST).astype("<f2"),)

    def _unpack(self, xp: Any, states: Any) -> Any:
        return states


@dataclasses.dataclass(frozen=True)
class Int8HiddenCodec(HiddenCodec):
    """Hidden states quantized to int8, scaled to the largest magnitude of each state.

    The error of a number is at most half a step, 1/254 of the state's largest magnitude.
    """

    stored: ClassVar[tuple[Feature, ...]] = HIDDEN_FEATURES["int8"]

    def _pack(self, states: np.ndarray) -> tuple[np.ndarray, ...]:
        scales = (np.abs(states).max(axis=-1) / _STEPS).astype("<f4")
        # The scale of a state of zeros is 0.
        steps = np.rint(states / np.where(scales > 0, scales, 1.0)[..., None])
        return steps.astype(np.int8), scales

    def _unpack(self, xp: Any, steps: Any, scales: Any) -> Any:
        return steps * scales[..., None]
