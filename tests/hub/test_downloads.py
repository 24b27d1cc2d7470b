"""Tests of complete and interrupted downloads from a local hub, with the real client."""

import errno
import hashlib
import json
import pathlib
import signal
import time

import pytest

from tests.conftest import read_folder
from tests.hub.conftest import PROGRAM
from tests.hub_server import LARGE

WEIGHTS = "model.safetensors"


def test_only_the_files_that_a_model_needs_are_downloaded(client, hub, bert_files) -> None:
    commit = hub.add("org/name", {**bert_files, "pytorch_model.bin": bytes(30_000)})
    folder = client.fetch("org/name")
    needed = {"config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"}
    assert set(hub.downloaded()) == needed
    assert read_folder(folder) == {name: bert_files[name] for name in needed}
    assert folder.parts[-3:] == ("models--org--name", "snapshots", commit)
    # A second call downloads no file.
    assert client.fetch("org/name") == folder
    assert hub.downloaded() == []


def test_only_the_files_that_a_tokenizer_needs_are_downloaded(client, hub, bert_files) -> None:
    hub.add("org/name", {**bert_files, "tokenizer.json": b"{}"})
    client.fetch("org/name", "tokenizer")
    needed = {"config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json"}
    assert set(hub.downloaded()) == needed


def test_only_the_preferred_format_of_weights_is_downloaded(client, hub, made_files) -> None:
    files = made_files(10)
    for name in ("pytorch_model.bin", "tf_model.h5", "model.safetensors"):
        files[name] = b"weights"
    for name in ("model.safetensors", "tf_model.h5", "pytorch_model.bin"):
        hub.add(f"org/{len(files)}", files)
        client.fetch(f"org/{len(files)}")
        assert set(hub.downloaded()) == {"config.json", "vocab.txt", name}
        files = {other: content for other, content in files.items() if other != name}


def test_only_the_shards_in_the_index_are_downloaded(client, hub, made_files) -> None:
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"weight_map": {"a": names[1], "b": names[0], "c": names[1]}}
    files = made_files(10) | {name: name.encode() for name in [*names, "model-9.safetensors"]}
    del files[WEIGHTS]
    hub.add("org/name", {**files, f"{WEIGHTS}.index.json": json.dumps(index).encode()})
    folder = client.fetch("org/name")
    present = {path.name for path in folder.iterdir()}
    assert present == {"config.json", "vocab.txt", f"{WEIGHTS}.index.json", *names}


@pytest.mark.long
def test_revision_may_be_a_branch_a_tag_or_a_commit(client, hub, made_files) -> None:
    first = hub.add("org/name", made_files(11))
    second = hub.commit("org/name", made_files(12), "refs/pr/1")
    third = hub.commit("org/name", made_files(13))
    hub.repositories["org/name"].references["v1.0"] = first
    commits = {
        "org/name": third,
        "org/name@v1.0": first,
        "hf://org/name@refs/pr/1": second,
        f"{hub.url}/org/name/tree/{first}": first,
    }
    for name, commit in commits.items():
        folder = client.fetch(name)
        assert folder.name == commit
        assert (folder / WEIGHTS).read_bytes() == (
            hub.repositories["org/name"].commits[commit][WEIGHTS]
        )
    # They are found in the cache without access to the hub.
    client.environment["HF_HUB_OFFLINE"] = "1"
    assert {name: client.fetch(name).name for name in commits} == commits
    assert hub.requests == []


def test_former_name_of_a_model_is_redirected(client, hub, made_files) -> None:
    commit = hub.add("google-bert/bert-base-uncased", made_files(10))
    hub.moved["bert-base-uncased"] = "google-bert/bert-base-uncased"
    assert client.fetch("bert-base-uncased").name == commit


def test_existing_directory_takes_precedence_over_an_id(client, hub, made_files) -> None:
    hub.add("org/name", made_files(10))
    (client.folder / "org" / "name").mkdir(parents=True)
    assert client.fetch("org/name") == pathlib.Path("org/name")
    assert hub.requests == []


def test_path_that_does_not_exist_causes_no_request(client, hub) -> None:
    for text in ("/org/name", "./org/name", "org/name/", "a/b/c", "teacher", "data/vocab.txt"):
        assert client.fetch(text) == pathlib.Path(text)
        assert hub.requests == []


def test_token_is_sent_only_to_the_hub(client, hub, made_files) -> None:
    hub.add("org/private", made_files(2 * LARGE), token="secret")
    client.environment["HF_TOKEN"] = "secret"
    client.fetch("org/private")
    to_hub = [request for request in hub.requests if "org/private" in request.path]
    to_store = [request for request in hub.requests if request.path.startswith("/store/")]
    assert to_hub and {request.token for request in to_hub} == {"secret"}
    assert to_store and {request.token for request in to_store} == {None}


def test_error_for_a_missing_model_names_its_setting(client, hub) -> None:
    error = client.download("org/name")
    assert error["subject"] == "org/name" and error["setting"] == "teacher"
    assert hub.url in error["expected"] and "HF_TOKEN" in error["hint"]
    assert "\n" not in error["line"]


def test_private_model_without_a_token_is_reported_as_missing(client, hub, made_files) -> None:
    hub.add("org/name", made_files(10), token="secret")
    error = client.download("org/name")
    assert error["received"] == "neither" and "HF_TOKEN" in error["hint"]


def test_error_for_a_missing_revision_names_it(client, hub, made_files) -> None:
    hub.add("org/name", made_files(10))
    error = client.download("org/name@v9")
    assert error["received"] == "v9" and "org/name" in error["expected"]


@pytest.mark.parametrize("token", [None, "of another user"])
def test_error_for_a_gated_model_names_its_page(client, hub, made_files, token) -> None:
    hub.add("org/name", made_files(10), token="secret", is_gated=True)
    if token is not None:
        client.environment["HF_TOKEN"] = token
    error = client.download("org/name")
    assert "gated" in error["expected"]
    assert f"{hub.url}/org/name" in error["hint"] and "HF_TOKEN" in error["hint"]
    assert "\n" not in error["line"]


@pytest.mark.parametrize(
    ("status", "word"), [(401, "token"), (403, "permission"), (404, "response")]
)
def test_error_for_an_http_status_states_its_meaning(client, hub, status: int, word: str) -> None:
    hub.status = status
    error = client.download("org/name")
    assert word in error["expected"] and hub.url in error["expected"]


def test_cache_is_used_offline_and_named_if_the_model_is_missing(client, hub, made_files) -> None:
    hub.add("org/name", made_files(10))
    client.environment["HF_HUB_OFFLINE"] = "1"
    error = client.download("org/name")
    assert str(client.home) in error["expected"] and "HF_HUB_OFFLINE" in error["hint"]
    del client.environment["HF_HUB_OFFLINE"]
    folder = client.fetch("org/name")
    client.environment["HF_HUB_OFFLINE"] = "1"
    assert client.fetch("org/name") == folder
    assert hub.requests == []


def test_incomplete_model_in_the_cache_is_refused_offline(client, hub, made_files) -> None:
    hub.add("org/name", made_files(10))
    client.fetch("org/name", "tokenizer")
    client.environment["HF_HUB_OFFLINE"] = "1"
    client.fetch("org/name", "tokenizer")
    assert "HF_HUB_OFFLINE" in client.download("org/name")["hint"]


def test_cache_is_used_if_the_hub_does_not_answer(client, hub, made_files) -> None:
    hub.add("org/name", made_files(10))
    folder = client.fetch("org/name")
    hub.status = 503
    assert client.fetch("org/name") == folder
    assert "503" in client.download("org/other")["received"]
    hub.stop()
    assert client.fetch("org/name") == folder
    error = client.download("org/other")
    assert hub.url in error["expected"] and "HF_ENDPOINT" in error["hint"]
    # The text may be a misspelled path. A URL of the hub is none if the directory exists.
    assert "no such directory" in error["received"]
    (client.folder / "org" / "other").mkdir(parents=True)
    assert "directory" not in client.download("hf://org/other")["received"]


def test_error_for_missing_weights_lists_the_other_formats(client, hub, made_files) -> None:
    files = made_files(10)
    del files[WEIGHTS]
    hub.add("org/name", {**files, "flax_model.msgpack": b"x", "onnx/model.onnx": b"x"})
    error = client.download("org/name")
    assert WEIGHTS in error["expected"]
    assert "flax_model.msgpack" in error["received"] and "onnx/model.onnx" in error["received"]
    hub.add("org/gguf", {"model.gguf": b"x", "README.md": b"x"})
    error = client.download("org/gguf")
    assert error["expected"] == "config.json" and "model.gguf" in error["received"]
    assert "vocab.txt" in client.download("org/gguf", "tokenizer")["expected"]


def test_unknown_family_is_refused_before_its_weights_are_downloaded(
    client, hub, made_files
) -> None:
    hub.add("org/name", {**made_files(10), "config.json": b'{"model_type": "unheard-of"}'})
    assert "unheard-of" in client.download("org/name")["line"]
    assert hub.downloaded() == ["config.json"]


def test_broken_download_continues_in_the_same_process(client, hub, made_files) -> None:
    files = made_files(25 * 2**20)
    hub.add("org/name", files)
    hub.bytes_until_cut = 21 * 2**20
    folder = client.fetch("org/name")
    assert (folder / WEIGHTS).read_bytes() == files[WEIGHTS]
    # The client writes 10 MB at a time.
    assert {request.range for request in hub.requests} == {None, f"bytes={20 * 2**20}-"}


def test_failed_download_is_resumed_by_the_next_process(client, hub, made_files) -> None:
    files = made_files(25 * 2**20)
    hub.add("org/name", files)
    hub.bytes_until_cut, hub.status_after_cut = 21 * 2**20, 503
    error = client.download("org/name")
    assert hub.url in error["expected"] and "\n" not in error["line"]
    hub.status = None
    folder = client.fetch("org/name")
    assert (folder / WEIGHTS).read_bytes() == files[WEIGHTS]
    assert {request.range for request in hub.requests} == {None, f"bytes={20 * 2**20}-"}


def test_killed_download_is_resumed_at_the_last_written_byte(client, hub, made_files) -> None:
    files = made_files(25 * 2**20)
    hub.add("org/name", files)
    hub.seconds_per_block = 0.005
    process = client.start_download("org/name")
    while not any(path.stat().st_size for path in client.home.rglob("*.incomplete")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (partial,) = client.home.rglob("*.incomplete")
    begin = partial.stat().st_size
    assert 0 < begin < len(files[WEIGHTS])
    hub.seconds_per_block, hub.bytes_sent = 0.0, 0
    folder = client.fetch("org/name")
    assert (folder / WEIGHTS).read_bytes() == files[WEIGHTS]
    assert {request.range for request in hub.requests} == {None, f"bytes={begin}-"}
    # The other bytes are those of the list of files.
    assert hub.bytes_sent - (len(files[WEIGHTS]) - begin) < 2_000
    assert not list(client.home.rglob("*.incomplete"))


@pytest.mark.parametrize("begin", [0, 100_000, 300_000, 300_007])
def test_temporary_file_of_a_killed_client_is_completed(
    client, hub, made_files, begin: int
) -> None:
    files = made_files(300_000)
    hub.add("org/name", files)
    digest = hashlib.sha256(files[WEIGHTS]).hexdigest()
    folder = client.fetch("org/name", "tokenizer")
    partial = folder.parents[1] / "blobs" / f"{digest}.0123abcd.incomplete"
    partial.write_bytes((files[WEIGHTS] + b"surplus")[:begin])
    bytes_before = hub.bytes_sent
    assert client.fetch("org/name") == folder
    assert (folder / WEIGHTS).read_bytes() == files[WEIGHTS]
    assert hub.bytes_sent - bytes_before <= max(0, 300_000 - begin) + 1_000
    assert not list(client.home.rglob("*.incomplete"))


def test_temporary_file_with_other_content_is_downloaded_again(client, hub, made_files) -> None:
    files = made_files(300_000)
    hub.add("org/name", files)
    digest = hashlib.sha256(files[WEIGHTS]).hexdigest()
    folder = client.fetch("org/name", "tokenizer")
    (folder.parents[1] / "blobs" / f"{digest}.0123abcd.incomplete").write_bytes(bytes(100_000))
    assert client.fetch("org/name") == folder
    assert (folder / WEIGHTS).read_bytes() == files[WEIGHTS]


def test_full_disk_error_names_the_cache(client, hub, made_files) -> None:
    hub.add("org/name", made_files(300_000))
    program = (
        "import resource, signal, runpy, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "sys.argv = sys.argv[1:]; "
    )
    status, output, errors = client.run(
        "-c", program + f"exec({PROGRAM!r})", "-", "org/name", "model"
    )
    assert status == 0, errors
    error = json.loads(output)
    assert error["errno"] == errno.EFBIG and str(client.home) in error["filename"]


@pytest.mark.parametrize("name", ["../../evil", "/evil", "..\\evil", "a/../../evil"])
def test_file_names_from_the_hub_cannot_leave_the_cache(client, hub, made_files, name: str) -> None:
    files = made_files(10)
    index = json.dumps({"weight_map": {"a": name}}).encode()
    del files[WEIGHTS]
    hub.add("org/name", {**files, f"{WEIGHTS}.index.json": index, name: b"evil"})
    error = client.download("org/name")
    assert "evil" in error["line"]
    assert name not in hub.downloaded()
    assert not list(client.home.parent.rglob("*evil*"))


def test_etags_from_the_hub_cannot_leave_the_cache(client, hub, made_files) -> None:
    hub.add("org/name", made_files(10))
    hub.etags["config.json"] = "../../../../evil"
    client.download("org/name")
    assert not list(client.home.parent.rglob("*evil*"))


@pytest.mark.parametrize("content", [b"<html>", b"[]", b"{}", b'{"sha": 1}', b'{"siblings": [1]}'])
def test_malformed_answers_of_a_hub_are_refused(client, hub, content: bytes) -> None:
    hub.content = content
    error = client.download("org/name")
    assert hub.url in error["expected"] and "HF_ENDPOINT" in error["hint"]
    assert "\n" not in error["line"]


def test_malformed_commit_from_the_hub_is_refused(client, hub, made_files) -> None:
    hub.add("org/name", made_files(10))
    repository = hub.repositories["org/name"]
    repository.references["main"] = "../../evil"
    repository.commits["../../evil"] = made_files(10)
    error = client.download("org/name")
    assert "evil" in error["received"]
    assert not list(client.home.parent.rglob("*evil*"))
