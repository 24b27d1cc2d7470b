"""Freed memory is used again without page faults, unless the user has chosen otherwise."""

import os

import pytest

from pipeline.base import memory
from tests.conftest import run_python

# Prints the note, and the page faults of a large block that is allocated a second time.
SECOND_BLOCK = """
import resource, sys, threading
from pipeline.base import memory

if sys.argv[1] != "default":
    print(memory.keep_freed(None if sys.argv[1] == "none" else sys.argv[1]))
import numpy as np

def fill():
    np.ones(int(sys.argv[2]) * 2**20, np.uint8)

def count():
    for _ in range(2):
        begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        fill()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun)

if sys.argv[3] == "thread":
    thread = threading.Thread(target=count)
    thread.start()
    thread.join()
else:
    count()
"""
HAS_GLIBC = "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {})
needs_glibc = pytest.mark.skipif(not HAS_GLIBC, reason="glibc's allocator alone is set")


def _run(backend: str, megabytes: int, place: str, **environment: str) -> list[str]:
    run = run_python("-c", SECOND_BLOCK, backend, str(megabytes), place, **environment)
    return run.stdout.splitlines()


@needs_glibc
@pytest.mark.parametrize(
    ("backend", "megabytes", "place"),
    [
        ("tensorflow", 200, "main"),
        ("tensorflow", 200, "thread"),
        ("none", 200, "thread"),
        ("jax", 200, "main"),
    ],
)
def test_a_freed_block_is_used_again_without_page_faults(
    backend: str, megabytes: int, place: str
) -> None:
    (by_default,) = _run("default", megabytes, place)
    note, faults = _run(backend, megabytes, place)
    assert note == "freed memory: kept in the process"
    # A huge page has 512 small ones.
    assert int(by_default) >= megabytes // 2
    assert int(faults) < megabytes // 20


@needs_glibc
def test_variables_of_the_user_win() -> None:
    variables = {"MALLOC_TRIM_THRESHOLD_": "131072", "GLIBC_TUNABLES": "glibc.malloc.mmap_max=9"}
    note, faults = _run("tensorflow", 200, "main", **variables)
    assert note == "freed memory: set by GLIBC_TUNABLES and MALLOC_TRIM_THRESHOLD_"
    assert int(faults) >= 100


@pytest.mark.parametrize("error", [None, ValueError, OSError, AttributeError])
def test_another_c_library_is_left_alone(monkeypatch, error: type[Exception] | None) -> None:
    def confstr(name: str) -> None:
        if error is not None:
            raise error(name)

    monkeypatch.setattr(memory.os, "confstr", confstr)
    monkeypatch.setattr(memory.ctypes, "CDLL", None)
    for name in [name for name in os.environ if name.startswith(("GLIBC", "MALLOC", "LD_PRE"))]:
        monkeypatch.delenv(name)
    assert memory.keep_freed.__wrapped__("jax") == "freed memory: system default"
