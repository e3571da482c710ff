"""Chunks that may lie on this disk already: in the file's own cache, unchecked since the mount began, or in
another file's.

Rule: bytes from the disk are hashed like bytes from the network before anyone sees them; what does not hash
is discarded and fetched, and so is what a failing cache cannot give. These threads touch the disk only, so a dead
store never delays them.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable

from modelfs.cache.system import page_buffer
from modelfs.logs import log_event, logger_for
from modelfs.metrics import Metrics
from modelfs.reading.checking import load_checked
from modelfs.reading.flights import Flight
from modelfs.reading.versions import ChunkCache, FileCache

_LOG = logger_for(__name__)


class LocalCopies:
    """land: takes a flight and its checked bytes. missed: takes a flight that the disk does not have."""

    def __init__(self, cache: ChunkCache, metrics: Metrics, land: Callable[[Flight, memoryview], None],
                 missed: Callable[[list[Flight]], None]) -> None:
        self._cache, self._metrics = cache, metrics
        self._land, self._missed = land, missed
        self._queue: queue.PriorityQueue[tuple[bool, int, Flight | None]] = queue.PriorityQueue()
        self._lock = threading.Lock()
        self._count = 0  # guarded by _lock
        self._threads = [threading.Thread(target=self._work, name=f"disk-{n}", daemon=True)
                         for n in range(min(4, os.cpu_count() or 1))]
        for thread in self._threads:
            thread.start()

    def may_have(self, flight: Flight) -> bool:
        """Cheap, and may be wrong: whether a look at the disk is worth it."""
        want = flight.wants[0]
        try:
            return bool(want.file.cache.presence(want.chunk) & 1) or \
                self._cache.find(flight.ref.id, flight.ref.length) is not None
        except Exception as error:
            self._broken(error)
            return False

    def put(self, flights: list[Flight]) -> None:
        for flight in flights:
            self._add(not flight.demand, flight)

    def close(self) -> None:
        for _ in self._threads:
            self._add(False, None)

    def _add(self, later: bool, flight: Flight | None) -> None:
        with self._lock:
            self._count += 1
            self._queue.put((later, self._count, flight))

    def _work(self) -> None:
        buffer = page_buffer(1)
        while (flight := self._queue.get()[2]) is not None:
            if len(buffer) < flight.ref.length:
                buffer = page_buffer(flight.ref.length)
            view = memoryview(buffer)[:flight.ref.length]
            if self._read(flight, view):
                self._land(flight, view)
            else:
                self._missed([flight])

    def _read(self, flight: Flight, view: memoryview) -> bool:
        """The flight's chunk into view, checked; False where the disk does not have it."""
        want = flight.wants[0]
        try:
            if self._try(flight, want.file.cache, want.chunk, view):
                return True
            found = self._cache.find(flight.ref.id, flight.ref.length)
            return found is not None and self._try(flight, *found, view)
        except Exception as error:
            self._broken(error)
            return False

    def _try(self, flight: Flight, cache: FileCache, row: int, view: memoryview) -> bool:
        return load_checked(cache, row, flight.ref, view, self._metrics, flight.wants[0].file.path)

    def _broken(self, error: Exception) -> None:
        """A fault in the cache's code costs speed, not a read, and does not end a thread that others wait for."""
        log_event(_LOG, "error", "cache.broken", error=error)
