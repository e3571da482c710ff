"""Children of this process that go on without another interpreter's start: what is imported they have.

Rule: only in a process of one thread. A child has the descriptors that it is given and no other, as after an exec, and
never returns into what its parent was doing.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import traceback
from collections.abc import Callable, Collection
from contextlib import suppress

_STANDARD = 3


def above_standard(descriptor: int) -> int:
    """A copy that is none of the standard streams, which who called us may have closed."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _STANDARD)


class Forked:
    """A child, as subprocess.Popen knows one. Its exit code is what `run` returns, 1 where that raises.

    kept: descriptors that it has beside the standard streams. stderr: where it writes, if not where we do; it reads and
    prints nothing.
    """

    def __init__(self, run: Callable[[], int], kept: Collection[int], stderr: int = 2) -> None:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()  # else the child would write it, too
        self._code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            _end(run, kept, stderr)

    def wait(self) -> int:
        """Its exit code; of one that a signal ended, that signal's number below zero."""
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code

    def send_signal(self, number: int) -> None:
        if self._code is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _end(run: Callable[[], int], kept: Collection[int], stderr: int) -> None:
    code = 1
    try:
        _begin_anew(kept, stderr)
        code = run()
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stderr.flush()
        finally:
            os._exit(code)


def _begin_anew(kept: Collection[int], stderr: int) -> None:
    """As a new process would: no handlers of signals, no descriptors of others."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    nothing, stderr = above_standard(os.open(os.devnull, os.O_RDWR)), above_standard(stderr)
    for source, target in ((nothing, 0), (nothing, 1), (stderr, 2)):
        os.dup2(source, target)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor >= _STANDARD and descriptor not in kept:
            with suppress(OSError):  # the listing's own is closed already
                os.close(descriptor)
    # those of Python may be None, where who called had closed theirs
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, errors="backslashreplace", closefd=False) for number in (1, 2))
