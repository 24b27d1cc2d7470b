"""The codec of head states: what is multiplied with the teacher's output table.

A head state s, E numbers, is the teacher's output behind its last normalisation. With the
output table W [V, E] and the bias b it is the whole distribution, at any temperature:
logits = s · Wᵀ + b. Letters as in `data_specs.records`: P masked positions, N blocks of a state.

States and table are rotated alike by the discrete cosine transform, an orthogonal matrix R:
(s · Rᵀ) · (W · Rᵀ)ᵀ = s · Wᵀ. Published teachers have a few numbers that are many times larger
than the others; rotated, these are spread over all blocks, so that they do not make the steps of
their own block long.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from data_specs.records import HEAD_STATE_FEATURES, HEAD_STATES, Feature
from pipeline.storage.codecs.base import MAX_RECORD_IDS, ArrayCodec, TargetCodec

# Numbers of a state that have one scale.
BLOCK_SIZE = 32
_FLOAT16_HIGHEST = np.float32(65504.0)


@functools.lru_cache(maxsize=8)
def _rotation(size: int) -> np.ndarray:
    """Returns the orthogonal matrix of the discrete cosine transform, float32 [E, E]."""
    places = np.arange(size)
    matrix = np.cos(np.pi / size * np.outer(places, places + 0.5)) * np.sqrt(2.0 / size)
    matrix[0] /= np.sqrt(2.0)
    return matrix.astype(np.float32)


def rotate(values: np.ndarray) -> np.ndarray:
    """Rotates the last axis of states or of an output table, float32 [..., E]."""
    return values @ _rotation(values.shape[-1]).T


@dataclasses.dataclass(frozen=True, eq=False)
class OutputTable:
    """The teacher's output layer.

    Attributes:
        table: float16 [V, E], rotated.
        bias: float32 [V].
    """

    table: np.ndarray
    bias: np.ndarray

    @classmethod
    def of(cls, table: np.ndarray, bias: np.ndarray) -> "OutputTable":
        """Returns what is stored of a teacher's table, float32 [V, E], and its bias [V].

        A number that float16 cannot hold is infinite.
        """
        with np.errstate(over="ignore"):
            return cls(rotate(table).astype("<f2"), bias.astype("<f4"))

    @functools.cached_property
    def largest_norm(self) -> float:
        """The largest length of a row."""
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
        half: steps, of the numbers in a block, from 0 to the largest.
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
        """Sizes by the letters of `data_specs.records`."""
        return {"E": self.state_size, "N": self._num_blocks, "Y": -(-self.state_size // 2)}


class Float16States(StatePacking):
    """Two bytes a number."""

    stored: ClassVar[tuple[Feature, ...]] = HEAD_STATE_FEATURES[16]
    half: ClassVar[float] = 2.0**11

    def _pack(self, values: np.ndarray) -> tuple[np.ndarray, ...]:
        return (np.clip(values, -_FLOAT16_HIGHEST, _FLOAT16_HIGHEST).astype("<f2"),)

    def _unpack(self, xp: Any, states: Any) -> Any:
        return states


class _SteppedStates(StatePacking):
    """Numbers in equal steps from minus to plus the largest of their block."""

    def _scale(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns values in steps, float32 [positions, E], and the blocks' largest, float16."""
        padding = self._num_blocks * BLOCK_SIZE - self.state_size
        blocks = np.pad(values, [(0, 0), (0, padding)])
        blocks = blocks.reshape(len(values), self._num_blocks, BLOCK_SIZE)
        scales = np.minimum(np.abs(blocks).max(axis=-1), _FLOAT16_HIGHEST).astype("<f2")
        # A block of zeros has no scale.
        steps = np.where(scales > 0, scales, 1.0).astype(np.float32) / np.float32(self.half)
        scaled = (blocks / steps[..., np.newaxis]).reshape(
            len(values), self._num_blocks * BLOCK_SIZE
        )
        return np.clip(scaled[:, : self.state_size], -self.half, self.half), scales

    def _unscale(self, xp: Any, steps: Any, scales: Any) -> Any:
        scales = xp.repeat(scales / self.half, BLOCK_SIZE, axis=-1)
        return steps * scales[..., : self.state_size]


class Int8States(_SteppedStates):
    """One byte a number, in 127 steps on each side of 0."""

    stored: ClassVar[tuple[Feature, ...]] = HEAD_STATE_FEATURES[8]
    half: ClassVar[float] = 127.0

    def _pack(self, values: np.ndarray) -> tuple[np.ndarray, ...]:
        scaled, scales = self._scale(values)
        return np.rint(scaled).astype(np.int8), scales

    def _unpack(self, xp: Any, steps: Any, scales: Any) -> Any:
        return self._unscale(xp, steps, scales)


class Int4States(_SteppedStates):
    """Half a byte a number: the middles of 16 steps.

    The first half of a state is in the low bits of the bytes, the second in the high ones.
    """

    stored: ClassVar[tuple[Feature, ...]] = HEAD_STATE_FEATURES[4]
    half: ClassVar[float] = 7.5

    def _pack(self, values: np.ndarray) -> tuple[np.ndarray, ...]:
        scaled, scales = self._scale(values)
        steps = np.rint(scaled + self.half).astype(np.uint8)
        low, high = np.split(np.pad(steps, [(0, 0), (0, self.state_size % 2)]), 2, axis=-1)
        return low | high << 4, scales

    def _unpack(self, xp: Any, stored: Any, scales: Any) -> Any:
        # In floats: TensorFlow shifts no bits of bytes on all devices.
        high = xp.floor(stored / 16.0)
        steps = xp.concat([stored - 16.0 * high, high], axis=-1)[..., : self.state_size]
        return self._unscale(xp, steps - self.half, scales)


# By the values that `state_bits` takes.
STATE_PACKINGS: Mapping[int, type[StatePacking]] = {16: Float16States, 8: Int8States, 4: Int4States}


@dataclasses.dataclass(frozen=True)
class StatesCodec(TargetCodec):
    """The whole distribution, as head states and an output table.

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
        """V: every token is known."""
        return self.vocab_size

    def encode(self, states: np.ndarray, row_splits: np.ndarray) -> list[dict[str, bytes]]:
        """Packs the head states of several records; see `ArrayCodec.encode`."""
        return self.packing.encode(rotate(states), row_splits)

    def decode(
        self, features: Mapping[str, bytes], num_positions: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unpacks one record: all tokens at each position; see `TargetCodec.decode`.

        Raises:
            ValueError: also where the record has more positions than fit memory.
        """
        if num_positions * self.vocab_size > MAX_RECORD_IDS:
            expected = f"expected at most {MAX_RECORD_IDS} logits in a record"
            received = f"{num_positions} positions of {self.vocab_size}"
            raise ValueError(f"{expected}, received {received}")
        return self.rank(self.packing.decode(features, num_positions))

    def rank(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns what `decode` does, of rotated states, float32 [P, E].

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
        """Returns the standard deviation of a logit's error, at most, float32 [P].

        An error is uniform within a step, whose length follows from the largest number.
        """
        steps = np.abs(states).max(axis=-1) / self.packing.half
        return steps / np.sqrt(12.0) * self.output.largest_norm

    def target_tensors(
        self, tf: Any, features: dict[str, Any], num_positions: Any, max_positions: int
    ) -> dict[str, Any]:
        """See `TargetCodec.target_tensors`: rotated `head_states`, 0 at padding."""
        return {HEAD_STATES: self.packing.decode_tensors(tf, features, max_positions)}
