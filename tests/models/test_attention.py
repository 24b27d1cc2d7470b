"""Attention whose map is not kept for the gradient: the same numbers, on both backends."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest

from pipeline.models.architectures.parts import ATTENTION_SCORES, ATTENTIONS
from pipeline.models.config import EncoderConfig
from pipeline.models.families import FAMILIES
from pipeline.models.masked_lm import LOGITS, MaskedLM
from tests.conftest import run_python

FAMILY_CHANGES = {
    "bert": {"attention_probs_dropout_prob": 0.3},
    # Its bias of the scores has a gradient, too.
    "mpnet": {"model_type": "mpnet", "pad_token_id": 1, "type_vocab_size": 0},
    "modernbert": {
        **FAMILIES["modernbert"].config_defaults,
        "model_type": "modernbert",
        "type_vocab_size": 0,
        "local_attention": 4,
    },
}

ON_JAX = """
import json, sys
import jax, keras
import numpy as np
from pipeline.models.config import EncoderConfig
from pipeline.models.masked_lm import LOGITS, MaskedLM

folder = sys.argv[1]
with np.load(folder + "/batch.npz") as file:
    batch = dict(file)
config = EncoderConfig(**json.load(open(folder + "/config.json")))
for recompute in (False, True):
    model = MaskedLM(config, seed=3, dtype=sys.argv[2])
    model.encoder.recompute_attention = recompute
    fixed = model.non_trainable_variables

    def loss(trainable, seeds):
        mapping = [*zip(model.trainable_variables, trainable), *zip(fixed, seeds)]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            value = (model.activations(batch, training=True)[LOGITS] ** 2).mean()
        return value, [scope.get_current_value(variable) for variable in fixed]

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    values = [variable.value for variable in model.trainable_variables]
    (value, seeds), gradients = step(values, [variable.value for variable in fixed])
    saved = {"loss": value, **{f"gradient/{i}": g for i, g in enumerate(gradients)}}
    saved |= {f"seed/{i}": one for i, one in enumerate(seeds)}
    _, pull, _ = jax.vjp(lambda trainable: loss(trainable, seeds), values, has_aux=True)
    shape = (*batch["input_ids"].shape[:1], config.num_attention_heads)
    length = batch["input_ids"].shape[1]
    kept = [one.shape for one in jax.tree.leaves(pull)]
    saved["kept_maps"] = kept.count((*shape, length, length))
    np.savez(f"{folder}/{recompute}.npz", **saved)
"""


def _two_steps(config: EncoderConfig, batch, *, recompute: bool) -> list[np.ndarray]:
    """Returns loss and gradients of two calls, and the dropouts' seeds after them."""
    import tensorflow as tf

    model = MaskedLM(config, seed=3)
    model.encoder.recompute_attention = recompute

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model.activations(batch, training=True)[LOGITS] ** 2)
        return [loss, *tape.gradient(loss, model.trainable_variables)]

    results = [np.asarray(value) for _ in range(2) for value in step()]
    return [*results, *(np.asarray(seed) for seed in model.non_trainable_variables)]


@pytest.mark.parametrize("family", FAMILY_CHANGES)
def test_recomputed_attention_gives_the_same_numbers_on_tensorflow(
    config, batch, family: str
) -> None:
    config = dataclasses.replace(config, **FAMILY_CHANGES[family])
    plain, recomputed = (_two_steps(config, batch, recompute=flag) for flag in (False, True))
    for expected, value in zip(plain, recomputed, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=3e-6)
    model = MaskedLM(config)
    # Another step draws other dropout.
    same = plain[0] == plain[1 + len(model.trainable_variables)]
    assert same == (not config.attention_probs_dropout_prob)


@pytest.mark.parametrize("wanted", [ATTENTIONS, ATTENTION_SCORES])
def test_wanted_maps_are_returned_whether_or_not_attention_is_recomputed(
    config, batch, wanted: str
) -> None:
    results = []
    for recompute in (False, True):
        model = MaskedLM(config, seed=3)
        model.encoder.recompute_attention = recompute
        results.append(model.activations(batch, training=True, wanted=(wanted,))[wanted])
    for plain, recomputed in zip(*results, strict=True):
        np.testing.assert_array_equal(plain, recomputed)


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_recomputed_attention_keeps_no_map_on_jax(config, tmp_path, dtype: str) -> None:
    config = dataclasses.replace(
        config, max_position_embeddings=64, attention_probs_dropout_prob=0.3
    )
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    random = np.random.default_rng(4)
    mask = np.ones((3, 24), np.int32)
    mask[0, 17:] = 0
    np.savez(
        tmp_path / "batch.npz",
        input_ids=random.integers(0, config.vocab_size, mask.shape).astype(np.int32),
        input_mask=mask,
        segment_ids=np.zeros_like(mask),
        masked_lm_positions=random.integers(0, 17, (3, 4)).astype(np.int32),
    )
    jax = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    run_python("-c", ON_JAX, str(tmp_path), dtype, **jax)
    with np.load(tmp_path / "False.npz") as plain, np.load(tmp_path / "True.npz") as recomputed:
        assert plain["kept_maps"] >= config.num_hidden_layers and recomputed["kept_maps"] == 0
        # In bfloat16 the order of a sum decides its last bits, and gradients are sums.
        largest = max(np.abs(plain[name]).max() for name in plain if name.startswith("gradient"))
        tolerance = largest * (1e-5 if dtype == "float32" else 1e-2)
        for name in plain:
            if name.startswith("seed"):
                np.testing.assert_array_equal(plain[name], recomputed[name])
            elif name != "kept_maps":
                np.testing.assert_allclose(
                    plain[name], recomputed[name], rtol=0, atol=tolerance, err_msg=name
                )
