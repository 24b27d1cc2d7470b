"""How the top-k of a distribution is packed into a record, and read back.

Letters as in `data_specs.records`: P masked positions, K top-k, T temperatures.
A codec owns the stored order and packing; everyone else sees ids and logits in
descending order. Encoding is NumPy; decoding is NumPy here and TensorFlow in
`decode_tensors`, which takes the module as an argument so that this file can be
imported without it.
"""

import dataclasses
import itertools
from collections.abc import Mapping
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
from pipeline.storage.codecs import logit_steps
from pipeline.storage.codecs.base import NO_ID, NO_ID_LOGIT, TopKCodec, joined
from pipeline.storage.codecs.compact import CompactCodec
from pipeline.storage.codecs.logit_steps import LogitSteps, split_rows

# The smallest finite float16. A logit this far below the largest has no mass.
_FLOAT16_LOWEST = np.float32(-65504.0)
# What float16 rounds by: a part of the number, or half of its smallest step.
_ROUNDING = np.float32(2.0**-11)
_SMALLEST = np.float32(2.0**-25)


@dataclasses.dataclass(frozen=True)
class Float16Codec(TopKCodec):
    """Ids in the vocabulary's dtype, logits in float16: 4 bytes an id and its value.

    Each logit is stored minus the position's largest, where float16 has its
    finest steps for the tokens that matter: a probability p relative to the
    largest is off by at most a factor exp(2^-11 · |log p|) or so.
    """

    stored: ClassVar[tuple[Feature, ...]] = TOPK_FEATURES["float16"]

    def _encode(
        self, ids: np.ndarray, shifted: np.ndarray, present: np.ndarray, row_splits: np.ndarray
    ) -> list[dict[str, bytes]]:
        logits = np.maximum(shifted, _FLOAT16_LOWEST).astype("<f2")
        parts = zip(
            split_rows(ids.astype(id_dtype(self.vocab_size)), present, row_splits),
            split_rows(logits, present, row_splits),
            strict=True,
        )
        return [{TOPK_IDS: one, TOPK_LOGITS: two} for one, two in parts]

    def decode(
        self, features: Mapping[str, bytes], num_positions: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unpacks one record; see `TopKCodec.decode`."""
        counts = self.counts(features, num_positions)
        logits = np.frombuffer(features[TOPK_LOGITS], "<f2").astype(np.float32)
        return _plain_ids(self, features, counts), self.rows(logits, counts, NO_ID_LOGIT)

    def errors(self, logits: np.ndarray) -> np.ndarray:
        """See `TopKCodec.errors`."""
        errors = np.abs(logits) * _ROUNDING + _SMALLEST
        return np.where(logits > _FLOAT16_LOWEST, errors, np.float32(np.inf))

    def decode_tensors(self, tf: Any, features: dict[str, Any], max_positions: int) -> Any:
        """Unpacks a batch of records; see `TopKCodec.decode_tensors`."""
        if self.variable:
            counts = self.tensor_counts(tf, features, max_positions)
            ids = joined(tf, features[TOPK_IDS], id_dtype(self.vocab_size))
            ids = self.tensor_rows(tf, tf.cast(ids, tf.int32), counts, NO_ID)
            logits = tf.cast(joined(tf, features[TOPK_LOGITS], "<f2"), tf.float32)
            return ids, self.tensor_rows(tf, logits, counts, NO_ID_LOGIT)
        ids = _padded(self, tf, features[TOPK_IDS], id_dtype(self.vocab_size), max_positions)
        # Padded decoding knows no float16: the same bits, read as uint16.
        bits = _padded(self, tf, features[TOPK_LOGITS], np.dtype("<u2"), max_positions)
        return tf.cast(ids, tf.int32), tf.cast(tf.bitcast(bits, tf.float16), tf.float32)


@dataclasses.dataclass(frozen=True)
class Uint8Codec(TopKCodec):
    """Ids in the vocabulary's dtype, logits in a byte: 3 bytes an id and its value.

    A logit is one of 254 steps of the position's range; see `LogitSteps`.
    """

    stored: ClassVar[tuple[Feature, ...]] = TOPK_FEATURES["uint8"]
    steps: ClassVar[LogitSteps] = LogitSteps(bend=1.0, last=254)

    def _encode(
        self, ids: np.ndarray, shifted: np.ndarray, present: np.ndarray, row_splits: np.ndarray
    ) -> list[dict[str, bytes]]:
        steps, ranges = self.steps.encode(shifted, present)
        parts = zip(
            split_rows(ids.astype(id_dtype(self.vocab_size)), present, row_splits),
            split_rows(steps, present, row_splits),
            itertools.pairwise(row_splits),
            strict=True,
        )
        return [
            {TOPK_IDS: one, TOPK_LOGITS: two, TOPK_RANGES: ranges[start:end].tobytes()}
            for one, two, (start, end) in parts
        ]

    def decode(
        self, features: Mapping[str, bytes], num_positions: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unpacks one record; see `TopKCodec.decode`."""
        counts = self.counts(features, num_positions)
        ranges = logit_steps.read_ranges(features[TOPK_RANGES], num_positions)
        steps = self.rows(np.frombuffer(features[TOPK_LOGITS], np.uint8), counts, 0)
        ids = _plain_ids(self, features, counts)
        logits = self.steps.decode(steps, ranges)
        return ids, np.where(ids == NO_ID, np.float32(NO_ID_LOGIT), logits)

    def errors(self, logits: np.ndarray) -> np.ndarray:
        """See `TopKCodec.errors`."""
        return self.steps.errors(logits)

    def decode_tensors(self, tf: Any, features: dict[str, Any], max_positions: int) -> Any:
        """Unpacks a batch of records; see `TopKCodec.decode_tensors`."""
        # Padded decoding knows no float16: the same bits, read as uint16.
        bits = tf.io.decode_raw(features[TOPK_RANGES], tf.uint16, fixed_length=max_positions * 2)
        ranges = tf.bitcast(bits, tf.float16)
        if self.variable:
            counts = self.tensor_counts(tf, features, max_positions)
            ids = joined(tf, features[TOPK_IDS], id_dtype(self.vocab_size))
            ids = self.tensor_rows(tf, tf.cast(ids, tf.int32), counts, NO_ID)
            steps = self.tensor_rows(tf, joined(tf, features[TOPK_LOGITS], "|u1"), counts, 0)
            logits = self.steps.decode_tensors(tf, steps, ranges)
            return ids, tf.where(ids == NO_ID, NO_ID_LOGIT, logits)
        ids = _padded(self, tf, features[TOPK_IDS], id_dtype(self.vocab_size), max_positions)
        steps = _padded(self, tf, features[TOPK_LOGITS], np.dtype("|u1"), max_positions)
        return tf.cast(ids, tf.int32), self.steps.decode_tensors(tf, steps, ranges)


def _plain_ids(codec: TopKCodec, features: Mapping[str, bytes], counts: np.ndarray) -> np.ndarray:
    """Returns ids, int32 [P, K], that are stored as they are."""
    ids = np.frombuffer(features[TOPK_IDS], id_dtype(codec.vocab_size)).astype(np.int32)
    if len(ids) and not 0 <= ids.min() <= ids.max() < codec.vocab_size:
        raise ValueError(
            f"{TOPK_IDS}: expected ids of {codec.vocab_size} tokens, "
            f"received some from {ids.min()} to {ids.max()}"
        )
    return codec.rows(ids, counts, NO_ID)


def _padded(codec: TopKCodec, tf: Any, content: Any, dtype: np.dtype, max_positions: int) -> Any:
    """Returns the rows of a batch where each has K values: [B, P, K], 0 at padding."""
    width = codec.truncation_factor
    length = max_positions * width * dtype.itemsize
    values = tf.io.decode_raw(content, tf.as_dtype(dtype), fixed_length=length)
    return tf.reshape(values, (-1, max_positions, width))


# The one place to add a codec: the names that `--logit_encoding` takes.
CODECS: dict[str, type[TopKCodec]] = {
    "float16": Float16Codec,
    "uint8": Uint8Codec,
    "compact": CompactCodec,
}


def topk_probabilities(
    topk_logits: np.ndarray, log_tail_masses: np.ndarray, temperature: float, *, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the teacher's probabilities of the first k ids, and the mass of the rest.

    p_T = (1 − tail_T) · softmax_K(logits / T); a k below K is a prefix whose
    dropped mass joins the tail.

    Args:
        topk_logits: float [..., K], decoded, descending.
        log_tail_masses: float [...], the log of the tail's mass at `temperature`.
        temperature: T, a cached one.
        k: how many ids to keep, at most K.

    Returns:
        probabilities float64 [..., k] and tail float64 [...]; they sum to 1.
    """
    scaled = topk_logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    tail = np.exp(log_tail_masses.astype(np.float64))
    kept = (1.0 - tail)[..., None] * weights / weights.sum(axis=-1, keepdims=True)
    return kept[..., :k], tail + kept[..., k:].sum(axis=-1)
