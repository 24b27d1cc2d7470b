"""Batches of masked examples for the teacher, and its forward pass compiled.

Examples of a block are sorted by length and cut into batches; each batch is
padded to the next of at most eight lengths, so that a compiler sees a bounded
number of shapes, and a batch depends on nothing but its block.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from data_specs import records
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from pipeline.models.masked_lm import MaskedLM
from pipeline.storage import length_buckets, serialization
from pipeline.storage.manifest import Manifest

# Masked positions of a batch are padded to a multiple of this.
POSITION_STEP = 4

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class MaskedExample:
    """An example as it was stored, with the parts that a batch needs decoded.

    Attributes:
        features: the record's features.
        input_ids: int [L].
        segment_lengths: int [S].
        masked_lm_positions: int [P].
        masked_lm_ids: int [P].
    """

    features: Mapping[str, bytes]
    input_ids: np.ndarray
    segment_lengths: np.ndarray
    masked_lm_positions: np.ndarray
    masked_lm_ids: np.ndarray


def decode_masked_example(features: Mapping[str, bytes], vocab_size: int) -> MaskedExample:
    """Decodes a record's features.

    Args:
        features: of one record.
        vocab_size: V; decides the dtype of ids.

    Raises:
        KeyError: a feature is missing.
        ValueError: one is damaged, or they contradict each other.
    """
    arrays = {
        feature.name: np.frombuffer(features[feature.name], feature.numpy_dtype(vocab_size))
        for feature in records.MASKED_EXAMPLE_FEATURES
        if feature.name != records.EXAMPLE_ID
    }
    example = MaskedExample(features, **arrays)
    length, positions = len(example.input_ids), example.masked_lm_positions
    if not len(example.segment_lengths) or example.segment_lengths.sum() != length:
        raise ValueError(f"expected segments of {length} tokens, received others")
    if len(positions) != len(example.masked_lm_ids) or positions.max(initial=0) >= length:
        raise ValueError(f"expected a label at each masked position below {length}")
    for ids in (example.input_ids, example.masked_lm_ids):
        if ids.min(initial=0) < 0 or ids.max(initial=0) >= vocab_size:
            raise ValueError(f"expected ids of {vocab_size} tokens, received others")
    return example


def decode_record(record: bytes, manifest: Manifest) -> MaskedExample:
    """Decodes a record of masked examples, or of a teacher cache.

    Args:
        record: as it was stored.
        manifest: of its directory.

    Raises:
        KeyError: a feature is missing.
        ValueError: one is damaged, they contradict each other, or they are longer than
            the manifest says.
    """
    example = decode_masked_example(serialization.decode_example(record), manifest.vocab.size)
    limits = (
        (example.input_ids, manifest.max_seq_length),
        (example.masked_lm_ids, manifest.max_predictions_per_seq),
    )
    for ids, most in limits:
        if len(ids) > most:
            raise ValueError(f"expected at most {most} ids, received {len(ids)}")
    return example


def read_examples(path: Location, manifest: Manifest) -> Iterator[MaskedExample]:
    """Yields the examples of a shard, decoded.

    Args:
        path: the shard.
        manifest: of its directory.

    Raises:
        InputError: the file or a record is damaged; names it.
    """
    for index, record in enumerate(serialization.read_records(path)):
        try:
            yield decode_record(record, manifest)
        except (KeyError, ValueError) as error:
            raise InputError(path, received=f"broken record {index}: {error}") from error


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


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
    positions = min(_round_up(most, POSITION_STEP), max_predictions_per_seq)
    names = (records.INPUT_IDS, records.INPUT_MASK, records.SEGMENT_IDS)
    batch = {name: np.zeros((batch_size, length), np.int32) for name in names}
    for name in (records.MASKED_LM_POSITIONS, records.MASKED_LM_IDS):
        batch[name] = np.zeros((batch_size, positions), np.int32)
    for row, example in enumerate(examples):
        count, masked = len(example.input_ids), len(example.masked_lm_ids)
        batch[records.INPUT_IDS][row, :count] = example.input_ids
        batch[records.INPUT_MASK][row, :count] = 1
        batch[records.SEGMENT_IDS][row, int(example.segment_lengths[0]) : count] = 1
        batch[records.MASKED_LM_POSITIONS][row, :masked] = example.masked_lm_positions
        batch[records.MASKED_LM_IDS][row, :masked] = example.masked_lm_ids
    return batch


def compile_forward(
    model: MaskedLM, keep: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
) -> Callable[[Arrays], Arrays]:
    """Compiles a model's forward pass and what is kept of its output.

    On TensorFlow one graph serves all shapes, whatever comes first: a shard
    that is redone meets the same kernels. On JAX there is a program a shape.

    Args:
        model: computes a batch, not in training.
        keep: called with the model's `activations` and the batch, inside the
            graph; what it does not use is not computed.

    Returns:
        a function from a batch, as `build_batch` returns it, to NumPy arrays.
    """
    if keras.config.backend() == "jax":
        return _compile_jax(model, keep)
    return _compile_tensorflow(model, keep)


def stateless_forward(
    model: MaskedLM, keep: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
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


def _compile_jax(model: MaskedLM, keep: Callable) -> Callable[[Arrays], Arrays]:
    import jax

    forward = jax.jit(stateless_forward(model, keep))
    values = [variable.value for variable in model.variables]
    return lambda batch: jax.device_get(forward(values, batch))


def _compile_tensorflow(model: MaskedLM, keep: Callable) -> Callable[[Arrays], Arrays]:
    import tensorflow as tf

    names = (
        records.INPUT_IDS,
        records.INPUT_MASK,
        records.SEGMENT_IDS,
        records.MASKED_LM_POSITIONS,
        records.MASKED_LM_IDS,
    )
    signature = {name: tf.TensorSpec([None, None], tf.int32) for name in names}

    @tf.function(input_signature=[signature])
    def forward(batch):
        return keep(model.activations(batch, training=False), batch)

    return lambda batch: {name: value.numpy() for name, value in forward(batch).items()}
