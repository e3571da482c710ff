"""How much the cache may hold: each live daemon of the directory writes its limits down, and the smallest holds.

Rule: a limit counts as long as a process holds the lock on its file; what the dead left is removed by whoever
looks next.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from pathlib import Path

from modelfs.cache.system import flock_within, write_all
from modelfs.units import DiskShare

_LOOK_S = 1.0
_LINE = 64


class Limits:
    def __init__(self, directory: Path, limit: DiskShare, min_free: DiskShare) -> None:
        self._directory = directory
        self._limit, self._min_free = limit, min_free
        self._path: Path | None = None
        self._fd = -1
        self._published: tuple[int, int] | None = None
        self._looked_s = 0.0
        self.limit_bytes = self.min_free_bytes = 0

    def set(self, limit: DiskShare, min_free: DiskShare) -> None:
        """Raises OSError; the new limits hold in this process even then."""
        self._limit, self._min_free = limit, min_free
        self.publish()

    def publish(self) -> None:
        """Write this daemon's limits down (again, if the file has gone), and look at all. Raises OSError."""
        try:
            if self._path is None or not _is_at(self._fd, self._path):
                self._make()
            own = self._own()
            if own != self._published:
                write_all(self._fd, f"{own[0]} {own[1]}\n".ljust(_LINE).encode(), 0)
                self._published = own
        finally:
            self.look()

    def look(self) -> None:
        """Take the smallest of the living daemons' limits and the largest of their min_free. Raises OSError."""
        limit, min_free = self._own()
        self._looked_s = time.monotonic()
        self.limit_bytes, self.min_free_bytes = min(limit, self.limit_bytes or limit), min_free
        for entry in list(os.scandir(self._directory)):
            other = _read_living(entry.path) if self._path is None or entry.name != self._path.name else None
            if other is not None:
                limit, min_free = min(limit, other[0]), max(min_free, other[1])
        self.limit_bytes, self.min_free_bytes = limit, min_free

    def look_if_old(self) -> None:
        if time.monotonic() - self._looked_s > _LOOK_S:
            self.look()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _own(self) -> tuple[int, int]:
        disk = os.statvfs(self._directory)
        total = disk.f_blocks * disk.f_frsize
        return self._limit.of(total), self._min_free.of(total)

    def _make(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._path, self._published = -1, None, None
        while True:  # until the file that is locked is the one that stands there: another may remove it in between
            path = self._directory / secrets.token_hex(8)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            if flock_within(fd, 1.0) and _is_at(fd, path):
                self._fd, self._path = fd, path
                return
            os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _read_living(path: str) -> tuple[int, int] | None:
    """Limit and min_free of another daemon; None, and the file removed, where it has ended."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            words = os.pread(fd, _LINE, 0).split()
            try:
                return (int(words[0]), int(words[1])) if len(words) == 2 else None
            except ValueError:
                return None
        os.unlink(path)
    except FileNotFoundError:
        pass
    finally:
        os.close(fd)
    return None
