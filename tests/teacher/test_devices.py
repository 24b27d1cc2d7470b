"""Capture on several devices and in joined processes gives the same cache as on one device."""

import importlib.util
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from pipeline.api.cache import Cache, CachedExample
from pipeline.base.errors import InputError
from pipeline.base.local_mirror import CACHE_VARIABLE
from pipeline.storage import manifest as manifests
from tests.conftest import ROOT, make_cache

needs_jax = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="JAX is not installed"
)


class _Captures:
    """Runs of the capture command on JAX, with the session's masked examples, in one folder."""

    def __init__(self, examples: pathlib.Path, teacher: pathlib.Path, folder: pathlib.Path):
        self.folder = folder
        self._flags = (
            *(f"--input_dir={examples}", f"--teacher={teacher}", "--backend=jax"),
            *("--truncation_factor=16", "--cache_hidden_states=3", "--predict_batch_size=8"),
        )

    def start(self, name: str, *flags: str, devices: int = 1) -> subprocess.Popen[str]:
        """Starts a process with this number of devices."""
        others = ("SLURM", "XLA_FLAGS", "JAX_COORDINATOR", "KERAS_BACKEND")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(others)}
        environment["JAX_PLATFORMS"] = "cpu"
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        environment[CACHE_VARIABLE] = str(self.folder / "mirror")
        command = [sys.executable, "-m", "pipeline.create_teacher_output_data", *self._flags]
        return subprocess.Popen(
            [*command, f"--output_dir={self.folder / name}", *flags],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *processes: subprocess.Popen[str]) -> list[str]:
        """Waits for processes, which must succeed, and returns their stderr."""
        outputs = [process.communicate(timeout=900) for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes), outputs
        return [stderr for _, stderr in outputs]

    def expect_equal(self, name: str, other: str) -> None:
        """Checks that two caches have the same ids outside near-ties, and equal values.

        Values are equal within float error. The last stored token may have the
        same logit as one that is not stored, up to rounding.
        """
        pairs = list(zip(self.read(name), self.read(other), strict=True))
        assert len(pairs) > 100
        num_ties = num_positions = 0
        for first, second in pairs:
            assert first.example_id == second.example_id
            ids = [example.targets.ids for example in (first, second)]
            np.testing.assert_array_equal(*(values[:, :-1] for values in ids))
            num_ties += np.count_nonzero(ids[0] != ids[1])
            num_positions += len(ids[0])
            for field in ("logits", "log_tail_masses", "label_log_probs", "hidden_states"):
                values = [getattr(example.targets, field) for example in (first, second)]
                # The tolerance is a step of float16.
                np.testing.assert_allclose(*values, rtol=2e-3, atol=2e-3, err_msg=field)
        assert num_ties <= num_positions / 200

    def read(self, name: str) -> list[CachedExample]:
        """Returns all examples of a cache."""
        cache = Cache(str(self.folder / name))
        return [example for split in cache.manifest.splits for example in cache.examples(split)]


@pytest.fixture(scope="module")
def captures(examples_dir, teacher_dir, tmp_path_factory) -> _Captures:
    """The folder of captures, with the cache of one device in it."""
    made = _Captures(examples_dir, teacher_dir, tmp_path_factory.mktemp("captures"))
    made.run(made.start("one"))
    return made


@pytest.mark.long
@needs_jax
def test_eight_devices_make_the_cache_of_one(captures) -> None:
    captures.run(captures.start("eight", "--distribution=data_parallel", devices=8))
    captures.expect_equal("one", "eight")
    environment = manifests.load(captures.folder / "eight").statistics["environment"]
    assert environment["devices"] == 8
    assert "devices" not in manifests.load(captures.folder / "one").statistics["environment"]


def _joined_flags() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the flags of each of two processes that join each other."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = ("--distribution=data_parallel", f"--coordinator_address={address}")
    first, second = ((*flags, "--num_processes=2", f"--process_id={number}") for number in (0, 1))
    return first, second


@pytest.mark.long
@needs_jax
def test_joined_processes_share_the_shards(captures) -> None:
    processes = [captures.start("two", *flags, devices=2) for flags in _joined_flags()]
    outputs = captures.run(*processes)
    captures.expect_equal("one", "two")
    counts = [shard.num_examples for shard in manifests.load(captures.folder / "two").shards]
    # Each process made every second shard.
    for process, stderr in enumerate(outputs):
        assert f"/{sum(counts[process::2])} " in stderr, stderr


@pytest.mark.long
@needs_jax
@pytest.mark.parametrize("failing", [0, 1])
def test_failure_of_a_joined_process_ends_the_other_with_one_line(
    captures, tmp_path, failing: int
) -> None:
    processes = []
    for number, flags in enumerate(_joined_flags()):
        others = (f"--teacher={tmp_path}",) if number == failing else ()
        processes.append(captures.start(f"failed-{failing}", *flags, *others))
    outputs = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], outputs
    errors = [
        [line for line in stderr.splitlines() if line.startswith("error: ")] for stderr in outputs
    ]
    assert [len(lines) for lines in errors] == [1, 1], outputs
    assert f"process {failing} failed" in errors[1 - failing][0]
    assert all("Traceback" not in stderr for stderr in outputs)


@needs_jax
def test_batch_that_devices_cannot_share_is_refused(captures) -> None:
    process = captures.start("none", "--distribution=data_parallel", devices=3)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 1
    assert stderr.splitlines()[-1].startswith("error: --predict_batch_size: ")
    assert not (captures.folder / "none").exists()


def test_data_parallel_capture_requires_jax(examples_dir, teacher_dir, tmp_path) -> None:
    with pytest.raises(InputError) as caught:
        make_cache(tmp_path / "x", examples_dir, teacher_dir, distribution="data_parallel")
    assert caught.value.subject == "backend" and not (tmp_path / "x").exists()
