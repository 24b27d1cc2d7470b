"""Jobs over the nodes of a real Ray cluster on the loopback, and what is refused without one."""

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

# Ray's way to stay on the loopback; before it is imported, here and in what it starts.
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
COMMANDS = {"1a": create_pretraining_data, "1b": create_teacher_output_data}
STAGE_1A = ("--input_dir=x", "--vocab_file=x", "--output_dir=x")
STAGE_1B = ("--input_dir=x", "--teacher=x", "--output_dir=x")


@pytest.mark.parametrize(
    ("stage", "changes", "flag"),
    [
        ("1a", ["--ray_address=auto"], "ray_address"),
        ("1b", ["--gpus_per_job=1"], "gpus_per_job"),
        ("1a", ["--runner=local", "--cpus_per_job=2"], "cpus_per_job"),
        ("1b", ["--runner=ray", "--cpus_per_job=0"], "cpus_per_job"),
        ("1a", ["--runner=slurm"], "runner"),
        ("1a", ["--runner=ray", "--max_workers=4"], "max_workers"),
        ("1b", ["--runner=ray", "--num_tasks=2"], "num_tasks"),
        ("1b", ["--runner=ray", "--compute_dtype=auto"], "compute_dtype"),
    ],
)
def test_mistaken_flags_are_named(capsys, monkeypatch, stage, changes, flag: str) -> None:
    monkeypatch.setattr(RayConfig, "import_ray", lambda config: None)
    flags = STAGE_1A if stage == "1a" else STAGE_1B
    assert COMMANDS[stage].main(["command", *flags, *changes]) == 1
    assert capsys.readouterr().err.startswith(f"error: --{flag}: ")


@pytest.mark.parametrize("stage", COMMANDS)
def test_ray_is_not_installed(capsys, monkeypatch, stage) -> None:
    # Python's way to say that a module is not to be found.
    monkeypatch.setitem(sys.modules, "ray", None)
    flags = STAGE_1A if stage == "1a" else STAGE_1B
    assert COMMANDS[stage].main(["command", *flags, "--runner=ray"]) == 1
    assert capsys.readouterr().err.startswith("error: --runner: ray cannot be imported")


@pytest.mark.parametrize(
    "address",
    [
        *("head", "ray://head:10001", "head:", ":6379", "head:x"),
        *("a..b:6379", f"{'a' * 64}:6379", f"head:{'9' * 5000}"),
    ],
)
def test_addresses_of_no_cluster_are_refused(tmp_path, address: str) -> None:
    with pytest.raises(InputError) as refused, RayWorkers(RayConfig(address), tmp_path):
        pass
    assert refused.value.subject == "ray_address"


def test_an_address_where_nothing_listens_is_refused(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(InputError) as refused, RayWorkers(RayConfig(address), tmp_path):
        pass
    assert refused.value.subject == "ray_address"
    assert f"nothing answers at {address}" in refused.value.received


def test_a_ray_that_does_not_begin(tmp_path, monkeypatch) -> None:
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


def test_a_node_must_see_the_directory_and_have_the_packages(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("NPROC", "7")
    mark = tmp_path / ".ray-0.tmp"
    node = ray_job.Node((("NPROC", "3"),), ray_job.versions(), ((Setting("output_dir"), mark),))
    # The same command goes on when the node is gone: what is made stays.
    with pytest.raises(InterruptedRunError) as raised:
        ray_job.enter(node)
    assert raised.value.subject == "output_dir" and str(tmp_path) in raised.value.received
    mark.touch()
    ray_job.enter(node)
    assert os.environ["NPROC"] == "3"
    for package in ("numpy", "offline-distill"):
        other = dict(ray_job.versions()) | {package: "0"}
        with pytest.raises(InterruptedRunError) as raised:
            ray_job.enter(dataclasses.replace(node, versions=tuple(other.items())))
        assert raised.value.subject == "ray_address" and package in raised.value.expected


def square(number: int) -> tuple[int, int]:
    """Returns a square, and which process computed it."""
    time.sleep(0.05)
    return number * number, os.getpid()


def count(number: int, report: Callable[[int], None]) -> int:
    """Tells of `number` things done, slowly enough to be seen at it."""
    for _ in range(number):
        time.sleep(0.4)
        report(1)
    return number


def fail(case: tuple[pathlib.Path, Exception | None]) -> None:
    """Notes that it was called, and raises an error, or ends its process without one."""
    folder, error = case
    (folder / f"{time.time_ns()}").touch()
    if error is None:
        os._exit(1)
    raise error


def gpus(number: int) -> tuple[int, str]:
    """Returns the process, and which GPUs it is to use."""
    time.sleep(0.2)
    return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes on the loopback, which finds out soon that one was killed."""
    ray_job.import_ray()
    from ray.cluster_utils import Cluster

    settings = {
        # Else the lowest, and a machine that computes something else lets no job begin.
        "worker_niceness": 0,
        # Five times a second apart, and not before a slow machine has begun.
        "health_check_initial_delay_ms": 10_000,
        "health_check_period_ms": 1000,
        "health_check_timeout_ms": 10_000,
        "health_check_failure_threshold": 5,
    }
    head = {**_node(), "include_dashboard": False, "_system_config": settings}
    made = Cluster(initialize_head=True, head_node_args=head)
    made.add_node(**_node())
    yield made
    made.shutdown()


def _node() -> dict[str, int]:
    return {"num_cpus": CPUS, "object_store_memory": 80 * 2**20}


@pytest.fixture
def config(cluster) -> RayConfig:
    """A job at a time on each node, with as many threads as this process has."""
    return RayConfig(cluster.address, cpus_per_job=CPUS)


@pytest.mark.ray
def test_an_address_where_something_else_listens(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ray, "_CONNECTION", 8.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        message = f"ray_address: no Ray cluster answers at {address} within 8 s"
        with pytest.raises(InputError, match=message), RayWorkers(RayConfig(address), tmp_path):
            pass


@pytest.mark.ray
def test_results_come_in_the_jobs_order_and_processes_stay(config, tmp_path) -> None:
    waiting: list[int] = []
    most = 0

    def numbers() -> Iterator[int]:
        nonlocal most
        for number in range(30):
            waiting.append(number)
            most = max(most, len(waiting))
            yield number

    def finish(made: tuple[int, int]) -> tuple[int, int]:
        waiting.pop()
        return made

    with RayWorkers(config, tmp_path) as workers:
        found = list(workers.run(square, numbers(), finish=finish))
        again = list(workers.run(square, range(30)))
    # Two jobs for each node, and no more.
    assert most == 4
    assert [value for value, _ in found] == [number * number for number in range(30)]
    assert [value for value, _ in again] == [number * number for number in range(30)]
    processes = {process for _, process in [*found, *again]}
    assert os.getpid() not in processes
    assert len(processes) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
def test_progress_is_told_while_jobs_are_at_work(config, tmp_path) -> None:
    told: list[int] = []
    with RayWorkers(config, tmp_path) as workers:
        made = list(
            workers.run(count, [6, 5, 6], finish=lambda made: -made, on_progress=told.append)
        )
    assert made == [-6, -5, -6]
    assert sum(told) == 17
    # Not only at the end of a job.
    assert len([step for step in told if 0 < step < 5]) >= 3


@pytest.mark.ray
@pytest.mark.parametrize(
    "error", [InputError("--vocab_file: broken"), FileNotFoundError(2, "No such file", "/x/y")]
)
def test_what_the_user_can_mend_comes_back_at_once(config, tmp_path, error) -> None:
    (tmp_path / "calls").mkdir()
    with RayWorkers(config, tmp_path) as workers, pytest.raises(type(error)) as raised:
        list(workers.run(fail, [(tmp_path / "calls", error)]))
    assert type(raised.value) is type(error) and str(raised.value) == str(error)
    assert len(list((tmp_path / "calls").iterdir())) == 1


@pytest.mark.ray
def test_a_node_without_a_package_is_told_of(config, tmp_path) -> None:
    (tmp_path / "calls").mkdir()
    error = ModuleNotFoundError("No module named 'keras'")
    message = "expected the packages of this command .* one says: No module named 'keras'; install"
    with RayWorkers(config, tmp_path) as workers, pytest.raises(InputError, match=message):
        list(workers.run(fail, [(tmp_path / "calls", error)]))


@pytest.mark.ray
def test_a_job_that_ends_its_process_is_given_up(config, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ray_job, "MAX_RETRIES", 2)
    (tmp_path / "calls").mkdir()
    message = "runner: a job was lost with its worker or node 3 times"
    with RayWorkers(config, tmp_path) as workers, pytest.raises(InterruptedRunError, match=message):
        list(workers.run(fail, [(tmp_path / "calls", None)]))
    assert len(list((tmp_path / "calls").iterdir())) == 3


@pytest.mark.ray
def test_two_commands_do_not_write_into_one_directory(config, tmp_path) -> None:
    code = (
        "import sys; from pipeline.base.location import Location\n"
        "with Location.parse(sys.argv[1]).lock(): print('here', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with other:
        assert other.stdout.readline() == "here\n"
        message = f"another process is writing to {tmp_path}"
        with RayWorkers(config, tmp_path) as workers, pytest.raises(InputError, match=message):
            list(workers.run(square, range(2)))
        other.communicate("\n")


@pytest.mark.ray
def test_a_process_keeps_its_gpus(cluster, tmp_path) -> None:
    alone = RayConfig(cluster.address, gpus_per_job=1)
    with _more_nodes(cluster, 1, num_gpus=2), RayWorkers(alone, tmp_path) as workers:
        found = list(workers.run(gpus, range(12)))
    used = defaultdict(set)
    for process, visible in found:
        used[process].add(visible)
    assert sorted(used.values(), key=str) == [{"0"}, {"1"}]


@pytest.mark.ray
def test_what_no_node_has_is_waited_for(cluster, tmp_path, capsys) -> None:
    with RayWorkers(RayConfig(cluster.address, gpus_per_job=3), tmp_path):
        pass
    wanted = "no node of the cluster has the 1 CPUs and 3 GPUs of a job yet: waiting\n"
    assert capsys.readouterr().err.endswith(wanted)


def _kill_when(cluster, node, condition: Callable[[], bool]) -> threading.Thread:
    """Kills a node as soon as something is so; returns the thread that waits for it."""

    def kill() -> None:
        deadline = time.monotonic() + 300.0
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)
        # Well inside whatever has begun.
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
def test_stage_1a_equals_the_local_runner(cluster, config, request, tmp_path, kind, count) -> None:
    settings = request.getfixturevalue(f"{kind}_config")
    with _more_nodes(cluster, count):
        made = dataclasses.replace(settings, output_dir=str(tmp_path / "made"), ray=config)
        create_masked_examples(made)
    assert read_folder(tmp_path / "made") == read_folder(request.getfixturevalue(f"{kind}_dir"))


@pytest.mark.ray
def test_stage_1a_survives_a_killed_node(cluster, config, examples_config, tmp_path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    text = pathlib.Path(examples_config.corpora[0].input_dir, "a.txt").read_text(encoding="utf-8")
    for number in range(250):
        # No two documents are the same.
        lines = text.replace("\n\n", f" {number}\n\n")
        (corpus / f"{number}.txt").write_text(lines, encoding="utf-8")
    source = dataclasses.replace(examples_config.corpora[0], input_dir=str(corpus))
    settings = dataclasses.replace(examples_config, corpora=(source,), num_shards=8)
    wanted, made = tmp_path / "wanted", tmp_path / "made"
    create_masked_examples(dataclasses.replace(settings, output_dir=str(wanted), max_workers=CPUS))
    victim = cluster.add_node(**_node())
    killer = _kill_when(cluster, victim, lambda: any(made.glob(".spill/*.spill")))
    create_masked_examples(dataclasses.replace(settings, output_dir=str(made), ray=config))
    killer.join()
    assert read_folder(made) == read_folder(wanted)


@pytest.mark.ray
def test_a_bad_line_leaves_the_directory_as_it_was(capsys, cluster, vocab_file, tmp_path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"title": "a", "content": "b"}\n{broken\n', encoding="utf-8")
    output = tmp_path / "made"
    flags = [f"--input_dir={rows}", f"--vocab_file={vocab_file}", f"--output_dir={output}"]
    flags += ["--runner=ray", f"--ray_address={cluster.address}"]
    assert create_pretraining_data.main(["command", *flags]) == 1
    assert f"\nerror: {rows}, line 2: not JSON" in capsys.readouterr().err.replace("\r", "\n")
    assert not list(output.iterdir())


@pytest.fixture
def cache_config(examples_dir, teacher_dir, tmp_path, config) -> TeacherCacheConfig:
    """How `cache_dir` was made, but for the output and the runner."""
    return TeacherCacheConfig(
        output_dir=str(tmp_path / "made"),
        input_dir=str(examples_dir),
        teacher=str(teacher_dir),
        truncation_factor=16,
        predict_batch_size=8,
        ray=config,
    )


@pytest.mark.ray
@pytest.mark.parametrize("count", [0, 2])
def test_stage_1b_equals_the_local_runner(
    cluster, cache_config, cache_dir, tmp_path, count
) -> None:
    with _more_nodes(cluster, count):
        create_teacher_cache(cache_config)
    assert read_folder(tmp_path / "made") == read_folder(cache_dir)


@pytest.mark.ray
def test_stage_1b_with_one_thread_equals_a_local_run_on_one_processor(
    cluster, cache_config, tmp_path
) -> None:
    one = RayConfig(cluster.address, cpus_per_job=1)
    create_teacher_cache(dataclasses.replace(cache_config, ray=one))
    code = (
        "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from pipeline import create_teacher_output_data as command; "
        "sys.exit(command.main(sys.argv))"
    )
    flags = [f"--input_dir={cache_config.input_dir}", f"--teacher={cache_config.teacher}"]
    flags += [f"--output_dir={tmp_path / 'wanted'}"]
    flags += ["--truncation_factor=16", "--predict_batch_size=8"]
    subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, check=True, timeout=300)
    assert read_folder(tmp_path / "made") == read_folder(tmp_path / "wanted")


@pytest.mark.ray
def test_whole_shards_are_not_made_again(cache_config, cache_dir) -> None:
    made = pathlib.Path(cache_config.output_dir)
    shutil.copytree(cache_dir, made)
    (made / "manifest.json").unlink()
    (made / "train-00001-of-00003.tfrecord").unlink()
    # Of a command that was killed before it could publish it.
    (made / ".train-00001-of-00003.tfrecord.0123abcd.tmp").write_bytes(b"half")
    kept = {path.name: path.stat().st_ino for path in made.glob("*.tfrecord")}
    create_teacher_cache(cache_config)
    assert {name: (made / name).stat().st_ino for name in kept} == kept
    assert read_folder(made) == read_folder(cache_dir)


@pytest.mark.ray
def test_stage_1b_survives_a_killed_node(cluster, cache_config, examples_config, tmp_path) -> None:
    examples, wanted = tmp_path / "examples", tmp_path / "wanted"
    made = pathlib.Path(cache_config.output_dir)
    create_masked_examples(
        dataclasses.replace(
            examples_config, output_dir=str(examples), dupe_factor=20, num_shards=10
        )
    )
    # Small batches, so that a shard takes its time.
    settings = dataclasses.replace(cache_config, input_dir=str(examples), predict_batch_size=1)
    create_teacher_cache(dataclasses.replace(settings, output_dir=str(wanted), ray=None))
    victim = cluster.add_node(**_node())
    seen: set[str] = set()

    def all_are_at_work() -> bool:
        names = {path.name for path in made.glob(".*.tfrecord.*.tmp")}
        seen.update(names)
        return len(names) >= 3

    killer = _kill_when(cluster, victim, all_are_at_work)
    watcher = threading.Thread(target=_watch, args=(killer, made, all_are_at_work))
    watcher.start()
    create_teacher_cache(settings)
    killer.join()
    watcher.join()
    assert read_folder(made) == read_folder(wanted)
    # A shard was begun twice.
    begun = [name.split(".tfrecord.")[0] for name in seen]
    assert len(begun) > len(set(begun))


def _watch(killer: threading.Thread, made: pathlib.Path, look: Callable[[], bool]) -> None:
    """Looks until the manifest is there."""
    while killer.is_alive() or not (made / "manifest.json").is_file():
        look()
        time.sleep(0.01)


@pytest.mark.ray
def test_a_node_that_sees_another_teacher_is_refused(cache_config, tmp_path, monkeypatch) -> None:
    """Simulated by a teacher that changes when the command has looked at it."""
    teacher = tmp_path / "teacher"
    shutil.copytree(cache_config.teacher, teacher)
    enter = RayWorkers.__enter__

    def changed(workers: RayWorkers) -> RayWorkers:
        weights = teacher / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
        return enter(workers)

    monkeypatch.setattr(RayWorkers, "__enter__", changed)
    with pytest.raises(InputError) as refused:
        create_teacher_cache(dataclasses.replace(cache_config, teacher=str(teacher)))
    assert refused.value.subject == "runner" and ": teacher is " in refused.value.received


@pytest.mark.ray
def test_a_ray_of_this_machine_alone_ends_with_the_command(
    corpus_dir, vocab_file, examples_dir, tmp_path
) -> None:
    command = [
        *(sys.executable, "-m", "pipeline.create_pretraining_data", "--runner=ray"),
        *(f"--input_dir={corpus_dir}", f"--vocab_file={vocab_file}"),
        *(f"--output_dir={tmp_path / 'made'}", f"--cpus_per_job={CPUS}"),
        *("--max_seq_length=48", "--max_predictions_per_seq=8", "--doc_stride=30"),
        *("--dupe_factor=2", "--eval_fraction=0.2", "--num_shards=3"),
    ]
    settings = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 300}
    result = subprocess.run(command, **settings, check=True)
    assert read_folder(tmp_path / "made") == read_folder(examples_dir)
    # Two bars, and nothing of Ray's.
    lines = result.stderr.replace("\r", "\n").splitlines()
    assert all(line.startswith(("masking:", "writing:")) for line in lines if line), result.stderr
    changes = [f"--output_dir={tmp_path / 'other'}", "--cpus_per_job=1000"]
    more = subprocess.run([*command[:-1], *changes], **settings, check=False)
    assert more.returncode == 1
    assert more.stderr.startswith("error: --cpus_per_job: ") and "1000 CPUs" in more.stderr
    assert not list((tmp_path / "other").iterdir())
