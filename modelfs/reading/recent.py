"""The chunks decoded last, in memory: for reads that a full cache disk leaves uncached.

Rule: only chunks that the disk cache did not take are kept here, and never more than the bytes allowed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from modelfs.ids import ChunkId


class RecentChunks:
    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._chunks: OrderedDict[ChunkId, bytes] = OrderedDict()  # guarded by _lock
        self._bytes = 0  # guarded by _lock

    def set_limit(self, limit_bytes: int) -> None:
        with self._lock:
            self._limit = limit_bytes
            self._shrink()

    def get(self, id: ChunkId) -> bytes | None:
        if not self._chunks:
            return None
        with self._lock:
            found = self._chunks.get(id)
            if found is not None:
                self._chunks.move_to_end(id)
            return found

    def put(self, id: ChunkId, decoded: memoryview) -> None:
        with self._lock:
            if id in self._chunks or len(decoded) > self._limit:
                return
            self._chunks[id] = bytes(decoded)
            self._bytes += len(decoded)
            self._shrink()

    def _shrink(self) -> None:
        while self._bytes > self._limit:
            self._bytes -= len(self._chunks.popitem(last=False)[1])
