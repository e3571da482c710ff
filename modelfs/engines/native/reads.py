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
        self._disk: queue.SimpleQueue[_ParkedRead | None] = queue.SimpleQueue()
        for number in range(_DISK_THREADS):
            threading.Thread(target=self._read_disk, name=f"read-{number}", daemon=True).start()

    def close(self) -> None:
        for _ in range(_DISK_THREADS):
            self._disk.put(None)

    def read(self, unique: int, file: ModelFile, offset: int, size: int, buffer: ReplyBuffer) -> None:
        """Answer the request, now or later. buffer: this thread's."""
        if offset + size > file.size:
            size = file.size - offset
            if size <= 0:
                self._connection.answer(unique, b"")
                return
        found = self._reader.read_now(file, offset, buffer.data[:size], nowait=True)
        if found == Read.DONE:
            self._send(buffer, unique, size)
            return
        read = _ParkedRead(self, unique, file, offset, size)
        self._parked.put(unique, Parked(time.monotonic() + self._reader.deadline_s, read.give_up, read.cancel))
        if found == Read.BLOCK:
            self._disk.put(read)
        else:
            read.waiting = self._reader.read_later(file, offset, size, read)

    def _read_disk(self) -> None:
        buffer = ReplyBuffer()
        while (read := self._disk.get()) is not None:
            try:
                self._finish(read, buffer)
            except Exception as error:
                if self._parked.take(read.unique):
                    self._connection.broken(read.unique, "READ", error)

    def _finish(self, read: _ParkedRead, buffer: ReplyBuffer) -> None:
        """Wait for the disk; what has gone meanwhile is fetched, unless the request has, too."""
        file, offset, size = read.file, read.offset, read.size
        if self._reader.read_now(file, offset, buffer.data[:size], nowait=False) == Read.DONE:
            if self._parked.take(read.unique):
                self._send(buffer, read.unique, size)
        elif read.unique in self._parked:
            read.waiting = self._reader.read_later(file, offset, size, read)

    def _send(self, buffer: ReplyBuffer, unique: int, size: int) -> None:
        try:
            buffer.send(self._connection.device, unique, size)
        except OSError as error:
            self._connection.unanswered(error)

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

    def __init__(self, reads: Reads, unique: int, file: ModelFile, offset: int, size: int) -> None:
        self._reads = reads
        self.unique, self.file, self.offset, self.size = unique, file, offset, size
        self._room: mmap.mmap | None = None
        self.waiting: Waiting | None = None  # set once it is fetched, some time after the request was put aside

    def room(self) -> memoryview:
        self._room = self._reads.take_room()
        return memoryview(self._room)[:self.size]

    def done(self, data: memoryview) -> None:
        self._reads.answer(self.unique, self.size, lambda: self._reads.send(self.unique, data), None)
        if self._room is not None:
            self._reads.leave_room(self._room)

    def failed(self, error: ModelfsError) -> None:
        self._reads.answer(self.unique, self.size, lambda: self._reads.fail(self.unique), error)

    def give_up(self) -> None:
        """At the deadline."""
        if self.waiting is not None:
            error = self._reads.give_up(self.file, self.waiting)
            if error is not None:
                self.failed(error)

    def cancel(self) -> None:
        """It was interrupted, and is answered by whoever says so."""
        if self.waiting is not None:
            self.waiting.cancel()
