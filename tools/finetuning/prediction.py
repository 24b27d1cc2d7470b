"""Prediction with a task model: logits, predictions, and the files that contain them."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
import tqdm

from data_specs.records import INPUT_IDS, INPUT_MASK, SEGMENT_IDS
from pipeline.base.errors import InputError
from pipeline.base.location import Location
from tools.finetuning import inputs, scoring
from tools.finetuning.heads import TaskModel
from tools.finetuning.inputs import Arrays, Feature, Padding
from tools.finetuning.kinds import KINDS
from tools.finetuning.kinds.base import Predictions
from tools.finetuning.preparation import Preparation, Split
from tools.finetuning.settings import FinetuneConfig

Forward = Callable[[Arrays], np.ndarray]


def compile_forward(model: TaskModel) -> Forward:
    """Compiles a model's forward pass, which maps a batch to its logits, float32 [B, …]."""
    names = (INPUT_IDS, INPUT_MASK, SEGMENT_IDS)
    signature = {name: tf.TensorSpec([None, None], tf.int32) for name in names}

    # One graph serves all lengths. XLA is off because it is slower on a CPU.
    @tf.function(input_signature=[signature], jit_compile=False)
    def forward(batch):
        return model(batch, training=False)

    return lambda batch: forward(batch).numpy()


def predict_logits(
    forward: Forward, features: Sequence[Feature], padding: Padding, *, bar: tqdm.tqdm | None = None
) -> list[np.ndarray]:
    """Returns the logits of inputs, in their order.

    Args:
        forward: from `compile_forward`.
        features: the inputs.
        padding: the shapes of batches.
        bar: progress bar that counts the inputs done.

    Returns:
        the unpadded logits of each input: float32 [C], [2, L] or [L, C].

    Raises:
        InputError: the model returns NaN or infinity.
    """
    unpadded_logits: list[np.ndarray] = [np.zeros(0, np.float32)] * len(features)
    for indices, batch in inputs.prediction_batches(features, padding):
        logits = forward(batch)
        for row, index in enumerate(indices):
            feature = features[index]
            length = {feature.token_axis: slice(len(feature.input_ids))}
            input_logits = logits[row]
            input_logits = input_logits[
                tuple(length.get(axis, slice(None)) for axis in range(input_logits.ndim))
            ]
            unpadded_logits[index] = np.ascontiguousarray(input_logits)
            if not np.isfinite(input_logits).all():
                hint = "check the model for damage, or try `compute_dtype`=float32"
                raise InputError(None, "finite logits", "NaN or infinity", hint)
        if bar is not None:
            bar.update(len(indices))
    return unpadded_logits


PREDICTIONS_FOLDER = "predictions"


def predict(
    run: Preparation, config: FinetuneConfig, split: Split, forward: Forward
) -> tuple[Predictions, float]:
    """Returns a model's predictions of a split, and its speed in inputs per second.

    Raises:
        InputError: the model returns NaN or infinity.
    """
    size = config.predict_batch_size
    padding = Padding(size, run.max_seq_length, run.source.config.type_vocab_size)
    begun = time.perf_counter()
    logits = predict_logits(forward, split.features, padding)
    speed = len(split.features) / (time.perf_counter() - begun)
    predictions = KINDS[run.head.kind].predict(
        split.examples, split.features, logits, max_answer_length=config.max_answer_length
    )
    return predictions, speed


def write_predictions(
    run: Preparation, split: Split, predictions: Predictions, directory: Location
) -> Location:
    """Writes a split's predictions in the benchmark's format; returns the path of the file."""
    folder = (directory / PREDICTIONS_FOLDER / split.name).make_directory()
    path = folder / run.spec.submission.file_of(split.name)
    scoring.write_submission(run.spec, split.examples, predictions, path)
    return path
