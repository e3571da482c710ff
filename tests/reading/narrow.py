"""A link of so many bytes a second, shared by all connections through it: a relay in front of a server.

Rule: the rate is the link's, not a connection's, so more connections bring nothing.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

_PIECE = 32 * 1024


class NarrowLink:
    """port: on 127.0.0.1. Ends with `with`, and what goes through it, too."""

    def __init__(self, port: int, bytes_per_s: int) -> None:
        self._to, self._rate = port, bytes_per_s
        self._lock = threading.Lock()
        self._free_s = 0.0  # when the link has sent what was given to it; guarded by _lock
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> NarrowLink:
        return self

    def __exit__(self, *_: object) -> None:
        for end in [self._listener, *self._ends]:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                for end in (near, far):  # the kernel holds little, so that what is sent is what arrives
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIECE)
                self._ends += [near, far]
                threading.Thread(target=self._relay, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._relay, args=(far, near, True), daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket, narrow: bool) -> None:
        with suppress(OSError):
            while data := source.recv(_PIECE):
                if narrow:
                    self._take_turn(len(data))
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _take_turn(self, size: int) -> None:
        with self._lock:
            self._free_s = max(self._free_s, time.monotonic()) + size / self._rate
            until = self._free_s
        time.sleep(max(0.0, until - time.monotonic()))
