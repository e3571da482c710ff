"""How many bytes the cache directory takes on disk, counted in one place that all daemons map.

Rule: the total is changed only under the lock, before bytes are written and after they are freed, and together
with the account of the file concerned; so total = sum of accounts whenever the lock is free.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from modelfs.cache.system import SharedLock, allocate, map_shared, write_all
from modelfs.errors import NoSpace

META, BASE, SLOTS = 256, 257, 258
_MAGIC, _COUNTED, _FIRST, _SIZE = b"mfsuse1\n", 8, 64, 4096


class Usage:
    """One count for each of the 256 directories under files/, one for meta/ and one for the rest.

    `counted` is False from when the file was made (anew) until somebody has counted every slot.
    """

    def __init__(self, path: Path, most: int) -> None:
        """Open or make it. most: bytes in use on the whole disk; counts beyond that are junk, and begin anew.

        Raises OSError.
        """
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self.lock = SharedLock(self._fd)
            with self.lock:
                allocate(self._fd, _SIZE)
                self._bytes = map_shared(self._fd, _SIZE)
                self._slots: npt.NDArray[np.int64] = np.frombuffer(self._bytes, "<i8", SLOTS, _FIRST)
                if self._bytes[:8] != _MAGIC or int(self._slots.min()) < 0 or \
                        int(self._slots.max()) > most or int(self._slots.sum()) > most:
                    self._slots[:] = 0
                    write_all(self._fd, _MAGIC + b"\0", 0)
        except BaseException:
            os.close(self._fd)
            raise

    def __del__(self) -> None:
        # Whoever still fills through a file opened earlier holds this object, so the descriptor goes last.
        if hasattr(self, "_slots"):
            os.close(self._fd)

    def is_at(self, path: Path) -> bool:
        """Whether path still names this file (somebody may have cleared the directory)."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(path))
        except OSError:
            return False

    @property
    def counted(self) -> bool:
        return self._bytes[_COUNTED] == 1

    def mark_counted(self) -> None:
        self._bytes[_COUNTED] = 1

    def total(self) -> int:
        return max(0, int(self._slots.sum()))

    def of(self, slot: int) -> int:
        return max(0, int(self._slots[slot]))

    def reserve(self, slot: int, size: int, ceiling: int, account: memoryview | None = None) -> None:
        """Count size bytes that are about to be written. account: one i64, of the file they go to.

        Raises NoSpace where the total would pass ceiling, OSError.
        """
        with self.lock:
            total = int(self._slots.sum())
            if total + size > ceiling:
                raise NoSpace("the cache is full", why=f"{total} and {size} bytes of {ceiling}")
            self._slots[slot] += size
            if account is not None:
                account[0] += size

    def settle(self, slot: int, account: memoryview, now: int, release: int = 0) -> None:
        """The file with this account takes now bytes; release: what was reserved without an account. Raises OSError."""
        with self.lock:
            if 0 <= account[0] < 1 << 50:  # a flipped bit there must not empty the cache; the next count mends it
                self._slots[slot] += now - account[0]
            self._slots[slot] -= release
            account[0] = now

    def change(self, slot: int, by: int) -> None:
        """Raises OSError."""
        with self.lock:
            self._slots[slot] += by

    def assign(self, slot: int, size: int) -> None:
        """Only under the lock, which whoever counts holds meanwhile."""
        self._slots[slot] = size
