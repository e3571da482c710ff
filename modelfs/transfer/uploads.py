"""Packs on their way to the store while more are made.

Rule: never more than UPLOADS of them, so that memory stays bounded and a kill loses little; the first that fails ends
all that come after it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from modelfs.errors import ModelfsError
from modelfs.repository.pack import SealedPack

UPLOADS = 4


class Uploads:
    """Puts packs by threads of its own, while it is entered. Leaving it waits for all, and raises what a put raised;
    after an error no more puts begin, and those on their way are let finish, so that the journal's packs are whole."""

    def __init__(self, put: Callable[[SealedPack], None]) -> None:
        self._pool, self._put = ThreadPoolExecutor(UPLOADS, thread_name_prefix="upload"), put
        self._room = threading.BoundedSemaphore(UPLOADS)
        self._futures: list[Future[None]] = []
        self._failed: ModelfsError | None = None

    def put(self, pack: SealedPack) -> None:
        """Blocks while there is no room. Raises what an earlier put raised."""
        self._room.acquire()
        if self._failed:
            raise self._failed
        self._futures = [future for future in self._futures if not future.done() or future.exception()]
        self._futures.append(self._pool.submit(self._one, pack))

    def _one(self, pack: SealedPack) -> None:
        try:
            if self._failed is None:
                self._put(pack)
        except ModelfsError as error:
            self._failed = self._failed or error
            raise
        finally:
            self._room.release()

    def __enter__(self) -> Uploads:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            for future in self._futures:
                future.result()
            if self._failed:
                raise self._failed
