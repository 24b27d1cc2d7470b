"""An object store with the part of Google Cloud Storage's JSON interface that gcsfs uses.

See https://cloud.google.com/storage/docs/json_api/v1. It holds objects of any bucket in memory.
An upload becomes an object when its last byte has arrived.
"""

import http.server
import itertools
import json
import re
import threading
import urllib.parse
from typing import Any

_OBJECTS = re.compile(r"/storage/v1/b/([^/]+)/o(?:/(.+))?")
_MEDIA = re.compile(r"/download/storage/v1/b/([^/]+)/o/(.+)")
_UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o")


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
        self.wfile.write(content)

    def _answer_json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def _missing(self) -> None:
        self._answer(404, b'{"error": {"code": 404, "message": "Not Found"}}')

    def _read_request(self) -> tuple[str, dict[str, str], bytes]:
        url = urllib.parse.urlsplit(self.path)
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return url.path, dict(urllib.parse.parse_qsl(url.query)), content

    def do_GET(self) -> None:
        path, query, _ = self._read_request()
        if match := _MEDIA.fullmatch(path):
            return self._download(_key(match))
        match = _OBJECTS.fullmatch(path)
        if match and match[2]:
            stored = self.server.objects.get(_key(match))
            return self._missing() if stored is None else self._answer_json(_describe(stored))
        return self._list(match[1], query) if match else self._missing()

    def _download(self, key: tuple[str, str]) -> None:
        stored = self.server.objects.get(key)
        if stored is None:
            return self._missing()
        content = stored["content"]
        requested = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if requested is None:
            return self._answer(200, content)
        last = len(content) - 1
        begin, end = int(requested[1]), min(int(requested[2] or last), last)
        if begin > end:
            return self._answer(416)
        content_range = f"bytes {begin}-{end}/{len(content)}"
        return self._answer(206, content[begin : end + 1], Content_Range=content_range)

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for (owner, name), stored in sorted(self.server.objects.items()):
            if owner != bucket or not name.startswith(prefix):
                continue
            inner, slash, _ = name[len(prefix) :].partition(delimiter or "\0")
            if slash:
                prefixes.add(prefix + inner + slash)
            else:
                items.append(_describe(stored))
        self._answer_json({"items": items, "prefixes": sorted(prefixes)})

    def do_POST(self) -> None:
        path, query, content = self._read_request()
        match = _UPLOAD.fullmatch(path)
        if query.get("uploadType") == "multipart":
            metadata, rest = content.split(b"\n\n", 2)[1:]
            name = json.loads(metadata.partition(b"\n--==0==")[0])["name"]
            return self._answer_json(self._make(match[1], name, rest.removesuffix(b"\n--==0==--")))
        if "session" not in query:
            session = f"{next(self.server.numbers)}"
            self.server.sessions[session] = bytearray()
            upload = urllib.parse.urlencode({"session": session, "name": query["name"]})
            return self._answer(200, Location=f"{self.server.url}{path}?{upload}")
        received = self.server.sessions[query["session"]]
        received += content
        if len(received) < int(self.headers["Content-Range"].rpartition("/")[2]):
            return self._answer(308, Range=f"bytes=0-{len(received) - 1}")
        return self._answer_json(self._make(match[1], query["name"], bytes(received)))

    def _make(self, bucket: str, name: str, content: bytes) -> dict[str, str]:
        version = str(next(self.server.numbers))
        stored = {"bucket": bucket, "name": name, "content": content, "version": version}
        self.server.objects[bucket, name] = stored
        return _describe(stored)

    def do_DELETE(self) -> None:
        match = _OBJECTS.fullmatch(self._read_request()[0])
        removed = match and self.server.objects.pop(_key(match), None)
        return self._answer(204) if removed else self._missing()


def _key(match: re.Match[str]) -> tuple[str, str]:
    return match[1], urllib.parse.unquote(match[2])


def _describe(stored: dict[str, Any]) -> dict[str, str]:
    return {
        "kind": "storage#object",
        "bucket": stored["bucket"],
        "name": stored["name"],
        "size": str(len(stored["content"])),
        "etag": stored["version"],
        "generation": stored["version"],
    }


class Server(http.server.ThreadingHTTPServer):
    """The store, which runs from `start` to `stop` at `url`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.sessions: dict[str, bytearray] = {}
        self.numbers = itertools.count(1)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Prints nothing: gcsfs sends two requests at once, and drops the slower answer."""

    def start(self) -> None:
        """Starts to answer requests in a thread."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Stops the server and closes its socket."""
        self.shutdown()
        self.server_close()
