"""Small objects on disk beside the chunks: one file each, named by a hash of what it is, carrying a hash of itself.

Rule: a file that is cut, flipped, or stands under another's name is a miss, and goes. One that is pinned (its
owner's execute bit says so, which costs no second file and survives a crash) stays when others make room.
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Callable

from blake3 import blake3

from modelfs.cache.room import Room
from modelfs.cache.system import LOCK_WAIT_S, disk_bytes, flock_within, write_all
from modelfs.cache.usage import META
from modelfs.errors import NoSpace
from modelfs.units import MiB

_MAGIC = b"mfsmeta\n"
_HEAD = len(_MAGIC) + 32
_TEMPORARY, _TEMPORARY_S = ".new-", 60.0
_PINNED = stat.S_IXUSR


class MetaFiles:
    """All methods raise OSError, and those that count NoSpace while the directory cannot be used."""

    def __init__(self, room: Room) -> None:
        self._room = room

    def read(self, kind: str, name: str) -> bytes | None:
        path = self._room.meta / _file_name(kind, name)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            raw = bytearray(os.fstat(fd).st_size)
            whole = os.preadv(fd, [raw], 0) == len(raw) > _HEAD - 1
            data = bytes(memoryview(raw)[_HEAD:])
            if whole and raw[:_HEAD] == _head(kind, name, data):
                os.utime(fd)
                return data
            taken = disk_bytes(os.fstat(fd))
        finally:
            os.close(fd)
        self._room.trouble.corrupt(path)
        path.unlink(missing_ok=True)
        self._room.usage.change(META, -taken)
        return None

    def write(self, kind: str, name: str, data: bytes) -> None:
        """Raises NoSpace where it does not fit, OSError."""
        path = self._room.meta / _file_name(kind, name)
        block = self._room.block
        reserved = -(-(_HEAD + len(data)) // block) * block
        usage = self._room.reserve(META, reserved)
        taken = 0
        try:
            new = self._room.meta / (_TEMPORARY + secrets.token_hex(8))
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                write_all(fd, _head(kind, name, data) + data, 0)
                taken = disk_bytes(os.fstat(fd))
                old = path.stat() if path.exists() else None
                if old is not None and old.st_mode & _PINNED:
                    os.fchmod(fd, 0o600 | _PINNED)
                os.rename(new, path)
                taken -= disk_bytes(old) if old is not None else 0
            except OSError:
                new.unlink(missing_ok=True)
                taken = 0
                raise
            finally:
                os.close(fd)
        finally:
            usage.change(META, taken - reserved)

    def set_pinned(self, kind: str, name: str, pinned: bool) -> bool:
        """False where there is no such object."""
        try:
            os.chmod(self._room.meta / _file_name(kind, name), 0o600 | (_PINNED if pinned else 0))
        except FileNotFoundError:
            return False
        return True

    def update(self, kind: str, name: str, change: Callable[[bytes | None], bytes]) -> None:
        """Replace an object by what change makes of it, while no other process does the same.

        Raises NoSpace where the lock is not to be had either: then it stays as it is.
        """
        fd = os.open(self._room.directory / "names.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not flock_within(fd, LOCK_WAIT_S):
                raise NoSpace("small objects of the cache", why="another process holds their lock")
            before = self.read(kind, name)
            after = change(before)
            if after != before:
                self.write(kind, name, after)
        finally:
            os.close(fd)

    def total(self) -> int:
        """Bytes on disk, as counted."""
        return self._room.usage.of(META)

    def drop_oldest(self, size: int) -> None:
        """Remove those not asked for longest, until about size bytes are free; pinned ones never."""
        usage = self._room.usage
        found = []
        for entry in list(os.scandir(self._room.meta)):
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue
            if not status.st_mode & _PINNED:
                found.append((status.st_mtime_ns, entry.path, disk_bytes(status)))
        for _, path, taken in sorted(found):
            if size <= 0:
                return
            try:
                os.unlink(path)
            except FileNotFoundError:
                continue
            usage.change(META, -taken)
            size -= taken

    def count(self) -> None:
        """Make the count what the disk says, and remove what a killed writer left."""
        usage = self._room.usage
        with usage.lock:
            total = disk_bytes(self._room.meta.stat())
            for entry in list(os.scandir(self._room.meta)):
                try:
                    status = entry.stat()
                    if entry.name.startswith(_TEMPORARY) and time.time() - status.st_mtime > _TEMPORARY_S:
                        os.unlink(entry.path)
                        continue
                except FileNotFoundError:
                    continue
                total += disk_bytes(status)
            usage.assign(META, total)

    def trim(self, limit_bytes: int) -> None:
        """Keep to a twentieth of the limit or 64 MiB, whichever is more, and never to more than half of the limit."""
        budget = min(max(limit_bytes // 20, 64 * MiB), limit_bytes // 2)
        over = self.total() - budget
        if over > 0:
            self.drop_oldest(over + budget // 10)


def _file_name(kind: str, name: str) -> str:
    return blake3(f"{kind}\0{name}".encode()).hexdigest()


def _head(kind: str, name: str, data: bytes) -> bytes:
    return _MAGIC + blake3(f"{kind}\0{name}\0".encode()).update(data).digest()
