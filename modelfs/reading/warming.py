"""Files of a version are brought into the disk cache ahead of need, so that they serve while the store is gone.

Rule: a file counts as warm only when every chunk of it was checked and is present; what does not fit is refused
before anything is fetched, and what is there already is not fetched again.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from modelfs.cache.cache import Cache
from modelfs.cache.cache_file import CacheFile
from modelfs.errors import Conflict, ModelfsError, NoSpace, NotFound, Unavailable
from modelfs.ids import ChunkId
from modelfs.reading.fetcher import Fetcher
from modelfs.reading.flights import Want
from modelfs.reading.versions import LoadedVersion, ModelFile
from modelfs.repository.manifest import Manifest
from modelfs.units import MiB, show_size

_WINDOW = 48 * MiB
"""Decoded bytes under way: a few ranges, so that beside them a reader of the same mount finds a free connection."""
_BATCH = 16 * MiB
_PAUSE_S = 2.1  # longer than the fetcher answers from its memory of a failure
_COUNT_S = 60.0
_ROUNDS = 4  # what others' reads evicted meanwhile is fetched again


@dataclass(frozen=True, slots=True)
class Warmed:
    """bytes: of all files chosen. fetched_bytes: of those, what was not in the cache before (decoded)."""

    files: int
    bytes: int
    fetched_bytes: int
    elapsed_s: float


def select(manifest: Manifest, patterns: Sequence[str]) -> list[int]:
    """Numbers of the files that patterns name: a path, a directory, or a glob over the path or its last part; all
    where there are none. Raises NotFound for one that names nothing."""
    paths = [manifest.path_bytes(number).decode() for number in range(len(manifest))]
    if not patterns:
        return list(range(len(paths)))
    chosen: set[int] = set()
    for pattern in patterns:
        found = {number for number, path in enumerate(paths) if _names(pattern, path)}
        if not found:
            near = get_close_matches(pattern, paths, 3, 0.5)
            raise NotFound(f"no file {pattern!r}", advice=f"Did you mean {', '.join(near)}?" if near else
                           "`modelfs ls REPO MODEL` lists the files.")
        chosen |= found
    return sorted(chosen)


def kept_files(manifest: Manifest, numbers: Sequence[int], cache: Cache) -> dict[int, CacheFile]:
    """The cache file of each of these files that has any bytes."""
    found = {}
    for number in numbers:
        entry = manifest.file(number)
        rows = slice(entry.first_row, entry.first_row + entry.row_count)
        if entry.row_count:
            found[number] = cache.file(manifest.chunk_ids[rows], manifest.chunk_lengths[rows])
    return found


class Warming:
    """One run: `run` in a thread, `done_bytes` and `stop` from any."""

    def __init__(self, version: LoadedVersion, numbers: Sequence[int], cache: Cache, fetcher: Fetcher, *,
                 pin: bool) -> None:
        self._version, self._cache, self._fetcher, self._pin = version, cache, fetcher, pin
        self._files = len(numbers)
        distinct = {file.name: number for number, file in kept_files(version.manifest, numbers, cache).items()}
        self._kept = kept_files(version.manifest, sorted(distinct.values()), cache)
        self._changed = threading.Condition()
        self._progress = _Progress(self._changed)
        self._stopped = False
        self.bytes = sum(version.manifest.file(number).size for number in numbers)
        self.total_bytes = sum(file.size for file in self._kept.values())

    @property
    def done_bytes(self) -> int:
        return self._progress.done

    def stop(self) -> None:
        """`run` raises Conflict soon. What was fetched stays, and is not fetched again."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def run(self) -> Warmed:
        """Raises NoSpace where it does not fit, before anything is fetched; what a store or its bytes raise."""
        began = time.monotonic()
        if not self._cache.wait_until_counted(_COUNT_S):
            raise NoSpace("the cache takes nothing yet", where=str(self._cache.directory),
                          why="what is in it is still being counted", advice="Try again in a minute.")
        self._check_that_it_fits()
        pinned = self._pin_all() if self._pin else []
        try:
            for _ in range(_ROUNDS):
                self._fetch_all()
                if self._pin:  # what another run had pinned, and let go when it was interrupted
                    pinned += self._pin_all()
                if all(bool(file.present().all()) for file in self._kept.values()):
                    break
            else:
                raise NoSpace("the cache does not keep all of it", where=str(self._cache.directory),
                              why="other reads need the room, or its disk fails",
                              advice="Warm it with --pin, or give the cache more room.")
        except BaseException:  # an interrupt, too, leaves no pin
            for file in pinned:
                file.unpin()
            raise
        return Warmed(self._files, self.bytes, self._progress.fetched, round(time.monotonic() - began, 3))

    def _check_that_it_fits(self) -> None:
        need = sum(file.disk_need for file in self._kept.values())
        room = self._cache.room_for({file.name for file in self._kept.values()})
        if need > room:
            raise NoSpace("it does not fit into the cache", where=str(self._cache.directory),
                          why=f"it takes {show_size(need)} ({need} bytes), and the cache has {show_size(room)} "
                              f"({room} bytes) beside what is pinned",
                          advice="Raise cache.size, unpin or choose less.")

    def _pin_all(self) -> list[CacheFile]:
        """Those that were not pinned before. Before the fetch, so that no other read takes the room away; after it,
        because pins of others may have gone. Raises NoSpace."""
        done: list[CacheFile] = []
        for file in self._kept.values():
            if file.pinned:
                continue
            if not file.pin():
                for other in done:
                    other.unpin()
                raise NoSpace("cannot pin", where=str(self._cache.directory), why="the cache cannot note it")
            done.append(file)
        return done

    def _fetch_all(self) -> None:
        """One pass over all chunks; as long as some arrive, a store that falters is asked again."""
        while True:
            window = _Window(self._changed, self._progress)
            try:
                self._pass(window)
                return
            except Unavailable:
                if time.monotonic() - self._progress.landed_s >= self._fetcher.deadline_s:
                    raise
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped, _PAUSE_S)

    def _pass(self, window: _Window) -> None:
        self._progress.done = 0
        for number, kept in self._kept.items():
            self._ask(_Filling(self._version.file(number), kept, window))
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or window.error or not window.under_way)
            self._raise_trouble(window)

    def _ask(self, filling: _Filling) -> None:
        batch: list[Want] = []
        size = 0
        for chunk in filling.missing():
            length = filling.length(chunk)
            if batch and size + length > _BATCH:
                self._fetcher.ensure(batch, filling)
                batch, size = [], 0
            self._enter(filling.window, length)
            batch.append(Want(filling.file, chunk))
            size += length
        if batch:
            self._fetcher.ensure(batch, filling)

    def _enter(self, window: _Window, size: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or window.error or not window.under_way
                                   or window.under_way + size <= _WINDOW)
            self._raise_trouble(window)
            window.under_way += size

    def _raise_trouble(self, window: _Window) -> None:
        """Under the lock."""
        if window.error:
            raise window.error
        if self._stopped:
            raise Conflict("the warming was ended", why="who asked for it has left")


class _Progress:
    def __init__(self, changed: threading.Condition) -> None:
        self.done = self.fetched = 0  # guarded by changed, and so is the next
        self.landed_s = -math.inf


class _Window:
    """What is under way in one pass; the first thing that goes wrong ends it."""

    def __init__(self, changed: threading.Condition, progress: _Progress) -> None:
        self.changed, self.progress = changed, progress
        self.under_way = 0  # guarded by changed
        self.error: ModelfsError | None = None  # guarded by changed


class _Filling:
    """One file; a Waiter of the fetcher."""

    def __init__(self, file: ModelFile, kept: CacheFile, window: _Window) -> None:
        self.file, self.window = file, window
        self._kept = kept
        self._rows: dict[ChunkId, list[int]] = {}  # guarded by window.changed
        self._absent = ~kept.present()

    def missing(self) -> Iterator[int]:
        """Chunks to ask for, each id once: those that are not here, and those that nobody has checked yet."""
        firsts = []
        with self.window.changed:
            for row in range(self._kept.rows):
                length = self.length(row)
                if self._kept.checked(row):
                    self._kept.touch(row)
                    self.window.progress.done += length
                    continue
                rows = self._rows.setdefault(self.file.ref(row).id, [])
                rows.append(row)
                if len(rows) == 1:
                    firsts.append(row)
        return iter(firsts)

    def length(self, row: int) -> int:
        return int(self._kept.chunks.lengths[row])

    def arrived(self, id: ChunkId, decoded: memoryview) -> None:
        """Filled here, and not only by the fetcher after this: so that who waits for it knows that it was."""
        with self.window.changed:
            rows = self._rows.pop(id, [])
        kept = [self._kept.presence(row) & 1 or self._kept.fill(row, decoded) for row in rows]
        error = None if all(kept) else NoSpace("the cache does not take it", where=self.file.entry.path,
                                               why="its disk fails, is full, or holds only what cannot be dropped")
        with self.window.changed:
            progress = self.window.progress
            progress.done += len(decoded) * len(rows)
            progress.fetched += len(decoded) * sum(bool(self._absent[row]) for row in rows)
            progress.landed_s = time.monotonic()
            self._leave(rows, error)

    def failed(self, id: ChunkId, error: ModelfsError) -> None:
        with self.window.changed:
            self._leave(self._rows.pop(id, []), error)

    def _leave(self, rows: list[int], error: ModelfsError | None) -> None:
        """Under the lock."""
        self.window.under_way -= self.length(rows[0]) if rows else 0
        self.window.error = self.window.error or error
        self.window.changed.notify_all()


def _names(pattern: str, path: str) -> bool:
    return (path == pattern or path.startswith(pattern.rstrip("/") + "/") or fnmatchcase(path, pattern)
            or fnmatchcase(path.rpartition("/")[2], pattern))
