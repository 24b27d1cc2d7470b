"""Errors that the user can correct. Commands format their fields as one line."""

import contextlib
import difflib
import re
from collections.abc import Callable, Iterable, Iterator

_SETTING_NAME = re.compile(r"`([a-z][a-z0-9_]*)`")
# A command with settings, for example "run_distill `student`='my model' `freeze`=encoder".
_COMMAND_LINE = re.compile(
    r"\b(?:create_\w+_data|run_distill|offline_distill \w+)"
    r"(?: `[a-z][a-z0-9_]*`(?:=(?:'[^']*'|[^\s;])+)?)+"
)


class Setting(str):
    """The name of a setting: a field of a config dataclass. Commands show it as `--NAME`."""

    __slots__ = ()


class InputError(ValueError):
    """An error the user can correct: a setting, a file or the environment.

    The commands print it as one line `error: …`, without a traceback, and exit with status 1.
    Any other exception is a defect of the program.

    Texts name a setting in backticks, as in "at most `num_train_steps`=100". A command shows
    such a setting as its flag.

    Attributes:
        subject: the faulty value or file: a `Setting`, or the text of a location, a position in
            a file or an environment variable. None if the message needs no subject.
        expected: the correct value, as a phrase after "must be" (for a setting) or "expected".
            None if the message only states facts.
        received: the actual value; without `expected`, a statement of the problem.
        hint: a correction that the user can make.
        setting: the setting whose value names or contains the subject; None if unknown.
    """

    def __init__(
        self,
        subject: object,
        expected: object = None,
        received: object = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(subject, expected, received, hint)
        # A location records the setting whose value it is.
        setting = getattr(subject, "setting", None)
        self.setting = None if setting is None else Setting(setting)
        self.subject = subject if subject is None or isinstance(subject, Setting) else str(subject)
        self.expected = expected
        self.received = received
        self.hint = hint

    def __str__(self) -> str:
        return describe(self, str)


class DivergedError(InputError):
    """The training loss is not a finite number."""


class InterruptedRunError(InputError):
    """A run was interrupted from outside. Re-running the command resumes it."""


class StoppedRunError(Exception):
    """A run stopped cleanly after a signal.

    Args:
        message: one line that tells the user what to do next.
        signal_number: number of the signal. The commands exit with 128 + `signal_number`, as
            shells do.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


@contextlib.contextmanager
def naming_setting(name: str) -> Iterator[None]:
    """Adds a setting to an `InputError` that is raised while the block reads its value.

    The setting becomes the subject of an error without one. An error that already names a
    setting is not changed.
    """
    try:
        yield
    except InputError as error:
        if error.subject is None:
            error.subject = Setting(name)
        elif error.setting is None and not isinstance(error.subject, Setting):
            error.setting = Setting(name)
        raise


def suggest(name: str, known: Iterable[str]) -> str | None:
    """Returns a hint with the known names that are similar to an unknown one; None without any."""
    known = tuple(known)
    similar = difflib.get_close_matches(name, known)
    similar = similar or [other for other in known if name and other.startswith(name)][:3]
    return f"did you mean {' or '.join(similar)}?" if similar else None


def describe(error: InputError, show_setting: Callable[[str], str]) -> str:
    """Returns an error's message in one line. No other function formats errors.

    Args:
        error: the error to describe.
        show_setting: formats a setting's name, for example `"--{}".format` in a command.

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
    texts = (subject, show_settings(facts, show_setting))
    return " ".join(": ".join(text for text in texts if text).split())


def show_settings(text: str, show_setting: Callable[[str], str]) -> str:
    """Returns a text in which `show_setting` formats each setting in backticks.

    Settings that follow the name of a command are always shown as flags.
    """
    text = _COMMAND_LINE.sub(lambda match: _SETTING_NAME.sub(r"--\1", match[0]), text)
    return _SETTING_NAME.sub(lambda match: show_setting(match[1]), text)
