"""The teacher's forward pass over batches of masked examples.

Examples of a block are sorted by length and cut into batches; each batch is
padded to the next of at most eight lengths, so that a compiler sees a bounded
number of shapes, and a batch depends on nothing but its block.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from data_specs import records
from pipeline.base.errors import InputError, Setting
from pipeline.models.masked_lm import MaskedLM
from pipeline.storage import length_buckets
from pipeline.storage.manifest import Manifest
from pipeline.storage.records import MaskedExample

# Masked positions of a batch are padded to a multiple of this.
POSITION_STEP = 4
# Of shape [B, L] and [B, P].
_TOKEN_INPUTS = (records.INPUT_IDS, records.INPUT_MASK, records.SEGMENT_IDS)
_POSITION_INPUTS = (records.MASKED_LM_POSITIONS, records.MASKED_LM_IDS)

Arrays = dict[str, np.ndarray]
# From the teacher's `activations` and the batch to what is kept of them.
Keep = Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]


def length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[np.ndarray]:
    """Yields the indices of batches of similar length, together covering all examples.

    Args:
        lengths: tokens of each example.
        batch_size: examples of a batch; the last may have fewer.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    for begin in range(0, len(order), batch_size):
        yield order[begin : begin + batch_size]


def build_batch(
    examples: Sequence[MaskedExample],
    *,
    batch_size: int,
    max_seq_length: int,
    max_predictions_per_seq: int,
) -> Arrays:
    """Pads examples to a batch of one of a bounded number of shapes.

    Args:
        examples: at most `batch_size`; rows beyond them are empty.
        batch_size: B.
        max_seq_length: of the cache.
        max_predictions_per_seq: of the cache.

    Returns:
        int32 arrays by BERT's names: `input_ids`, `input_mask`, `segment_ids`
        [B, L]; `masked_lm_positions`, `masked_lm_ids` [B, P].
    """
    longest = max(len(example.input_ids) for example in examples)
    most = max(len(example.masked_lm_ids) for example in examples)
    length = length_buckets.padded_length(longest, max_seq_length)
    positions = min(-(-most // POSITION_STEP) * POSITION_STEP, max_predictions_per_seq)
    batch = {name: np.zeros((batch_size, length), np.int32) for name in _TOKEN_INPUTS}
    batch |= {name: np.zeros((batch_size, positions), np.int32) for name in _POSITION_INPUTS}
    for row, example in enumerate(examples):
        count, masked = len(example.input_ids), len(example.masked_lm_ids)
        batch[records.INPUT_IDS][row, :count] = example.input_ids
        batch[records.INPUT_MASK][row, :count] = 1
        batch[records.SEGMENT_IDS][row, int(example.segment_lengths[0]) : count] = 1
        batch[records.MASKED_LM_POSITIONS][row, :masked] = example.masked_lm_positions
        batch[records.MASKED_LM_IDS][row, :masked] = example.masked_lm_ids
    return batch


def run_examples(
    forward: Callable[[Arrays], Arrays],
    examples: Sequence[MaskedExample],
    manifest: Manifest,
    *,
    batch_size: int,
) -> Iterator[tuple[np.ndarray, Arrays]]:
    """Yields the indices of a batch's examples and the output for it, the shortest first.

    Args:
        forward: as `compile_forward` returns it.
        examples: of the directory that has the manifest.
        manifest: bounds the shapes.
        batch_size: B.
    """
    for indices in length_batches([len(one.input_ids) for one in examples], batch_size):
        batch = build_batch(
            [examples[index] for index in indices],
            batch_size=batch_size,
            max_seq_length=manifest.max_seq_length,
            max_predictions_per_seq=manifest.max_predictions_per_seq,
        )
        yield indices, forward(batch)


def real_positions(
    output: Mapping[str, np.ndarray], examples: Sequence[MaskedExample]
) -> tuple[Arrays, np.ndarray]:
    """Removes the padding of a batch's output; embeddings, which are of examples, are left out.

    Args:
        output: [B, P, …] each but the embeddings, as the compiled forward pass returns it.
        examples: those of the batch.

    Returns:
        the arrays, [positions, …] each; int [examples + 1], where each example's positions
        begin.
    """
    counts = np.array([len(example.masked_lm_ids) for example in examples])
    output = {name: value for name, value in output.items() if name != records.EMBEDDING}
    width = next(iter(output.values())).shape[1]
    real = np.arange(width) < counts[:, np.newaxis]
    kept = {name: value[: len(examples)][real] for name, value in output.items()}
    return kept, np.concatenate([[0], np.cumsum(counts)])


def expect_finite(logits: np.ndarray) -> None:
    """Raises InputError where a teacher's logits are NaN or infinite."""
    if not np.isfinite(logits).all():
        hint = "is the checkpoint damaged, or does `compute_dtype` not suit it?"
        raise InputError(Setting("teacher"), "finite logits", "NaN or infinity", hint)


def compile_forward(model: MaskedLM, keep: Keep) -> Callable[[Arrays], Arrays]:
    """Compiles a model's forward pass and what is kept of its output.

    On TensorFlow one graph serves all shapes, whatever comes first: a shard
    that is redone meets the same kernels. On JAX there is a program a shape.

    Args:
        model: computes a batch, not in training.
        keep: called inside the graph; activations that it does not use are not computed.

    Returns:
        a function from a batch, as `build_batch` returns it, to NumPy arrays.
    """
    if keras.config.backend() == "jax":
        return _compile_jax(model, keep)
    return _compile_tensorflow(model, keep)


def stateless_forward(
    model: MaskedLM, keep: Keep
) -> Callable[[Sequence[Any], Mapping[str, Any]], Any]:
    """Returns a forward pass as a function of the values of `model.variables` and a batch.

    Args:
        model: computes a batch, not in training.
        keep: as `compile_forward` takes it.
    """
    variables = model.variables

    def forward(values: Sequence[Any], batch: Mapping[str, Any]) -> Any:
        with keras.StatelessScope(state_mapping=zip(variables, values, strict=True)):
            return keep(model.activations(batch, training=False), batch)

    return forward


def _compile_jax(model: MaskedLM, keep: Keep) -> Callable[[Arrays], Arrays]:
    import jax

    forward = jax.jit(stateless_forward(model, keep))
    values = [variable.value for variable in model.variables]
    return lambda batch: jax.device_get(forward(values, batch))


def _compile_tensorflow(model: MaskedLM, keep: Keep) -> Callable[[Arrays], Arrays]:
    import tensorflow as tf

    names = (*_TOKEN_INPUTS, *_POSITION_INPUTS)

    @tf.function(input_signature=[{name: tf.TensorSpec([None, None], tf.int32) for name in names}])
    def forward(batch):
        return keep(model.activations(batch, training=False), batch)

    return lambda batch: {name: value.numpy() for name, value in forward(batch).items()}
