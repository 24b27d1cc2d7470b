"""What the commands share: parsing flags, and turning mistakes into one line and exit status 1."""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

from absl import flags

from data_specs import recipes
from pipeline.base import compiled_programs, compute_dtype, distribution, memory
from pipeline.base.errors import InputError, Setting, StoppedRunError, describe
from pipeline.commands.flags import read_config, read_values
from pipeline.commands.settings import RAY, ProcessSettings
from pipeline.runners.ray import RayConfig

# It takes a machine's TPU chips from any other framework of the process.
_TPU_TENSORFLOW = "tensorflow-tpu"
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
        # Before anything heavy is imported.
        memory.keep_freed(flag_values.backend if "backend" in flag_values else None)
        command(flag_values)
    except InputError as error:
        return _fail(describe(error, "--{}".format))
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
        raise InputError(
            None, received=f"unexpected argument {rest[0]!r}: the command takes flags only"
        )


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


def _expect_chips_for_jax() -> None:
    """Refuses TensorFlow's build for TPUs, which would take the chips as soon as it is imported."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version(_TPU_TENSORFLOW)
        hint = f"pip uninstall {_TPU_TENSORFLOW}, then pip install tensorflow"
        expected = "TensorFlow's build for CPUs or GPUs, as JAX computes"
        raise InputError(Setting("backend"), expected, _TPU_TENSORFLOW, hint)


def import_backend(values: flags.FlagValues, *modules: str) -> None:
    """Sets Keras's backend and imports it and further modules; no device is asked for.

    Keras must not have been imported before.
    """
    if values.backend == "jax":
        _expect_chips_for_jax()
    os.environ["KERAS_BACKEND"] = values.backend
    try:
        import_quietly("keras", *modules)
    except ImportError as error:
        received = f"{values.backend} cannot be imported ({error})"
        hint = "install it, for example with pip install '.[jax]'"
        raise InputError(Setting("backend"), received=received, hint=hint) from error
    if values.backend == "jax":
        compiled_programs.keep_programs()


def choose_backend(values: flags.FlagValues, *modules: str) -> list[str]:
    """Sets Keras's backend, imports it, says what it computes on, and returns those devices.

    Arguments are those of `import_backend`; the devices are Keras's names.
    """
    import_backend(values, *modules)
    return show_devices(values.backend)


def show_devices(backend: str) -> list[str]:
    """Says what the imported backend computes on and in which memory; returns the devices."""
    devices = importlib.import_module("keras.distribution").list_devices()
    memory_kept = memory.keep_freed(backend)
    print(f"computing with {backend} on {', '.join(devices)}; {memory_kept}", file=sys.stderr)
    return devices


def join_processes(values: flags.FlagValues) -> None:
    """Joins the other processes, if there are any, before devices are asked for.

    Args:
        values: of flags among which are `BackendSettings`, `ProcessSettings` and `distribution`.

    Raises:
        InputError: settings that do not go together, or the others cannot be reached.
    """
    settings = read_values(values, ProcessSettings)
    if values.distribution != distribution.DATA_PARALLEL:
        for name, value in settings.items():
            if value is not None:
                expected = f"used together with `distribution`={distribution.DATA_PARALLEL}"
                raise InputError(Setting(name), expected, values.distribution)
        return
    if values.backend != "jax":
        expected = f"jax with `distribution`={values.distribution}"
        raise InputError(Setting("backend"), expected, values.backend)
    # Without JAX, `choose_backend` says so.
    if importlib.util.find_spec("jax") is not None:
        distribution.join(**settings)


def choose_runner(values: flags.FlagValues) -> RayConfig | None:
    """Returns how jobs run on Ray, which is imported; None where they run on this machine.

    Raises:
        InputError: Ray is not installed, or a flag is for the other runner.
    """
    if values.runner == RAY:
        config = read_config(values, RayConfig)
        config.import_ray()
        return config
    for name in read_values(values, RayConfig):
        if values[name].present:
            raise InputError(
                Setting(name), f"used together with `runner`={RAY}", values[name].value
            )
    return None


def choose_compute_dtype(values: flags.FlagValues, devices: Sequence[str]) -> str:
    """Returns what to compute in; where `--compute_dtype=auto` leaves it open, says what and why.

    `devices` are as `choose_backend` returns them.
    """
    if values.compute_dtype != compute_dtype.AUTO:
        return values.compute_dtype
    chosen, reason = compute_dtype.detect(devices)
    print(f"--compute_dtype=auto: {chosen}, as {reason}", file=sys.stderr)
    return chosen
