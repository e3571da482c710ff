"""READ: from the cache at once, from the disk by a few threads, from the network whenever it comes.

Rule: all of what was asked for, or an errno: a short answer before the file's end would set the inode's size. The
thread that takes requests waits for nothing: a read that would is put aside, and answered by whoever has its bytes.
"""

from __future__ import annotations

import errno
import mmap
import os
import queue
import threading
import time
from collections.abc import Callable

from modelfs.cache.cache_file import Read
from modelfs.cache.system import page_buffer
from modelfs.engines.native import protocol
from modelfs.engines.native.connection import Connection
from modelfs.engines.native.parking import Parked, ParkedRequests
from modelfs.errors import ModelfsError
from modelfs.reading.reader import Reader, Waiting
from modelfs.reading.versions import ModelFile

_DISK_THREADS = 4
_HEADER_AT = mmap.PAGESIZE - protocol.OUT_HEADER.size
_KEPT_ROOMS = 8


class ReplyBuffer:
    """Kept by one thread: a header, and behind it, at a page's beginning, room for the largest read."""

    def __init__(self) -> None:
        whole = memoryview(mmap.mmap(-1, mmap.PAGESIZE + protocol.LARGEST_READ))
        self._header = whole[_HEADER_AT:mmap.PAGESIZE]
        self._reply = whole[_HEADER_AT:]
        self.data = whole[mmap.PAGESIZE:]

    def send(self, device: int, unique: int, size: int) -> None:
        """Answer with the first size bytes of data. Raises OSError."""
        length = protocol.OUT_HEADER.size + size
        protocol.OUT_HEADER.pack_into(self._header, 0, length, 0, unique)
        os.write(device, self._reply[:length])


class Reads:
    def __init__(self, connection: Connection, reader: Reader, parked: ParkedRequests) -> None:
        self._connection, self._reader, self._parked = connection, reader, parked
        self._rooms: list[mmap.mmap] = []  # single operations on a list need no lock
        self._disk: queue.SimpleQueue[tuple[int, ModelFile, int, int] | None] = queue.SimpleQueue()
        for number in range(_DISK_THREADS):
            threading.Thread(target=self._read_disk, name=f"read-{number}", daemon=True).start()

    def close(self) -> None:
        for _ in range(_DISK_THREADS):
            self._disk.put(None)

    def read(self, unique: int, file: ModelFile, offset: int, size: int, buffer: ReplyBuffer, *,
             nowait: bool = True) -> None:
        """Answer the request, now or later. buffer: this thread's. nowait: not even for the disk."""
        if offset + size > file.size:
            size = file.size - offset
            if size <= 0:
                self._connection.answer(unique, b"")
                return
        found = self._reader.read_now(file, offset, buffer.data[:size], nowait=nowait)
        if found == Read.DONE:
            if nowait or self._parked.take(unique):
                try:
                    buffer.send(self._connection.device, unique, size)
                except OSError as error:
                    self._connection.unanswered(error)
        elif found == Read.BLOCK:
            self._parked.put(unique, Parked())
            self._disk.put((unique, file, offset, size))
        else:
            self._park(unique, file, offset, size, anew=nowait)

    def _park(self, unique: int, file: ModelFile, offset: int, size: int, *, anew: bool) -> None:
        """anew: it does not wait for the disk already."""
        read = _ParkedRead(self, unique, file, size)
        parked = Parked(time.monotonic() + self._reader.deadline_s, read.give_up, read.cancel)
        if anew:
            self._parked.put(unique, parked)
        elif not self._parked.exchange(unique, parked):
            return
        read.waiting = self._reader.read_later(file, offset, size, read)

    def _read_disk(self) -> None:
        buffer = ReplyBuffer()
        while (asked := self._disk.get()) is not None:
            unique, file, offset, size = asked
            try:
                self.read(unique, file, offset, size, buffer, nowait=False)
            except Exception as error:
                if self._parked.take(unique):
                    self._connection.broken(unique, "READ", error)

    def answer(self, unique: int, size: int, answer: Callable[[], None], error: ModelfsError | None) -> None:
        """For a read that waited: unless somebody else had the request meanwhile."""
        if self._parked.take(unique):
            self._reader.answered(size, error)
            answer()

    def send(self, unique: int, data: memoryview) -> None:
        self._connection.answer(unique, data)

    def fail(self, unique: int) -> None:
        self._connection.fail(unique, errno.EIO)

    def give_up(self, file: ModelFile, waiting: Waiting) -> ModelfsError | None:
        return self._reader.give_up(file, waiting)

    def take_room(self) -> mmap.mmap:
        try:
            return self._rooms.pop()
        except IndexError:
            return page_buffer(protocol.LARGEST_READ)

    def leave_room(self, room: mmap.mmap) -> None:
        if len(self._rooms) < _KEPT_ROOMS:
            self._rooms.append(room)


class _ParkedRead:
    """A reader's Answer, and what happens to the request otherwise."""

    def __init__(self, reads: Reads, unique: int, file: ModelFile, size: int) -> None:
        self._reads, self._unique, self._file, self._size = reads, unique, file, size
        self._room: mmap.mmap | None = None
        self.waiting: Waiting | None = None  # set a moment after the request was put aside

    def room(self) -> memoryview:
        self._room = self._reads.take_room()
        return memoryview(self._room)[:self._size]

    def done(self, data: memoryview) -> None:
        self._reads.answer(self._unique, self._size, lambda: self._reads.send(self._unique, data), None)
        if self._room is not None:
            self._reads.leave_room(self._room)

    def failed(self, error: ModelfsError) -> None:
        self._reads.answer(self._unique, self._size, lambda: self._reads.fail(self._unique), error)

    def give_up(self) -> None:
        """At the deadline."""
        if self.waiting is not None:
            error = self._reads.give_up(self._file, self.waiting)
            if error is not None:
                self.failed(error)

    def cancel(self) -> None:
        """It was interrupted, and is answered by whoever says so."""
        if self.waiting is not None:
            self.waiting.cancel()
