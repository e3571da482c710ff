"""Calls of obstore that end with their deadline: an event loop in a thread of its own, and waiting for what runs there.

Rule: nobody waits past the deadline, Ctrl-C is heard while waiting, and no thread that is started for it takes signals
(tokio's inherit that from the loop's).
"""

from __future__ import annotations

import asyncio
import atexit
import signal
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from modelfs.errors import DeadlinePassed
from modelfs.units import Deadline, KiB, Patience

T = TypeVar("T")
_SLOWEST = 64 * KiB
"""Bytes a second at which an upload is thought alive: obstore tells of whole parts only, so that a Patience, which
bounds silence, gives what is on its way the time that it takes at this rate."""

_SETTLE_S = 1.0


class Allowance:
    """How long an upload may stay silent beyond a Patience: set by whoever knows what is on its way."""

    __slots__ = ("until",)

    def __init__(self, size_bytes: int) -> None:
        self.until = 0.0
        self.sending(size_bytes)

    def sending(self, size_bytes: int) -> None:
        """So many bytes are on their way from now on."""
        self.until = time.monotonic() + size_bytes / _SLOWEST


class Calls:
    """Runs coroutines for threads that wait. The loop begins with the first call, and ends with this object."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None  # guarded by _lock

    def start(self, make: Callable[[], Awaitable[T]]) -> Future[T]:
        """make: called in the loop's thread."""
        return asyncio.run_coroutine_threadsafe(_made(make), self._running())

    def wait(self, future: Future[T], deadline: Deadline, where: str, allowance: Allowance | None = None) -> T:
        """What start began. Raises DeadlinePassed, and what it raised.

        A call that is waited for no longer (here, or because of Ctrl-C) is cancelled: its connection is closed. A
        write may have been carried out all the same.
        """
        patient = allowance if isinstance(deadline, Patience) else None
        try:
            while True:
                left_s = deadline.remaining()
                if patient is not None:
                    left_s = max(left_s, patient.until - time.monotonic())
                try:
                    return future.result(min(left_s, threading.TIMEOUT_MAX))
                except TimeoutError:
                    if future.done():  # just now, or the error is its own
                        return future.result()
                if left_s <= 0:
                    raise DeadlinePassed("a store did not answer in time", where=where, why="the deadline passed")
        except BaseException:
            future.cancel()
            raise

    def run(self, make: Callable[[], Awaitable[T]], deadline: Deadline, where: str,
            allowance: Allowance | None = None) -> T:
        """start and wait. Nothing is asked once the deadline has passed."""
        deadline.check("a store was not asked in time", where)
        return self.wait(self.start(make), deadline, where, allowance)

    def tell(self, what: Callable[[], None]) -> None:
        """Call what in the loop's thread, soon."""
        with suppress(RuntimeError):  # the process ends
            self._running().call_soon_threadsafe(what)

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_run, args=(self._loop,), name="modelfs-cloud", daemon=True)
                thread.start()
                weakref.finalize(self, _stop, self._loop).atexit = False
                atexit.register(_settle, self._loop, thread)
            return self._loop


async def shielded(call: Awaitable[T]) -> T:
    """For start: a call that goes on when whoever waits for it has gone."""
    future = asyncio.ensure_future(call)
    future.add_done_callback(lambda done: done.cancelled() or done.exception())  # asked, so that asyncio logs nothing
    return await asyncio.shield(future)


async def _made(make: Callable[[], Awaitable[T]]) -> T:
    return await make()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        loop.run_forever()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
    finally:
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    with suppress(RuntimeError):  # it is closed already
        loop.call_soon_threadsafe(loop.stop)


def _settle(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """At the end of the process: no thread of tokio may be in Python's hands when the interpreter goes. It would be
    ended there, and Rust aborts the process for that: 3 of 40 short commands did, whose last answer had just come.

    Who is about to hand over an answer shows as running as long as this thread, asleep, does not hold the interpreter.
    """
    if not thread.is_alive():
        return
    _stop(loop)
    thread.join(_SETTLE_S)
    end, quiet = time.monotonic() + _SETTLE_S, 0
    while quiet < 2 and time.monotonic() < end:
        time.sleep(0.005)
        quiet = 0 if any(_is_running(task) for task in Path("/proc/self/task").iterdir()) else quiet + 1


def _is_running(task: Path) -> bool:
    """Whether it is a thread of tokio that runs or wants to."""
    try:
        name, state = (task / "stat").read_text().split("(", 1)[1].rsplit(") ", 1)
    except OSError:  # it has ended
        return False
    return name.startswith("tokio") and state[0] != "S"
