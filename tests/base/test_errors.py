"""The one line that states an error, and the settings that it names."""

import pytest

from pipeline.base.errors import InputError, Setting, describe


@pytest.mark.parametrize(
    ("hint", "shown"),
    [
        ("at most `steps`=100", "at most <steps>=100"),
        # A command to type has flags, whichever command says so.
        ("run_distill `student`=DIR `freeze`=encoder; `force` goes on", None),
    ],
)
def test_settings_are_shown_as_flags_of_their_command(hint: str, shown: str | None) -> None:
    error = InputError(Setting("batch"), "at least 1", 0, hint)
    expected = shown or "run_distill --student=DIR --freeze=encoder; <force> goes on"
    line = f"<batch>: expected at least 1, received 0; {expected}"
    assert describe(error, "<{}>".format) == line
