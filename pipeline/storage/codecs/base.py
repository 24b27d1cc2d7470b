"""Base classes of codecs: of all targets, of the top-k, and of arrays.

Letters as in `data_specs.records`: P masked positions, K top-k. If the number of ids varies, a
record holds the ids of all rows without padding, and the number of ids of each row. A decoded
row is padded with `NO_ID`.
"""

import abc
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from data_specs.records import (
    TOPK_COUNTS,
    TOPK_COUNTS_FEATURE,
    TOPK_IDS,
    TOPK_LOGITS,
    Feature,
)
from pipeline.base.json_text import format_value
from pipeline.storage import arrays

# The id at the padding of a row, and for a token that is not in a student's vocabulary.
NO_ID = -1
# A record has at most 256 MiB, and an id with its logit in float16 takes 4 bytes. The limit
# protects against compressed bytes that claim to hold more.
MAX_RECORD_IDS = 2**26
# The logit of `NO_ID`: finite, and without mass at any temperature.
NO_ID_LOGIT = -1e30


class TargetCodec(abc.ABC):
    """Reads the teacher's distributions at masked positions from features of a record.

    Attributes:
        vocab_size: V.
        truncation_factor: K, the number of ids of a decoded position, or the maximum if it
            varies.
        needs_token_counts: whether it needs the count of each token in the text.
        compresses: whether records of equal shape may differ in size.
        environment: versions of libraries, by name, that the bytes depend on besides the
            settings.
    """

    vocab_size: int
    truncation_factor: int

    needs_token_counts: ClassVar[bool] = False
    compresses: ClassVar[bool] = False
    environment: ClassVar[Mapping[str, str]] = {}

    @abc.abstractmethod
    def decode(
        self, features: Mapping[str, bytes], num_positions: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unpacks the P masked positions of one record.

        Returns:
            ids int32 [P, K] and logits float32 [P, K], descending; the first logit of each
            row is 0. A row of fewer ids is padded with `NO_ID` and `NO_ID_LOGIT`.

        Raises:
            KeyError: a feature is missing.
            ValueError: a feature is malformed.
        """

    @abc.abstractmethod
    def target_tensors(
        self, tf: Any, features: dict[str, Any], num_positions: Any, max_positions: int
    ) -> dict[str, Any]:
        """Unpacks a batch of records inside a TensorFlow graph, as training steps need it.

        Args:
            tf: the TensorFlow module.
            features: each feature as a string tensor [B].
            num_positions: int [B], P of each record.
            max_positions: P to pad to.

        Returns:
            the targets of the losses, [B, P, …] each, under the names of
            `data_specs.records`.
        """


@dataclasses.dataclass(frozen=True)
class TopKCodec(TargetCodec):
    """Packs ids and logits of masked positions into features of a record.

    Attributes:
        vocab_size: V.
        truncation_factor: K, the number of ids at a position, or the maximum if it varies.
        variable: whether positions may have fewer than K ids.
        token_counts: int64 [V], the count of each token in the text, for codecs that give
            frequent tokens small numbers; otherwise None.
        stored: the features that it writes, except the counts of a variable number of ids.
    """

    vocab_size: int
    truncation_factor: int
    variable: bool = False
    token_counts: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)

    stored: ClassVar[tuple[Feature, ...]]

    def __post_init__(self) -> None:
        if self.needs_token_counts and self.token_counts is None:
            raise ValueError("token_counts: expected the counts of all tokens, received none")

    def encode(
        self, topk_ids: np.ndarray, topk_logits: np.ndarray, row_splits: np.ndarray
    ) -> list[dict[str, bytes]]:
        """Packs the positions of several records.

        Args:
            topk_ids: int [positions, K], descending by logit; if `variable`, a row may be
                padded with `NO_ID`.
            topk_logits: float32 [positions, K], on any scale.
            row_splits: int [records + 1], the boundaries of the records' positions.

        Returns:
            the features of each record.

        Raises:
            ValueError: a row has no id, or fewer than K ids although `variable` is false.
        """
        present = topk_ids >= 0
        if not present[:, : 1 if self.variable else None].all():
            least = 1 if self.variable else self.truncation_factor
            raise ValueError(f"topk_ids: expected at least {least} at each position")
        packed = self._encode(topk_ids, topk_logits - topk_logits[:, :1], present, row_splits)
        if self.variable:
            counts = split_rows(present.sum(axis=-1).astype("<u2"), row_splits)
            for features, content in zip(packed, counts, strict=True):
                features[TOPK_COUNTS] = content
        return packed

    @abc.abstractmethod
    def _encode(
        self, ids: np.ndarray, shifted: np.ndarray, present: np.ndarray, row_splits: np.ndarray
    ) -> list[dict[str, bytes]]:
        """Packs logits relative to the largest of their row; `present` is bool [positions, K]."""

    @abc.abstractmethod
    def errors(self, logits: np.ndarray) -> np.ndarray:
        """Returns the maximum absolute error of decoded logits, float32 [positions, K].

        The error is infinite if the codec stored only that a token has no mass.

        Args:
            logits: float32 [positions, K], as `decode` returns them.
        """

    def decode_records(
        self, examples: Sequence[Mapping[str, bytes]], num_positions: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unpacks several records at once, which is faster than one by one.

        The number of values in each record must fit its number of positions. Ids and logits are
        as `decode` returns them, concatenated over the records.

        Raises:
            KeyError: a feature is missing.
            ValueError: a feature is malformed.
        """
        joined = {name: b"".join([features[name] for features in examples]) for name in self._names}
        return self.decode(joined, sum(num_positions))

    @property
    def _names(self) -> list[str]:
        names = [feature.name for feature in self.stored]
        return [*names, TOPK_COUNTS] if self.variable else names

    def target_tensors(
        self, tf: Any, features: dict[str, Any], num_positions: Any, max_positions: int
    ) -> dict[str, Any]:
        """See `TargetCodec.target_tensors`: `topk_ids` and `topk_logits`."""
        ids, logits = self.decode_tensors(tf, features, num_positions, max_positions)
        return {TOPK_IDS: ids, TOPK_LOGITS: logits}

    def decode_tensors(
        self, tf: Any, features: dict[str, Any], num_positions: Any, max_positions: int
    ) -> tuple[Any, Any]:
        """Unpacks a batch of records inside a TensorFlow graph.

        NumPy unpacks them, which is faster than TensorFlow's ragged operations. A malformed
        record raises `InvalidArgumentError`.

        Args:
            tf: the TensorFlow module.
            features: each feature as a string tensor [B].
            num_positions: int [B], P of each record.
            max_positions: P to pad to; padding is id 0 and logit 0.

        Returns:
            ids int32 [B, P, K] and logits float32 [B, P, K], as `decode` returns them.
        """

        def unpack(counts: np.ndarray, *columns: np.ndarray) -> list[np.ndarray]:
            decoded = self.decode_records(
                features_by_record(self._names, *columns), counts.tolist()
            )
            is_real = np.arange(max_positions) < counts[:, np.newaxis]
            batch = [np.zeros((*is_real.shape, rows.shape[-1]), rows.dtype) for rows in decoded]
            for padded, rows in zip(batch, decoded, strict=True):
                padded[is_real] = rows
            return batch

        inputs = [num_positions, *(features[name] for name in self._names)]
        unpacked = tf.numpy_function(unpack, inputs, [tf.int32, tf.float32], stateful=False)
        shape = [None, max_positions, self.truncation_factor]
        return tuple(tf.ensure_shape(tensor, shape) for tensor in unpacked)

    def counts(self, features: Mapping[str, bytes], num_positions: int) -> np.ndarray:
        """Returns the number of ids at each position of a record, int64 [P].

        Raises:
            ValueError: the counts are not P numbers from 1 to K, or exceed the limit of a record.
        """
        if num_positions * self.truncation_factor > MAX_RECORD_IDS:
            expected = f"expected at most {MAX_RECORD_IDS} ids in a record"
            received = f"{num_positions} positions of {self.truncation_factor}"
            raise ValueError(f"{expected}, received {received}")
        if not self.variable:
            return np.full(num_positions, self.truncation_factor, np.int64)
        counts = arrays.decode(TOPK_COUNTS_FEATURE, features[TOPK_COUNTS], self.vocab_size)
        counts = counts.astype(np.int64)
        fits = (counts >= 1) & (counts <= self.truncation_factor)
        if len(counts) != num_positions or not fits.all():
            expected = f"expected {num_positions} numbers from 1 to {self.truncation_factor}"
            raise ValueError(f"{TOPK_COUNTS}: {expected}, received {format_value(counts.tolist())}")
        return counts

    def rows(self, flat: np.ndarray, counts: np.ndarray, fill: float) -> np.ndarray:
        """Splits the values of a record into padded rows.

        Args:
            flat: [n], the values of all rows, concatenated.
            counts: int [P], the number of values of each row.
            fill: the value of the padding.

        Returns:
            [P, K] of the dtype of `flat`.

        Raises:
            ValueError: n is not the sum of the counts.

        Example: for [5, 3, 8], the counts [1, 2], K = 2 and the fill −1, the rows are [5, −1]
        and [3, 8].
        """
        self.expect_ids(len(flat), counts)
        if not self.variable:
            return flat.reshape(-1, self.truncation_factor)
        rows = np.full((len(counts), self.truncation_factor), fill, flat.dtype)
        rows[np.arange(self.truncation_factor) < counts[:, np.newaxis]] = flat
        return rows

    def expect_ids(self, received: int, counts: np.ndarray) -> None:
        """Raises ValueError unless the number of ids equals the sum of the rows' counts."""
        if received != counts.sum():
            each = "" if self.variable else f", {self.truncation_factor} at each position"
            raise ValueError(f"expected a top-k of {counts.sum()} ids{each}, received {received}")


class ArrayCodec(abc.ABC):
    """Packs an array of numbers at each masked position into features of a record.

    Attributes:
        stored: the features that it writes.
    """

    stored: ClassVar[tuple[Feature, ...]]

    @abc.abstractmethod
    def _pack(self, values: np.ndarray) -> tuple[np.ndarray, ...]:
        """Returns the arrays of `stored` for float32 [positions, …]."""

    @abc.abstractmethod
    def _unpack(self, xp: Any, *stored: Any) -> Any:
        """Returns the unpacked numbers, float32; `xp` is NumPy or TensorFlow."""

    @abc.abstractmethod
    def _sizes(self, positions: int) -> dict[str, int]:
        """Returns the sizes of the letters in the shapes of `stored`."""

    def encode(self, values: np.ndarray, row_splits: np.ndarray) -> list[dict[str, bytes]]:
        """Packs the positions of several records.

        Args:
            values: float32 [positions, …].
            row_splits: int [records + 1], the boundaries of the records' positions.

        Returns:
            the features of each record.
        """
        columns = (split_rows(packed, row_splits) for packed in self._pack(values))
        return features_by_record((feature.name for feature in self.stored), *columns)

    def decode(self, features: Mapping[str, bytes], num_positions: int) -> np.ndarray:
        """Unpacks one record: float32 [P, …].

        Raises:
            KeyError: a feature is missing.
            ValueError: a feature is malformed.
        """
        sizes, stored = self._sizes(num_positions), []
        for feature in self.stored:
            values = arrays.decode(feature, features[feature.name], vocab_size=0)
            shape = [sizes[letter] for letter in feature.shape]
            stored.append(values.reshape(shape).astype(np.float32))
        return self._unpack(np, *stored)

    def decode_tensors(self, tf: Any, features: dict[str, Any], max_positions: int) -> Any:
        """Unpacks a batch of records inside a TensorFlow graph.

        Args:
            tf: the TensorFlow module.
            features: each feature as a string tensor [B].
            max_positions: P to pad to; padding is 0.

        Returns:
            float32 [B, P, …].
        """
        sizes = self._sizes(max_positions)
        tensors = (
            arrays.padded_tensor(tf, feature, features[feature.name], 0, sizes)
            for feature in self.stored
        )
        return self._unpack(tf, *(tf.cast(tensor, tf.float32) for tensor in tensors))


def features_by_record(names: Iterable[str], *columns: Iterable[bytes]) -> list[dict[str, bytes]]:
    """Returns the features of each record; a column holds one feature of all records."""
    names = tuple(names)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def split_rows(
    values: np.ndarray, row_splits: np.ndarray, present: np.ndarray | None = None
) -> list[bytes]:
    """Returns the bytes of each record's values, row by row.

    Args:
        values: [positions, …].
        row_splits: int [records + 1], the boundaries of the records' positions.
        present: bool [positions, K], true for the values to include; None for all.
    """
    bounds = itertools.pairwise(row_splits)
    if present is None or present.all():
        return [values[start:end].tobytes() for start, end in bounds]
    return [values[start:end][present[start:end]].tobytes() for start, end in bounds]
