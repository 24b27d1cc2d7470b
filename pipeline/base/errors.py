"""The exceptions that stand for what the user can mend, or asked for."""


class InputError(ValueError):
    """Something outside the program is not as it must be: a flag, a file, a disk.

    The text is a single line that names the flag or the file, what was expected
    and what was received. The commands print it as `error: …` and exit with 1,
    without a traceback; any other exception is a defect of the program.
    """


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
