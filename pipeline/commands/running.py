"""Runs a command: parses flags, sets up the backend, and reports errors in one line."""

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
from pipeline.base.errors import InputError, Setting, StoppedRunError, describe, suggest
from pipeline.commands.flags import read_config, read_values
from pipeline.commands.settings import RAY, ProcessSettings
from pipeline.runners.ray import RayConfig

# This package reserves the TPU chips, so that no other framework of the process can use them.
_TPU_TENSORFLOW = "tensorflow-tpu"
# absl's message for an invalid boolean value, which it formats as a tuple.
_NOT_BOOLEAN = re.compile(r"\('Non-boolean argument to boolean flag', .*\)$")
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
        flag_values: the command's unparsed flags.
        command: a function that is called with the parsed flags.
        description: text that `--help` prints above the flags.
        argv: program name and arguments. By default `sys.argv`; the process may then be
            restarted.
        with_recipes: whether `--recipe=NAME` stands for the flagfile of a recipe.

    Returns:
        the exit status: 0 for success; 1 for an error that the user can correct, after one line
        `error: …` on standard error; 130 after an interrupt; 143 after SIGTERM.
    """
    owns_process = argv is None
    argv = list(sys.argv if argv is None else argv)
    if any(argument in _HELP for argument in argv[1:]):
        text = flag_values.get_help(include_special_flags=False)
        # absl prints the name of the module that defines the flags above them.
        text = re.sub(r"^\n?[\w.]+:\n", "", text, flags=re.MULTILINE)
        print_all(f"{description}\nFlags (--flagfile=FILE reads them from a file):\n{text}")
        return 0
    # Without this, TensorFlow prints a page of notes at every start.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        _parse(flag_values, argv, with_recipes=with_recipes)
        backend = flag_values.backend if "backend" in flag_values else None
        if owns_process and backend == "jax":
            memory.restart_with_huge_pages()
        # The allocator must be configured before the backend is imported.
        memory.retain_freed_memory(backend)
        command(flag_values)
    except InputError as error:
        return _fail(describe(error, "--{}".format))
    except OSError as error:
        file = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error)
        hint = "complete files are kept; re-run the command to resume"
        return _fail(f"{file}{reason}; {hint}")
    except StoppedRunError as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signal_number
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted; re-run the command to resume", file=sys.stderr)
        return 130
    return 0


def print_all(text: str) -> None:
    """Prints a text. The reader of a pipe may stop reading early, as `head` does."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes standard output again at exit, and would report the error there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse(flag_values: flags.FlagValues, argv: Sequence[str], *, with_recipes: bool) -> None:
    try:
        if with_recipes:
            argv = _expand_recipes(flag_values.read_flags_from_files(argv, force_gnu=False))
        rest = flag_values(argv)[1:]
    except (flags.Error, OSError) as error:
        if isinstance(error.__context__, InputError):
            # The field of the flag raised this error, and absl replaced it.
            raise error.__context__ from None
        # absl writes the validated flags before a validator's message. They are cut off.
        text = _NOT_BOOLEAN.sub("must be true or false", str(error).removeprefix("flag "))
        raise InputError(None, received=text[max(0, text.find("missing: ")) :]) from error
    if rest:
        raise InputError(
            None,
            received=f"unexpected argument {rest[0]!r}",
            hint="write it as the value of a flag: --NAME=VALUE",
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
        recipe = value if equals else next(arguments, "")
        try:
            path = recipes.find(recipe)
        except ValueError as error:
            hint = suggest(recipe, recipes.names())
            raise InputError(Setting("recipe"), received=error, hint=hint) from error
        expanded.append(f"--flagfile={path}")
    return expanded


def _fail(message: str) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return 1


@contextlib.contextmanager
def silenced_stderr() -> Iterator[None]:
    """Discards standard error during the block, including output of native code."""
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as discarded:
        os.dup2(discarded.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(original, 2)
            os.close(original)


def import_quietly(*modules: str) -> None:
    """Imports modules and discards their output on standard error.

    TensorFlow's native code prints lines there that no setting suppresses.
    """
    with silenced_stderr():
        for module in modules:
            importlib.import_module(module)


def _expect_chips_for_jax() -> None:
    """Refuses TensorFlow's build for TPUs, which reserves the chips when it is imported."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version(_TPU_TENSORFLOW)
        hint = f"pip uninstall {_TPU_TENSORFLOW}, then pip install tensorflow"
        received = f"the package {_TPU_TENSORFLOW} would reserve the TPU chips that JAX needs"
        raise InputError(Setting("backend"), received=received, hint=hint)


def import_backend(values: flags.FlagValues, *modules: str) -> None:
    """Sets Keras's backend, and imports Keras and further modules.

    No device is initialized. Keras must not have been imported before.
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
        compiled_programs.enable_compilation_cache()


def choose_backend(values: flags.FlagValues, *modules: str) -> list[str]:
    """Sets Keras's backend, imports it, and prints and returns its devices.

    Args:
        values: see `import_backend`.
        *modules: see `import_backend`.

    Returns:
        Keras's names of the devices.
    """
    import_backend(values, *modules)
    return print_devices(values.backend)


def print_devices(backend: str) -> list[str]:
    """Prints the devices of the imported backend.

    Returns:
        Keras's names of the devices.
    """
    devices = importlib.import_module("keras.distribution").list_devices()
    memory_note = memory.retain_freed_memory(backend)
    notes = [f"computing with {backend} on {', '.join(devices)}"]
    notes += [] if memory_note is None else [memory_note]
    print("; ".join(notes), file=sys.stderr)
    return devices


def join_processes(values: flags.FlagValues) -> None:
    """Joins the other processes, if there are any. Call it before devices are initialized.

    Args:
        values: parsed flags of `BackendSettings`, `ProcessSettings` and `distribution`.

    Raises:
        InputError: settings contradict each other, or the other processes cannot be reached.
    """
    settings = read_values(values, ProcessSettings)
    if values.distribution != distribution.DATA_PARALLEL:
        for name, value in settings.items():
            if value is not None:
                expected = f"unset without `distribution`={distribution.DATA_PARALLEL}"
                raise InputError(Setting(name), expected, value)
        return
    if values.backend != "jax":
        expected = f"jax with `distribution`={values.distribution}"
        raise InputError(Setting("backend"), expected, values.backend)
    # If JAX is not installed, `choose_backend` raises the error.
    if importlib.util.find_spec("jax") is not None:
        distribution.join(**settings)


def choose_runner(values: flags.FlagValues) -> RayConfig | None:
    """Returns the settings of Ray and imports it; None if jobs run on this machine.

    Raises:
        InputError: Ray is not installed, or a flag of Ray is set without `runner`=ray.
    """
    if values.runner == RAY:
        config = read_config(values, RayConfig)
        config.import_ray()
        return config
    for name in read_values(values, RayConfig):
        if values[name].present:
            raise InputError(Setting(name), f"unset without `runner`={RAY}", values[name].value)
    return None


def choose_compute_dtype(values: flags.FlagValues, devices: Sequence[str]) -> str:
    """Returns the dtype policy. For `--compute_dtype=auto`, prints the choice and its reason.

    Args:
        values: the parsed flags.
        devices: the devices that `choose_backend` returned.
    """
    if values.compute_dtype != compute_dtype.AUTO:
        return values.compute_dtype
    policy, reason = compute_dtype.detect(devices)
    print(f"--compute_dtype=auto: {policy}, because {reason}", file=sys.stderr)
    return policy
