"""One read: what is cached and checked is copied, what is missing is fetched, and nobody waits past the deadline.

Rule: bytes equal to what was pushed, or an error; a read is short only at the file's end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from modelfs.errors import DeadlinePassed, ModelfsError
from modelfs.ids import ChunkId
from modelfs.metrics import Metrics
from modelfs.reading.fetcher import Fetcher
from modelfs.reading.flights import Want
from modelfs.reading.readahead import Readahead
from modelfs.reading.versions import ModelFile
from modelfs.repository.chunk import ChunkRef


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes start..start+length of a chunk, which belong at `at` of the answer. count: the presence at which the
    chunk was checked, 0 where it is missing."""

    file: ModelFile
    chunk: int
    start: int
    length: int
    at: int
    count: int

    def copy_into(self, out: memoryview) -> bool:
        """From the cache; False where the chunk is not there (any more)."""
        return bool(self.count) and self.file.cache.read(self.chunk, self.start, out[self.at:self.at + self.length],
                                                         self.count)


@dataclass(frozen=True, slots=True)
class Ready:
    """Everything is in the cache, checked: copy each part; one that fails is a miss, so read again."""

    parts: tuple[Part, ...]


class Waiting:
    """Some parts are missing. It holds no buffer while it waits: `start` is given where the bytes go, and each
    chunk is copied there the moment it arrives."""

    def __init__(self, parts: tuple[Part, ...], fetcher: Fetcher) -> None:
        self.parts, self._fetcher = parts, fetcher
        self._lock = threading.Lock()
        self._missing: dict[ChunkId, list[Part]] = {}  # guarded by _lock
        self._out: memoryview | None = None  # guarded by _lock
        self._error: ModelfsError | None = None  # guarded by _lock
        self._finish: Callable[[ModelfsError | None], None] | None = None

    def start(self, out: memoryview, finish: Callable[[ModelfsError | None], None]) -> None:
        """Fill out; finish is called once, from any thread: with None when all is there, or with the error."""
        self._out, self._finish = out, finish
        missing = [part for part in self.parts if not part.copy_into(out)]
        for part in missing:
            self._missing.setdefault(part.file.ref(part.chunk).id, []).append(part)
        if missing:
            self._fetcher.ensure([Want(part.file, part.chunk) for part in missing], self)
        else:
            finish(None)

    def cancel(self) -> list[ChunkRef]:
        """Nothing is written to `out` after this returns, and finish is not called any more. What was missing."""
        with self._lock:
            self._out = self._finish = None
            return [parts[0].file.ref(parts[0].chunk) for parts in self._missing.values()]

    def arrived(self, id: ChunkId, decoded: memoryview) -> None:
        with self._lock:
            parts = self._missing.pop(id, [])
            if self._out is not None:
                for part in parts:
                    self._out[part.at:part.at + part.length] = decoded[part.start:part.start + part.length]
        self._step()

    def failed(self, id: ChunkId, error: ModelfsError) -> None:
        with self._lock:
            self._missing.pop(id, None)
            self._error = self._error or error
        self._step()

    def _step(self) -> None:
        with self._lock:
            if self._missing and not self._error:
                return
            finish, self._finish, self._out = self._finish, None, None
        if finish:
            finish(self._error)


class Reader:
    """Reads of all files of a mount. always: what is cached is hashed at every read, not only at the first."""

    def __init__(self, fetcher: Fetcher, metrics: Metrics, readahead_bytes: int, *, always: bool = False) -> None:
        self._fetcher, self._metrics, self._always = fetcher, metrics, always
        self._readahead = Readahead(readahead_bytes)

    def set_readahead(self, readahead_bytes: int) -> None:
        self._readahead.largest_window = readahead_bytes

    def begin(self, file: ModelFile, offset: int, size: int) -> Ready | Waiting:
        """Bytes offset..offset+size, which lie within the file and are at least one. Never blocks."""
        parts, hits = [], 0
        for chunk in file.chunks_of(offset, size):
            begin, end = int(file.offsets[chunk]), int(file.offsets[chunk + 1])
            start, stop = max(begin, offset), min(end, offset + size)
            count = file.cache.checked(chunk)
            hits += bool(count)
            if count and file.ahead[chunk]:
                file.ahead[chunk] = 0
                self._metrics.add("prefetched_used")
            parts.append(Part(file, chunk, start - begin, stop - start, start - offset,
                              0 if self._always else count))
        if hits:
            self._metrics.add("cache_hits", hits)
        if hits < len(parts):
            self._metrics.add("cache_misses", len(parts) - hits)
        ahead = self._readahead.note(file.cache, offset, size, file.entry.size)
        if ahead:
            self._prefetch(file, *ahead)
        return Ready(tuple(parts)) if all(part.count for part in parts) else Waiting(tuple(parts), self._fetcher)

    def read_into(self, file: ModelFile, offset: int, view: memoryview) -> int:
        """Fill view from offset and return how many bytes: fewer only at the file's end. Blocks until the
        deadline at most. Raises ModelfsError; then the content of view is undefined."""
        size = min(len(view), file.entry.size - offset)
        self._metrics.add("reads")
        if size <= 0:
            return 0
        view = view[:size]
        found = self.begin(file, offset, size)
        try:
            if isinstance(found, Waiting):
                self._wait(found, view)
            elif not all(part.copy_into(view) for part in found.parts):
                self._wait(Waiting(found.parts, self._fetcher), view)
        except ModelfsError:
            self._metrics.add("errors")
            raise
        self._metrics.add("bytes_read", size)
        return size

    def _wait(self, waiting: Waiting, view: memoryview) -> None:
        done = threading.Event()
        errors: list[ModelfsError] = []

        def finish(error: ModelfsError | None) -> None:
            if error:
                errors.append(error)
            done.set()

        waiting.start(view, finish)
        if not done.wait(min(self._fetcher.deadline_s, threading.TIMEOUT_MAX)):
            error = DeadlinePassed("a read", where=waiting.parts[0].file.entry.path, why="the deadline passed")
            self._fetcher.remember_failure(waiting.cancel(), error)
            raise error
        if errors:
            raise errors[0]

    def _prefetch(self, file: ModelFile, offset: int, length: int) -> None:
        wants = [Want(file, chunk) for chunk in file.chunks_of(offset, length)
                 if not file.cache.checked(chunk)]
        if wants:
            self._fetcher.ensure(wants, None)

    def fail_waiting(self, reason: str) -> None:
        """End every read that waits, and every later one that would, with an error."""
        self._fetcher.fail_all(DeadlinePassed("a read", why=reason))

    def close(self) -> None:
        self._fetcher.close()
