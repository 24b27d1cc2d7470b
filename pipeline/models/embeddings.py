"""Embeddings of whole inputs: the pooled last hidden state of the text before masking.

A sentence encoder reads text without masks, in training and in use. The masked inputs of masked
language modeling lack some tokens, but these are the labels. So the text is restored from
inputs and labels.
"""

from collections.abc import Mapping
from typing import Any

from keras import ops

from data_specs.records import (
    HIDDEN_STATES,
    INPUT_IDS,
    INPUT_MASK,
    MASKED_LM_POSITIONS,
)
from pipeline.models.masked_lm import MaskedLM


def unmasked_ids(inputs: Mapping[str, Any], labels: Any) -> Any:
    """Returns the tokens before masking, int32 [B, L].

    Args:
        inputs: `input_ids` [B, L] and `masked_lm_positions` [B, P]. Padding has position 0,
            because the first token is never masked.
        labels: int [B, P], the true tokens.

    Example: input ids [2, 4, 4, 3], positions [1, 2] and labels [7, 9] give [2, 7, 9, 3].
    """
    input_ids = ops.cast(inputs[INPUT_IDS], "int32")
    positions = ops.expand_dims(ops.cast(inputs[MASKED_LM_POSITIONS], "int32"), -1)
    tokens = ops.arange(ops.shape(input_ids)[1], dtype="int32")
    hits = ops.logical_and(ops.equal(positions, tokens), positions > 0)
    restored = ops.cast(hits, "int32") * ops.expand_dims(ops.cast(labels, "int32"), -1)
    return ops.where(ops.any(hits, axis=1), ops.sum(restored, axis=1), input_ids)


def _first_state(states: Any, mask: Any) -> Any:
    del mask
    return states[:, 0]


def _mean_state(states: Any, mask: Any) -> Any:
    weights = ops.expand_dims(ops.cast(mask, "float32"), -1)
    # Rows that fill up a batch are all padding, so their sum of weights is 0.
    return ops.sum(states * weights, axis=1) / ops.maximum(ops.sum(weights, axis=1), 1.0)


# By the names of `data_specs.records.POOLINGS`.
_POOLINGS = {"cls": _first_state, "mean": _mean_state}


def pool(states: Any, mask: Any, pooling: str) -> Any:
    """Returns embeddings of inputs, float32 [B, D].

    Args:
        states: the last hidden states, [B, L, D].
        mask: 1 at tokens and 0 at padding, [B, L].
        pooling: one of `data_specs.records.POOLINGS`.

    Example: the mean of states [1, 3, 8] with the mask [1, 1, 0] is 2.
    """
    return _POOLINGS[pooling](ops.cast(states, "float32"), mask)


def vectors(states: Any, mask: Any, pooling: str, *, normalize: bool) -> Any:
    """Returns the vectors of texts: the result of `pool`, with length 1 if `normalize`."""
    pooled = pool(states, mask, pooling)
    return ops.normalize(pooled, axis=-1, order=2, epsilon=1e-12) if normalize else pooled


def embed(
    model: MaskedLM,
    inputs: Mapping[str, Any],
    labels: Any,
    pooling: str,
    training: bool | None = None,
) -> Any:
    """Returns a model's embeddings of the inputs before masking, float32 [B, D].

    Args:
        model: the model whose encoder reads the inputs.
        inputs: as `MaskedLM.activations` takes them, with masked positions.
        labels: int [B, P], the true tokens at these.
        pooling: one of `data_specs.records.POOLINGS`.
        training: whether dropout is active.
    """
    unmasked = {**inputs, INPUT_IDS: unmasked_ids(inputs, labels)}
    states = model.encoder(unmasked, training=training)[HIDDEN_STATES][-1]
    return pool(states, inputs[INPUT_MASK], pooling)
