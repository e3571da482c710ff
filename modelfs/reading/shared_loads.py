"""One load for all who want the same thing at once, and its failure for all who come soon after.

Rule: however many want it, and in whatever order the kernel lets them ask, a store that hangs costs them one deadline.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

from modelfs.errors import DeadlinePassed, ModelfsError
from modelfs.reading import failures
from modelfs.units import Deadline

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SharedLoads(Generic[K, T]):
    """What was loaded is for the callers to keep: a key is loaded anew by whoever asks after that."""

    def __init__(self, where: str, renew: Callable[[], Deadline]) -> None:
        """where: the store, for messages. renew: a deadline from now, for the wait for somebody else's load."""
        self._where, self._renew = where, renew
        self._lock = threading.Lock()
        self._loading: dict[K, Future[T]] = {}  # guarded by _lock, as the next
        self._failed = failures.Failures[K]()

    def once(self, key: K, what: str, load: Callable[[], T]) -> T:
        """load's result, or that of the same load by somebody else. Raises what load raises, or raised at most 2 s ago.

        load looks first whether what it is for is here by now: another may have ended since the caller looked.
        what: it is, in the message of a wait that took too long.
        """
        with self._lock:
            error = self._failed.of(key)
            if error is not None:
                raise error.with_traceback(None)  # each raise would add to it
            shared = self._loading.get(key)
            if shared is None:
                mine = self._loading[key] = Future()
        if shared is None:
            return self._run(key, mine, load)
        try:
            return shared.result(min(self._renew().remaining(), threading.TIMEOUT_MAX))
        except TimeoutError as late:
            raise DeadlinePassed(what, where=self._where, why="the deadline passed") from late

    def _run(self, key: K, result: Future[T], load: Callable[[], T]) -> T:
        try:
            loaded = load()
        except BaseException as error:
            with self._lock:
                del self._loading[key]
                if isinstance(error, ModelfsError):
                    self._failed.note(key, error, failures.REMEMBER_FAILURE_S)
            result.set_exception(error)
            raise
        with self._lock:
            del self._loading[key]
        result.set_result(loaded)
        return loaded
