"""Training shared among devices and processes: the same numbers as on one device."""

import dataclasses
import importlib.util
import itertools
import math
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs import records
from pipeline import run_distill
from pipeline.distill import batches, replicas
from pipeline.distill.checkpoints import checkpoint_steps
from pipeline.distill.losses.base import LOSS_SHARES
from pipeline.distill.replicas import Replicas
from pipeline.masking.masked_examples import create_masked_examples
from pipeline.storage import cache_input, length_buckets
from pipeline.storage.cache_input import CacheInput
from pipeline.storage.length_buckets import Chunking
from pipeline.storage.shuffling import DataStreams
from tests.conftest import make_cache
from tests.distill.running import (
    assert_close_lines,
    distilled,
    read_lines,
    read_weights,
    refused,
)

ROOT = pathlib.Path(__file__).parents[2]
needs_jax = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="JAX is not installed"
)


@pytest.fixture(scope="module")
def streams_dir(tmp_path_factory, examples_config) -> pathlib.Path:
    """Masked examples in seven train shards."""
    folder = tmp_path_factory.mktemp("streams") / "masked"
    changes = {"output_dir": str(folder), "num_shards": 7, "segments": "single"}
    create_masked_examples(dataclasses.replace(examples_config, **changes))
    return folder


@pytest.fixture
def cache(streams_dir) -> CacheInput:
    """The module's masked examples."""
    return cache_input.open_cache(streams_dir, None)


def _rows(batch: dict[str, np.ndarray]) -> list[tuple[int, ...]]:
    """Returns each row's tokens, without padding."""
    return [
        tuple(row[: mask.sum()].tolist())
        for row, mask in zip(batch[records.INPUT_IDS], batch[records.INPUT_MASK], strict=True)
    ]


SETTINGS = {"seed": 5, "shuffle_buffer_size": 40}


def _whole(cache: CacheInput, chunking: Chunking, streams: int, count: int, start: int = 0):
    dataset = batches.training_batches(
        cache, chunking, start=start, streams=DataStreams(streams, own=streams), **SETTINGS
    )
    return [{**inputs, **wanted} for inputs, wanted in dataset.take(count).as_numpy_iterator()]


def _together(
    cache: CacheInput, chunking: Chunking, streams: int, processes: int, groups: int, start: int = 0
) -> list[list[dict[str, np.ndarray]]]:
    """Returns the batches of each process, as if each had heard the others' measures."""
    read = []
    for process in range(processes):
        part = Replicas(processes, processes, process).streams(streams)
        dataset = batches.training_groups(cache, chunking, start=start, streams=part, **SETTINGS)
        read.append(list(dataset.take(groups).as_numpy_iterator()))
    made = []
    for own in read:
        heard = iter(zip(*read, strict=True))

        def gather(measures: np.ndarray, own=own, heard=heard) -> np.ndarray:
            rows = [group[2] for group in next(heard)]
            assert any(measures is row for row in rows)
            # A row for each device, of which only a process's first has its measures.
            return np.stack([row for one in rows for row in (one, np.zeros_like(one))])

        agreed = batches.agreed_batches(
            own, cache.manifest, num_lengths=chunking.num_lengths, gather=gather
        )
        made.append([{**inputs, **wanted} for inputs, wanted in agreed])
    return made


@pytest.mark.parametrize(
    "chunking", [Chunking(12, 3, 8), Chunking(12, 1, 8), Chunking(24, 2, 1), Chunking(12, 1, 1)]
)
@pytest.mark.parametrize(("streams", "processes"), [(4, 2), (3, 3)])
def test_processes_make_the_batches_of_one(cache, chunking, streams: int, processes: int) -> None:
    """Row by row and shape by shape; over the end of the epoch, and from the middle."""
    if chunking.group_size // chunking.num_chunks % streams:
        chunking = dataclasses.replace(chunking, num_chunks=1)
    groups = cache.manifest.num_examples("train") // chunking.group_size + 2
    for start in (0, 2 * chunking.group_size):
        wanted = _whole(cache, chunking, streams, groups * chunking.num_chunks, start)
        parts = _together(cache, chunking, streams, processes, groups, start)
        assert all(len(part) == len(wanted) for part in parts)
        for number, batch in enumerate(wanted):
            together = [part[number] for part in parts]
            for name in batch:
                joined = np.concatenate([part[name] for part in together])
                compare = np.testing.assert_array_equal
                if name == LOSS_SHARES:
                    compare = np.testing.assert_allclose
                compare(joined, batch[name], err_msg=name)


def test_each_stream_has_shards_of_its_own(cache) -> None:
    """And an equal part of each chunk; a stream's part does not depend on the other ones."""
    chunking, count = Chunking(12, 2, 1), 8
    whole = _whole(cache, chunking, 3, count)
    for number in range(3):
        dataset = batches.training_groups(
            cache, chunking, start=0, streams=DataStreams(3, first=number), **SETTINGS
        )
        own = [inputs for inputs, _, _ in dataset.take(count // 2).as_numpy_iterator()]
        for group, inputs in enumerate(own):
            for chunk in range(2):
                one = {name: value[chunk] for name, value in inputs.items()}
                rows = _rows(whole[2 * group + chunk])
                assert rows[2 * number : 2 * number + 2] == _rows(one)


def test_a_resumed_run_of_several_streams_is_the_rest(cache) -> None:
    chunking = Chunking(12, 2, 8)
    groups = cache.manifest.num_examples("train") // 12 + 4
    whole = _whole(cache, chunking, 2, groups * 2)
    for used in (1, groups - 6, groups - 1):
        rest = _whole(cache, chunking, 2, (groups - used) * 2, start=used * 12)
        for one, two in zip(whole[used * 2 :], rest, strict=True):
            assert _rows(one) == _rows(two)


def test_rows_of_evaluation_are_shared(cache) -> None:
    def made(**process: int) -> list[dict[str, np.ndarray]]:
        dataset = batches.evaluation_batches(cache, batch_size=6, max_steps=9, buckets=8, **process)
        return [{**inputs, **wanted} for inputs, wanted in dataset.as_numpy_iterator()]

    parts = [made(process=process, num_processes=3) for process in range(3)]
    for number, batch in enumerate(made()):
        for name, value in batch.items():
            joined = np.concatenate([part[number][name] for part in parts])
            np.testing.assert_array_equal(joined, value, err_msg=name)


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=30),
    st.integers(1, 6),
    st.integers(1, 12),
    st.integers(1, 6),
)
def test_chunks_are_multiples(lengths: list[int], devices: int, batches: int, streams: int) -> None:
    multiple = math.lcm(devices, streams)
    plan = length_buckets.plan_chunks(
        np.array(lengths),
        batch_size=2 * multiple,
        num_batches=batches,
        max_seq_length=60,
        num_lengths=8,
        chunk_cost=100,
        multiple=multiple,
    )
    assert plan.group_size // plan.num_chunks % devices == 0
    assert plan.group_size // plan.num_chunks % streams == 0


@pytest.fixture
def own_settings() -> dict:
    """Of a cache of three train shards."""
    return {"train_batch_size": 12, "eval_batch_size": 12, "num_train_steps": 2}


def test_streams_are_what_is_given_or_was_begun_with(config, monkeypatch) -> None:
    # As in process 0, of which the others hear it.
    monkeypatch.setattr(replicas, "broadcast_from_primary", lambda replicas, find: find())

    def chosen(processes: int, given: int | None = None) -> int:
        asked = dataclasses.replace(config, num_data_streams=given)
        return replicas.choose_streams(asked, Replicas(8, processes))

    assert (chosen(1), chosen(4), chosen(2, 6)) == (1, 4, 6)
    config.output_dir.mkdir()
    request = config.output_dir / "request.json"
    request.write_text('{"num_data_streams": 4}')
    assert (chosen(1), chosen(2), chosen(4)) == (4, 4, 4)
    with refused("num_data_streams", "4, with which"):
        chosen(3)
    request.write_text("{}")
    assert chosen(1) == 1
    with refused("num_data_streams", "1, with which"):
        chosen(2)


@pytest.mark.parametrize(
    ("changes", "devices", "setting", "received"),
    [
        ({}, 8, "eval_batch_size", 12),
        ({"eval_batch_size": 8}, 8, "train_batch_size", 12),
        ({"num_data_streams": 5}, 2, "train_batch_size", 12),
        ({"num_data_streams": 4}, 2, "num_data_streams", 4),
    ],
)
def test_unequal_shares_of_a_batch_are_refused(
    config, cache_dir, changes, devices: int, setting: str, received: int
) -> None:
    asked = dataclasses.replace(config, **{"num_data_streams": 1, **changes})
    described = cache_input.open_cache(cache_dir, None).manifest
    with refused(setting, received):
        replicas.expect_equal_parts(asked, Replicas(devices), described)


def test_only_parts_that_are_computed_are_compared(config, cache_dir) -> None:
    described = cache_input.open_cache(cache_dir, None).manifest
    asked = dataclasses.replace(config, num_data_streams=1, train_batch_size=16, eval_batch_size=9)
    only_trained = dataclasses.replace(asked, do_eval=False)
    replicas.expect_equal_parts(only_trained, Replicas(8), described)
    splits = {**described.splits, "eval": ()}
    replicas.expect_equal_parts(asked, Replicas(8), dataclasses.replace(described, splits=splits))
    only_evaluated = dataclasses.replace(config, num_data_streams=1, do_train=False)
    replicas.expect_equal_parts(only_evaluated, Replicas(12), described)


TOGETHER = "--distribution=data_parallel"


@pytest.mark.parametrize(
    ("flags", "flag"),
    [
        (f"{TOGETHER}", "--distribution"),
        ("--num_processes=2", "--num_processes"),
        (f"{TOGETHER} --backend=jax --coordinator_address=here", "--coordinator_address"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(capsys, flags: str, flag: str) -> None:
    required = ["--input_dir=a", "--output_dir=b", "--student=c"]
    assert run_distill.main(["run_distill", *required, *flags.split()]) == 1
    assert capsys.readouterr().err.startswith(f"error: {flag}: ")


def test_the_library_says_it_too(config) -> None:
    with refused("distribution", "tensorflow"):
        distilled(config, distribution="data_parallel")


def _start_join(*flags: object, **environment: str) -> subprocess.Popen[str]:
    """Starts a process that joins others and says which it is."""
    code = (
        f"from pipeline.base import distribution; distribution.join(*{flags!r}); import jax; "
        "print('joined', jax.process_index(), jax.process_count(), jax.device_count())"
    )
    return _start("-c", code, **environment)


def _start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Starts Python in a process that knows nothing of others."""
    others = ("SLURM", "XLA_FLAGS", "JAX_COORDINATOR", "KERAS_BACKEND")
    known = {k: v for k, v in os.environ.items() if not k.startswith(others)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**known, "JAX_PLATFORMS": "cpu", **environment},
        text=True,
        **pipes,
    )


def _joined(process: subprocess.Popen[str]) -> str:
    """Returns the line of `_start_join`; Gloo may greet before."""
    out, said = process.communicate(timeout=600)
    lines = [line for line in out.splitlines() if line.startswith("joined")]
    assert len(lines) == 1, said
    return lines[0]


def _slurm(job: int, tasks: int, one: int) -> dict[str, str]:
    """Returns what `srun` says to a task."""
    return {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(tasks),
        "SLURM_PROCID": str(one),
        "SLURM_LOCALID": str(one),
    }


@needs_jax
def test_slurm_says_who_takes_part() -> None:
    """With nothing said by flags; as `srun --ntasks=2` sets it."""
    processes = [_start_join(None, None, None, **_slurm(os.getpid(), 2, one)) for one in (0, 1)]
    assert [_joined(one) for one in processes] == ["joined 0 2 2", "joined 1 2 2"]


@needs_jax
@pytest.mark.parametrize("flags", [(None, None, None), ("nowhere:1", 1, 0)])
def test_a_process_that_is_alone(flags: tuple) -> None:
    assert _joined(_start_join(*flags)) == "joined 0 1 1"


@needs_jax
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("localhost:1", None, 0), "coordinator_address=localhost:1 process_id=0 (Number of"),
        ((None, 2, 0), "num_processes=2 process_id=0 (coordinator_address sh"),
        (("localhost:1", 2, 2), "=localhost:1 num_processes=2 process_id=2 (process_id and"),
    ],
)
def test_what_is_missing_is_named(flags: tuple, message: str) -> None:
    process = _start_join(*flags)
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 1
    assert "InputError: coordinator_address: " in said and message in said


@needs_jax
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "localhost:1"}, "JAX_COORDINATOR_ADDRESS=localhost:1 ("),
        ({"JAX_COORDINATOR_ADDRESS": "here"}, "expected HOST:PORT of process 0, received 'here'"),
        (_slurm(1, 1, 1), "received none (process_id and"),
    ],
)
def test_who_knows_of_others_is_not_alone(environment: dict[str, str], message: str) -> None:
    process = _start_join(None, None, None, **environment)
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 1 and message in said


_BARRIER = """
import sys, time
from pipeline.base import distribution
from pipeline.base.errors import InputError
from pipeline.distill import replicas

process = int(sys.argv[2])
distribution.join(sys.argv[1], 2, process)
both = replicas.Replicas(2, 2, process)
print(replicas.broadcast_from_primary(both, lambda: (7, 8)))
begun = time.monotonic()
with replicas.barrier(both):
    time.sleep(0 if process else 2)
print("waited", time.monotonic() - begun > 1)

def fail():
    raise InputError(None, received="broken")

def verify():
    with replicas.barrier(both):
        if process:
            fail()

for attempt in (lambda: replicas.broadcast_from_primary(both, fail), verify):
    try:
        attempt()
    except InputError as error:
        print(f"{type(error).__name__}: {error}")
"""


@needs_jax
def test_processes_go_on_together_or_not_at_all() -> None:
    address = _free_address()
    processes = [_start("-c", _BARRIER, address, one) for one in (0, 1)]
    said = [process.communicate(timeout=600) for process in processes]
    broken = "InputError: broken"
    other = "InterruptedRunError: process {} cannot go on; see what it says"
    begun = ["(7, 8)", "waited True"]
    # Gloo may greet before.
    assert [out.splitlines()[-4:] for out, _ in said] == [
        [*begun, broken, other.format(1)],
        [*begun, other.format(0), broken],
    ], said


_STOPPED = """
import os, sys, time
from pipeline.base import distribution
from pipeline.distill.stopping import StopRequest

distribution.join(None, None, None)
if sys.argv[2] == "before":
    # As while the student is built, or shards are verified.
    os.kill(os.getpid(), int(sys.argv[1]))
with StopRequest() as stop:
    if sys.argv[2] == "meanwhile":
        os.kill(os.getpid(), int(sys.argv[1]))
    end = time.monotonic() + 20
    while not stop.check() and time.monotonic() < end:
        time.sleep(0.05)
    print(stop.check() and stop.stopped(3).signal_number)
"""


@needs_jax
@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGTERM, "before"), (signal.SIGTERM, "meanwhile"), (signal.SIGINT, "meanwhile")],
)
def test_a_process_that_joined_itself_is_asked_to_stop(number: signal.Signals, moment: str) -> None:
    process = _start("-c", _STOPPED, int(number), moment, **_slurm(os.getpid() + number, 1, 0))
    out, said = process.communicate(timeout=600)
    assert out.split() == [str(int(number))], said


@needs_jax
@pytest.mark.parametrize(
    ("processes", "error", "expected"),
    [
        (2, "UNKNOWN: Gloo AllGather failed", "InterruptedRunError: num_processes: another of"),
        (2, "a defect", "ValueError: a defect"),
        (1, "UNAVAILABLE", "ValueError: UNAVAILABLE"),
    ],
)
def test_a_lost_process_is_told_from_a_defect(processes: int, error: str, expected: str) -> None:
    code = (
        "from pipeline.distill.replicas import Replicas, scope\n"
        f"with scope(Replicas(2, {processes}, distributed=True)):\n    raise ValueError({error!r})"
    )
    said = _start("-c", code, KERAS_BACKEND="jax").communicate(timeout=600)[1]
    assert expected in said.splitlines()[-1], said


@pytest.fixture(scope="module")
def streams_cache_dir(tmp_path_factory, streams_dir, still_teacher_dir) -> pathlib.Path:
    """A teacher cache of seven train shards."""
    return make_cache(tmp_path_factory.mktemp("streams") / "cache", streams_dir, still_teacher_dir)


def _free_address() -> str:
    """Returns an address of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def _wait_for(path: pathlib.Path, processes: list[subprocess.Popen[str]]) -> None:
    while not path.exists() and all(process.poll() is None for process in processes):
        time.sleep(0.1)


class _Runs:
    """Runs of one request, each in processes of its own."""

    def __init__(self, cache: pathlib.Path, still: pathlib.Path, folder: pathlib.Path) -> None:
        self._folder = folder
        self.settings = {
            "backend": "jax",
            "input_dir": cache,
            "init_from": still,
            "student_layers": 2,
            "train_batch_size": 8,
            "eval_batch_size": 8,
            "gradient_accumulation_steps": 2,
            "num_train_steps": 8,
            "save_checkpoints_steps": 4,
            "log_steps": 2,
            "learning_rate": 1e-3,
            "shuffle_buffer_size": 40,
            "max_eval_steps": 2,
            "length_buckets": 2,
            "num_data_streams": 2,
        }

    def start(self, name: str, devices: int = 1, **more: object) -> subprocess.Popen[str]:
        """Starts a process that writes to a folder of that name."""
        settings = {**self.settings, **more, "output_dir": self._folder / name}
        flags = [f"--{name}={value}" for name, value in settings.items()]
        count = f"--xla_force_host_platform_device_count={devices}"
        return _start("-m", "pipeline.run_distill", *flags, XLA_FLAGS=count)

    def start_two(self, name: str, **more: object) -> list[subprocess.Popen[str]]:
        """Starts two processes that train together."""
        together = {
            "distribution": "data_parallel",
            "coordinator_address": _free_address(),
            "num_processes": 2,
        }
        return [self.start(name, **{**more, **together, "process_id": one}) for one in (0, 1)]

    def finish(self, *processes: subprocess.Popen[str]) -> list[tuple[str, str]]:
        """Waits for processes, which must succeed, and returns what each said."""
        said = [process.communicate(timeout=1200) for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes), said
        return said

    def expect_equal(self, one: str, two: str) -> None:
        """Two runs made the same student, with the same losses on the way."""
        assert_close_lines(self._folder / one, self._folder / two, close=2e-4)
        weights = [read_weights(self._folder / name) for name in (one, two)]
        for name, value in weights[0].items():
            np.testing.assert_allclose(weights[1][name], value, atol=2e-3, err_msg=name)


@pytest.fixture(scope="module")
def runs(streams_cache_dir, still_teacher_dir, tmp_path_factory) -> _Runs:
    """With what one device makes."""
    made = _Runs(streams_cache_dir, still_teacher_dir, tmp_path_factory.mktemp("runs"))
    made.finish(made.start("one"))
    return made


@needs_jax
@pytest.mark.slow
def test_two_devices_equal_one(runs) -> None:
    """From the start, and after four steps on one."""
    both = {"devices": 2, "distribution": "data_parallel"}
    ((out, said),) = runs.finish(runs.start("two", **both))
    assert "on cpu:0, cpu:1" in said and "student: " in out
    runs.expect_equal("one", "two")
    runs.finish(runs.start("moved"))
    folder = runs._folder / "moved"
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    path = folder / "checkpoints" / "step-00000008.safetensors"
    path.unlink()
    ((_, said),) = runs.finish(runs.start("moved", **both))
    assert "continuing from step 4" in said
    runs.expect_equal("one", "moved")


@needs_jax
@pytest.mark.slow
def test_two_processes_equal_one(runs) -> None:
    """Each reads its own stream, one writes."""
    processes = runs.start_two("processes", num_data_streams=2)
    (out, said), (other_out, other_said) = runs.finish(*processes)
    assert "student: " in out and "student: " not in other_out and "8/8" in said
    assert "process 0 of 2\n" in said and "process 1 of 2\n" in other_said
    runs.expect_equal("one", "processes")
    assert len(list((runs._folder / "processes" / "tensorboard").glob("*/events*"))) == 2


@needs_jax
@pytest.mark.slow
def test_a_process_that_loses_the_other_says_so_and_ends(runs) -> None:
    more = {"num_train_steps": 4000, "save_checkpoints_steps": 3000, "length_buckets": 1}
    processes = runs.start_two("lost", **more)
    log = runs._folder / "lost" / "metrics.jsonl"
    _wait_for(log, processes)
    processes[1].kill()
    said = processes[0].communicate(timeout=600)[1]
    # It says so at once; JAX ends it when the other one's silence has lasted long enough.
    assert processes[0].returncode not in (0, None)
    assert "error: --num_processes: another of the 2 processes was lost" in said
    assert "Traceback" not in said


@needs_jax
@pytest.mark.slow
@pytest.mark.parametrize("broken", ["checkpoints/step-*.safetensors", "train-*"])
def test_what_one_process_finds_broken_ends_both(
    runs, streams_cache_dir, tmp_path, broken: str
) -> None:
    """Checkpoints, which process 0 reads alone, and a shard that process 1 verifies alone."""
    name = f"broken {broken[:5]}"
    folder, cache = runs._folder / name, tmp_path / "cache"
    shutil.copytree(runs._folder / "one", folder)
    shutil.copytree(streams_cache_dir, cache)
    if broken.startswith("train"):
        sorted(cache.glob(broken))[1].write_bytes(b"")
    for path in folder.glob(broken):
        path.write_bytes(b"")
    processes = runs.start_two(name, input_dir=cache)
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], said
    finder = int(broken.startswith("train"))
    errors = [next(line for line in one.splitlines() if line.startswith("error: ")) for one in said]
    assert ("truncated or damaged" if finder else "to begin again, delete") in errors[finder]
    assert f"process {finder} cannot go on" in errors[1 - finder]


@needs_jax
@pytest.mark.slow
def test_two_processes_stop_at_one_step_and_go_on(runs) -> None:
    """The one that does not write is told to; one process goes on with both streams."""
    more = {"num_train_steps": 400, "save_checkpoints_steps": 300, "length_buckets": 1}
    processes = runs.start_two("stopped", **more)
    log = runs._folder / "stopped" / "metrics.jsonl"
    _wait_for(log, processes)
    processes[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], said
    (step,) = checkpoint_steps(runs._folder / "stopped")
    for one in said:
        last = one.replace("\r", "\n").strip().split("\n")[-1]
        assert last == f"stopped by SIGTERM at step {step}; the same command continues from there"
    steps = [line["step"] for line in read_lines(runs._folder / "stopped")]
    assert list(itertools.pairwise(steps)) == [(n, n + 2) for n in steps[:-1]]
    again = runs.start("stopped", **{**more, "num_data_streams": 1})
    said = again.communicate(timeout=300)[1]
    assert again.returncode == 1 and "num_data_streams is 2 there and None here" in said
