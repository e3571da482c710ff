"""Files that the kernel reads by itself: backing ids, one a node, as long as the node is open so.

Rule: an inode is open either through the daemon or by passthrough, never both at once (the kernel answers EIO). So a
node id of the one kind is never opened the other way while it is open; what is open is written to a table that
outlives this process, before the kernel hears of it. Source: fs/fuse/iomode.c, fs/fuse/passthrough.c (Linux 6.9).
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelfs.engines.native import protocol

if TYPE_CHECKING:  # the keeper, which needs this module's sizes, is to stay small
    from modelfs.cache.cache_file import Backing

_ROW_WORDS = 2  # node id; backing id in the low half, opens in the high one
_ROWS = 1 << 16
TABLE_BYTES = _ROWS * 16
LEAST_BYTES = 128 << 10
"""Smaller files are read through the daemon: a page or two, and names that the kernel need not ask for again."""
_BY_DAEMON = 0  # in place of a backing id; the kernel's begin at 1
_OVERLAYFS_MAGIC = 0x794C7630  # include/uapi/linux/magic.h


def stack_depth(directory: Path) -> int:
    """What INIT is to say of backing files in this directory: 1; 2 on overlayfs, which costs that the mount cannot be
    a layer of an overlayfs itself."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = (ctypes.c_long * 32)()
    if libc.statfs(os.fsencode(directory), found):
        return 1
    return 2 if found[0] == _OVERLAYFS_MAGIC else 1


def granted(device: int, directory: Path) -> bool:
    """Whether the kernel takes backing files of this directory: in a user namespace it offers to, and refuses."""
    try:
        with tempfile.TemporaryFile(dir=directory) as probe:
            backing_id = _backing_open(device, probe.fileno())
    except OSError:
        return False
    if backing_id is None:
        return False
    _backing_close(device, backing_id)
    return True


@dataclass(slots=True)
class _Open:
    row: int
    backing_id: int
    opens: int


class OpenNodes:
    """What is open under ids for passthrough: mostly so, and now and then, where the file was evicted between lookup
    and open, through the daemon. device: the FUSE descriptor. table: TABLE_BYTES of an open file."""

    def __init__(self, device: int, table: int) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._words = memoryview(mmap.mmap(table, TABLE_BYTES)).cast("Q")
        self._open: dict[int, _Open] = {}  # by node id; guarded by _lock
        self._free: list[int] = []  # guarded by _lock
        for row in range(_ROWS - 1, -1, -1):
            id, state = self._words[row * _ROW_WORDS], self._words[row * _ROW_WORDS + 1]
            if id and state >> 32:
                self._open[id] = _Open(row, state & 0xFFFFFFFF, state >> 32)
            else:
                self._free.append(row)

    def open(self, id: int, backing: Callable[[], Backing | None]) -> int | None:
        """Count an open of this id. The backing id to answer with; None where it is to be read through the daemon.

        backing: of the whole file, or None where it is not whole; asked for where the id is not open yet. The kernel
        has its own reference to the descriptor, and so to its lock: ours is closed at once.
        """
        with self._lock:
            found = self._open.get(id)
            if found is None:
                if not self._free:  # nobody would know it as open: then it must not be open by passthrough
                    return None
                found = self._open[id] = _Open(self._free.pop(), self._backing_id(backing()), 0)
            found.opens += 1
            self._write(id, found)
            return found.backing_id or None

    def release(self, id: int) -> None:
        """One open less; after the last one the kernel's reference goes, and the file may be evicted again."""
        with self._lock:
            found = self._open.get(id)
            if found is None:
                return
            found.opens -= 1
            self._write(id, found)
            if not found.opens:
                del self._open[id]
                self._free.append(found.row)
                if found.backing_id != _BY_DAEMON:
                    _backing_close(self._device, found.backing_id)

    def read_by_daemon(self, id: int) -> bool:
        """Whether this id is open through the daemon: then it cannot be opened by passthrough."""
        found = self._open.get(id)
        return found is not None and found.backing_id == _BY_DAEMON

    def read_by_kernel(self, id: int) -> bool:
        """Whether this id is open by passthrough."""
        found = self._open.get(id)
        return found is not None and found.backing_id != _BY_DAEMON

    def _backing_id(self, backing: Backing | None) -> int:
        if backing is None:
            return _BY_DAEMON
        try:
            return _backing_open(self._device, backing.fd) or _BY_DAEMON
        finally:
            backing.close()

    def _write(self, id: int, found: _Open) -> None:
        """A row counts only where both words are set, so whatever is between the two stores is harmless."""
        at = found.row * _ROW_WORDS
        if found.opens:
            self._words[at] = id
        self._words[at + 1] = found.opens << 32 | found.backing_id if found.opens else 0


def _backing_open(device: int, descriptor: int) -> int | None:
    """None where the kernel refuses."""
    argument = bytearray(protocol.BACKING_MAP.pack(descriptor, 0, 0))
    try:
        return int(fcntl.ioctl(device, protocol.BACKING_OPEN, argument))
    except OSError:
        return None


def _backing_close(device: int, backing_id: int) -> None:
    with suppress(OSError):  # the connection is gone, and its backing files with it
        fcntl.ioctl(device, protocol.BACKING_CLOSE, backing_id.to_bytes(4, "little"))
