"""Bytes are put into the kernel's page cache ahead of a sequential reader, where its own read-ahead is small.

Rule: only what is cached and checked is stored, by a thread that serves no request: the kernel waits in it for pages
that a READ under way has locked. Source: FUSE_NOTIFY_STORE, include/uapi/linux/fuse.h.

Without root a mount's read_ahead_kb stays at 128, and a mapped reader waits for the daemon every 128 KiB. It reads
stored pages at 5 GB/s, faster than they are stored (1.5-2 GB/s), so it catches up, and asks for the next page itself:
then both would do the same work. So each READ sends the storing on by a lead, which the reader needs longer for.

A file that is whole is stored out of a map of the cache's file, which the kernel copies from at once: 1.5 times as fast
as through a buffer. Its lock keeps the evictor away meanwhile; what the kernel cannot read is EFAULT, no signal.
"""

from __future__ import annotations

import mmap
import queue
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from modelfs.cache.cache_file import Read
from modelfs.cache.system import page_buffer
from modelfs.engines.native.connection import Connection
from modelfs.logs import log_event, logger_for
from modelfs.reading.readahead import Readahead
from modelfs.reading.versions import ModelFile
from modelfs.units import MiB

_LOG = logger_for(__name__)
_PIECE = MiB
_LEAD = 2 * MiB
_WINDOW = 32 * MiB
_QUEUED = 16  # runs; beyond, readers do without


@dataclass(slots=True)
class _Run:
    """Bytes next..end of a node are to be stored; a READ from first on belongs to its reader."""

    id: int
    file: ModelFile
    first: int
    next: int
    end: int


class StoreAhead:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._streams = Readahead(_WINDOW)
        self._runs: dict[int, _Run] = {}  # under way, by node id; single operations need no lock
        self._queue: queue.Queue[_Run | None] = queue.Queue(_QUEUED)
        threading.Thread(target=self._work, name="store", daemon=True).start()

    def note(self, id: int, file: ModelFile, offset: int, size: int) -> None:
        """A READ of a node. Never blocks."""
        end = offset + size
        run = self._runs.get(id)
        if run is not None and run.first <= offset < run.end:
            run.next = max(run.next, end + _LEAD)
            run.end = max(run.end, min(end + _WINDOW, file.size))
            return
        if self._streams.note(id, offset, size, file.size) and run is None and not self._queue.full():
            run = self._runs[id] = _Run(id, file, offset, end + _LEAD, min(end + _WINDOW, file.size))
            self._queue.put(run)

    def close(self) -> None:
        self._queue.put(None)

    def _work(self) -> None:
        buffer = memoryview(page_buffer(_PIECE))
        while (run := self._queue.get()) is not None:
            try:
                if not self._store_whole(run):
                    self._store(run, buffer)
            except Exception as error:  # it costs speed, not a read
                log_event(_LOG, "error", "store.broken", error=error)
            finally:
                del self._runs[run.id]

    def _store_whole(self, run: _Run) -> bool:
        """Whether the file was whole, and is dealt with."""
        backing = run.file.cache.backing()
        if backing is None:
            return False
        with closing(backing), mmap.mmap(backing.fd, run.file.size, mmap.MAP_SHARED, mmap.PROT_READ) as kept, \
                memoryview(kept) as whole:
            self._store_pieces(run, lambda offset, size: whole[offset:offset + size])
        return True

    def _store(self, run: _Run, buffer: memoryview) -> None:
        def read(offset: int, size: int) -> memoryview | None:
            piece = buffer[:size]
            # Where it is not here yet, the reader will ask for it.
            return piece if run.file.cache.read_at(offset, piece, nowait=False) == Read.DONE else None

        self._store_pieces(run, read)

    def _store_pieces(self, run: _Run, read: Callable[[int, int], memoryview | None]) -> None:
        """read: offset, size → bytes; None: no further."""
        while (offset := run.next) < run.end:
            size = min(_PIECE - offset % _PIECE, run.end - offset)
            piece = read(offset, size)
            if piece is None or not self._connection.store(run.id, offset, piece):
                return
            run.next = max(run.next, offset + size)
