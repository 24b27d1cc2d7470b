"""Caches of several teachers over the same masked examples, averaged into one.

The average is of probabilities at temperature 1: p = Σ wᵢ · pᵢ. An id that a
teacher's list lacks gets nothing from it; what lies outside a list stays in the
tail. All sums are of logarithms in float64, a tail's too: as 1 − Σ of the top-k's
probabilities it would cancel to nothing, or below zero, wherever the teachers are sure.
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

# The one temperature at which the average is defined. At another one the mass
# outside the merged lists is not known.
TEMPERATURE = 1.0

# Log-probabilities merged at once: few enough to stay in a processor's cache.
_BLOCK_BYTES = 4 * 2**20

# The features of records.
_Block = Sequence[Mapping[str, bytes]]


def merge_topk(
    parts: Sequence[TeacherTargets], weights: Sequence[float], *, truncation_factor: int
) -> TeacherTargets:
    """Averages the targets of several teachers at the same masked positions.

    Args:
        parts: one of each teacher; their K and temperatures may differ.
        weights: one for each, above 0, of sum 1.
        truncation_factor: K of the result, at most the largest of the parts.

    Returns:
        ids in descending order, of equal ones the smaller first, then `NO_ID` where
        all lists together have fewer; float64 logits, each the log-probability minus
        the position's largest; the tail, −inf where nothing is left out; the labels'
        log-probabilities.

    Example: half of {5: 0.6, 2: 0.3, tail 0.1} and half of {2: 0.5, 7: 0.4, tail
    0.1} are {2: 0.4, 5: 0.3, 7: 0.2, tail 0.1}. With K = 2 this is ids [2, 5],
    logits [0, log 0.75] and tail 0.3.
    """
    log_weights = np.log(np.asarray(weights, np.float64))
    ids, log_probs = _add_equal_ids(
        np.concatenate([part.ids for part in parts], axis=-1, dtype=np.int64),
        np.concatenate(
            [_log_probs(part) + weight for part, weight in zip(parts, log_weights, strict=True)],
            axis=-1,
        ),
    )
    # Stable over ascending ids: of equals the smaller id stays first.
    order = np.argsort(-log_probs, axis=-1, kind="stable")
    log_probs = np.take_along_axis(log_probs, order, axis=-1)
    kept = log_probs[:, :truncation_factor]
    is_none = kept == -np.inf
    tails = np.stack([_log_tails(part) for part in parts], axis=-1) + log_weights
    labels = np.stack([part.label_log_probs for part in parts], axis=-1) + log_weights
    return TeacherTargets(
        ids=np.where(is_none, NO_ID, np.take_along_axis(ids, order, axis=-1)[:, : kept.shape[1]]),
        logits=np.where(is_none, NO_ID_LOGIT, kept - kept[:, :1]),
        log_tail_masses=_log_sum(np.concatenate([log_probs[:, truncation_factor:], tails], -1))[
            :, np.newaxis
        ],
        label_log_probs=_log_sum(labels),
        temperatures=(TEMPERATURE,),
    )


def _log_tails(part: TeacherTargets) -> np.ndarray:
    """Returns float64 [positions]; one rounded to all the mass leaves a trace, in order."""
    tails = part.log_tails(TEMPERATURE)
    return np.minimum(tails.astype(np.float64), -np.finfo(np.float64).tiny)


def _log_probs(part: TeacherTargets) -> np.ndarray:
    """Returns float64 [positions, K]: log of (1 − tail) · softmax(logits), −inf for `NO_ID`."""
    logits = part.logits.astype(np.float64)
    shift = np.log(-np.expm1(_log_tails(part))) - _log_sum(logits)
    return np.where(part.ids == NO_ID, -np.inf, logits + shift[:, np.newaxis])


def _log_sum(log_values: np.ndarray) -> np.ndarray:
    """Returns log Σ exp over the last axis; −inf where nothing is summed but −inf."""
    largest = log_values.max(axis=-1, keepdims=True)
    largest = np.where(largest == -np.inf, 0.0, largest)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(log_values - largest).sum(axis=-1)) + largest[..., 0]


def _add_equal_ids(ids: np.ndarray, log_probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Adds the probabilities of equal ids, int64 [positions, n], of each row.

    Returns:
        the ids of each row ascending, and their log-probabilities: the sum at
        the first of equal ids, −inf at the others.

    Example: ids [5, 2, 2, 7] with probabilities [.3, .15, .25, .2] become
    [2, 2, 5, 7] with [.4, 0, .3, .2].
    """
    width = ids.shape[-1]
    # The id and its column in one number: sorting numbers is faster than finding an order.
    keys = np.sort(ids * width + np.arange(width), axis=-1)
    ids, columns = keys // width, keys % width
    log_probs = np.take_along_axis(log_probs, columns, axis=-1)
    is_first = np.ones(ids.shape, bool)
    is_first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    sums = np.full_like(log_probs, -np.inf)
    sums[is_first] = np.logaddexp.reduceat(log_probs.ravel(), np.flatnonzero(is_first))
    return ids, sums


def _refusal(first: CacheInput, other: CacheInput, what: str, a: Any, b: Any) -> InputError:
    # Of a broken record a value may be as long as it likes.
    a, b = str(a)[:80], str(b)[:80]
    return InputError(
        first.directory,
        "caches of the same examples, vocabulary and order",
        f"{first.directory} and {other.directory}, which differ in {what}: {a} and {b}",
    )


def _identity(manifest: Manifest) -> dict[str, Any]:
    """Returns what caches to be merged have in common, by words for it."""
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
    """Raises InputError unless caches, by their manifests, may be merged.

    They have a top-k, or head states, of the same examples.
    """
    for cache in caches:
        if cache.manifest.kind != records.TEACHER_CACHE:
            raise InputError(cache.directory, "a teacher cache", cache.manifest.kind)
        if cache.manifest.teacher_info.truncation == SAMPLED:
            expected = "a cache of `truncation`=topk"
            raise InputError(cache.directory, expected, "one of `truncation`=sampled")
    first = caches[0]
    here = _identity(first.manifest)
    for other in caches[1:]:
        there = _identity(other.manifest)
        for what in {**here, **there}:
            if here.get(what) != there.get(what):
                raise _refusal(first, other, what, here.get(what), there.get(what))


@dataclasses.dataclass(frozen=True)
class CacheMerger:
    """Turns equal shards of several caches into the records of the merged one.

    The caches are checked by `expect_same_examples`; the weights are above 0, of sum 1; the
    codec is that of the result. `on_examples` is called with the number of examples just done.
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

        Each is added to `measured`, which is as `ShardInfo.measured`, before it comes.

        Raises:
            InputError: the caches hold other examples, or a record is invalid.
        """
        manifests = [cache.manifest for cache in self.caches]
        width = sum(manifest.teacher_info.truncation_factor for manifest in manifests)
        example_bytes = max(1, manifests[0].max_predictions_per_seq) * width * 8
        block_size = max(1, _BLOCK_BYTES // example_bytes)
        streams = [_read_examples(cache.directory / file) for cache in self.caches]
        done = 0
        while True:
            blocks = [list(itertools.islice(stream, block_size)) for stream in streams]
            self._expect_same_records(blocks, file, done)
            if not blocks[0]:
                return
            yield from self._merge_block(blocks, file, measured)
            done += len(blocks[0])
            self.on_examples(len(blocks[0]))

    def _expect_same_records(self, blocks: Sequence[_Block], file: str, done: int) -> None:
        first, vocab_size = self.caches[0], self.caches[0].manifest.vocab.size
        for cache, block in zip(self.caches[1:], blocks[1:], strict=True):
            counts = done + len(blocks[0]), done + len(block)
            if counts[0] != counts[1]:
                raise _refusal(first, cache, f"how many records of {file} can be read", *counts)
            for index, pair in enumerate(zip(blocks[0], block, strict=True), done):
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
        parts = [TeacherTargets.join(targets) for targets in decoded]
        merged = merge_topk(parts, self.weights, truncation_factor=self.codec.truncation_factor)
        merged = dataclasses.replace(merged, logits=merged.logits.astype(np.float32))
        counts = [len(targets.ids) for targets in decoded[0]]
        try:
            packed = merged.to_features(self.codec, np.concatenate([[0], np.cumsum(counts)]))
        except ValueError as error:
            # Lists that name an id twice have fewer than they say.
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
    one: Mapping[str, bytes], other: Mapping[str, bytes], vocab_size: int
) -> tuple[str, Any, Any] | None:
    """Returns where two masked examples first differ, and what is there in each."""
    for feature in records.MASKED_EXAMPLE_FEATURES:
        name = feature.name
        a, b = one.get(name), other.get(name)
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
    """Decodes the targets of records; hidden states cannot be merged."""
    info = dataclasses.replace(cache.manifest.teacher_info, hidden_groups=())
    try:
        return [TeacherTargets.from_features(features, codec, info) for features in block]
    except (KeyError, ValueError) as error:
        raise InputError(cache.directory / file, received=f"broken record: {error}") from error
