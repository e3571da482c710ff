"""What the standard library lacks for a shared cache: mappings that hold no descriptor, holes, locks that end.

Rule: everything here either works or raises OSError, and nothing waits for another process for ever: a stopped
daemon that holds a lock costs the others some fills, never a hang.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import threading
import time
from contextlib import suppress
from types import TracebackType

LOCK_WAIT_S = 2.0
_LOW = 10  # nice
_PROT_READ_WRITE, _MAP_SHARED = 1 | 2, 1
_PUNCH_HOLE_KEEP_SIZE = 2 | 1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_fallocate = getattr(_libc, "fallocate", None)
if _fallocate is not None:
    _fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class _Mapped:
    """An address range, unmapped when the last view of it goes."""

    __slots__ = ("address", "size")

    def __init__(self, address: int, size: int) -> None:
        self.address, self.size = address, size

    def __del__(self) -> None:
        _libc.munmap(self.address, self.size)


def map_shared(fd: int, size: int) -> memoryview:
    """Bytes 0 to size of an open file, shared with every process that maps it; size > 0.

    Python's own mmap keeps a duplicate of the descriptor, and 1200 open models would need 1200 of them. The file
    must have a disk block behind each of these bytes (`allocate`), or a store into it may end the process (SIGBUS).
    Raises OSError.
    """
    address = _libc.mmap(None, size, _PROT_READ_WRITE, _MAP_SHARED, fd, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "mmap")
    buffer = (ctypes.c_ubyte * size).from_address(address)
    buffer._owner = _Mapped(address, size)  # type: ignore[attr-defined]  # every view keeps `buffer`, and so this
    return memoryview(buffer).cast("B")


def allocate(fd: int, size: int) -> None:
    """Give every one of the first size bytes a disk block; the file is at least that long then. Raises OSError."""
    os.posix_fallocate(fd, 0, size)


def punch(fd: int, start: int, length: int) -> bool:
    """Give back the blocks of a range; it then reads as zeros. False where the filesystem cannot. Raises OSError."""
    if _fallocate is None:
        return False
    if _fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, start, length) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EOPNOTSUPP, errno.ENOSYS):
        return False
    raise OSError(code, os.strerror(code), "fallocate")


def page_buffer(size: int) -> mmap.mmap:
    """size bytes (at least 1), zero, from the beginning of a page on: for what the kernel copies out of its page cache.

    Into a buffer that begins 1 to 31 bytes past a page's beginning, as a large bytearray does, AMD processors copy a
    fifth as fast: 1.5 against 8 GB/s (EPYC, Linux 6.18, preadv of 128 KiB to 4 MiB).
    """
    return mmap.mmap(-1, size)


def lower_priority() -> None:
    """This thread's work can wait: it takes what processor time others leave."""
    # Only Linux gives threads a priority of their own; elsewhere the id is unknown, and it stays as it is.
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOW)


def disk_bytes(status: os.stat_result) -> int:
    """What a file really takes on disk."""
    return status.st_blocks * 512


def write_all(fd: int, data: memoryview | bytes, offset: int) -> None:
    """pwrite until all of it is written. Raises OSError."""
    rest = memoryview(data)
    while len(rest):
        done = os.pwrite(fd, rest, offset)
        rest, offset = rest[done:], offset + done


def flock_within(fd: int, seconds: float) -> bool:
    """LOCK_EX on fd's open file description; False if another held it all that time. Raises OSError."""
    end, pause = time.monotonic() + seconds, 0.0001
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
        time.sleep(pause)
        pause = min(2 * pause, 0.005)


class SharedLock:
    """A lock among the threads of this process and, by flock on fd, among processes.

    `with` it, or `acquire` with a time of your own. Raises TimeoutError (an OSError) where it cannot be had in
    LOCK_WAIT_S. fd stays the caller's.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._threads = threading.Lock()

    def acquire(self, seconds: float = LOCK_WAIT_S) -> bool:
        if not self._threads.acquire(timeout=seconds):
            return False
        try:
            taken = flock_within(self._fd, seconds)
        except OSError:
            self._threads.release()
            raise
        if not taken:
            self._threads.release()
        return taken

    def release(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        finally:
            self._threads.release()

    def __enter__(self) -> None:
        if not self.acquire():
            raise TimeoutError(errno.ETIMEDOUT, "another process holds a lock of the cache")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.release()
