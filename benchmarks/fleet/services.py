"""A program of the fleet that may be killed, stopped and started again: a server, a replication, a mount.

Rule: whoever ends by himself is told of and started again, as an init system would; what ends by our hand is not.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.processes import Failed, end, wait_until


class Service:
    """ready: what it prints once it is. log: of all its lives."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environ: Mapping[str, str], ready: str) -> None:
        self.name, self.log = name, log
        self._command, self._environ, self._ready = command, environ, ready
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None  # guarded by _lock; None: it is not to run

    def start(self) -> None:
        """Raises Failed where it ends, or is not ready in time."""
        with self._lock:
            before = self.log.stat().st_size if self.log.exists() else 0
            with self.log.open("ab") as stream:
                self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                                                 start_new_session=True, env=self._environ)
            process = self._process
        wait_until(lambda: self._ready in self._said(before) or process.poll() is not None, f"{self.name} to be ready")
        if process.poll() is not None:
            raise Failed(f"{self.name}: exit {process.returncode}: {self._said(before)[-800:]}")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                self._process = None

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def ended_by_itself(self) -> int | None:
        """Its exit code, once; then it is not expected to run."""
        with self._lock:
            code = None if self._process is None else self._process.poll()
            if code is not None:
                self._process = None
            return code

    def end(self) -> None:
        with self._lock:
            if self._process is not None:
                if self._process.poll() is None:
                    self.thaw()
                end(self._process)
                self._process = None

    def _said(self, since: int) -> str:
        with self.log.open("rb") as stream:
            stream.seek(since)
            return stream.read().decode(errors="replace")
