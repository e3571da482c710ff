"""Stores around a store: one tries again what may be tried again, one counts.

Rule: only Unavailable is tried again, never past the deadline, and whoever waits for it is told; a swap that is lost
after a try without an answer may have been won by that try, so what stands there now decides.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TypeVar

from modelfs.errors import DeadlinePassed, ObjectMissing, SwapLost, Unavailable, WrongServer
from modelfs.metrics import Metrics
from modelfs.stores.store import Buffer, Fetched, ObjectInfo, ObjectStore, RangeStream
from modelfs.units import Deadline

T = TypeVar("T")
Tell = Callable[[str], None]
"""A line for people; called from any thread."""

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0
TELL_AFTER_S = 2.0
_LEAST_TRIES = 5


class RetryingStore:
    """A store that is asked again, after 0.1 s to 5 s and what Retry-After says, until the deadline. Where bytes that
    moved in vain renew the deadline, it is given up after five tries and the time that the deadline had at first.

    tell: is told once that the store does not answer, when somebody has waited for TELL_AFTER_S.

    A put with only_if_absent that answers False may have been its own first try, whose answer was lost. A range
    that breaks off midway is for its reader to plan anew: it knows which chunks arrived.
    """

    def __init__(self, store: ObjectStore, metrics: Metrics | None = None, *, tell: Tell | None = None,
                 first_wait_s: float = FIRST_WAIT_S, longest_wait_s: float = LONGEST_WAIT_S) -> None:
        self.store = store
        self.url = store.url
        self._metrics = metrics
        self._lock = threading.Lock()
        self._tell = tell  # guarded by _lock; None once it was told
        self._first_wait_s = first_wait_s
        self._longest_wait_s = longest_wait_s

    def get(self, key: str, deadline: Deadline, *, limit: int, etag: str | None = None,
            fresh: bool = False) -> Fetched | None:
        return self._again(deadline, lambda: self.store.get(key, deadline, limit=limit, etag=etag, fresh=fresh))

    def open_range(self, key: str, offset: int, length: int, deadline: Deadline) -> RangeStream:
        return self._again(deadline, lambda: self.store.open_range(key, offset, length, deadline))

    def stat(self, key: str, deadline: Deadline) -> ObjectInfo:
        return self._again(deadline, lambda: self.store.stat(key, deadline))

    def put(self, key: str, data: Buffer, deadline: Deadline, *, only_if_absent: bool = False) -> bool:
        return self._again(deadline, lambda: self.store.put(key, data, deadline, only_if_absent=only_if_absent))

    def swap(self, key: str, expected: str | None, new: bytes, deadline: Deadline) -> str | None:
        ambiguous = False

        def attempt() -> str | None:
            nonlocal ambiguous
            try:
                return self.store.swap(key, expected, new, deadline)
            except SwapLost:
                found = self._now(key, len(new), deadline) if ambiguous else None
                if found is None or found.data != new:
                    raise
                return found.etag  # an earlier try won, whose answer was lost
            except Unavailable:
                ambiguous = True
                raise

        return self._again(deadline, attempt)

    def list(self, prefix: str, deadline: Deadline) -> Iterator[ObjectInfo]:
        return iter(self._again(deadline, lambda: tuple(self.store.list(prefix, deadline))))

    def delete(self, key: str, deadline: Deadline) -> None:
        self._again(deadline, lambda: self.store.delete(key, deadline))

    def _now(self, key: str, limit: int, deadline: Deadline) -> Fetched | None:
        """What stands there, or None where it is none of ours: missing, or larger than limit."""
        try:
            info = self.store.stat(key, deadline)
            return self.store.get(key, deadline, limit=limit, fresh=True) if info.size <= limit else None
        except ObjectMissing:
            return None

    def _again(self, deadline: Deadline, call: Callable[[], T]) -> T:
        wait_s = self._first_wait_s
        tries, began = 0, time.monotonic()
        enough = deadline.sooner(math.inf)
        last: Unavailable | None = None
        while True:
            tries += 1
            try:
                return call()
            except DeadlinePassed as error:
                raise _gave_up(last or error, tries) from error
            except WrongServer:
                raise
            except Unavailable as error:
                if enough.passed and tries >= _LEAST_TRIES:
                    raise _gave_up(error, tries) from error
                pause_s = self._pause(error, wait_s, deadline, tries)
                last = error
            if time.monotonic() + pause_s - began > TELL_AFTER_S:
                self._say(last, deadline)
            if self._metrics:
                self._metrics.add("fetch_retries")
            time.sleep(pause_s)
            wait_s = min(2 * wait_s, self._longest_wait_s)

    def _say(self, error: Unavailable, deadline: Deadline) -> None:
        with self._lock:
            tell, self._tell = self._tell, None
        if tell is not None:
            until = time.strftime("%H:%M:%S", time.localtime(time.time() + min(deadline.remaining(), 1e9)))
            tell(f"{self.url} does not answer ({error.why or error.what}); trying until {until}")

    def _pause(self, error: Unavailable, wait_s: float, deadline: Deadline, tries: int) -> float:
        """Seconds until the next try. Raises where none is left before the deadline."""
        left_s = deadline.remaining()
        asked_s = error.retry_after_s or 0.0
        if asked_s >= left_s > 0:
            raise Unavailable(error.what, where=error.where, retry_after_s=asked_s,
                              why=f"{error.why}, and it asks to wait {asked_s:.0f} s, longer than the deadline"
                              ) from error
        if left_s <= self._first_wait_s:
            raise _gave_up(error, tries) from error
        # At most half of what is left: a store that comes back shortly before the deadline is still met.
        return max(asked_s, min(random.uniform(0.5, 1.0) * wait_s, left_s / 2))


def _gave_up(error: Unavailable, tries: int) -> DeadlinePassed:
    """What the store last said is worth more to people than that time is up."""
    asked = "once" if tries == 1 else f"{tries} times"
    return DeadlinePassed(error.what, where=error.where, why=f"{error.why}; tried {asked} until the deadline passed")


class MeteredStore:
    """A store whose calls count as `requests`, and the bytes that it sends as `bytes_fetched`."""

    def __init__(self, store: ObjectStore, metrics: Metrics) -> None:
        self.store = store
        self.url = store.url
        self._metrics = metrics

    def get(self, key: str, deadline: Deadline, *, limit: int, etag: str | None = None,
            fresh: bool = False) -> Fetched | None:
        self._metrics.add("requests")
        found = self.store.get(key, deadline, limit=limit, etag=etag, fresh=fresh)
        if found is not None:
            self._metrics.add("bytes_fetched", len(found.content))
        return found

    def open_range(self, key: str, offset: int, length: int, deadline: Deadline) -> RangeStream:
        self._metrics.add("requests")
        return _MeteredRange(self.store.open_range(key, offset, length, deadline), self._metrics)

    def stat(self, key: str, deadline: Deadline) -> ObjectInfo:
        self._metrics.add("requests")
        return self.store.stat(key, deadline)

    def put(self, key: str, data: Buffer, deadline: Deadline, *, only_if_absent: bool = False) -> bool:
        self._metrics.add("requests")
        return self.store.put(key, data, deadline, only_if_absent=only_if_absent)

    def swap(self, key: str, expected: str | None, new: bytes, deadline: Deadline) -> str | None:
        self._metrics.add("requests")
        return self.store.swap(key, expected, new, deadline)

    def list(self, prefix: str, deadline: Deadline) -> Iterator[ObjectInfo]:
        self._metrics.add("requests")
        return self.store.list(prefix, deadline)

    def delete(self, key: str, deadline: Deadline) -> None:
        self._metrics.add("requests")
        self.store.delete(key, deadline)


class _MeteredRange:
    __slots__ = ("_metrics", "_stream")

    def __init__(self, stream: RangeStream, metrics: Metrics) -> None:
        self._stream, self._metrics = stream, metrics

    def readinto(self, view: memoryview) -> None:
        self._stream.readinto(view)
        self._metrics.add("bytes_fetched", view.nbytes)

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> _MeteredRange:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
