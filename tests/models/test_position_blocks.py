"""Computation in blocks of positions equals computation of all positions at once."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from pipeline.models import position_blocks


def _values(constants, arrays):
    logits = ops.matmul(arrays["states"], ops.transpose(constants[0])) + constants[1]
    label = ops.take_along_axis(logits, ops.expand_dims(arrays["labels"], -1), axis=-1)
    return {"loss": ops.logsumexp(logits, axis=-1) - label[..., 0], "best": ops.argmax(logits, -1)}


def _arrays(batch: int, positions: int, vocab_size: int = 11, width: int = 5):
    random = np.random.default_rng(positions)
    constants = random.normal(size=(vocab_size, width)), random.normal(size=vocab_size)
    states = random.normal(size=(batch, positions, width)).astype("float32")
    labels = random.integers(0, vocab_size, (batch, positions)).astype("int32")
    constants = [constant.astype("float32") for constant in constants]
    return constants, {"states": states, "labels": labels}


@pytest.mark.long
@given(
    batch=st.integers(1, 4),
    positions=st.integers(1, 9),
    size=st.integers(1, 10),
    recompute=st.booleans(),
)
def test_blocks_give_the_values_of_one_computation(batch, positions, size, recompute) -> None:
    constants, arrays = _arrays(batch, positions)
    whole = position_blocks.over_positions(_values, constants, arrays, size=None)
    blocks = position_blocks.over_positions(
        _values, constants, arrays, size=size, recompute=recompute
    )
    for name, expected in whole.items():
        assert tuple(blocks[name].shape) == (batch, positions)
        np.testing.assert_allclose(blocks[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="takes TensorFlow's gradients")
@pytest.mark.parametrize("is_compiled", [False, True])
def test_blocks_give_the_gradients_of_one_computation(is_compiled: bool) -> None:
    import tensorflow as tf

    constants, arrays = _arrays(3, 7)

    def gradients(size):
        table, bias = map(tf.Variable, constants)
        states = tf.Variable(arrays["states"])

        def compute(labels):
            with tf.GradientTape() as tape:
                results = position_blocks.over_positions(
                    lambda constants, block: {"loss": _values(constants, block)["loss"]},
                    [ops.convert_to_tensor(table), ops.convert_to_tensor(bias)],
                    {"states": ops.convert_to_tensor(states), "labels": labels},
                    size=size,
                    recompute=size is not None,
                )
                loss = ops.sum(ops.square(results["loss"]))
            return tape.gradient(loss, [table, bias, states])

        compute = tf.function(compute) if is_compiled else compute
        return compute(tf.constant(arrays["labels"]))

    for blocks, whole in zip(gradients(3), gradients(None), strict=True):
        np.testing.assert_allclose(blocks, whole, rtol=1e-5, atol=1e-6)


def test_default_batch_of_bert_is_one_block() -> None:
    size = position_blocks.block_size(batch_size=64, num_positions=76, vocab_size=30_522)
    assert size is None


def test_large_vocabulary_has_blocks_within_the_limit() -> None:
    size = position_blocks.block_size(batch_size=64, num_positions=76, vocab_size=256_000)
    assert size == 10
    assert position_blocks.block_size(batch_size=4096, num_positions=9, vocab_size=10**6) == 1
