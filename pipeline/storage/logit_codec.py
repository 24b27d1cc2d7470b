"""How the top-k of a distribution is packed into a record, and read back.

Letters as in `data_specs.records`: P masked positions, K top-k, T temperatures.
A codec owns the stored order and packing; everyone else sees ids and logits in
descending order. Encoding is NumPy; decoding is NumPy here and TensorFlow in
`decode_tensors`, which takes the module as an argument so that this file can be
imported without it.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np

from data_specs.records import TOPK_IDS, TOPK_LOGITS, id_dtype

# The smallest finite float16. A logit this far below the largest has no mass.
_FLOAT16_LOWEST = np.float32(-65504.0)


@dataclasses.dataclass(frozen=True)
class Float16Codec:
    """Ids in the vocabulary's dtype, logits in float16: 4 bytes an id and its value.

    Each logit is stored minus the position's largest, where float16 has its
    finest steps for the tokens that matter: a probability p relative to the
    largest is off by at most a factor exp(2^-11 · |log p|) or so.
    """

    vocab_size: int

    def encode(
        self, topk_ids: np.ndarray, topk_logits: np.ndarray, row_splits: np.ndarray
    ) -> list[dict[str, bytes]]:
        """Packs the positions of several records.

        Args:
            topk_ids: int [positions, K], descending by logit.
            topk_logits: float32 [positions, K], on any scale.
            row_splits: int [records + 1], where each record's positions begin.

        Returns:
            for each record its features.
        """
        shifted = topk_logits - topk_logits[:, :1]
        logits = np.maximum(shifted, _FLOAT16_LOWEST).astype("<f2")
        ids = topk_ids.astype(id_dtype(self.vocab_size))
        return [
            {TOPK_IDS: ids[start:end].tobytes(), TOPK_LOGITS: logits[start:end].tobytes()}
            for start, end in itertools.pairwise(row_splits)
        ]

    def decode(
        self, features: dict[str, bytes], num_positions: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unpacks one record.

        Args:
            features: the record's features.
            num_positions: P.

        Returns:
            ids int32 [P, K] and logits float32 [P, K], descending; the first of
            each row is 0.
        """
        ids = np.frombuffer(features[TOPK_IDS], id_dtype(self.vocab_size))
        logits = np.frombuffer(features[TOPK_LOGITS], "<f2")
        return (
            ids.astype(np.int32).reshape(num_positions, -1),
            logits.astype(np.float32).reshape(num_positions, -1),
        )

    def decode_tensors(
        self, tf: Any, features: dict[str, Any], max_positions: int, truncation_factor: int
    ) -> tuple[Any, Any]:
        """Unpacks a batch of records inside a TensorFlow graph.

        Args:
            tf: the TensorFlow module.
            features: each feature as a string tensor [B].
            max_positions: P to pad to; padding is id 0 and logit 0.
            truncation_factor: K.

        Returns:
            ids int32 [B, P, K] and logits float32 [B, P, K].
        """
        shape = (-1, max_positions, truncation_factor)
        count = max_positions * truncation_factor
        dtype = id_dtype(self.vocab_size)
        ids = tf.io.decode_raw(
            features[TOPK_IDS], tf.as_dtype(dtype), fixed_length=count * dtype.itemsize
        )
        # Padded decoding knows no float16: the same bits, read as uint16.
        bits = tf.io.decode_raw(features[TOPK_LOGITS], tf.uint16, fixed_length=count * 2)
        logits = tf.cast(tf.bitcast(bits, tf.float16), tf.float32)
        return tf.reshape(tf.cast(ids, tf.int32), shape), tf.reshape(logits, shape)


# The one place to add a codec: the names that `--logit_encoding` takes.
CODECS = {"float16": Float16Codec}


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
