"""Batches as NumPy arrays, by the names of inputs and outputs. Imports nothing heavy."""

from collections.abc import Callable, Mapping

import numpy as np

from data_specs.records import INPUT_IDS, INPUT_MASK, SEGMENT_IDS

Arrays = dict[str, np.ndarray]
# Computes a batch: arrays by the names of a program's inputs to arrays by those of its outputs.
Run = Callable[[Mapping[str, np.ndarray]], Arrays]


def example_batch(input_ids: np.ndarray, first_segment: int | None = None) -> Arrays:
    """Returns one example as a batch, without padding.

    Args:
        input_ids: int [L].
        first_segment: tokens of the first segment; None where it is the only one.

    Returns:
        int32 [1, L] by BERT's names.
    """
    ids = np.asarray(input_ids, np.int32)[None]
    segments = np.zeros_like(ids)
    if first_segment is not None:
        segments[:, first_segment:] = 1
    return {INPUT_IDS: ids, INPUT_MASK: np.ones_like(ids), SEGMENT_IDS: segments}
