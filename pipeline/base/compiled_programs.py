"""Compiled programs of JAX, kept on disk so that a restarted process compiles nothing anew.

JAX names each program by a hash of its code, its options, the devices and JAX's own version, so
that another version or machine never reads what it cannot run.
"""

import collections
import dataclasses
import os
import re
import sys
import threading
import warnings
from typing import Any

from pipeline.base.errors import InputError
from pipeline.base.local_mirror import mirror_folder
from pipeline.base.location import LocalLocation, Location

# JAX's own variables: where programs are kept, and how many bytes they may take.
FOLDER_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_SIZE_VARIABLE = "JAX_COMPILATION_CACHE_MAX_SIZE"
_FOLDER = "compiled-programs"
_MAX_BYTES = 4 * 10**9
# Shorter compilations are too many to print.
_PRINTED_SECONDS = 1.0
_HIT, _MISS = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"
_DURATION = "/jax/core/compile/backend_compile_duration"
_BROKEN = re.compile(
    r"Error reading persistent compilation cache entry for '([\w.\-]+)': (.*)", re.DOTALL
)


@dataclasses.dataclass
class ProgramCounts:
    """Programs of this process, by how they were made.

    Attributes:
        compiled: how many times each program was compiled, by its name.
        loaded: how many times each program was read from disk.
    """

    compiled: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    loaded: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


def _print(line: str) -> None:
    """Prints a line that leaves a progress bar whole."""
    # A program that has not imported tqdm, and may not have it, shows no bar.
    write = sys.modules["tqdm"].tqdm.write if "tqdm" in sys.modules else print
    write(line, file=sys.stderr)


class _Listener:
    """Counts programs, and prints a line for each that took long."""

    def __init__(self) -> None:
        self.counts = ProgramCounts()
        # JAX tells of a hit or a miss, then, in the same thread, how long which program took.
        self._thread = threading.local()

    def event(self, name: str, **_: Any) -> None:
        if name in (_HIT, _MISS):
            self._thread.hit = name == _HIT

    def duration(self, name: str, seconds: float, **details: Any) -> None:
        if name != _DURATION:
            return
        program = str(details.get("fun_name", "a program")).removeprefix("jit(").rstrip(")")
        hit, self._thread.hit = getattr(self._thread, "hit", False), False
        (self.counts.loaded if hit else self.counts.compiled)[program] += 1
        if seconds >= _PRINTED_SECONDS:
            verb = "loaded the compiled program" if hit else "compiled"
            _print(f"{verb} {program} in {seconds:.1f} s")


_listener: _Listener | None = None


def _open_folder() -> Location:
    folder = Location.of_variable(FOLDER_VARIABLE)
    if folder is None:
        return LocalLocation(mirror_folder()) / _FOLDER
    if not folder.is_local and not str(folder).startswith("gs://"):
        raise InputError(FOLDER_VARIABLE, "a folder of this machine or gs://…", folder)
    return folder.make_directory()


def keep_programs() -> ProgramCounts:
    """Makes JAX keep compiled programs, and say which ones it compiles.

    They lie in the folder that JAX's variable JAX_COMPILATION_CACHE_DIR names, also gs://…, else
    beside the copies of objects, where the least recently used ones are removed above 4 GB.
    JAX_ENABLE_COMPILATION_CACHE=false keeps none.

    Returns:
        the counts of this process, which go on changing.

    Raises:
        InputError: the folder cannot be used.
    """
    global _listener
    if _listener is not None:
        return _listener.counts
    import jax

    folder = _open_folder()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if folder.is_local:
        # A start makes a hundred small programs; in a bucket each would cost a request.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if not {FOLDER_VARIABLE, _SIZE_VARIABLE} & os.environ.keys():
        jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    _listener = _Listener()
    jax.monitoring.register_event_listener(_listener.event)
    jax.monitoring.register_event_duration_secs_listener(_listener.duration)
    _replace_broken_programs(folder)
    return _listener.counts


def _replace_broken_programs(folder: Location) -> None:
    """Removes programs that JAX cannot read, and says so.

    A process that was killed while it wrote one leaves it cut. JAX warns, compiles the program
    again, and would leave the broken file where it is.
    """
    show = warnings.showwarning

    def remove(message: Warning | str, *arguments: Any, **options: Any) -> None:
        match = _BROKEN.match(str(message))
        if match is None:
            show(message, *arguments, **options)
            return
        for path in folder.glob(f"{match[1]}-*"):
            path.unlink(missing_ok=True)
        reason = " ".join(match[2].split())[:200]
        _print(f"{folder}: {match[1]} cannot be read and is compiled again ({reason})")

    warnings.showwarning = remove
    warnings.filterwarnings("always", _BROKEN.pattern)
