"""Computation in blocks of positions, for logits [B, P, V] that are too large at once.

With a vocabulary of 256,000 tokens the logits of 64 × 76 masked positions take 5 GB. A top-k or
a loss makes several tables of that size. With blocks, only the tables of one block exist at a
time. A training step computes each block a second time for its gradient (Chen et
al., "Training Deep Nets with Sublinear Memory Cost", 2016).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

# The largest float32 table of logits. It holds 64 × 76 positions of 30,522 tokens, so that the
# default batch of a BERT of 512 tokens is a single block.
_MAX_TABLE_BYTES = 640 * 2**20

Arrays = Mapping[str, Any]


def block_size(*, batch_size: int, num_positions: int, vocab_size: int) -> int | None:
    """Returns the maximum number of positions of a row in a block.

    None means that the whole batch fits in one block.

    Args:
        batch_size: the largest B.
        num_positions: the largest P.
        vocab_size: V.
    """
    column_bytes = 4 * batch_size * vocab_size
    if column_bytes * num_positions <= _MAX_TABLE_BYTES:
        return None
    return max(1, _MAX_TABLE_BYTES // column_bytes)


def over_positions(
    function: Callable[[Sequence[Any], Arrays], dict[str, Any]],
    constants: Sequence[Any],
    arrays: Arrays,
    *,
    size: int | None,
    recompute: bool = False,
) -> dict[str, Any]:
    """Applies a function that treats positions independently, block by block.

    Args:
        function: maps the constants and the arrays of a block of p positions, [B, p, …]
            each, to arrays [B, p, …] by name.
        constants: tensors that all blocks share. Gradients flow only to these and to the
            arrays, not to other tensors that the function uses.
        arrays: [B, P, …] each.
        size: the maximum number of positions of a block; None for all at once.
        recompute: whether to compute a block a second time for its gradient. All results must
            then be floats.

    Returns:
        the function's results, [B, P, …] each.
    """
    if size is None:
        return function(constants, arrays)
    length = ops.shape(next(iter(arrays.values())))[1]
    num_blocks = -(-length // size)
    # Blocks get equal sizes, so that the last one has the fewest padding positions.
    size = -(-length // num_blocks)
    blocks = {name: _cut(array, num_blocks, size) for name, array in arrays.items()}
    compute = keras.remat(function) if recompute else function
    results = _map(lambda block: compute(constants, block), blocks)
    return {name: _join(result)[:, :length] for name, result in results.items()}


def _cut(array: Any, num_blocks: Any, size: Any) -> Any:
    """Returns [B, P, …] as [blocks, B, size, …], with zeros after the last position."""
    shape = ops.shape(array)
    rest = len(shape) - 2
    padded = ops.pad(array, [(0, 0), (0, num_blocks * size - shape[1]), *[(0, 0)] * rest])
    split = ops.reshape(padded, (shape[0], num_blocks, size, *shape[2:]))
    return ops.transpose(split, (1, 0, *range(2, rest + 3)))


def _join(blocks: Any) -> Any:
    """Returns [blocks, B, size, …] as [B, blocks · size, …]."""
    shape = ops.shape(blocks)
    joined = ops.transpose(blocks, (1, 0, *range(2, len(shape))))
    return ops.reshape(joined, (shape[1], shape[0] * shape[2], *shape[3:]))


def _map(function: Callable[[Arrays], dict[str, Any]], blocks: Arrays) -> dict[str, Any]:
    """Applies a function to the blocks one after another."""
    if keras.config.backend() != "tensorflow":
        return ops.map(function, dict(blocks))
    import tensorflow as tf

    # `ops.map` would compute ten blocks in parallel, and so need ten times the memory.
    first = function({name: block[0] for name, block in blocks.items()})
    signature = {name: tf.TensorSpec(value.shape, value.dtype) for name, value in first.items()}
    return tf.map_fn(function, dict(blocks), fn_output_signature=signature, parallel_iterations=1)
