"""Recomputation of layers for gradients keeps all numbers, on both backends."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest

from data_specs.records import HIDDEN_STATES
from pipeline.models.architectures.components import (
    ATTENTION_SCORES,
    ATTENTIONS,
    QUERIES_KEYS_VALUES,
)
from pipeline.models.config import EncoderConfig
from pipeline.models.encoder import EncoderLayer
from pipeline.models.families import FAMILIES
from pipeline.models.formats.model_directory import assign_weights
from pipeline.models.masked_lm import LOGITS, MaskedLM
from tests.conftest import run_python

# Computes losses and gradients of two steps without an update, and the seeds after them.
ON_JAX = """
import sys
import jax, keras
import numpy as np
from pipeline.models.config import EncoderConfig
from pipeline.models.architectures.components import ATTENTIONS
from pipeline.models.masked_lm import LOGITS, MaskedLM
import json

folder = sys.argv[1]
with np.load(folder + "/batch.npz") as file:
    batch = dict(file)
config = EncoderConfig(**json.load(open(folder + "/config.json")))
for recompute in (False, True):
    model = MaskedLM(config, seed=3, dtype=sys.argv[2])
    model.encoder.recompute_activations = recompute
    fixed = model.non_trainable_variables

    def loss(trainable, seeds):
        mapping = [*zip(model.trainable_variables, trainable), *zip(fixed, seeds)]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            said = model.activations(batch, training=True, wanted=(ATTENTIONS,))
            value = (said[LOGITS] ** 2).mean() + (said[ATTENTIONS][1] ** 2).mean()
        return value, [scope.get_current_value(variable) for variable in fixed]

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    values = [variable.value for variable in model.trainable_variables]
    seeds = [variable.value for variable in fixed]
    saved = {}
    for number in range(2):
        (value, seeds), gradients = step(values, seeds)
        saved[f"loss{number}"] = value
        saved |= {f"gradient{number}/{i}": g for i, g in enumerate(gradients)}
    saved |= {f"seed/{i}": one for i, one in enumerate(seeds)}
    # Bytes stored until the gradient is computed. On a CPU, XLA later removes the recomputation.
    _, pull, _ = jax.vjp(lambda trainable: loss(trainable, seeds), values, has_aux=True)
    saved["kept_bytes"] = sum(array.nbytes for array in jax.tree.leaves(pull))
    np.savez(f"{folder}/{recompute}.npz", **saved)
"""


def _model(config: EncoderConfig, weights, *, recompute: bool) -> MaskedLM:
    model = MaskedLM(config, seed=3)
    assign_weights(model, {name: 0.5 * value for name, value in weights.items()})
    model.encoder.recompute_activations = recompute
    return model


def _two_steps(model: MaskedLM, batch) -> list[np.ndarray]:
    """Returns loss and gradients of two calls, and the dropouts' seeds after them."""
    import tensorflow as tf

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            wanted = (ATTENTIONS, ATTENTION_SCORES, *QUERIES_KEYS_VALUES)
            activations = model.activations(batch, training=True, wanted=wanted)
            loss = tf.reduce_mean(activations[LOGITS] ** 2)
            loss += sum(tf.reduce_mean(activations[name][1] ** 2) for name in wanted)
        return [loss, *tape.gradient(loss, model.trainable_variables)]

    results = [np.asarray(value) for _ in range(2) for value in step()]
    return [*results, *(np.asarray(seed) for seed in model.non_trainable_variables)]


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_recomputation_keeps_all_numbers_on_tensorflow(config, weights, batch, rate: float) -> None:
    config = dataclasses.replace(
        config, hidden_dropout_prob=rate, attention_probs_dropout_prob=rate
    )
    stored, recomputed = (
        _two_steps(_model(config, weights, recompute=recompute), batch)
        for recompute in (False, True)
    )
    for expected, received in zip(stored, recomputed, strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-6, atol=1e-7)
    count = 1 + len(_model(config, weights, recompute=False).trainable_variables)
    # The second step has other dropout, because the seeds have changed.
    assert (stored[0] == stored[count]) == (rate == 0.0)


MODERNBERT = {
    **FAMILIES["modernbert"].config_defaults,
    "model_type": "modernbert",
    "type_vocab_size": 0,
    "local_attention": 4,
}


@pytest.mark.parametrize(
    "changes",
    [
        # One layer is applied repeatedly.
        {"model_type": "albert", "embedding_size": 8},
        # The bias comes to every layer from outside.
        {"model_type": "mpnet", "pad_token_id": 1, "type_vocab_size": 0},
        # Local and global layers.
        MODERNBERT,
    ],
    ids=["albert", "mpnet", "modernbert"],
)
def test_recomputation_keeps_all_numbers_of_other_families(config, batch, changes: dict) -> None:
    config = dataclasses.replace(config, **changes)
    results = []
    for recompute in (False, True):
        model = MaskedLM(config, seed=3)
        model.encoder.recompute_activations = recompute
        results.append(_two_steps(model, batch))
    for stored, recomputed in zip(*results, strict=True):
        # The two programs add in different orders.
        np.testing.assert_allclose(stored, recomputed, rtol=1e-5, atol=3e-6)


def test_layers_are_computed_twice_only_in_training(config, weights, batch, monkeypatch) -> None:
    import tensorflow as tf

    calls = []
    original = EncoderLayer.call

    def count(layer, *args, **kwargs):
        calls.append(layer.name)
        return original(layer, *args, **kwargs)

    monkeypatch.setattr(EncoderLayer, "call", count)
    model = _model(config, weights, recompute=True)
    names = [f"layer_{index}" for index in range(config.num_hidden_layers)]
    model.activations(batch, training=False)
    assert calls == names
    calls.clear()
    with tf.GradientTape() as tape:
        last = model.activations(batch, training=True)[HIDDEN_STATES][-1]
    assert calls == names
    tape.gradient(last, model.trainable_variables)
    assert calls == [*names, *reversed(names)]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_recomputation_keeps_all_numbers_on_jax_in_less_memory(
    config, tmp_path, dtype: str
) -> None:
    config = dataclasses.replace(config, max_position_embeddings=64, num_hidden_layers=6)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    random = np.random.default_rng(4)
    np.savez(
        tmp_path / "batch.npz",
        input_ids=random.integers(0, config.vocab_size, (8, 64)).astype(np.int32),
        input_mask=np.ones((8, 64), np.int32),
        segment_ids=np.zeros((8, 64), np.int32),
        masked_lm_positions=random.integers(0, 64, (8, 4)).astype(np.int32),
    )
    jax = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    run_python("-c", ON_JAX, str(tmp_path), dtype, **jax)
    with np.load(tmp_path / "False.npz") as stored, np.load(tmp_path / "True.npz") as recomputed:
        assert stored["loss0"] != stored["loss1"]
        # In bfloat16 the order of a sum decides its last bits, and gradients are sums.
        largest = max(np.abs(stored[name]).max() for name in stored if name.startswith("gradient"))
        tolerance = largest * (1e-5 if dtype == "float32" else 1e-2)
        for name in stored:
            if name.startswith("seed"):
                np.testing.assert_array_equal(stored[name], recomputed[name])
            elif name != "kept_bytes":
                np.testing.assert_allclose(
                    stored[name], recomputed[name], rtol=0, atol=tolerance, err_msg=name
                )
        # A layer's maps have 8 · 4 · 64 · 64 numbers; its output has only 8 · 64 · 16.
        assert recomputed["kept_bytes"] < 0.2 * stored["kept_bytes"]
