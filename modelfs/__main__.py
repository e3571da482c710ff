"""`modelfs` and `python -m modelfs`: the command line as a process.

Rule: Ctrl-C ends it with 130 and one line at most, whenever it comes: while modules are imported, while other threads
wait for a store that hangs, and while the interpreter shuts down. Before `run` Python has its own say, a traceback, so
nothing is imported above that takes time (threading and contextlib: 3 ms).
"""

from __future__ import annotations

import atexit
import os
import signal
import sys

INTERRUPTED = 130
_GRACE_S = 2.0
"""For what an interrupted command has to put right (pins, temporary files). Longer would be a thread of a pool that
waits for a store, until its deadline: what it leaves half is unfinished by every format that modelfs writes."""


def run() -> int:
    """The process's exit code."""
    ended: list[int] = []
    atexit.register(_end, ended)  # the first to come is the last to be called
    mine = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not where it is ignored, as under nohup
    if mine:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    from modelfs.cli.main import main

    if mine:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        code = main()
    except KeyboardInterrupt:  # before main could take it
        code = INTERRUPTED
    if code == INTERRUPTED:
        # sys.exit would not do: an interrupt inside exec(), which dataclasses use, makes Python end by the signal
        os._exit(code)
    if mine:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    ended.append(code)
    return code


def _end(ended: list[int]) -> None:
    """Where object stores were used, all is done but to take the interpreter down, and that ends tokio's threads in the
    middle of what they do, for which Rust aborts the process."""
    from contextlib import suppress

    if ended and "modelfs.stores.cloud_calls" in sys.modules:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # closed, or nobody reads it any more
                stream.flush()
        os._exit(ended[0])


def _interrupt(*_: object) -> None:
    """Once as Python has it, and then for a moment only; a second Ctrl-C does not wait at all."""
    from threading import Timer  # loaded long since

    signal.signal(signal.SIGINT, lambda *_: _leave())
    watchdog = Timer(_GRACE_S, _leave)
    watchdog.daemon = True
    watchdog.start()
    raise KeyboardInterrupt


def _leave() -> None:
    os.write(2, b"modelfs: interrupted\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(run())
