"""Small objects on disk beside the chunks: one file each, named by a hash of what it is, carrying a hash of itself.

Rule: a file that is cut, flipped, or stands under another's name is a miss, and goes. One that is pinned (its
owner's execute bit says so, which costs no second file and survives a crash) stays when others make room. No file is
changed once it has its name: it is replaced, and who has the old one mapped keeps that.
"""

from __future__ import annotations

import mmap
import os
import secrets
import stat
import time
from collections.abc import Callable
from typing import TypeVar

from blake3 import blake3

from modelfs.cache.room import Room
from modelfs.cache.system import LOCK_WAIT_S, disk_bytes, flock_within, page_buffer, write_all
from modelfs.cache.usage import META
from modelfs.errors import NoSpace
from modelfs.ids import Digest
from modelfs.repository.held import Held
from modelfs.units import KiB, MiB

T = TypeVar("T")

_MAGIC = b"mfsmeta2"
_OLD_MAGIC = b"mfsmeta\n"  # whose hash was of kind, name and data in one go; such files stay readable
_HEAD = len(_MAGIC) + 32  # 40 bytes: the columns behind it are aligned to 8 in the mapping
_PIECE = 256 * KiB  # read and hashed while it is in the processor's cache
_REST_PIECE = 8 * MiB  # madvise holds the interpreter, 1 ms for 16 MiB
_TEMPORARY, _TEMPORARY_S = ".new-", 60.0
_PINNED = stat.S_IXUSR


class MetaFiles:
    """All methods raise OSError, and those that count NoSpace while the directory cannot be used."""

    def __init__(self, room: Room) -> None:
        self._room = room

    def read(self, kind: str, name: str) -> bytes | None:
        return self._sound(kind, name, lambda fd, size: _whole(fd, size, kind, name))

    def map(self, kind: str, name: str, digest: Digest | None, large: int) -> Held | None:
        """As `read`, but an object of `large` bytes or more is mapped, read-only. digest: of the object, where known;
        then it is checked, too.

        It is checked by reading, so a disk that fails is an OSError here. Later nobody looks: where the system dropped
        a page and cannot read it again, or the file was cut in place (nobody but its owner may: the directory is his
        alone, and no modelfs does), the process ends by SIGBUS, and a keeper starts another, which checks anew. A page
        that comes back with other bytes gives wrong names, sizes or ids, as a disk that lies about any database does,
        but no wrong chunk: each is checked by its id. Bounds of arrays are numpy's to keep.
        Each mapping has a descriptor of its own, for as long as it lives.
        """
        def use(fd: int, size: int) -> Held | None:
            if size - _HEAD < large:
                data = _whole(fd, size, kind, name)
                return None if data is None or digest not in (None, Digest.of(data)) else Held(data)
            return _mapped(fd, size) if _is_sound(fd, size, kind, name, digest) else None
        return self._sound(kind, name, use)

    def _sound(self, kind: str, name: str, use: Callable[[int, int], T | None]) -> T | None:
        """What use makes of the open file and its size; where that is None, the file goes."""
        path = self._room.meta / _file_name(kind, name)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            found = use(fd, os.fstat(fd).st_size)
            if found is not None:
                os.utime(fd)
                return found
            taken = disk_bytes(os.fstat(fd))
        finally:
            os.close(fd)
        self._room.trouble.corrupt(path)
        path.unlink(missing_ok=True)
        self._room.usage.change(META, -taken)
        return None

    def write(self, kind: str, name: str, data: bytes | memoryview, digest: Digest | None = None, *,
              mapped: bool = False) -> Held | None:
        """digest: of data, where known. mapped: hand out what was written, as `map` does; it is not read once more,
        since it is this very file, and no other, that was just written. Raises NoSpace where it does not fit, OSError.
        """
        def fill(fd: int) -> bool:
            write_all(fd, _head(kind, name, digest or Digest.of(data)), 0)
            write_all(fd, data, _HEAD)
            return True
        return self._create(kind, name, len(data), fill, mapped)

    def receive(self, kind: str, name: str, size: int, readinto: Callable[[memoryview], None],
                digest: Digest) -> Held | None:
        """An object of size bytes, as `write` with mapped, from who has it in pieces: never in memory as a whole, whose
        first touch costs three times the hash. None where it does not hash to digest: then nothing was written.
        Raises what readinto raises, too.
        """
        def fill(fd: int) -> bool:
            hasher, end = blake3(), _HEAD + size
            view = memoryview(page_buffer(_PIECE))
            for at in range(_HEAD, end, _PIECE):
                piece = view[:min(_PIECE, end - at)]
                readinto(piece)
                hasher.update(piece)
                write_all(fd, piece, at)
            write_all(fd, _head(kind, name, digest), 0)
            return hasher.digest() == digest
        return self._create(kind, name, size, fill, mapped=True)

    def _create(self, kind: str, name: str, size: int, fill: Callable[[int], bool], mapped: bool) -> Held | None:
        """fill: writes head and data, or says that they are not to be kept."""
        path = self._room.meta / _file_name(kind, name)
        block = self._room.block
        reserved = -(-(_HEAD + size) // block) * block
        usage = self._room.reserve(META, reserved)
        taken = 0
        try:
            new = self._room.meta / (_TEMPORARY + secrets.token_hex(8))
            fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                if not fill(fd):
                    new.unlink()
                    return None
                taken = disk_bytes(os.fstat(fd))
                old = path.stat() if path.exists() else None
                if old is not None and old.st_mode & _PINNED:
                    os.fchmod(fd, 0o600 | _PINNED)
                held = _mapped(fd, _HEAD + size) if mapped else None
                os.rename(new, path)
                taken -= disk_bytes(old) if old is not None else 0
                return held
            except BaseException:
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


def _head(kind: str, name: str, digest: Digest) -> bytes:
    return _MAGIC + blake3(f"{kind}\0{name}\0".encode()).update(digest).digest()


def _old_head(kind: str, name: str) -> blake3:
    """To be updated by the data."""
    return blake3(f"{kind}\0{name}\0".encode())


def _whole(fd: int, size: int, kind: str, name: str) -> bytes | None:
    """The object in an open file, or None where it is not whole."""
    raw = bytearray(size)
    if os.preadv(fd, [raw], 0) != size or size < _HEAD:
        return None
    data = bytes(memoryview(raw)[_HEAD:])
    old = raw.startswith(_OLD_MAGIC)
    head = _OLD_MAGIC + _old_head(kind, name).update(data).digest() if old else _head(kind, name, Digest.of(data))
    return data if raw[:_HEAD] == head else None


def _is_sound(fd: int, size: int, kind: str, name: str, digest: Digest | None) -> bool:
    """What `_whole` looks at, without the memory for it, and the digest."""
    head = os.pread(fd, _HEAD, 0)
    found = Digest(_updated(blake3(), fd, size).digest())
    if digest not in (None, found):
        return False
    if head.startswith(_OLD_MAGIC):
        return head == _OLD_MAGIC + _updated(_old_head(kind, name), fd, size).digest()
    return head == _head(kind, name, found)


def _updated(hasher: blake3, fd: int, size: int) -> blake3:
    """By all that stands behind the head. Raises OSError."""
    at, view = _HEAD, memoryview(page_buffer(_PIECE))
    while at < size and (done := os.preadv(fd, [view[:min(_PIECE, size - at)]], at)):
        hasher.update(view[:done])
        at += done
    return hasher


def _mapped(fd: int, size: int) -> Held:
    """The object in an open file that is whole. Raises OSError."""
    pages = mmap.mmap(fd, size, access=mmap.ACCESS_READ)

    def rest() -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            for start in range(0, size, _REST_PIECE):
                pages.madvise(mmap.MADV_DONTNEED, start, min(_REST_PIECE, size - start))
    return Held(memoryview(pages)[_HEAD:], rest)
