"""How errors are worded: settings as their command shows them, command lines as they are typed."""

import pytest

from pipeline.base.errors import InputError, Setting, describe


@pytest.mark.parametrize(
    ("hint", "shown"),
    [
        ("raise `num_train_steps`", "raise <num_train_steps>"),
        ("run_distill `student`=a `freeze`=encoder", "run_distill --student=a --freeze=encoder"),
        ("run_distill `student`='a b' `teacher`", "run_distill --student='a b' --teacher"),
        ("offline_distill plan_cache `input_dir`=x", "offline_distill plan_cache --input_dir=x"),
        ("create_teacher_output_data `teacher`=x", "create_teacher_output_data --teacher=x"),
        ("run_distill: `teacher`", "run_distill: <teacher>"),
        ("`a` of run_distill", "<a> of run_distill"),
    ],
)
def test_settings_behind_a_command_are_its_flags(hint: str, shown: str) -> None:
    error = InputError(Setting("x"), "y", "z", hint)
    assert describe(error, "<{}>".format) == f"<x>: expected y, received z; {shown}"
