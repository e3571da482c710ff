"""How slowly an answer may be read: a server that waits for who does not read would run out of descriptors."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from server.uploading import connect, eventually, get, name_of, new_repository, noise, soon
from servers import start_own_server

from modelfs.units import KiB, MiB

DATA = noise(MiB) * 32
NAME = name_of(DATA)


def ask(connection: socket.socket) -> None:
    connection.sendall(f"GET /{NAME} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())


def sent_from(pid: int) -> int:
    """How often the process has the object open."""
    fds = Path(f"/proc/{pid}/fd")
    return sum(os.path.realpath(fds / fd).endswith(NAME) for fd in os.listdir(fds))


def with_server(root: Path, before: str, check: Callable[[str, int], None]) -> None:
    new_repository(root).put(NAME, DATA, soon())
    process, url = start_own_server(root, before=before)
    try:
        check(url, process.pid)
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=20)
    assert errors == ""


def test_clients_that_read_nothing_are_ended_and_their_descriptors_given_back(tmp_path: Path) -> None:
    def check(url: str, pid: int) -> None:
        connections = [connect(url) for _ in range(40)]
        for connection in connections:
            ask(connection)
        eventually(lambda: sent_from(pid) == 40)
        eventually(lambda: sent_from(pid) == 0)
        assert get(url, NAME).content == DATA
        for connection in connections:
            connection.close()
    with_server(tmp_path, "from modelfs.server import pace; pace.GRACE_S = 2.0", check)


def test_a_client_that_reads_below_the_slowest_rate_is_ended_though_it_is_never_silent(tmp_path: Path) -> None:
    def check(url: str, pid: int) -> None:
        with connect(url) as connection:
            ask(connection)
            read, end = 0, time.monotonic() + 60
            try:
                while piece := connection.recv(64 * KiB):  # a few MiB a second
                    read += len(piece)
                    assert time.monotonic() < end
                    time.sleep(0.02)
            except ConnectionError:
                pass
            assert 0 < read < len(DATA)
            eventually(lambda: sent_from(pid) == 0)
    with_server(tmp_path, "from modelfs.server import pace; pace.GRACE_S = 1.0; pace.SLOWEST_BYTES_PER_S = 1 << 30",
                check)


def test_a_client_that_reads_slowly_and_goes_on_gets_all(tmp_path: Path) -> None:
    def check(url: str, pid: int) -> None:
        with connect(url) as connection:
            connection.settimeout(60)
            ask(connection)
            out = bytearray()
            while not out.endswith(DATA[-1000:]) or len(out) < len(DATA):
                piece = connection.recv(512 * KiB)
                assert piece
                out += piece
                time.sleep(0.04)  # 2.5 s at least, of which the grace is one
            assert out.endswith(DATA)
    with_server(tmp_path, "from modelfs.server import pace; pace.GRACE_S = 1.0", check)
