"""A store that moves no more bytes a second than it may, in both directions together.

Rule: the rate is one for all threads; what was not used is kept for a tenth of a second, no longer. Who waits here
waits for us, and not for the store.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from modelfs.stores.store import Buffer, Fetched, ObjectInfo, ObjectStore, RangeStream
from modelfs.units import Deadline, KiB, Patience

_PIECE = 64 * KiB
_BURST_S = 0.1


class Throttle:
    """bytes_per_s: above 0. clock, sleep: in seconds."""

    def __init__(self, bytes_per_s: float, *, clock: Callable[[], float] = time.monotonic,
                 sleep: Callable[[float], None] = time.sleep) -> None:
        self._rate, self._clock, self._sleep = bytes_per_s, clock, sleep
        self._lock = threading.Lock()
        self._free_s = clock()  # when all that was taken has moved; guarded by _lock

    def take(self, size: int) -> None:
        """Returns once size more bytes may have moved."""
        with self._lock:
            now = self._clock()
            self._free_s = max(self._free_s, now - _BURST_S) + size / self._rate
            wait_s = self._free_s - now
        if wait_s > 0:
            self._sleep(wait_s)


class ThrottledStore:
    """Bodies count, requests do not. What is put waits as it is sent, where the store tells of what it sends."""

    def __init__(self, store: ObjectStore, throttle: Throttle) -> None:
        self.store, self.url, self._throttle = store, store.url, throttle

    def get(self, key: str, deadline: Deadline, *, limit: int, etag: str | None = None,
            fresh: bool = False) -> Fetched | None:
        found = self.store.get(key, deadline, limit=limit, etag=etag, fresh=fresh)
        if found is not None:
            self._throttle.take(len(found.content))
        return found

    def open_range(self, key: str, offset: int, length: int, deadline: Deadline) -> RangeStream:
        return _ThrottledRange(self.store.open_range(key, offset, length, deadline), self._throttle)

    def stat(self, key: str, deadline: Deadline) -> ObjectInfo:
        return self.store.stat(key, deadline)

    def put(self, key: str, data: Buffer, deadline: Deadline, *, only_if_absent: bool = False) -> bool:
        paced = _Paced(deadline, self._throttle)
        put = self.store.put(key, data, paced, only_if_absent=only_if_absent)
        if put:
            self._throttle.take(max(0, memoryview(data).nbytes - paced.told))
        return put

    def swap(self, key: str, expected: str | None, new: bytes, deadline: Deadline) -> str | None:
        return self.store.swap(key, expected, new, deadline)

    def list(self, prefix: str, deadline: Deadline) -> Iterator[ObjectInfo]:
        return self.store.list(prefix, deadline)

    def delete(self, key: str, deadline: Deadline) -> None:
        self.store.delete(key, deadline)


class _Paced(Patience):
    """A deadline that holds up whoever tells it of bytes that moved, and is over when the one behind it is."""

    __slots__ = ("_behind", "_throttle", "told")

    def __init__(self, behind: Deadline, throttle: Throttle) -> None:
        super().__init__(behind.remaining())
        self._behind, self._throttle, self.told = behind, throttle, 0

    def moved(self, size_bytes: int) -> None:
        self.told += size_bytes
        self._throttle.take(size_bytes)
        self._behind.moved(size_bytes)

    def remaining(self) -> float:
        return self._behind.remaining()

    @property
    def passed(self) -> bool:
        return self._behind.passed


class _ThrottledRange:
    def __init__(self, stream: RangeStream, throttle: Throttle) -> None:
        self._stream, self._throttle = stream, throttle

    def readinto(self, view: memoryview) -> None:
        for start in range(0, len(view), _PIECE):
            piece = view[start:start + _PIECE]
            self._throttle.take(len(piece))
            self._stream.readinto(piece)

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> _ThrottledRange:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
