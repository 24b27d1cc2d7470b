"""Errors that the user can correct, with fields that a command turns into one line."""

import contextlib
import re
from collections.abc import Callable, Iterator

_SETTING_NAME = re.compile(r"`([a-z][a-z0-9_]*)`")
# A command with settings, such as "run_distill `student`='my model' `freeze`=encoder".
_COMMAND_LINE = re.compile(
    r"\b(?:create_\w+_data|run_distill|offline_distill \w+)"
    r"(?: `[a-z][a-z0-9_]*`(?:=(?:'[^']*'|[^\s;])+)?)+"
)


class Setting(str):
    """The name of a setting: a field of a config dataclass. Commands show it as `--NAME`."""

    __slots__ = ()


class InputError(ValueError):
    """An error the user can correct: a setting, a file or the environment.

    The commands print it as one line `error: …` and exit with status 1, without a
    traceback. Any other exception is a defect of the program.

    Texts name a setting in backticks, as in "at most `num_train_steps`=100", so that a
    command can show it as the flag that it is there.

    Attributes:
        subject: what is wrong: a `Setting`, or the text of a location, a place in a file, an
            environment variable; None where the message needs none.
        expected: what would be right, as a phrase that follows "must be" (for a setting) or
            "expected"; None where only facts are stated.
        received: what was there instead, or, without `expected`, what is wrong.
        hint: what to do.
        setting: the setting whose value the subject is, or is found in; None if unknown.
    """

    def __init__(
        self,
        subject: object,
        expected: object = None,
        received: object = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(subject, expected, received, hint)
        # A location knows which setting named it.
        setting = getattr(subject, "setting", None)
        self.setting = None if setting is None else Setting(setting)
        self.subject = subject if subject is None or isinstance(subject, Setting) else str(subject)
        self.expected = expected
        self.received = received
        self.hint = hint

    def __str__(self) -> str:
        return describe(self, str)


class DivergedError(InputError):
    """Training came to a loss that is no finite number."""


class InterruptedRunError(InputError):
    """A run was cut short from outside; the same command continues it."""


class StoppedRunError(Exception):
    """A run was asked to stop by a signal, and did so in order.

    Args:
        message: one line that says what to do next.
        signal_number: of the signal; the commands exit with 128 more, as shells do.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


@contextlib.contextmanager
def naming_setting(name: str) -> Iterator[None]:
    """Adds to an `InputError` of the block the setting whose value the block reads.

    Without a subject, the setting is the subject. An error that names a setting stays as it is.
    """
    try:
        yield
    except InputError as error:
        if error.subject is None:
            error.subject = Setting(name)
        elif error.setting is None and not isinstance(error.subject, Setting):
            error.setting = Setting(name)
        raise


def describe(error: InputError, show_setting: Callable[[str], str]) -> str:
    """Returns the one line that states an error: the only place that words one.

    Args:
        error: its fields.
        show_setting: how a setting's name is shown, such as `"--{}".format` in a command.

    Example:
        `describe(InputError(Setting("batch"), "at least 1", 0), str)` is
        "batch: must be at least 1, got 0".
    """
    subject, received = error.subject, error.received
    is_setting = isinstance(subject, Setting)
    if is_setting:
        subject = show_setting(subject)
    elif error.setting is not None and subject is not None:
        subject = f"{show_setting(error.setting)}: {subject}"
    if error.expected is not None:
        requirement, actual = ("must be", "got") if is_setting else ("expected", "received")
        requirement = f"{requirement} {error.expected}"
        received = requirement if received is None else f"{requirement}, {actual} {received}"
    facts = "; ".join(str(text) for text in (received, error.hint) if text is not None)
    parts = (subject, show_settings(facts, show_setting))
    return " ".join(": ".join(part for part in parts if part).split())


def show_settings(text: str, show_setting: Callable[[str], str]) -> str:
    """Returns a text with the settings that it names in backticks as `show_setting` shows them.

    Behind the name of a command they are its flags, whoever shows them.
    """
    text = _COMMAND_LINE.sub(lambda match: _SETTING_NAME.sub(r"--\1", match[0]), text)
    return _SETTING_NAME.sub(lambda match: show_setting(match[1]), text)
