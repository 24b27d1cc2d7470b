"""Logits in a byte each: steps of a position's range, finer for probable tokens."""

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np

from pipeline.base.json_text import shown

# A logit so far below the largest has no mass: e^-64, and e^-32 at temperature 2.
_FURTHEST = np.float32(64.0)
# The step of one further below, and what it is read as.
_NO_MASS = 255
_NO_MASS_LOGIT = np.float32(-65504.0)
# What float16 rounds by: a part of the number, or half of its smallest step. In single
# precision a little comes to that.
_ROUNDING = 2.0**-11 + 1e-6
_SMALLEST = np.float32(2.0**-24)


@dataclasses.dataclass(frozen=True)
class LogitSteps:
    """Numbers from 0 to `last` for the distance x of a logit from the largest.

    With r the largest distance at the position, and b the `bend`, the number c
    stands for the distance

        x(c) = −r · log(1 − (1 − e^−b) · c / last) / b

    so that x(0) = 0, x(last) = r, and the last step is e^b times as long as the
    first: an error matters in proportion to the token's probability, and most
    tokens are improbable. Without bend (b → 0) steps are equal.

    A distance is off by at most half a step, `half_step` · r.

    Attributes:
        bend: b, above 0.
        last: at most 254.
    """

    bend: float
    last: int

    @functools.cached_property
    def distances(self) -> np.ndarray:
        """float32 [256]: x / r of each number; 1 above `last`."""
        parts = np.minimum(np.arange(256) / self.last, 1.0)
        return (-np.log1p(parts * np.expm1(-self.bend)) / self.bend).astype(np.float32)

    @functools.cached_property
    def _middles(self) -> np.ndarray:
        """float32 [last + 1]: what is above a number's middle is nearer to the next one."""
        known = self.distances[: self.last + 1]
        return np.append((known[1:] + known[:-1]) / 2, np.float32(np.inf))

    @functools.cached_property
    def _first_numbers(self) -> np.ndarray:
        """uint8 [n + 1]: the number nearest to each n-th part of the range, from 0 on.

        n is a power of 2 so large that the number changes at most once between two parts.
        """
        shortest = np.diff(self._middles[:-1]).min(initial=1.0)
        parts = 2 ** int(np.ceil(-np.log2(shortest)) + 1)
        edges = np.arange(parts + 1, dtype=np.float32) / np.float32(parts)
        return np.searchsorted(self._middles, edges).astype(np.uint8)

    @property
    def half_step(self) -> float:
        """Half of the longest step, in parts of the range."""
        return float(np.diff(self.distances).max()) / 2.0

    def errors(self, logits: np.ndarray) -> np.ndarray:
        """Returns how far logits may be from what was encoded, float32 [..., K].

        Half a step of their row's range, which float16 has rounded; infinite where a logit
        has no mass.

        Args:
            logits: float32 [..., K], as `decode` returns them.
        """
        known = logits > _NO_MASS_LOGIT
        ranges = np.where(known, -logits, np.float32(0.0)).max(axis=-1, keepdims=True, initial=0.0)
        errors = ranges * np.float32(self.half_step + _ROUNDING) + _SMALLEST
        return np.where(known, errors, np.float32(np.inf))

    def encode(self, shifted: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the nearest numbers, uint8 [positions, K], and the ranges r, float16 [positions].

        Args:
            shifted: float32 [positions, K], logits minus their row's largest.
            present: bool [positions, K], false where there is no id.
        """
        near = present & (shifted >= -_FURTHEST)
        distances = np.where(near, np.abs(shifted), np.float32(0.0))
        ranges = distances.max(axis=-1, initial=0.0).astype("<f2")
        # A range that float16 rounds to 0 is of equal logits.
        scales = np.where(ranges > 0, ranges, np.float16(1.0)).astype(np.float32)
        steps = self._nearest(distances / scales[:, np.newaxis])
        steps = np.where(ranges[:, np.newaxis] > 0, steps, 0)
        return np.where(present & ~near, _NO_MASS, steps).astype(np.uint8), ranges

    def _nearest(self, distances: np.ndarray) -> np.ndarray:
        """Returns the nearest numbers, uint8, to distances in parts of the range.

        As `np.searchsorted` among the middles finds them, in a fifth of the time.
        """
        numbers, parts = self._first_numbers, len(self._first_numbers) - 1
        places = (distances * np.float32(parts)).astype(np.int32)
        steps = numbers.take(np.minimum(places, parts, out=places))
        steps += self._middles.take(steps) < distances
        return steps

    def decode(self, steps: np.ndarray, ranges: np.ndarray) -> np.ndarray:
        """Returns logits, float32 [..., P, K], from numbers [..., P, K] and float16 [..., P]."""
        logits = self.distances.take(steps)
        logits *= -ranges.astype(np.float32)[..., np.newaxis]
        logits[steps == _NO_MASS] = _NO_MASS_LOGIT
        return logits

    def decode_tensors(self, tf: Any, steps: Any, ranges: Any) -> Any:
        """Does the same with tensors: uint8 [B, P, K] and float16 [B, P]."""
        # TensorFlow's gather takes six times as long.
        logits = tf.numpy_function(self.decode, [steps, ranges], tf.float32, stateful=False)
        return tf.ensure_shape(logits, steps.shape)


def read_ranges(content: bytes, num_positions: int) -> np.ndarray:
    """Reads the ranges of a record, float16 [P].

    Raises:
        ValueError: these are not P numbers of at least 0.
    """
    ranges = np.frombuffer(content, "<f2")
    # Not a number is no number of at least 0.
    if len(ranges) != num_positions or not ((ranges >= 0) & np.isfinite(ranges)).all():
        raise ValueError(
            f"expected {num_positions} ranges of at least 0, received {shown(ranges.tolist())}"
        )
    return ranges


def split_rows(values: np.ndarray, present: np.ndarray, row_splits: np.ndarray) -> list[bytes]:
    """Returns the bytes of each record's values that are there, row after row.

    Args:
        values: [positions, K].
        present: bool [positions, K].
        row_splits: int [records + 1], where each record's positions begin.
    """
    bounds = itertools.pairwise(row_splits)
    if present.all():
        return [values[start:end].tobytes() for start, end in bounds]
    return [values[start:end][present[start:end]].tobytes() for start, end in bounds]
