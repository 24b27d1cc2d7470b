"""Keeping freed memory in the process, where the allocator of the system can.

A training step frees large tensors and the next step allocates them anew. By default glibc
returns them to the system, which clears every page again at its next use. On two cores that
took a tenth to a quarter of the processor time of a student's step.
"""

import ctypes
import functools
import os

# The parameters of mallopt(3), by their names in <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
# No block is a mapping of its own, which ends with the block, and the heap never shrinks.
_KEPT = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1}
# The arenas of further threads map each block of more than 64 MiB, whatever `_KEPT` says.
_ONE_ARENA = {_M_ARENA_MAX: 1}
# Beginnings of variables by which the user chooses: settings of glibc, or another allocator.
_USER_VARIABLES = ("GLIBC_TUNABLES", "MALLOC_", "LD_PRELOAD")


@functools.cache
def keep_freed(backend: str | None) -> str:
    """Sets the allocator of this process, before Keras's backend is imported.

    The block for all temporary values of a step on JAX, of several hundred MiB, would leave
    gaps in a single arena: its peak memory grew by 17%.

    Args:
        backend: the one to be imported; None for none.

    Returns:
        what becomes of freed memory, for people.
    """
    chosen = [name for name in os.environ if name.startswith(_USER_VARIABLES)]
    if chosen:
        return f"freed memory: as {' and '.join(sorted(chosen))} say"
    if not _is_glibc():
        return "freed memory: as the system has it"
    mallopt = ctypes.CDLL(None).mallopt
    settings = _KEPT if backend == "jax" else _KEPT | _ONE_ARENA
    for parameter, value in settings.items():
        mallopt(parameter, value)
    return "freed memory: kept"


def _is_glibc() -> bool:
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    # No such function, no such name, or one that the system has no value for.
    except (AttributeError, ValueError, OSError):
        return False
