"""JAX's persistent compilation cache: a restarted process loads its programs from disk.

JAX names each program by a hash of its code, its options, the devices and JAX's version. A
process therefore never loads a program of another version or device.
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

# JAX's own variables: the folder of compiled programs, and the limit of its size in bytes.
FOLDER_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_SIZE_VARIABLE = "JAX_COMPILATION_CACHE_MAX_SIZE"
_FOLDER = "compiled-programs"
_MAX_BYTES = 4 * 10**9
# There are too many shorter compilations to print a line for each.
_MIN_PRINTED_SECONDS = 1.0
_HIT, _MISS = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"
_DURATION = "/jax/core/compile/backend_compile_duration"
_UNREADABLE = re.compile(
    r"Error reading persistent compilation cache entry for '([\w.\-]+)': (.*)", re.DOTALL
)


@dataclasses.dataclass
class ProgramCounts:
    """Number of programs that this process compiled or loaded.

    Attributes:
        compiled: number of compilations of each program, keyed by its name.
        loaded: number of times that each program was loaded from disk, keyed by its name.
    """

    compiled: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    loaded: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


def _print(line: str) -> None:
    """Prints a line to standard error without breaking a progress bar."""
    # No bar is shown where tqdm was not imported. It may not even be installed.
    write = sys.modules["tqdm"].tqdm.write if "tqdm" in sys.modules else print
    write(line, file=sys.stderr)


class _Listener:
    """Counts programs, and prints a line for each that took at least a second."""

    def __init__(self) -> None:
        self.counts = ProgramCounts()
        # JAX reports a cache hit or miss first. The program's name and duration follow in a
        # second event, in the same thread.
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
        if seconds >= _MIN_PRINTED_SECONDS:
            verb = "loaded the compiled program" if hit else "compiled"
            _print(f"{verb} {program} in {seconds:.1f} s")


_listener: _Listener | None = None


def _open_folder() -> Location:
    folder = Location.of_variable(FOLDER_VARIABLE)
    if folder is None:
        return LocalLocation(mirror_folder()) / _FOLDER
    if not folder.is_local and not str(folder).startswith("gs://"):
        raise InputError(FOLDER_VARIABLE, "a folder on this machine or gs://…", folder)
    return folder.make_directory()


def enable_compilation_cache() -> ProgramCounts:
    """Enables JAX's persistent compilation cache, and reports the compilations.

    The folder is the value of JAX_COMPILATION_CACHE_DIR, which may be gs://…. By default it is
    a folder in the local mirror, limited to 4 GB: the least recently used programs are removed
    first. The limit does not apply to a folder that you choose.
    JAX_ENABLE_COMPILATION_CACHE=false disables the cache.

    Returns:
        the counts of this process, which later compilations update.

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
        # A command starts by compiling about a hundred small programs. JAX stores only slow
        # ones by default, which suits a bucket, where each program would cost a request.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if not {FOLDER_VARIABLE, _SIZE_VARIABLE} & os.environ.keys():
        jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    _listener = _Listener()
    jax.monitoring.register_event_listener(_listener.event)
    jax.monitoring.register_event_duration_secs_listener(_listener.duration)
    _remove_unreadable_programs(folder)
    return _listener.counts


def _remove_unreadable_programs(folder: Location) -> None:
    """Installs a warning handler that removes programs that JAX cannot read.

    A process that is killed while it writes a program leaves a truncated file. JAX warns and
    compiles the program again, but does not replace the truncated file.
    """
    show_warning = warnings.showwarning

    def remove_or_show(message: Warning | str, *arguments: Any, **options: Any) -> None:
        match = _UNREADABLE.match(str(message))
        if match is None:
            show_warning(message, *arguments, **options)
            return
        for path in folder.glob(f"{match[1]}-*"):
            path.unlink(missing_ok=True)
        reason = " ".join(match[2].split())[:200]
        _print(f"{folder}: {match[1]} is unreadable and will be compiled again ({reason})")

    warnings.showwarning = remove_or_show
    warnings.filterwarnings("always", _UNREADABLE.pattern)
