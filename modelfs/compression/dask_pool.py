"""Tasks on a Dask cluster that exists already: `--executor dask://HOST:PORT`, its scheduler's address.

Rule: a task whose worker dies is done again by another one; only where no worker is left, or the scheduler is gone, the
run ends, and goes on when it is run again. All workers must see the same files, under the same paths.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import time
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from modelfs import __version__
from modelfs.compression.tasks import Task
from modelfs.errors import BadInput, Conflict, ModelfsError, NotFound, Unavailable

_GIVEN_UP = ("KilledWorker", "FutureCancelledError", "ClosedClientError")
_ASK_S = 1.0  # workers come and go, and the scheduler is not asked for each task
EXAMPLE = "dask://scheduler:8786"


class DaskPool:
    def __init__(self, address: str, patience_s: float) -> None:
        """patience_s: how long the scheduler may take to answer, and the cluster be without a worker.

        Raises BadInput where distributed is not installed, Unavailable.
        """
        target = _tcp(address)
        try:
            distributed: Any = importlib.import_module("distributed")  # Any: parts of it have types, and some lack them
        except ImportError as error:
            raise BadInput(f"cannot use {address}", why="the package distributed is not installed",
                           advice="pip install 'modelfs[dask]'.") from error
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]:
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters of it, errors say
        self._address, self._patience_s = address, patience_s
        try:
            self._client = distributed.Client(target, timeout=patience_s, set_as_default=False)
        except (OSError, TimeoutError) as error:
            raise Unavailable("a Dask scheduler does not answer", where=address,
                              why=str(error) or type(error).__name__) from error
        self._executor = self._client.get_executor(pure=False)
        self._seen_s = time.monotonic()
        self._width, self._asked_s = 1, -math.inf

    @property
    def width(self) -> int:
        if time.monotonic() - self._asked_s > _ASK_S:
            self._width, self._asked_s = max(1, self._threads()), time.monotonic()
        return self._width

    def submit(self, task: Task) -> Future[Any]:
        """Raises Unavailable where the scheduler has gone."""
        try:
            future: Future[Any] = self._executor.submit(run_task, task)
        except Exception as error:
            gone = cluster_error(error)
            if gone is None:
                raise
            raise gone from error
        return future

    def join(self, directory: str) -> None:
        """Once there is a worker: each has this modelfs, and sees directory. Raises ModelfsError."""
        while not self._threads():
            self.check()
            time.sleep(0.1)
        try:
            answers: dict[str, tuple[str, bool]] = self._client.run(probe, directory)
        except Exception as error:  # whatever a worker raised, an import's among them
            raise BadInput("a Dask worker cannot do it", where=self._address, why=f"{type(error).__name__}: {error}",
                           advice="Install this modelfs where the workers run.") from error
        for worker, (version, sees) in answers.items():
            if version != __version__:
                raise Conflict("a Dask worker has another modelfs", where=worker, why=f"{version}, not {__version__}")
            if not sees:
                raise NotFound("a Dask worker does not see the destination", where=worker, why=f"no {directory} there",
                               advice="All workers must see the same files.")

    def check(self) -> None:
        if self._threads():
            self._seen_s = time.monotonic()
        elif time.monotonic() - self._seen_s > self._patience_s:
            raise Unavailable("a Dask cluster without workers", where=self._address,
                              advice="Start some and run it again: it goes on from what is done.")

    def _threads(self) -> int:
        """Of all workers, by the scheduler's word; none where that does not answer."""
        try:
            return sum(int(threads) for threads in self._client.nthreads().values())
        except (OSError, TimeoutError):
            return 0

    def close(self) -> None:
        with suppress(Exception):  # where the scheduler has gone there is nothing to cancel
            self._executor.shutdown(wait=False)
        self._client.close(timeout=5)


def run_task(task: Task) -> Any:
    return task.run()


def probe(directory: str) -> tuple[str, bool]:
    return __version__, os.path.isdir(directory)


def cluster_error(error: BaseException) -> ModelfsError | None:
    """What a future of a cluster, or its submission, failed with, where that is the cluster's fault and no task's."""
    if isinstance(error, CancelledError) or type(error).__name__ in _GIVEN_UP:
        return Unavailable("the Dask cluster gave a task up", why=str(error) or type(error).__name__,
                           advice="Run it again: it goes on from what is done.")
    return None


def _tcp(address: str) -> str:
    try:
        parts = urlsplit(address)
        if parts.scheme == "dask" and parts.hostname and parts.port and parts.path in ("", "/"):
            return f"tcp://{parts.netloc}"
    except ValueError:
        pass
    raise BadInput(f"not an executor {address!r}", why=f"allowed: {EXAMPLE}")
