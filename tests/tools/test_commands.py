"""What tools share to run their steps."""

import contextlib
import os

import pytest

from tools.commands import SeparateProcess, Step, time_left


def _step(path, kind: str | None) -> Step:
    return Step("", path, lambda: None, kind)


def test_the_time_left_is_the_sum_of_the_means_of_the_kinds(tmp_path) -> None:
    done = tmp_path / "done"
    done.touch()
    missing = tmp_path / "missing"
    steps = [_step(done, "train"), _step(missing, "train"), _step(missing, "score")]
    assert time_left(steps, {"train": [2.0, 4.0], "score": [0.5]}) == pytest.approx(3.5)
    # Not known before one step of each kind is made.
    assert time_left(steps, {"train": [2.0]}) is None
    assert time_left([_step(missing, None)], {None: [1.0]}) is None
    assert time_left(steps[:1], {}) == 0.0


def test_a_separate_process_returns_results_and_errors() -> None:
    process = SeparateProcess(["keyword"])
    with contextlib.closing(process):
        first = process.call(os.getpid)
        assert first == process.call(os.getpid) != os.getpid()
        assert process.call(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            process.call(divmod, 7, 0)
        process.close()
        assert process.call(os.getpid) != first
