"""Sizes of a study that fit in a time budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import InputError
from tools.commands import Step
from tools.teacher_study import sizes
from tools.teacher_study.settings import parse_duration
from tools.teacher_study.sizes import Costs, TaskCost
from tools.teacher_study.step_durations import StepDurations

_SECONDS = st.floats(0.01, 1e4)
_TASKS = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.builds(TaskCost, st.integers(1, 100_000), st.floats(0.5, 10.0), _SECONDS, _SECONDS),
    min_size=1,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30m", 1800.0), ("4h", 14400.0), ("90s", 90.0), ("1h30m", 5400.0), ("0.5h", 1800.0)],
)
def test_durations_are_parsed_with_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "0m", "-1h", "30m1h", "1d"])
def test_malformed_durations_are_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_duration(text)
    assert repr(text) in caught.value.received


def test_steps_take_the_time_that_tasks_do_not_need() -> None:
    tasks = {"a": TaskCost(100, 1.0, 15.0, 0.1)}
    assert sizes.choose_steps(100.0, Costs(5.0, 0.5, tasks)) == 140
    # The tasks would need all of the time, so the steps take half.
    tasks = {"a": TaskCost(1000, 1.0, 15.0, 1.0)}
    assert sizes.choose_steps(100.0, Costs(5.0, 0.25, tasks)) == 160


@given(seconds=_SECONDS, fixed=_SECONDS, per_step=_SECONDS, tasks=_TASKS)
def test_steps_fit_in_the_time_or_are_the_minimum(seconds, fixed, per_step, tasks) -> None:
    costs = Costs(fixed, per_step, tasks)
    steps = sizes.choose_steps(seconds, costs)
    assert steps >= sizes.LEAST_STEPS
    used = steps * per_step + fixed + costs.fixed_of_tasks
    assert steps == sizes.LEAST_STEPS or used <= seconds * (1 + 1e-9)


def test_minimum_time_counts_the_minimum_of_examples() -> None:
    tasks = {"a": TaskCost(1000, 2.0, 10.0, 0.5), "b": TaskCost(8, 1.0, 1.0, 0.25)}
    expected = 3.0 + 20 * 0.5 + 11.0 + sizes.LEAST_EXAMPLES * 2.0 * 0.5 + 8 * 0.25
    assert Costs(3.0, 0.5, tasks).least_seconds(20) == pytest.approx(expected)


def test_tasks_share_the_time_equally() -> None:
    tasks = {"a": TaskCost(3000, 1.0, 0.0, 0.02), "b": TaskCost(500, 2.0, 10.0, 0.02)}
    # 10 of the 60 seconds are fixed costs. The second task needs 20 of its 25 seconds.
    assert sizes.choose_examples(60.0, tasks) == {"a": 1500, "b": 500}
    # Both tasks get 15 seconds.
    assert sizes.choose_examples(40.0, tasks) == {"a": 750, "b": 375}
    assert sizes.choose_examples(1e6, tasks) == {"a": 3000, "b": 500}
    assert sizes.choose_examples(-5.0, tasks) == dict.fromkeys("ab", sizes.LEAST_EXAMPLES)


@given(seconds=_SECONDS, tasks=_TASKS)
def test_examples_fit_in_the_time_or_are_the_minimum(seconds, tasks) -> None:
    examples = sizes.choose_examples(seconds, tasks)
    for name, cost in tasks.items():
        assert min(sizes.LEAST_EXAMPLES, cost.num_examples) <= examples[name] <= cost.num_examples
    used = sum(
        cost.fixed + examples[name] * cost.num_epochs * cost.per_example
        for name, cost in tasks.items()
        if examples[name] > sizes.LEAST_EXAMPLES
    )
    assert used <= seconds * (1 + 1e-9) or not used


def test_head_takes_at_most_a_tenth_of_the_budget() -> None:
    assert sizes.choose_head_steps(1000.0, 0.5, 1000) == 200
    assert sizes.choose_head_steps(1e6, 0.5, 1000) == 1000
    assert sizes.choose_head_steps(1.0, 0.5, 1000) == sizes.LEAST_HEAD_STEPS
    assert sizes.choose_head_steps(1.0, 0.5, 7) == 7


def test_clock_adds_the_seconds_of_all_processes(tmp_path, monkeypatch) -> None:
    moments = iter([0.0, 2.0, 10.0, 15.0])
    monkeypatch.setattr("tools.teacher_study.step_durations.time.monotonic", lambda: next(moments))
    for name in ("a", "b"):
        durations = StepDurations(tmp_path / "seconds.json", tmp_path)
        result = tmp_path / "folder" / name
        durations.timed(Step(name, result, lambda: None)).make()
    assert durations.total == 7.0
    assert (
        StepDurations(tmp_path / "seconds.json", tmp_path).seconds(tmp_path / "folder" / "a") == 2.0
    )
    assert durations.seconds(tmp_path / "c") == 0.0
