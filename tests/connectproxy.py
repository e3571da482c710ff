"""A CONNECT proxy for tests: hands on, asks for a password, refuses, or keeps silent, as it is told.

Rule: only what a test names is reached through it, by whatever name the test likes, and every request's head is kept.
"""

from __future__ import annotations

import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress


class ConnectProxy:
    """routes: "host:port" → port of this machine. password: "user:password", else 407. status: what it answers to
    CONNECT. silent: no answer at all; drips: its answer a byte at a time, without end. tls: it is an https:// proxy."""

    def __init__(self, routes: Mapping[str, int], *, password: str = "", status: str = "200 Connection established",
                 silent: bool = False, drips: bool = False, tls: ssl.SSLContext | None = None) -> None:
        self.routes, self.password, self.status, self.silent, self.drips = routes, password, status, silent, drips
        self.tls = tls
        self.heads: list[str] = []
        self._done = threading.Event()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """With the password, where one is needed."""
        scheme = "https" if self.tls else "http"
        return f"{scheme}://{self.password}@{self.host}" if self.password else f"{scheme}://{self.host}"

    def __enter__(self) -> ConnectProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for each in self._open:
                each.close()

    def _accept(self) -> None:
        while True:
            try:
                near = self._listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with suppress(OSError):
            near = self.tls.wrap_socket(near, server_side=True) if self.tls else near
            with self._lock:
                self._open.add(near)
            with near:
                self._answer(near)

    def _answer(self, near: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = near.recv(4096)
            if not piece:
                return
            head += piece
        self.heads.append(head.decode("latin-1"))
        target = head.split()[1].decode()
        status = self.status
        wanted = b"Basic " + b64encode(self.password.encode())
        if self.password and wanted not in head:
            status = "407 Proxy Authentication Required"
        elif target not in self.routes:
            status = "502 Bad Gateway"
        if self.silent:
            self._done.wait()
            return
        if self.drips:
            near.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not self._done.wait(0.02):
                near.sendall(b"x")
            return
        near.sendall(f"HTTP/1.1 {status}\r\n\r\n".encode())
        if status.startswith("200"):
            with socket.create_connection(("127.0.0.1", self.routes[target])) as far:
                back = threading.Thread(target=_pump, args=(far, near), daemon=True)
                back.start()
                _pump(near, far)
                back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
