"""Stage 2 on machines that are taken away: stopped by a real signal, and continued."""

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
    """The shared run, not stopped."""
    config = DistillConfig(output_dir=tmp_path_factory.mktemp("whole") / "student", **shared_run)
    training.distill(config)
    return config


@pytest.fixture
def config(whole, tmp_path) -> DistillConfig:
    """The same run, not begun."""
    return dataclasses.replace(whole, output_dir=str(tmp_path / "student"))


def _assert_same_run(one: Location, two: Location) -> None:
    assert read_lines(one) == read_lines(two)
    assert_same_weights(one, two)


def _signal_at(patch, number: int, *signals: int) -> None:
    """Sends this process signals in an update."""
    call_at_update(patch, number, lambda: [os.kill(os.getpid(), one) for one in signals])


def _signal_in_evaluation(patch, due: Callable[[int], bool]) -> None:
    """Sends this process SIGTERM in batches of an evaluation."""
    begin = training._EndsEarly.on_test_batch_end

    def signalled(self, batch, logs=None):
        if due(batch):
            os.kill(os.getpid(), signal.SIGTERM)
        begin(self, batch, logs)

    patch.setattr(training._EndsEarly, "on_test_batch_end", signalled)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_ends_as_if_it_had_not_been(whole, monkeypatch, tmp_path, number) -> None:
    """Between lines of the log and checkpoints, at a line, at the last step."""
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
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
        assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == handlers
        report = training.distill(cut)
        _assert_same_run(cut.output_dir, whole.output_dir)
        assert report["masked_lm"] == read_lines(whole.output_dir)[-1]["masked_lm"]


@pytest.mark.parametrize("moment", [pytest.param(5, marks=pytest.mark.slow), 12])
def test_a_run_stopped_while_it_evaluates(whole, config, monkeypatch, moment: int) -> None:
    """The evaluation ends early, and is made when the run goes on; also when that stops twice."""

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


def test_an_evaluation_alone_is_stopped(whole, monkeypatch) -> None:
    trained = StudentConfig(student=whole.output_dir)
    alone = dataclasses.replace(whole, do_train=False, output_dir=None, student=trained)
    with monkeypatch.context() as patch:
        _signal_in_evaluation(patch, lambda batch: True)
        with pytest.raises(StoppedRunError) as caught:
            training.distill(alone)
    assert caught.value.signal_number == signal.SIGTERM
    assert "stopped by SIGTERM in the evaluation;" in str(caught.value)


def test_processes_meet_when_all_is_written(config, monkeypatch) -> None:
    """One that has nothing to write must not end, and be missed, while another one writes."""
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


def test_a_log_that_cannot_be_closed_hides_nothing(config, monkeypatch, capsys) -> None:
    def close(log: object) -> None:
        raise OSError("503 SlowDown")

    monkeypatch.setattr(run_log.RunLog, "close", close)
    with monkeypatch.context() as patch:
        _signal_at(patch, 7, signal.SIGTERM)
        with pytest.raises(StoppedRunError, match="at step 7;"):
            training.distill(config)
    assert "the last lines of the log are not written: 503 SlowDown" in capsys.readouterr().err
    with pytest.raises(OSError, match="503 SlowDown"):
        training.distill(config)


def test_a_run_that_has_diverged_leaves_no_checkpoint(config, monkeypatch) -> None:
    _signal_at(monkeypatch, 2, signal.SIGTERM)
    wild = {"learning_rate": 1e30, "clip_norm": 0.0, "num_warmup_steps": 0}
    with pytest.raises(InputError, match="training diverged by step 2"):
        distilled(config, **wild)
    assert checkpoints.checkpoint_steps(config.output_dir) == []


def test_ctrl_c_twice_interrupts_at_once(config, monkeypatch) -> None:
    _signal_at(monkeypatch, 7, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="continues from step 5, the last checkpoint"):
        training.distill(config)
    assert checkpoints.checkpoint_steps(config.output_dir) == [5]


def test_only_the_main_thread_takes_signals() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def enter() -> None:
        with StopRequest() as stop:
            seen.extend([signal.getsignal(signal.SIGTERM), stop.check()])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before, False]


def test_a_run_goes_on_from_the_newest_checkpoint_that_verifies(whole, config, capsys) -> None:
    wanted, folder = whole.output_dir, config.output_dir
    shutil.copytree(wanted, folder)
    path = folder / "checkpoints" / "step-00000012.safetensors"
    content = flip_bit(path, -9)
    capsys.readouterr()
    training.distill(config)
    said = capsys.readouterr().err
    assert f"{path}: a damaged checkpoint (expected SHA-256" in said
    assert "continuing from step 10" in said
    _assert_same_run(folder, wanted)
    aside = path.with_name(path.name + ".broken-1")
    assert aside.read_bytes() == content
    assert checkpoints.checkpoint_steps(folder) == [10, 12]
    for one in checkpoints.checkpoint_steps(folder):
        (folder / "checkpoints" / f"step-{one:08d}.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="to begin again, delete the folder"):
        training.distill(config)


@pytest.mark.slow
def test_how_many_are_kept_is_no_other_request(config) -> None:
    distilled(config, keep_checkpoints=3)
    assert checkpoints.checkpoint_steps(config.output_dir) == [5, 10, 12]
    before = read_lines(config.output_dir)
    distilled(config, keep_checkpoints=1)
    assert read_lines(config.output_dir) == before


def test_a_command_that_is_asked_to_stop(config, tmp_path) -> None:
    """A real process, as a scheduler sees it; a step that no line and no checkpoint is due at."""
    more = {"save_checkpoints_steps": 100, "log_steps": 50, "max_eval_steps": 1}
    cut = tmp_path / "cut"
    process = start_command(config, cut, subprocess.PIPE, num_train_steps=300, **more)
    while process.poll() is None and not (cut / "metrics.jsonl").exists():
        time.sleep(0.02)
    begun = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1].replace("\r", "\n").strip().split("\n")
    assert time.perf_counter() - begun < 30
    assert process.returncode == 143, said
    (step,) = checkpoints.checkpoint_steps(cut)
    assert said[-1] == f"stopped by SIGTERM at step {step}; the same command continues from there"
    assert 50 <= step < 300 and not (cut / "model.safetensors").exists()
