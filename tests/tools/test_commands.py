"""What tools share to run their steps."""

import pytest

from tools.commands import Step, call_alone, time_left


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


def test_a_call_alone_returns_its_result_or_its_error() -> None:
    assert call_alone(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        call_alone(divmod, 7, 0)
