"""Configures glibc's allocator to keep freed memory in the process.

A training step frees large tensors, and the next step allocates them again. By default glibc
returns them to the system, which clears every page at its next use. On two cores, clearing took
a tenth to a quarter of the processor time of a student's step.
"""

import ctypes
import functools
import os
import pathlib
import sys

# The parameters of mallopt(3), by their names in <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
# Every block is allocated in the heap, and the heap never shrinks. A separate mapping would be
# returned to the system as soon as its block is freed.
_KEEP_FREED = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1}
# Other threads' arenas map each block of more than 64 MiB separately, despite `_KEEP_FREED`.
_ONE_ARENA = {_M_ARENA_MAX: 1}
_TUNABLES = "GLIBC_TUNABLES"
# Prefixes of environment variables with the user's choice: glibc settings or another allocator.
_USER_PREFIXES = (_TUNABLES, "MALLOC_", "LD_PRELOAD")
# The setting for huge pages, the first version of glibc that has it, and Linux's file of modes. In
# the mode [madvise], a program gets huge pages only where it asks for them.
_HUGE_PAGES = "glibc.malloc.hugetlb=1"
_HUGE_PAGES_VERSION = (2, 35)
_HUGE_PAGE_MODES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


@functools.cache
def retain_freed_memory(backend: str | None) -> str | None:
    """Configures the allocator of this process. Call it before Keras's backend is imported.

    With JAX, several arenas remain enabled. A JAX step allocates its temporary values as one block
    of several hundred MiB, which fragments a single arena: peak memory grew by 17%.

    Args:
        backend: Keras's backend that will be imported; None if none will be.

    Returns:
        a phrase for the user if environment variables configure the allocator instead.
    """
    if user_variables := _user_variables():
        return f"memory allocator configured by {' and '.join(user_variables)}"
    if _glibc_version() is None:
        return None
    mallopt = ctypes.CDLL(None).mallopt
    settings = _KEEP_FREED if backend == "jax" else _KEEP_FREED | _ONE_ARENA
    for parameter, value in settings.items():
        mallopt(parameter, value)
    return None


def restart_with_huge_pages() -> None:
    """Restarts this program with huge pages for its allocator, if that is possible and useful.

    A JAX step on a CPU allocates its temporary values in a separate mapping, and returns it. With
    pages of 2 MiB in place of 4 KiB, the system clears it faster: a student's step took four
    fifths of the time on two cores. glibc reads the setting only when a program starts. Call this
    function before any output and before any slow import, and only in a process that runs a
    single command.
    """
    if _user_variables() or _TUNABLES in os.environ or not sys.executable:
        return
    version = _glibc_version()
    if version is None or version < _HUGE_PAGES_VERSION or not _needs_advice():
        return
    os.environ[_TUNABLES] = _HUGE_PAGES
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except OSError:
        del os.environ[_TUNABLES]


def _user_variables() -> list[str]:
    names = sorted(name for name in os.environ if name.startswith(_USER_PREFIXES))
    # This value is set by `restart_with_huge_pages`, in this process or its parent.
    return [name for name in names if (name, os.environ[name]) != (_TUNABLES, _HUGE_PAGES)]


def _needs_advice() -> bool:
    try:
        return "[madvise]" in _HUGE_PAGE_MODES.read_text("ascii")
    except (OSError, ValueError):
        return False


def _glibc_version() -> tuple[int, ...] | None:
    """Returns the version of glibc, for example (2, 36); None for another C library."""
    try:
        _, version = os.confstr("CS_GNU_LIBC_VERSION").split()
        return tuple(map(int, version.split(".")))
    # Not every system has the function, the name or a value for the name.
    except (AttributeError, ValueError, OSError):
        return None
