"""Real servers over a directory, for tests: ours, and nginx where it serves files as everybody's does.

Rule: each runs in a process of its own on a free port, answers when it is handed out, and is ended afterwards.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_RUN = """
import sys
exec(sys.argv[5])
from pathlib import Path
from modelfs.server.access import Access
from modelfs.server.running import run_server
access = Access(anonymous_read=sys.argv[4] == "read")
run_server(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), lambda url: print(url, flush=True), access)
"""
_NGINX = """
daemon off; worker_processes 1; pid {scratch}/pid; error_log {scratch}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off; sendfile on; client_body_temp_path {scratch}; proxy_temp_path {scratch};
  fastcgi_temp_path {scratch}; uwsgi_temp_path {scratch}; scgi_temp_path {scratch};
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


def start_own_server(root: Path, host: str = "127.0.0.1", port: int = 0, *, writable: bool = False,
                     before: str = "") -> tuple[subprocess.Popen[str], str]:
    """The process and its URL; empty where it ended instead of listening.

    writable: by whoever is on this machine. before: code that runs first, to make waits short or disks small.
    """
    process = subprocess.Popen([sys.executable, "-c", _RUN, str(root), host, str(port),
                                "write" if writable else "read", before], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    assert process.stdout
    return process, process.stdout.readline().strip()


@contextmanager
def own_server(root: Path, *, writable: bool = False, before: str = "") -> Iterator[str]:
    process, url = start_own_server(root, writable=writable, before=before)
    try:
        assert url.startswith("http://"), process.communicate()
        yield url
    finally:
        process.terminate()
        process.communicate(timeout=15)


@contextmanager
def nginx(root: Path, scratch: Path) -> Iterator[str]:
    """Fails where there is no nginx: a contract that was not checked is not kept."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    assert program, "nginx is not installed: apt-get install nginx-light, or run `make test`, which does"
    scratch.mkdir(exist_ok=True)
    root.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    conf = scratch / "nginx.conf"
    conf.write_text(_NGINX.format(scratch=scratch, port=port, root=root))
    if os.geteuid() == 0:
        conf.write_text("user root;\n" + conf.read_text())  # its workers have to enter the tests' 0700 directories
    log = scratch / "error.log"
    process = subprocess.Popen([program, "-p", str(scratch), "-c", str(conf), "-e", str(log)])
    try:
        _wait_until_it_listens(process, port, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(15)


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < end, log.read_text() if log.exists() else "no answer"
            time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def die_with_parent() -> None:
    """preexec_fn of a server that shall end with this process, however that ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def end_server(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
