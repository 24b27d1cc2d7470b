"""The plain codec: ids as numbers, logits in float16."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from data_specs.records import TOPK_FEATURES, TOPK_IDS, TOPK_LOGITS, Feature
from pipeline.storage import arrays
from pipeline.storage.codecs.base import NO_ID, NO_ID_LOGIT, TopKCodec, split_rows

_IDS, _LOGITS = TOPK_FEATURES["float16"]
# The smallest finite float16. A logit this far below the largest has no mass.
_FLOAT16_LOWEST = np.float32(-65504.0)
# The rounding of float16: a part of the number, or half of its smallest step.
_ROUNDING = np.float32(2.0**-11)
_SMALLEST = np.float32(2.0**-25)


@dataclasses.dataclass(frozen=True)
class Float16Codec(TopKCodec):
    """Ids in the vocabulary's dtype, logits in float16: 4 bytes an id and its value.

    Each logit is stored minus the position's largest, where float16 has its
    finest steps for the tokens that matter: a probability p relative to the
    largest is off by at most a factor exp(2^-11 · |log p|) or so.
    """

    stored: ClassVar[tuple[Feature, ...]] = (_IDS, _LOGITS)

    def _encode(
        self, ids: np.ndarray, shifted: np.ndarray, present: np.ndarray, row_splits: np.ndarray
    ) -> list[dict[str, bytes]]:
        logits = np.maximum(shifted, _FLOAT16_LOWEST).astype("<f2")
        columns = zip(
            split_rows(ids.astype(_IDS.numpy_dtype(self.vocab_size)), present, row_splits),
            split_rows(logits, present, row_splits),
            strict=True,
        )
        return [{TOPK_IDS: one, TOPK_LOGITS: two} for one, two in columns]

    def decode(
        self, features: Mapping[str, bytes], num_positions: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unpacks one record; see `TopKCodec.decode`."""
        counts = self.counts(features, num_positions)
        ids = arrays.decode(_IDS, features[TOPK_IDS], self.vocab_size).astype(np.int32)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise ValueError(
                f"{TOPK_IDS}: expected ids of {self.vocab_size} tokens, "
                f"received some from {ids.min()} to {ids.max()}"
            )
        logits = arrays.decode(_LOGITS, features[TOPK_LOGITS], self.vocab_size).astype(np.float32)
        return self.rows(ids, counts, NO_ID), self.rows(logits, counts, NO_ID_LOGIT)

    def errors(self, logits: np.ndarray) -> np.ndarray:
        """See `TopKCodec.errors`."""
        errors = np.abs(logits) * _ROUNDING + _SMALLEST
        return np.where(logits > _FLOAT16_LOWEST, errors, np.float32(np.inf))

    def decode_tensors(self, tf: Any, features: dict[str, Any], max_positions: int) -> Any:
        """Unpacks a batch of records; see `TopKCodec.decode_tensors`."""
        counts = self.tensor_counts(tf, features, max_positions) if self.variable else None
        sizes = {"P": max_positions, "K": self.truncation_factor}

        def rows(feature: Feature, dtype: Any, fill: float) -> Any:
            content = features[feature.name]
            if not self.variable:
                padded = arrays.padded_tensor(tf, feature, content, self.vocab_size, sizes)
                return tf.cast(padded, dtype)
            flat = arrays.joined_tensor(tf, content, feature.numpy_dtype(self.vocab_size))
            return self.tensor_rows(tf, tf.cast(flat, dtype), counts, fill)

        return rows(_IDS, tf.int32, NO_ID), rows(_LOGITS, tf.float32, NO_ID_LOGIT)
