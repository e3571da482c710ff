"""Kept buffers for fetching and decoding, within a ceiling of bytes.

Rule: whoever takes a buffer holds no other while it waits, so the ceiling cannot deadlock.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from modelfs.units import MiB

_KEPT_BYTES = 64 * MiB
"""Kept for reuse: a fresh 4 MiB bytearray costs 0.3 ms of page faults, a kept one nothing."""


class BufferPool:
    """take(n): n writable bytes. limit: of all that is taken at once; one buffer alone may pass it."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._changed = threading.Condition()
        self._taken = 0  # guarded by _changed
        self._kept: list[bytearray] = []  # guarded by _changed

    def set_limit(self, limit_bytes: int) -> None:
        with self._changed:
            self._limit = limit_bytes
            self._changed.notify_all()

    @contextmanager
    def take(self, size: int) -> Iterator[memoryview]:
        with self._changed:
            while self._taken and self._taken + size > self._limit:
                self._changed.wait()
            self._taken += size
            found = next((n for n in range(len(self._kept) - 1, -1, -1) if len(self._kept[n]) >= size), None)
            raw = self._kept.pop(found) if found is not None else None
        if raw is None:
            raw = bytearray(size)
        view = memoryview(raw)[:size]
        try:
            yield view
        finally:
            view.release()
            with self._changed:
                self._taken -= size
                if sum(map(len, self._kept)) + len(raw) <= min(_KEPT_BYTES, self._limit):
                    self._kept.append(raw)
                self._changed.notify_all()
