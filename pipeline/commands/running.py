"""What the commands share: parsing flags, and turning mistakes into one line and exit status 1."""

import contextlib
import importlib
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

from absl import flags

from data_specs import recipes
from pipeline.base import compute_dtype, settings
from pipeline.base.errors import InputError, Setting, StoppedRunError, describe, naming_setting
from pipeline.commands.flags import read_config, read_values
from pipeline.commands.settings import RAY
from pipeline.runners.ray import RayConfig

_HELP = ("-h", "-help", "--help", "--helpshort", "--helpfull")


def run(
    flag_values: flags.FlagValues,
    command: Callable[[flags.FlagValues], None],
    description: str,
    argv: Sequence[str] | None = None,
    *,
    with_recipes: bool = False,
) -> int:
    """Parses flags and runs a command.

    Args:
        flag_values: the command's flags.
        command: what to run; it gets the parsed flags.
        description: printed above the flags by `--help`.
        argv: program name and arguments; the process's own by default.
        with_recipes: whether `--recipe=NAME` stands for the flagfile of a recipe.

    Returns:
        the exit status: 0, or 1 after one line `error: …` on stderr for whatever the user can mend,
        or 130 when interrupted, 143 when a run was stopped by SIGTERM and says so.
    """
    argv = list(sys.argv if argv is None else argv)
    if any(argument in _HELP for argument in argv[1:]):
        text = flag_values.get_help(include_special_flags=False)
        # The name of the module that defines them.
        text = re.sub(r"^\n?[\w.]+:\n", "", text, flags=re.MULTILINE)
        print_all(f"{description}\nFlags (--flagfile=FILE reads them from a file):\n{text}")
        return 0
    # Else TensorFlow prints a page of notes on every start.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        _parse(flag_values, argv, with_recipes=with_recipes)
        command(flag_values)
    except InputError as error:
        return _fail(describe(error, lambda name: f"--{name}" if name in flag_values else name))
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error)
        return _fail(f"{place}{reason}; what is complete is kept, the same command continues")
    except StoppedRunError as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signal_number
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted; the same command continues", file=sys.stderr)
        return 130
    return 0


def print_all(text: str) -> None:
    """Prints to a reader that may stop reading, such as `head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Else Python tries once more at its end, and complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse(flag_values: flags.FlagValues, argv: Sequence[str], *, with_recipes: bool) -> None:
    try:
        if with_recipes:
            argv = _expand_recipes(flag_values.read_flags_from_files(argv, force_gnu=False))
        rest = flag_values(argv)[1:]
    except (flags.Error, OSError) as error:
        if isinstance(error.__context__, InputError):
            # Raised by the field that the flag sets.
            raise error.__context__ from None
        # A validator's message stands behind the flags that it is about.
        text = str(error).removeprefix("flag ")
        raise InputError(None, received=text[max(0, text.find("missing: ")) :]) from error
    if rest:
        raise InputError(None, "flags only", f"the argument {rest[0]!r}")


def _expand_recipes(argv: Sequence[str]) -> list[str]:
    """Returns the arguments with `--recipe=NAME` replaced by the recipe's flagfile."""
    expanded = []
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name not in ("--recipe", "-recipe"):
            expanded.append(argument)
            continue
        try:
            path = recipes.find(value if equals else next(arguments, ""))
        except ValueError as error:
            raise InputError(Setting("recipe"), received=error) from error
        expanded.append(f"--flagfile={path}")
    return expanded


def _fail(message: str) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return 1


class FlagTable:
    """A command's own flags, apart from those of any other command in the process.

    Attributes:
        values: the flags; parsed by `run`.
    """

    def __init__(self) -> None:
        self.values = flags.FlagValues()

    def string(self, name: str, default: str | None, text: str) -> None:
        """Defines a flag that holds text."""
        flags.DEFINE_string(name, default, text, flag_values=self.values)

    def boolean(self, name: str, default: bool | None, text: str) -> None:
        """Defines `--name` and `--noname`, also `--name=True`."""
        flags.DEFINE_bool(name, default, text, flag_values=self.values)

    def integer(
        self, name: str, default: int | None, text: str, *, low: int, high: int | None = None
    ) -> None:
        """Defines a flag that holds an integer from `low` to `high`."""
        flags.DEFINE_integer(name, default, text, low, high, flag_values=self.values)

    def number(
        self, name: str, default: float | None, text: str, *, low: float, high: float | None = None
    ) -> None:
        """Defines a flag that holds a number from `low` to `high`."""
        flags.DEFINE_float(name, default, text, low, high, flag_values=self.values)
        flags.register_validator(
            name,
            lambda value: value is None or math.isfinite(value),
            message="expected a finite number",
            flag_values=self.values,
        )

    def choice(self, name: str, default: str | None, text: str, *, of: Sequence[str]) -> None:
        """Defines a flag that holds one of several words."""
        flags.DEFINE_enum(name, default, list(of), text, flag_values=self.values)

    def alias(self, name: str, other: str) -> None:
        """Defines another name of a flag."""
        flags.DEFINE_alias(name, other, flag_values=self.values)

    def backend(self) -> None:
        """Defines `--backend`."""
        backends = ["tensorflow", "jax"]
        self.choice("backend", "tensorflow", "What Keras computes with.", of=backends)

    def compute_dtype(self, text: str) -> None:
        """Defines `--compute_dtype`; see `choose_compute_dtype`."""
        text = f"{text} auto is mixed_bfloat16 where there are instructions for it, else float32."
        self.choice("compute_dtype", compute_dtype.FLOAT32, text, of=compute_dtype.CHOICES)

    def require(self, *names: str) -> None:
        """Makes flags that have no default required."""

        def nothing_missing(given: dict[str, str | None]) -> bool:
            missing = [f"--{name}" for name in names if not given[name]]
            if missing:
                raise flags.ValidationError(f"missing: {', '.join(missing)} (see --help)")
            return True

        flags.register_multi_flags_validator(names, nothing_missing, flag_values=self.values)


def parse_numbers(name: str, text: str) -> tuple[float, ...]:
    """Parses a flag's numbers, separated by commas; see `settings.parse_numbers`."""
    with naming_setting(name):
        return settings.parse_numbers(text)


def parse_counts(name: str, text: str) -> tuple[int, ...]:
    """Parses a flag's integers above 0, separated by commas; see `settings.parse_counts`."""
    with naming_setting(name):
        return settings.parse_counts(text)


@contextlib.contextmanager
def silenced_stderr() -> Iterator[None]:
    """What is said on stderr inside the block goes nowhere, that of native code included."""
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(original, 2)
            os.close(original)


def import_quietly(*modules: str) -> None:
    """Imports modules; what is said on stderr meanwhile goes nowhere.

    TensorFlow's native code greets there before any setting can silence it.
    """
    with silenced_stderr():
        for module in modules:
            importlib.import_module(module)


def import_backend(values: flags.FlagValues, *modules: str) -> None:
    """Sets Keras's backend and imports it; no device is asked for.

    Keras must not have been imported before.

    Args:
        values: parsed flags with `--backend`.
        *modules: what else to import.
    """
    os.environ["KERAS_BACKEND"] = values.backend
    try:
        import_quietly("keras", *modules)
    except ImportError as error:
        raise InputError(
            Setting("backend"),
            received=f"{values.backend} cannot be imported ({error})",
            hint="install it, for example with pip install '.[jax]'",
        ) from error


def choose_backend(values: flags.FlagValues, *modules: str) -> list[str]:
    """Sets Keras's backend, imports it and says what it computes on.

    Arguments are those of `import_backend`.

    Returns:
        Keras's names of the devices.
    """
    import_backend(values, *modules)
    devices = importlib.import_module("keras.distribution").list_devices()
    print(f"computing with {values.backend} on {', '.join(devices)}", file=sys.stderr)
    return devices


def choose_runner(values: flags.FlagValues) -> RayConfig | None:
    """Returns how jobs run on Ray, which is imported; None where they run on this machine.

    Args:
        values: parsed flags with `--runner`.

    Raises:
        InputError: Ray is not installed, or a flag is for the other runner.
    """
    if values.runner == RAY:
        config = read_config(values, RayConfig)
        config.import_ray()
        return config
    for name in read_values(values, RayConfig):
        if values[name].present:
            raise InputError(Setting(name), f"`runner`={RAY} together with it", values[name].value)
    return None


def choose_compute_dtype(values: flags.FlagValues, devices: Sequence[str]) -> str:
    """Returns what to compute in; where `--compute_dtype=auto` leaves it open, says what and why.

    Args:
        values: parsed flags with `--compute_dtype`.
        devices: as `choose_backend` returns them.
    """
    if values.compute_dtype != compute_dtype.AUTO:
        return values.compute_dtype
    chosen, reason = compute_dtype.detect(devices)
    print(f"--compute_dtype=auto: {chosen}, as {reason}", file=sys.stderr)
    return chosen
