"""The nginx configurations of examples/, run as they stand but for the addresses and paths of this machine.

Rule: every replacement is of something that is there, so that an example that changes fails here and is not tested as
something else. Each server answers when it is handed out, and is ended afterwards.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mount.mounting import ROOT, until
from servers import listens

_MAIN = """
{user}daemon off; worker_processes 1; pid {scratch}/pid; error_log {scratch}/error.log;
events {{ worker_connections 256; }}
http {{
  log_format short '$request_method $uri $status $upstream_cache_status'; access_log {scratch}/access.log short;
  client_body_temp_path {scratch}/body; proxy_temp_path {scratch}/proxy;
  fastcgi_temp_path {scratch}/fastcgi; uwsgi_temp_path {scratch}/uwsgi; scgi_temp_path {scratch}/scgi;
  include {scratch}/example.conf;
}}
"""


@contextmanager
def nginx(example: str, scratch: Path, here: Mapping[str, str]) -> Iterator[str]:
    """Its URL. here: what of the example is something else on this machine. scratch/access.log has the requests."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    assert program, "nginx is not installed: apt-get install nginx-light, or run `make test`, which does"
    scratch.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    conf = (ROOT / "examples" / example).read_text()
    for old, new in {"listen 8080;": f"listen 127.0.0.1:{port};", **here}.items():
        assert old in conf, old
        conf = conf.replace(old, new)
    (scratch / "example.conf").write_text(conf)
    # as root its workers would be another user, who may not enter the tests' directories (0700)
    user = "user root; " if os.geteuid() == 0 else ""
    (scratch / "nginx.conf").write_text(_MAIN.format(scratch=scratch, user=user))
    log = scratch / "error.log"
    process = subprocess.Popen([program, "-p", str(scratch), "-c", str(scratch / "nginx.conf"), "-e", str(log)])
    try:
        until(lambda: listens(port) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(15)


@contextmanager
def modelfs_serve(repository: Path, environ: Mapping[str, str], *options: object) -> Iterator[str]:
    """The command that the examples put behind nginx; its address as nginx wants it, HOST:PORT."""
    log = repository.with_name("serve.log")
    with log.open("wb") as stream:
        process = subprocess.Popen([sys.executable, "-m", "modelfs", "serve", str(repository), "--port", "0",
                                    *map(str, options)], env={**environ, "PYTHONPATH": str(ROOT)},
                                   stdin=subprocess.DEVNULL, stderr=stream)
    try:
        until(lambda: " at http://" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield log.read_text().split(" at http://")[1].split()[0].rstrip("/")
    finally:
        process.terminate()
        process.wait(15)
