"""A local hub server, and programs that download from it with the real client."""

import dataclasses
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.hub_server import Server

PROGRAM = """
import json, sys
from pipeline.base.errors import InputError
from pipeline.base.settings import parse_model
from pipeline.hub import models

try:
    folder = models.download(parse_model(sys.argv[1], "teacher"), sys.argv[2])
    answer = {"folder": str(folder), "setting": folder.setting}
except InputError as error:
    names = ("subject", "expected", "received", "hint", "setting")
    answer = {name: getattr(error, name) for name in names} | {"line": str(error)}
except OSError as error:
    answer = {"errno": error.errno, "filename": error.filename}
print(json.dumps(answer, default=str))
"""


@dataclasses.dataclass
class Client:
    """Runs programs that download from a hub into a separate cache.

    Attributes:
        server: the hub.
        home: the client's folder, which contains its cache.
        folder: working directory of the programs.
        environment: additional environment variables.
    """

    server: Server
    home: pathlib.Path
    folder: pathlib.Path
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Starts a Python process."""
        environment = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "HF_ENDPOINT": self.server.url,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_XET": "1",
            **self.environment,
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [sys.executable, *arguments]
        return subprocess.Popen(command, cwd=self.folder, env=environment, **pipes)

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Runs Python. Returns its exit status, standard output and standard error."""
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=300)
        return process.returncode, output, errors

    def start_download(self, model: str, files: str = "model") -> "subprocess.Popen[str]":
        """Starts a process that downloads a model."""
        return self.start("-c", PROGRAM, model, files)

    def download(self, model: str, files: str = "model") -> dict[str, Any]:
        """Downloads a model. Returns the folder and the setting, or the fields of the error."""
        self.server.requests.clear()
        status, output, errors = self.run("-c", PROGRAM, model, files)
        assert status == 0, errors
        return json.loads(output)

    def fetch(self, model: str, files: str = "model") -> pathlib.Path:
        """Downloads a model and returns its folder."""
        answer = self.download(model, files)
        assert "folder" in answer, answer
        return pathlib.Path(answer["folder"])


@pytest.fixture
def hub() -> Iterator[Server]:
    """An empty hub."""
    server = Server()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def client(hub: Server, tmp_path: pathlib.Path) -> Client:
    """A client with an empty cache and an empty working directory."""
    (tmp_path / "run").mkdir()
    return Client(hub, tmp_path / "home", tmp_path / "run")


@pytest.fixture(scope="session")
def bert_files(teacher_dir: pathlib.Path) -> dict[str, bytes]:
    """The files of a BERT's repository, including files that this project does not read."""
    files = {path.name: path.read_bytes() for path in teacher_dir.iterdir()}
    unread = {
        "README.md": b"# A model\n",
        "flax_model.msgpack": bytes(30_000),
        "onnx/model.onnx": bytes(30_000),
        "tokenizer_config.json": b'{"do_lower_case": true}',
    }
    return {**files, **unread}


@pytest.fixture(scope="session")
def made_files() -> Callable[[int], dict[str, bytes]]:
    """A function that returns the files of a repository whose weights have a given size.

    The weights are arbitrary bytes, because no test reads them as tensors.
    """

    def make(size: int) -> dict[str, bytes]:
        config = {"model_type": "bert", "vocab_size": 5, "hidden_size": 8, "num_hidden_layers": 1}
        config |= {"num_attention_heads": 2, "intermediate_size": 8, "hidden_act": "gelu"}
        config |= {"max_position_embeddings": 8, "type_vocab_size": 2, "initializer_range": 0.02}
        config |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
        weights = bytes(index % 251 for index in range(1021)) * (size // 1021 + 1)
        return {
            "config.json": json.dumps(config).encode(),
            "vocab.txt": b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n",
            "model.safetensors": weights[:size],
        }

    return make
