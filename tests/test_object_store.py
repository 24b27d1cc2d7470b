"""The commands with local object stores, through s3fs and gcsfs.

S3 is provided by moto, and Google Cloud Storage by `gcs_server`.
"""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from pipeline.base.local_mirror import CACHE_VARIABLE
from pipeline.base.location import BucketLocation, Location
from pipeline.masking.masked_examples import create_masked_examples
from tests import gcs_server
from tests.conftest import read_folder, read_objects, upload_folder

pytestmark = pytest.mark.remote

ROOT = pathlib.Path(__file__).parents[1]
MASKING = ("--max_seq_length=48", "--max_predictions_per_seq=8", "--doc_stride=30")
SHARDS = 12


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """The endpoint of an S3 store."""
    moto_server = pytest.importorskip("moto.server")
    store = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    host, port = store.get_host_and_port()
    yield f"http://{host}:{port}"
    store.stop()


@pytest.fixture(scope="module")
def gcs_url() -> Iterator[str]:
    """The endpoint of a Google Cloud store."""
    store = gcs_server.Server()
    store.start()
    yield store.url
    store.stop()


@pytest.fixture
def settings(s3_url: str, gcs_url: str, tmp_path, monkeypatch) -> None:
    """Environment variables for both stores, which commands inherit."""
    values = {
        "AWS_ENDPOINT_URL": s3_url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "STORAGE_EMULATOR_HOST": gcs_url,
        "NO_GCE_CHECK": "true",
        CACHE_VARIABLE: str(tmp_path / "copies"),
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    for package, name in (("s3fs", "S3FileSystem"), ("gcsfs", "GCSFileSystem")):
        # fsspec would otherwise reuse a file system with other settings or another server.
        getattr(pytest.importorskip(package), name).clear_instance_cache()


@pytest.fixture
def s3_folder(settings, tmp_path) -> BucketLocation:
    """A new folder in an S3 bucket."""
    s3fs = pytest.importorskip("s3fs")
    s3fs.S3FileSystem().makedirs("bucket", exist_ok=True)
    return Location.parse(f"s3://bucket/{tmp_path.name}")


@pytest.fixture(params=["s3", "gs"])
def folder(request, s3_folder, tmp_path) -> BucketLocation:
    """A new folder in a bucket of each store."""
    return s3_folder if request.param == "s3" else Location.parse(f"gs://bucket/{tmp_path.name}")


def _start(command: str, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"pipeline.{command}", *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _run(command: str, *flags: str) -> str:
    process = _start(command, *flags)
    printed, _ = process.communicate(timeout=500)
    assert process.returncode == 0, printed
    return printed


def _fails(command: str, *flags: str) -> str:
    process = _start(command, *flags)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in printed, printed
    return printed.splitlines()[-1]


def _kill_when_exists(process: subprocess.Popen[str], path: BucketLocation) -> None:
    """Kills a command with all its processes as soon as an object exists."""
    end = time.monotonic() + 300
    while not path.is_file():
        assert process.poll() is None and time.monotonic() < end, process.stdout.read()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_failed_multipart_upload_leaves_no_object(s3_folder, tmp_path, monkeypatch) -> None:
    import s3fs

    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(11 * 2**20))
    monkeypatch.setattr(s3fs.core, "calculate_chunksize", lambda size, chunksize: 5 * 2**20)
    real, calls = s3fs.S3FileSystem._call_s3, []

    async def broken(self, method, *arguments, **options):
        calls.append(method)
        if method == "upload_part" and calls.count(method) == 3:
            raise OSError("503 SlowDown")
        return await real(self, method, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_call_s3", broken)
        with pytest.raises(OSError) as caught:
            (s3_folder / "large.bin").take(path)
    assert calls.count("upload_part") == 3 and "complete_multipart_upload" not in calls
    assert caught.value.filename == f"{s3_folder}/large.bin"
    assert not (s3_folder / "large.bin").exists() and not s3_folder.exists()
    (s3_folder / "large.bin").take(path)
    assert (s3_folder / "large.bin").mirror().read_bytes() == path.read_bytes()


def test_locations_read_write_and_list_objects(folder, tmp_path) -> None:
    """Objects are also uploaded in several parts."""
    assert not folder.exists() and not folder.is_file() and list(folder.glob("*")) == []
    (folder / "sub" / "a b.txt").write_bytes(b"one\ntwo\n")
    assert folder.is_dir() and not folder.is_file() and (folder / "sub" / "a b.txt").is_file()
    assert folder.find() == {folder / "sub" / "a b.txt": 8}
    assert list(folder.glob("*/*.txt")) == [folder / "sub" / "a b.txt"]
    assert Location.parse(f"{folder}/*/*.txt").find() == {folder / "sub" / "a b.txt": 8}
    with (folder / "sub" / "a b.txt").open() as file:
        assert file.readlines() == [b"one\n", b"two\n"]
    before = (folder / "sub" / "a b.txt").mirror()
    (folder / "sub" / "a b.txt").write_bytes(b"six\nten\n")
    after = (folder / "sub" / "a b.txt").mirror()
    assert (before.read_bytes(), after.read_bytes()) == (b"one\ntwo\n", b"six\nten\n")
    large = tmp_path / "large.bin"
    large.write_bytes(os.urandom(6 * 2**20))
    with (folder / "large.bin").atomic_write() as temporary:
        temporary.write_bytes(large.read_bytes())
    assert (folder / "large.bin").sha256() == large.sha256()
    (folder / "large.bin").unlink()
    (folder / "large.bin").unlink(missing_ok=True)
    assert [path.name for path in folder.iterdir()] == ["sub"]


def test_objects_of_another_process_are_listed(folder) -> None:
    """Listings are not cached, because an existing shard would seem to be missing."""
    (folder / "a").write_bytes(b"1")
    assert [path.name for path in folder.iterdir()] == ["a"]
    code = (
        "from pipeline.base.location import Location; "
        f"Location.parse('{folder}/b').write_bytes(b'23')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
    assert [path.name for path in folder.iterdir()] == ["a", "b"]
    assert (folder / "b").is_file() and (folder / "b").stat().st_size == 2


def test_errors_of_a_store_are_one_line_that_names_the_object(
    s3_folder, monkeypatch, corpus_dir, vocab_file, tmp_path
) -> None:
    flags = [f"--input_dir={corpus_dir}", f"--vocab_file={vocab_file}", "--max_workers=1"]
    stage = "create_pretraining_data"
    line = _fails(stage, *flags, "--output_dir=s3://nobucket/a")
    assert line.startswith("error: s3://nobucket/a/request.json: The specified bucket does not ")
    line = _fails(stage, *flags[1:], f"--input_dir={s3_folder}", f"--output_dir={tmp_path}/o")
    assert line.startswith(f"error: --input_dir: {s3_folder}: ")
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        line = _fails(stage, *flags, f"--output_dir={s3_folder}")
    assert line.startswith(f"error: {s3_folder}: no permission, or no credentials (Unable to ")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    line = _fails(stage, *flags, f"--output_dir={s3_folder}")
    assert line.startswith(f"error: {s3_folder}: the store does not answer as expected (Could not ")


def test_killed_prepare_resumes_to_equal_bytes(
    folder, examples_config, corpus_dir, vocab_file, tmp_path
) -> None:
    config = dataclasses.replace(examples_config, output_dir=str(tmp_path / "here"))
    create_masked_examples(dataclasses.replace(config, num_shards=SHARDS))
    (folder / "vocab.txt").take(vocab_file)
    flags = (
        f"--input_dir={upload_folder(corpus_dir, folder / 'corpus')}",
        f"--vocab_file={folder / 'vocab.txt'}",
        f"--output_dir={folder / 'examples'}",
        *(*MASKING, "--dupe_factor=2", "--eval_fraction=0.2", f"--num_shards={SHARDS}"),
        "--max_workers=2",
    )
    process = _start("create_pretraining_data", *flags)
    first = folder / "examples" / f"train-00000-of-{SHARDS:05d}.tfrecord"
    _kill_when_exists(process, first)
    assert not (folder / "examples" / "manifest.json").exists()
    before = {path.name: path.stat() for path in (folder / "examples").glob("train-*")}
    assert 0 < len(before) < SHARDS
    _run("create_pretraining_data", *flags)
    assert read_objects(folder / "examples") == read_folder(tmp_path / "here")
    after = {path.name: path.stat() for path in (folder / "examples").glob("train-*")}
    assert {name: after[name] for name in before} == before
    different = _fails("create_pretraining_data", *flags, "--random_seed=7")
    assert "random_seed (recorded 12345, now 7)" in different


def test_capture_by_two_processes_gives_equal_bytes(
    folder, examples_dir, teacher_dir, cache_dir
) -> None:
    flags = (
        f"--input_dir={upload_folder(examples_dir, folder / 'examples')}",
        f"--teacher={upload_folder(teacher_dir, folder / 'teacher')}",
        f"--output_dir={folder / 'cache'}",
        *("--truncation_factor=16", "--predict_batch_size=8", "--num_tasks=2"),
    )
    both = [_start("create_teacher_output_data", *flags, f"--task_index={n}") for n in range(2)]
    printed = [process.communicate(timeout=500)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert f"teacher cache: {folder / 'cache'}" in "".join(printed)
    assert read_objects(folder / "cache") == read_folder(cache_dir)


def test_killed_distillation_resumes_to_equal_bytes(
    folder, teacher_dir, cache_dir, tmp_path
) -> None:
    settings = (
        *("--student_layers=2", "--num_train_steps=40", "--train_batch_size=8", "--log_steps=5"),
        *("--learning_rate=1e-3", "--save_checkpoints_steps=5", "--max_eval_steps=2"),
    )
    local = (f"--input_dir={cache_dir}", f"--init_from={teacher_dir}")
    _run("run_distill", *local, *settings, f"--output_dir={tmp_path}/here")
    flags = (
        f"--input_dir={upload_folder(cache_dir, folder / 'cache')}",
        f"--init_from={upload_folder(teacher_dir, folder / 'teacher')}",
        f"--output_dir={folder / 'student'}",
    )
    process = _start("run_distill", *flags, *settings)
    _kill_when_exists(process, folder / "student" / "checkpoints" / "step-00000005.safetensors")
    assert not (folder / "student" / "model.safetensors").exists()
    assert "resuming from step " in _run("run_distill", *flags, *settings)
    objects, expected = read_objects(folder / "student"), read_folder(tmp_path / "here")
    for name in expected:
        if not name.startswith("tensorboard/") and name != "metrics.jsonl":
            assert objects[name] == expected[name], name
    assert len(objects["metrics.jsonl"].splitlines()) == len(expected["metrics.jsonl"].splitlines())
    # The output is a model directory for transformers, fine-tuning and exports.
    assert {"config.json", "vocab.txt", "tokenizer_config.json"} <= objects.keys()
