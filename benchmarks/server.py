"""One nginx for everybody, and what it was asked for: the bytes that travelled, and the requests that waited.

Rule: what a peer fetched is what this log says, for all peers alike; no peer's own counters are believed.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Failed, program, running, wait_until

_CONF = """
daemon off; worker_processes 2; pid {scratch}/pid; error_log {scratch}/error.log; {user}
events {{ worker_connections 512; }}
http {{
  log_format fetched '$msec $request_time $body_bytes_sent $connection_requests $uri';
  access_log {scratch}/access.log fetched;
  sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 100000;
  client_body_temp_path {scratch}; proxy_temp_path {scratch}; fastcgi_temp_path {scratch}; uwsgi_temp_path {scratch};
  scgi_temp_path {scratch};
  server {{ listen {host}:{port}; root {root}; location / {{ autoindex on; }} {locations} }}
}}
"""


@dataclass(frozen=True, slots=True)
class Request:
    """began, ended: seconds since the epoch, at the server, to the millisecond. sent: bytes of the body.
    connecting: whether it was the first on its connection."""

    began: float
    ended: float
    sent: int
    path: str
    connecting: bool = False


@dataclass(frozen=True, slots=True)
class Server:
    """port: where it listens on `host`. log: nginx's own."""

    host: str
    port: int
    log: Path

    def requests(self, since: int = 0) -> list[Request]:
        """What has ended, from a position in the log on."""
        with self.log.open() as file:
            file.seek(since)
            found = re.findall(r"^([\d.]+) ([\d.]+) (\d+) (\d+) (.*)$", file.read(), re.M)
        return [Request(float(ended) - float(took), float(ended), int(sent), path, int(number) == 1)
                for ended, took, sent, number, path in found]

    def position(self) -> int:
        """Where the log ends once nothing has come for 50 ms: nginx notes a request after its last byte has gone."""
        seen, since = self.log.stat().st_size, time.monotonic()
        while time.monotonic() - since < 0.05:
            time.sleep(0.01)
            now = self.log.stat().st_size
            if now != seen:
                seen, since = now, time.monotonic()
        return seen


def bytes_sent(requests: Sequence[Request]) -> int:
    return sum(request.sent for request in requests)


def longest_chain(requests: Sequence[Request], round_trip_s: float) -> int:
    """The most requests of which each began a round trip after the one before had ended.

    Those may have waited for one another: an upper bound of the round trips. Connecting is not counted: who had to
    connect first decided to ask a round trip before.
    """
    length, free_at = 0, float("-inf")
    for request in sorted(requests, key=lambda each: each.ended):
        asked = request.began - round_trip_s if request.connecting else request.began
        if asked >= free_at:
            length, free_at = length + 1, request.ended + 0.8 * round_trip_s  # 0.8: the log's millisecond, the jitter
    return length


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as free:
        free.bind((host, 0))
        port = free.getsockname()[1]
    assert isinstance(port, int)
    return port


@contextmanager
def nginx(root: Path, scratch: Path, host: str = "127.0.0.1", within: Sequence[str] = (),
          locations: str = "") -> Iterator[Server]:
    """Serves root. within: a command that runs another (in a network namespace, where host is its address).
    locations: what is served otherwise, in nginx's words."""
    binary = program("nginx")
    if not binary:
        raise Failed("nginx is not installed; make bench does that as root")
    scratch.mkdir(parents=True, exist_ok=True)
    port = free_port()
    conf = scratch / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # its workers have to enter a directory of mode 0700
    conf.write_text(_CONF.format(scratch=scratch, host=host, port=port, root=root, user=user,
                                 locations=locations))
    log = scratch / "error.log"
    with running([*within, binary, "-p", str(scratch), "-c", str(conf), "-e", str(log)], scratch / "output") as process:
        def listens() -> bool:
            if process.poll() is not None:
                raise Failed(f"nginx: {(scratch / 'output').read_text()}{log.read_text() if log.exists() else ''}")
            with socket.socket() as probe:
                return probe.connect_ex((host, port)) == 0
        wait_until(listens, "nginx")
        yield Server(host, port, scratch / "access.log")
