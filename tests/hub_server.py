"""A model hub with the part of the Hugging Face hub's interface that `huggingface_hub` uses.

See https://huggingface.co/docs/hub/api. It holds models and datasets with branches, tags and
commits in memory. As on the real hub, a large file is redirected to a store that answers requests
for ranges of bytes.
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
# Files of more bytes are in the store.
LARGE = 20_000
_BLOCK = 2**16


@dataclasses.dataclass
class Repository:
    """A model or a dataset on the hub.

    Attributes:
        commits: contents of files by commit and name.
        references: commits by branch or tag.
        token: the only token that may read it; None if anyone may.
        is_gated: whether files need this token, but not their list.
    """

    commits: dict[str, Mapping[str, bytes]]
    references: dict[str, str]
    token: str | None = None
    is_gated: bool = False


@dataclasses.dataclass(frozen=True)
class Request:
    """A received request; range and token are None if the request has none."""

    method: str
    path: str
    range: str | None
    token: str | None


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Prints nothing."""

    def _answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self._send(content)

    def _send(self, content: bytes) -> None:
        """Sends content, with the server's pauses and up to its cut."""
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
        received = Request(self.command, path, self.headers.get("Range"), token)
        self.server.requests.append(received)
        if self.server.status is not None:
            return self._answer(self.server.status)
        if self.server.content is not None:
            return self._answer(200, self.server.content)
        if match := _STORED.fullmatch(path):
            return self._serve(self.server.store[match[1]], ETag=f'"{match[1]}"')
        if match := _INFO.fullmatch(path):
            return self._describe(match[1], match[2] or "main", token)
        if match := _DATASET.fullmatch(path):
            return self._describe_dataset(*match.groups(), token)
        if match := _FILE.fullmatch(path):
            return self._resolve(*match.groups(), token)
        return self._answer(404)

    do_HEAD = do_GET

    def _find(self, name: str, revision: str, token: str | None) -> str | None:
        """Returns a commit of a repository; None if an error was sent as the answer."""
        repository = self.server.repositories.get(name)
        is_hidden = repository is None or (
            repository.token not in (None, token) and not repository.is_gated
        )
        if is_hidden:
            # Like the real hub, which does not reveal whether a private repository exists.
            self._answer(401 if token is None else 404, X_Error_Code="RepoNotFound")
            return None
        commit = repository.references.get(revision, revision)
        if commit not in repository.commits:
            self._answer(404, X_Error_Code="RevisionNotFound")
            return None
        return commit

    def _describe(self, name: str, revision: str, token: str | None) -> None:
        if name in self.server.moved:
            location = self.path.replace(name, self.server.moved[name])
            return self._answer(307, Location=location)
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
        action: str | None,
        revision: str | None,
        folder: str | None,
        token: str | None,
    ) -> None:
        commit = self._find(name, revision or "main", token)
        if commit is None:
            return None
        repository = self.server.repositories[name]
        if action == "auth-check":
            if repository.token in (None, token):
                return self._answer(200)
            return self._answer(403, X_Error_Code="GatedRepo", X_Error_Message="restricted")
        if action == "tree":
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
        requested = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers["Accept_Ranges"] = "bytes"
        if requested is None:
            return self._answer(200, content, **headers)
        begin = int(requested[1])
        if begin >= len(content):
            return self._answer(416)
        end = min(int(requested[2]) + 1 if requested[2] else len(content), len(content))
        content_range = f"bytes {begin}-{end - 1}/{len(content)}"
        return self._answer(206, content[begin:end], Content_Range=content_range, **headers)


class Server(http.server.ThreadingHTTPServer):
    """The hub, which runs from `start` to `stop` at `url`.

    Attributes:
        repositories: repositories by id; a dataset's key is `datasets/` and its id.
        moved: current ids of models by their former ids.
        requests: all received requests.
        etags: wrong ETags by file.
        status: the status of every answer; None for normal answers.
        content: the content of every answer; None for normal answers.
        seconds_per_block: the pause after each 64 KB of a large file.
        bytes_until_cut: the number of bytes of large files until a connection is cut once;
            None for no cut.
        status_after_cut: the value of `status` after the cut.
        bytes_sent: the number of bytes sent.
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
        # Another host, to which clients must not send a token.
        self.store_url = f"http://localhost:{self.server_port}"

    def add(self, name: str, files: Mapping[str, bytes], **settings: object) -> str:
        """Adds a model with one commit on the branch main, and returns the commit."""
        repository = Repository({}, {}, **settings)
        self.repositories[name] = repository
        return self.commit(name, files)

    def commit(self, name: str, files: Mapping[str, bytes], reference: str = "main") -> str:
        """Adds a commit of these files to a branch of a model, and returns the commit."""
        repository = self.repositories[name]
        commit = hashlib.sha1(f"{name} {len(repository.commits)}".encode()).hexdigest()
        repository.commits[commit] = files
        repository.references[reference] = commit
        return commit

    def downloaded(self) -> list[str]:
        """Returns the names of the files whose content or size was requested, each once."""
        matches = [_FILE.fullmatch(request.path) for request in self.requests]
        return list(dict.fromkeys(match[3] for match in matches if match))

    def handle_error(self, request: object, client_address: object) -> None:
        """Prints nothing, because tests kill clients."""

    def start(self) -> None:
        """Starts to answer requests in a thread."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Stops the server and closes its socket."""
        self.shutdown()
        self.server_close()
