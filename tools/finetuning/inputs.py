"""Model inputs: the features of examples, their digests, and padded batches."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from data_specs.records import INPUT_IDS, INPUT_MASK, SEGMENT_IDS, TEACHER_LOGITS
from pipeline.base import seeding
from pipeline.base.errors import InputError, Setting
from pipeline.storage import length_buckets
from pipeline.tokenizers.tokens import Tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class Feature:
    """One unpadded input of a model; L is its number of tokens.

    Attributes:
        example: the index of its example.
        input_ids: int32 [L].
        segment_ids: int32 [L]; all 0 if the input has one text.
        token_axis: the axis of its logits that indexes tokens; None if the logits have none.
    """

    token_axis: ClassVar[int | None] = None

    example: int
    input_ids: np.ndarray
    segment_ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class Layout:
    """The arrangement of texts and special tokens; `kinds.build_features` explains the fields."""

    tokenizer: Tokenizer
    max_seq_length: int
    double_separator: bool = False
    doc_stride: int = 128
    max_query_length: int = 64

    def __post_init__(self) -> None:
        if self.doc_stride < 1:
            raise InputError(Setting("doc_stride"), "a number above 0", self.doc_stride)

    def room(self, num_texts: int, *, used: int = 0) -> int:
        """Returns the number of text tokens that fit, if `used` tokens are already taken."""
        taken = 1 + num_texts + (num_texts == 2 and self.double_separator) + used
        least = 1 if used else num_texts
        if self.max_seq_length < taken + least:
            needed = f"{taken} tokens of separators and questions and {least} of text"
            expected = f"at least {taken + least}, for {needed}"
            raise InputError(Setting("max_seq_length"), expected, self.max_seq_length)
        return self.max_seq_length - taken

    def join(self, texts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, int]:
        """Returns input_ids, segment_ids, and the position of the last text's first token."""
        special = self.tokenizer.special_ids
        cls, sep = [special["cls"]], [special["sep"]]
        first = np.concatenate([cls, texts[0], sep]).astype(np.int32)
        if len(texts) == 1:
            return first, np.zeros(len(first), np.int32), 1
        between = sep if self.double_separator else []
        ids = np.concatenate([first, between, texts[1], sep]).astype(np.int32)
        begin = len(first) + len(between)
        return ids, (np.arange(len(ids)) >= begin).astype(np.int32), begin


def truncated_lengths(first: int, second: int, room: int) -> tuple[int, int]:
    """Returns the lengths of two texts after truncation to `room` tokens together.

    The longer text loses its last token, one at a time. Of two equally long texts, the
    second loses a token first (BERT's `_truncate_seq_pair`).

    Example: lengths 7 and 4 become 3 and 3 with room for 6, and 3 and 2 with room for 5.
    """
    excess = max(0, first + second - room)
    from_first = min(excess, max(0, first - second))
    from_second = min(excess, max(0, second - first))
    rest = excess - from_first - from_second
    return first - from_first - rest // 2, second - from_second - (rest + 1) // 2


def input_digest(feature: Feature) -> bytes:
    """Returns a digest of 16 bytes of an input's tokens and segments."""
    arrays = (feature.input_ids, feature.segment_ids)
    return seeding.digest(*(array.astype("<i4").tobytes() for array in arrays))


# Keys of a batch in addition to BERT's inputs: the targets, and the weight of each row.
TARGETS = "targets"
WEIGHTS = "weights"
# The target of a token that has none.
NO_TARGET = -1

# The number of batches whose inputs are sorted by length together.
_GROUP_BATCHES = 16

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Padding:
    """The shapes of batches.

    Attributes:
        batch_size: B; rows beyond the inputs are empty.
        max_seq_length: maximum number of tokens of an input.
        type_vocab_size: number of segments of the model; higher segment ids become the last.
    """

    batch_size: int
    max_seq_length: int
    type_vocab_size: int = 2

    def batch(self, features: Sequence[Feature]) -> Arrays:
        """Pads at most B inputs to int32 `input_ids`, `input_mask`, `segment_ids` [B, L]."""
        longest = max(len(feature.input_ids) for feature in features)
        length = length_buckets.padded_length(longest, self.max_seq_length)
        ids, mask, segments = np.zeros((3, self.batch_size, length), np.int32)
        for row, feature in enumerate(features):
            count = len(feature.input_ids)
            ids[row, :count] = feature.input_ids
            mask[row, :count] = 1
            segments[row, :count] = feature.segment_ids
        segments = np.minimum(segments, max(0, self.type_vocab_size - 1))
        return {INPUT_IDS: ids, INPUT_MASK: mask, SEGMENT_IDS: segments}


@dataclasses.dataclass(frozen=True)
class TrainingBatches:
    """The training batches of all epochs.

    An epoch is a permutation of all inputs. Within each group of batches, the inputs are
    sorted by length and split into batches. The batches of the epoch are then shuffled, so
    that the length of inputs does not depend on the step. An epoch has padding rows, with
    weight 0, in one batch only.

    Attributes:
        features: the N inputs.
        targets: one array [N, …]; or N arrays [L] of targets per token, -1 at tokens
            without a target.
        padding: the shapes of batches.
        seed: seed of the order.
        teacher_logits: the unpadded logits of each input, float32 [C], [2, L] or [L, C];
            None without a teacher.
    """

    features: Sequence[Feature]
    targets: Sequence[np.ndarray]
    padding: Padding
    seed: int
    teacher_logits: Sequence[np.ndarray] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches of an epoch."""
        return -(-len(self.features) // self.padding.batch_size)

    def take(self, num_steps: int) -> Iterator[Arrays]:
        """Yields the first `num_steps` batches.

        Each is a batch of `Padding.batch` with three more keys: `targets` [B, …]; `weights`
        float32 [B], 1 at real rows and 0 at padding; and `teacher_logits`, float32 and
        padded, if there is a teacher.
        """
        epoch = 0
        while num_steps > 0:
            for indices in self.epoch(epoch)[:num_steps]:
                yield self._batch(indices)
            num_steps -= self.steps_per_epoch
            epoch += 1

    def epoch(self, number: int) -> list[np.ndarray]:
        """Returns the input indices of each batch of an epoch, at most `batch_size` each."""
        rng = seeding.keyed_rng(self.seed, "order of fine-tuning", number)
        order = rng.permutation(len(self.features))
        lengths = np.array([len(feature.input_ids) for feature in self.features])
        size = self.padding.batch_size
        batches = []
        for begin in range(0, len(order), _GROUP_BATCHES * size):
            group = order[begin : begin + _GROUP_BATCHES * size]
            group = group[np.argsort(lengths[group], kind="stable")]
            batches += [group[start : start + size] for start in range(0, len(group), size)]
        return [batches[index] for index in rng.permutation(len(batches))]

    def _batch(self, indices: np.ndarray) -> Arrays:
        batch = self.padding.batch([self.features[index] for index in indices])
        size, length = batch[INPUT_IDS].shape
        batch[TARGETS] = self._pad_targets(indices, size, length)
        batch[WEIGHTS] = (np.arange(size) < len(indices)).astype(np.float32)
        if self.teacher_logits is not None:
            logits = [self.teacher_logits[index] for index in indices]
            axis = self.features[0].token_axis
            batch[TEACHER_LOGITS] = pad_logits(logits, size, length, token_axis=axis)
        return batch

    def _pad_targets(self, indices: np.ndarray, size: int, length: int) -> np.ndarray:
        if isinstance(self.targets, np.ndarray):
            padded = np.zeros((size, *self.targets.shape[1:]), self.targets.dtype)
            padded[: len(indices)] = self.targets[indices]
            return padded
        padded = np.full((size, length), NO_TARGET, np.int32)
        for row, index in enumerate(indices):
            padded[row, : len(self.targets[index])] = self.targets[index]
        return padded


def pad_logits(
    logits: Sequence[np.ndarray], batch_size: int, length: int, *, token_axis: int | None
) -> np.ndarray:
    """Pads the logits of inputs with zeros to `batch_size` rows and `length` tokens.

    Example: logits [2, tokens] of each input become [B, 2, L] with `token_axis=1`.
    """
    shape = [length if axis == token_axis else count for axis, count in enumerate(logits[0].shape)]
    padded = np.zeros((batch_size, *shape), np.float32)
    for row, value in enumerate(logits):
        padded[row][tuple(map(slice, value.shape))] = value
    return padded


def prediction_batches(
    features: Sequence[Feature], padding: Padding
) -> Iterator[tuple[np.ndarray, Arrays]]:
    """Yields batches of inputs of similar length, so that each input occurs once.

    Each item is the indices of the batch's inputs, and the batch of `Padding.batch`.
    """
    order = np.argsort([len(feature.input_ids) for feature in features], kind="stable")
    for begin in range(0, len(order), padding.batch_size):
        indices = order[begin : begin + padding.batch_size]
        yield indices, padding.batch([features[index] for index in indices])
