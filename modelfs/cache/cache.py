"""The disk cache: chunks of model files in sparse files, shared by all daemons of the host, within one limit.

Rule: a cache that fails (full disk, I/O error, directory gone) is a cache that has nothing: it is logged once and
reads go on. The names here are all that other rooms use.
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from modelfs.cache.cache_file import CacheFile
from modelfs.cache.chunk_index import ChunkIndex
from modelfs.cache.contents import CachedFile, Removal, contents, remove, room_for
from modelfs.cache.eviction import Evictor, cache_files
from modelfs.cache.handles import HandleTable
from modelfs.cache.map_file import ChunkList, read_state
from modelfs.cache.meta_cache import MetaCache
from modelfs.cache.meta_files import MetaFiles
from modelfs.cache.room import Room
from modelfs.cache.scrub import Scrubber
from modelfs.cache.sealing import Sealer
from modelfs.cache.sparse_file import open_sparse
from modelfs.cache.sweep import Sweeper
from modelfs.cache.trouble import Trouble
from modelfs.errors import ModelfsError, NoSpace
from modelfs.ids import ChunkId
from modelfs.metrics import Metrics
from modelfs.settings import Verify
from modelfs.units import DiskShare

_OPEN_FILES = 200
_TICK_S, _BUSY_TICK_S = 1.0, 0.03
_SLICE_S = 0.01  # of counting, between which the interpreter is others'
_SHRINK_S = 0.5
_SWEEP_EVERY_S = 600.0
_START_S = 0.2


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """bytes: what the directory takes on disk; limit_bytes: the smallest of the daemons'; free_bytes: the disk's."""

    directory: Path
    bytes: int
    limit_bytes: int
    free_bytes: int
    files: int
    pinned_bytes: int


class Cache:
    """All calls may be made from several threads at once.

    limit: of the directory's disk usage; min_free: what the disk keeps free in any case. Raises Forbidden where the
    directory is another's or open to others, BadInput where it is none; any other trouble means an empty cache,
    until it passes. verify: "changed": files that are wholly checked are sealed, and seals are believed; "mount" and
    "always" differ only in how reads use the cache. scrub_s: how often the whole directory is hashed; 0: never, by
    this process.
    """

    meta: MetaCache

    def __init__(self, directory: Path, limit: DiskShare, min_free: DiskShare, metrics: Metrics, *,
                 verify: Verify = "mount", scrub_s: float = 0.0) -> None:
        self.directory = directory
        self._trouble = Trouble(str(directory), metrics)
        self._room = Room(directory, limit, min_free, self._trouble)
        meta = MetaFiles(self._room)
        self._evictor = Evictor(self._room, meta, metrics, self._trouble)
        self.meta = MetaCache(meta, self._evictor, self._trouble)
        self._index = ChunkIndex(self._room.files)
        self._table = HandleTable(_handles())
        self._lock = threading.Lock()
        self._files: WeakValueDictionary[str, CacheFile] = WeakValueDictionary()  # guarded by _lock
        self._keeper = _Keeper(self._room, self._evictor, Sweeper(self._room, meta, self._trouble), meta,
                               self._table, self._trouble)
        # One that was never counted takes no fills until it is: a small or new one is ready when we return.
        self._keeper.start(0.0 if self._room.is_counted else _START_S)
        self._sealer = Sealer() if verify == "changed" else None
        self._scrubber = Scrubber(self._room, metrics, self._trouble, scrub_s) if scrub_s > 0 else None

    def close(self) -> None:
        """Everything is a miss from now on; what is on disk stays."""
        if self._scrubber is not None:
            self._scrubber.close()
        if self._sealer is not None:
            self._sealer.close()
        self._keeper.stop()
        self._table.close()
        self._room.close()

    def set_limits(self, limit: DiskShare, min_free: DiskShare) -> None:
        """Begins to shrink before it returns; what takes longer than half a second is left to the keeper."""
        self._room.set_limits(limit, min_free)
        self._evictor.forgive()
        self._evictor.shrink(_SHRINK_S)
        self._keeper.wake()

    def status(self) -> CacheStatus:
        total = free = files = pinned = 0
        try:
            total, free = self._room.usage.total(), self._room.disk_free()
            for _, path in cache_files(self._room.files):
                state = read_state(path)
                if state is not None:
                    files += 1
                    if state.pinned:
                        pinned += int(state.lengths[state.presence & 1 == 1].sum(dtype=np.int64))
        except (OSError, NoSpace) as error:
            self._trouble.note("status", error)
        return CacheStatus(self.directory, total, self._room.limit_bytes, free, files, pinned)

    def contents(self) -> list[CachedFile]:
        """Every file in the directory, as of now."""
        try:
            return contents(self._room)
        except OSError as error:
            self._trouble.note("list", error)
            return []

    def remove(self, name: str) -> Removal:
        """Drop a file, unless it is pinned or the kernel holds it; who reads it has misses from now on."""
        try:
            return remove(self._room, name)
        except (OSError, NoSpace) as error:
            self._trouble.note("remove", error)
            return Removal.IN_USE

    def room_for(self, names: Collection[str]) -> int:
        """Bytes that these files may take at most, and their maps, with all that is not pinned dropped for them.

        Raises NoSpace where the directory cannot be used.
        """
        try:
            return room_for(self._room, names)
        except OSError as error:
            raise NoSpace("the cache directory cannot be used", where=str(self.directory), why=str(error)) from error

    def wait_until_counted(self, seconds: float) -> bool:
        """Until it takes fills: at a large directory that nobody has counted yet this takes a while."""
        end = time.monotonic() + seconds
        while not self._room.is_counted:
            if time.monotonic() >= end:
                return False
            time.sleep(0.01)
        return True

    def file(self, ids: npt.NDArray[np.uint8], lengths: npt.NDArray[np.uint32]) -> CacheFile:
        """The cache file of a model file with these chunks, ids [n, 32] and decoded lengths [n] in bytes.

        The same object for the same list while anybody holds it; nothing is made on disk before the first fill.
        Raises BadInput where the shapes do not agree.
        """
        return self._file(ChunkList.of(ids, lengths))

    def find(self, chunk_id: ChunkId, length: int | None) -> tuple[CacheFile, int] | None:
        """A file on disk and the row in it where this chunk is present: to be loaded and checked, or None.

        length: None: whatever it is. Files of other daemons are known a second after they were made.
        """
        try:
            for name, row in self._index.candidates(chunk_id):
                file = self._known(name)
                if file is not None and bytes(file.chunks.ids[row]) == chunk_id \
                        and length in (None, file.chunks.lengths[row]) and file.presence(row) & 1:
                    return file, row
        except (OSError, NoSpace) as error:
            self._trouble.note("find", error)
        return None

    def _known(self, name: str) -> CacheFile | None:
        with self._lock:
            file = self._files.get(name)
        if file is None:
            opened = open_sparse(self._room, name)
            file = self._file(opened.chunks) if opened is not None else None
        return file

    def _file(self, chunks: ChunkList) -> CacheFile:
        with self._lock:
            file = self._files.get(chunks.name)
            if file is None:
                file = CacheFile(chunks, self._room, self._evictor, self._index, self._table, self._sealer,
                                 self._trouble)
                self._files[chunks.name] = file
            return file


class _Keeper:
    """A thread that once a second brings the directory within its limits, and counts it anew now and then."""

    def __init__(self, room: Room, evictor: Evictor, sweeper: Sweeper, meta: MetaFiles, table: HandleTable,
                 trouble: Trouble) -> None:
        self._room, self._evictor, self._sweeper, self._meta = room, evictor, sweeper, meta
        self._table, self._trouble = table, trouble
        self._wake, self._stopped = threading.Event(), False
        self._swept_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="modelfs-cache", daemon=True)

    def start(self, at_once_s: float) -> None:
        """at_once_s: how long to count before this returns."""
        self._sweeper.step(at_once_s)
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def stop(self) -> None:
        self._stopped = True
        self._wake.set()
        self._thread.join()
        self._sweeper.end()

    def _run(self) -> None:
        done = False
        while not self._stopped:
            self._wake.wait(_TICK_S if done else _BUSY_TICK_S)
            self._wake.clear()
            if not self._stopped:
                done = self._tick()

    def _tick(self) -> bool:
        """True when there is nothing left to do before the next second."""
        try:
            if not self._room.ensure():
                return True
            self._room.refresh()
            if not self._room.usage.counted or time.monotonic() - self._swept_s > _SWEEP_EVERY_S:
                self._swept_s = time.monotonic()
                self._sweeper.begin()
            swept = self._sweeper.step(_SLICE_S)
            shrunk = self._evictor.shrink(_SHRINK_S)
            self._meta.trim(self._room.limit_bytes)
            self._table.drop_removed()
            return swept and shrunk
        except (OSError, ModelfsError) as error:
            self._trouble.note("upkeep", error)
            return True


def _handles() -> int:
    """How many files may be open, two descriptors each: a quarter of what the process may have, for the two."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _OPEN_FILES if soft == resource.RLIM_INFINITY else max(8, min(_OPEN_FILES, soft // 5))
