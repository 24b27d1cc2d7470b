"""Compiled forward passes of an encoder, on a device and with a precision."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data_specs import records
from pipeline.base import seeding
from pipeline.models.formats.model_directory import (
    ModelSource,
    assign_weights,
    get_weights,
)
from pipeline.models.weight_names import encoder_table

Arrays = dict[str, np.ndarray]
# Maps a batch to the result as NumPy arrays.
Forward = Callable[[Mapping[str, np.ndarray]], Any]
# Maps the last hidden states [B, L, D] and the mask [B, L] to the result of a forward pass.
Selector = Callable[[Any, Any], Any]
_SEED = 12345
_INPUTS = (records.INPUT_IDS, records.INPUT_MASK, records.SEGMENT_IDS)


@dataclasses.dataclass(frozen=True)
class Batches:
    """Random input sequences.

    Attributes:
        seq_length: L, the number of tokens of a sequence.
        size: sequences per batch for the throughput.
    """

    seq_length: int
    size: int

    def draw(self, num_sequences: int, vocab_size: int) -> Arrays:
        """Returns sequences without padding, int32 [B, L], under BERT's names."""
        shape = (num_sequences, self.seq_length)
        rng = seeding.keyed_rng(_SEED, "sequences", num_sequences)
        return {
            records.INPUT_IDS: rng.integers(0, vocab_size, shape, dtype=np.int32),
            records.INPUT_MASK: np.ones(shape, np.int32),
            records.SEGMENT_IDS: np.zeros(shape, np.int32),
        }


def _load(source: ModelSource, dtype: str) -> Any:
    """Loads a model's encoder; the head, which is never computed, has random weights."""
    from pipeline.models.masked_lm import MaskedLM

    model = MaskedLM(source.config, dtype=dtype)
    if source.has_weights:
        encoder = source.read_weights(encoder_table(source.config))
        assign_weights(model, get_weights(model) | encoder)
    return model


def _last_states(states: Any, mask: Any) -> Any:
    from keras import ops

    del mask
    return ops.cast(states, "float32")


def keras_forward(
    source: ModelSource, device: str, compute_dtype: str, select: Selector = _last_states
) -> Forward:
    """Loads a model and compiles its encoder.

    Args:
        source: a model directory with weights.
        device: Keras's name of the device.
        compute_dtype: name of a dtype policy.
        select: computes the result; by default the last hidden states, float32 [B, L, D].
    """
    import keras

    with keras.device(device):
        model = _load(source, compute_dtype)
    if keras.config.backend() == "jax":
        return _jax_forward(model, device, select)
    return _tensorflow_forward(model, device, select)


def _jax_forward(model: Any, device: str, select: Selector) -> Forward:
    import jax

    from pipeline.teacher import forward

    platform, _, index = device.partition(":")
    target = jax.devices(platform)[int(index)]
    values = jax.device_put([variable.value for variable in model.variables], target)
    forward = jax.jit(
        forward.stateless_forward(
            model,
            lambda outputs, batch: select(
                outputs[records.HIDDEN_STATES][-1], batch[records.INPUT_MASK]
            ),
        )
    )
    return lambda batch: jax.device_get(forward(values, batch))


def _tensorflow_forward(model: Any, device: str, select: Selector) -> Forward:
    import tensorflow as tf

    signature = {name: tf.TensorSpec([None, None], tf.int32) for name in _INPUTS}

    @tf.function(input_signature=[signature])
    def forward(batch):
        # The device must be set inside the graph. Otherwise the graph runs on a GPU, whatever
        # device is set outside.
        with tf.device(device):
            states = model.encoder(batch, training=False)[records.HIDDEN_STATES]
            return select(states[-1], batch[records.INPUT_MASK])

    return lambda batch: forward(batch).numpy()


def litert_forward(source: ModelSource) -> tuple[Forward, float]:
    """Converts a model's encoder to LiteRT with weights of 8 bits.

    Returns:
        the forward function, which uses all processors, and the size of the file in 10⁶ bytes.

    Raises:
        ExportError: LiteRT lacks an operation.
    """
    from tools.exports import litert
    from tools.exports.program import encoder_program

    program = encoder_program(_load(source, "float32"))
    content = litert.convert(program, quantized=True)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / litert.MODEL_FILE
        path.write_bytes(content)
        # The loaded model is in memory, so the temporary file is no longer needed.
        return litert.load(program, path), len(content) / 1e6
