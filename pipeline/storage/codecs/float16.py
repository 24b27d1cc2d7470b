"""The uncompressed codec of the top-k: ids as integers, logits in float16."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from data_specs.records import TOPK_FEATURES, TOPK_IDS, TOPK_LOGITS, Feature
from pipeline.storage import arrays
from pipeline.storage.codecs.base import (
    NO_ID,
    NO_ID_LOGIT,
    TopKCodec,
    features_by_record,
    split_rows,
)

_IDS, _LOGITS = TOPK_FEATURES["float16"]
# The lowest finite float16. A logit this far below the largest has no mass.
_FLOAT16_LOWEST = np.float32(-65504.0)
# The relative and the absolute rounding error of float16.
_ROUNDING = np.float32(2.0**-11)
_SMALLEST = np.float32(2.0**-25)


@dataclasses.dataclass(frozen=True)
class Float16Codec(TopKCodec):
    """Ids in the smallest dtype for the vocabulary, logits in float16.

    An id with its logit takes 4 bytes if ids take 2. Each logit is stored relative to the
    position's largest, so that float16 is most precise for probable tokens. A probability p
    relative to the largest is wrong by a factor of at most about exp(2^-11 · |log p|).
    """

    stored: ClassVar[tuple[Feature, ...]] = (_IDS, _LOGITS)

    def _encode(
        self, ids: np.ndarray, shifted: np.ndarray, present: np.ndarray, row_splits: np.ndarray
    ) -> list[dict[str, bytes]]:
        logits = np.maximum(shifted, _FLOAT16_LOWEST).astype("<f2")
        ids = ids.astype(_IDS.numpy_dtype(self.vocab_size))
        columns = (split_rows(values, row_splits, present) for values in (ids, logits))
        return features_by_record((TOPK_IDS, TOPK_LOGITS), *columns)

    def decode(
        self, features: Mapping[str, bytes], num_positions: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unpacks one record; see `TopKCodec.decode`."""
        ids, logits = (
            arrays.decode(feature, features[feature.name], self.vocab_size)
            for feature in self.stored
        )
        counts = self.counts(features, num_positions)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise ValueError(
                f"{TOPK_IDS}: expected ids from 0 to {self.vocab_size - 1}, received ids from "
                f"{ids.min()} to {ids.max()}"
            )
        return (
            self.rows(ids.astype(np.int32), counts, NO_ID),
            self.rows(logits.astype(np.float32), counts, NO_ID_LOGIT),
        )

    def errors(self, logits: np.ndarray) -> np.ndarray:
        """See `TopKCodec.errors`."""
        errors = np.abs(logits) * _ROUNDING + _SMALLEST
        return np.where(logits > _FLOAT16_LOWEST, errors, np.float32(np.inf))

    def decode_tensors(
        self, tf: Any, features: dict[str, Any], num_positions: Any, max_positions: int
    ) -> tuple[Any, Any]:
        """Unpacks a batch of records; see `TopKCodec.decode_tensors`."""
        if self.variable:
            return super().decode_tensors(tf, features, num_positions, max_positions)
        sizes = {"P": max_positions, "K": self.truncation_factor}
        ids, logits = (
            arrays.padded_tensor(tf, feature, features[feature.name], self.vocab_size, sizes)
            for feature in self.stored
        )
        return tf.cast(ids, tf.int32), tf.cast(logits, tf.float32)
