"""Inputs of similar length together, each batch padded to one of a few sizes.

A batch is as long as its longest input, so that an input among longer ones costs
what they cost; and a compiler makes a program for each shape it meets. Hence inputs
are sorted by length within a stretch of the stream, and lengths are rounded up.
"""

import bisect
import itertools
from collections.abc import Iterator

import numpy as np

from pipeline import seeding

# Lengths of inputs, unless one asks for another number.
NUM_LENGTHS = 8
# Widths of the masked positions.
NUM_WIDTHS = 4
# Kernels like lengths that are a multiple of this.
_LENGTH_STEP = 8
# Batches of a window. Of Chinese reviews (94 tokens on average, at most 512) in batches
# of 32, 16 batches were padded to 138 tokens on average, 32 to 128, 64 to 125, and all
# of an epoch's 209 to 123.
_WINDOW_BATCHES = 32


def _bucket_sizes(largest: int, count: int, multiple: int) -> tuple[int, ...]:
    step = -(-largest // count)
    step = -(-step // multiple) * multiple
    return (*range(step, largest, step), largest)


def bucket_lengths(max_seq_length: int, count: int = NUM_LENGTHS) -> tuple[int, ...]:
    """Returns the lengths that inputs are padded to, ascending.

    Example: with `max_seq_length` 512 they are 64, 128, … 512.

    Args:
        max_seq_length: tokens of the longest input; the last of the lengths.
        count: at most so many.
    """
    return _bucket_sizes(max_seq_length, count, _LENGTH_STEP)


def bucket_widths(max_predictions_per_seq: int) -> tuple[int, ...]:
    """Returns the numbers of masked positions that rows are padded to, at most four, ascending.

    Example: with `max_predictions_per_seq` 20 they are 5, 10, 15 and 20.
    """
    return _bucket_sizes(max_predictions_per_seq, NUM_WIDTHS, 1)


def padded_length(length: int, max_seq_length: int) -> int:
    """Returns the length that an input is padded to: one of at most eight.

    Args:
        length: its tokens, at most `max_seq_length`.
        max_seq_length: of the cache.
    """
    lengths = bucket_lengths(max_seq_length)
    return lengths[bisect.bisect_left(lengths, length)]


def window_batches(num_examples: int, batch_size: int, buffer: int) -> int:
    """Returns how many batches make a window, within which training sorts by length.

    A window is no longer than an epoch, which would bring copies of an example, all
    of one length, into one batch; and no larger than the shuffle buffer beside it.

    Args:
        num_examples: of the split.
        batch_size: examples of a batch.
        buffer: examples in the shuffle buffer.
    """
    return max(1, min(_WINDOW_BATCHES, num_examples // batch_size, buffer // batch_size))


def batch_orders(num_batches: int, *, seed: int, start: int) -> Iterator[np.ndarray]:
    """Yields in which order the batches of a window are taken, window after window, without end.

    Args:
        num_batches: batches of a window.
        seed: the run's seed.
        start: the first window's number.

    Yields:
        int64 [num_batches], a permutation.
    """
    for window in itertools.count(start):
        yield seeding.stream(seed, "batch order", window).permutation(num_batches)
