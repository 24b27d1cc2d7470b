"""Tests of benchmark_step on both backends; on JAX without TensorFlow."""

import importlib.util
import json
import pathlib

import keras
import numpy as np
import pytest

from data_specs import records
from pipeline.base.accelerators import TPUS, find_accelerator
from pipeline.distill import batches
from pipeline.distill.settings import DistillConfig, StudentConfig
from pipeline.models import flops
from pipeline.models.config import EncoderConfig
from pipeline.models.families import FAMILIES
from pipeline.storage import cache_input
from pipeline.storage.length_buckets import MicrobatchPlan
from tests.conftest import run_python
from tools.dev import benchmark_step as tool
from tools.dev.workloads import recipes, step_programs
from tools.dev.workloads.step_programs import Workload

# Packages that are not installed if only Keras, JAX and NumPy are.
ABSENT = (
    *("tensorflow", "tensorflow_datasets", "safetensors", "tokenizers", "sentencepiece"),
    *("rjieba", "yaml", "tqdm", "etils", "torch", "transformers"),
)
BARE = f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))\n"


def write_config(folder: pathlib.Path, **changes: object) -> pathlib.Path:
    """Writes the `config.json` of a tiny BERT of two layers."""
    shape = {
        "vocab_size": 200,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "hidden_act": "gelu",
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }
    path = folder / "config.json"
    path.write_text(json.dumps(shape | changes))
    return path


def _flags(tmp_path: pathlib.Path, **others: object) -> list[str]:
    values = {
        "model": write_config(tmp_path),
        "batch_size": 4,
        "max_seq_length": 32,
        "max_predictions_per_seq": 5,
        "truncation_factor": 8,
        "steps": 3,
        "json": tmp_path / "speed.json",
        **others,
    }
    return [f"--{name}={value}" for name, value in values.items()]


def _expect_report(tmp_path: pathlib.Path, printed: str, backend: str) -> None:
    report = json.loads((tmp_path / "speed.json").read_text())
    assert report["backend"] == backend and report["device"] == "cpu" and report["steps"] == 3
    assert [speed["part"] for speed in report["parts"]] == ["step", "teacher"]
    step, teacher = report["parts"]
    # A training step needs three times the operations of a forward pass of the same shape.
    assert step["example_flops"] == 3 * teacher["example_flops"]
    for speed in report["parts"]:
        assert 0 < speed["fastest"] <= speed["seconds"] <= speed["slowest"]
        assert speed["examples_per_second"] == pytest.approx(4 / speed["seconds"])
        flops_per_second = 4 * speed["example_flops"] / speed["seconds"]
        assert speed["flops_per_second"] == pytest.approx(flops_per_second)
        assert speed["peak_share"] is None
    lines = printed.splitlines()
    assert lines[0].split() == [
        *("part", "batch", "median", "fastest", "slowest", "examples/s", "TFLOP/s", "of", "peak")
    ]
    assert "32 tokens, 5 masked, float32" in lines
    assert "share of peak: left out, because the peak of 'cpu' is not known" in lines


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="runs on TensorFlow")
def test_a_benchmark_on_tensorflow_reports_both_parts(tmp_path, capsys) -> None:
    assert tool.main(["benchmark_step", *_flags(tmp_path, recompute_activations=True)]) == 0
    _expect_report(tmp_path, capsys.readouterr().out, "tensorflow")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
def test_a_benchmark_on_jax_needs_only_keras_jax_and_numpy(tmp_path) -> None:
    code = f"{BARE}from tools.dev import benchmark_step as t; sys.exit(t.main(sys.argv))"
    flags = _flags(tmp_path, backend="jax")
    result = run_python("-c", code, *flags, JAX_PLATFORMS="cpu")
    _expect_report(tmp_path, result.stdout, "jax")


_COMPILED = (
    "distilbert",
    "distilrubert_tiny",
    "roberta_wwm_3layers",
    "minilm_v2",
    "minirbt",
    "rubert_tiny",
)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
def test_programs_for_a_tpu_are_lowered_without_tensorflow(tmp_path) -> None:
    """The training steps and forward passes are lowered for the CPU instead of a TPU."""
    teacher = write_config(tmp_path, num_hidden_layers=12)
    (tmp_path / "student").mkdir()
    student = write_config(tmp_path / "student", hidden_size=8)
    code = f"""{BARE}
import dataclasses
import jax
from tools.dev.workloads import recipes, tpu_compiler
from pipeline.base.accelerators import TPUS
from tools.dev.workloads.tpu_compiler import GIB, Topology
topology = Topology("cpu", TPUS["v5e"], 16 * GIB, jax.devices())
students = dict.fromkeys(("minilm_v2", "minirbt", "rubert_tiny"), {str(student)!r})
for recipe in {_COMPILED}:
    workload = recipes.read_recipe(
        recipe, teacher_config={str(teacher)!r}, max_seq_length=16, max_predictions_per_seq=4,
        student_config=students.get(recipe),
    )
    config = dataclasses.replace(workload.config, recompute_activations=True)
    if config.relation_heads is not None:
        config = dataclasses.replace(config, relation_heads=4)
    workload = dataclasses.replace(workload, config=config, truncation_factor=8)
    for part in ("step", "teacher"):
        program = tpu_compiler.compile_part(workload, part, 4, topology)
        print(recipe, part, program.fits, program.flops > 0)
"""
    result = run_python("-c", code, KERAS_BACKEND="jax", JAX_PLATFORMS="cpu")
    assert result.stdout.splitlines() == [
        f"{recipe} {part} True True" for recipe in _COMPILED for part in ("step", "teacher")
    ]
    assert "compiled: step, 4 examples, cpu: fits, 0.0" in result.stderr


def _workload(cache_dir, shape: EncoderConfig) -> Workload:
    manifest = cache_input.open_cache(cache_dir, None).manifest
    config = DistillConfig(
        student=StudentConfig(student="model"),
        losses={"soft_cross_entropy": 1.0},
        output_dir=".",
        train_batch_size=8,
    )
    return Workload(
        config,
        shape,
        shape,
        manifest.max_seq_length,
        manifest.max_predictions_per_seq,
        manifest.teacher_info.truncation_factor,
    )


def test_random_batches_have_the_shapes_of_a_cache(cache_dir, teacher_dir) -> None:
    shape = EncoderConfig.from_json(teacher_dir / "config.json")
    workload = _workload(cache_dir, shape)
    cache = cache_input.open_cache(cache_dir, None)
    dataset = batches.training_batches(
        cache, MicrobatchPlan(8), seed=1, start=0, shuffle_buffer_size=8
    )
    cached_batch = next(dataset.as_numpy_iterator())
    random_batch = step_programs.step_batch(workload, 8)
    for expected, received in zip(cached_batch, random_batch, strict=True):
        assert {name: (value.shape, value.dtype) for name, value in expected.items()} == {
            name: (value.shape, value.dtype) for name, value in received.items()
        }
    ids = random_batch[1][records.TOPK_IDS]
    assert ids.min() >= 0 and ids.max() < shape.vocab_size
    assert all(len(set(row)) == ids.shape[-1] for row in ids.reshape(-1, ids.shape[-1]).tolist())
    positions = random_batch[0][records.MASKED_LM_POSITIONS]
    assert (np.diff(positions, axis=1) > 0).all()
    assert positions.max() < workload.max_seq_length
    again = step_programs.step_batch(workload, 8)
    for expected, received in zip(random_batch, again, strict=True):
        for name in expected:
            np.testing.assert_array_equal(expected[name], received[name])


def test_flops_equal_values_computed_by_hand() -> None:
    shape = EncoderConfig(
        vocab_size=7,
        hidden_size=4,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=5,
        hidden_act="gelu",
        max_position_embeddings=8,
        type_vocab_size=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    # With 3 tokens: four 4 × 4 matrices, 4 · (2·3·4·4) = 384; scores and values, each
    # 2·3·3·4 = 72; up and down, each 2·3·4·5 = 120. The head of one position: 2·4·4 + 2·4·7.
    layers, head = 2 * (384 + 2 * 72 + 2 * 120), 32 + 56
    assert flops.forward_flops(shape, 3, 1) == layers + head
    narrow = dict(shape.to_dict(), model_type="albert", embedding_size=2)
    # Embeddings of 2 dimensions go to 4 at each token, and back in the head.
    assert flops.forward_flops(EncoderConfig(**narrow), 3, 1) == (
        layers + 2 * 3 * 2 * 4 + 2 * 4 * 2 + 2 * 2 * 7
    )
    # A gated unit has a third matrix of the same size.
    gated = dict(shape.to_dict(), model_type="modernbert", type_vocab_size=0)
    gated |= FAMILIES["modernbert"].config_defaults
    assert flops.forward_flops(EncoderConfig(**gated), 3, 1) == layers + 2 * 120 + head
    base = recipes.SHAPES["bert-base"]
    assert flops.forward_flops(base, 512, 20) == pytest.approx(9.76e10, rel=1e-3)


def test_step_flops_include_the_forward_pass_of_a_live_teacher() -> None:
    workload = recipes.read_recipe("distilbert")
    # Student and teacher compute logits at all positions.
    student = flops.forward_flops(workload.student, 512, 512)
    teacher = flops.forward_flops(workload.teacher, 512, 512)
    assert step_programs.step_flops(workload) == 3 * student + teacher
    assert step_programs.teacher_flops(workload) == (flops.forward_flops(workload.teacher, 512, 77))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-40GB", "A100 40 GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 80 GB"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        ("TPU v5 lite", "TPU v5e"),
        ("TPU v6 lite", "TPU v6e"),
    ],
)
def test_accelerators_are_found_by_device_names(kind: str, name: str) -> None:
    assert find_accelerator(kind).name == name


def test_peaks_are_found_only_for_known_devices_and_bfloat16() -> None:
    assert find_accelerator("cpu") is None
    peak, note = tool.find_peak("TPU v5 lite", "mixed_bfloat16")
    assert peak == TPUS["v5e"].peak_flops == 197e12
    assert note == "share of peak: of 197 TFLOP/s, TPU v5e, dense, 16 bits"
    peak, note = tool.find_peak("TPU v5 lite", "float32")
    assert peak is None
    assert note == "share of peak: left out, because peaks are known only for mixed_bfloat16"


def test_invalid_flags_are_named_in_errors(tmp_path, capsys) -> None:
    for flags, message in (
        (["--model=bert"], "--model: "),
        (["--max_seq_length=1024"], "--max_seq_length: "),
        (["--losses=kl"], "--losses: "),
        ([f"--json={tmp_path}"], "--json: "),
    ):
        assert tool.main(["benchmark_step", *flags]) == 1
        assert capsys.readouterr().err.startswith(f"error: {message}")
