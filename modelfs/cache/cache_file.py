"""What a reader sees of one model file in the cache: which chunks are here, which of them it has checked, and bytes.

Rule: `read` is True only if the bytes are those of the count it was given, and a chunk counts as checked only for
the count at which somebody in this process checked it. No method raises because of the disk.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from modelfs.cache.chunk_index import ChunkIndex
from modelfs.cache.eviction import Evictor
from modelfs.cache.map_file import ChunkList, map_size
from modelfs.cache.room import Room
from modelfs.cache.sparse_file import GoneError, SparseFile, open_sparse, use_clock
from modelfs.cache.trouble import Trouble
from modelfs.errors import NoSpace

_TRIES = 16  # room that was made is often taken by another thread: 4 were too few for 4 threads at a 24 MiB limit
_ABSENT_S = 0.1  # for so long a file that was not there is not looked for again (3 us a look, once a chunk)
_PER_FILE_BYTES = 16 << 10  # last blocks of data and map, its directory, the filesystem's own blocks
_T = TypeVar("_T")


class HandleTable:
    """The files that have their descriptors open, two each: about the `limit` last used ones."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[str, CacheFile] = OrderedDict()  # guarded by _lock; keeps its files alive
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    def admit(self, file: CacheFile) -> None:
        with self._lock:
            self._open[file.name] = file
            self._open.move_to_end(file.name)
            while len(self._open) > (0 if self._closed else self._limit):
                name, oldest = self._open.popitem(last=False)
                if oldest is not file and not self._closed and oldest.take_used():
                    self._open[name] = oldest  # a second chance
                else:
                    oldest.close_handle()

    def halve(self) -> None:
        """The process has run out of descriptors."""
        with self._lock:
            for _ in range((len(self._open) + 1) // 2):
                self._open.popitem(last=False)[1].close_handle()

    def drop_removed(self) -> None:
        """Files that were evicted whole keep their maps' blocks as long as we have them open."""
        with self._lock:
            for name in [name for name, file in self._open.items() if file.removed]:
                self._open.pop(name).close_handle()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            while self._open:
                self._open.popitem()[1].close_handle()


class CacheFile:
    """Made by `Cache.file` and `Cache.find`. offsets: u64 [rows + 1], where each chunk begins; size in bytes."""

    def __init__(self, chunks: ChunkList, room: Room, evictor: Evictor, index: ChunkIndex, table: HandleTable,
                 trouble: Trouble) -> None:
        self.chunks = chunks
        self.name, self.rows, self.size, self.offsets = chunks.name, chunks.rows, chunks.size, chunks.offsets
        self._starts: memoryview = chunks.offsets.data
        self._room, self._evictor, self._index, self._table = room, evictor, index, table
        self._trouble = trouble
        self._handle: SparseFile | None = None
        self._absent_until_s = 0.0
        self._lock = threading.Lock()  # guards the two below, and that they go together
        self._checked = bytearray(chunks.rows)
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
                self._checked[row] = count

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
                        self._checked[row] = count
            return count

        return self._changing("fill", store, create=True, need=len(data) + 2 * self._room.block) or 0

    def discard(self, row: int, count: int) -> None:
        """Drop a chunk that was found bad at that count."""
        def drop(handle: SparseFile) -> None:
            if count & 1 and handle.presence[row] == count:
                handle.punch(np.array([row]))

        self._changing("discard", drop, create=False)

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
                self._nonce, self._checked = handle.nonce, bytearray(self.rows)
            self._handle, self._absent_until_s = handle, 0.0
        if create:
            self._index.add(self.chunks)
        self._table.admit(self)
        return handle
