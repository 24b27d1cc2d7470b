"""A model hub that speaks as much of the Hugging Face hub's interface as `huggingface_hub` asks.

https://huggingface.co/docs/hub/api: models and datasets with branches, tags and commits, in
memory. As on the real hub, a large file is redirected to a store that answers requests for a
range of bytes.
"""

import dataclasses
import hashlib
import http.server
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Mapping

_INFO = re.compile(r"/api/models/(.+?)(?:/revision/(.+))?")
_DATASET = re.compile(
    r"/api/(datasets/[^/]+/[^/]+)(?:/(revision|tree|auth-check)(?:/([^/]+)(?:/(.+))?)?)?"
)
_FILE = re.compile(r"/(.+?)/resolve/([^/]+)/(.+)")
_STORED = re.compile(r"/store/([0-9a-f]{64})")
# Larger files lie in the store.
LARGE = 20_000
_BLOCK = 2**16


@dataclasses.dataclass
class Repository:
    """A model or a dataset on the hub.

    Attributes:
        commits: contents of files by name, by commit.
        references: commits by branch or tag.
        token: the only one that may read it; None where anyone may.
        is_gated: whether files, but not their list, need that token.
    """

    commits: dict[str, Mapping[str, bytes]]
    references: dict[str, str]
    token: str | None = None
    is_gated: bool = False


@dataclasses.dataclass(frozen=True)
class Request:
    """What was asked: method and path, the range of bytes and the token; None without."""

    method: str
    path: str
    range: str | None
    token: str | None


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""

    def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self._send(content)

    def _send(self, content: bytes) -> None:
        """Sends content, as slowly and as far as the server is told to."""
        server = self.server
        for begin in range(0, len(content), _BLOCK):
            block = content[begin : begin + _BLOCK]
            if len(content) > LARGE and server.bytes_until_cut is not None:
                block = block[: server.bytes_until_cut]
                server.bytes_until_cut -= len(block)
                if not block:
                    server.bytes_until_cut, server.status = None, server.status_after_cut
                    self.close_connection = True
                    self.wfile.flush()
                    self.connection.shutdown(2)
                    return
            self.wfile.write(block)
            server.bytes_sent += len(block)
            if len(content) > LARGE:
                time.sleep(server.seconds_per_block)

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        asked = Request(self.command, path, self.headers.get("Range"), token)
        self.server.requests.append(asked)
        if self.server.status is not None:
            return self._answer(self.server.status)
        if self.server.content is not None:
            return self._answer(200, self.server.content)
        if found := _STORED.fullmatch(path):
            return self._serve(self.server.store[found[1]], ETag=f'"{found[1]}"')
        if found := _INFO.fullmatch(path):
            return self._describe(found[1], found[2] or "main", token)
        if found := _DATASET.fullmatch(path):
            return self._describe_dataset(*found.groups(), token)
        if found := _FILE.fullmatch(path):
            return self._resolve(*found.groups(), token)
        return self._answer(404)

    do_HEAD = do_GET

    def _find(self, name: str, revision: str, token: str | None) -> str | None:
        """Returns a commit of a repository; None where the answer has been refused."""
        repository = self.server.repositories.get(name)
        is_hidden = repository is None or (
            repository.token not in (None, token) and not repository.is_gated
        )
        if is_hidden:
            # As the real one, which does not say whether there is such a private one.
            self._answer(401 if token is None else 404, X_Error_Code="RepoNotFound")
            return None
        commit = repository.references.get(revision, revision)
        if commit not in repository.commits:
            self._answer(404, X_Error_Code="RevisionNotFound")
            return None
        return commit

    def _describe(self, name: str, revision: str, token: str | None) -> None:
        if name in self.server.moved:
            place = self.path.replace(name, self.server.moved[name])
            return self._answer(307, Location=place)
        commit = self._find(name, revision, token)
        if commit is None:
            return None
        files = self.server.repositories[name].commits[commit]
        value = {
            "_id": "0",
            "id": name,
            "modelId": name,
            "sha": commit,
            "siblings": [{"rfilename": file} for file in files],
        }
        return self._answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def _describe_dataset(
        self,
        name: str,
        what: str | None,
        revision: str | None,
        folder: str | None,
        token: str | None,
    ) -> None:
        commit = self._find(name, revision or "main", token)
        if commit is None:
            return None
        repository = self.server.repositories[name]
        if what == "auth-check":
            if repository.token in (None, token):
                return self._answer(200)
            return self._answer(403, X_Error_Code="GatedRepo", X_Error_Message="restricted")
        if what == "tree":
            value = self._tree(repository.commits[commit], f"{folder}/" if folder else "")
        else:
            value = {
                "_id": "0",
                "id": name.removeprefix("datasets/"),
                "sha": commit,
                "siblings": [],
            }
        return self._answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def _tree(self, files: Mapping[str, bytes], prefix: str) -> list[dict[str, object]]:
        """Returns the files and folders below a folder, or directly in it."""
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        recursive = query.get("recursive", ["false"])[0].lower() == "true"
        below = [name for name in files if name.startswith(prefix)]
        folders = {
            "/".join(name.split("/")[:depth])
            for name in below
            for depth in range(1, name.count("/") + 1)
        }
        entries = [{"type": "directory", "path": path, "oid": "0", "size": 0} for path in folders]
        entries += [
            {"type": "file", "path": name, "oid": "0", "size": len(files[name])} for name in below
        ]
        entries = [entry for entry in entries if entry["path"].startswith(prefix)]
        if recursive:
            return entries
        return [entry for entry in entries if "/" not in entry["path"].removeprefix(prefix)]

    def _resolve(self, name: str, revision: str, file: str, token: str | None) -> None:
        if name in self.server.moved:
            return self._answer(307, Location=self.path.replace(name, self.server.moved[name]))
        commit = self._find(name, revision, token)
        if commit is None:
            return None
        repository = self.server.repositories[name]
        if repository.token not in (None, token):
            status = 401 if token is None else 403
            return self._answer(status, X_Error_Code="GatedRepo", X_Error_Message="restricted")
        content = repository.commits[commit].get(file)
        if content is None:
            return self._answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        if len(content) > LARGE:
            digest = self.server.etags.get(file) or hashlib.sha256(content).hexdigest()
            self.server.store[digest] = content
            return self._answer(
                302,
                Location=f"{self.server.store_url}/store/{digest}",
                X_Repo_Commit=commit,
                X_Linked_ETag=f'"{digest}"',
                X_Linked_Size=str(len(content)),
            )
        digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        tag = self.server.etags.get(file) or digest
        return self._serve(content, ETag=f'"{tag}"', X_Repo_Commit=commit)

    def _serve(self, content: bytes, **headers: str) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers["Accept_Ranges"] = "bytes"
        if found is None:
            return self._answer(200, content, **headers)
        begin = int(found[1])
        if begin >= len(content):
            return self._answer(416)
        end = min(int(found[2]) + 1 if found[2] else len(content), len(content))
        told = f"bytes {begin}-{end - 1}/{len(content)}"
        return self._answer(206, content[begin:end], Content_Range=told, **headers)


class Server(http.server.ThreadingHTTPServer):
    """The hub, from `start` to `stop`; `url` is where.

    Attributes:
        repositories: by id; of a dataset `datasets/` and the id.
        moved: today's ids of models by their former ones.
        requests: all that was asked.
        etags: by file, tags that differ from what they should be.
        status: the answer to everything; None for the usual.
        content: likewise.
        seconds_per_block: pauses between 64 KB of a large file.
        bytes_until_cut: of large files, until a connection is cut once; None for never.
        status_after_cut: what `status` is from then on.
        bytes_sent: of all files.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.moved: dict[str, str] = {}
        self.requests: list[Request] = []
        self.etags: dict[str, str] = {}
        self.store: dict[str, bytes] = {}
        self.status: int | None = None
        self.content: bytes | None = None
        self.seconds_per_block = 0.0
        self.bytes_until_cut: int | None = None
        self.status_after_cut: int | None = None
        self.bytes_sent = 0
        self.url = f"http://127.0.0.1:{self.server_port}"
        # Another host, to which nobody sends a token.
        self.store_url = f"http://localhost:{self.server_port}"

    def add(self, name: str, files: Mapping[str, bytes], **settings: object) -> str:
        """Adds a model of one commit, the branch main, and returns that commit."""
        repository = Repository({}, {}, **settings)
        self.repositories[name] = repository
        return self.commit(name, files)

    def commit(self, name: str, files: Mapping[str, bytes], reference: str = "main") -> str:
        """Adds a commit of these files to a model, the newest of a branch."""
        repository = self.repositories[name]
        commit = hashlib.sha1(f"{name} {len(repository.commits)}".encode()).hexdigest()
        repository.commits[commit] = files
        repository.references[reference] = commit
        return commit

    def downloaded(self) -> list[str]:
        """Returns the names of the files of which content or size was asked, each once."""
        found = [_FILE.fullmatch(request.path) for request in self.requests]
        return list(dict.fromkeys(match[3] for match in found if match))

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing: clients are killed."""

    def start(self) -> None:
        """Answers from now on."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Ends all."""
        self.shutdown()
        self.server_close()
