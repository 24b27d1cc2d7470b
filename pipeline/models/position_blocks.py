"""Computation in blocks of positions, where a whole table of [B, P, V] numbers is too large.

With a vocabulary of 256,000 tokens the logits of 64 × 76 masked positions take 5 GB, and a
top-k or a loss makes several tables of that size. In blocks only those of one block exist at
a time. A training step computes each block once more for its gradient (Chen et al.,
"Training Deep Nets with Sublinear Memory Cost", 2016).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

# The largest table of logits, float32: enough for 64 × 76 positions of 30,522 tokens, the
# default batch of a BERT of 512 tokens, which is not cut.
_MAX_TABLE_BYTES = 640 * 2**20

Arrays = Mapping[str, Any]


def block_size(*, batch_size: int, num_positions: int, vocab_size: int) -> int | None:
    """Returns the most positions of a row in a block; None where the whole batch fits.

    Args:
        batch_size: B, at most.
        num_positions: P, at most.
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
    """Applies a function of positions, which treats each for itself, block by block.

    Args:
        function: from the constants and the arrays of a block of p positions, [B, p, …]
            each, to arrays [B, p, …] by name.
        constants: tensors that all blocks share. A gradient reaches only these and the
            arrays, nothing that the function takes from elsewhere.
        arrays: [B, P, …] each.
        size: the most positions of a block; None for all at once.
        recompute: whether to compute a block once more for its gradient. All results must be
            floats then.

    Returns:
        the function's results, [B, P, …] each.
    """
    if size is None:
        return function(constants, arrays)
    length = ops.shape(next(iter(arrays.values())))[1]
    num_blocks = -(-length // size)
    # Blocks of equal size: the last one has the fewest padding positions.
    size = -(-length // num_blocks)
    blocks = {name: _cut(array, num_blocks, size) for name, array in arrays.items()}
    compute = keras.remat(function) if recompute else function
    results = _map(lambda block: compute(constants, block), blocks)
    return {name: _join(result)[:, :length] for name, result in results.items()}


def _cut(array: Any, num_blocks: Any, size: Any) -> Any:
    """Returns [B, P, …] as [blocks, B, size, …], with zeros behind the last position."""
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
    """Applies a function to each block, one after the other."""
    if keras.config.backend() != "tensorflow":
        return ops.map(function, dict(blocks))
    import tensorflow as tf

    # As `ops.map`, which would compute ten blocks side by side.
    first = function({name: block[0] for name, block in blocks.items()})
    signature = {name: tf.TensorSpec(value.shape, value.dtype) for name, value in first.items()}
    return tf.map_fn(function, dict(blocks), fn_output_signature=signature, parallel_iterations=1)
