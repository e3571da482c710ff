"""Clients that leave before their answer begins are no error of the server's."""

from __future__ import annotations

import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import requests
from transfer.pushed import make_repository, noise, packs, push_files

from modelfs.units import MiB


def test_who_leaves_at_once_leaves_no_line_in_the_log(tmp_path: Path, environ: Mapping[str, str]) -> None:
    root = tmp_path / "repository"
    push_files(make_repository(root), {"w.bin": noise(1, 3 * MiB)})
    key = packs(root)[0].relative_to(root)
    with subprocess.Popen([sys.executable, "-m", "modelfs", "serve", str(root), "--port", "0"], stderr=subprocess.PIPE,
                          env={**environ, "PYTHONPATH": str(Path(__file__).parents[2])}) as process:
        assert process.stderr is not None
        try:
            url = process.stderr.readline().decode().rpartition(" ")[2].strip()
            port = int(url.rpartition(":")[2])
            for _ in range(200):
                with socket.create_connection(("127.0.0.1", port), 20) as client:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
                    client.sendall(f"GET /{key} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            assert requests.get(f"{url}/{key}", timeout=20).status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.stderr.read() == b""
            assert process.wait(30) == 0
        finally:
            process.kill()
