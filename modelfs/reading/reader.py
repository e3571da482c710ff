"""One read: what is cached and checked is copied, what is missing is fetched, and nobody waits past the deadline.

Rule: bytes equal to what was pushed, or an error; a read is short only at the file's end.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

from modelfs.cache.cache_file import Read
from modelfs.errors import DeadlinePassed, ModelfsError, Unavailable
from modelfs.ids import ChunkId
from modelfs.metrics import Metrics
from modelfs.reading.checking import Checker
from modelfs.reading.fetcher import Fetcher
from modelfs.reading.flights import Priority, Want
from modelfs.reading.hydration import Hydration
from modelfs.reading.readahead import Readahead
from modelfs.reading.versions import ModelFile
from modelfs.repository.chunk import ChunkRef


class Answer(Protocol):
    """Where a read's bytes go. Either `done` or `failed` is called, once, from any thread."""

    def room(self) -> memoryview:
        """Writable, as long as the read; asked for at most once, when the first of several pieces is there."""

    def done(self, data: memoryview) -> None:
        """data: all of the read, in `room` or elsewhere; valid only until this returns."""

    def failed(self, error: ModelfsError) -> None: ...


@dataclass(frozen=True, slots=True)
class _Part:
    """Bytes start..start+length of a chunk, which belong at `at` of the answer."""

    chunk: int
    start: int
    length: int
    at: int


class Waiting:
    """A read of which something is missing. It holds no buffer while it waits for the first chunk, and none at all
    where one chunk has everything; what the cache has is copied last. The answer is told under the lock, so that a
    cancelled read's buffer is never written to."""

    def __init__(self, file: ModelFile, offset: int, size: int, fetcher: Fetcher, answer: Answer) -> None:
        self._file, self._offset, self._size, self._fetcher = file, offset, size, fetcher
        self._lock = threading.Lock()
        self._missing: dict[ChunkId, list[_Part]] = {}  # guarded by _lock
        self._kept: list[_Part] = []  # guarded by _lock; in the cache a moment ago
        self._out: memoryview | None = None  # guarded by _lock
        self._answer: Answer | None = answer  # guarded by _lock; None once it was told, or is not to be

    def start(self, *, reuse: bool) -> None:
        """reuse: whether chunks that were checked are taken from the cache as they are."""
        file, missing = self._file, []
        for chunk in file.chunks_of(self._offset, self._size):
            begin, end = int(file.offsets[chunk]), int(file.offsets[chunk + 1])
            start, stop = max(begin, self._offset), min(end, self._offset + self._size)
            part = _Part(chunk, start - begin, stop - start, start - self._offset)
            if reuse and file.cache.checked(chunk):
                self._kept.append(part)
            else:
                missing.append(part)
        self._fetch(missing)

    def cancel(self) -> list[ChunkRef] | None:
        """Nothing is written or told after this returns. What was missing; None where the answer was told already."""
        with self._lock:
            answer, self._answer = self._answer, None
            return None if answer is None else [self._file.ref(parts[0].chunk) for parts in self._missing.values()]

    def arrived(self, id: ChunkId, decoded: memoryview) -> None:
        with self._lock:
            parts = self._missing.pop(id, [])
            answer = self._answer
            if answer is None:
                return
            if len(parts) == 1 and parts[0].length == self._size:
                self._answer = None
                answer.done(decoded[parts[0].start:parts[0].start + self._size])
                return
            out = self._room(answer)
            for part in parts:
                out[part.at:part.at + part.length] = decoded[part.start:part.start + part.length]
        self._step()

    def failed(self, id: ChunkId, error: ModelfsError) -> None:
        with self._lock:
            self._missing.pop(id, None)
            answer, self._answer = self._answer, None
            if answer is None:
                return
            if self._missing and isinstance(error, Unavailable):
                # Before the answer: the kernel, which reads around a page of a mapping, then asks for that page alone,
                # at once, and would wait for it once more.
                others = [self._file.ref(parts[0].chunk) for parts in self._missing.values()]
                self._fetcher.remember_failure(others, error)
            answer.failed(error)

    def _fetch(self, parts: list[_Part]) -> None:
        with self._lock:
            for part in parts:
                self._missing.setdefault(self._file.ref(part.chunk).id, []).append(part)
        if parts:
            self._fetcher.ensure([Want(self._file, part.chunk) for part in parts], self)
        else:
            self._step()

    def _step(self) -> None:
        """Once nothing is missing: copy what is in the cache; what was dropped there meanwhile is fetched."""
        with self._lock:
            answer = self._answer
            if self._missing or answer is None:
                return
            out = self._room(answer)
            kept, self._kept = self._kept, []
            gone = [part for part in kept if not self._copied(part, out)]
            if not gone:
                self._answer = None
                answer.done(out)
                return
        self._fetch(gone)

    def _copied(self, part: _Part, out: memoryview) -> bool:
        at = self._offset + part.at
        return self._file.cache.read_at(at, out[part.at:part.at + part.length], nowait=False) == Read.DONE

    def _room(self, answer: Answer) -> memoryview:
        """Under the lock."""
        if self._out is None:
            self._out = answer.room()
        return self._out


class Reader:
    """Reads of all files of a mount. always: what is cached is hashed at every read, not only at the first.
    checker: hashes files in the background from their first open on, so that the kernel may read them by itself.
    hydration: fetches the rest of what is opened or read in sequence."""

    def __init__(self, fetcher: Fetcher, metrics: Metrics, readahead_bytes: int, *, always: bool = False,
                 checker: Checker | None = None, hydration: Hydration | None = None) -> None:
        self._fetcher, self._metrics, self._always, self._checker = fetcher, metrics, always, checker
        self._hydration = hydration
        self._readahead = Readahead(readahead_bytes)

    @property
    def deadline_s(self) -> float:
        return self._fetcher.deadline_s

    def set_readahead(self, readahead_bytes: int) -> None:
        self._readahead.largest_window = readahead_bytes

    def opened(self, file: ModelFile) -> None:
        """A reader has opened it. Never blocks."""
        if self._checker is not None and not file.cache.whole():
            self._checker.check(file)
        if self._hydration is not None:
            self._hydration.opened(file)

    def read_now(self, file: ModelFile, offset: int, out: memoryview, *, nowait: bool) -> Read:
        """Fill out from the cache: bytes offset..offset+len(out), which lie within the file and are at least one.

        Waits for the disk at most, and with nowait not for that either.
        """
        if self._always:
            return Read.MISS
        found = file.cache.read_at(offset, out, nowait=nowait)
        if found == Read.DONE:
            size = len(out)
            self._metrics.add_read(size)
            if file.ahead:
                self._note_used(file, offset, size)
            if not file.settled:
                self._look_ahead(file, offset, size)
        else:
            file.settled = False
        return found

    def read_later(self, file: ModelFile, offset: int, size: int, answer: Answer) -> Waiting:
        """Fetch what is missing of a read that `read_now` missed. Never blocks; answer may be told before this
        returns."""
        self._metrics.add("cache_misses")
        waiting = Waiting(file, offset, size, self._fetcher, answer)
        waiting.start(reuse=not self._always)
        self._look_ahead(file, offset, size)
        return waiting

    def give_up(self, file: ModelFile, waiting: Waiting) -> ModelfsError | None:
        """The deadline of a read has passed: what it fails with, and others that want the same chunks do, for a
        moment. None where it was answered just now."""
        error = DeadlinePassed("a read", where=file.entry.path, why="the deadline passed")
        missing = waiting.cancel()
        if missing is None:
            return None
        self._fetcher.remember_failure(missing, error)
        return error

    def read_into(self, file: ModelFile, offset: int, view: memoryview) -> int:
        """Fill view from offset and return how many bytes: fewer only at the file's end. Blocks until the
        deadline at most. Raises ModelfsError; then the content of view is undefined."""
        size = min(len(view), file.entry.size - offset)
        if size <= 0:
            return 0
        view = view[:size]
        if self.read_now(file, offset, view, nowait=False) != Read.DONE:
            answer = _Blocking(view)
            waiting = self.read_later(file, offset, size, answer)
            if not answer.told.wait(min(self.deadline_s, threading.TIMEOUT_MAX)):
                answer.error = self.give_up(file, waiting) or answer.error
            self.answered(size, answer.error)
            if answer.error:
                raise answer.error
        return size

    def answered(self, size: int, error: ModelfsError | None) -> None:
        """Counts a read that waited."""
        self._metrics.add("reads")
        if error:
            self._metrics.add("errors")
        else:
            self._metrics.add("bytes_read", size)

    def fail_waiting(self, reason: str) -> None:
        """End every read that waits, and every later one that would, with an error."""
        self._fetcher.fail_all(DeadlinePassed("a read", why=reason))

    def close(self) -> None:
        self._fetcher.close()
        if self._checker is not None:
            self._checker.close()

    def _note_used(self, file: ModelFile, offset: int, size: int) -> None:
        used = file.ahead.intersection(file.chunks_of(offset, size))
        file.ahead.difference_update(used)
        self._metrics.add("prefetched_used", len(used))

    def _look_ahead(self, file: ModelFile, offset: int, size: int) -> None:
        if file.cache.whole():
            file.settled = True
            return
        ahead = self._readahead.note(file.cache, offset, size, file.entry.size)
        if ahead is None:
            return
        if ahead.length:
            wants = [Want(file, chunk) for chunk in file.chunks_of(ahead.offset, ahead.length)
                     if not file.cache.checked(chunk)]
            if wants:
                self._fetcher.ensure(wants, None, Priority.AHEAD)
        if self._hydration is not None:
            self._hydration.streams(file, ahead.offset, ahead.run)


class _Blocking:
    """The answer of a reader that has a buffer and a thread to wait in."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self.told = threading.Event()
        self.error: ModelfsError | None = None

    def room(self) -> memoryview:
        return self._view

    def done(self, data: memoryview) -> None:
        if data is not self._view:
            self._view[:] = data
        self.told.set()

    def failed(self, error: ModelfsError) -> None:
        self.error = error
        self.told.set()
