"""Training on several devices or processes gives the same numbers as on one device."""

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
from pipeline.storage.length_buckets import MicrobatchPlan
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


def _all_batches(cache: CacheInput, plan: MicrobatchPlan, streams: int, count: int, start: int = 0):
    dataset = batches.training_batches(
        cache, plan, start=start, streams=DataStreams(streams, own=streams), **SETTINGS
    )
    return [{**inputs, **targets} for inputs, targets in dataset.take(count).as_numpy_iterator()]


def _batches_of_processes(
    cache: CacheInput,
    plan: MicrobatchPlan,
    streams: int,
    processes: int,
    groups: int,
    start: int = 0,
) -> list[list[dict[str, np.ndarray]]]:
    """Returns the batches of each process, with a simulated exchange of measures."""
    read = []
    for process in range(processes):
        part = Replicas(processes, processes, process).streams(streams)
        dataset = batches.training_groups(cache, plan, start=start, streams=part, **SETTINGS)
        read.append(list(dataset.take(groups).as_numpy_iterator()))
    agreed = []
    for own in read:
        groups_of_all = iter(zip(*read, strict=True))

        def gather(measures: np.ndarray, own=own, groups_of_all=groups_of_all) -> np.ndarray:
            rows = [group[2] for group in next(groups_of_all)]
            assert any(measures is row for row in rows)
            # Each of the two devices has a row; only a process's first device has its measures.
            return np.stack([value for row in rows for value in (row, np.zeros_like(row))])

        microbatches = batches.synchronized_batches(
            own, cache.manifest, num_lengths=plan.num_lengths, gather=gather
        )
        agreed.append([{**inputs, **targets} for inputs, targets in microbatches])
    return agreed


@pytest.mark.long
@pytest.mark.parametrize(
    "plan",
    [
        MicrobatchPlan(12, 3, 8),
        MicrobatchPlan(12, 1, 8),
        MicrobatchPlan(24, 2, 1),
        MicrobatchPlan(12, 1, 1),
    ],
)
@pytest.mark.parametrize(("streams", "processes"), [(4, 2), (3, 3)])
def test_batches_of_processes_join_to_those_of_one_process(
    cache, plan, streams: int, processes: int
) -> None:
    """Compares rows and shapes, past the end of the epoch, from the start and from the middle."""
    if plan.group_size // plan.num_microbatches % streams:
        plan = dataclasses.replace(plan, num_microbatches=1)
    groups = cache.manifest.num_examples("train") // plan.group_size + 2
    for start in (0, 2 * plan.group_size):
        expected = _all_batches(cache, plan, streams, groups * plan.num_microbatches, start)
        by_process = _batches_of_processes(cache, plan, streams, processes, groups, start)
        assert all(len(own) == len(expected) for own in by_process)
        for number, batch in enumerate(expected):
            for name in batch:
                joined = np.concatenate([own[number][name] for own in by_process])
                compare = np.testing.assert_array_equal
                if name == LOSS_SHARES:
                    compare = np.testing.assert_allclose
                compare(joined, batch[name], err_msg=name)


def test_each_stream_fills_an_equal_part_of_each_microbatch(cache) -> None:
    """A stream's part does not depend on the other streams."""
    plan, count = MicrobatchPlan(12, 2, 1), 8
    whole = _all_batches(cache, plan, 3, count)
    for number in range(3):
        dataset = batches.training_groups(
            cache, plan, start=0, streams=DataStreams(3, first=number), **SETTINGS
        )
        own = [inputs for inputs, _, _ in dataset.take(count // 2).as_numpy_iterator()]
        for group, inputs in enumerate(own):
            for chunk in range(2):
                microbatch = {name: value[chunk] for name, value in inputs.items()}
                rows = _rows(whole[2 * group + chunk])
                assert rows[2 * number : 2 * number + 2] == _rows(microbatch)


def test_resumed_run_of_several_streams_reads_the_remaining_batches(cache) -> None:
    plan = MicrobatchPlan(12, 2, 8)
    groups = cache.manifest.num_examples("train") // 12 + 4
    whole = _all_batches(cache, plan, 2, groups * 2)
    for used in (1, groups - 6, groups - 1):
        rest = _all_batches(cache, plan, 2, (groups - used) * 2, start=used * 12)
        for batch, resumed in zip(whole[used * 2 :], rest, strict=True):
            assert _rows(batch) == _rows(resumed)


def test_evaluation_divides_rows_among_processes(cache) -> None:
    def read(**process: int) -> list[dict[str, np.ndarray]]:
        dataset = batches.evaluation_batches(cache, batch_size=6, max_steps=9, buckets=8, **process)
        return [{**inputs, **targets} for inputs, targets in dataset.as_numpy_iterator()]

    by_process = [read(process=process, num_processes=3) for process in range(3)]
    for number, batch in enumerate(read()):
        for name, value in batch.items():
            joined = np.concatenate([own[number][name] for own in by_process])
            np.testing.assert_array_equal(joined, value, err_msg=name)


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=30),
    st.integers(1, 6),
    st.integers(1, 12),
    st.integers(1, 6),
)
def test_microbatches_divide_equally_among_devices_and_streams(
    lengths: list[int], devices: int, batches: int, streams: int
) -> None:
    multiple = math.lcm(devices, streams)
    plan = length_buckets.plan_microbatches(
        np.array(lengths),
        batch_size=2 * multiple,
        num_batches=batches,
        max_seq_length=60,
        num_lengths=8,
        microbatch_cost=100,
        multiple=multiple,
    )
    assert plan.group_size // plan.num_microbatches % devices == 0
    assert plan.group_size // plan.num_microbatches % streams == 0


@pytest.fixture
def own_settings() -> dict:
    """Settings for a cache of three train shards."""
    return {"train_batch_size": 12, "eval_batch_size": 12, "num_train_steps": 2}


def test_number_of_streams_is_given_or_recorded_or_one_per_process(config, monkeypatch) -> None:
    # Every process decides like process 0, whose answer would be broadcast.
    monkeypatch.setattr(replicas, "broadcast_from_primary", lambda replicas, find: find())

    def chosen(processes: int, given: int | None = None) -> int:
        changed = dataclasses.replace(config, num_data_streams=given)
        return replicas.choose_streams(changed, Replicas(8, processes))

    assert (chosen(1), chosen(4), chosen(2, 6)) == (1, 4, 6)
    config.output_dir.mkdir()
    request = config.output_dir / "request.json"
    request.write_text('{"num_data_streams": 4}')
    assert (chosen(1), chosen(2), chosen(4)) == (4, 4, 4)
    with refused("num_data_streams", "4, as recorded in"):
        chosen(3)
    request.write_text("{}")
    assert chosen(1) == 1
    with refused("num_data_streams", "1, as recorded in"):
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
def test_unequal_parts_of_a_batch_are_refused(
    config, cache_dir, changes, devices: int, setting: str, received: int
) -> None:
    changed = dataclasses.replace(config, **{"num_data_streams": 1, **changes})
    manifest = cache_input.open_cache(cache_dir, None).manifest
    with refused(setting, received):
        replicas.expect_equal_parts(changed, Replicas(devices), manifest)


def test_batch_sizes_that_are_not_used_are_not_checked(config, cache_dir) -> None:
    manifest = cache_input.open_cache(cache_dir, None).manifest
    changed = dataclasses.replace(
        config, num_data_streams=1, train_batch_size=16, eval_batch_size=9
    )
    only_trained = dataclasses.replace(changed, do_eval=False)
    replicas.expect_equal_parts(only_trained, Replicas(8), manifest)
    splits = {**manifest.splits, "eval": ()}
    replicas.expect_equal_parts(changed, Replicas(8), dataclasses.replace(manifest, splits=splits))
    only_evaluated = dataclasses.replace(config, num_data_streams=1, do_train=False)
    replicas.expect_equal_parts(only_evaluated, Replicas(12), manifest)


DATA_PARALLEL = "--distribution=data_parallel"


@pytest.mark.parametrize(
    ("flags", "flag"),
    [
        (f"{DATA_PARALLEL}", "--backend"),
        ("--num_processes=2", "--num_processes"),
        (f"{DATA_PARALLEL} --backend=jax --coordinator_address=here", "--coordinator_address"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(capsys, flags: str, flag: str) -> None:
    required = ["--input_dir=a", "--output_dir=b", "--student=c"]
    assert run_distill.main(["run_distill", *required, *flags.split()]) == 1
    assert capsys.readouterr().err.startswith(f"error: {flag}: ")


def test_library_refuses_data_parallel_on_tensorflow(config) -> None:
    with refused("backend", "tensorflow"):
        distilled(config, distribution="data_parallel")


def _start_join(*flags: object, **environment: str) -> subprocess.Popen[str]:
    """Starts a process that joins others and prints its index."""
    code = (
        f"from pipeline.base import distribution; distribution.join(*{flags!r}); import jax; "
        "print('joined', jax.process_index(), jax.process_count(), jax.device_count())"
    )
    return _start("-c", code, **environment)


def _start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Starts Python in a process without environment variables about other processes."""
    removed = ("SLURM", "XLA_FLAGS", "JAX_COORDINATOR", "KERAS_BACKEND")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(removed)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**inherited, "JAX_PLATFORMS": "cpu", **environment},
        text=True,
        **pipes,
    )


def _joined(process: subprocess.Popen[str]) -> str:
    """Returns the line of `_start_join`; Gloo may print other lines before it."""
    out, errors = process.communicate(timeout=600)
    lines = [line for line in out.splitlines() if line.startswith("joined")]
    assert len(lines) == 1, errors
    return lines[0]


def _slurm(job: int, tasks: int, task: int) -> dict[str, str]:
    """Returns the environment variables that `srun` sets for a task."""
    return {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(tasks),
        "SLURM_PROCID": str(task),
        "SLURM_LOCALID": str(task),
    }


@needs_jax
def test_processes_are_detected_from_slurm_variables() -> None:
    """The variables are those of `srun --ntasks=2`; no flag is given."""
    processes = [_start_join(None, None, None, **_slurm(os.getpid(), 2, task)) for task in (0, 1)]
    assert [_joined(process) for process in processes] == ["joined 0 2 2", "joined 1 2 2"]


@needs_jax
@pytest.mark.parametrize("flags", [(None, None, None), ("nowhere:1", 1, 0)])
def test_single_process_joins_no_others(flags: tuple) -> None:
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
def test_incomplete_flags_of_processes_are_refused_by_name(flags: tuple, message: str) -> None:
    process = _start_join(*flags)
    errors = process.communicate(timeout=600)[1]
    assert process.returncode == 1
    assert "InputError: coordinator_address: " in errors and message in errors


@needs_jax
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "localhost:1"}, "JAX_COORDINATOR_ADDRESS=localhost:1 ("),
        ({"JAX_COORDINATOR_ADDRESS": "here"}, "must be HOST:PORT of process 0, got 'here'"),
        (_slurm(1, 1, 1), "got none (process_id and"),
    ],
)
def test_incomplete_environment_of_processes_is_refused(
    environment: dict[str, str], message: str
) -> None:
    process = _start_join(None, None, None, **environment)
    errors = process.communicate(timeout=600)[1]
    assert process.returncode == 1 and message in errors


_BARRIER = """
import sys, time
from pipeline.base import distribution
from pipeline.base.errors import InputError
from pipeline.distill import replicas

process = int(sys.argv[2])
distribution.join(sys.argv[1], 2, process)
both = replicas.Replicas(2, 2, process)
print(replicas.broadcast_from_primary(both, lambda: (7, 8)))
start = time.monotonic()
with replicas.barrier(both):
    time.sleep(0 if process else 2)
print("waited", time.monotonic() - start > 1)

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


@pytest.mark.long
@needs_jax
def test_barrier_continues_all_processes_or_none() -> None:
    address = _free_address()
    processes = [_start("-c", _BARRIER, address, index) for index in (0, 1)]
    outputs = [process.communicate(timeout=600) for process in processes]
    broken = "InputError: broken"
    other = "InterruptedRunError: process {} failed"
    first_lines = ["(7, 8)", "waited True"]
    # Gloo may print other lines before these.
    lines = [out.splitlines()[-4:] for out, _ in outputs]
    assert [[line.partition(";")[0] for line in printed] for printed in lines] == [
        [*first_lines, broken, other.format(1)],
        [*first_lines, other.format(0), broken],
    ], outputs


_STOPPED = """
import os, sys, time
from pipeline.base import distribution
from pipeline.distill.stopping import StopRequest

distribution.join(None, None, None)
if sys.argv[2] == "before":
    # A signal before the block arrives, for example, while shards are verified.
    os.kill(os.getpid(), int(sys.argv[1]))
with StopRequest() as stop:
    if sys.argv[2] == "meanwhile":
        os.kill(os.getpid(), int(sys.argv[1]))
    end = time.monotonic() + 20
    while not stop.check() and time.monotonic() < end:
        time.sleep(0.05)
    print(stop.check() and stop.stop_error(3).signal_number)
"""


@needs_jax
@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGTERM, "before"), (signal.SIGTERM, "meanwhile"), (signal.SIGINT, "meanwhile")],
)
def test_single_joined_process_stops_on_a_signal(number: signal.Signals, moment: str) -> None:
    process = _start("-c", _STOPPED, int(number), moment, **_slurm(os.getpid() + number, 1, 0))
    out, errors = process.communicate(timeout=600)
    assert out.split() == [str(int(number))], errors


@needs_jax
@pytest.mark.parametrize(
    ("processes", "error", "expected"),
    [
        (2, "UNKNOWN: Gloo AllGather failed", "InterruptedRunError: num_processes: another of"),
        (2, "a defect", "ValueError: a defect"),
        (1, "UNAVAILABLE", "ValueError: UNAVAILABLE"),
    ],
)
def test_lost_process_is_distinguished_from_a_defect(
    processes: int, error: str, expected: str
) -> None:
    code = (
        "from pipeline.distill.replicas import Replicas, scope\n"
        f"with scope(Replicas(2, {processes}, distributed=True)):\n    raise ValueError({error!r})"
    )
    errors = _start("-c", code, KERAS_BACKEND="jax").communicate(timeout=600)[1]
    assert expected in errors.splitlines()[-1], errors


@pytest.fixture(scope="module")
def streams_cache_dir(tmp_path_factory, streams_dir, still_teacher_dir) -> pathlib.Path:
    """A teacher cache of seven train shards."""
    return make_cache(tmp_path_factory.mktemp("streams") / "cache", streams_dir, still_teacher_dir)


def _free_address() -> str:
    """Returns a free address of this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def _wait_for(path: pathlib.Path, processes: list[subprocess.Popen[str]]) -> None:
    while not path.exists() and all(process.poll() is None for process in processes):
        time.sleep(0.1)


class _Runs:
    """Runs of one run configuration, each in new processes."""

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
        distributed = {
            "distribution": "data_parallel",
            "coordinator_address": _free_address(),
            "num_processes": 2,
        }
        return [self.start(name, **{**more, **distributed, "process_id": i}) for i in (0, 1)]

    def finish(self, *processes: subprocess.Popen[str]) -> list[tuple[str, str]]:
        """Waits for processes, which must succeed, and returns the output of each."""
        outputs = [process.communicate(timeout=1200) for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes), outputs
        return outputs

    def expect_equal(self, first: str, second: str) -> None:
        """Checks that two runs made the same student, with the same losses in every line."""
        assert_close_lines(self._folder / first, self._folder / second, close=2e-4)
        weights = [read_weights(self._folder / name) for name in (first, second)]
        for name, value in weights[0].items():
            np.testing.assert_allclose(weights[1][name], value, atol=2e-3, err_msg=name)


@pytest.fixture(scope="module")
def runs(streams_cache_dir, still_teacher_dir, tmp_path_factory) -> _Runs:
    """Runs, with a finished run `one` on one device."""
    started = _Runs(streams_cache_dir, still_teacher_dir, tmp_path_factory.mktemp("runs"))
    started.finish(started.start("one"))
    return started


@needs_jax
@pytest.mark.slow
def test_two_devices_train_the_student_of_one(runs) -> None:
    """Compares a run on two devices, and one that moves to two devices after four steps."""
    both = {"devices": 2, "distribution": "data_parallel"}
    ((out, errors),) = runs.finish(runs.start("two", **both))
    assert "on cpu:0, cpu:1" in errors and "student: " in out
    runs.expect_equal("one", "two")
    runs.finish(runs.start("moved"))
    folder = runs._folder / "moved"
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    path = folder / "checkpoints" / "step-00000008.safetensors"
    path.unlink()
    ((_, errors),) = runs.finish(runs.start("moved", **both))
    assert "resuming from step 4" in errors
    runs.expect_equal("one", "moved")


@needs_jax
@pytest.mark.slow
def test_two_processes_train_the_student_of_one(runs) -> None:
    """Each process reads its own stream, and process 0 writes."""
    processes = runs.start_two("processes", num_data_streams=2)
    (out, errors), (other_out, other_errors) = runs.finish(*processes)
    assert "student: " in out and "student: " not in other_out and "8/8" in errors
    assert "process 0 of 2\n" in errors and "process 1 of 2\n" in other_errors
    runs.expect_equal("one", "processes")
    assert len(list((runs._folder / "processes" / "tensorboard").glob("*/events*"))) == 2


@needs_jax
@pytest.mark.slow
def test_process_that_loses_the_other_ends_with_an_error(runs) -> None:
    more = {"num_train_steps": 4000, "save_checkpoints_steps": 3000, "length_buckets": 1}
    processes = runs.start_two("lost", **more)
    log = runs._folder / "lost" / "metrics.jsonl"
    _wait_for(log, processes)
    processes[1].kill()
    errors = processes[0].communicate(timeout=600)[1]
    # It prints the error at once; JAX ends it after the timeout of the other process.
    assert processes[0].returncode not in (0, None)
    assert "error: --num_processes: another of the 2 processes was lost" in errors
    assert "Traceback" not in errors


@needs_jax
@pytest.mark.slow
@pytest.mark.parametrize("broken", ["checkpoints/step-*.safetensors", "train-*"])
def test_damaged_file_found_by_one_process_ends_both(
    runs, streams_cache_dir, tmp_path, broken: str
) -> None:
    """Only process 0 reads the checkpoints, and only process 1 verifies the damaged shard."""
    name = f"broken {broken[:5]}"
    folder, cache = runs._folder / name, tmp_path / "cache"
    shutil.copytree(runs._folder / "one", folder)
    shutil.copytree(streams_cache_dir, cache)
    if broken.startswith("train"):
        sorted(cache.glob(broken))[1].write_bytes(b"")
    for path in folder.glob(broken):
        path.write_bytes(b"")
    processes = runs.start_two(name, input_dir=cache)
    outputs = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], outputs
    finder = int(broken.startswith("train"))
    errors = [
        next(line for line in output.splitlines() if line.startswith("error: "))
        for output in outputs
    ]
    expected = "truncated or damaged" if finder else "to train from the beginning, delete"
    assert expected in errors[finder]
    assert f"process {finder} failed" in errors[1 - finder]


@needs_jax
@pytest.mark.slow
def test_two_processes_stop_at_the_same_step(runs) -> None:
    """The signal goes to the process that does not write. Another number of streams is refused."""
    more = {"num_train_steps": 400, "save_checkpoints_steps": 300, "length_buckets": 1}
    processes = runs.start_two("stopped", **more)
    log = runs._folder / "stopped" / "metrics.jsonl"
    _wait_for(log, processes)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], outputs
    (step,) = checkpoint_steps(runs._folder / "stopped")
    for output in outputs:
        last = output.replace("\r", "\n").strip().split("\n")[-1]
        assert last == f"stopped by SIGTERM at step {step}; re-run the command to resume"
    steps = [line["step"] for line in read_lines(runs._folder / "stopped")]
    assert list(itertools.pairwise(steps)) == [(n, n + 2) for n in steps[:-1]]
    again = runs.start("stopped", **{**more, "num_data_streams": 1})
    errors = again.communicate(timeout=300)[1]
    assert again.returncode == 1 and "num_data_streams (recorded 2, now None)" in errors
