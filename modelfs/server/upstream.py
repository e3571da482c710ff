"""Calls to the repository that a site is a cache of: few at a time, each once for all who wait for the same.

Rule: nobody who waits holds a thread, and a client that leaves takes nothing away from the others.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Generic, TypeVar

from modelfs.logs import log_event, logger_for
from modelfs.stores.store import ObjectStore
from modelfs.units import Deadline

T = TypeVar("T")
_LOG = logger_for(__name__)


class Upstream:
    """Used on the event loop's thread; what is given to `ask` runs in others."""

    def __init__(self, store: ObjectStore, at_once: int, deadline_s: float) -> None:
        """deadline_s: how long upstream may be silent."""
        self.store, self.url = store, store.url
        self._turns = asyncio.Semaphore(at_once)
        self.deadline_s = deadline_s
        self._silent = False

    @property
    def silent(self) -> bool:
        """Whether it did not answer when it was asked last."""
        return self._silent

    def note(self, why: str | None) -> None:
        """It answered (None), or did not, and why."""
        if self._silent != (why is not None):
            self._silent = why is not None
            if why is None:
                log_event(_LOG, "info", "upstream.answers", store=self.url)
            else:
                log_event(_LOG, "warning", "upstream.silent", store=self.url, why=why,
                          advice="what was seen last is served until it answers")

    def deadline(self) -> Deadline:
        """Of one call, however large what it fetches."""
        return Deadline(self.deadline_s).patient()

    async def ask(self, call: Callable[[], T]) -> T:
        """By a thread that the end of the process does not wait for: upstream may be silent just then."""
        async with self._turns:
            loop = asyncio.get_running_loop()
            future: asyncio.Future[T] = loop.create_future()

            def run() -> None:
                try:
                    found = call()
                except Exception as error:  # raised again where it is waited for
                    settle(loop, future, error=error)
                else:
                    settle(loop, future, found)

            threading.Thread(target=run, name="upstream", daemon=True).start()
            return await future


def settle(loop: asyncio.AbstractEventLoop, future: asyncio.Future[T], result: T | None = None,
           error: Exception | None = None) -> None:
    """End a wait, from any thread; nothing where who waited has gone, or the loop has ended."""
    def end() -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    with suppress(RuntimeError):
        loop.call_soon_threadsafe(end)


class SingleFlight(Generic[T]):
    """At most one run at a time of what is wanted under a key; it goes on when nobody waits any more."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[T]] = {}

    async def once(self, key: str, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(start())
            task.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(task)

    def _ended(self, key: str, task: asyncio.Task[T]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # all who waited may have left; asyncio would complain
