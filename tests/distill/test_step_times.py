"""Rates and input times in the log, and traces of steps."""

import gzip
import json
import shutil
import subprocess

import pytest

from pipeline.base.errors import InputError
from pipeline.distill import step_times
from pipeline.distill.settings import DistillConfig, StepRange, StudentConfig
from pipeline.distill.step_times import CLOCK_FIELDS, InputClock, Rates
from tests.distill.running import distilled, refused, start_command


def test_input_clock_adds_the_time_of_waiting_for_batches(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(step_times.time, "perf_counter", lambda: now[0])
    clock = InputClock()

    def batches():
        for number in range(3):
            now[0] += 0.5
            yield number

    for number in clock.timed(batches()):
        now[0] += 10.0
        assert clock.seconds == 0.5 * (number + 1)
    assert clock.seconds == 1.5


def test_rates_count_examples_tokens_and_operations() -> None:
    rates = Rates(tokens=100.0, flops=2e9, peak_flops=1e12)
    fields = rates.log_fields(examples=60, seconds=4.0, waited=0.5)
    assert fields == {
        "examples_per_second": 15.0,
        "tokens_per_second": 1500.0,
        "input_wait_seconds": 0.5,
        "peak_share": pytest.approx(0.03),
    }
    assert set(fields) == set(CLOCK_FIELDS)
    unknown = Rates(tokens=1.0, flops=1.0, peak_flops=None)
    assert "peak_share" not in unknown.log_fields(examples=1, seconds=1.0, waited=0.0)


def test_peak_is_summed_over_all_devices(monkeypatch) -> None:
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["gpu"])
    details = {"device_name": "NVIDIA H100 80GB HBM3"}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: details)
    assert step_times.peak_flops(2) == 2 * 989e12
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [])
    assert step_times.peak_flops(2) is None


@pytest.mark.parametrize(
    ("text", "steps"), [("10-15", (10, 15)), ("7", (7, 7)), (" 3-3 ", (3, 3)), ("1-999", (1, 999))]
)
def test_step_range_is_parsed_from_text(text: str, steps: tuple[int, int]) -> None:
    assert StepRange.parse(text) == StepRange(*steps)


@pytest.mark.parametrize("text", ["", "0-3", "5-4", "a-b", "1-2-3", "-4", "3-", "1.5"])
def test_invalid_step_range_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        StepRange.parse(text)
    assert caught.value.received == text


def test_profile_steps_after_the_last_step_are_refused() -> None:
    with refused("profile_steps", "8-11"):
        DistillConfig(
            student=StudentConfig(student="x"),
            input_dir="y",
            output_dir="z",
            num_train_steps=10,
            profile_steps=StepRange(8, 11),
        )


@pytest.mark.long
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_run_writes_trace_and_rates(config, tmp_path, backend: str) -> None:
    pytest.importorskip(backend)
    settings = {"num_train_steps": 4, "log_steps": 2, "profile_steps": "2-3", "backend": backend}
    folder = tmp_path / "traced"
    process = start_command(config, folder, subprocess.PIPE, do_eval=False, **settings)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    names = [path.name for path in (folder / "profile").rglob("*") if path.is_file()]
    assert any(name.endswith(".xplane.pb") for name in names), stderr
    if backend == "jax":
        (path,) = (folder / "profile").rglob("perfetto_trace.json.gz")
        assert json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert line["tokens_per_second"] > line["examples_per_second"] > 0
        assert line["input_wait_seconds"] >= 0.0


@pytest.mark.long
def test_run_that_resumes_after_the_traced_steps_prints_a_line(config, capsys) -> None:
    steps = StepRange(1, 2)
    distilled(config, num_train_steps=3, save_checkpoints_steps=3)
    capsys.readouterr()
    shutil.rmtree(config.output_dir / "profile", ignore_errors=True)
    (config.output_dir / "model.safetensors").unlink()
    distilled(config, num_train_steps=3, save_checkpoints_steps=3, profile_steps=steps)
    assert "1-2" in capsys.readouterr().err
    assert not (config.output_dir / "profile").exists()
