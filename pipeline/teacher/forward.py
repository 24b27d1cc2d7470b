"""The teacher's forward pass over batches of masked examples.

The examples of a block are sorted by length and cut into batches. Each batch is padded to the
next of at most eight lengths, so that the number of compiled shapes is bounded. A batch depends
only on its block.
"""

import collections
import dataclasses
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
# Inputs of shape [B, L], then those of shape [B, P].
_TOKEN_INPUTS = (records.INPUT_IDS, records.INPUT_MASK, records.SEGMENT_IDS)
_POSITION_INPUTS = (records.MASKED_LM_POSITIONS, records.MASKED_LM_IDS)

Arrays = dict[str, np.ndarray]
# A function from the teacher's `activations` and the batch to the values that are stored.
Selector = Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class CompiledForward:
    """A teacher's compiled forward pass, from a batch to NumPy arrays of the stored values.

    Attributes:
        start: begins to compute a batch, as `build_batch` returns it, without waiting.
    """

    start: Callable[[Arrays], Any]

    def __call__(self, batch: Arrays) -> Arrays:
        return self.fetch(self.start(batch))

    def fetch(self, output: Any) -> Arrays:
        """Waits for the output that `start` returned; returns it as NumPy arrays."""
        if keras.config.backend() == "jax":
            import jax

            # Fetching all arrays in one call lets their copies overlap.
            return jax.device_get(output)
        return {name: np.asarray(value) for name, value in output.items()}


def length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[np.ndarray]:
    """Yields the indices of the examples of each batch, from the shortest examples to the longest.

    Args:
        lengths: number of tokens of each example.
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
    """Pads examples to a batch; the number of possible shapes is bounded.

    Args:
        examples: at most `batch_size`; the remaining rows are zeros.
        batch_size: B.
        max_seq_length: of the masked examples.
        max_predictions_per_seq: of the masked examples.

    Returns:
        int32 arrays under BERT's names: `input_ids`, `input_mask`, `segment_ids`
        [B, L]; `masked_lm_positions`, `masked_lm_ids` [B, P].
    """
    longest = max(len(example.input_ids) for example in examples)
    most = max(len(example.masked_lm_ids) for example in examples)
    num_lengths = length_buckets.choose_num_lengths(keras.distribution.list_devices())
    length = length_buckets.padded_length(longest, max_seq_length, num_lengths)
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
    forward: CompiledForward,
    examples: Sequence[MaskedExample],
    manifest: Manifest,
    *,
    batch_size: int,
) -> Iterator[tuple[np.ndarray, Arrays]]:
    """Yields the indices of a batch's examples and the output for them, the shortest first.

    On JAX, a batch is computed while the output of the previous one is fetched and used.

    Args:
        forward: as `compile_forward` returns it.
        examples: from the directory of the manifest.
        manifest: gives the bounds of the shapes.
        batch_size: B.
    """
    # TensorFlow returns tensors on a CPU only when they are computed.
    ahead = 1 if keras.config.backend() == "jax" else 0
    started: collections.deque[tuple[np.ndarray, Any]] = collections.deque()
    for indices in length_batches([len(example.input_ids) for example in examples], batch_size):
        batch = build_batch(
            [examples[index] for index in indices],
            batch_size=batch_size,
            max_seq_length=manifest.max_seq_length,
            max_predictions_per_seq=manifest.max_predictions_per_seq,
        )
        started.append((indices, forward.start(batch)))
        if len(started) > ahead:
            indices, output = started.popleft()
            yield indices, forward.fetch(output)
    for indices, output in started:
        yield indices, forward.fetch(output)


def real_positions(
    output: Mapping[str, np.ndarray], examples: Sequence[MaskedExample]
) -> tuple[Arrays, np.ndarray]:
    """Removes the padded positions from a batch's output, and the embeddings of whole examples.

    Args:
        output: [B, P, …] each except the embeddings, as the compiled forward pass returns it.
        examples: those of the batch.

    Returns:
        the arrays, [positions, …] each; int [examples + 1], the row splits of the examples.
    """
    counts = np.array([len(example.masked_lm_ids) for example in examples])
    output = {name: value for name, value in output.items() if name != records.EMBEDDING}
    width = next(iter(output.values())).shape[1]
    is_real = np.arange(width) < counts[:, np.newaxis]
    arrays = {name: value[: len(examples)][is_real] for name, value in output.items()}
    return arrays, np.concatenate([[0], np.cumsum(counts)])


def expect_finite(logits: np.ndarray) -> None:
    """Raises InputError if a teacher's logits are NaN or infinite."""
    if not np.isfinite(logits).all():
        hint = "check the checkpoint for damage, or try `compute_dtype`=float32"
        raise InputError(Setting("teacher"), "a model with finite logits", "NaN or infinity", hint)


def compile_forward(
    model: MaskedLM, select: Selector, *, devices: Sequence[Any] | None = None
) -> CompiledForward:
    """Compiles a model's forward pass together with the selection of the stored values.

    On TensorFlow, one graph serves all shapes, so that a shard that is made again uses the same
    kernels. On JAX, each shape has its own program.

    Args:
        model: runs in inference mode.
        select: called inside the graph; activations that it does not use are not computed.
        devices: JAX devices, each of which computes an equal part of a batch; one by default.
            Their number must divide the batch size.
    """
    if keras.config.backend() == "jax":
        return CompiledForward(_compile_jax(model, select, devices))
    return CompiledForward(_compile_tensorflow(model, select))


def stateless_forward(
    model: MaskedLM, select: Selector
) -> Callable[[Sequence[Any], Mapping[str, Any]], Any]:
    """Returns a forward pass as a function of the values of `model.variables` and a batch.

    Args:
        model: runs in inference mode.
        select: as `compile_forward` takes it.
    """
    variables = model.variables

    def forward(values: Sequence[Any], batch: Mapping[str, Any]) -> Any:
        with keras.StatelessScope(state_mapping=zip(variables, values, strict=True)):
            return select(model.activations(batch, training=False), batch)

    return forward


def divided_forward(
    model: MaskedLM, select: Selector, devices: Sequence[Any]
) -> tuple[Callable[[Sequence[Any], Mapping[str, Any]], Any], Any, Any]:
    """Returns a forward pass in which each device computes its part of a batch.

    The devices do not communicate. Each holds all weights and runs the program that a single
    device would run on that part.

    Args:
        model: as `stateless_forward` takes it.
        select: as `stateless_forward` takes it.
        devices: JAX devices.

    Returns:
        the function; the sharding of weights; the sharding of batches and outputs.
    """
    import jax

    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    whole, divided = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("batch")
    forward = jax.shard_map(
        stateless_forward(model, select),
        mesh=mesh,
        in_specs=(whole, divided),
        out_specs=divided,
        check_vma=False,
    )
    return (
        forward,
        jax.sharding.NamedSharding(mesh, whole),
        jax.sharding.NamedSharding(mesh, divided),
    )


def _compile_jax(
    model: MaskedLM, select: Selector, devices: Sequence[Any] | None
) -> Callable[[Arrays], Any]:
    import jax

    values = [variable.value for variable in model.variables]
    if devices is None:
        forward = jax.jit(stateless_forward(model, select))
        return lambda batch: forward(values, batch)
    divided, whole_sharding, batch_sharding = divided_forward(model, select, devices)
    forward = jax.jit(divided)
    values = jax.device_put(values, whole_sharding)
    # The first device would otherwise hold the original weights and their copy.
    for variable, value in zip(model.variables, values, strict=True):
        variable.assign(value)
    return lambda batch: forward(values, jax.device_put(batch, batch_sharding))


def _compile_tensorflow(model: MaskedLM, select: Selector) -> Callable[[Arrays], Any]:
    import tensorflow as tf

    names = (*_TOKEN_INPUTS, *_POSITION_INPUTS)

    @tf.function(input_signature=[{name: tf.TensorSpec([None, None], tf.int32) for name in names}])
    def forward(batch):
        return select(model.activations(batch, training=False), batch)

    return forward
