"""The codec of head states: the vectors that the teacher multiplies with its output table.

A head state s, E numbers, is the teacher's output after its last normalization. With the
output table W [V, E] and the bias b, it gives the whole distribution at any temperature:
logits = s · Wᵀ + b. Letters as in `data_specs.records`: P masked positions, N blocks of a state.

States and table are rotated by the same orthogonal matrix R, the discrete cosine transform:
(s · Rᵀ) · (W · Rᵀ)ᵀ = s · Wᵀ. In the states of published teachers, a few numbers are many times
larger than the others. The rotation spreads them over all blocks, so that no single block is
quantized in long steps.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from data_specs.records import HEAD_STATE_FEATURES, HEAD_STATES, Feature
from pipeline.storage.codecs.base import MAX_RECORD_IDS, ArrayCodec, TargetCodec

# Numbers of a state that share a scale.
BLOCK_SIZE = 32
_FLOAT16_HIGHEST = np.float32(65504.0)


@functools.lru_cache(maxsize=8)
def _rotation(size: int) -> np.ndarray:
    """Returns the orthogonal matrix of the discrete cosine transform, float32 [E, E]."""
    indices = np.arange(size)
    matrix = np.cos(np.pi / size * np.outer(indices, indices + 0.5)) * np.sqrt(2.0 / size)
    matrix[0] /= np.sqrt(2.0)
    return matrix.astype(np.float32)


def rotate(values: np.ndarray) -> np.ndarray:
    """Rotates the last axis of states or of an output table, float32 [..., E]."""
    return values @ _rotation(values.shape[-1]).T


@dataclasses.dataclass(frozen=True, eq=False)
class OutputTable:
    """The teacher's output layer, as a cache stores it.

    Attributes:
        table: float16 [V, E], rotated.
        bias: float32 [V].
    """

    table: np.ndarray
    bias: np.ndarray

    @classmethod
    def of(cls, table: np.ndarray, bias: np.ndarray) -> "OutputTable":
        """Converts a teacher's table, float32 [V, E], and its bias [V] to the stored form.

        Numbers beyond float16 become infinite.
        """
        with np.errstate(over="ignore"):
            return cls(rotate(table).astype("<f2"), bias.astype("<f4"))

    @functools.cached_property
    def largest_norm(self) -> float:
        """The largest Euclidean norm of a row."""
        return float(np.linalg.norm(self.table.astype(np.float32), axis=-1).max(initial=0.0))

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are finite."""
        return bool(np.isfinite(self.table).all() and np.isfinite(self.bias).all())

    @functools.cached_property
    def _columns(self) -> np.ndarray:
        return np.ascontiguousarray(self.table.T, np.float32)

    def logits(self, states: np.ndarray) -> np.ndarray:
        """Returns the logits, float32 [..., V], of rotated states, float32 [..., E]."""
        return states @ self._columns + self.bias


@dataclasses.dataclass(frozen=True)
class StatePacking(ArrayCodec):
    """Packs rotated head states, [P, E], into features of a record.

    Attributes:
        state_size: E.
        half: number of steps from 0 to the largest magnitude of a block.
    """

    state_size: int

    half: ClassVar[float]

    @property
    def _num_blocks(self) -> int:
        return -(-self.state_size // BLOCK_SIZE)

    def _sizes(self, positions: int) -> dict[str, int]:
        return {"P": positions, **self.sizes}

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of the dimensions, by the letters of `data_specs.records`."""
        return {"E": self.state_size, "N": self._num_blocks, "Y": -(-self.state_size // 2)}


class Float16States(StatePacking):
    """Head states in float16: two bytes per number."""

    stored: ClassVar[tuple[Feature, ...]] = HEAD_STATE_FEATURES[16]
    half: ClassVar[float] = 2.0**11

    def _pack(self, values: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.clip(values, -_FLOAT16_HIGHEST, _FLOAT16_HIGHEST).astype("<f2"),)

    def _unpack(self, xp: Any, states: Any) -> Any:
        return states


class _SteppedStates(StatePacking):
    """Head states in equal steps between minus and plus the largest magnitude of a block."""

    def _scale(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns values in steps, float32 [positions, E], and scales, float16 [positions, N].

        A scale is the largest magnitude of its block.
        """
        padding = self._num_blocks * BLOCK_SIZE - self.state_size
        blocks = np.pad(values, [(0, 0), (0, padding)])
        blocks = blocks.reshape(len(values), self._num_blocks, BLOCK_SIZE)
        scales = np.minimum(np.abs(blocks).max(axis=-1), _FLOAT16_HIGHEST).astype("<f2")
        # The scale of a block of zeros is 0.
        steps = np.where(scales > 0, scales, 1.0).astype(np.float32) / np.float32(self.half)
        scaled = (blocks / steps[..., np.newaxis]).reshape(
            len(values), self._num_blocks * BLOCK_SIZE
        )
        return np.clip(scaled[:, : self.state_size], -self.half, self.half), scales

    def _unscale(self, xp: Any, steps: Any, scales: Any) -> Any:
        scales = xp.repeat(scales / self.half, BLOCK_SIZE, axis=-1)
        return steps * scales[..., : self.state_size]


class Int8States(_SteppedStates):
    """Head states in int8: one byte per number, 127 steps on each side of 0."""

    stored: ClassVar[tuple[Feature, ...]] = HEAD_STATE_FEATURES[8]
    half: ClassVar[float] = 127.0

    def _pack(self, values: np.ndarray) -> tuple[np.ndarray, ...]:
        scaled, scales = self._scale(values)
        return np.rint(scaled).astype(np.int8), scales

    def _unpack(self, xp: Any, steps: Any, scales: Any) -> Any:
        return self._unscale(xp, steps, scales)


class Int4States(_SteppedStates):
    """Head states in 4 bits per number: the midpoints of 16 steps.

    The first half of a state is in the low bits of the bytes, the second half in the high bits.
    """

    stored: ClassVar[tuple[Feature, ...]] = HEAD_STATE_FEATURES[4]
    half: ClassVar[float] = 7.5

    def _pack(self, values: np.ndarray) -> tuple[np.ndarray, ...]:
        scaled, scales = self._scale(values)
        steps = np.rint(scaled + self.half).astype(np.uint8)
        low, high = np.split(np.pad(steps, [(0, 0), (0, self.state_size % 2)]), 2, axis=-1)
        return low | high << 4, scales

    def _unpack(self, xp: Any, stored: Any, scales: Any) -> Any:
        # Float arithmetic, as TensorFlow does not support bit shifts of bytes on all devices.
        high = xp.floor(stored / 16.0)
        steps = xp.concat([stored - 16.0 * high, high], axis=-1)[..., : self.state_size]
        return self._unscale(xp, steps - self.half, scales)


# Packings by the values of `state_bits`.
STATE_PACKINGS: Mapping[int, type[StatePacking]] = {16: Float16States, 8: Int8States, 4: Int4States}


@dataclasses.dataclass(frozen=True)
class StatesCodec(TargetCodec):
    """The whole distribution, as head states and the teacher's output table.

    Attributes:
        vocab_size: V.
        packing: of the states.
        output: the teacher's output layer.
    """

    vocab_size: int
    packing: StatePacking
    output: OutputTable = dataclasses.field(repr=False, compare=False)

    @property
    def truncation_factor(self) -> int:
        """V, as the distribution covers all tokens."""
        return self.vocab_size

    def encode(self, states: np.ndarray, row_splits: np.ndarray) -> list[dict[str, bytes]]:
        """Packs the head states of several records; see `ArrayCodec.encode`."""
        return self.packing.encode(rotate(states), row_splits)

    def decode(
        self, features: Mapping[str, bytes], num_positions: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unpacks one record: all tokens at each position; see `TargetCodec.decode`.

        Raises:
            ValueError: a feature is malformed, or the record has too many positions.
        """
        if num_positions * self.vocab_size > MAX_RECORD_IDS:
            expected = f"expected at most {MAX_RECORD_IDS} logits in a record"
            received = f"{num_positions} positions of {self.vocab_size}"
            raise ValueError(f"{expected}, received {received}")
        return self.rank(self.packing.decode(features, num_positions))

    def rank(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids and logits as `decode` does, from rotated states, float32 [P, E].

        Raises:
            ValueError: a number is NaN or infinite.
        """
        if not np.isfinite(states).all():
            raise ValueError(f"{HEAD_STATES}: expected finite numbers")
        logits = self.output.logits(states)
        ids = np.argsort(-logits, axis=-1, kind="stable").astype(np.int32)
        ordered = np.take_along_axis(logits, ids, axis=-1)
        return ids, ordered - ordered[:, :1]

    def logit_deviations(self, states: np.ndarray) -> np.ndarray:
        """Returns an upper bound of the standard deviation of a logit's error, float32 [P].

        The error of a number is uniform within a step. The largest number of a state bounds the
        length of its steps.
        """
        steps = np.abs(states).max(axis=-1) / self.packing.half
        return steps / np.sqrt(12.0) * self.output.largest_norm

    def target_tensors(
        self, tf: Any, features: dict[str, Any], num_positions: Any, max_positions: int
    ) -> dict[str, Any]:
        """See `TargetCodec.target_tensors`: rotated `head_states`, 0 at padding."""
        return {HEAD_STATES: self.packing.decode_tensors(tf, features, max_positions)}
