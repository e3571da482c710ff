"""Counters of one mount or one command, since its start. Names are those of `status` (interface)."""

from __future__ import annotations

import threading

COUNTERS = ("reads", "bytes_read", "opens", "passthrough_opens", "chunks_fetched", "bytes_fetched", "requests",
            "chunks_verified", "hash_failures", "fetch_retries", "failovers", "cache_hits", "cache_misses",
            "evictions", "prefetched_chunks", "prefetched_used", "errors")


class Metrics:
    """Counts from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(COUNTERS, 0)  # guarded by _lock

    def add(self, name: str, n: int = 1) -> None:
        """name: one of COUNTERS (KeyError otherwise)."""
        with self._lock:
            self._counts[name] += n

    def snapshot(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)
