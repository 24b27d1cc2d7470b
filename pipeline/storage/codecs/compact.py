"""The smallest codec of the top-k: gaps between frequency ranks, quantized logits, compressed."""

import dataclasses
import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from data_specs.records import TOPK_FEATURES, TOPK_IDS, TOPK_LOGITS, TOPK_RANGES, Feature, id_dtype
from pipeline.base.json_text import format_value
from pipeline.storage import arrays
from pipeline.storage.codecs.base import (
    NO_ID,
    NO_ID_LOGIT,
    TopKCodec,
    features_by_record,
    split_rows,
)

*_, _RANGES = TOPK_FEATURES["compact"]
# A token this far below the largest logit has a negligible relative probability: e^-64, and
# e^-32 at temperature 2.
_MAX_DISTANCE = np.float32(64.0)
# The step of a logit beyond the maximum distance, and its decoded value.
_NO_MASS = 255
_NO_MASS_LOGIT = np.float32(-65504.0)
# The relative and the absolute rounding error of float16. The relative one includes a margin for
# computations in float32.
_RANGE_ROUNDING = 2.0**-11 + 1e-6
_SMALLEST = np.float32(2.0**-24)
# A gap of at least this value is written in full after the others.
_LONG = 255
# Bits of a step: a byte, and one bit more for padding.
_STEP_BITS = 9


@dataclasses.dataclass(frozen=True)
class LogitQuantizer:
    """Quantization of the distance x of a logit from the largest, to numbers from 0 to `last`.

    With r the largest distance at the position, and b the `bend`, the number c
    stands for the distance

        x(c) = −r · log(1 − (1 − e^−b) · c / last) / b

    so that x(0) = 0, x(last) = r, and the last step is e^b times as long as the
    first. Long steps suit improbable tokens, as the effect of an error is proportional to the
    token's probability. For b → 0, all steps are equal.

    The error of a distance is at most half the longest step, `half_step` · r.

    Attributes:
        bend: b, above 0.
        last: at most 254.
    """

    bend: float
    last: int

    @functools.cached_property
    def distances(self) -> np.ndarray:
        """float32 [256]: x / r of each number; 1 above `last`."""
        fractions = np.minimum(np.arange(256) / self.last, 1.0)
        return (-np.log1p(fractions * np.expm1(-self.bend)) / self.bend).astype(np.float32)

    @functools.cached_property
    def _midpoints(self) -> np.ndarray:
        """float32 [last + 1]: the midpoint between each number's distance and the next one."""
        distances = self.distances[: self.last + 1]
        return np.append((distances[1:] + distances[:-1]) / 2, np.float32(np.inf))

    @functools.cached_property
    def _first_numbers(self) -> np.ndarray:
        """uint8 [n + 1]: the nearest number at the n + 1 edges of n equal bins of the range.

        n is a power of 2, large enough that the nearest number changes at most once in a bin.
        """
        shortest = np.diff(self._midpoints[:-1]).min(initial=1.0)
        num_bins = 2 ** int(np.ceil(-np.log2(shortest)) + 1)
        edges = np.arange(num_bins + 1, dtype=np.float32) / np.float32(num_bins)
        return np.searchsorted(self._midpoints, edges).astype(np.uint8)

    @property
    def half_step(self) -> float:
        """Half of the longest step, as a fraction of the range."""
        return float(np.diff(self.distances).max()) / 2.0

    def encode(self, shifted: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the nearest numbers, uint8 [positions, K], and the ranges r, float16 [positions].

        Args:
            shifted: float32 [positions, K], logits relative to the largest of their row.
            present: bool [positions, K], false at padding.
        """
        near = present & (shifted >= -_MAX_DISTANCE)
        distances = np.where(near, np.abs(shifted), np.float32(0.0))
        ranges = distances.max(axis=-1, initial=0.0).astype("<f2")
        # If float16 rounds a range to 0, all logits of the row count as equal.
        scales = np.where(ranges > 0, ranges, np.float16(1.0)).astype(np.float32)
        steps = self._nearest(distances / scales[:, np.newaxis])
        steps = np.where(ranges[:, np.newaxis] > 0, steps, 0)
        return np.where(present & ~near, _NO_MASS, steps).astype(np.uint8), ranges

    def _nearest(self, distances: np.ndarray) -> np.ndarray:
        """Returns the nearest numbers, uint8, to distances given as fractions of the range.

        Equals `np.searchsorted` among the midpoints, and takes a fifth of its time.
        """
        numbers, num_bins = self._first_numbers, len(self._first_numbers) - 1
        bins = (distances * np.float32(num_bins)).astype(np.int32)
        steps = numbers.take(np.minimum(bins, num_bins, out=bins))
        steps += self._midpoints.take(steps) < distances
        return steps

    def decode(self, steps: np.ndarray, ranges: np.ndarray) -> np.ndarray:
        """Returns logits, float32 [..., P, K], from numbers [..., P, K] and float16 [..., P]."""
        logits = self.distances.take(steps)
        logits *= -ranges.astype(np.float32)[..., np.newaxis]
        logits[steps == _NO_MASS] = _NO_MASS_LOGIT
        return logits


def _compress(content: bytes) -> bytes:
    # The bytes have no repeated sequences, so only the Huffman code compresses them.
    packer = zlib.compressobj(9, strategy=zlib.Z_HUFFMAN_ONLY)
    return packer.compress(content) + packer.flush()


def _decompress(content: bytes, max_bytes: int) -> bytes:
    """Returns the decompressed bytes.

    Raises:
        ValueError: there are too many bytes, or the stream is malformed or incomplete.
    """
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(content, max_bytes + 1)
    except zlib.error as error:
        raise ValueError(f"broken zlib stream: {error}") from error
    if len(unpacked) > max_bytes or not unpacker.eof or unpacker.unused_data:
        raise ValueError(
            f"expected a complete zlib stream of at most {max_bytes} bytes, received one that is "
            "longer, truncated or followed by other bytes"
        )
    return unpacked


@dataclasses.dataclass(frozen=True)
class CompactCodec(TopKCodec):
    """Ids as gaps of frequency ranks, quantized logits, compressed: about 1.5 bytes per pair.

    Tokens are ranked by their count in the text, ties by the smaller id. A position's ids are
    stored in the order of their ranks. Each is stored as the gap to the previous rank, minus 1,
    in one byte. A gap of 255 or more is written as 255, and in full after all gaps of the
    record. Logits are steps (`LogitQuantizer`) in the same order, one byte each. The bytes of a
    record's gaps, and those of its steps, are compressed by zlib.

    Decoded ids with equal steps are in the order of their ranks.

    Example: the ids 0, 1, 2 have the ranks [2, 0, 1]. Then the row of ids [0, 1] has the
    ranks 0 and 2, and the gaps 0 and 1.
    """

    stored: ClassVar[tuple[Feature, ...]] = TOPK_FEATURES["compact"]
    needs_token_counts: ClassVar[bool] = True
    compresses: ClassVar[bool] = True
    environment: ClassVar[Mapping[str, str]] = {"zlib": zlib.ZLIB_RUNTIME_VERSION}
    steps: ClassVar[LogitQuantizer] = LogitQuantizer(bend=1.5, last=225)

    @functools.cached_property
    def _tokens(self) -> np.ndarray:
        """int32 [V]: the id of each rank."""
        return np.argsort(-self.token_counts, kind="stable").astype(np.int32)

    @functools.cached_property
    def _ranks(self) -> np.ndarray:
        """int64 [V]: the rank of each id."""
        ranks = np.empty(self.vocab_size, np.int64)
        ranks[self._tokens] = np.arange(self.vocab_size)
        return ranks

    @property
    def _rank_bits(self) -> int:
        return (self.vocab_size - 1).bit_length()

    @property
    def _key_dtype(self) -> type[np.signedinteger]:
        """The dtype of a number that packs a rank and a step."""
        return np.int32 if self._rank_bits + _STEP_BITS < 32 else np.int64

    def _encode(
        self, ids: np.ndarray, shifted: np.ndarray, present: np.ndarray, row_splits: np.ndarray
    ) -> list[dict[str, bytes]]:
        steps, ranges = self.steps.encode(shifted, present)
        # A key packs a rank and a step, as in `_unpack`. The rank of padding sorts last.
        ranks = np.where(present, self._ranks.take(ids), self.vocab_size).astype(self._key_dtype)
        keys = ranks << 8 | steps
        keys.sort(axis=-1)
        ranks, steps = keys >> 8, keys.astype(np.uint8)
        present = ranks < self.vocab_size
        gaps = np.diff(ranks, axis=-1, prepend=-1) - 1
        short_gaps = np.minimum(gaps, _LONG).astype(np.uint8)
        long_gaps = gaps.astype(id_dtype(self.vocab_size))
        columns = zip(
            split_rows(short_gaps, row_splits, present),
            split_rows(long_gaps, row_splits, present & (gaps >= _LONG)),
            strict=True,
        )
        return features_by_record(
            (TOPK_IDS, TOPK_LOGITS, TOPK_RANGES),
            (_compress(short + long) for short, long in columns),
            map(_compress, split_rows(steps, row_splits, present)),
            split_rows(ranges, row_splits),
        )

    def decode(
        self, features: Mapping[str, bytes], num_positions: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unpacks one record; see `TopKCodec.decode`."""
        return self._unpack(*self._read(features, num_positions))

    def decode_records(
        self, examples: Sequence[Mapping[str, bytes]], num_positions: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unpacks several records; see `TopKCodec.decode_records`."""
        stored = [self._read(*pair) for pair in zip(examples, num_positions, strict=True)]
        return self._unpack(*(np.concatenate(values) for values in zip(*stored, strict=True)))

    def errors(self, logits: np.ndarray) -> np.ndarray:
        """See `TopKCodec.errors`: half the longest step, and the rounding of the range."""
        known = logits > _NO_MASS_LOGIT
        ranges = np.where(known, -logits, np.float32(0.0)).max(axis=-1, keepdims=True, initial=0.0)
        errors = ranges * np.float32(self.steps.half_step + _RANGE_ROUNDING) + _SMALLEST
        return np.where(known, errors, np.float32(np.inf))

    def _read(self, features: Mapping[str, bytes], num_positions: int) -> tuple[np.ndarray, ...]:
        """Returns the arguments of `_unpack` for one record."""
        counts = self.counts(features, num_positions)
        total, dtype = int(counts.sum()), id_dtype(self.vocab_size)
        payload = _decompress(features[TOPK_IDS], total * (1 + dtype.itemsize))
        gaps, long = payload[:total], np.frombuffer(payload[total:], dtype)
        steps = _decompress(features[TOPK_LOGITS], total)
        for content in (gaps, steps):
            self.expect_ids(len(content), counts)
        num_long = gaps.count(_LONG)
        if num_long != len(long):
            raise ValueError(f"expected {num_long} long gaps of ranks, received {len(long)}")
        ranges = arrays.decode(_RANGES, features[TOPK_RANGES], vocab_size=0)
        # The comparison is false for NaN too.
        if len(ranges) != num_positions or not ((ranges >= 0) & np.isfinite(ranges)).all():
            expected = f"expected {num_positions} ranges of at least 0"
            raise ValueError(f"{expected}, received {format_value(ranges.tolist())}")
        return np.frombuffer(gaps, np.uint8), long, np.frombuffer(steps, np.uint8), ranges, counts

    def _unpack(
        self,
        gaps: np.ndarray,
        long: np.ndarray,
        steps: np.ndarray,
        ranges: np.ndarray,
        counts: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unpacks the stored arrays of R positions: ids int32 and logits float32, [R, K].

        `gaps` and `steps` are uint8 [n], concatenated over the rows. `long` holds the full
        values of the gaps that are written as 255. `ranges` is float16 [R]; `counts`, int [R],
        holds the number of ids of each row.
        """
        ranks, bits = self._unpack_ranks(gaps, long, counts), self._rank_bits
        # A key packs the step and the rank: `sort` is faster than `argsort`, and ids with equal
        # steps stay in the order of their ranks. Operations are in place, as allocating memory
        # takes longer than computing.
        keys = self.rows(steps.astype(ranks.dtype), counts, _LONG + 1)
        keys <<= bits
        keys |= ranks
        keys.sort(axis=-1)
        ids = self._tokens.take(np.bitwise_and(keys, (1 << bits) - 1, out=ranks))
        keys >>= bits
        is_padding = keys > _LONG
        logits = self.steps.decode(np.minimum(keys, _LONG, out=keys), ranges)
        ids[is_padding], logits[is_padding] = NO_ID, NO_ID_LOGIT
        return ids, logits

    def _unpack_ranks(self, gaps: np.ndarray, long: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Returns ascending ranks, int [R, K] of a dtype with room for a step; 0 at padding."""
        gaps = gaps.astype(self._key_dtype)
        columns = np.arange(self.truncation_factor, dtype=gaps.dtype)
        gaps[gaps == _LONG] = long
        # Checked before the cumulative sum, which could overflow and hide invalid gaps.
        fits = gaps.min(initial=0) >= 0 and gaps.max(initial=0) < self.vocab_size
        ranks = self.rows(gaps, counts, 0)
        np.cumsum(ranks, axis=-1, dtype=ranks.dtype, out=ranks)
        ranks += columns
        if self.variable:
            ranks[columns >= counts[:, np.newaxis]] = 0
        if not fits or ranks.max(initial=0) >= self.vocab_size:
            raise ValueError(
                f"expected ranks from 0 to {self.vocab_size - 1}, received a rank outside this "
                "range"
            )
        return ranks
