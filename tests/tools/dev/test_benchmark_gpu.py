"""Tests of benchmark_gpu: the model without Keras gives the results of the project's model."""

import importlib.util
import json

import pytest

from tests.conftest import run_python

needs_jax = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="JAX is not installed"
)
ON_JAX = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}

COMPARE = """
import numpy as np
from tools.dev import benchmark_gpu
from tools.dev.workloads import plain_jax, step_programs

(case,) = benchmark_gpu._cases(tiny=True)
workload = case.workload("float32")
distiller = step_programs.build_distiller(workload, case.batch_size)
model, random = distiller.student, np.random.default_rng(1)
weights = {}
for variable in model.trainable_variables:
    variable.assign(random.normal(0.1, 0.3, variable.shape))
    weights[variable.path.removeprefix("masked_lm/")] = variable.value

def dense(name):
    return {part: weights[f"{name}/{part}"] for part in ("kernel", "bias")}

def norm(name):
    name = f"{name}/layer_norm"
    return {"scale": weights[f"{name}/gamma"], "bias": weights[f"{name}/beta"]}

def layer(name):
    attention, feed_forward = f"{name}/attention", f"{name}/feed_forward"
    return {
        **{part: dense(f"{attention}/{part}") for part in ("query", "key", "value")},
        "projection": dense(f"{attention}/output"),
        "attention_norm": norm(attention),
        "intermediate": dense(f"{feed_forward}/intermediate"),
        "output": dense(f"{feed_forward}/output"),
        "output_norm": norm(feed_forward),
    }

embeddings = "encoder/embeddings"
plain = {
    "words": weights[f"{embeddings}/word_embeddings"],
    "positions": weights[f"{embeddings}/position_embeddings"],
    "segments": weights[f"{embeddings}/segment_embeddings"],
    "norm": norm(embeddings),
    "layers": [layer(f"encoder/layer_{i}") for i in range(case.shape.num_hidden_layers)],
    "head": dense("head/transform"),
    "head_norm": norm("head"),
    "bias": weights["head/bias"],
}
inputs, targets = step_programs.step_batch(workload, case.batch_size)
inputs["input_mask"][:2, 40:] = 0
inputs["masked_lm_positions"] = np.minimum(inputs["masked_lm_positions"], 39)
expected = np.asarray(model(inputs))
for attention in (plain_jax.plain_attention, plain_jax.fused_attention):
    settings = {"attention": attention, "dtype": "float32", "logits_dtype": "float32"}
    received = plain_jax.logits(case.shape, plain, inputs, **settings)
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4)
loss = distiller.compute_loss(inputs, targets, distiller(inputs), training=True)
np.testing.assert_allclose(plain_jax.cached_losses(expected, targets), loss, rtol=1e-5)
"""


@pytest.mark.long
@needs_jax
def test_model_without_keras_has_the_logits_and_the_loss_of_the_project() -> None:
    run_python("-c", COMPARE, **ON_JAX)


@needs_jax
@pytest.mark.slow
def test_tiny_benchmark_reports_all_programs_and_both_stages(tmp_path) -> None:
    path = tmp_path / "gpu.json"
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from tools.dev import benchmark_gpu\n"
        f"sys.exit(benchmark_gpu.main(['x', '--tiny', '--steps=1', '--json={path}']))"
    )
    run_python("-c", code, JAX_PLATFORMS="cpu")
    report = json.loads(path.read_text())
    assert report["device"] == "cpu" and report["compute_dtype"] == "float32"
    assert report["examples_per_second"].keys() == {"capture", "distill"}
    assert min(report["examples_per_second"].values()) > 0
    measured = [(row["part"], row["program"]) for row in report["programs"]]
    programs = ("Keras", "JAX", "JAX, fused attention")
    assert measured == [(part, name) for part in ("teacher", "step") for name in programs]


@needs_jax
def test_benchmark_without_time_measures_nothing(tmp_path) -> None:
    path = tmp_path / "gpu.json"
    code = (
        "import sys; from tools.dev import benchmark_gpu\n"
        f"sys.exit(benchmark_gpu.main(['x', '--tiny', '--minutes=0', '--json={path}']))"
    )
    run_python("-c", code, JAX_PLATFORMS="cpu")
    assert json.loads(path.read_text())["programs"] == []
