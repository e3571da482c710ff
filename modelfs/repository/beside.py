"""Two requests that do not need one another are one round trip.

Rule: the call beside has a deadline of its own, so its thread ends by itself, whether anybody asks for its result.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def beside(call: Callable[[], T]) -> Callable[[], T]:
    """Begin call in a thread; what is returned waits for its result, and raises what it raised."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    # signals are the main thread's: one that another took would not end what that waits in
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        threading.Thread(target=run, name="beside", daemon=True).start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return result.result
