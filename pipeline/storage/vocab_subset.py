"""Reading a cache with a student whose vocabulary is a part of the cache's.

A token that is not in the student's vocabulary is "missing". In the input it is split into the
student's tokens, the longest first, as the student's tokenizer splits a word. A token that cannot
be split becomes [UNK]. The input becomes longer, positions move, and tokens beyond the maximum
length are cut off. A masked position stays a single [MASK]. Its label is the first piece of a
missing token; if that is [UNK], the position has weight 0. The teacher's probability of missing
tokens joins the tail:

    tail'_T = tail_T + (1 − tail_T) · removed_T

where removed_T is the share of softmax_K(logits / T) on missing ids. Therefore
p'_T = (1 − tail'_T) · softmax(remaining logits / T) equals p_T exactly.
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

# Minimum mass of the remaining ids of a position. In float32, a smaller 1 − tail has at most one
# correct digit.
_MIN_MASS = 1e-6


@dataclasses.dataclass(frozen=True)
class VocabSubset:
    """A student's vocabulary, as a part of a cache's.

    Attributes:
        table: int32 [V of the cache], the student's id of each token, or `NO_ID`.
        unknown_id: the student's id for a missing token: its [UNK], or its padding in a
            byte-level vocabulary without [UNK].
        unknown_token: the token of `unknown_id`.
        vocab: the identity of the student's vocabulary.
        tokenizer_files: contents of the student's tokenizer files, by name.
        pieces: int32 [V of the cache, maximum number of pieces], the student's ids that replace
            each token in the input, as `cut_tokens` returns them; by default no token is split.
    """

    table: np.ndarray = dataclasses.field(repr=False, compare=False)
    unknown_id: int
    unknown_token: str
    vocab: VocabInfo
    tokenizer_files: Mapping[str, bytes] = dataclasses.field(repr=False)
    pieces: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.pieces is None:
            whole = np.where(self.table == NO_ID, self.unknown_id, self.table)
            object.__setattr__(self, "pieces", whole[:, np.newaxis].astype(np.int32))

    def describe(self, manifest: Manifest) -> str:
        """Returns a line on the student's reading of a cache's tokens."""
        mass = (
            "" if manifest.teacher_info is None else "; the mass of missing tokens joins the tail"
        )
        others = f"others are read as {self.unknown_token}"
        if num_cut := np.count_nonzero(self.pieces[:, 1:2] != NO_ID):
            others = f"{num_cut:,} others are split into these, the rest become "
            others += self.unknown_token
        return (
            f"vocabulary: {self.vocab.size:,} of the cache's {manifest.vocab.size:,} tokens; "
            f"{others}{mass}"
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
        cache_tokens: in the order of their ids. An empty string is an unused id. Of repeated
            tokens the last id counts, as in tokenizers.
        student_tokens: in the order of their ids, likewise.
        special_ids: of the cache; the student must have these tokens too.
        where: the location of the student's vocabulary, for messages.

    Returns:
        int32 [cache tokens], the student's id or `NO_ID`.

    Raises:
        InputError: a token of the student is not in the cache's vocabulary, or a special token
            is missing from the student's.

    Example:
        for the tokens `[PAD] [UNK] a b c` of the cache and `[PAD] [UNK] c a` of the student,
        the table is [0, 1, 3, −1, 2].
    """
    cache_ids = {token: index for index, token in enumerate(cache_tokens) if token}
    table = np.full(len(cache_tokens), NO_ID, np.int32)
    for index, token in enumerate(student_tokens):
        if not token:
            continue
        if token not in cache_ids:
            received = f"{token!r} (id {index}), which is not in it"
            hint = "use a student with the teacher's vocabulary, or with a part of it"
            raise InputError(where, "only tokens of the cache's vocabulary", received, hint)
        table[cache_ids[token]] = index
    for name, special in special_ids.items():
        if table[special] == NO_ID:
            received = f"a vocabulary without {cache_tokens[special]!r} ({name})"
            raise InputError(where, "the cache's special tokens", received)
    return table


def cut_tokens(
    cache_tokens: Sequence[str],
    student_tokens: Sequence[str],
    table: np.ndarray,
    *,
    unknown_id: int,
    continuation: str | None,
) -> np.ndarray:
    """Splits each missing token into tokens of the student.

    Args:
        cache_tokens: in the order of their ids.
        student_tokens: in the order of their ids.
        table: as `id_table` returns it.
        unknown_id: the student's id for a token that cannot be split.
        continuation: the prefix of tokens within a word, for example `##`; None if tokens
            cannot be split.

    Returns:
        int32 [cache tokens, maximum number of pieces], the pieces of each token, padded with
        `NO_ID`. A token that the student has is one piece.

    Example:
        with the student's tokens `un ##happy ##ness`, the token `unhappy` becomes `un ##happy`,
        and `##ness` stays.
    """
    ids = {token: index for index, token in enumerate(student_tokens) if token}
    rows: list[Sequence[int]] = [(index,) for index in table.tolist()]
    for index in np.flatnonzero(table == NO_ID):
        piece_ids = None
        if continuation is not None:
            piece_ids = _cut_token(cache_tokens[index], ids, continuation)
        rows[index] = piece_ids or (unknown_id,)
    pieces = np.full((len(rows), max(map(len, rows))), NO_ID, np.int32)
    for row, piece_ids in zip(pieces, rows, strict=True):
        row[: len(piece_ids)] = piece_ids
    return pieces


def _cut_token(token: str, ids: Mapping[str, int], continuation: str) -> list[int] | None:
    """Splits a token greedily, the longest piece first; returns None if that fails."""
    prefix = continuation if token.startswith(continuation) else ""
    rest, pieces = token.removeprefix(prefix), []
    while rest:
        lengths = range(len(rest), 0, -1)
        length = next((size for size in lengths if prefix + rest[:size] in ids), None)
        if length is None:
            return None
        pieces.append(ids[prefix + rest[:length]])
        rest, prefix = rest[length:], continuation
    return pieces


def remap_batch(
    tf: Any, batch: Mapping[str, Any], subset: VocabSubset, temperatures: Sequence[float]
) -> dict[str, Any]:
    """Maps the ids of a batch to the student's, and splits missing tokens.

    The teacher's remaining ids move to the front of their row in their order, and `NO_ID` pads
    the row. A smaller k is therefore still a prefix. A position gets weight 0 in three cases:

    - Its label cannot be split.
    - No id remains, or the remaining ids have less than a millionth of the mass at a cached
      temperature. Its targets then become those of padding.
    - It is beyond the end of an input that has become too long.

    Args:
        tf: the TensorFlow module.
        batch: as `pipeline.storage.reader.parse_batch` returns it.
        subset: the student's vocabulary.
        temperatures: the T cached temperatures; empty for masked examples.

    Returns:
        the batch with the same names, shapes and dtypes.
    """
    table = tf.constant(subset.table)
    first, unknown = subset.pieces[:, 0], subset.unknown_id
    labels = tf.gather(tf.constant(first), batch[records.MASKED_LM_IDS])
    is_known = tf.constant((subset.table != NO_ID) | (first != unknown))
    known = tf.cast(tf.gather(is_known, batch[records.MASKED_LM_IDS]), tf.float32)
    remapped = {
        **batch,
        records.MASKED_LM_IDS: labels,
        records.MASKED_LM_WEIGHTS: batch[records.MASKED_LM_WEIGHTS] * known,
    }
    remapped |= _cut_inputs(tf, remapped, subset.pieces)
    if temperatures:
        _remap_teacher(tf, remapped, table, temperatures)
    return remapped


def _cut_inputs(tf: Any, batch: Mapping[str, Any], pieces: np.ndarray) -> dict[str, Any]:
    """Returns the inputs with each token replaced by its pieces, up to the maximum length.

    An input that has become too long still ends with its last token, [SEP]. A predicted position
    keeps a single token. If masking put a missing token there instead of [MASK], only its first
    piece is used, as all pieces would be noise around the label.

    Args:
        tf: the TensorFlow module.
        batch: with the cache's ids in `input_ids`, int32 [B, L], and weight 0 at positions that
            are not predicted.
        pieces: see `VocabSubset`.

    Returns:
        `input_ids`, `segment_lengths`, `masked_lm_positions`, `masked_lm_weights`.
    """
    ids, positions = batch[records.INPUT_IDS], batch[records.MASKED_LM_POSITIONS]
    weights, length = batch[records.MASKED_LM_WEIGHTS], ids.shape[1]
    indices = tf.range(length)
    predicted = positions[..., tf.newaxis] == indices
    predicted = tf.reduce_any(predicted & (weights > 0)[..., tf.newaxis], axis=1)
    counts = tf.gather(tf.constant(np.sum(pieces != NO_ID, axis=1, dtype=np.int32)), ids)
    counts = tf.where(predicted, 1, counts)
    ends = tf.cumsum(counts, axis=1)
    starts = ends - counts
    # For each position of the new input, the old position of its token. Padding stays at the end.
    targets = tf.broadcast_to(indices, tf.shape(ids))
    source = tf.searchsorted(ends, targets, side="right")
    offsets = targets - tf.gather(starts, source, batch_dims=1)
    tokens = tf.stack([tf.gather(ids, source, batch_dims=1), offsets], axis=-1)
    new_ids = tf.gather_nd(tf.constant(pieces), tokens)

    bounds = tf.cumsum(batch[records.SEGMENT_LENGTHS], axis=1)
    new_bounds = tf.gather(ends, tf.maximum(bounds - 1, 0), batch_dims=1)
    new_bounds = tf.where(bounds > 0, new_bounds, 0)
    too_long = new_bounds[:, -1:] > length
    last = tf.gather(ids, tf.maximum(bounds[:, -1:] - 1, 0), batch_dims=1)
    last = tf.gather(tf.constant(pieces[:, 0]), last)
    new_bounds = tf.minimum(new_bounds, length)
    new_positions = tf.gather(starts, positions, batch_dims=1)
    fits = new_positions < tf.where(too_long, length - 1, length)
    return {
        records.INPUT_IDS: tf.where(too_long & (indices == length - 1), last, new_ids),
        records.SEGMENT_LENGTHS: new_bounds - tf.pad(new_bounds[:, :-1], [[0, 0], [1, 0]]),
        records.MASKED_LM_POSITIONS: tf.where(fits, new_positions, 0),
        records.MASKED_LM_WEIGHTS: tf.where(fits, weights, 0.0),
    }


def _remap_teacher(
    tf: Any, batch: dict[str, Any], table: Any, temperatures: Sequence[float]
) -> None:
    cached_ids = batch[records.TOPK_IDS]
    # The padding of a position with fewer ids stays padding.
    ids = tf.where(cached_ids == NO_ID, NO_ID, tf.gather(table, tf.maximum(cached_ids, 0)))
    logits, old_tails = batch[records.TOPK_LOGITS], batch[records.LOG_TAIL_MASSES]
    removed = ids == NO_ID
    tails = tf.stack(
        [
            _log_tail(tf, logits / temperature, removed, old_tails[..., index])
            for index, temperature in enumerate(temperatures)
        ],
        axis=-1,
    )
    has_little_mass = tf.reduce_min(-tf.math.expm1(tails), axis=-1) < _MIN_MASS
    # A position without removed ids keeps the teacher's tail, however large.
    has_little_mass &= tf.reduce_any(removed & (cached_ids != NO_ID), axis=-1)
    is_empty = (has_little_mass | tf.reduce_all(removed, axis=-1))[..., tf.newaxis]
    # A stable sort moves the remaining ids to the front in their order.
    order = tf.argsort(tf.cast(removed, tf.int32), axis=-1, stable=True)
    ids = tf.gather(ids, order, batch_dims=2)
    logits = tf.gather(tf.where(removed, NO_ID_LOGIT, logits), order, batch_dims=2)
    batch[records.TOPK_IDS] = tf.where(is_empty, 0, ids)
    batch[records.TOPK_LOGITS] = tf.where(is_empty, 0.0, logits)
    batch[records.LOG_TAIL_MASSES] = tf.where(is_empty, -float("inf"), tails)
    weights = batch[records.MASKED_LM_WEIGHTS]
    batch[records.MASKED_LM_WEIGHTS] = tf.where(is_empty[..., 0], 0.0, weights)


def _log_tail(tf: Any, scaled: Any, removed: Any, log_tail: Any) -> Any:
    """Returns log(tail + (1 − tail) · removed share) at one temperature, float32 [B, P].

    `scaled` is logits / T, float32 [B, P, K]; `log_tail` float32 [B, P], −inf without a tail.
    """
    log_zero = -float("inf")
    log_share = tf.reduce_logsumexp(tf.where(removed, scaled, log_zero), axis=-1)
    log_share -= tf.reduce_logsumexp(scaled, axis=-1)
    log_inside = tf.math.log(-tf.math.expm1(tf.minimum(log_tail, 0.0)))
    joined = tf.reduce_logsumexp(tf.stack([log_tail, log_inside + log_share], axis=-1), axis=-1)
    # Rounding must not give a mass above 1.
    return tf.minimum(joined, 0.0)
