"""Reading a cache with a student that knows only some of its tokens.

A token that the student lacks is read as [UNK]; as a label it counts for no loss;
and what the teacher gave it joins the tail:

    tail'_T = tail_T + (1 − tail_T) · removed_T

with removed_T the share of softmax_K(logits / T) on ids that the student lacks, so
that p'_T = (1 − tail'_T) · softmax(kept logits / T) is exactly the old p_T.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.storage.codecs.base import NO_ID, NO_ID_LOGIT
from pipeline.storage.manifest import Manifest
from pipeline.tokenizers.vocabulary import VocabInfo

# What the teacher must at least give to the kept ids of a position: float32 knows a
# smaller 1 − tail no better than by its first digit.
_SMALLEST_MASS = 1e-6


@dataclasses.dataclass(frozen=True)
class VocabSubset:
    """The student's tokens among the cache's.

    Attributes:
        table: int32 [V of the cache], the student's id of each token, or `NO_ID`.
        unknown_id: the student's id for a token that it lacks: its [UNK], or its
            padding where a byte-level vocabulary has none.
        unknown_token: that token.
        vocab: the identity of the student's vocabulary.
        tokenizer_files: what makes the student's directory self-contained, by name.
    """

    table: np.ndarray = dataclasses.field(repr=False, compare=False)
    unknown_id: int
    unknown_token: str
    vocab: VocabInfo
    tokenizer_files: Mapping[str, bytes] = dataclasses.field(repr=False)

    def describe(self, manifest: Manifest) -> str:
        """Returns, in one line, what becomes of a cache's tokens."""
        joined = "" if manifest.teacher_info is None else ", their mass joins the tail"
        return (
            f"vocabulary: {self.vocab.size:,} of the cache's {manifest.vocab.size:,} tokens; "
            f"others are read as {self.unknown_token}{joined}"
        )

    def write_tokenizer(self, directory: Location) -> None:
        """Writes the student's tokenizer into its directory, each file atomically."""
        for name, content in self.tokenizer_files.items():
            (directory / name).write_whole(content)


def id_table(
    cache_tokens: Sequence[str],
    student_tokens: Sequence[str],
    special_ids: Mapping[str, int],
    *,
    where: str,
) -> np.ndarray:
    """Maps a cache's ids to a student's by their tokens.

    Args:
        cache_tokens: in the order of their ids; an empty one is no token, and of one
            that is there twice the last counts, as for tokenizers.
        student_tokens: likewise.
        special_ids: the cache's, which the student must have, too.
        where: the student's vocabulary, for messages, with the flag that named it.

    Returns:
        int32 [cache tokens], the student's id or `NO_ID`.

    Raises:
        InputError: the student has a token that the cache lacks, or lacks a special
            one.

    Example:
        of `[PAD] [UNK] a b c` and `[PAD] [UNK] c a` the table is [0, 1, 3, −1, 2].
    """
    places = {token: index for index, token in enumerate(cache_tokens) if token}
    table = np.full(len(cache_tokens), NO_ID, np.int32)
    for index, token in enumerate(student_tokens):
        if not token:
            continue
        if token not in places:
            received = f"{token!r} (id {index}), which it lacks"
            raise InputError(where, "only tokens of the cache's vocabulary", received)
        table[places[token]] = index
    for name, special in special_ids.items():
        if table[special] == NO_ID:
            received = f"a vocabulary without {cache_tokens[special]!r} ({name})"
            raise InputError(where, "the cache's special tokens", received)
    return table


def remap_batch(
    tf: Any, batch: Mapping[str, Any], subset: VocabSubset, temperatures: Sequence[float]
) -> dict[str, Any]:
    """Renames the ids of a batch to the student's.

    The teacher's kept ids move to the front in their order, so that a smaller k is
    still a prefix; behind them stand `NO_ID`s. A label that the student lacks gets
    weight 0. So does a position without a kept id, or whose kept ids have less than
    a millionth of the mass at a cached temperature; it becomes as padding is.

    Args:
        tf: the TensorFlow module.
        batch: as `pipeline.storage.reader.parse_batch` returns it.
        subset: the student's tokens.
        temperatures: the cached ones, T of them; none for masked examples.

    Returns:
        the batch with the same names, shapes and dtypes.
    """
    table = tf.constant(subset.table)
    tokens = tf.gather(table, batch[records.INPUT_IDS])
    labels = tf.gather(table, batch[records.MASKED_LM_IDS])
    known = tf.cast(labels != NO_ID, tf.float32)
    remapped = {
        **batch,
        records.INPUT_IDS: tf.where(tokens == NO_ID, subset.unknown_id, tokens),
        records.MASKED_LM_IDS: tf.where(labels == NO_ID, subset.unknown_id, labels),
        records.MASKED_LM_WEIGHTS: batch[records.MASKED_LM_WEIGHTS] * known,
    }
    if temperatures:
        _remap_teacher(tf, remapped, table, temperatures)
    return remapped


def _remap_teacher(
    tf: Any, batch: dict[str, Any], table: Any, temperatures: Sequence[float]
) -> None:
    given = batch[records.TOPK_IDS]
    # Where a position has fewer ids than others, there is nothing to rename.
    ids = tf.where(given == NO_ID, NO_ID, tf.gather(table, tf.maximum(given, 0)))
    logits, old_tails = batch[records.TOPK_LOGITS], batch[records.LOG_TAIL_MASSES]
    removed = ids == NO_ID
    tails = tf.stack(
        [
            _log_tail(tf, logits / temperature, removed, old_tails[..., index])
            for index, temperature in enumerate(temperatures)
        ],
        axis=-1,
    )
    light = tf.reduce_min(-tf.math.expm1(tails), axis=-1) < _SMALLEST_MASS
    # Where nothing was removed, a tail is whatever the teacher made it.
    light = tf.reduce_any(removed & (given != NO_ID), axis=-1) & light
    empty = (light | tf.reduce_all(removed, axis=-1))[..., tf.newaxis]
    # TensorFlow's sort keeps the order of what is equal when it is asked to.
    order = tf.argsort(tf.cast(removed, tf.int32), axis=-1, stable=True)
    ids = tf.gather(ids, order, batch_dims=2)
    logits = tf.gather(tf.where(removed, NO_ID_LOGIT, logits), order, batch_dims=2)
    batch[records.TOPK_IDS] = tf.where(empty, 0, ids)
    batch[records.TOPK_LOGITS] = tf.where(empty, 0.0, logits)
    batch[records.LOG_TAIL_MASSES] = tf.where(empty, -float("inf"), tails)
    weights = batch[records.MASKED_LM_WEIGHTS]
    batch[records.MASKED_LM_WEIGHTS] = tf.where(empty[..., 0], 0.0, weights)


def _log_tail(tf: Any, scaled: Any, removed: Any, log_tail: Any) -> Any:
    """Returns log(tail + (1 − tail) · removed share) at one temperature, float32 [B, P].

    `scaled` is logits / T, float32 [B, P, K]; `log_tail` float32 [B, P], −inf for no tail.
    """
    nothing = -float("inf")
    log_share = tf.reduce_logsumexp(tf.where(removed, scaled, nothing), axis=-1)
    log_share -= tf.reduce_logsumexp(scaled, axis=-1)
    log_inside = tf.math.log(-tf.math.expm1(tf.minimum(log_tail, 0.0)))
    joined = tf.reduce_logsumexp(tf.stack([log_tail, log_inside + log_share], axis=-1), axis=-1)
    # Rounding must not bring it above all the mass.
    return tf.minimum(joined, 0.0)
