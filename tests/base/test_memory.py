"""Tests that freed memory is reused without page faults unless the user configures glibc."""

import os

import pytest

from pipeline.base import memory
from tests.conftest import run_python

# Prints the note, and the number of page faults of a large block's second allocation.
SECOND_BLOCK = """
import resource, sys, threading
from pipeline.base import memory

if sys.argv[1] != "default":
    print(memory.retain_freed_memory(None if sys.argv[1] == "none" else sys.argv[1]))
import numpy as np

def fill():
    np.ones(int(sys.argv[2]) * 2**20, np.uint8)

def count():
    for _ in range(2):
        faults_before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        fill()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults_before)

if sys.argv[3] == "thread":
    thread = threading.Thread(target=count)
    thread.start()
    thread.join()
else:
    count()
"""
HAS_GLIBC = "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {})
needs_glibc = pytest.mark.skipif(not HAS_GLIBC, reason="only glibc's allocator is configured")


def _run(backend: str, megabytes: int, thread: str, **environment: str) -> list[str]:
    run = run_python("-c", SECOND_BLOCK, backend, str(megabytes), thread, **environment)
    return run.stdout.splitlines()


@needs_glibc
@pytest.mark.parametrize(
    ("backend", "megabytes", "thread"),
    [
        ("tensorflow", 200, "main"),
        ("tensorflow", 200, "thread"),
        ("none", 200, "thread"),
        ("jax", 200, "main"),
    ],
)
def test_freed_block_is_reused_without_page_faults(
    backend: str, megabytes: int, thread: str
) -> None:
    (default_faults,) = _run("default", megabytes, thread)
    note, faults = _run(backend, megabytes, thread)
    assert note == "None"
    # With huge pages of 2 MiB, the default allocator has one fault per 2 MiB.
    assert int(default_faults) >= megabytes // 2
    assert int(faults) < megabytes // 20


@needs_glibc
def test_environment_variables_of_the_user_take_precedence() -> None:
    variables = {"MALLOC_TRIM_THRESHOLD_": "131072", "GLIBC_TUNABLES": "glibc.malloc.mmap_max=9"}
    note, faults = _run("tensorflow", 200, "main", **variables)
    assert note == "memory allocator configured by GLIBC_TUNABLES and MALLOC_TRIM_THRESHOLD_"
    assert int(faults) >= 100


@pytest.mark.parametrize("error", [None, ValueError, OSError, AttributeError])
def test_another_c_library_is_not_configured(monkeypatch, error: type[Exception] | None) -> None:
    def confstr(name: str) -> None:
        if error is not None:
            raise error(name)

    monkeypatch.setattr(memory.os, "confstr", confstr)
    monkeypatch.setattr(memory.ctypes, "CDLL", None)
    for name in [name for name in os.environ if name.startswith(("GLIBC", "MALLOC", "LD_PRE"))]:
        monkeypatch.delenv(name)
    assert memory.retain_freed_memory.__wrapped__("jax") is None
    memory.restart_with_huge_pages()
    assert "GLIBC_TUNABLES" not in os.environ


# Counts its starts, and prints the setting and the note of the allocator.
RESTART = """
import os
from pipeline.base import memory

print("start", flush=True)
memory.restart_with_huge_pages()
print(os.environ.get("GLIBC_TUNABLES"), memory.retain_freed_memory("jax"))
"""


@needs_glibc
@pytest.mark.parametrize("modes", ["always [madvise] never", "[always] madvise never", None])
def test_program_restarts_once_if_huge_pages_must_be_asked_for(tmp_path, modes) -> None:
    path = tmp_path / "enabled"
    if modes is not None:
        path.write_text(f"{modes}\n")
    replaced = f"import pathlib\nmemory._HUGE_PAGE_MODES = pathlib.Path({str(path)!r})\nprint("
    lines = run_python("-c", RESTART.replace("print(", replaced, 1)).stdout
    if modes is not None and "[madvise]" in modes:
        assert lines.splitlines() == ["start", "start", "glibc.malloc.hugetlb=1 None"]
    else:
        assert lines.splitlines() == ["start", "None None"]


@needs_glibc
def test_program_with_allocator_settings_of_the_user_is_not_restarted() -> None:
    run = run_python("-c", RESTART, MALLOC_ARENA_MAX="2")
    note = "memory allocator configured by MALLOC_ARENA_MAX"
    assert run.stdout.splitlines() == ["start", f"None {note}"]
