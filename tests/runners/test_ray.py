"""Tests of jobs on a real Ray cluster on the loopback interface, and of errors without one."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

# This makes Ray listen on the loopback interface only. It must be set before Ray is imported,
# here and in the processes that Ray starts.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

import pytest

from pipeline import create_pretraining_data, create_teacher_output_data
from pipeline.base.errors import InputError, InterruptedRunError, Setting
from pipeline.masking.masked_examples import create_masked_examples
from pipeline.runners import local, ray, ray_job
from pipeline.runners.ray import RayConfig, RayWorkers
from pipeline.teacher.capture import create_teacher_cache
from pipeline.teacher.settings import TeacherCacheConfig
from tests.conftest import read_folder

ROOT = pathlib.Path(__file__).parents[2]
CPUS = local.num_cpus()
COMMANDS = {"prepare": create_pretraining_data, "capture": create_teacher_output_data}
REQUIRED_FLAGS = {
    "prepare": ("--input_dir=x", "--vocab_file=x", "--output_dir=x"),
    "capture": ("--input_dir=x", "--teacher=x", "--output_dir=x"),
}


@pytest.mark.parametrize(
    ("stage", "changes", "flag"),
    [
        ("prepare", ["--ray_address=auto"], "ray_address"),
        ("capture", ["--gpus_per_job=1"], "gpus_per_job"),
        ("prepare", ["--runner=local", "--cpus_per_job=2"], "cpus_per_job"),
        ("capture", ["--runner=ray", "--cpus_per_job=0"], "cpus_per_job"),
        ("prepare", ["--runner=slurm"], "runner"),
        ("prepare", ["--runner=ray", "--max_workers=4"], "max_workers"),
        ("capture", ["--runner=ray", "--num_tasks=2"], "num_tasks"),
        ("capture", ["--runner=ray", "--compute_dtype=auto"], "compute_dtype"),
    ],
)
def test_error_for_contradictory_flags_names_the_flag(
    capsys, monkeypatch, stage, changes, flag: str
) -> None:
    monkeypatch.setattr(RayConfig, "import_ray", lambda config: None)
    assert COMMANDS[stage].main(["command", *REQUIRED_FLAGS[stage], *changes]) == 1
    assert capsys.readouterr().err.startswith(f"error: --{flag}: ")


@pytest.mark.parametrize("stage", COMMANDS)
def test_missing_package_ray_is_named_with_its_flag(capsys, monkeypatch, stage) -> None:
    # Python raises ImportError for a module that is None here.
    monkeypatch.setitem(sys.modules, "ray", None)
    assert COMMANDS[stage].main(["command", *REQUIRED_FLAGS[stage], "--runner=ray"]) == 1
    assert capsys.readouterr().err.startswith("error: --runner: ray cannot be imported")


@pytest.mark.parametrize(
    "address",
    [
        *("head", "ray://head:10001", "head:", ":6379", "head:x"),
        *("a..b:6379", f"{'a' * 64}:6379", f"head:{'9' * 5000}"),
    ],
)
def test_malformed_addresses_are_refused(tmp_path, address: str) -> None:
    with pytest.raises(InputError) as refused, RayWorkers(RayConfig(address), tmp_path):
        pass
    assert refused.value.subject == "ray_address"


def test_address_without_a_server_is_refused(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(InputError) as refused, RayWorkers(RayConfig(address), tmp_path):
        pass
    assert refused.value.subject == "ray_address"
    assert f"no server answers at {address}" in refused.value.received


def test_failed_start_of_ray_is_reported_and_cleaned_up(tmp_path, monkeypatch) -> None:
    ended: list[bool] = []

    class Broken:
        def init(self, **settings: object) -> None:
            raise Exception("The current node timed out during startup.\nSee the logs")

        def shutdown(self) -> None:
            ended.append(True)

    monkeypatch.setattr(RayConfig, "import_ray", lambda config: Broken())
    with pytest.raises(InterruptedRunError) as raised, RayWorkers(RayConfig(), tmp_path):
        pass
    assert raised.value.subject == "runner" and "timed out during startup." in raised.value.received
    assert ended == [True]


def test_node_must_share_the_directory_and_have_the_same_packages(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("NPROC", "7")
    mark = tmp_path / ".ray-0.tmp"
    node = ray_job.Node((("NPROC", "3"),), ray_job.versions(), ((Setting("output_dir"), mark),))
    # The error is an InterruptedRunError: the run can be resumed after the node was removed.
    with pytest.raises(InterruptedRunError) as raised:
        ray_job.set_up_worker(node)
    assert raised.value.subject == "output_dir" and str(tmp_path) in raised.value.received
    mark.touch()
    ray_job.set_up_worker(node)
    assert os.environ["NPROC"] == "3"
    for package in ("numpy", "offline-distill"):
        other_versions = dict(ray_job.versions()) | {package: "0"}
        with pytest.raises(InterruptedRunError) as raised:
            ray_job.set_up_worker(dataclasses.replace(node, versions=tuple(other_versions.items())))
        assert raised.value.subject == "ray_address" and package in raised.value.expected


def square(number: int) -> tuple[int, int]:
    """Returns a square, and the id of the process that computed it."""
    time.sleep(0.05)
    return number * number, os.getpid()


def count(number: int, report: Callable[[int], None]) -> int:
    """Reports `number` counts of one, slowly enough to be observed."""
    for _ in range(number):
        time.sleep(0.4)
        report(1)
    return number


def fail(case: tuple[pathlib.Path, Exception | None]) -> None:
    """Records the call in a folder, then raises an error. Without an error, ends its process."""
    folder, error = case
    (folder / f"{time.time_ns()}").touch()
    if error is None:
        os._exit(1)
    raise error


def gpus(number: int) -> tuple[int, str]:
    """Returns the id of the process, and the GPUs that it may use."""
    time.sleep(0.2)
    return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes on the loopback interface, which soon detects a killed node."""
    ray_job.import_ray()
    from ray.cluster_utils import Cluster

    settings = {
        # By default workers have the lowest priority. On a busy machine no job would start.
        "worker_niceness": 0,
        # The delay gives a slow machine time to start. Then a check is sent every second, and
        # five failed checks mean that a node was killed.
        "health_check_initial_delay_ms": 10_000,
        "health_check_period_ms": 1000,
        "health_check_timeout_ms": 10_000,
        "health_check_failure_threshold": 5,
    }
    head = {**_node(), "include_dashboard": False, "_system_config": settings}
    started = Cluster(initialize_head=True, head_node_args=head)
    started.add_node(**_node())
    yield started
    started.shutdown()


def _node() -> dict[str, int]:
    return {"num_cpus": CPUS, "object_store_memory": 80 * 2**20}


@pytest.fixture
def config(cluster) -> RayConfig:
    """Settings with which each node runs one job at a time, with all threads of this process."""
    return RayConfig(cluster.address, cpus_per_job=CPUS)


@pytest.mark.ray
def test_address_of_another_server_is_refused_after_a_timeout(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ray, "_JOIN_SECONDS", 8.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        message = f"ray_address: no Ray cluster answers at {address} within 8 s"
        with pytest.raises(InputError, match=message), RayWorkers(RayConfig(address), tmp_path):
            pass


@pytest.mark.ray
def test_results_are_in_order_of_the_jobs_and_processes_are_reused(config, tmp_path) -> None:
    waiting: list[int] = []
    max_waiting = 0

    def numbers() -> Iterator[int]:
        nonlocal max_waiting
        for number in range(30):
            waiting.append(number)
            max_waiting = max(max_waiting, len(waiting))
            yield number

    def finish(result: tuple[int, int]) -> tuple[int, int]:
        waiting.pop()
        return result

    with RayWorkers(config, tmp_path) as workers:
        first_run = list(workers.run(square, numbers(), finish=finish))
        second_run = list(workers.run(square, range(30)))
    # At most two jobs per node are taken in advance.
    assert max_waiting == 4
    assert [value for value, _ in first_run] == [number * number for number in range(30)]
    assert [value for value, _ in second_run] == [number * number for number in range(30)]
    processes = {process for _, process in [*first_run, *second_run]}
    assert os.getpid() not in processes
    assert len(processes) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
def test_progress_is_reported_while_jobs_run(config, tmp_path) -> None:
    steps: list[int] = []
    with RayWorkers(config, tmp_path) as workers:
        results = list(
            workers.run(count, [6, 5, 6], finish=lambda number: -number, on_progress=steps.append)
        )
    assert results == [-6, -5, -6]
    assert sum(steps) == 17
    # Smaller steps than those of whole jobs show that running jobs report.
    assert len([step for step in steps if 0 < step < 5]) >= 3


@pytest.mark.ray
@pytest.mark.parametrize(
    "error", [InputError("--vocab_file: broken"), FileNotFoundError(2, "No such file", "/x/y")]
)
def test_user_errors_are_raised_without_running_the_job_again(config, tmp_path, error) -> None:
    (tmp_path / "calls").mkdir()
    with RayWorkers(config, tmp_path) as workers, pytest.raises(type(error)) as raised:
        list(workers.run(fail, [(tmp_path / "calls", error)]))
    assert type(raised.value) is type(error) and str(raised.value) == str(error)
    assert len(list((tmp_path / "calls").iterdir())) == 1


@pytest.mark.ray
def test_missing_package_on_a_node_is_named(config, tmp_path) -> None:
    (tmp_path / "calls").mkdir()
    error = ModuleNotFoundError("No module named 'keras'")
    message = "the packages of this command, got No module named 'keras'; install"
    with RayWorkers(config, tmp_path) as workers, pytest.raises(InputError, match=message):
        list(workers.run(fail, [(tmp_path / "calls", error)]))


@pytest.mark.ray
def test_job_that_ends_its_process_fails_after_all_retries(config, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ray_job, "MAX_RETRIES", 2)
    (tmp_path / "calls").mkdir()
    message = "runner: a job was lost with its worker or node 3 times"
    with RayWorkers(config, tmp_path) as workers, pytest.raises(InterruptedRunError, match=message):
        list(workers.run(fail, [(tmp_path / "calls", None)]))
    assert len(list((tmp_path / "calls").iterdir())) == 3


@pytest.mark.ray
def test_directory_that_another_process_has_locked_is_refused(config, tmp_path) -> None:
    code = (
        "import sys; from pipeline.base.location import Location\n"
        "with Location.parse(sys.argv[1]).lock(): print('locked', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with other:
        assert other.stdout.readline() == "locked\n"
        message = f"another process is writing to {tmp_path}"
        with RayWorkers(config, tmp_path) as workers, pytest.raises(InputError, match=message):
            list(workers.run(square, range(2)))
        other.communicate("\n")


@pytest.mark.ray
def test_worker_process_uses_the_same_gpu_for_all_jobs(cluster, tmp_path) -> None:
    one_gpu = RayConfig(cluster.address, gpus_per_job=1)
    with _more_nodes(cluster, 1, num_gpus=2), RayWorkers(one_gpu, tmp_path) as workers:
        results = list(workers.run(gpus, range(12)))
    gpus_by_process = defaultdict(set)
    for process, visible in results:
        gpus_by_process[process].add(visible)
    assert sorted(gpus_by_process.values(), key=str) == [{"0"}, {"1"}]


@pytest.mark.ray
def test_wait_for_a_node_with_the_resources_of_a_job_is_printed(cluster, tmp_path, capsys) -> None:
    with RayWorkers(RayConfig(cluster.address, gpus_per_job=3), tmp_path):
        pass
    expected = "waiting for a node of the cluster with 1 CPUs and 3 GPUs for a job\n"
    assert capsys.readouterr().err.endswith(expected)


def _kill_when(cluster, node, condition: Callable[[], bool]) -> threading.Thread:
    """Kills a node as soon as a condition holds. Returns the thread that waits for it."""

    def kill() -> None:
        deadline = time.monotonic() + 300.0
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)
        # The delay makes sure that the jobs of the node are running.
        time.sleep(0.3)
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


@contextlib.contextmanager
def _more_nodes(cluster, count: int, **resources: int) -> Iterator[None]:
    nodes = [cluster.add_node(**_node(), **resources) for _ in range(count)]
    try:
        yield
    finally:
        for node in nodes:
            cluster.remove_node(node)


@pytest.mark.ray
@pytest.mark.parametrize(("kind", "count"), [("examples", 0), ("examples", 2), ("windows", 0)])
def test_prepare_on_ray_equals_the_local_runner(
    cluster, config, request, tmp_path, kind, count
) -> None:
    settings = request.getfixturevalue(f"{kind}_config")
    output_dir = tmp_path / "output"
    with _more_nodes(cluster, count):
        create_masked_examples(
            dataclasses.replace(settings, output_dir=str(output_dir), ray=config)
        )
    assert read_folder(output_dir) == read_folder(request.getfixturevalue(f"{kind}_dir"))


@pytest.mark.ray
def test_prepare_survives_a_killed_node(cluster, config, examples_config, tmp_path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    text = pathlib.Path(examples_config.corpora[0].input_dir, "a.txt").read_text(encoding="utf-8")
    for number in range(250):
        # No two documents are the same.
        lines = text.replace("\n\n", f" {number}\n\n")
        (corpus / f"{number}.txt").write_text(lines, encoding="utf-8")
    source = dataclasses.replace(examples_config.corpora[0], input_dir=str(corpus))
    settings = dataclasses.replace(examples_config, corpora=(source,), num_shards=8)
    expected, output = tmp_path / "expected", tmp_path / "output"
    local_config = dataclasses.replace(settings, output_dir=str(expected), max_workers=CPUS)
    create_masked_examples(local_config)
    victim = cluster.add_node(**_node())
    killer = _kill_when(cluster, victim, lambda: any(output.glob(".spill/*.spill")))
    create_masked_examples(dataclasses.replace(settings, output_dir=str(output), ray=config))
    killer.join()
    assert read_folder(output) == read_folder(expected)


@pytest.mark.ray
def test_invalid_row_leaves_no_files_in_the_directory(
    capsys, cluster, vocab_file, tmp_path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"title": "a", "content": "b"}\n{broken\n', encoding="utf-8")
    output = tmp_path / "output"
    flags = [f"--input_dir={rows}", f"--vocab_file={vocab_file}", f"--output_dir={output}"]
    flags += ["--runner=ray", f"--ray_address={cluster.address}"]
    assert create_pretraining_data.main(["command", *flags]) == 1
    assert f"\nerror: {rows}, line 2: not JSON" in capsys.readouterr().err.replace("\r", "\n")
    assert not list(output.iterdir())


@pytest.fixture
def cache_config(examples_dir, teacher_dir, tmp_path, config) -> TeacherCacheConfig:
    """The settings of `cache_dir`, except for the output directory and the runner."""
    return TeacherCacheConfig(
        output_dir=str(tmp_path / "output"),
        input_dir=str(examples_dir),
        teacher=str(teacher_dir),
        truncation_factor=16,
        predict_batch_size=8,
        ray=config,
    )


@pytest.mark.ray
@pytest.mark.parametrize("count", [0, 2])
def test_capture_on_ray_equals_the_local_runner(
    cluster, cache_config, cache_dir, tmp_path, count
) -> None:
    with _more_nodes(cluster, count):
        create_teacher_cache(cache_config)
    assert read_folder(tmp_path / "output") == read_folder(cache_dir)


@pytest.mark.ray
def test_capture_with_one_thread_equals_a_local_run_on_one_processor(
    cluster, cache_config, tmp_path
) -> None:
    one_thread = RayConfig(cluster.address, cpus_per_job=1)
    create_teacher_cache(dataclasses.replace(cache_config, ray=one_thread))
    code = (
        "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from pipeline import create_teacher_output_data as command; "
        "sys.exit(command.main(sys.argv))"
    )
    flags = [f"--input_dir={cache_config.input_dir}", f"--teacher={cache_config.teacher}"]
    flags += [f"--output_dir={tmp_path / 'expected'}"]
    flags += ["--truncation_factor=16", "--predict_batch_size=8"]
    subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, check=True, timeout=300)
    assert read_folder(tmp_path / "output") == read_folder(tmp_path / "expected")


@pytest.mark.ray
def test_complete_shards_are_not_written_again(cache_config, cache_dir) -> None:
    output = pathlib.Path(cache_config.output_dir)
    shutil.copytree(cache_dir, output)
    (output / "manifest.json").unlink()
    (output / "train-00001-of-00003.tfrecord").unlink()
    # A killed command leaves such a file if it has not published it.
    (output / ".train-00001-of-00003.tfrecord.0123abcd.tmp").write_bytes(b"half")
    inodes = {path.name: path.stat().st_ino for path in output.glob("*.tfrecord")}
    create_teacher_cache(cache_config)
    assert {name: (output / name).stat().st_ino for name in inodes} == inodes
    assert read_folder(output) == read_folder(cache_dir)


@pytest.mark.ray
def test_capture_survives_a_killed_node(cluster, cache_config, examples_config, tmp_path) -> None:
    examples, expected = tmp_path / "examples", tmp_path / "expected"
    output = pathlib.Path(cache_config.output_dir)
    create_masked_examples(
        dataclasses.replace(
            examples_config, output_dir=str(examples), dupe_factor=20, num_shards=10
        )
    )
    # With small batches, a shard takes long enough for the node to be killed.
    settings = dataclasses.replace(cache_config, input_dir=str(examples), predict_batch_size=1)
    create_teacher_cache(dataclasses.replace(settings, output_dir=str(expected), ray=None))
    victim = cluster.add_node(**_node())
    staged: set[str] = set()

    def all_nodes_run_jobs() -> bool:
        names = {path.name for path in output.glob(".*.tfrecord.*.tmp")}
        staged.update(names)
        return len(names) >= 3

    killer = _kill_when(cluster, victim, all_nodes_run_jobs)
    watcher = threading.Thread(target=_watch, args=(killer, output, all_nodes_run_jobs))
    watcher.start()
    create_teacher_cache(settings)
    killer.join()
    watcher.join()
    assert read_folder(output) == read_folder(expected)
    # At least one shard was started twice.
    started = [name.split(".tfrecord.")[0] for name in staged]
    assert len(started) > len(set(started))


def _watch(killer: threading.Thread, output: pathlib.Path, check: Callable[[], bool]) -> None:
    """Calls a check repeatedly until the manifest is written."""
    while killer.is_alive() or not (output / "manifest.json").is_file():
        check()
        time.sleep(0.01)


@pytest.mark.ray
def test_node_that_reads_another_teacher_is_refused(cache_config, tmp_path, monkeypatch) -> None:
    """The test changes the teacher after the command has read it."""
    teacher = tmp_path / "teacher"
    shutil.copytree(cache_config.teacher, teacher)
    enter = RayWorkers.__enter__

    def change_teacher_and_enter(workers: RayWorkers) -> RayWorkers:
        weights = teacher / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
        return enter(workers)

    monkeypatch.setattr(RayWorkers, "__enter__", change_teacher_and_enter)
    with pytest.raises(InputError) as refused:
        create_teacher_cache(dataclasses.replace(cache_config, teacher=str(teacher)))
    assert refused.value.subject == "runner" and ": teacher is " in refused.value.received


@pytest.mark.ray
def test_ray_on_this_machine_alone_writes_the_same_shards(
    corpus_dir, vocab_file, examples_dir, tmp_path
) -> None:
    command = [
        *(sys.executable, "-m", "pipeline.create_pretraining_data", "--runner=ray"),
        *(f"--input_dir={corpus_dir}", f"--vocab_file={vocab_file}"),
        *(f"--output_dir={tmp_path / 'output'}", f"--cpus_per_job={CPUS}"),
        *("--max_seq_length=48", "--max_predictions_per_seq=8", "--doc_stride=30"),
        *("--dupe_factor=2", "--eval_fraction=0.2", "--num_shards=3"),
    ]
    settings = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 300}
    result = subprocess.run(command, **settings, check=True)
    assert read_folder(tmp_path / "output") == read_folder(examples_dir)
    # Only the two progress bars are printed, and no lines of Ray.
    lines = result.stderr.replace("\r", "\n").splitlines()
    assert all(line.startswith(("masking:", "writing:")) for line in lines if line), result.stderr
    changes = [f"--output_dir={tmp_path / 'other'}", "--cpus_per_job=1000"]
    result = subprocess.run([*command[:-1], *changes], **settings, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: --cpus_per_job: ") and "1000 CPUs" in result.stderr
    assert not list((tmp_path / "other").iterdir())
