"""Microbatches of inputs of similar length, padded to one of a few lengths.

A batch is padded to its longest input, and padding costs as much as tokens. A compiler makes
a program for each shape. Therefore the inputs of a batch are sorted by length and cut into
microbatches, and lengths are rounded up.
"""

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from pipeline.base import seeding

# Maximum number of examples that are sorted together, unless a batch has more. They are decoded
# together, so the limit bounds memory.
_MAX_GROUP = 512
# Number of random groups from which the padded length of microbatches is estimated.
_NUM_DRAWS = 64
_NUM_LENGTHS = 8
# On a TPU, a program takes minutes to compile and its tiles have 128 columns. More lengths would
# save little for inputs of 512 tokens.
_NUM_LENGTHS_ON_TPU = 4


@dataclasses.dataclass(frozen=True)
class MicrobatchPlan:
    """The division of an update's examples into microbatches.

    Attributes:
        group_size: number of examples that are sorted by length together.
        num_microbatches: number of microbatches of a group, all with the same number of examples.
        num_lengths: maximum number of padded lengths. With 1, all microbatches have the maximum
            length, and examples are not sorted.
    """

    group_size: int
    num_microbatches: int = 1
    num_lengths: int = 1


def _bucket_sizes(largest: int, count: int, multiple: int) -> tuple[int, ...]:
    step = -(-largest // count)
    step = -(-step // multiple) * multiple
    return (*range(step, largest, step), largest)


def choose_num_lengths(devices: Sequence[str]) -> int:
    """Returns the default number of padded lengths.

    Args:
        devices: names of the devices in Keras, for example `tpu:0`.
    """
    on_tpu = any(device.startswith("tpu") for device in devices)
    return _NUM_LENGTHS_ON_TPU if on_tpu else _NUM_LENGTHS


def bucket_lengths(max_seq_length: int, count: int = _NUM_LENGTHS) -> tuple[int, ...]:
    """Returns the lengths that inputs are padded to, ascending.

    There are at most `count` lengths, and the last is `max_seq_length`. Example: for 512 they are
    64, 128, … 512.
    """
    # Matrix kernels are faster for lengths that are a multiple of 8.
    return _bucket_sizes(max_seq_length, count, 8)


def bucket_widths(max_predictions_per_seq: int) -> tuple[int, ...]:
    """Returns the numbers of masked positions that rows are padded to, at most four, ascending.

    Example: with `max_predictions_per_seq` 20 they are 5, 10, 15 and 20.
    """
    return _bucket_sizes(max_predictions_per_seq, 4, 1)


def padded_length(length: int, max_seq_length: int, count: int = _NUM_LENGTHS) -> int:
    """Returns the length, of `count`, that an input of at most `max_seq_length` tokens gets."""
    lengths = bucket_lengths(max_seq_length, count)
    return lengths[bisect.bisect_left(lengths, length)]


def group_batches(batch_size: int, num_batches: int) -> int:
    """Returns the number of batches in a group.

    It is the largest divisor of an update's number of batches that fits the size of a group.
    """
    max_batches = min(max(1, _MAX_GROUP // batch_size), num_batches)
    return max(count for count in range(1, max_batches + 1) if num_batches % count == 0)


def plan_microbatches(
    lengths: np.ndarray,
    *,
    batch_size: int,
    num_batches: int,
    max_seq_length: int,
    num_lengths: int,
    microbatch_cost: int,
    multiple: int = 1,
) -> MicrobatchPlan:
    """Returns the cheapest plan: padded tokens and microbatches both have a cost.

    A microbatch has at most `batch_size` examples. If all lengths are similar, there are as many
    microbatches as batches.

    Example: 4 inputs have the lengths 10, 10, 10 and 500. One microbatch has 4 · 512 = 2,048
    padded tokens, two have 2 · 64 + 2 · 512 = 1,152, four have 3 · 64 + 512 = 704. If a
    microbatch costs as much as 500 tokens, two are best: 2,548, 2,152 and 2,704.

    Args:
        lengths: int [N], numbers of tokens of a sample of the inputs.
        batch_size: examples of a batch.
        num_batches: batches of an update.
        max_seq_length: of the inputs.
        num_lengths: maximum number of padded lengths.
        microbatch_cost: fixed cost of a microbatch, in tokens.
        multiple: divisor of the number of examples of a microbatch; it divides `batch_size`.
    """
    batches = group_batches(batch_size, num_batches)
    size = batches * batch_size
    if num_lengths == 1 or not len(lengths):
        return MicrobatchPlan(size, batches)
    sizes = np.array(bucket_lengths(max_seq_length, num_lengths))
    drawn = np.sort(seeding.keyed_rng(0, "chunk plan").choice(lengths, (_NUM_DRAWS, size)), axis=1)

    def cost(count: int) -> float:
        longest = drawn.reshape(_NUM_DRAWS, count, -1).max(axis=2)
        padded = sizes[np.searchsorted(sizes, longest)]
        return float(padded.sum(axis=1).mean() * (size // count)) + count * microbatch_cost

    counts = [
        count for count in range(batches, size + 1, batches) if size % (count * multiple) == 0
    ]
    return MicrobatchPlan(size, min(counts, key=cost), num_lengths)
