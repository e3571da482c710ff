"""An HTTP server for tests that misbehaves when it is told to, over a directory or in front of another server.

Rule: without a rule it is a plain, correct static server (GET, HEAD, one range, ETag, no listing); a rule spoils the
requests that it matches and nothing else, and every request is counted.

    with FaultProxy(directory) as server:
        server.add("reset", match="packs/", times=2, after=1000)
        ... HttpStore(server.url) ...
        assert server.requests("packs/") == 3
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from modelfs.errors import Forbidden, ModelfsError, ObjectMissing, SwapLost
from modelfs.stores.file_store import FileStore
from modelfs.units import Deadline, GiB

KINDS = frozenset({
    "reset",         # connection reset after `after` bytes of the body
    "truncate",      # closed after `after` bytes, though Content-Length says more
    "stall",         # `after` bytes, then nothing
    "drip",          # `piece` bytes every `interval_s`
    "drip_head",     # the head itself, `piece` bytes every `interval_s`
    "hang",          # not even a head
    "ignore_range",  # 200 and the whole object
    "wrong_range",   # 206 with another range than the one asked for
    "short_range",   # 206 with Content-Range as asked and a Content-Length one less
    "status",        # `code`, with Retry-After: `retry_after`
    "flip",          # one bit of the body's byte `offset`
    "redirect",      # 302 to `target` + path
    "encoding",      # Content-Encoding: gzip
    "lost_answer",   # the request is carried out; its answer is a reset
    "unsized",       # chunked, without Content-Length
    "huge_head",     # a header of 100 KB
    "slow_upload",   # `piece` bytes of the request's body are taken every `interval_s`
    "stall_upload",  # `after` bytes of it are taken, and no more
    "break_upload",  # reset once `after` bytes of it were taken
})


@dataclass(slots=True)
class Rule:
    kind: str
    match: str
    times: int | None
    methods: tuple[str, ...]
    after: int = 0
    piece: int = 1
    interval_s: float = 0.05
    code: int = 503
    retry_after: str | None = None
    offset: int = 0
    target: str = ""
    hits: int = 0


@dataclass(slots=True)
class Seen:
    """One request. sent: bytes of the body handed to the socket."""

    method: str
    path: str
    headers: dict[str, str]
    sent: int = 0


@dataclass(frozen=True, slots=True)
class _Reply:
    """What a correct server would answer."""

    status: int
    headers: dict[str, str]
    body: bytes


class FaultProxy:
    """directory: served; writable: with PUT and DELETE, conditions included. upstream: a URL to stand in front of."""

    def __init__(self, directory: Path | None = None, *, upstream: str | None = None, writable: bool = False,
                 tls: ssl.SSLContext | None = None) -> None:
        assert (directory is None) != (upstream is None)
        self.store = FileStore(directory) if directory else None
        self.upstream = urlsplit(upstream) if upstream else None
        self.writable = writable
        self.tls = tls
        self.release = threading.Event()  # lets what stalls go
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._seen: list[Seen] = []
        self._connections: set[socket.socket] = set()
        self._port = 0
        self._server: _Server | None = None
        self.up()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self._port}"

    def up(self) -> None:
        """Listen, again on the same port."""
        self.release = threading.Event()
        self._server = _Server(("127.0.0.1", self._port), _Handler)
        self._server.owner = self
        if self.tls:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        """Refuse connections and cut those that are open."""
        self.release.set()
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            _reset(connection)

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def add(self, kind: str, match: str = "", *, times: int | None = None,
            methods: tuple[str, ...] = ("GET", "HEAD", "PUT", "DELETE"), **options: object) -> Rule:
        """Spoil requests whose path has match (a regular expression) in it; the first rule that fits is taken."""
        assert kind in KINDS, kind
        rule = Rule(kind, match, times, methods, **options)  # type: ignore[arg-type]
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Forget the rules, and let go what stalls."""
        with self._lock:
            self._rules.clear()
        self.release.set()
        self.release = threading.Event()

    def seen(self, match: str = "") -> list[Seen]:
        with self._lock:
            return [seen for seen in self._seen if re.search(match, seen.path)]

    def requests(self, match: str = "") -> int:
        return len(self.seen(match))

    def bytes_sent(self, match: str = "") -> int:
        return sum(seen.sent for seen in self.seen(match))

    def forget(self) -> None:
        """Count from nothing again."""
        with self._lock:
            self._seen.clear()

    def note(self, seen: Seen) -> Rule | None:
        """Count a request; the rule that spoils it."""
        with self._lock:
            self._seen.append(seen)
            for rule in self._rules:
                if seen.method in rule.methods and re.search(rule.match, seen.path) and rule.times != rule.hits:
                    rule.hits += 1
                    return rule
        return None

    def connected(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.add(connection)

    def disconnected(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256
    owner: FaultProxy

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections that break are what this server is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server.owner.connected(self.connection)

    def finish(self) -> None:
        self.server.owner.disconnected(self.connection)
        with suppress(OSError):
            super().finish()

    def handle_any(self) -> None:
        try:
            self._handle()
        except OSError:
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = do_PATCH = handle_any

    def _handle(self) -> None:
        owner = self.server.owner
        seen = Seen(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
        rule = owner.note(seen)
        kind = rule.kind if rule else ""
        body = self._body(int(self.headers.get("Content-Length") or 0), rule)
        if kind == "hang":
            owner.release.wait()
            return self._cut()
        if kind == "status":
            assert rule
            asked = {"Retry-After": rule.retry_after} if rule.retry_after is not None else {}
            return self._send(_Reply(rule.code, asked, f"{rule.code}\n".encode()), None, seen)
        if kind == "redirect":
            assert rule
            return self._send(_Reply(302, {"Location": rule.target + self.path}, b"elsewhere\n"), None, seen)
        if kind in ("ignore_range", "wrong_range"):
            whole = self._reply(body, seen, without_range=True)
            reply = whole if kind == "ignore_range" else _shifted(whole, seen.headers.get("range", ""))
        else:
            reply = self._reply(body, seen)
        if kind == "lost_answer":
            return self._cut()
        self._send(reply, rule, seen)

    def _body(self, size: int, rule: Rule | None) -> bytes:
        """Raises ConnectionError where the rule is to take no more of it."""
        if rule is None or not rule.kind.endswith("_upload"):
            return self.rfile.read(size)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # the kernel takes for us, too
        if rule.kind == "slow_upload":
            release = self.server.owner.release
            return b"".join(self.rfile.read(min(rule.piece, size - start)) for start in range(0, size, rule.piece)
                            if not release.wait(rule.interval_s))
        self.rfile.read(min(rule.after, size))
        if rule.kind == "stall_upload":
            self.server.owner.release.wait()
        self._cut()
        raise ConnectionAbortedError("no more is taken")

    def _reply(self, body: bytes, seen: Seen, without_range: bool = False) -> _Reply:
        headers = {name: value for name, value in seen.headers.items() if not (without_range and name == "range")}
        owner = self.server.owner
        if owner.upstream:
            return _from_upstream(owner.upstream.netloc, owner.upstream.path, self.command, self.path, headers, body)
        assert owner.store
        try:
            if self.command in ("GET", "HEAD"):
                return _read(owner.store, self.path[1:], headers)
            return _write(owner.store, self.command, self.path[1:], headers, body) if owner.writable else _error(405)
        except ObjectMissing:
            return _error(404)
        except SwapLost:
            return _error(412)
        except Forbidden:
            return _error(403)
        except ModelfsError:
            return _error(404)

    def _send(self, reply: _Reply, rule: Rule | None, seen: Seen) -> None:
        kind = rule.kind if rule else ""
        body = bytearray(b"" if self.command == "HEAD" or reply.status == 304 else reply.body)
        headers = dict(reply.headers)
        length = len(reply.body) - (1 if kind == "short_range" else 0)
        if kind == "unsized" or "Transfer-Encoding" in headers:
            headers["Transfer-Encoding"] = "chunked"
            body = bytearray(b"".join(b"%x\r\n%s\r\n" % (len(body[i:i + 1000]), body[i:i + 1000])
                                      for i in range(0, len(body), 1000)) + b"0\r\n\r\n")
        elif reply.status != 304:
            headers["Content-Length"] = str(length)
        if kind == "encoding":
            headers["Content-Encoding"] = "gzip"
        if kind == "huge_head":
            headers["X-Huge"] = "x" * 100_000
        if rule and kind == "flip" and rule.offset < len(body):
            body[rule.offset] ^= 8
        lines = [f"HTTP/1.1 {reply.status} {http.client.responses.get(reply.status, '')}"]
        head = ("\r\n".join(lines + [f"{n}: {v}" for n, v in headers.items()]) + "\r\n\r\n").encode("latin-1")
        if rule and kind == "drip_head":
            self._drip(head, rule, seen)
        else:
            self.connection.sendall(head)
        if rule and kind == "drip":
            return self._drip(bytes(body), rule, seen)
        end = min(rule.after, len(body)) if rule and kind in ("reset", "truncate", "stall") else len(body)
        if kind == "short_range":
            end -= 1
        self.connection.sendall(memoryview(body)[:end])
        seen.sent += end
        if kind == "stall":
            self.server.owner.release.wait()
        if kind in ("reset", "stall"):
            self._cut()
        elif end < len(body):
            self.close_connection = True

    def _drip(self, data: bytes, rule: Rule, seen: Seen) -> None:
        release = self.server.owner.release
        for start in range(0, len(data), rule.piece):
            self.connection.sendall(data[start:start + rule.piece])
            seen.sent += len(data[start:start + rule.piece])
            if release.wait(rule.interval_s):
                self.close_connection = True
                return

    def _cut(self) -> None:
        self.close_connection = True
        _reset(self.connection)


def _reset(connection: socket.socket) -> None:
    """Close with RST: without lingering, and the other side sees ECONNRESET."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # shutdown first would send FIN; makefile() references keep the descriptor open after close()
        socket.socket(fileno=connection.detach()).close()


def _error(status: int) -> _Reply:
    return _Reply(status, {}, f"{status}\n".encode())


def _read(store: FileStore, key: str, headers: dict[str, str]) -> _Reply:
    found = store.get(key, Deadline.never(), limit=GiB)
    assert found
    etag = f'"{found.etag}"'
    if headers.get("if-none-match") == etag:
        return _Reply(304, {"ETag": etag}, b"")
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("range", ""))
    size = len(found.data)
    if not asked:
        return _Reply(200, {"ETag": etag}, found.data)
    first, last = int(asked[1]), min(int(asked[2]), size - 1)
    if first > last:
        return _Reply(416, {"Content-Range": f"bytes */{size}"}, b"")
    return _Reply(206, {"ETag": etag, "Content-Range": f"bytes {first}-{last}/{size}"}, found.data[first:last + 1])


def _write(store: FileStore, method: str, key: str, headers: dict[str, str], body: bytes) -> _Reply:
    if method == "DELETE":
        store.delete(key, Deadline.never())
        return _Reply(204, {}, b"")
    if "if-match" in headers:
        etag = store.swap(key, headers["if-match"].strip('"'), body, Deadline.never())
        return _Reply(200, {"ETag": f'"{etag}"'}, b"")
    if headers.get("if-none-match") == "*" and not store.put(key, body, Deadline.never(), only_if_absent=True):
        return _error(412)
    store.put(key, body, Deadline.never())
    return _Reply(201, {"ETag": f'"{_etag(store, key)}"'}, b"")


def _etag(store: FileStore, key: str) -> str | None:
    found = store.get(key, Deadline.never(), limit=GiB)
    return found.etag if found else None


def _shifted(whole: _Reply, range_: str) -> _Reply:
    """As long as asked for, from one byte further on."""
    first, last = (int(number) + 1 for number in re.fullmatch(r"bytes=(\d+)-(\d+)", range_).groups())  # type: ignore[union-attr]
    headers = {**whole.headers, "Content-Range": f"bytes {first}-{last}/{len(whole.body)}"}
    return _Reply(206, headers, whole.body[first:last + 1])


def _from_upstream(host: str, base: str, method: str, path: str, headers: dict[str, str], body: bytes) -> _Reply:
    connection = http.client.HTTPConnection(host, timeout=60)
    try:
        own = ("host", "connection", "content-length")
        connection.request(method, base.rstrip("/") + path, body=body or None,
                           headers={name: value for name, value in headers.items() if name not in own})
        answer = connection.getresponse()
        kept = {name: value for name, value in answer.getheaders()
                if name.lower() not in ("connection", "content-length")}
        data = answer.read() if method != "HEAD" else b"\0" * int(answer.headers.get("Content-Length") or 0)
        return _Reply(answer.status, kept, data)
    finally:
        connection.close()
