"""Averaging of the caches of several teachers over the same masked examples.

Probabilities at temperature 1 are averaged: p = Σ wᵢ · pᵢ. An id that is missing from a teacher's
top-k gets no probability from that teacher, and each teacher's tail joins the tail of the result.
All values are added as logarithms in float64, also the tails. For confident teachers, computing
the tail as 1 − Σ of the top-k's probabilities would give 0 or less.
"""

import collections
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.storage import arrays, cache_input, serialization
from pipeline.storage import manifest as manifests
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.codecs.base import NO_ID, NO_ID_LOGIT, TargetCodec, TopKCodec
from pipeline.storage.manifest import SAMPLED, Manifest
from pipeline.storage.records import TeacherTargets

# The only temperature at which the average is defined. At another temperature, the mass outside
# the merged top-k is not known.
TEMPERATURE = 1.0

# Log-probabilities that are merged together, small enough for a processor's cache.
_BLOCK_BYTES = 4 * 2**20

# The features of several records.
_Block = Sequence[Mapping[str, bytes]]


def merge_topk(
    teachers: Sequence[TeacherTargets], weights: Sequence[float], *, truncation_factor: int
) -> TeacherTargets:
    """Averages the targets of several teachers at the same masked positions.

    Args:
        teachers: the targets of each teacher; K and temperatures may differ.
        weights: of each teacher, above 0; their sum is 1.
        truncation_factor: K of the result, at most the largest K of a teacher.

    Returns:
        the averaged targets. Ids are in descending order of probability, ties by the smaller
        id, padded with `NO_ID`. Logits are float64 log-probabilities relative to the largest of
        their position. The tail is −inf if it is empty.

    Example: the average of {5: 0.6, 2: 0.3, tail 0.1} and {2: 0.5, 7: 0.4, tail 0.1} with equal
    weights is {2: 0.4, 5: 0.3, 7: 0.2, tail 0.1}. For K = 2 the ids are [2, 5], the logits
    [0, log 0.75], and the tail is 0.3.
    """
    log_weights = np.log(np.asarray(weights, np.float64))
    ids, log_probs = _add_equal_ids(
        np.concatenate([teacher.ids for teacher in teachers], axis=-1, dtype=np.int64),
        np.concatenate(
            [
                _log_probs(teacher) + weight
                for teacher, weight in zip(teachers, log_weights, strict=True)
            ],
            axis=-1,
        ),
    )
    # The ids are ascending, so a stable sort breaks ties by the smaller id.
    order = np.argsort(-log_probs, axis=-1, kind="stable")
    log_probs = np.take_along_axis(log_probs, order, axis=-1)
    top = log_probs[:, :truncation_factor]
    is_padding = top == -np.inf
    tails = np.stack([_log_tails(teacher) for teacher in teachers], axis=-1) + log_weights
    labels = np.stack([teacher.label_log_probs for teacher in teachers], axis=-1) + log_weights
    return TeacherTargets(
        ids=np.where(is_padding, NO_ID, np.take_along_axis(ids, order, axis=-1)[:, : top.shape[1]]),
        logits=np.where(is_padding, NO_ID_LOGIT, top - top[:, :1]),
        log_tail_masses=_log_sum(np.concatenate([log_probs[:, truncation_factor:], tails], -1))[
            :, np.newaxis
        ],
        label_log_probs=_log_sum(labels),
        temperatures=(TEMPERATURE,),
    )


def _log_tails(targets: TeacherTargets) -> np.ndarray:
    """Returns the logs of tail masses, float64 [positions], all below 0.

    A tail that is rounded to 1 still leaves a tiny mass, which keeps the order of the ids.
    """
    tails = targets.log_tails(TEMPERATURE)
    return np.minimum(tails.astype(np.float64), -np.finfo(np.float64).tiny)


def _log_probs(targets: TeacherTargets) -> np.ndarray:
    """Returns log((1 − tail) · softmax(logits)), float64 [positions, K]; −inf for `NO_ID`."""
    logits = targets.logits.astype(np.float64)
    shift = np.log(-np.expm1(_log_tails(targets))) - _log_sum(logits)
    return np.where(targets.ids == NO_ID, -np.inf, logits + shift[:, np.newaxis])


def _log_sum(log_values: np.ndarray) -> np.ndarray:
    """Returns log Σ exp over the last axis; −inf if all values are −inf."""
    largest = log_values.max(axis=-1, keepdims=True)
    largest = np.where(largest == -np.inf, 0.0, largest)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(log_values - largest).sum(axis=-1)) + largest[..., 0]


def _add_equal_ids(ids: np.ndarray, log_probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Adds the probabilities of equal ids, int64 [positions, n], in each row.

    Returns:
        the ids of each row, ascending; their log-probabilities. The first of equal ids has the
        sum, the others have −inf.

    Example: the ids [5, 2, 2, 7] with the probabilities [.3, .15, .25, .2] become
    [2, 2, 5, 7] with [.4, 0, .3, .2].
    """
    width = ids.shape[-1]
    # A key packs an id and its column: `sort` is faster than `argsort`.
    keys = np.sort(ids * width + np.arange(width), axis=-1)
    ids, columns = keys // width, keys % width
    log_probs = np.take_along_axis(log_probs, columns, axis=-1)
    is_first = np.ones(ids.shape, bool)
    is_first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    sums = np.full_like(log_probs, -np.inf)
    sums[is_first] = np.logaddexp.reduceat(log_probs.ravel(), np.flatnonzero(is_first))
    return ids, sums


def _refusal(first: CacheInput, other: CacheInput, what: str, a: Any, b: Any) -> InputError:
    # A value of a broken record may be very long.
    a, b = str(a)[:80], str(b)[:80]
    return InputError(
        first.directory,
        "caches of the same examples, vocabulary and order",
        f"{first.directory} and {other.directory}, which differ in {what}: {a} and {b}",
    )


def _identity(manifest: Manifest) -> dict[str, Any]:
    """Returns the values that must be equal in merged caches, by their descriptions."""
    return {
        "the vocabulary's size": manifest.vocab.size,
        "the vocabulary's SHA-256": manifest.vocab.sha256,
        "special_ids": dict(manifest.special_ids),
        "max_seq_length": manifest.max_seq_length,
        "max_predictions_per_seq": manifest.max_predictions_per_seq,
        "the masked examples they were made from (parent)": manifest.teacher_info.parent,
        **{
            f"the number of examples of {shard.file}": shard.num_examples
            for shard in manifest.shards
        },
    }


def expect_same_examples(caches: Sequence[CacheInput]) -> None:
    """Raises InputError unless the manifests of caches allow merging.

    The caches must hold a top-k or head states of the same examples.
    """
    for cache in caches:
        if cache.manifest.kind != records.TEACHER_CACHE:
            raise InputError(cache.directory, "a teacher cache", cache.manifest.kind)
        if cache.manifest.teacher_info.truncation == SAMPLED:
            expected = "a cache of `truncation`=topk"
            raise InputError(cache.directory, expected, "one of `truncation`=sampled")
    first = caches[0]
    first_identity = _identity(first.manifest)
    for other in caches[1:]:
        identity = _identity(other.manifest)
        for what in {**first_identity, **identity}:
            a, b = first_identity.get(what), identity.get(what)
            if a != b:
                raise _refusal(first, other, what, a, b)


@dataclasses.dataclass(frozen=True)
class CacheMerger:
    """Turns corresponding shards of several caches into the records of the merged cache.

    Attributes:
        caches: checked by `expect_same_examples`.
        weights: of each cache, above 0; their sum is 1.
        codec: of the merged cache.
        on_examples: called with the number of examples just merged.
    """

    caches: Sequence[CacheInput]
    weights: Sequence[float]
    codec: TopKCodec
    on_examples: Callable[[int], None]

    @functools.cached_property
    def _codecs(self) -> list[TargetCodec]:
        """The codec of each cache."""
        return [cache_input.open_codec(cache.directory, cache.manifest) for cache in self.caches]

    def records(self, file: str, measured: collections.Counter[str] | None) -> Iterator[bytes]:
        """Yields the merged record for each example of a shard, in order.

        A record is added to `measured`, the content of `ShardInfo.measured`, before it is
        yielded.

        Raises:
            InputError: the caches hold other examples, or a record is invalid.
        """
        manifests = [cache.manifest for cache in self.caches]
        width = sum(manifest.teacher_info.truncation_factor for manifest in manifests)
        example_bytes = max(1, manifests[0].max_predictions_per_seq) * width * 8
        block_size = max(1, _BLOCK_BYTES // example_bytes)
        readers = [_read_examples(cache.directory / file) for cache in self.caches]
        num_merged = 0
        while True:
            blocks = [list(itertools.islice(reader, block_size)) for reader in readers]
            self._expect_same_records(blocks, file, num_merged)
            if not blocks[0]:
                return
            yield from self._merge_block(blocks, file, measured)
            num_merged += len(blocks[0])
            self.on_examples(len(blocks[0]))

    def _expect_same_records(self, blocks: Sequence[_Block], file: str, first_index: int) -> None:
        first, vocab_size = self.caches[0], self.caches[0].manifest.vocab.size
        for cache, block in zip(self.caches[1:], blocks[1:], strict=True):
            counts = first_index + len(blocks[0]), first_index + len(block)
            if counts[0] != counts[1]:
                raise _refusal(first, cache, f"the number of readable records of {file}", *counts)
            for index, pair in enumerate(zip(blocks[0], block, strict=True), first_index):
                if difference := _first_difference(*pair, vocab_size):
                    what, a, b = difference
                    raise _refusal(first, cache, f"{what} of record {index} of {file}", a, b)

    def _merge_block(
        self, blocks: Sequence[_Block], file: str, measured: collections.Counter[str] | None
    ) -> Iterator[bytes]:
        decoded = [
            _decode_block(cache, codec, block, file)
            for cache, codec, block in zip(self.caches, self._codecs, blocks, strict=True)
        ]
        teachers = [TeacherTargets.join(targets) for targets in decoded]
        merged = merge_topk(teachers, self.weights, truncation_factor=self.codec.truncation_factor)
        merged = dataclasses.replace(merged, logits=merged.logits.astype(np.float32))
        counts = [len(targets.ids) for targets in decoded[0]]
        try:
            packed = merged.to_features(self.codec, np.concatenate([[0], np.cumsum(counts)]))
        except ValueError as error:
            # A top-k with repeated ids has fewer distinct ids than its length.
            raise InputError(self.caches[0].directory / file, received=error) from error
        for example, features in zip(blocks[0], packed, strict=True):
            if measured is not None:
                manifests.measure_record(measured, features, self.codec.truncation_factor)
            for feature in records.MASKED_EXAMPLE_FEATURES:
                features[feature.name] = example[feature.name]
            yield serialization.encode_example(features)


def _read_examples(path: pathlib.Path) -> Iterator[dict[str, bytes]]:
    for index, record in enumerate(serialization.read_records(path)):
        try:
            features = serialization.decode_example(record)
        except ValueError as error:
            raise InputError(path, received=f"broken record {index}: {error}") from error
        yield features


def _first_difference(
    example: Mapping[str, bytes], other: Mapping[str, bytes], vocab_size: int
) -> tuple[str, Any, Any] | None:
    """Returns the name of the first difference of two masked examples, and both values."""
    for feature in records.MASKED_EXAMPLE_FEATURES:
        name = feature.name
        a, b = example.get(name), other.get(name)
        if a is None or b is None or (a != b and name == records.EXAMPLE_ID):
            return name, *("none" if value is None else value.hex() for value in (a, b))
        if a == b:
            continue
        dtype = feature.numpy_dtype(vocab_size)
        if len(a) != len(b):
            return f"the length of {name}", len(a) // dtype.itemsize, len(b) // dtype.itemsize
        first, second = (arrays.decode(feature, content, vocab_size) for content in (a, b))
        index = int(np.flatnonzero(first != second)[0])
        return f"{name}[{index}]", first[index], second[index]
    return None


def _decode_block(
    cache: CacheInput, codec: TargetCodec, block: _Block, file: str
) -> list[TeacherTargets]:
    """Decodes the targets of records without hidden states, which cannot be merged."""
    info = dataclasses.replace(cache.manifest.teacher_info, hidden_groups=())
    try:
        return [TeacherTargets.from_features(features, codec, info) for features in block]
    except (KeyError, ValueError) as error:
        raise InputError(cache.directory / file, received=f"broken record: {error}") from error
