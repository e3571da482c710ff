"""Who does tasks: processes on this machine, one a core, or anything else with the same two methods.

Rule: a worker that dies fails the task that it had, with a line that says so; nothing waits for it. No worker outlives
the pool, nor its parent. Not concurrent.futures' processes: in Python 3.11 those that wait for work never notice that
their parent was killed, and numpy's threads cannot be bounded for them before numpy is loaded.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from modelfs.compression.tasks import Task
from modelfs.compression.worker import receive, send
from modelfs.errors import ModelfsError

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Pool(Protocol):
    """width: tasks that it can do at once, now."""

    @property
    def width(self) -> int: ...

    def submit(self, task: Task) -> Future[Any]: ...

    def check(self) -> None:
        """Called now and then while nothing gets done. Raises ModelfsError where nothing will."""

    def close(self) -> None:
        """What is not done is given up."""


class LocalPool:
    """jobs: processes at most; they start as they are needed."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._threads = ThreadPoolExecutor(jobs, thread_name_prefix="compress")
        self._lock = threading.Lock()
        self._all: list[subprocess.Popen[bytes]] = []  # guarded by _lock, as the rest
        self._free: list[subprocess.Popen[bytes]] = []
        self._closed = False

    @property
    def width(self) -> int:
        return self._jobs

    @property
    def pids(self) -> list[int]:
        with self._lock:
            return [process.pid for process in self._all]

    def submit(self, task: Task) -> Future[Any]:
        return self._threads.submit(self._do, task)

    def check(self) -> None:
        """A worker's death shows at once, in its task."""

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closed = True
            for process in self._all:
                process.kill()
        self._threads.shutdown(wait=True)
        for process in self._all:
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()
            process.wait()

    def _do(self, task: Task) -> Any:
        process = self._worker()
        stdin, stdout = process.stdin, process.stdout
        if stdin is None or stdout is None:
            raise TypeError("a worker without pipes")
        try:
            send(stdin, task)
            done, answer = receive(stdout)
        except (EOFError, OSError) as error:
            process.kill()
            raise _lost(process.wait()) from error
        with self._lock:
            self._free.append(process)
        if not done:
            raise answer
        return answer

    def _worker(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._closed:
                raise EOFError
            if self._free:
                return self._free.pop()
            process = _start()
            self._all.append(process)
            return process


def _start() -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C is for the parent, which ends its workers."""
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    environ = dict(os.environ) | {"PYTHONPATH": path} | dict.fromkeys(_THREADS, "1")
    return subprocess.Popen([sys.executable, "-m", "modelfs.compression.worker"], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, env=environ, start_new_session=True)


def _lost(code: int) -> ModelfsError:
    if code < 0:
        name = signal.Signals(-code).name
        why = f"{name} ended it" + (", perhaps for want of memory" if code == -signal.SIGKILL else "")
    else:
        why = f"it ended with {code}"
    return ModelfsError("a worker process has gone", why=why, advice="Run it again: it goes on from what is done.")
