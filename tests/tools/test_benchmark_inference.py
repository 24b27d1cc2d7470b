"""Latency and throughput: the table on both backends, and the computed ratios."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_specs.records import INPUT_IDS, INPUT_MASK
from pipeline.base.errors import InputError, Setting
from pipeline.models.formats.model_directory import find_model, load_masked_lm
from pipeline.models.weight_names import count_parameters
from tests.conftest import save_tiny_bert
from tools import benchmark_inference as tool
from tools import inference_programs, measurement
from tools.benchmark_inference import BenchmarkConfig
from tools.inference_programs import Batches

ROOT = pathlib.Path(__file__).parents[2]
on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="runs on TensorFlow"
)


@pytest.fixture(scope="module")
def student_dir(tmp_path_factory, vocab_file) -> pathlib.Path:
    """A smaller model."""
    return save_tiny_bert(tmp_path_factory.mktemp("student"), vocab_file, seed=9, num_layers=1)


def _flags(teacher, student, output, **changes: object) -> list[str]:
    settings = {
        "models": f"{teacher},{student}",
        "seq_length": 24,
        "batch_size": 3,
        "repeats": 4,
        "computations": "float32",
        "output": output,
        **changes,
    }
    return [f"--{name}={value}" for name, value in settings.items()]


def _assert_report(path: pathlib.Path, teacher: pathlib.Path, student: pathlib.Path) -> None:
    report = json.loads(path.read_text())
    assert (report["seq_length"], report["batch_size"], report["repeats"]) == (24, 3, 4)
    assert [row["model"] for row in report["rows"]] == [teacher.name, student.name]
    for row, model_path in zip(report["rows"], (teacher, student), strict=True):
        assert row["device"] == "cpu:0" and row["computation"] == "float32"
        assert row["parameters"] == count_parameters(find_model(model_path).config)
        weights = (model_path / "model.safetensors").stat().st_size
        assert row["megabytes"] == pytest.approx(weights / 1e6)
        for values in (row["latency"], row["throughput"]):
            assert 0 < values["smallest"] <= values["median"] <= values["largest"]
            assert model_path == student or values["times_better"] == [1.0, 1.0, 1.0]


@on_tensorflow
def test_table_and_json_are_written_on_tensorflow(
    teacher_dir, student_dir, tmp_path, capsys
) -> None:
    output = tmp_path / "speed.json"
    assert not tool.main(["benchmark_inference", *_flags(teacher_dir, student_dir, output)])
    _assert_report(output, teacher_dir, student_dir)
    lines = capsys.readouterr().out.splitlines()
    titles = "computed parameters MB latency, s times better sequences/s times better"
    assert lines[0].split() == titles.split()
    assert lines[2].startswith(teacher_dir.name) and lines[3].startswith(student_dir.name)
    sizes, backend, figures = lines[5].split("; ")
    assert sizes == "latency of 1, throughput of 3, 24 tokens each" and backend == "tensorflow"
    assert "4 rounds" in figures


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
def test_json_is_written_on_jax(teacher_dir, student_dir, tmp_path) -> None:
    output = tmp_path / "speed.json"
    flags = _flags(teacher_dir, student_dir, output, backend="jax", computations="float32,int8")
    result = subprocess.run(
        [sys.executable, "-m", "tools.benchmark_inference", *flags],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    _assert_report(output, teacher_dir, student_dir)
    assert json.loads(output.read_text())["left_out"] == [
        "int8 on cpu:0: left out because conversion to LiteRT needs a TensorFlow process "
        "(--backend=tensorflow)"
    ]


@on_tensorflow
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_forward_returns_the_last_hidden_states(teacher_dir, dtype: str) -> None:
    source = find_model(teacher_dir)
    batch = Batches(20, 3).draw(3, source.config.vocab_size)
    states = inference_programs.keras_forward(source, "cpu:0", dtype)(batch)
    expected = load_masked_lm(source).activations(batch)["hidden_states"][-1].numpy()
    assert states.dtype == np.float32 and states.shape == (3, 20, 32)
    np.testing.assert_allclose(states, expected, atol=1e-5 if dtype == "float32" else 0.15)


@on_tensorflow
def test_encoder_without_a_head_gives_equal_states(teacher_dir, tmp_path) -> None:
    shutil.copytree(teacher_dir, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    encoder = {
        name.removeprefix("bert."): value
        for name, value in tensors.items()
        if name.startswith("bert.")
    }
    save_file(encoder, tmp_path / "model.safetensors")
    sources = find_model(teacher_dir), find_model(tmp_path)
    batch = Batches(20, 3).draw(3, sources[0].config.vocab_size)
    states_of_model, states_of_encoder = (
        inference_programs.keras_forward(source, "cpu:0", "float32")(batch) for source in sources
    )
    np.testing.assert_array_equal(states_of_model, states_of_encoder)


def test_sequences_are_random_and_reproducible() -> None:
    batches = Batches(50, 4)
    first, again = batches.draw(4, 300), batches.draw(4, 300)
    ids = first[INPUT_IDS]
    assert ids.shape == (4, 50) and ids.dtype == np.int32
    assert (first[INPUT_MASK] == 1).all() and (ids == again[INPUT_IDS]).all()
    assert ids.min() >= 0 and ids.max() < 300 and len(np.unique(ids)) > 100


def test_calls_alternate_and_warm_up_is_not_measured() -> None:
    order: list[str] = []
    calls = [lambda name=name: order.append(name) for name in "ab"]
    times = measurement.time_alternately(calls, 3, warm_up=2)
    assert "".join(order) == "ababababab" and [len(durations) for durations in times] == [3, 3]
    assert all(seconds >= 0 for durations in times for seconds in durations)


def test_ratios_are_computed_for_each_round() -> None:
    faster = tool.summarize([1.0, 2.0, 4.0], [2.0, 2.0, 12.0], larger_is_better=False)
    assert (faster.median, faster.smallest, faster.largest) == (2.0, 1.0, 4.0)
    assert faster.to_json()["times_better"] == [2.0, 1.0, 3.0]
    slower = tool.summarize([1.0, 2.0], [2.0, 8.0], larger_is_better=True)
    assert slower.to_json()["times_better"] == [0.375, 0.25, 0.5]


def test_computations_are_chosen_by_device(monkeypatch) -> None:
    monkeypatch.setattr(tool.formats, "missing_packages", lambda names: [])
    everything = ["float32", "mixed_bfloat16", "int8"]
    detected = {"cpu:0": "float32", "gpu:0": "mixed_bfloat16"}
    monkeypatch.setattr(
        tool.compute_dtype, "detect", lambda devices: (detected[devices[0]], "of the test")
    )
    chosen, notes = tool.choose_computations(everything, ["gpu:0", "gpu:1"], "tensorflow")
    pairs = ["gpu:0 float32", "gpu:0 mixed_bfloat16", "cpu:0 float32", "cpu:0 int8"]
    assert [" ".join(pair) for pair in chosen] == pairs
    assert notes == [
        "int8 on gpu:0: left out because LiteRT runs only on the CPU",
        "mixed_bfloat16 on cpu:0: left out because of the test",
    ]
    monkeypatch.setattr(tool.formats, "missing_packages", lambda names: ["ai-edge-litert"])
    chosen, notes = tool.choose_computations(["int8"], ["cpu:0"], "tensorflow")
    assert not chosen and notes == [
        "int8 on cpu:0: left out because ai-edge-litert is not installed (pip install '.[export]')"
    ]


def test_models_with_equal_names_are_named_by_paths(vocab_file, tmp_path) -> None:
    paths = [
        save_tiny_bert(tmp_path / name / "model", vocab_file, seed=1, num_layers=1) for name in "ab"
    ]
    models = tool.find_models(BenchmarkConfig(f"{paths[0]}, {paths[1]}", seq_length=64))
    assert [model.name for model in models] == [str(path) for path in paths]


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({"models": ","}, Setting("models")),
        ({"models": "/nowhere"}, "/nowhere"),
        ({"seq_length": 65}, Setting("seq_length")),
        ({"computations": "int4"}, Setting("computations")),
        ({"computations": ","}, Setting("computations")),
        ({"output": "/nowhere/speed.json"}, "/nowhere/speed.json"),
    ],
)
def test_invalid_settings_are_named(teacher_dir, changes, subject: str) -> None:
    with pytest.raises(InputError) as caught:
        tool.find_models(BenchmarkConfig(**{"models": str(teacher_dir), **changes}))
    assert caught.value.subject == subject and type(caught.value.subject) is type(subject)
