"""Tests of bucket objects as paths and files, in fsspec's memory store.

The code under test is the same as for gs:// and s3://.
"""

import concurrent.futures
import errno
import gzip
import os
import pathlib
import pickle
import tempfile

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import InputError
from pipeline.base.local_mirror import CACHE_VARIABLE, mirror_folder
from pipeline.base.location import BucketLocation, Location, mirror_all
from tests.conftest import run_python


@pytest.mark.parametrize("path", ["a/b.txt", "/a", ".", "C:/a", "a:b", "s3:/bucket/a", "://a"])
def test_text_that_is_not_a_url_is_a_local_path(path: str) -> None:
    assert Location.parse(path) == pathlib.Path(path)
    assert Location.parse(pathlib.Path(path)) == pathlib.Path(path)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("az://b/c", "az://b/c: expected a path on this machine, gs://… or s3://…, received az://"),
        ("https://a.b/c", "https://a.b/c: expected a path on this machine, gs://… or s3://…, rec"),
        ("s3://", "s3://: expected s3://BUCKET/NAME"),
        ("gs:///", "gs:///: expected gs://BUCKET/NAME"),
        ("s3://bucket/../other/a", "s3://bucket/../other/a: expected s3://BUCKET/NAME"),
    ],
)
def test_urls_of_other_schemes_or_without_a_name_are_refused(url: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        Location.parse(url)
    assert str(caught.value).startswith(expected)


def test_bucket_location_has_the_members_of_a_path() -> None:
    path = Location.parse("S3://bucket/runs//one/model.safetensors/")
    assert str(path) == "s3://bucket/runs/one/model.safetensors"
    assert (path.name, path.suffix) == ("model.safetensors", ".safetensors")
    assert str(path.parent) == "s3://bucket/runs/one"
    assert str(path.with_name("a.json")) == "s3://bucket/runs/one/a.json"
    assert path.temporary().name == ".model.safetensors.tmp"
    top = Location.parse("gs://bucket")
    assert str(top) == "gs://bucket" and top.parent == top
    assert path is path and path.resolve() is path


_NAMES = st.from_regex(r"[A-Za-z0-9_\-. ](?<!\.)[A-Za-z0-9_\-]{0,8}", fullmatch=True)


@given(st.lists(_NAMES, min_size=2, max_size=5))
def test_bucket_location_survives_text_pickling_and_joining(names: list[str]) -> None:
    path = Location.parse("s3://" + "/".join(names))
    assert Location.parse(str(path)) == path == pickle.loads(pickle.dumps(path))
    assert path.parent / path.name == path
    assert path == Location.parse("s3://" + names[0]) / "/".join(names[1:])
    assert path.is_relative_to(path.parent) and path.parent != path


@pytest.mark.parametrize(
    ("path", "folder", "inside"),
    [
        ("s3://b/a/c", "s3://b/a", True),
        ("s3://b/a", "s3://b/a", True),
        ("s3://b/ab", "s3://b/a", False),
        ("s3://b/a/c", "gs://b/a", False),
        ("s3://b/a", "/b", False),
        ("/b/a", "s3://b", False),
        ("/b/a/../c", "/b", True),
    ],
)
def test_is_inside_follows_the_components_of_the_path(path: str, folder: str, inside: bool) -> None:
    assert Location.parse(path).is_inside(Location.parse(folder)) is inside


def test_bucket_folder_lists_globs_and_removes_its_objects(bucket) -> None:
    folder = bucket / "runs"
    assert not folder.exists() and not folder.is_dir() and not folder.is_file()
    assert list(folder.glob("*")) == []
    (folder / "one" / "a.txt").write_bytes(b"abc")
    (folder / "b.json").write_bytes(b"{}")
    assert folder.is_dir() and not folder.is_file()
    assert (folder / "b.json").is_file() and not (folder / "b.json").is_dir()
    assert (folder / "one" / "a.txt").stat().st_size == 3
    assert [path.name for path in folder.iterdir()] == ["b.json", "one"]
    assert list(folder.glob("*.json")) == [folder / "b.json"]
    sizes = {folder / "one" / "a.txt": 3, folder / "b.json": 2}
    assert folder.find() == sizes
    assert (folder / "b.json").find() == {folder / "b.json": 2}
    assert Location.parse(f"{folder}/**/*.txt").find() == {folder / "one" / "a.txt": 3}
    assert Location.parse(f"{folder}/*.txt").find() == {}
    (folder / "b.json").unlink()
    (folder / "b.json").unlink(missing_ok=True)
    assert not (folder / "b.json").exists()
    with pytest.raises(FileNotFoundError) as caught:
        (folder / "b.json").unlink()
    assert caught.value.filename == str(folder / "b.json")
    assert caught.value.strerror == "no such object"


def test_iterdir_skips_the_empty_object_that_stands_for_the_folder(bucket, monkeypatch) -> None:
    """Some tools write an empty object `runs/` for the folder `runs`."""
    monkeypatch.setattr(
        MemoryFileSystem,
        "ls",
        lambda self, path, detail: ["b/runs/", "b/runs/a", "b/runs/sub/"],
    )
    assert [path.name for path in Location.parse("memory://b/runs").iterdir()] == ["a", "sub"]


@given(st.binary(max_size=3000), st.integers(1, 900))
def test_object_is_read_whole_in_blocks_of_any_size(content: bytes, size: int) -> None:
    path = Location.parse("memory://reading/object")
    path.write_bytes(content)
    with path.open("rb") as file:
        blocks = list(iter(lambda: file.read(size), b""))
        assert file.tell() == len(content)
        file.seek(0)
        assert file.readlines() == content.splitlines(keepends=True) or b"\r" in content
    assert b"".join(blocks) == content == path.read_bytes()


def test_compressed_object_can_be_read(bucket) -> None:
    text = "春天来了。\n".encode() * 5000
    (bucket / "text.gz").write_bytes(gzip.compress(text))
    with (bucket / "text.gz").open() as raw, gzip.GzipFile(fileobj=raw) as stream:
        assert stream.read() == text


def test_json_objects_are_written_sorted_and_read_back(bucket) -> None:
    (bucket / "a.json").write_json({"b": 1, "a": "文"})
    assert (bucket / "a.json").read_text() == '{\n  "a": "文",\n  "b": 1\n}\n'
    assert Location.parse(str(bucket / "a.json")).read_json() == {"a": "文", "b": 1}
    with pytest.raises(InputError) as caught:
        (bucket / "b.json").read_json()
    assert str(caught.value) == f"{bucket}/b.json: no such file"
    (bucket / "b.json").write_bytes(b"[]")
    with pytest.raises(InputError) as caught:
        (bucket / "b.json").read_json()
    assert str(caught.value) == f"{bucket}/b.json: expected a JSON object, received list"


def _nothing_left() -> bool:
    """Returns whether uploads left no files on this machine."""
    return not [path for path in mirror_folder().rglob("*") if path.name != ".lock.tmp"]


def test_object_appears_only_when_its_block_succeeds(bucket) -> None:
    path = bucket / "model.bin"
    with path.atomic_write() as temporary:
        temporary.write_bytes(b"0123456789")
        assert not path.exists()
    assert path.read_bytes() == b"0123456789"
    with pytest.raises(RuntimeError, match="half-way"), path.atomic_write() as temporary:
        temporary.write_bytes(b"01234")
        raise RuntimeError("half-way")
    assert path.read_bytes() == b"0123456789"
    assert _nothing_left()


def test_failed_upload_leaves_no_files(bucket, monkeypatch) -> None:
    def fail(self, local, remote, **options):
        raise OSError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(MemoryFileSystem, "put_file", fail)
    path = bucket / "model.bin"
    with pytest.raises(OSError) as caught, path.atomic_write() as temporary:
        temporary.write_bytes(b"01234")
    assert (caught.value.filename, caught.value.strerror) == (
        str(path),
        "the store does not answer as expected (Broken pipe)",
    )
    assert not path.exists() and _nothing_left()


def test_full_disk_error_names_the_file_to_upload(bucket) -> None:
    with pytest.raises(OSError) as caught, (bucket / "model.bin").atomic_write() as temporary:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(temporary)
    assert temporary.is_relative_to(mirror_folder()) and not (bucket / "model.bin").exists()
    assert _nothing_left()


def test_staged_files_are_uploaded_in_order(bucket, monkeypatch) -> None:
    take, uploaded = BucketLocation.take, []

    def upload(self, source):
        uploaded.append(self.name)
        take(self, source)

    monkeypatch.setattr(BucketLocation, "take", upload)
    with (bucket / "out").stage_directory(last="config.json") as stage:
        for name in ("config.json", "a.bin", "z.bin"):
            (stage / name).write_bytes(name.encode())
        assert not (bucket / "out").exists()
    assert uploaded == ["a.bin", "z.bin", "config.json"]
    assert (bucket / "out" / "z.bin").read_bytes() == b"z.bin"
    assert _nothing_left()


def test_staged_files_do_not_replace_existing_ones(bucket) -> None:
    (bucket / "out" / "a.bin").write_bytes(b"before")
    staged = (bucket / "out").stage_directory(last="b.bin")
    with pytest.raises(InputError) as caught, staged as stage:
        for name in ("a.bin", "b.bin"):
            (stage / name).write_bytes(b"after")
    assert caught.value.subject == f"{bucket}/out/a.bin"
    assert [path.name for path in (bucket / "out").iterdir()] == ["a.bin"]
    assert (bucket / "out" / "a.bin").read_bytes() == b"before"
    assert _nothing_left()


def test_expect_empty_and_expect_absent_refuse_existing_files(bucket) -> None:
    folder = bucket / "out"
    assert Location.parse(str(folder)).make_directory() == folder
    folder.expect_empty()
    (folder / "a.json").expect_absent()
    with folder.lock():
        (folder / "a.json").write_json({})
    with pytest.raises(InputError, match="'a.json'") as caught:
        Location.parse(str(folder), "output_dir").expect_empty()
    assert (caught.value.subject, caught.value.setting) == (str(folder), "output_dir")
    with pytest.raises(InputError) as caught:
        (folder / "a.json").expect_absent()
    assert caught.value.subject == f"{folder}/a.json"


def test_object_is_copied_once_for_each_version(bucket, monkeypatch) -> None:
    original_download, copied = BucketLocation.download, []

    def download(self, target):
        copied.append(self.name)
        original_download(self, target)

    monkeypatch.setattr(BucketLocation, "download", download)
    path = bucket / "a.bin"
    path.write_bytes(b"one")
    first = Location.parse(str(path)).mirror()
    assert (first.name, first.read_bytes()) == ("a.bin", b"one")
    assert path.mirror() == first and copied == ["a.bin"]
    # The size is the same, so only the version shows the change.
    path.write_bytes(b"two")
    assert path.mirror().read_bytes() == b"two" and copied == ["a.bin"] * 2
    assert path.sha256().startswith("3fc4ccfe745870e2")
    assert first.read_bytes() == b"one"


def test_copies_of_several_objects_share_a_folder(bucket, tmp_path) -> None:
    names = ("model.ckpt.data-00000-of-00001", "model.ckpt.index")
    for name in names:
        (bucket / name).write_bytes(name.encode())
    copies = mirror_all([bucket / name for name in names])
    assert [copy.name for copy in copies] == list(names)
    assert copies[0].parent == copies[1].parent
    assert [copy.read_bytes().decode() for copy in copies] == list(names)
    assert mirror_all([tmp_path / "a", tmp_path / "b"]) == (tmp_path / "a", tmp_path / "b")


def test_only_one_thread_copies_while_the_others_wait(bucket, monkeypatch) -> None:
    original_download, copied = BucketLocation.download, []

    def download(self, target):
        copied.append(self.name)
        original_download(self, target)

    monkeypatch.setattr(BucketLocation, "download", download)
    path = bucket / "a.bin"
    path.write_bytes(bytes(range(256)) * 1000)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        copies = set(pool.map(BucketLocation.mirror, [path] * 16))
    assert len(copies) == 1 and copied == ["a.bin"]
    assert copies.pop().read_bytes() == bytes(range(256)) * 1000


def test_incomplete_copy_is_removed_and_made_again(bucket, monkeypatch) -> None:
    path = bucket / "a.bin"
    path.write_bytes(b"0123456789")

    def copy_half(self, remote, local, **options):
        pathlib.Path(local).write_bytes(b"01234")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "get_file", copy_half)
        with pytest.raises(OSError) as caught:
            path.mirror()
    assert caught.value.filename == str(path)
    assert caught.value.strerror == "expected 10 unchanged bytes, received 5"
    assert not list(mirror_folder().rglob("*a.bin*"))
    assert path.mirror().read_bytes() == b"0123456789"


def test_full_disk_error_names_the_copy(bucket, monkeypatch) -> None:
    (bucket / "a.bin").write_bytes(b"0123456789")

    def fail(self, remote, local, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(MemoryFileSystem, "get_file", fail)
    with pytest.raises(OSError) as caught:
        (bucket / "a.bin").mirror()
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename.startswith(str(mirror_folder()))


def test_default_mirror_folder_must_belong_to_the_user(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    folder = mirror_folder()
    assert folder == tmp_path / f"offline-distill-{os.getuid()}" == mirror_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError) as caught:
        mirror_folder()
    assert caught.value.subject == CACHE_VARIABLE
    assert caught.value.received == f"the default folder {folder} belongs to another user"


def test_mirror_folder_that_cannot_be_made_is_refused(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "copies"))
    with pytest.raises(InputError) as caught:
        mirror_folder()
    assert str(caught.value) == (
        f"OFFLINE_DISTILL_CACHE: cannot make the folder {tmp_path}/file/copies: Not a directory"
    )


def test_scratch_folder_depends_only_on_directory_and_name(bucket, tmp_path) -> None:
    assert tmp_path.scratch(".spill") == tmp_path / ".spill"
    scratch = Location.parse(str(bucket / "out")).scratch(".spill")
    assert scratch == (bucket / "out").scratch(".spill")
    assert scratch != (bucket / "out2").scratch(".spill")
    assert scratch.is_relative_to(mirror_folder())


def _error(package: str, text: str) -> Exception:
    return type("StoreError", (Exception,), {"__module__": f"{package}.exceptions"})(text)


@pytest.mark.parametrize(
    ("error", "number", "reason"),
    [
        (
            _error("botocore", 'Could not connect to\nthe endpoint URL: "http://x"'),
            errno.EIO,
            'the store does not answer as expected (Could not connect to the endpoint URL: "http:',
        ),
        (
            _error("botocore", "Unable to locate credentials"),
            errno.EACCES,
            "no permission, or no credentials (Unable to locate credentials)",
        ),
        (
            PermissionError("Access Denied"),
            errno.EACCES,
            "no permission, or no credentials (Access Denied)",
        ),
        (
            OSError("Forbidden: bucket/a\nbob lacks storage.objects.get"),
            errno.EACCES,
            "no permission, or no credentials (Forbidden: bucket/a bob lacks storage.objects.get)",
        ),
        (
            FileNotFoundError("The specified bucket does not exist"),
            errno.ENOENT,
            "The specified bucket does not exist",
        ),
        (ValueError("Bad Request: a"), errno.EIO, "the store does not answer as expected (Bad R"),
        (_error("google.auth", ""), errno.EIO, "the store does not answer as expected (StoreErr"),
        (TimeoutError(), errno.EIO, "the store does not answer as expected (TimeoutError)"),
    ],
)
def test_store_errors_become_os_errors_that_name_the_object(
    bucket, monkeypatch, error: Exception, number: int, reason: str
) -> None:
    """Only a `FileNotFoundError` means that an object is missing."""

    def fail(self, *arguments, **options):
        raise error

    for name in ("info", "ls", "cat_file", "pipe_file", "put_file", "rm_file", "open"):
        monkeypatch.setattr(MemoryFileSystem, name, fail)
    path = bucket / "a.bin"
    calls = (path.stat, lambda: list(path.iterdir()), path.read_bytes, path.open, path.unlink)
    calls = (*calls, lambda: path.write_bytes(b""), lambda: path.take(pathlib.Path("a")))
    if number != errno.ENOENT:
        calls = (*calls, path.is_file, path.is_dir, path.exists)
    for call in calls:
        with pytest.raises(OSError) as caught:
            call()
        assert (caught.value.errno, caught.value.filename) == (number, str(path))
        assert caught.value.strerror.startswith(reason)


def test_other_exceptions_of_a_store_are_not_converted(bucket, monkeypatch) -> None:
    def fail(self, path, **options):
        raise TypeError("a defect")

    monkeypatch.setattr(MemoryFileSystem, "info", fail)
    with pytest.raises(TypeError, match="a defect"):
        (bucket / "a").is_file()


def test_broken_connection_error_names_the_object(bucket, monkeypatch) -> None:
    (bucket / "a.txt").write_bytes(b"a\n" * 10)

    class Broken:
        def read(self, size):
            raise _error("aiohttp", "Connection reset by peer")

        def close(self):
            pass

    monkeypatch.setattr(MemoryFileSystem, "open", lambda self, *a, **k: Broken())
    with pytest.raises(OSError) as caught, (bucket / "a.txt").open() as file:
        file.readline()
    assert caught.value.filename == f"{bucket}/a.txt"
    assert "(Connection reset by peer)" in caught.value.strerror


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_missing_package_is_named_with_its_installation(scheme: str, tmp_path) -> None:
    package = {"gs": "gcsfs", "s3": "s3fs"}[scheme]
    flags = ["--input_dir=.", f"--vocab_file={scheme}://bucket/v", f"--output_dir={tmp_path}/o"]
    code = (
        f"import sys; sys.modules[{package!r}] = None; "
        "from pipeline import create_pretraining_data as c; "
        f"sys.exit(c.main(['x', *{flags!r}]))"
    )
    result = run_python("-c", code, check=False)
    assert result.returncode == 1
    line = result.stderr.splitlines()[-1]
    assert line.startswith(f"error: --vocab_file: {scheme}://: ")
    assert f"package {package}" in line
    assert "pip install '.[remote]'" in line
    assert "Traceback" not in result.stderr


def test_local_paths_import_no_package_of_a_store(tmp_path) -> None:
    (tmp_path / "a.json").write_text("{}")
    code = (
        "import sys; from pipeline.base.location import Location; "
        f"path = Location.parse({str(tmp_path / 'a.json')!r}); "
        "path.read_json(); path.mirror(); path.write_json({}); "
        "print(sorted({'fsspec', 's3fs', 'gcsfs', 'aiohttp', 'botocore'} & set(sys.modules)))"
    )
    assert run_python("-c", code).stdout.strip() == "[]"


@pytest.mark.parametrize("later", [b"a" * 10, b"b" * 3_000_000])
def test_object_that_changes_while_it_is_read_raises_an_error(bucket, later: bytes) -> None:
    """The new object is shorter, so that reading ends early, or has the same length."""
    path = bucket / "text.txt"
    path.write_bytes(b"a" * 3_000_000)
    with path.open("rb") as file:
        file.read(10)
        path.write_bytes(later)
        with pytest.raises(OSError, match="it changed while it was read") as caught:
            file.read()
    assert caught.value.filename == str(path)


def test_files_of_a_killed_upload_are_removed_after_a_day(bucket) -> None:
    old, new = mirror_folder() / "upload-old", mirror_folder() / "upload-new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "shard").touch()
    for path in (old / "shard", old):
        os.utime(path, (0, 0))
    with (bucket / "made").atomic_write() as temporary:
        temporary.write_bytes(b"x")
        assert temporary.parent.parent == mirror_folder()
    assert not temporary.parent.exists() and not old.exists() and (new / "shard").exists()
