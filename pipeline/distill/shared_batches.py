"""Training batches of several processes, each of which has read its own part of every group.

All must compute in the same shapes, and a chunk must count by what it has in all of them.
So each group's measures go from each process to all, while the group before is computed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from data_specs import records
from pipeline.distill.settings import LOSS_SHARES
from pipeline.storage import length_buckets
from pipeline.storage.manifest import Manifest

Arrays = dict[str, np.ndarray]
_LENGTHS = (records.INPUT_IDS, records.INPUT_MASK, records.SEGMENT_IDS)


def agreed_batches(
    groups: Iterable[tuple[Arrays, Arrays, np.ndarray]],
    manifest: Manifest,
    *,
    num_lengths: int,
    gather: Callable[[np.ndarray], Any],
) -> Iterator[tuple[Arrays, Arrays]]:
    """Yields this process's rows of the chunks that all processes compute together.

    Args:
        groups: as `pipeline.distill.targets.training_groups` yields them.
        manifest: gives the largest L and P.
        num_lengths: lengths, at most, that chunks are padded to.
        gather: begins to give every process the measures of all, as rows.

    Yields:
        inputs and targets, [rows, L', …] and [rows, P', …], with `LOSS_SHARES`.
    """
    lengths = (manifest.max_seq_length,)
    widths = (manifest.max_predictions_per_seq,)
    if num_lengths > 1:
        lengths = length_buckets.bucket_lengths(lengths[0], num_lengths)
        widths = length_buckets.bucket_widths(widths[0])
    waiting = None
    for inputs, targets, measures in groups:
        # Before the group at hand is yielded: devices get to it while they still compute.
        begun = gather(measures)
        if waiting is not None:
            yield from _chunks(*waiting, lengths, widths)
        waiting = inputs, targets, begun
    if waiting is not None:
        yield from _chunks(*waiting, lengths, widths)


def _chunks(
    inputs: Arrays,
    targets: Arrays,
    gathered: Any,
    lengths: tuple[int, ...],
    widths: tuple[int, ...],
) -> Iterator[tuple[Arrays, Arrays]]:
    """Yields the chunks of a group, trimmed to what all processes need."""
    measures = np.asarray(gathered)
    longest, most = measures[..., :2].max(axis=0).T
    shares = loss_shares(measures[..., 2:].sum(axis=0))
    for number, share in enumerate(shares):
        length = lengths[np.searchsorted(lengths, longest[number])]
        width = widths[np.searchsorted(widths, most[number])]
        rows = inputs[records.INPUT_IDS].shape[1]
        yield (
            {
                name: value[number, :, : length if name in _LENGTHS else width]
                for name, value in inputs.items()
            },
            _cut(targets, number, width) | {LOSS_SHARES: np.tile(share, (rows, 1))},
        )


def _cut(targets: Mapping[str, np.ndarray], number: int, width: int) -> Arrays:
    return {name: value[number, :, :width] for name, value in targets.items()}


def loss_shares(counts: np.ndarray) -> np.ndarray:
    """Returns how much each chunk counts for the losses of its group.

    Example: of chunks with 2 and 6 masked positions the shares are 0.5 and 1.5.

    Args:
        counts: float32 [C, 3], of masked positions, tokens and pairs of tokens.

    Returns:
        float32 [C, 3]; 0 where no chunk has any.
    """
    means = counts.mean(axis=0)
    return np.divide(counts, means, out=np.zeros_like(counts), where=means > 0)
