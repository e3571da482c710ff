"""Chunks that may lie on this disk already: in the file's own cache, unchecked since the mount began, or in
another file's.

Rule: bytes from the disk are hashed like bytes from the network before anyone sees them; what does not hash
is discarded and fetched. These threads touch the disk only, so a dead store never delays them.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable

from modelfs.errors import CorruptChunk, ModelfsError
from modelfs.logs import log_event, logger_for
from modelfs.metrics import Metrics
from modelfs.reading.flights import Flight
from modelfs.reading.versions import ChunkCache, FileCache
from modelfs.repository.chunk import check_chunk

_LOG = logger_for(__name__)


class LocalCopies:
    """land: takes a flight and its checked bytes. fail: ends one. missed: takes
    the flights that the disk does not have."""

    def __init__(self, cache: ChunkCache, metrics: Metrics, land: Callable[[Flight, memoryview], None],
                 fail: Callable[[Flight, ModelfsError], None], missed: Callable[[list[Flight]], None]) -> None:
        self._cache, self._metrics = cache, metrics
        self._land, self._fail, self._missed = land, fail, missed
        self._queue: queue.PriorityQueue[tuple[bool, int, list[Flight]]] = queue.PriorityQueue()
        self._count = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, name=f"disk-{n}", daemon=True)
                         for n in range(min(4, os.cpu_count() or 1))]
        for thread in self._threads:
            thread.start()

    def may_have(self, flight: Flight) -> bool:
        """Cheap, and may be wrong: whether a look at the disk is worth it."""
        want = flight.wants[0]
        return bool(want.file.cache.presence(want.chunk) & 1) or \
            self._cache.find(flight.ref.id, flight.ref.length) is not None

    def put(self, flights: list[Flight]) -> None:
        """One flight a task, so that the disk threads share them."""
        for flight in flights:
            with self._lock:
                self._count += 1
                self._queue.put((not flight.demand, self._count, [flight]))

    def close(self) -> None:
        for _ in self._threads:
            self._queue.put((False, 0, []))

    def _work(self) -> None:
        buffer = bytearray(0)
        while True:
            _, _, flights = self._queue.get()
            if not flights:
                return
            for flight in flights:
                if len(buffer) < flight.ref.length:
                    buffer = bytearray(flight.ref.length)
                view = memoryview(buffer)[:flight.ref.length]
                try:
                    if not (self._own(flight, view) or self._other(flight, view)):
                        self._missed([flight])
                except Exception as error:
                    # A bug here must not leave readers waiting, nor end this thread.
                    log_event(_LOG, "error", "fetch.broken", why=f"{type(error).__name__}: {error}")
                    self._fail(flight, ModelfsError("internal error while reading the cache", why=str(error)))

    def _own(self, flight: Flight, view: memoryview) -> bool:
        want = flight.wants[0]
        return self._try(flight, want.file.cache, want.chunk, view)

    def _other(self, flight: Flight, view: memoryview) -> bool:
        found = self._cache.find(flight.ref.id, flight.ref.length)
        return found is not None and self._try(flight, *found, view)

    def _try(self, flight: Flight, cache: FileCache, row: int, view: memoryview) -> bool:
        count = cache.load(row, view)
        if not count:
            return False
        try:
            check_chunk(flight.ref, view)
        except CorruptChunk as error:
            cache.discard(row, count)
            self._metrics.add("hash_failures")
            log_event(_LOG, "warning", "cache.corrupt", file=flight.wants[0].file.entry.path,
                      chunk=flight.ref.id.hex(), why=str(error))
            return False
        cache.mark_checked(row, count)
        self._metrics.add("chunks_verified")
        self._land(flight, view)
        return True
