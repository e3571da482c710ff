"""Counters of one mount or one command, since its start. Names are those of `status` (interface)."""

from __future__ import annotations

import threading

COUNTERS = ("reads", "bytes_read", "opens", "passthrough_opens", "chunks_fetched", "bytes_fetched", "requests",
            "chunks_verified", "hash_failures", "fetch_retries", "failovers", "cache_hits", "cache_misses",
            "evictions", "prefetched_chunks", "prefetched_used", "errors", "hedges")
_SLOTS = {name: number for number, name in enumerate(COUNTERS)}
_READS, _BYTES_READ, _CACHE_HITS = _SLOTS["reads"], _SLOTS["bytes_read"], _SLOTS["cache_hits"]


class Metrics:
    """Counts from any thread. kept: memory in which earlier processes of the same mount counted, 8 bytes a counter."""

    def __init__(self, kept: memoryview | None = None) -> None:
        if kept is None:
            kept = memoryview(bytearray(8 * len(COUNTERS)))
        self._lock = threading.Lock()
        self._counts = kept.cast("Q")  # guarded by _lock

    def add(self, name: str, n: int = 1) -> None:
        """name: one of COUNTERS (KeyError otherwise)."""
        with self._lock:
            self._counts[_SLOTS[name]] += n

    def add_read(self, size: int) -> None:
        """A read of so many bytes that the cache had: once in a request of the kernel, so in one hold of the lock."""
        with self._lock:
            counts = self._counts
            counts[_READS] += 1
            counts[_BYTES_READ] += size
            counts[_CACHE_HITS] += 1

    def snapshot(self) -> dict[str, int]:
        with self._lock:
            return dict(zip(COUNTERS, self._counts, strict=False))
