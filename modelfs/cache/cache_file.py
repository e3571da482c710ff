"""What a reader sees of one model file in the cache: which chunks are here, which of them it has checked, and bytes.

Rule: bytes are given out only with the count that they are of, compared before and after they were read; a chunk
counts as checked only for the count at which somebody in this process checked it, or, where seals are believed, at
which the whole file was sealed. No method raises because of the disk.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from enum import IntEnum
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from modelfs.cache.chunk_index import ChunkIndex
from modelfs.cache.eviction import Evictor
from modelfs.cache.handles import HandleTable
from modelfs.cache.map_file import ChunkList, Rows, map_size
from modelfs.cache.room import Room
from modelfs.cache.sealing import Sealer
from modelfs.cache.sparse_file import GoneError, SparseFile, open_sparse, use_clock
from modelfs.cache.trouble import Trouble
from modelfs.errors import NoSpace

_TRIES = 16  # room that was made is often taken by another thread: 4 were too few for 4 threads at a 24 MiB limit
_ABSENT_S = 0.1  # for so long a file that was not there is not looked for again (3 us a look, once a chunk)
_USE_TICKS = 16  # 1 s: how much too old a time of last use may be, so that a page of the map is seldom written
_PER_FILE_BYTES = 16 << 10  # last blocks of data and map, its directory, the filesystem's own blocks
_T = TypeVar("_T")


class Read(IntEnum):
    """What became of a read from the cache. MISS: not there, unchecked, or changed meanwhile. BLOCK: it would have
    to wait for the disk, and was not to."""

    DONE = 0
    MISS = 1
    BLOCK = 2


_DONE, _MISS, _BLOCK = Read  # 10 ns to look up; Read.DONE takes 90


class Backing:
    """A descriptor of the data file, for the kernel. Nothing of the file is evicted as long as it is open in any
    process, or in the kernel: it holds LOCK_SH."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """This descriptor; its duplicates, the kernel's among them, keep the lock."""
        os.close(self.fd)


class CacheFile:
    """Made by `Cache.file` and `Cache.find`. offsets: u64 [rows + 1], where each chunk begins; size in bytes.

    sealer: None: seals are neither made nor believed.
    """

    def __init__(self, chunks: ChunkList, room: Room, evictor: Evictor, index: ChunkIndex, table: HandleTable,
                 sealer: Sealer | None, trouble: Trouble) -> None:
        self.chunks = chunks
        self.name, self.rows, self.size, self.offsets = chunks.name, chunks.rows, chunks.size, chunks.offsets
        self._starts: memoryview = chunks.offsets.data
        self._room, self._evictor, self._index, self._table = room, evictor, index, table
        self._sealer, self._trouble = sealer, trouble
        self._handle: SparseFile | None = None
        self._absent_until_s = 0.0
        self._lock = threading.Lock()  # guards the three below, and that they go together
        self._checked = bytearray(chunks.rows)  # odd, or 0: not checked
        self._checked_rows = 0  # that are not 0
        self._nonce = 0

    @property
    def disk_need(self) -> int:
        """Bytes that the whole file takes in the cache, with its map."""
        return self.size + map_size(self.rows) + _PER_FILE_BYTES

    def presence(self, row: int) -> int:
        """The chunk's count; even: absent."""
        handle = self._current()
        return handle.presence[row] if handle is not None else 0

    def checked(self, row: int) -> int:
        """Its count, if it is present and was checked in this process at that count; else 0."""
        count = self.presence(row)
        return count if count & 1 and self._checked[row] == count else 0

    def present(self) -> npt.NDArray[np.bool_]:
        """Which chunks are present, [rows], as of now."""
        handle = self._current()
        if handle is None:
            return np.zeros(self.rows, np.bool_)
        return (np.frombuffer(handle.presence, np.uint8) & 1).astype(np.bool_)

    def unchecked(self) -> Rows:
        """Which chunks are present, but not checked at their count."""
        handle = self._current()
        if handle is None:
            return np.zeros(0, np.int64)
        counts = np.frombuffer(handle.presence, np.uint8)
        return np.flatnonzero((counts & 1).astype(np.bool_) & (counts != np.frombuffer(self._checked, np.uint8)))

    def whole(self) -> bool:
        """Whether every chunk is present and was checked at its count, as of now. An empty file may never be."""
        handle = self._current()
        return handle is not None and self._is_whole(handle)

    def _is_whole(self, handle: SparseFile) -> bool:
        # A bytearray compares by memcmp: 100 000 rows take 2 us, as numpy arrays 14.
        return self._checked_rows == self.rows and self._checked == handle.presence and self._nonce == handle.nonce

    def backing(self) -> Backing | None:
        """A descriptor for the kernel (FUSE passthrough), if the file is `whole` as of now. Never waits for the network
        or a lock. All chunks count as used now: nobody sees the kernel's reads."""
        handle = self._current()
        if handle is None or not self._is_whole(handle):
            return None
        try:
            fd = handle.open_shared()
        except GoneError:
            self._handle = None
            return None
        except OSError as error:
            self._trouble.note("open for the kernel", error)
            return None
        if fd is None:
            return None
        # From here on nothing is punched. What was before that has stepped its count.
        if not self._is_whole(handle):
            os.close(fd)
            return None
        handle.use_all()
        return Backing(fd)

    def cached_bytes(self) -> int:
        return int(self.chunks.lengths[self.present()].sum(dtype=np.int64))

    def read(self, row: int, start: int, view: memoryview, count: int) -> bool:
        """Fill view with bytes of the chunk from start on; False, and view undefined, if it is not at count (odd)."""
        handle = self._current()
        if handle is None or not count & 1 or handle.presence[row] != count:
            return False
        at = self._starts[row] + start
        if start < 0 or at + len(view) > self._starts[row + 1]:
            return False
        try:
            if os.preadv(handle.data_fd, [view], at) != len(view):
                return False
        except OSError as error:
            self._trouble.note("read", error)
            return False
        # Without this second look 530 of 2251 preads that a punch and refill raced returned zeros (design, section 6).
        if handle.presence[row] != count:
            return False
        handle.last_use[row] = use_clock()
        handle.used = True
        return True

    def read_at(self, offset: int, view: memoryview, *, nowait: bool) -> Read:
        """Fill view with bytes offset..offset+len(view), which lie within the file and are at least one, if every
        chunk that they touch is present and checked. nowait: only if they are in the page cache.

        The hot path of a mount: one system call whatever the chunks, since they lie one behind the other in the data
        file; no lock, no numpy. Beside the preadv: 2.1 us for one chunk, 2.7 for two (of 4096 rows).
        """
        handle = self._handle
        if handle is None or handle.dead:
            handle = self._current()
            if handle is None:
                return _MISS
        starts, presence, size = self._starts, handle.presence, len(view)
        first = bisect_right(starts, offset) - 1
        end = first + 1
        if offset + size > starts[end]:
            end = bisect_left(starts, offset + size, end)
        counts = self._checked[first:end]
        if 0 in counts or counts != presence[first:end]:
            return _MISS
        try:
            done = os.preadv(handle.data_fd, [view], offset, handle.nowait if nowait else 0)
        except BlockingIOError:
            return _BLOCK
        except OSError as error:
            if nowait and error.errno == errno.EOPNOTSUPP:
                handle.nowait = 0
                return self.read_at(offset, view, nowait=nowait)
            self._trouble.note("read", error)
            return _MISS
        if done != size:
            return _BLOCK if nowait else _MISS
        if counts != presence[first:end]:
            return _MISS
        now, last_use = int(time.time() * 16), handle.last_use
        for row in range(first, end):
            if (now - last_use[row]) & 0xFFFFFFFF >= _USE_TICKS:
                last_use[row] = now & 0xFFFFFFFF
        handle.used = True
        return _DONE

    def load(self, row: int, view: memoryview) -> int:
        """Read the whole chunk, to be checked, into the beginning of view; the count it was at, or 0."""
        count = self.presence(row)
        length = int(self._starts[row + 1] - self._starts[row])
        return count if len(view) >= length and self.read(row, 0, view[:length], count) else 0

    def mark_checked(self, row: int, count: int) -> None:
        """The bytes that `load` returned with this count hash to the chunk's id."""
        handle = self._handle
        with self._lock:
            if handle is not None and handle.nonce == self._nonce and handle.presence[row] == count:
                self._note_checked(row, count)

    def touch(self, row: int) -> None:
        """The chunk was used, by other ways than `read`."""
        handle = self._current()
        if handle is not None:
            handle.last_use[row] = use_clock()

    def fill(self, row: int, data: memoryview) -> int:
        """Keep a chunk that the caller has checked; its count, or 0 where it is not cached.

        One that another daemon filled meanwhile stays as it is, and unchecked. Raises ValueError for a wrong length.
        """
        if len(data) != self._starts[row + 1] - self._starts[row]:
            raise ValueError(f"chunk {row} has {self._starts[row + 1] - self._starts[row]} bytes, not {len(data)}")

        def store(handle: SparseFile) -> int:
            before = handle.presence[row]
            count = handle.fill(row, data)
            if count != before:
                with self._lock:
                    if handle.nonce == self._nonce:
                        self._note_checked(row, count)
            return count

        return self._changing("fill", store, create=True, need=len(data) + 2 * self._room.block) or 0

    def discard(self, row: int, count: int) -> None:
        """Drop a chunk that was found bad at that count; it is a miss then, also where the kernel holds the file."""
        def drop(handle: SparseFile) -> None:
            if count & 1 and handle.presence[row] == count:
                handle.drop(row)

        self._changing("discard", drop, create=False)

    def seal(self) -> None:
        """Write the data to the disk and note in the map that all of it was checked, if that is so: a later mount that
        believes seals need not read it. Waits for the disk."""
        handle, counts = self._current(), bytes(self._checked)
        if handle is None or not self._is_whole(handle):
            return
        try:
            handle.seal(counts)
        except GoneError:
            self._handle = None
        except OSError as error:
            self._trouble.note("seal", error)

    def pin(self) -> bool:
        """Nothing of this file is evicted until `unpin`; False where the cache cannot note that."""
        done = self._changing("pin", lambda handle: handle.set_pinned(True), create=True,
                              need=self.rows * 41 + 2 * self._room.block)
        return bool(done)

    def unpin(self) -> bool:
        """False where that cannot be noted; a file that is not in the cache is not pinned."""
        self._absent_until_s = 0.0
        if self._current() is None:
            return True
        self._evictor.forgive()
        return bool(self._changing("unpin", lambda handle: handle.set_pinned(False), create=False))

    @property
    def pinned(self) -> bool:
        handle = self._current()
        return handle is not None and handle.pinned

    @property
    def removed(self) -> bool:
        """Whether the handle is one of a file that is gone."""
        handle = self._handle
        return handle is None or handle.dead

    def take_used(self) -> bool:
        """Whether it was used since the last call (for the table of handles)."""
        handle = self._handle
        used = handle is not None and handle.used
        if handle is not None:
            handle.used = False
        return used

    def close_handle(self) -> None:
        """Who reads through it just now finishes; descriptors go with the last reference."""
        self._handle = None

    def _note_checked(self, row: int, count: int) -> None:
        """Under the lock."""
        self._checked_rows += not self._checked[row]
        self._checked[row] = count
        if self._sealer is not None and self._checked_rows == self.rows:
            self._sealer.put(self)

    def _changing(self, doing: str, change: Callable[[SparseFile], _T], *, create: bool, need: int = 0) -> _T | None:
        """change(handle) with its lock held; None where it cannot be done."""
        for _ in range(_TRIES):
            try:
                handle = self._handle or self._open(create)
                if handle is None:
                    return None
                with handle.lock:
                    return change(handle)
            except GoneError:
                self._handle = None
            except NoSpace:
                if not self._evictor.make_room(need):
                    return None
            except OSError as error:
                self._trouble.note(doing, error)
                return None
        return None

    def _current(self) -> SparseFile | None:
        handle = self._handle
        if handle is not None and not handle.dead:
            return handle
        if handle is None and time.monotonic() < self._absent_until_s:
            return None
        try:
            handle = self._open(create=False)
        except NoSpace:
            handle = None
        except OSError as error:
            self._trouble.note("open", error)
            handle = None
        if handle is None:
            self._absent_until_s = time.monotonic() + _ABSENT_S
        return handle

    def _open(self, create: bool) -> SparseFile | None:
        """Raises NoSpace, OSError."""
        self._handle = None
        if self._table.closed:
            return None
        try:
            handle = open_sparse(self._room, self.name, self.chunks, create)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self._table.halve()
            handle = open_sparse(self._room, self.name, self.chunks, create)
        if handle is None:
            return None
        with self._lock:
            if self._nonce != handle.nonce:
                self._nonce, self._checked, self._checked_rows = handle.nonce, bytearray(self.rows), 0
            if self._sealer is not None and (counts := handle.sealed()) is not None:
                self._checked, self._checked_rows = bytearray(counts), self.rows
            self._handle, self._absent_until_s = handle, 0.0
        if create:
            self._index.add(self.chunks)
        self._table.admit(self)
        return handle
