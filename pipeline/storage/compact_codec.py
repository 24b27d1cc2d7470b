"""The smallest codec: ids by frequency, as gaps; logits as steps; both compressed."""

import dataclasses
import functools
import itertools
import zlib
from typing import Any, ClassVar

import numpy as np

from data_specs.records import (
    TOPK_FEATURES,
    TOPK_IDS,
    TOPK_LOGITS,
    TOPK_RANGES,
    Feature,
    id_dtype,
)
from pipeline.storage import logit_steps
from pipeline.storage.logit_steps import LogitSteps
from pipeline.storage.topk_codec import NO_ID, NO_ID_LOGIT, TopKCodec, joined

# A gap of at least this is written behind the others.
_LONG = 255


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
    """About 1.5 bytes an id and its logit.

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

    def _encode(
        self, ids: np.ndarray, shifted: np.ndarray, present: np.ndarray, row_splits: np.ndarray
    ) -> list[dict[str, bytes]]:
        steps, ranges = self.steps.encode(shifted, present)
        # What is not there comes last.
        ranks = np.where(present, self._ranks[ids], self.vocab_size)
        order = np.argsort(ranks, axis=-1, kind="stable")
        ranks, steps, present = (
            np.take_along_axis(values, order, axis=-1) for values in (ranks, steps, present)
        )
        gaps = np.diff(ranks, axis=-1, prepend=-1) - 1
        short = np.minimum(gaps, _LONG).astype(np.uint8)
        splits = present, row_splits
        long = logit_steps.split_rows(
            gaps.astype(id_dtype(self.vocab_size)), present & (gaps >= _LONG), row_splits
        )
        parts = zip(
            logit_steps.split_rows(short, *splits),
            long,
            logit_steps.split_rows(steps, *splits),
            itertools.pairwise(row_splits),
            strict=True,
        )
        return [
            {
                TOPK_IDS: _compress(one + rest),
                TOPK_LOGITS: _compress(numbers),
                TOPK_RANGES: ranges[start:end].tobytes(),
            }
            for one, rest, numbers, (start, end) in parts
        ]

    def decode(
        self, features: dict[str, bytes], num_positions: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unpacks one record; see `TopKCodec.decode`."""
        counts = self.counts(features, num_positions)
        total = int(counts.sum())
        steps = np.frombuffer(_decompress(features[TOPK_LOGITS], total), np.uint8)
        steps = self.rows(steps.astype(np.int64), counts, _LONG + 1)
        ranges = logit_steps.read_ranges(features[TOPK_RANGES], num_positions)
        ids = self._decode_ids(features[TOPK_IDS], counts)
        # Stable: equal steps stay in the order of their ranks.
        order = np.argsort(steps, axis=-1, kind="stable")
        steps = np.take_along_axis(steps, order, axis=-1)
        logits = self.steps.decode(np.minimum(steps, _LONG), ranges)
        return (
            np.take_along_axis(ids, order, axis=-1),
            np.where(steps > _LONG, np.float32(NO_ID_LOGIT), logits),
        )

    def _decode_ids(self, content: bytes, counts: np.ndarray) -> np.ndarray:
        """Returns ids, int32 [P, K], in the order of their ranks."""
        total, dtype = int(counts.sum()), id_dtype(self.vocab_size)
        payload = _decompress(content, total * (1 + dtype.itemsize))
        gaps = np.frombuffer(payload[:total], np.uint8).astype(np.int64)
        long = np.frombuffer(payload[total:], dtype)
        if len(long) != (gaps == _LONG).sum():
            raise ValueError(
                f"expected {(gaps == _LONG).sum()} long gaps of ranks, received {len(long)}"
            )
        gaps[gaps == _LONG] = long
        gaps = self.rows(gaps, counts, 0)
        ranks = np.cumsum(gaps + 1, axis=-1) - 1
        present = np.arange(self.truncation_factor) < counts[:, np.newaxis]
        if (gaps < 0).any() or (ranks[present] >= self.vocab_size).any():
            raise ValueError(f"expected ranks of {self.vocab_size} tokens, received others")
        return np.where(present, self._tokens[np.where(present, ranks, 0)], np.int32(NO_ID))

    def decode_tensors(self, tf: Any, features: dict[str, Any], max_positions: int) -> Any:
        """Unpacks a batch of records; see `TopKCodec.decode_tensors`."""
        width = self.truncation_factor
        if self.variable:
            counts = self.tensor_counts(tf, features, max_positions)
        else:
            real = tf.strings.length(features[TOPK_RANGES]) // 2
            counts = tf.sequence_mask(real, max_positions, dtype=tf.int32) * width
        # Padding costs nothing: all work is on the rows of real positions.
        present = self.present_tensor(tf, counts)
        gaps = self.tensor_rows(tf, self._tensor_gaps(tf, features, counts), counts)
        ranks = tf.cumsum(gaps + 1, axis=-1) - 1
        ids = tf.gather(tf.constant(self._tokens), tf.where(present, ranks, 0))
        steps = tf.io.decode_compressed(features[TOPK_LOGITS], "ZLIB")
        steps = self.tensor_rows(tf, tf.cast(joined(tf, steps, "|u1"), tf.int32), counts)
        # The step and its column in one number: sorting numbers is faster than finding an
        # order, and of equal steps the first column stays first.
        keys = tf.where(present, steps, _LONG + 1) * width + tf.range(width)
        keys = -tf.math.top_k(-keys, width).values
        ids = tf.gather(ids, keys % width, batch_dims=1)
        ranges = tf.cast(joined(tf, features[TOPK_RANGES], "<f2"), tf.float32)
        logits = self.steps.decode_tensors(tf, tf.minimum(keys // width, _LONG), ranges)
        return self.spread(tf, ids, logits, counts)

    def _tensor_gaps(self, tf: Any, features: dict[str, Any], counts: Any) -> Any:
        """Returns the gaps of all records, int32 [n], row after row."""
        payload = tf.io.decode_compressed(features[TOPK_IDS], "ZLIB")
        totals = tf.reduce_sum(counts, axis=-1)
        gaps = joined(tf, tf.strings.substr(payload, tf.zeros_like(totals), totals), "|u1")
        gaps = tf.cast(gaps, tf.int32)
        rest = tf.strings.substr(payload, totals, tf.strings.length(payload) - totals)
        long = tf.cast(joined(tf, rest, id_dtype(self.vocab_size)), tf.int32)
        return tf.tensor_scatter_nd_update(gaps, tf.where(gaps == _LONG), long)
