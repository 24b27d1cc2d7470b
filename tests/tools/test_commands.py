"""Steps of tools: remaining time, separate processes, and commands."""

import contextlib
import os
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tools.commands import SeparateProcess, Step, run_steps, time_left


def _step(path, kind: str | None) -> Step:
    return Step("", path, lambda: None, kind)


def test_remaining_time_is_the_sum_of_mean_step_times(tmp_path) -> None:
    done = tmp_path / "done"
    done.touch()
    missing = tmp_path / "missing"
    steps = [_step(done, "train"), _step(missing, "train"), _step(missing, "score")]
    assert time_left(steps, {"train": [2.0, 4.0], "score": [0.5]}) == pytest.approx(3.5)
    # The remaining time is unknown until one step of each kind is finished.
    assert time_left(steps, {"train": [2.0]}) is None
    assert time_left([_step(missing, None)], {None: [1.0]}) is None
    assert time_left(steps[:1], {}) == 0.0


def test_separate_process_returns_results_and_errors() -> None:
    process = SeparateProcess(["keyword"])
    with contextlib.closing(process):
        first = process.call(os.getpid)
        assert first == process.call(os.getpid) != os.getpid()
        assert process.call(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            process.call(divmod, 7, 0)
        process.close()
        assert process.call(os.getpid) != first


def test_finished_step_is_not_repeated(tmp_path, capsys) -> None:
    executed = []
    done = tmp_path / "done"
    done.touch()
    steps = [
        Step("one", done, lambda: executed.append("one")),
        Step("two", tmp_path / "missing", lambda: executed.append("two")),
    ]
    run_steps(steps, 0.0)
    assert executed == ["two"]
    assert "[1/2] one (done before)" in capsys.readouterr().out


_PARENT = """
import sys
from tools import commands
commands.sys.executable = sys.argv[1]
commands._run("unused", "unused", [])
"""
_CHILD = """#!/bin/sh
echo $$ > "$CHILD_FILE"
exec sleep 60
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a killed parent")
def test_command_ends_when_its_tool_is_killed(tmp_path) -> None:
    child, file = tmp_path / "child.sh", tmp_path / "pid"
    child.write_text(_CHILD)
    child.chmod(0o755)
    environment = {**os.environ, "CHILD_FILE": str(file), "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", _PARENT, str(child)]
    parent = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL)
    while not (file.is_file() and file.read_text().endswith("\n")):
        assert parent.poll() is None
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30.0
    while _is_running(int(file.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _is_running(pid: int) -> bool:
    """Returns whether a process exists and is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
