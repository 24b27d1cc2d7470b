"""Reading a cache with a student that knows only some of its tokens.

A token that the student lacks is lost. In the input it is cut into the student's own tokens,
the longest first, as the student's tokenizer cuts a word; one that cannot be cut is read as
[UNK]. The input becomes longer, positions move, and what exceeds the length is cut off at the
end. A masked position stays one [MASK], whose label is the first piece of a lost token, or
counts for no loss where that is [UNK]. What the teacher gave to lost tokens joins the tail:

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
        pieces: int32 [V of the cache, most pieces], the student's ids that the input has in
            place of each token, as `cut_tokens` returns them; by default no token is cut.
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
        """Returns, in one line, what becomes of a cache's tokens."""
        joined = "" if manifest.teacher_info is None else ", their mass joins the tail"
        others = f"others are read as {self.unknown_token}"
        if num_cut := np.count_nonzero(self.pieces[:, 1:2] != NO_ID):
            others = f"{num_cut:,} others are cut into these, the rest are {self.unknown_token}"
        return (
            f"vocabulary: {self.vocab.size:,} of the cache's {manifest.vocab.size:,} tokens; "
            f"{others}{joined}"
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


def cut_tokens(
    cache_tokens: Sequence[str],
    student_tokens: Sequence[str],
    table: np.ndarray,
    *,
    unknown_id: int,
    continuation: str | None,
) -> np.ndarray:
    """Cuts the tokens that a student lacks into those that it has.

    Args:
        cache_tokens: in the order of their ids.
        student_tokens: likewise.
        table: as `id_table` returns it.
        unknown_id: the student's id for a token that cannot be cut.
        continuation: what begins a token within a word; None for tokens that cannot be cut.

    Returns:
        int32 [cache tokens, most pieces], in each row the pieces, then `NO_ID`s. A token that
        the student has is one piece.

    Example:
        of `unhappy ##ness` with the student's `un ##happy ##ness` they are `un ##happy` and
        `##ness`.
    """
    ids = {token: index for index, token in enumerate(student_tokens) if token}
    rows: list[Sequence[int]] = [(index,) for index in table.tolist()]
    for index in np.flatnonzero(table == NO_ID):
        cut = None
        if continuation is not None:
            cut = _cut_token(cache_tokens[index], ids, continuation)
        rows[index] = cut or (unknown_id,)
    pieces = np.full((len(rows), max(map(len, rows))), NO_ID, np.int32)
    for row, cut in zip(pieces, rows, strict=True):
        row[: len(cut)] = cut
    return pieces


def _cut_token(token: str, ids: Mapping[str, int], continuation: str) -> list[int] | None:
    """Returns the ids of a token's pieces, the longest first; None where a part is in none."""
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
    """Renames the ids of a batch to the student's, and cuts the tokens that it lacks.

    The teacher's kept ids move to the front in their order, so that a smaller k is
    still a prefix; behind them stand `NO_ID`s. A label that cannot be cut gets weight 0. So
    does a position without a kept id, or whose kept ids have less than a millionth of the mass
    at a cached temperature; it becomes as padding is. A position behind the end of an input
    that has become too long is dropped likewise.

    Args:
        tf: the TensorFlow module.
        batch: as `pipeline.storage.reader.parse_batch` returns it.
        subset: the student's tokens.
        temperatures: the cached ones, T of them; none for masked examples.

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
    """Returns the inputs with each token's pieces in its place, as far as they fit.

    An input that has become too long ends with its last token, [SEP]. At a position that is
    predicted one token stays one: of a lost one that stands there in place of [MASK] the first
    piece, as all of its pieces there would be noise around the label.

    Args:
        tf: the TensorFlow module.
        batch: with the cache's ids in `input_ids`, int32 [B, L], and weight 0 where nothing is
            predicted.
        pieces: see `VocabSubset`.

    Returns:
        `input_ids`, `segment_lengths`, `masked_lm_positions`, `masked_lm_weights`.
    """
    ids, positions = batch[records.INPUT_IDS], batch[records.MASKED_LM_POSITIONS]
    weights, length = batch[records.MASKED_LM_WEIGHTS], ids.shape[1]
    places = tf.range(length)
    predicted = positions[..., tf.newaxis] == places
    predicted = tf.reduce_any(predicted & (weights > 0)[..., tf.newaxis], axis=1)
    counts = tf.gather(tf.constant(np.sum(pieces != NO_ID, axis=1, dtype=np.int32)), ids)
    counts = tf.where(predicted, 1, counts)
    ends = tf.cumsum(counts, axis=1)
    starts = ends - counts
    # The token whose pieces each place of the new input has. Padding follows as it was.
    wanted = tf.broadcast_to(places, tf.shape(ids))
    source = tf.searchsorted(ends, wanted, side="right")
    offsets = wanted - tf.gather(starts, source, batch_dims=1)
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
        records.INPUT_IDS: tf.where(too_long & (places == length - 1), last, new_ids),
        records.SEGMENT_LENGTHS: new_bounds - tf.pad(new_bounds[:, :-1], [[0, 0], [1, 0]]),
        records.MASKED_LM_POSITIONS: tf.where(fits, new_positions, 0),
        records.MASKED_LM_WEIGHTS: tf.where(fits, weights, 0.0),
    }


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
