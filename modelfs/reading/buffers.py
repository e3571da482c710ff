"""Kept buffers for fetching and decoding, within a ceiling of bytes.

Rule: whoever takes a buffer holds no other while it waits, nobody waits past the deadline, and what is fetched
ahead leaves half of the memory to readers; so neither the ceiling nor a prefetch that stalls can block a reader.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from modelfs.cache.system import page_buffer
from modelfs.errors import DeadlinePassed
from modelfs.units import Deadline, KiB, MiB

_KEPT_BYTES = 64 * MiB
"""Kept for reuse: a fresh one of 4 MiB costs 0.3 ms of page faults, a kept one nothing."""
_GRAIN = 256 * KiB
"""Large ones are multiples of it: else each chunk that stores a few bytes more than those before needs a fresh one."""


class BufferPool:
    """take(n): n writable bytes, at a page's beginning. limit: of all that is taken and kept; the first buffer of
    readers, and the first ahead of them, may pass it, so that a limit smaller than a chunk still works."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._changed = threading.Condition()
        self._taken = {True: 0, False: 0}  # by demand; guarded by _changed
        self._kept: list[mmap.mmap] = []  # guarded by _changed

    def set_limit(self, limit_bytes: int) -> None:
        with self._changed:
            self._limit = limit_bytes
            self._changed.notify_all()

    @contextmanager
    def take(self, size: int, deadline: Deadline, *, demand: bool = True) -> Iterator[memoryview]:
        """The content is what the last user left. Raises DeadlinePassed where none comes free in time."""
        raw = self._enter(size, deadline, demand)
        view = memoryview(raw)[:size]
        try:
            yield view
        finally:
            view.release()
            self._leave(raw, demand)

    def held_bytes(self) -> int:
        """Taken and kept."""
        with self._changed:
            return self._held()

    def _held(self) -> int:
        return self._taken[True] + self._taken[False] + sum(map(len, self._kept))

    def _full(self, size: int, demand: bool) -> bool:
        if not self._taken[demand]:
            return False
        if demand:
            return self._taken[True] + self._taken[False] + size > self._limit
        return self._taken[False] + size > self._limit // 2

    def _enter(self, size: int, deadline: Deadline, demand: bool) -> mmap.mmap:
        if size > _GRAIN:
            size = -(-size // _GRAIN) * _GRAIN
        with self._changed:
            while self._full(size, demand):
                left = deadline.remaining()
                if left <= 0:
                    raise DeadlinePassed("no buffer came free", why="fetch.memory is in use, and the deadline passed")
                self._changed.wait(min(left, threading.TIMEOUT_MAX))
            found = next((n for n in range(len(self._kept) - 1, -1, -1) if len(self._kept[n]) >= size), None)
            if found is not None:
                raw = self._kept.pop(found)
                self._taken[demand] += len(raw)
                return raw
            self._taken[demand] += size
            while self._kept and self._held() > self._limit:
                self._kept.pop(0)
        return page_buffer(size)

    def _leave(self, raw: mmap.mmap, demand: bool) -> None:
        with self._changed:
            self._taken[demand] -= len(raw)
            if self._held() + len(raw) <= self._limit and sum(map(len, self._kept)) + len(raw) <= _KEPT_BYTES:
                self._kept.append(raw)
            self._changed.notify_all()
