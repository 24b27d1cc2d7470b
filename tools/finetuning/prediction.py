"""A task's model run over inputs: the logits of each."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
import tqdm

from data_specs.records import INPUT_IDS, INPUT_MASK, SEGMENT_IDS
from pipeline.base.errors import InputError
from tools.finetuning import batches
from tools.finetuning.batches import Arrays, Padding
from tools.finetuning.features import Feature
from tools.finetuning.heads import TaskModel

Forward = Callable[[Arrays], np.ndarray]


def input_signature() -> dict[str, tf.TensorSpec]:
    """Returns what a model's inputs look like: one graph serves all lengths."""
    return {
        name: tf.TensorSpec([None, None], tf.int32) for name in (INPUT_IDS, INPUT_MASK, SEGMENT_IDS)
    }


def compile_forward(model: TaskModel) -> Forward:
    """Compiles a model's forward pass, without XLA, which is slower on a CPU.

    Args:
        model: computes a batch, not in training.

    Returns:
        a function from a batch to its logits, float32 [B, C] or [B, 2, L].
    """

    @tf.function(input_signature=[input_signature()], jit_compile=False)
    def forward(batch):
        return model(batch, training=False)

    return lambda batch: forward(batch).numpy()


def predict_logits(
    forward: Forward,
    features: Sequence[Feature],
    padding: Padding,
    *,
    bar: tqdm.tqdm | None = None,
) -> list[np.ndarray]:
    """Returns the logits of inputs, in their order.

    Args:
        forward: from `compile_forward`.
        features: the inputs.
        padding: the shapes of batches.
        bar: told of inputs that are done.

    Returns:
        for each input float32 [C], or [2, L] without padding.

    Raises:
        InputError: the model says NaN or infinity.
    """
    found: list[np.ndarray] = [np.zeros(0, np.float32)] * len(features)
    for indices, batch in batches.prediction_batches(features, padding):
        logits = forward(batch)
        for row, index in enumerate(indices):
            value = logits[row]
            if value.ndim == 2:
                value = value[:, : len(features[index].input_ids)]
            found[index] = np.ascontiguousarray(value)
            if not np.isfinite(value).all():
                raise InputError(
                    None,
                    "finite logits",
                    "NaN or infinity",
                    hint="is the model damaged, or does `compute_dtype` not suit it?",
                )
        if bar is not None:
            bar.update(len(indices))
    return found
