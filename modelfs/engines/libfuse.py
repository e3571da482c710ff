"""libfuse 2's session, served by Python threads of our own instead of fuse_main's.

Rule: no request waits for another: when every thread is busy there is one more. Libfuse's own pool ends whatever is
beyond ten idle threads, so a mount with read-ahead made and ended threads all the time; and each callback on a thread
that is not Python's makes a new thread state. Functions: fuse.h and fuse_lowlevel.h of libfuse 2.9.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import fuse

_FIRST_THREADS = 4
_MOST_THREADS = 1100  # beyond the requests that the kernel keeps open at once


class Session:
    """One mount. operations: has an attribute for each callback that is offered, as fusepy has it; handlers: the
    callbacks, by the same names; around: called with a handler and its arguments."""

    def __init__(self, operations: object, handlers: object, around: Callable[..., int]) -> None:
        self._library = fuse._libfuse
        self._offered = fuse.fuse_operations()
        self._around = around
        self._changed = threading.Lock()
        self._busy = 0  # guarded by _changed
        self._threads: list[threading.Thread] = []  # guarded by _changed
        self._session: int | None = None
        for name, prototype, *_ in self._offered._fields_:
            value = getattr(operations, "getattr" if name == "fgetattr" else name, None)
            if value is not None:
                function = hasattr(prototype, "argtypes")
                setattr(self._offered, name, prototype(partial(self._call, getattr(handlers, name)))
                        if function else value)

    def serve(self, mountpoint: str, options: list[str]) -> bool:
        """Mount, and serve until it is unmounted. False where libfuse could not mount; it printed why."""
        arguments = [b"modelfs", b"-f", b"-o", ",".join(options).encode(), mountpoint.encode()]
        argv = (ctypes.c_char_p * len(arguments))(*arguments)
        where, threaded = ctypes.c_char_p(), ctypes.c_int()
        mounted = _function(self._library, "fuse_setup", ctypes.c_void_p)(
            len(arguments), argv, ctypes.byref(self._offered), ctypes.c_size_t(ctypes.sizeof(self._offered)),
            ctypes.byref(where), ctypes.byref(threaded), None)
        if not mounted:
            return False
        try:
            self._session = _function(self._library, "fuse_get_session", ctypes.c_void_p)(ctypes.c_void_p(mounted))
            with self._changed:
                for _ in range(_FIRST_THREADS):
                    self._start_thread()
            self._join()
        finally:
            _function(self._library, "fuse_teardown", None)(ctypes.c_void_p(mounted), where)
        return True

    def _call(self, handler: Callable[..., int | None], *arguments: Any) -> int:
        with self._changed:
            self._busy += 1
            if self._busy >= len(self._threads) < _MOST_THREADS and self._session:
                self._start_thread()
        try:
            return self._around(handler, *arguments)
        finally:
            with self._changed:
                self._busy -= 1

    def _start_thread(self) -> None:
        loop = _function(self._library, "fuse_session_loop", ctypes.c_int)
        thread = threading.Thread(target=loop, args=(ctypes.c_void_p(self._session),), daemon=True,
                                  name=f"fuse-{len(self._threads)}")
        self._threads.append(thread)
        thread.start()

    def _join(self) -> None:
        """Each thread ends by itself when the device says that the mount is gone."""
        done = 0
        while True:
            with self._changed:
                waiting = self._threads[done:]
            if not waiting:
                return
            for thread in waiting:
                thread.join()
                done += 1


def _function(library: Any, name: str, result: Any) -> Any:
    """A function object of its own, so that nobody's settings of the shared library are changed."""
    found = library._FuncPtr((name, library))
    found.restype = result
    return found
