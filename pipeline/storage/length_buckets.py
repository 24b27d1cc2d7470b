"""Inputs of similar length together, each chunk padded to one of a few sizes.

A batch is as long as its longest input, so that an input among longer ones costs
what they cost; and a compiler makes a program for each shape it meets. Hence the
inputs of a batch are sorted by length and cut into chunks, and lengths are rounded up.
"""

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from pipeline.base import seeding

# Examples that are sorted together at most, unless a batch has more: they are decoded at once.
_MAX_GROUP = 512
# Groups drawn to see how long chunks become.
_NUM_DRAWS = 64
_NUM_LENGTHS = 8
# A program takes minutes to compile there, and its tiles have 128 columns: of inputs of 512 tokens
# more lengths would save little.
_NUM_LENGTHS_ON_TPU = 4


@dataclasses.dataclass(frozen=True)
class Chunking:
    """How the examples of an update are cut into parts that are computed one by one.

    Attributes:
        group_size: examples that are sorted by length together, and then cut.
        num_chunks: parts of a group, of equally many examples.
        num_lengths: lengths, at most, that parts are padded to; with 1 all have the
            longest, and nothing is sorted.
    """

    group_size: int
    num_chunks: int = 1
    num_lengths: int = 1


def _bucket_sizes(largest: int, count: int, multiple: int) -> tuple[int, ...]:
    step = -(-largest // count)
    step = -(-step // multiple) * multiple
    return (*range(step, largest, step), largest)


def choose_num_lengths(devices: Sequence[str]) -> int:
    """Returns the number of lengths where a setting leaves it open.

    Args:
        devices: Keras's names, such as `tpu:0`.
    """
    on_tpu = any(device.startswith("tpu") for device in devices)
    return _NUM_LENGTHS_ON_TPU if on_tpu else _NUM_LENGTHS


def bucket_lengths(max_seq_length: int, count: int = _NUM_LENGTHS) -> tuple[int, ...]:
    """Returns the lengths that inputs are padded to, ascending.

    They are at most `count`, the last `max_seq_length`. Example: for 512 they are 64, 128, … 512.
    """
    # Kernels like lengths that are a multiple of 8.
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
    """Returns how many of an update's batches make a group: the most that fit and divide them."""
    most = max(1, _MAX_GROUP // batch_size)
    return max(count for count in range(1, min(most, num_batches) + 1) if num_batches % count == 0)


def plan_chunks(
    lengths: np.ndarray,
    *,
    batch_size: int,
    num_batches: int,
    max_seq_length: int,
    num_lengths: int,
    chunk_cost: int,
    multiple: int = 1,
) -> Chunking:
    """Returns into how many chunks to cut: where the padded tokens and the chunks cost least.

    A chunk has at most the examples of a batch. Lengths that are all alike give no
    reason to have more chunks than batches.

    Example: of 4 inputs of lengths 10, 10, 10 and 500, one chunk has 4 · 512 padded
    tokens, two have 2 · 64 + 2 · 512 = 1,152, four 3 · 64 + 512 = 704. With a cost of 500
    tokens a chunk, two are best: 2,548, 2,152 and 2,704.

    Args:
        lengths: int [N], tokens of some of the inputs.
        batch_size: examples of a batch.
        num_batches: batches of an update.
        max_seq_length: of the cache.
        num_lengths: lengths, at most.
        chunk_cost: what a chunk costs whatever is in it, in tokens.
        multiple: what the examples of a chunk are a multiple of; it divides `batch_size`.
    """
    batches = group_batches(batch_size, num_batches)
    size = batches * batch_size
    if num_lengths == 1 or not len(lengths):
        return Chunking(size, batches)
    sizes = np.array(bucket_lengths(max_seq_length, num_lengths))
    drawn = np.sort(seeding.stream(0, "chunk plan").choice(lengths, (_NUM_DRAWS, size)), axis=1)

    def cost(count: int) -> float:
        longest = drawn.reshape(_NUM_DRAWS, count, -1).max(axis=2)
        padded = sizes[np.searchsorted(sizes, longest)]
        return float(padded.sum(axis=1).mean() * (size // count)) + count * chunk_cost

    counts = [
        count for count in range(batches, size + 1, batches) if size % (count * multiple) == 0
    ]
    return Chunking(size, min(counts, key=cost), num_lengths)
