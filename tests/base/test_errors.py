"""Tests of an error's message, and of the settings that it names."""

import pytest

from pipeline.base.errors import InputError, Setting, describe


@pytest.mark.parametrize(
    ("hint", "shown"),
    [
        ("at most `steps`=100", "at most <steps>=100"),
        # A command line always has flags, also in a message of the Python API.
        (
            "run_distill `student`=DIR `freeze`=encoder; set `force`",
            "run_distill --student=DIR --freeze=encoder; set <force>",
        ),
        ("run_distill `student`='a b' `teacher`", "run_distill --student='a b' --teacher"),
        ("offline_distill plan_cache `input_dir`=x", "offline_distill plan_cache --input_dir=x"),
        ("create_teacher_output_data `teacher`=x", "create_teacher_output_data --teacher=x"),
        ("run_distill: `teacher`", "run_distill: <teacher>"),
        ("`a` of run_distill", "<a> of run_distill"),
    ],
)
def test_settings_behind_a_command_are_shown_as_flags(hint: str, shown: str) -> None:
    error = InputError(Setting("batch"), "at least 1", 0, hint)
    line = f"<batch>: must be at least 1, got 0; {shown}"
    assert describe(error, "<{}>".format) == line
