"""The same numbers on JAX, and no TensorFlow where it is not needed."""

import importlib.util

import keras
import numpy as np
import pytest

from pipeline.models.formats.model_directory import assign_weights, save_hf
from pipeline.models.masked_lm import MaskedLM
from tests.conftest import run_python
from tests.family_examples import example_config

FORWARD = """
import sys
import numpy as np
import jax
from pipeline.base.location import Location
from pipeline.models import encoder, weight_names
from pipeline.models.initialization import from_teacher
from pipeline.models.formats.model_directory import find_model, load_masked_lm

folder = sys.argv[1]
model = load_masked_lm(find_model(Location.parse(folder)))
assert "tensorflow" not in sys.modules
with np.load(folder + "/batch.npz") as file:
    batch = dict(file)

def loss(trainable):
    state = model.non_trainable_variables
    logits, _ = model.stateless_call(trainable, [v.value for v in state], batch, training=False)
    return (logits**2).mean()

gradients = jax.grad(loss)([variable.value for variable in model.trainable_variables])
by_path = {v.path: np.asarray(g) for v, g in zip(model.trainable_variables, gradients)}
np.savez(folder + "/jax.npz", logits=np.asarray(model(batch)), **by_path)
"""

LIGHT = """
import sys
from pipeline.models import config, families, layer_groups, weight_names
from pipeline.models.formats import model_directory
from pipeline.models.initialization import from_teacher
heavy = {"tensorflow", "keras", "jax", "torch"} & set(sys.modules)
assert not heavy, heavy
"""


def test_what_runs_before_the_flags_are_checked_imports_no_framework():
    run_python("-c", LIGHT, KERAS_BACKEND="tensorflow")


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="compares with TensorFlow")
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_jax_equals_tensorflow_and_needs_none(tmp_path, config, weights, batch, family: str):
    import tensorflow as tf

    model = MaskedLM(config)
    # Smaller, so that gradients are of the order of 1.
    assign_weights(model, {name: 0.5 * value for name, value in weights.items()})
    if family != "bert":
        # With a window that inputs are longer than.
        model = MaskedLM(example_config(family, local_attention=4, num_hidden_layers=4), seed=2)
    save_hf(tmp_path, model)
    np.savez(tmp_path / "batch.npz", **batch)
    jax = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    run_python("-c", FORWARD, str(tmp_path), **jax)
    with tf.GradientTape() as tape:
        logits = model(batch, training=False)
        loss = tf.reduce_mean(logits**2)
    gradients = tape.gradient(loss, model.trainable_variables)
    with np.load(tmp_path / "jax.npz") as jax:
        np.testing.assert_allclose(logits.numpy(), jax["logits"], rtol=0, atol=1e-5)
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
            np.testing.assert_allclose(gradient.numpy(), jax[variable.path], rtol=1e-4, atol=1e-5)
