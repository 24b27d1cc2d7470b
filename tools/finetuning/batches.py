"""Batches of a task's inputs: inputs of similar length together, padded to one of eight lengths."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from data_specs.records import INPUT_IDS, INPUT_MASK, SEGMENT_IDS, TEACHER_LOGITS
from pipeline.base import seeding
from pipeline.storage import length_buckets
from tools.finetuning.features import Feature

# Names that a batch has beside BERT's own: what is to be said, and whether a row counts.
TARGETS = "targets"
WEIGHTS = "weights"

# Batches of an epoch that are sorted by length together.
_GROUP_BATCHES = 16

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Padding:
    """The shapes that batches have.

    Attributes:
        batch_size: B; rows beyond the inputs are empty.
        max_seq_length: tokens of the longest input.
        type_vocab_size: segments that the model knows; later ones become its last.
    """

    batch_size: int
    max_seq_length: int
    type_vocab_size: int = 2

    def batch(self, features: Sequence[Feature]) -> Arrays:
        """Pads inputs to a batch.

        Args:
            features: at most `batch_size`.

        Returns:
            int32 `input_ids`, `input_mask`, `segment_ids` [B, L].
        """
        longest = max(len(feature.input_ids) for feature in features)
        length = length_buckets.padded_length(longest, self.max_seq_length)
        shape = (self.batch_size, length)
        arrays = {name: np.zeros(shape, np.int32) for name in (INPUT_IDS, INPUT_MASK, SEGMENT_IDS)}
        for row, feature in enumerate(features):
            count = len(feature.input_ids)
            arrays[INPUT_IDS][row, :count] = feature.input_ids
            arrays[INPUT_MASK][row, :count] = 1
            arrays[SEGMENT_IDS][row, :count] = feature.segment_ids
        np.minimum(arrays[SEGMENT_IDS], max(0, self.type_vocab_size - 1), out=arrays[SEGMENT_IDS])
        return arrays


@dataclasses.dataclass(frozen=True)
class TrainingBatches:
    """The batches of training, epoch after epoch.

    An epoch is a permutation of all inputs. Of each group of batches in it, the
    inputs are sorted by length and cut; then the epoch's batches are shuffled, so
    that no step tells how long its inputs are. Only an epoch's last batch has rows
    that do not count.

    Attributes:
        features: the inputs, N.
        targets: [N, …], what is to be said of each.
        padding: the shapes.
        seed: decides the order.
        teacher_logits: of each input, float32 [C], or [2, L] without padding; None
            without a teacher.
    """

    features: Sequence[Feature]
    targets: np.ndarray
    padding: Padding
    seed: int
    teacher_logits: Sequence[np.ndarray] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.features) // self.padding.batch_size)

    def take(self, num_steps: int) -> Iterator[Arrays]:
        """Yields the first so many batches.

        Yields:
            what `Padding.batch` returns; `targets` [B, …]; `weights` float32 [B], 1 at
            real rows; and `teacher_logits` float32 [B, C] or [B, 2, L] where there
            are any.
        """
        epoch = 0
        while num_steps > 0:
            for indices in self.epoch(epoch)[:num_steps]:
                yield self._batch(indices)
            num_steps -= self.steps_per_epoch
            epoch += 1

    def epoch(self, number: int) -> list[np.ndarray]:
        """Returns the indices of an epoch's batches, each of at most `batch_size`."""
        random = seeding.stream(self.seed, "order of fine-tuning", number)
        order = random.permutation(len(self.features))
        lengths = np.array([len(feature.input_ids) for feature in self.features])
        size = self.padding.batch_size
        batches = []
        for begin in range(0, len(order), _GROUP_BATCHES * size):
            group = order[begin : begin + _GROUP_BATCHES * size]
            group = group[np.argsort(lengths[group], kind="stable")]
            batches += [group[at : at + size] for at in range(0, len(group), size)]
        return [batches[index] for index in random.permutation(len(batches))]

    def _batch(self, indices: np.ndarray) -> Arrays:
        batch = self.padding.batch([self.features[index] for index in indices])
        size, length = batch[INPUT_IDS].shape
        batch[TARGETS] = np.zeros((size, *self.targets.shape[1:]), self.targets.dtype)
        batch[TARGETS][: len(indices)] = self.targets[indices]
        batch[WEIGHTS] = (np.arange(size) < len(indices)).astype(np.float32)
        if self.teacher_logits is not None:
            batch[TEACHER_LOGITS] = pad_logits(
                [self.teacher_logits[index] for index in indices], size, length
            )
        return batch


def pad_logits(logits: Sequence[np.ndarray], batch_size: int, length: int) -> np.ndarray:
    """Pads the logits of inputs to those of a batch, with zeros.

    Args:
        logits: of each input, float32 [C] or [2, tokens].
        batch_size: B.
        length: L, at least the tokens of each.

    Returns:
        float32 [B, C] or [B, 2, L].
    """
    first = logits[0]
    shape = first.shape if first.ndim == 1 else (len(first), length)
    padded = np.zeros((batch_size, *shape), np.float32)
    for row, value in enumerate(logits):
        padded[row, ..., : value.shape[-1]] = value
    return padded


def prediction_batches(
    features: Sequence[Feature], padding: Padding
) -> Iterator[tuple[np.ndarray, Arrays]]:
    """Yields batches of similar length that together hold every input once.

    Args:
        features: the inputs.
        padding: the shapes.

    Yields:
        the indices of a batch's inputs, and what `Padding.batch` returns.
    """
    order = np.argsort([len(feature.input_ids) for feature in features], kind="stable")
    for begin in range(0, len(order), padding.batch_size):
        indices = order[begin : begin + padding.batch_size]
        yield indices, padding.batch([features[index] for index in indices])
