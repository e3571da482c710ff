"""Room in the cache: the directory itself, what it takes on disk, and how much it may take.

Rule: bytes are reserved here before they are written. Where the directory cannot be used (full disk, read-only,
gone) there is no room, and everything else follows from that.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path

from modelfs.cache.limits import Limits
from modelfs.cache.system import write_all
from modelfs.cache.trouble import Trouble
from modelfs.cache.usage import Usage
from modelfs.errors import BadInput, Forbidden, NoSpace
from modelfs.units import DiskShare

_TAG = (b"Signature: 8a477f597d28d172789f06886806bc55\n"
        b"# This directory is a cache of modelfs; what is in it can be fetched again.\n")
_STATVFS_S = 0.1


class Room:
    def __init__(self, directory: Path, limit: DiskShare, min_free: DiskShare, trouble: Trouble) -> None:
        """Raises Forbidden where the directory is another's or open to others, BadInput where it is none."""
        self.directory, self.files, self.meta = directory, directory / "files", directory / "meta"
        self.block = 4096
        self.trouble = trouble
        self._limits = Limits(directory / "limits", limit, min_free)
        self._usage: Usage | None = None
        self._lock = threading.Lock()  # of set-up and of the limits
        self._disk_ceiling, self._disk_looked_s = 0, 0.0
        self.ensure()

    def ensure(self) -> bool:
        """Make, or make again, what the cache needs; False where that fails (it is tried again later).

        Raises Forbidden, BadInput.
        """
        with self._lock:
            if self._usage is not None and self._usage.is_at(self.directory / "usage"):
                return True
            self._usage = None
            try:
                _make_private(self.directory)
                for name in ("files", "meta", "limits"):
                    (self.directory / name).mkdir(mode=0o700, exist_ok=True)
                _write_tag(self.directory / "CACHEDIR.TAG")
                block = os.statvfs(self.directory).f_bsize
                self.block = block if 512 <= block <= 1 << 16 and block & (block - 1) == 0 else 4096
                disk = os.statvfs(self.directory)
                usage = Usage(self.directory / "usage", (disk.f_blocks - disk.f_bfree) * disk.f_frsize)
                self._limits.publish()
                self._disk_looked_s = 0.0
                self._usage = usage
            except OSError as error:
                self.trouble.note("set up", error)
            return self._usage is not None

    def set_limits(self, limit: DiskShare, min_free: DiskShare) -> None:
        with self._lock:
            try:
                self._limits.set(limit, min_free)
            except OSError as error:
                self.trouble.note("write limits", error)
            self._disk_looked_s = 0.0

    def refresh(self) -> None:
        """Look at the limits of all daemons. Raises OSError."""
        with self._lock:
            self._limits.publish()

    def close(self) -> None:
        with self._lock:
            self._usage = None
            try:
                self._limits.close()
            except OSError as error:
                self.trouble.note("remove limits", error)

    @property
    def usage(self) -> Usage:
        """Raises NoSpace while the directory cannot be used."""
        if self._usage is None:
            raise NoSpace("the cache directory cannot be used", where=str(self.directory))
        return self._usage

    @property
    def is_counted(self) -> bool:
        """Whether what is in the directory has been counted, by anybody."""
        return self._usage is not None and self._usage.counted

    @property
    def limit_bytes(self) -> int:
        """The smallest limit of the daemons that share the directory."""
        return self._limits.limit_bytes

    def disk_free(self) -> int:
        """Bytes that the disk has for us. Raises OSError."""
        disk = os.statvfs(self.directory)
        return disk.f_bavail * disk.f_frsize

    def ceiling(self) -> int:
        """What the cache may take now, in bytes: the limit, or less so that the disk keeps min_free. Raises NoSpace."""
        now = time.monotonic()
        if now - self._disk_looked_s > _STATVFS_S:
            usage = self.usage
            try:
                with self._lock:
                    self._limits.look_if_old()
                free = self.disk_free()
            except OSError as error:
                raise NoSpace("the cache directory cannot be used", where=str(self.directory),
                              why=str(error)) from error
            self._disk_ceiling = usage.total() + free - self._limits.min_free_bytes
            self._disk_looked_s = now
        return max(0, min(self._limits.limit_bytes, self._disk_ceiling))

    def reserve(self, slot: int, size: int, account: memoryview | None = None) -> Usage:
        """Count size bytes that are about to be written; they are counted in what is returned.

        Raises NoSpace where they do not fit (`Evictor.make_room` may help), OSError.
        """
        usage = self.usage
        if not usage.counted:
            raise NoSpace("the cache is being counted", where=str(self.directory))
        usage.reserve(slot, size, self.ceiling(), account)
        return usage


def _make_private(directory: Path) -> None:
    """Made where it is missing; an empty one of our own becomes private, since nobody has put anything into it."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700)
        return
    except FileExistsError:
        pass
    except NotADirectoryError:
        raise BadInput("the cache is no directory", where=str(directory)) from None
    try:
        found = directory.stat()
    except NotADirectoryError:
        raise BadInput("the cache is no directory", where=str(directory)) from None
    if not stat.S_ISDIR(found.st_mode):
        raise BadInput("the cache is no directory", where=str(directory))
    if found.st_uid == os.geteuid() and found.st_mode & 0o777 != 0o700 and not any(os.scandir(directory)):
        directory.chmod(0o700)
        found = directory.stat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o777 != 0o700:
        raise Forbidden("not a private cache directory", where=str(directory),
                        why=f"its owner is {found.st_uid} and its mode {found.st_mode & 0o777:04o}",
                        advice=f"It must belong to user {os.geteuid()} with mode 0700.")


def _write_tag(path: Path) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return
    try:
        write_all(fd, _TAG, 0)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(fd)
