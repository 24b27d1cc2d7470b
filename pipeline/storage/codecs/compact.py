"""The smallest codec: ids by frequency, as gaps; logits as steps; both compressed."""

import dataclasses
import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from data_specs.records import TOPK_FEATURES, TOPK_IDS, TOPK_LOGITS, TOPK_RANGES, Feature, id_dtype
from pipeline.base.json_text import shown
from pipeline.storage import arrays
from pipeline.storage.codecs.base import NO_ID, NO_ID_LOGIT, TopKCodec, named, split_rows

*_, _RANGES = TOPK_FEATURES["compact"]
# A logit so far below the largest has no mass: e^-64, and e^-32 at temperature 2.
_FURTHEST = np.float32(64.0)
# The step of one further below, and what it is read as.
_NO_MASS = 255
_NO_MASS_LOGIT = np.float32(-65504.0)
# What float16 rounds by: a part of the number, or half of its smallest step. In single
# precision a little comes to that.
_RANGE_ROUNDING = 2.0**-11 + 1e-6
_SMALLEST = np.float32(2.0**-24)
# A gap of at least this is written behind the others.
_LONG = 255
# Of a byte, and of one more for what is not there.
_STEP_BITS = 9


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


def _compress(content: bytes) -> bytes:
    # No byte repeats another for a reason, so that only a Huffman code helps.
    packer = zlib.compressobj(9, strategy=zlib.Z_HUFFMAN_ONLY)
    return packer.compress(content) + packer.flush()


def _decompress(content: bytes, most: int) -> bytes:
    """Returns at most `most` bytes; ValueError where there are more, or content is damaged."""
    unpacker = zlib.decompressobj()
    try:
        found = unpacker.decompress(content, most + 1)
    except zlib.error as error:
        raise ValueError(f"broken zlib stream: {error}") from error
    if len(found) > most or not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"expected a zlib stream of at most {most} bytes, received another")
    return found


@dataclasses.dataclass(frozen=True)
class CompactCodec(TopKCodec):
    """Ids as gaps of frequency ranks, logits as steps, compressed: about 1.5 bytes for both.

    Tokens are numbered by how often they are in the text (of equals the smaller
    id first), and a position's ids are stored in the order of these ranks: each
    as its distance from the one before, minus 1, in a byte. The few gaps of 255
    or more are 255 there, and stand whole behind all the record's bytes. Logits are
    steps (`LogitSteps`) in the same order, in a byte each. The bytes of a record's
    gaps, and those of its steps, are compressed by zlib.

    Decoded, ids of equal steps stand in the order of their ranks.

    Example: with ranks [2, 0, 1] of the ids 0, 1, 2, the row of ids [0, 1] has
    ranks 0 and 2, gaps 0 and 1.
    """

    stored: ClassVar[tuple[Feature, ...]] = TOPK_FEATURES["compact"]
    needs_token_counts: ClassVar[bool] = True
    compresses: ClassVar[bool] = True
    environment: ClassVar[Mapping[str, str]] = {"zlib": zlib.ZLIB_RUNTIME_VERSION}
    steps: ClassVar[LogitSteps] = LogitSteps(bend=1.5, last=225)

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
        """Of a rank and a step in one number."""
        return np.int32 if self._rank_bits + _STEP_BITS < 32 else np.int64

    def _encode(
        self, ids: np.ndarray, shifted: np.ndarray, present: np.ndarray, row_splits: np.ndarray
    ) -> list[dict[str, bytes]]:
        steps, ranges = self.steps.encode(shifted, present)
        # What is not there comes last. The rank and the step in one number, as in `_unpack`.
        ranks = np.where(present, self._ranks.take(ids), self.vocab_size).astype(self._key_dtype)
        keys = ranks << 8 | steps
        keys.sort(axis=-1)
        ranks, steps = keys >> 8, keys.astype(np.uint8)
        present = ranks < self.vocab_size
        gaps = np.diff(ranks, axis=-1, prepend=-1) - 1
        short = np.minimum(gaps, _LONG).astype(np.uint8)
        long = gaps.astype(id_dtype(self.vocab_size))
        columns = zip(
            split_rows(short, row_splits, present),
            split_rows(long, row_splits, present & (gaps >= _LONG)),
            strict=True,
        )
        return named(
            (TOPK_IDS, TOPK_LOGITS, TOPK_RANGES),
            (_compress(one + rest) for one, rest in columns),
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
        parts = [self._read(*pair) for pair in zip(examples, num_positions, strict=True)]
        return self._unpack(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def errors(self, logits: np.ndarray) -> np.ndarray:
        """See `TopKCodec.errors`: half a step of the row's range, which float16 has rounded."""
        known = logits > _NO_MASS_LOGIT
        ranges = np.where(known, -logits, np.float32(0.0)).max(axis=-1, keepdims=True, initial=0.0)
        errors = ranges * np.float32(self.steps.half_step + _RANGE_ROUNDING) + _SMALLEST
        return np.where(known, errors, np.float32(np.inf))

    def _read(self, features: Mapping[str, bytes], num_positions: int) -> tuple[np.ndarray, ...]:
        """Returns what `_unpack` takes, of one record."""
        counts = self.counts(features, num_positions)
        total, dtype = int(counts.sum()), id_dtype(self.vocab_size)
        payload = _decompress(features[TOPK_IDS], total * (1 + dtype.itemsize))
        gaps, long = payload[:total], np.frombuffer(payload[total:], dtype)
        steps = _decompress(features[TOPK_LOGITS], total)
        for part in (gaps, steps):
            self.expect_ids(len(part), counts)
        num_long = gaps.count(_LONG)
        if num_long != len(long):
            raise ValueError(f"expected {num_long} long gaps of ranks, received {len(long)}")
        ranges = arrays.decode(_RANGES, features[TOPK_RANGES], vocab_size=0)
        # Not a number is no number of at least 0.
        if len(ranges) != num_positions or not ((ranges >= 0) & np.isfinite(ranges)).all():
            expected = f"expected {num_positions} ranges of at least 0"
            raise ValueError(f"{expected}, received {shown(ranges.tolist())}")
        return np.frombuffer(gaps, np.uint8), long, np.frombuffer(steps, np.uint8), ranges, counts

    def _unpack(
        self,
        gaps: np.ndarray,
        long: np.ndarray,
        steps: np.ndarray,
        ranges: np.ndarray,
        counts: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unpacks what is stored of R positions: ids int32 and logits float32, [R, K].

        `gaps` and `steps` are uint8 [n], row after row, `long` the gaps that are 255 there,
        `ranges` float16 [R]; `counts` int [R] are the ids of each row.
        """
        ranks, bits = self._unpack_ranks(gaps, long, counts), self._rank_bits
        # The step and the rank in one number: sorting numbers is faster than finding an
        # order, and of equal steps the first rank stays first. In place, as fresh memory
        # takes longer to get than all this to compute.
        keys = self.rows(steps.astype(ranks.dtype), counts, _LONG + 1)
        keys <<= bits
        keys |= ranks
        keys.sort(axis=-1)
        ids = self._tokens.take(np.bitwise_and(keys, (1 << bits) - 1, out=ranks))
        keys >>= bits
        absent = keys > _LONG
        logits = self.steps.decode(np.minimum(keys, _LONG, out=keys), ranges)
        ids[absent], logits[absent] = NO_ID, NO_ID_LOGIT
        return ids, logits

    def _unpack_ranks(self, gaps: np.ndarray, long: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Returns ascending ranks, int [R, K] with room for a step; 0 where there is no id."""
        gaps = gaps.astype(self._key_dtype)
        columns = np.arange(self.truncation_factor, dtype=gaps.dtype)
        gaps[gaps == _LONG] = long
        # Before sums, that they may not overflow.
        fits = gaps.min(initial=0) >= 0 and gaps.max(initial=0) < self.vocab_size
        ranks = self.rows(gaps, counts, 0)
        np.cumsum(ranks, axis=-1, dtype=ranks.dtype, out=ranks)
        ranks += columns
        if self.variable:
            ranks[columns >= counts[:, np.newaxis]] = 0
        if not fits or ranks.max(initial=0) >= self.vocab_size:
            raise ValueError(f"expected ranks of {self.vocab_size} tokens, received others")
        return ranks
