"""A store that speaks as much of Google Cloud Storage's JSON interface as gcsfs asks for.

https://cloud.google.com/storage/docs/json_api/v1: objects of any bucket, in memory; an
upload becomes an object when its last byte has come.
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
        """Says nothing."""

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

    def _asked(self) -> tuple[str, dict[str, str], bytes]:
        url = urllib.parse.urlsplit(self.path)
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return url.path, dict(urllib.parse.parse_qsl(url.query)), content

    def do_GET(self) -> None:
        path, query, _ = self._asked()
        if found := _MEDIA.fullmatch(path):
            return self._download(_key(found))
        found = _OBJECTS.fullmatch(path)
        if found and found[2]:
            made = self.server.objects.get(_key(found))
            return self._missing() if made is None else self._answer_json(_describe(made))
        return self._list(found[1], query) if found else self._missing()

    def _download(self, key: tuple[str, str]) -> None:
        made = self.server.objects.get(key)
        if made is None:
            return self._missing()
        content = made["content"]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self._answer(200, content)
        begin, end = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
        if begin > end:
            return self._answer(416)
        told = f"bytes {begin}-{end}/{len(content)}"
        return self._answer(206, content[begin : end + 1], Content_Range=told)

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for (place, name), made in sorted(self.server.objects.items()):
            if place != bucket or not name.startswith(prefix):
                continue
            inner, slash, _ = name[len(prefix) :].partition(delimiter or "\0")
            if slash:
                prefixes.add(prefix + inner + slash)
            else:
                items.append(_describe(made))
        self._answer_json({"items": items, "prefixes": sorted(prefixes)})

    def do_POST(self) -> None:
        path, query, content = self._asked()
        found = _UPLOAD.fullmatch(path)
        if query.get("uploadType") == "multipart":
            about, rest = content.split(b"\n\n", 2)[1:]
            name = json.loads(about.partition(b"\n--==0==")[0])["name"]
            return self._answer_json(self._make(found[1], name, rest.removesuffix(b"\n--==0==--")))
        if "session" not in query:
            session = f"{next(self.server.numbers)}"
            self.server.sessions[session] = bytearray()
            place = urllib.parse.urlencode({"session": session, "name": query["name"]})
            return self._answer(200, Location=f"{self.server.url}{path}?{place}")
        parts = self.server.sessions[query["session"]]
        parts += content
        if len(parts) < int(self.headers["Content-Range"].rpartition("/")[2]):
            return self._answer(308, Range=f"bytes=0-{len(parts) - 1}")
        return self._answer_json(self._make(found[1], query["name"], bytes(parts)))

    def _make(self, bucket: str, name: str, content: bytes) -> dict[str, str]:
        version = str(next(self.server.numbers))
        made = {"bucket": bucket, "name": name, "content": content, "version": version}
        self.server.objects[bucket, name] = made
        return _describe(made)

    def do_DELETE(self) -> None:
        found = _OBJECTS.fullmatch(self._asked()[0])
        there = found and self.server.objects.pop(_key(found), None)
        return self._answer(204) if there else self._missing()


def _key(found: re.Match[str]) -> tuple[str, str]:
    return found[1], urllib.parse.unquote(found[2])


def _describe(made: dict[str, Any]) -> dict[str, str]:
    return {
        "kind": "storage#object",
        "bucket": made["bucket"],
        "name": made["name"],
        "size": str(len(made["content"])),
        "etag": made["version"],
        "generation": made["version"],
    }


class Server(http.server.ThreadingHTTPServer):
    """The store, from `start` to `stop`; `url` is where."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.sessions: dict[str, bytearray] = {}
        self.numbers = itertools.count(1)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing: gcsfs asks twice at once, and hangs up on the slower answer."""

    def start(self) -> None:
        """Answers from now on."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Ends all."""
        self.shutdown()
        self.server_close()
