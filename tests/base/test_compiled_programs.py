"""Tests that compiled programs are reused by later processes, and truncated ones replaced."""

import json
import pathlib

import pytest

from pipeline.base.local_mirror import CACHE_VARIABLE
from tests.conftest import run_python

pytest.importorskip("jax")

_RUN = """
import json, sys
from pipeline.base import compiled_programs
from pipeline.base.errors import InputError
try:
    counts = compiled_programs.enable_compilation_cache()
except InputError as error:
    sys.exit(f"{error.subject} {error.received}")
import jax, jax.numpy as jnp

@jax.jit
def scaled_sum(values):
    return (values * 3).sum()

result = float(scaled_sum(jnp.arange(7.0)))
assert compiled_programs.enable_compilation_cache() is counts
print(json.dumps([result, counts.compiled, counts.loaded]))
"""


def _run(tmp_path: pathlib.Path, **environment: str) -> tuple[dict, dict, str]:
    """Runs `_RUN` in a process.

    Returns:
        the number of compilations and of loads of each program, and the standard error.
    """
    environment = {CACHE_VARIABLE: str(tmp_path), "JAX_PLATFORMS": "cpu", **environment}
    process = run_python("-c", _RUN, **environment)
    result, compiled, loaded = json.loads(process.stdout)
    assert result == 63.0
    return compiled, loaded, process.stderr


def test_second_process_compiles_nothing(tmp_path) -> None:
    compiled, loaded, _ = _run(tmp_path)
    assert compiled["scaled_sum"] == 1 and loaded == {}
    assert _run(tmp_path)[:2] == ({}, compiled)


def test_truncated_program_is_compiled_again_and_replaced(tmp_path) -> None:
    compiled, *_ = _run(tmp_path)
    (path,) = (tmp_path / "compiled-programs").glob("jit_scaled_sum-*-cache")
    path.write_bytes(path.read_bytes()[:100])
    recompiled, loaded, stderr = _run(tmp_path)
    assert recompiled == {"scaled_sum": 1} and set(loaded) == set(compiled) - {"scaled_sum"}
    (line,) = [line for line in stderr.splitlines() if "jit_scaled_sum" in line]
    assert line.startswith(f"{tmp_path}/compiled-programs: ")
    assert _run(tmp_path)[0] == {}


def test_jax_variable_sets_the_folder_of_programs(tmp_path) -> None:
    folder = tmp_path / "programs" / "of jax"
    _run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(folder))
    assert list(folder.glob("jit_scaled_sum-*")) and not (tmp_path / "compiled-programs").exists()


def test_jax_variable_disables_the_compilation_cache(tmp_path) -> None:
    for _ in range(2):
        compiled, loaded, _ = _run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
        assert compiled["scaled_sum"] == 1 and loaded == {}


def test_store_that_jax_cannot_write_to_is_refused(tmp_path) -> None:
    environment = {"JAX_COMPILATION_CACHE_DIR": "s3://bucket/programs"}
    process = run_python("-c", _RUN, check=False, **environment)
    assert process.returncode == 1
    assert process.stderr.strip() == "JAX_COMPILATION_CACHE_DIR s3://bucket/programs"
