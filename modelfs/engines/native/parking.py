"""Requests that wait: reads for chunks, other calls for a manifest or a history. They hold no thread and no buffer.

Rule: whoever takes a request out of the table answers it, and nobody else does; so a read that arrives, one that is
interrupted and one whose deadline passes at the same moment make one answer.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from modelfs.errors import ModelfsError
from modelfs.view.loading import NotLoaded

_MOST_LOADS = 64
_TICK_S = 0.1


def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True)
class Parked:
    """One request. late: called when its deadline has passed. cancel: when it was interrupted; it is answered then."""

    due_s: float = math.inf
    late: Callable[[], None] = _nothing
    cancel: Callable[[], None] = _nothing


class ParkedRequests:
    """By the kernel's `unique`. A thread looks for those whose time has passed."""

    def __init__(self) -> None:
        self._requests: dict[int, Parked] = {}  # single operations on a dict need no lock
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="deadlines", daemon=True).start()

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, unique: int) -> bool:
        return unique in self._requests

    def put(self, unique: int, parked: Parked) -> None:
        self._requests[unique] = parked

    def take(self, unique: int) -> bool:
        """Whether the request was there: then the caller answers it."""
        return self._requests.pop(unique, None) is not None

    def interrupt(self, unique: int) -> bool:
        """Whether the request was there: then the caller answers it, and nothing else becomes of it."""
        parked = self._requests.pop(unique, None)
        if parked is None:
            return False
        parked.cancel()
        return True

    def close(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(_TICK_S):
            now = time.monotonic()
            for parked in [parked for parked in list(self._requests.values()) if parked.due_s <= now]:
                parked.late()


@dataclass(slots=True)
class _Loading:
    load: Callable[[], object]
    waiting: list[Callable[[ModelfsError | None], None]] = field(default_factory=list)


class Loads:
    """Loads what requests wait for, each thing once at a time, in a thread that ends with it."""

    def __init__(self, failed: Callable[[BaseException], ModelfsError]) -> None:
        """failed: makes an error for a reader of an exception that should not have been."""
        self._failed = failed
        self._lock = threading.Lock()
        self._under_way: dict[object, _Loading] = {}  # guarded by _lock
        self._queue: deque[object] = deque()  # guarded by _lock; keys that wait for a thread
        self._threads = 0  # guarded by _lock

    def put(self, missing: NotLoaded, then: Callable[[ModelfsError | None], None]) -> None:
        """then: called from another thread, with what went wrong."""
        with self._lock:
            loading = self._under_way.get(missing.key)
            if loading is None:
                loading = self._under_way[missing.key] = _Loading(missing.load)
                self._queue.append(missing.key)
                if self._threads < _MOST_LOADS:
                    self._threads += 1
                    threading.Thread(target=self._work, name="load", daemon=True).start()
            loading.waiting.append(then)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._threads -= 1
                    return
                key = self._queue.popleft()
                loading = self._under_way[key]
            error: ModelfsError | None = None
            try:
                loading.load()
            except ModelfsError as trouble:
                error = trouble
            except Exception as trouble:
                error = self._failed(trouble)
            with self._lock:
                del self._under_way[key]
            for then in loading.waiting:
                then(error)
