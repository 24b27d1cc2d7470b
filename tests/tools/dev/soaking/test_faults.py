"""Faults on commands that end at once: files are as before, and what was seen is told."""

import contextlib
import pathlib
import signal

import numpy as np
import pytest

from tools.dev.soaking import faults, running
from tools.dev.soaking.faults import Disturbance
from tools.dev.soaking.running import Running
from tools.dev.soaking.stages import Stage


@pytest.fixture
def disturbance(tmp_path: pathlib.Path) -> Disturbance:
    """Of a command that fails at once, as its vocabulary is missing."""
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text("plain")
    (text / "b.txt.gz").write_bytes(b"compressed")
    settings = {"input_dir": text, "vocab_file": tmp_path / "none", "output_dir": tmp_path / "out"}
    stage = Stage("1a", "create_pretraining_data", text, tmp_path / "out", settings)
    random = np.random.default_rng(1)
    return Disturbance(stage, 10.0, 1000, random, tmp_path / "log", contextlib.ExitStack())


@pytest.mark.parametrize("fault", [faults.truncate_input, faults.flip_byte])
def test_damaged_input_is_given_back(disturbance: Disturbance, monkeypatch, fault) -> None:
    seen = []

    class Damaged:
        def __init__(self, *arguments: object) -> None:
            folder = disturbance.stage.input
            seen.append({path.name: path.read_bytes() for path in folder.iterdir()})

        def finish(self) -> running.Outcome:
            return running.Outcome(1, "error: damaged", 0.1, 1, False, 0)

    monkeypatch.setattr(faults, "Running", Damaged)
    outcome = fault(disturbance)
    assert outcome is not None
    assert outcome.said == "error: damaged"
    assert seen[0]["a.txt"] == b"plain"
    assert seen[0]["b.txt.gz"] != b"compressed"
    assert (disturbance.stage.input / "b.txt.gz").read_bytes() == b"compressed"


def test_a_command_says_its_error(disturbance: Disturbance) -> None:
    outcome = disturbance.start().finish()
    assert outcome.status == 1
    assert outcome.said.startswith("error: --vocab_file: ")
    assert not outcome.has_traceback
    assert outcome.num_left == 0
    assert outcome.peak > 2**20


def test_a_signal_that_comes_too_late_is_told_apart(disturbance: Disturbance) -> None:
    fault, _ = faults.FAULTS["SIGTERM"]
    late = Disturbance(**{**vars(disturbance), "seconds": 1e6})
    assert fault(late) is None


def test_processes_that_outlive_a_command_are_counted_and_killed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(running, "_PATIENCE", 0.3)
    code = (
        "import subprocess, sys; "
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    )
    (tmp_path / "leaving.py").write_text(code)
    monkeypatch.setattr(running, "_MODULE", "{}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = Running("leaving", {}, tmp_path / "log")
    outcome = command.finish()
    assert outcome.status == 0
    assert outcome.num_left == 1


def test_who_ignores_interrupts_does_not_hand_that_on(tmp_path, monkeypatch) -> None:
    """As a shell has it that starts something with `&`."""
    (tmp_path / "sleeping.py").write_text("import time; print('x', flush=True); time.sleep(9)")
    monkeypatch.setattr(running, "_MODULE", "{}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        command = Running("sleeping", {}, tmp_path / "log")
    finally:
        signal.signal(signal.SIGINT, before)
    assert command.runs_until(2.0)
    command.send(signal.SIGINT)
    assert command.finish().status == -signal.SIGINT


def test_a_signal_is_the_status(tmp_path, monkeypatch) -> None:
    (tmp_path / "waiting.py").write_text("import time; print('waits', flush=True); time.sleep(600)")
    monkeypatch.setattr(running, "_MODULE", "{}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = Running("waiting", {}, tmp_path / "log")
    assert command.runs_until(2.0)
    command.send(signal.SIGKILL)
    assert command.finish().status == -signal.SIGKILL
