"""Models compute the same numbers on JAX, without importing TensorFlow."""

import importlib.util
import pathlib

import keras
import numpy as np
import pytest

from data_specs.records import SEGMENT_IDS
from pipeline.models.families import FAMILIES
from pipeline.models.formats.model_directory import assign_weights, get_weights, save_hf
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

with np.load(sys.argv[1]) as file:
    batch = dict(file)

def write_gradients(folder):
    model = load_masked_lm(find_model(Location.parse(folder)))
    assert "tensorflow" not in sys.modules

    def loss(trainable):
        state = model.non_trainable_variables
        logits, _ = model.stateless_call(trainable, [v.value for v in state], batch, training=False)
        return (logits**2).mean()

    gradients = jax.grad(loss)([variable.value for variable in model.trainable_variables])
    by_path = {v.path: np.asarray(g) for v, g in zip(model.trainable_variables, gradients)}
    np.savez(folder + "/jax.npz", logits=np.asarray(model(batch)), **by_path)

for folder in sys.argv[2:]:
    write_gradients(folder)
"""

LIGHT = """
import sys
from pipeline.models import config, families, layer_groups, weight_names
from pipeline.models.formats import model_directory
from pipeline.models.initialization import from_teacher
heavy = {"tensorflow", "keras", "jax", "torch"} & set(sys.modules)
assert not heavy, heavy
"""


def test_code_before_the_check_of_flags_imports_no_framework():
    run_python("-c", LIGHT, KERAS_BACKEND="tensorflow")


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="compares with TensorFlow")
def test_jax_equals_tensorflow_and_does_not_import_it(tmp_path, batch):
    batch = {**batch, SEGMENT_IDS: np.zeros_like(batch[SEGMENT_IDS])}
    np.savez(tmp_path / "batch.npz", **batch)
    models = {family: _save_random(tmp_path / family, family) for family in FAMILIES}
    folders = [str(tmp_path / family) for family in models]
    jax = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    run_python("-c", FORWARD, str(tmp_path / "batch.npz"), *folders, **jax)
    for folder, model in zip(folders, models.values(), strict=True):
        _assert_equal_gradients(model, batch, f"{folder}/jax.npz")


def _save_random(folder: pathlib.Path, model_type: str) -> MaskedLM:
    """Writes a model whose biases and norms do not have their usual initial values."""
    model, random = MaskedLM(example_config(model_type)), np.random.default_rng(3)
    weights = get_weights(model)
    # Weights are small, so that gradients are of the order of 1.
    assign_weights(
        model, {name: random.normal(0.05, 0.2, value.shape) for name, value in weights.items()}
    )
    folder.mkdir()
    save_hf(folder, model)
    return model


def _assert_equal_gradients(model: MaskedLM, batch, path: str) -> None:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        logits = model(batch, training=False)
        loss = tf.reduce_mean(logits**2)
    gradients = tape.gradient(loss, model.trainable_variables)
    with np.load(path) as jax:
        np.testing.assert_allclose(logits.numpy(), jax["logits"], rtol=0, atol=1e-5)
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
            np.testing.assert_allclose(gradient.numpy(), jax[variable.path], rtol=1e-4, atol=1e-5)
