"""Runs that are stopped by real signals, as on preempted machines, and resumed."""

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable

import pytest

from pipeline.base.errors import InputError, StoppedRunError
from pipeline.base.location import Location
from pipeline.distill import checkpoints, run_log, training
from pipeline.distill.settings import DistillConfig, StudentConfig
from pipeline.distill.stopping import StopRequest
from tests.distill.running import (
    assert_same_weights,
    call_at_update,
    distilled,
    flip_bit,
    read_lines,
    start_command,
)


@pytest.fixture(scope="module")
def whole(shared_run, tmp_path_factory) -> DistillConfig:
    """The shared run, finished without a stop."""
    config = DistillConfig(output_dir=tmp_path_factory.mktemp("whole") / "student", **shared_run)
    training.distill(config)
    return config


@pytest.fixture
def config(whole, tmp_path) -> DistillConfig:
    """The same run, not yet started."""
    return dataclasses.replace(whole, output_dir=str(tmp_path / "student"))


def _assert_same_run(first: Location, second: Location) -> None:
    assert read_lines(first) == read_lines(second)
    assert_same_weights(first, second)


def _signal_at(patch, number: int, *signals: int) -> None:
    """Makes the next run send signals to this process in its update `number`."""
    call_at_update(patch, number, lambda: [os.kill(os.getpid(), sent) for sent in signals])


def _signal_in_evaluation(patch, due: Callable[[int], bool]) -> None:
    """Makes runs send SIGTERM to this process in the batches of an evaluation that are due."""
    check = training._EvaluationStop.on_test_batch_end

    def signaled(self, batch, logs=None):
        if due(batch):
            os.kill(os.getpid(), signal.SIGTERM)
        check(self, batch, logs)

    patch.setattr(training._EvaluationStop, "on_test_batch_end", signaled)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_and_resumed_run_equals_an_uninterrupted_run(
    whole, monkeypatch, tmp_path, number
) -> None:
    """The run stops between lines of the log, at a line, and at the last step."""
    handlers = [signal.getsignal(handled) for handled in (signal.SIGTERM, signal.SIGINT)]
    for moment in (9, 12) if number == signal.SIGTERM else (7,):
        cut = dataclasses.replace(whole, output_dir=str(tmp_path / f"cut{moment}"))
        with monkeypatch.context() as patch:
            _signal_at(patch, moment, number)
            with pytest.raises(StoppedRunError) as caught:
                training.distill(cut)
        assert f"stopped by {number.name} at step {moment};" in str(caught.value)
        assert caught.value.signal_number == number
        assert checkpoints.checkpoint_steps(cut.output_dir)[-1] == moment
        assert not (cut.output_dir / "model.safetensors").exists()
        assert handlers == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
        report = training.distill(cut)
        _assert_same_run(cut.output_dir, whole.output_dir)
        assert report["masked_lm"] == read_lines(whole.output_dir)[-1]["masked_lm"]


@pytest.mark.long
@pytest.mark.parametrize("moment", [pytest.param(5, marks=pytest.mark.slow), 12])
def test_run_stopped_in_an_evaluation_repeats_it_on_resume(
    whole, config, monkeypatch, moment: int
) -> None:
    """The evaluation ends early and runs again after the resume, also after a second stop."""

    def due(batch: int) -> bool:
        return batch == 1 and (moment == 5 or len(read_lines(config.output_dir)) > 7)

    with monkeypatch.context() as patch:
        _signal_in_evaluation(patch, due)
        for _ in range(2):
            with pytest.raises(StoppedRunError, match=f"at step {moment};"):
                training.distill(config)
            assert checkpoints.checkpoint_steps(config.output_dir)[-1] == moment
            assert read_lines(config.output_dir)[-1]["split"] == "train"
    training.distill(config)
    _assert_same_run(config.output_dir, whole.output_dir)


def test_evaluation_without_training_is_stopped(whole, monkeypatch) -> None:
    trained = StudentConfig(student=whole.output_dir)
    alone = dataclasses.replace(whole, do_train=False, output_dir=None, student=trained)
    with monkeypatch.context() as patch:
        _signal_in_evaluation(patch, lambda batch: True)
        with pytest.raises(StoppedRunError) as caught:
            training.distill(alone)
    assert caught.value.signal_number == signal.SIGTERM
    assert "stopped by SIGTERM in the evaluation;" in str(caught.value)


@pytest.mark.long
def test_barrier_follows_the_writing_of_files(config, monkeypatch) -> None:
    """A process that writes nothing must not end while another process still writes."""
    seen = []

    @contextlib.contextmanager
    def barrier(replicas):
        yield
        folder = config.output_dir
        seen.append({path.name for path in folder.rglob("*.*")})

    monkeypatch.setattr(training, "barrier", barrier)
    with monkeypatch.context() as patch:
        _signal_at(patch, 9, signal.SIGTERM)
        with pytest.raises(StoppedRunError):
            training.distill(config)
    assert "step-00000009.safetensors" in seen[-1]
    training.distill(config)
    assert {"model.safetensors", "config.json", "vocab.txt"} <= seen[-1]


@pytest.mark.long
def test_error_of_closing_the_log_does_not_hide_the_stop(config, monkeypatch, capsys) -> None:
    def close(log: object) -> None:
        raise OSError("503 SlowDown")

    monkeypatch.setattr(run_log.RunLog, "close", close)
    with monkeypatch.context() as patch:
        _signal_at(patch, 7, signal.SIGTERM)
        with pytest.raises(StoppedRunError, match="at step 7;"):
            training.distill(config)
    assert "the last lines of the log were not written: 503 SlowDown" in capsys.readouterr().err
    with pytest.raises(OSError, match="503 SlowDown"):
        training.distill(config)


def test_stopped_run_that_has_diverged_writes_no_checkpoint(config, monkeypatch) -> None:
    _signal_at(monkeypatch, 2, signal.SIGTERM)
    wild = {"learning_rate": 1e30, "clip_norm": 0.0, "num_warmup_steps": 0}
    with pytest.raises(InputError, match="training diverged by step 2"):
        distilled(config, **wild)
    assert checkpoints.checkpoint_steps(config.output_dir) == []


@pytest.mark.long
def test_second_ctrl_c_interrupts_at_once(config, monkeypatch) -> None:
    _signal_at(monkeypatch, 7, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="resume from step 5, the last checkpoint"):
        training.distill(config)
    assert checkpoints.checkpoint_steps(config.output_dir) == [5]


def test_only_the_main_thread_handles_signals() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def enter() -> None:
        with StopRequest() as stop:
            seen.extend([signal.getsignal(signal.SIGTERM), stop.check()])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before, False]


@pytest.mark.long
def test_run_resumes_from_the_newest_valid_checkpoint(whole, config, capsys) -> None:
    expected, folder = whole.output_dir, config.output_dir
    shutil.copytree(expected, folder)
    path = folder / "checkpoints" / "step-00000012.safetensors"
    content = flip_bit(path, -9)
    capsys.readouterr()
    training.distill(config)
    errors = capsys.readouterr().err
    assert f"{path}: a damaged checkpoint (expected SHA-256" in errors
    assert "resuming from step 10" in errors
    _assert_same_run(folder, expected)
    aside = path.with_name(path.name + ".broken-1")
    assert aside.read_bytes() == content
    assert checkpoints.checkpoint_steps(folder) == [10, 12]
    for step in checkpoints.checkpoint_steps(folder):
        checkpoints.checkpoint_path(folder, step).write_bytes(b"")
    with pytest.raises(InputError, match="to train from the beginning, delete the folder"):
        training.distill(config)


@pytest.mark.slow
def test_number_of_kept_checkpoints_is_not_in_the_run_configuration(config) -> None:
    distilled(config, keep_checkpoints=3)
    assert checkpoints.checkpoint_steps(config.output_dir) == [5, 10, 12]
    before = read_lines(config.output_dir)
    distilled(config, keep_checkpoints=1)
    assert read_lines(config.output_dir) == before


@pytest.mark.long
def test_command_stops_on_sigterm_with_a_checkpoint(config, tmp_path) -> None:
    """A real process stops at a step where neither a line nor a checkpoint is due."""
    more = {"save_checkpoints_steps": 100, "log_steps": 50, "max_eval_steps": 1}
    cut = tmp_path / "cut"
    process = start_command(config, cut, subprocess.PIPE, num_train_steps=300, **more)
    while process.poll() is None and not (cut / "metrics.jsonl").exists():
        time.sleep(0.02)
    start = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    lines = process.communicate()[1].replace("\r", "\n").strip().split("\n")
    assert time.perf_counter() - start < 30
    assert process.returncode == 143, lines
    (step,) = checkpoints.checkpoint_steps(cut)
    assert lines[-1] == f"stopped by SIGTERM at step {step}; re-run the command to resume"
    assert 50 <= step < 300 and not (cut / "model.safetensors").exists()
