"""The encoder with a task head, in the layout of each model family.

BERT's heads follow Devlin et al. (2019). Those of RoBERTa, DistilBERT and ALBERT follow
their authors' models in `transformers`. Shapes: B batch, L length, D hidden size, C outputs.
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from data_specs.records import HIDDEN_STATES, INPUT_MASK
from pipeline.base.location import Location
from pipeline.models.architectures.components import (
    ACTIVATION_FUNCTIONS,
    DType,
    LayerBuilder,
    Tensor,
)
from pipeline.models.config import EncoderConfig
from pipeline.models.encoder import Encoder
from pipeline.models.formats import model_directory
from pipeline.models.formats.model_directory import ModelSource
from pipeline.models.weight_names import WeightName, encoder_table
from tools.finetuning.head_layout import (
    Head,
    dropout_rate,
    head_settings,
    head_table,
    is_one_layer,
    pooler_table,
)
from tools.finetuning.kinds import KINDS

# The layers of a head are small, so they compute in float32 at any dtype of the encoder.
_HEAD_DTYPE = "float32"
_SCOPE = "head"


class SequenceHead(keras.layers.Layer):
    """A dense layer, in some families a layer norm, then dropout and the output layer."""

    def __init__(self, config: EncoderConfig, head: Head, *, seed: int) -> None:
        super().__init__(name=_SCOPE, dtype=_HEAD_DTYPE)
        self.config = config
        layout = config.family.sequence_head
        self.activation = {"tanh": ops.tanh, **ACTIVATION_FUNCTIONS}[layout.activation]
        layers = LayerBuilder(config, _SCOPE, seed, _HEAD_DTYPE)
        rate = dropout_rate(config, head.kind)
        self.input_dropout = layers.dropout(rate, "input_dropout") if layout.drops_input else None
        self.dense = layers.dense(config.hidden_size, "dense")
        self.layer_norm = None if layout.norm is None else layers.layer_norm()
        self.projection = layers.dense(head.num_outputs, "output", use_bias=True)
        self.dropout = layers.dropout(rate)

    def build(self, input_shape: Any = None) -> None:
        """Makes all variables; the shapes come from the configuration."""
        for layer in (self.dense, self.layer_norm, self.projection):
            if layer is not None:
                layer.build((None, self.config.hidden_size))

    def call(self, hidden: Tensor, training: bool | None = None) -> Tensor:
        """Maps states [..., D] to float32 [..., C]."""
        if self.input_dropout is not None:
            hidden = self.input_dropout(hidden, training=training)
        hidden = self.activation(self.dense(hidden))
        if self.layer_norm is not None:
            hidden = self.layer_norm(hidden)
        return self.projection(self.dropout(hidden, training=training))


class TokenHead(keras.layers.Layer):
    """Dropout and one dense layer, applied to each token."""

    def __init__(self, config: EncoderConfig, head: Head, *, seed: int) -> None:
        super().__init__(name=_SCOPE, dtype=_HEAD_DTYPE)
        self.config = config
        rate = dropout_rate(config, head.kind)
        layers = LayerBuilder(config, _SCOPE, seed, _HEAD_DTYPE)
        self.dropout = layers.dropout(rate) if rate else None
        self.projection = layers.dense(head.num_outputs, "output")

    def build(self, input_shape: Any = None) -> None:
        """Makes all variables; the shapes come from the configuration."""
        self.projection.build((None, None, self.config.hidden_size))

    def call(self, hidden: Tensor, training: bool | None = None) -> Tensor:
        """Maps [B, L, D] to float32 [B, L, C]."""
        if self.dropout is not None:
            hidden = self.dropout(hidden, training=training)
        return self.projection(hidden)


class TaskModel(keras.Model):
    """An encoder with a task head; the constructor creates all variables.

    Args:
        config: shapes and dropout rates.
        task: the head.
        dtype: name of the encoder's dtype policy; None for the global one.
        seed: seed of the initial weights and of dropout.

    Example:
        `TaskModel(config, Head("classification", ("no", "yes")))(batch)` is float32 [B, 2].
        A span head returns [B, 2, L]: the start logits, then the end logits, of every token
        including padding. A head that classifies tokens returns [B, L, C].
    """

    def __init__(
        self, config: EncoderConfig, task: Head, *, dtype: DType = None, seed: int = 0
    ) -> None:
        super().__init__(name="task_model", dtype=dtype)
        self.config = config
        self.task = task
        self.encoder = Encoder(config, seed=seed, dtype=self.dtype_policy)
        head = TokenHead if is_one_layer(config, task.kind) else SequenceHead
        self.head = head(config, task, seed=seed)
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Makes all variables; the shapes come from the configuration."""
        self.encoder.build()
        self.head.build()

    def call(self, inputs: Mapping[str, Tensor], training: bool | None = None) -> Tensor:
        """Returns the float32 logits for the inputs of `Encoder.call`."""
        hidden = self.encoder(inputs, training=training)[HIDDEN_STATES][-1]
        kind = KINDS[self.task.kind]
        if kind.is_over_tokens:
            logits = self.head(hidden, training=training)
            return logits if kind.feature.token_axis == 0 else ops.transpose(logits, (0, 2, 1))
        if self.config.classifier_pooling == "mean":
            mask = ops.expand_dims(ops.cast(inputs[INPUT_MASK], "float32"), -1)
            total = ops.sum(ops.cast(hidden, "float32") * mask, axis=1)
            return self.head(total / ops.maximum(ops.sum(mask, axis=1), 1.0), training=training)
        return self.head(hidden[:, 0], training=training)


def build_head(
    source: ModelSource,
    head: Head,
    *,
    dtype: str | None = None,
    seed: int = 0,
    keep_head: bool = False,
) -> TaskModel:
    """Builds a task model with the encoder of a model directory.

    The head starts from random weights, except for layers that the pre-trained model
    contains, such as BERT's pooler. A pooler of zeros, which some conversions write, is
    treated as absent.

    Args:
        source: a model directory; without weights, the encoder starts from random ones.
        head: the head of the task.
        dtype: name of the encoder's dtype policy, None for the global one.
        seed: seed of random weights and of dropout.
        keep_head: whether to load the head that is stored in the directory, which must
            have one.

    Raises:
        InputError: the weights do not match the configuration.
    """
    config = source.config
    weights: dict[str, np.ndarray] = {}
    if source.has_weights:
        stored = head_table(config, head) if keep_head else _stored_pooler(source, head)
        weights = source.read_weights((*encoder_table(config), *stored))
        if not keep_head and not any(weights[row.ours].any() for row in stored):
            for row in stored:
                del weights[row.ours]
    model = TaskModel(config, head, dtype=dtype, seed=seed)
    model_directory.assign_weights(model, {**model_directory.get_weights(model), **weights})
    return model


def _stored_pooler(source: ModelSource, head: Head) -> tuple[WeightName, ...]:
    shapes, table = source.open_files().shapes, pooler_table(source.config, head)
    names = (row.stored(source.layout)[0] for row in table)
    return table if all(name in shapes for name in names) else ()


def save_head(directory: Location, model: TaskModel) -> None:
    """Writes the weights to `model.safetensors`, then `config.json`, each atomically.

    The directory must exist. `transformers` loads it as the family's model for sequence
    classification, token classification or question answering.
    """
    model_directory.save_hf_weights(
        directory,
        model.config,
        model_directory.get_weights(model),
        table=(*encoder_table(model.config), *head_table(model.config, model.task)),
        settings=head_settings(model.config, model.task),
    )
