"""The signals that a mount's process takes, and the threads that are to leave them alone.

Rule: a thread that is started, by whomever, before the main thread waits for signals is started with them blocked: the
kernel gives a signal to any thread that takes it, and only the main thread acts on it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

WAKE = signal.SIGUSR1  # from our own threads: look at what has changed
TAKEN = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, WAKE})


@contextmanager
def threads_without_signals() -> Iterator[None]:
    """Threads that are started in here leave signals to the main thread, for ever."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TAKEN)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
