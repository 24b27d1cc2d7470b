"""Unmasked windows masked while they are read, anew each epoch.

A window's masks depend on the run's seed, its example id and the epoch alone:
not on the batch it is in, nor on where a run was interrupted.
"""

import math
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from data_specs import records
from pipeline.base import seeding
from pipeline.base.errors import InputError
from pipeline.masking import masks, windows
from pipeline.storage import arrays, cache_tokenizer, token_counts
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.manifest import MANIFEST_FILE

# Whose masks are drawn: two purposes never share random numbers.
TRAINING = "mask"
EVALUATION = "eval mask"

_STORED = tuple(feature.name for feature in records.UNMASKED_WINDOW_FEATURES)
_NAMES = (
    records.INPUT_IDS,
    records.SEGMENT_LENGTHS,
    records.MASKED_LM_POSITIONS,
    records.MASKED_LM_IDS,
)


def _setting(cache: CacheInput, name: str) -> float:
    value = cache.manifest.flags.get(name)
    if not isinstance(value, int | float) or not 0.0 <= value < math.inf:
        raise InputError(cache.directory / MANIFEST_FILE, f"a number for {name}", f"{value!r}")
    return float(value)


class WindowReader:
    """Masks records of unmasked windows, by the settings of their manifest.

    Args:
        cache: a directory of unmasked windows.
        seed: decides the masks.
        purpose: `TRAINING` or `EVALUATION`.

    Raises:
        InputError: the directory's tokenizer, token counts or settings are not as they
            must be.
    """

    def __init__(self, cache: CacheInput, *, seed: int, purpose: str) -> None:
        manifest = cache.manifest
        tokenizer = cache_tokenizer.load_cache_tokenizer(cache)
        self._is_special = tokenizer.is_special()
        self._policy = masks.masking_policy(
            tokenizer,
            masked_lm_prob=_setting(cache, "masked_lm_prob"),
            max_predictions_per_seq=manifest.max_predictions_per_seq,
        )
        smoothing = _setting(cache, "mask_smoothing")
        self._token_weights = None
        if smoothing:
            counts = token_counts.load_counts(cache.directory, manifest)
            self._token_weights = masks.token_weights(counts, smoothing)
        self._seed, self._purpose = seed, purpose
        self._vocab_size = manifest.vocab.size
        positions = manifest.max_predictions_per_seq
        self._widths = dict(
            zip(_NAMES, (manifest.max_seq_length, 2, positions, positions), strict=True)
        )

    def _mask_rows(self, epochs: np.ndarray, *features: np.ndarray) -> tuple[np.ndarray, ...]:
        """Returns a batch as arrays in the order of `_NAMES`, then the weights.

        Args:
            epochs: int64 [B].
            *features: bytes [B], in the order of `_STORED`.
        """
        columns = [values.tolist() for values in features]
        batch = windows.decode_windows(columns, self._vocab_size)
        keys = zip(columns[0], epochs.tolist(), strict=True)
        masked = masks.mask_windows(
            batch,
            self._policy,
            self._is_special,
            seeding.streams(self._seed, self._purpose, keys),
            token_weights=self._token_weights,
        )
        length, num_positions = self._widths[records.INPUT_IDS], self._widths[records.MASKED_LM_IDS]
        real = np.arange(num_positions) < masked.counts[:, np.newaxis]
        return (
            windows.pad_rows(masked.input_ids, batch.lengths, length),
            batch.segment_lengths,
            windows.pad_rows(masked.positions, masked.counts, num_positions),
            windows.pad_rows(masked.labels, masked.counts, num_positions),
            real.astype(np.float32),
        )

    def parse_batch(self, serialized: tf.Tensor, epochs: tf.Tensor) -> Mapping[str, tf.Tensor]:
        """Decodes and masks a batch of records, to padded tensors.

        Args:
            serialized: string [B].
            epochs: int64 [B].

        Returns:
            what `pipeline.storage.reader.parse_batch` returns of masked examples.
        """
        parsed = arrays.parse_tensors(tf, serialized, _STORED)
        features = [parsed[name] for name in _STORED]
        types = [tf.int32] * len(_NAMES) + [tf.float32]
        values = tf.numpy_function(self._mask_rows, [epochs, *features], types, stateful=False)
        batch = dict(zip((*_NAMES, records.MASKED_LM_WEIGHTS), values, strict=True))
        widths = {**self._widths, records.MASKED_LM_WEIGHTS: self._widths[records.MASKED_LM_IDS]}
        for name, value in batch.items():
            value.set_shape([serialized.shape[0], widths[name]])
        return batch
