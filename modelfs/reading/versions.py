"""Versions that are being read: a manifest with its layout, and each of its files with its place in the cache.

Rule: what is loaded is immutable but for where chunks lie (`sources`).
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from modelfs.cache.cache_file import Backing, Read
from modelfs.cache.system import lower_priority
from modelfs.errors import ModelfsError
from modelfs.ids import ChunkId, ObjectId
from modelfs.logs import log_event, logger_for
from modelfs.reading.shared_loads import SharedLoads
from modelfs.reading.sources import Sources
from modelfs.repository.beside import beside
from modelfs.repository.chunk import ChunkRef
from modelfs.repository.layout import Layout
from modelfs.repository.manifest import FileEntry, Manifest
from modelfs.repository.places import Place
from modelfs.repository.repository import Repository
from modelfs.stores.replicas import Replica
from modelfs.units import Deadline

T = TypeVar("T")

_LOG = logger_for(__name__)
_MAX_LOADED = 64
_KEPT_REFS = 32  # of a file


class FileCache(Protocol):
    """Where the chunks of one file are kept on disk; `presence` and friends are counts (design section 6)."""

    def presence(self, row: int) -> int: ...

    def checked(self, row: int) -> int: ...

    def read_at(self, offset: int, view: memoryview, *, nowait: bool) -> Read: ...

    def load(self, row: int, view: memoryview) -> int: ...

    def mark_checked(self, row: int, count: int) -> None: ...

    def fill(self, row: int, data: memoryview) -> int: ...

    def discard(self, row: int, count: int) -> None: ...

    def cached_bytes(self) -> int: ...

    def unchecked(self) -> NDArray[np.int64]: ...

    def whole(self) -> bool: ...

    def backing(self) -> Backing | None: ...


class ChunkCache(Protocol):
    """The disk cache as reading needs it; modelfs.cache.Cache is one."""

    def file(self, ids: NDArray[np.uint8], lengths: NDArray[np.uint32]) -> FileCache: ...

    def find(self, chunk_id: ChunkId, length: int) -> tuple[FileCache, int] | None: ...


class ModelFile:
    """One file of a loaded version. Chunks are numbered within the file; offsets [chunks + 1] are of the file."""

    def __init__(self, version: LoadedVersion, number: int, cache: FileCache) -> None:
        self.version, self.number, self.cache = version, number, cache
        self.entry: FileEntry = version.manifest.file(number)
        first, count = self.entry.first_row, self.entry.row_count
        span = version.manifest.offsets[first:first + count + 1]
        self.offsets: NDArray[np.uint64] = span - span[0]
        self._starts: memoryview = self.offsets.data
        self._refs: dict[int, ChunkRef] = {}  # single operations on it need no lock
        self.ahead: set[int] = set()
        """Chunks that were fetched ahead and not used yet."""
        self.settled = False
        """Whether all of it was in the cache a moment ago: then nothing needs to be fetched ahead."""
        self.size = self.entry.size

    @property
    def sources(self) -> Sources:
        return self.version.sources

    @property
    def path(self) -> str:
        return self.entry.path

    def row(self, chunk: int) -> int:
        """In the manifest."""
        return self.entry.first_row + chunk

    def chunks_of(self, offset: int, size: int) -> range:
        """The chunks that bytes offset..offset+size touch; size at least 1, within the file."""
        first = bisect_right(self._starts, offset) - 1
        return range(first, bisect_left(self._starts, offset + size, first + 1))

    def ref(self, chunk: int) -> ChunkRef:
        """Asked for several times a chunk by all who have to do with its fetching, so the last ones are kept."""
        found = self._refs.get(chunk)
        if found is None:
            if len(self._refs) >= _KEPT_REFS:
                self._refs.clear()
            row, manifest = self.row(chunk), self.version.manifest
            found = self._refs[chunk] = ChunkRef(manifest.chunk_id(row), int(manifest.chunk_lengths[row]))
        return found

    def cached_bytes(self) -> int:
        return self.cache.cached_bytes()

    def stored_bytes(self) -> int:
        """In the repository: each chunk of the file once."""
        return self.version.stored_bytes(self.entry.first_row, self.entry.row_count)


class LoadedVersion:
    """Rows are the manifest's."""

    def __init__(self, repository: Repository, manifest: Manifest, layout: Layout | None, asked: Replica,
                 cache: ChunkCache) -> None:
        """layout: of the replica that was asked for it."""
        self.repository, self.manifest = repository, manifest
        self._cache = cache
        self._lock = threading.Lock()
        self._files: dict[int, ModelFile] = {}  # guarded by _lock
        self.sources = Sources(repository, manifest, layout, asked)

    def file(self, number: int) -> ModelFile:
        with self._lock:
            found = self._files.get(number)
        if found is None:
            entry = self.manifest.file(number)
            rows = slice(entry.first_row, entry.first_row + entry.row_count)
            made = ModelFile(self, number, self._cache.file(self.manifest.chunk_ids[rows],
                                                            self.manifest.chunk_lengths[rows]))
            with self._lock:
                found = self._files.setdefault(number, made)
        return found

    def whole(self, number: int) -> bool:
        """Whether all of the file is in the cache, checked. Keeps only files of which that is so: a look at a hundred
        thousand names should not."""
        with self._lock:
            found = self._files.get(number)
        if found is not None:
            return found.cache.whole()
        entry = self.manifest.file(number)
        rows = slice(entry.first_row, entry.first_row + entry.row_count)
        kept = self._cache.file(self.manifest.chunk_ids[rows], self.manifest.chunk_lengths[rows])
        return kept.whole() and self.file(number).cache.whole()

    def file_of_row(self, row: int) -> ModelFile:
        """An empty file's first row is the next one's, so the last file that begins at or before row owns it."""
        return self.file(int(np.searchsorted(self.manifest.first_rows, np.uint64(row), side="right")) - 1)

    def place(self, row: int) -> Place | None:
        """From memory, on the healthiest replica; None where none is known."""
        found = self.sources.source(row)
        return found.place if found else None

    def stored_bytes(self, first: int, count: int) -> int:
        """Of these rows, each place once; without a layout, of those whose place is known."""
        return self.sources.stored_bytes(first, count)


class Versions:
    """Loads versions, each once at a time, and keeps the ones used last."""

    def __init__(self, repository: Repository, cache: ChunkCache, renew: Callable[[], Deadline]) -> None:
        """renew: a deadline from now, for one load."""
        self._repository, self._cache, self._renew = repository, cache, renew
        self._loads = SharedLoads[ObjectId, LoadedVersion](repository.store.url, renew)
        self._lock = threading.Lock()
        self._kept: OrderedDict[ObjectId, LoadedVersion] = OrderedDict()  # guarded by _lock

    def loaded(self, manifest_id: ObjectId) -> LoadedVersion | None:
        with self._lock:
            found = self._kept.get(manifest_id)
            if found is not None:
                self._kept.move_to_end(manifest_id)
            return found

    def load(self, manifest_id: ObjectId) -> LoadedVersion:
        """Raises ModelfsError where the manifest cannot be had within the deadline; a layout is not needed yet."""
        found = self.loaded(manifest_id)
        if found is not None:
            return found
        return self._loads.once(manifest_id, f"manifest {manifest_id.hex()[:16]}", partial(self._load, manifest_id))

    def _load(self, manifest_id: ObjectId) -> LoadedVersion:
        if (found := self.loaded(manifest_id)) is not None:
            return found
        version = self._fetch(manifest_id)
        with self._lock:
            self._kept[manifest_id] = version
            while len(self._kept) > _MAX_LOADED:
                self._kept.popitem(last=False)
        return version

    def _fetch(self, manifest_id: ObjectId) -> LoadedVersion:
        asked = self._repository.replicas.in_order()[0]
        fetch = partial(self._repository.manifest_and_layout, manifest_id, self._renew(), asked)
        with self._lock:
            others = bool(self._kept)
        manifest, found = beside(partial(_behind_readers, fetch))() if others else fetch()
        layout = None if isinstance(found, ModelfsError) else found
        if isinstance(found, ModelfsError):
            # What is in the cache can be read without a layout; for the rest places are looked up when needed.
            log_event(_LOG, "warning", "layout.unusable", manifest=manifest_id.hex(), why=str(found))
        return LoadedVersion(self._repository, manifest, layout, asked, self._cache)


def _behind_readers(load: Callable[[], T]) -> T:
    """A load that others may read beside: at first priority, on two processors, its threads made one in a hundred
    cached reads take 4.7 to 6.1 ms, of an idle mount's 1 ms. (Priority cannot be had back: in a thread of its own.)"""
    lower_priority()
    return load()


class NoFileCache:
    """A FileCache that keeps nothing."""

    def presence(self, row: int) -> int:
        return 0

    def checked(self, row: int) -> int:
        return 0

    def read_at(self, offset: int, view: memoryview, *, nowait: bool) -> Read:
        return Read.MISS

    def load(self, row: int, view: memoryview) -> int:
        return 0

    def mark_checked(self, row: int, count: int) -> None:
        return None

    def fill(self, row: int, data: memoryview) -> int:
        return 0

    def discard(self, row: int, count: int) -> None:
        return None

    def cached_bytes(self) -> int:
        return 0

    def unchecked(self) -> NDArray[np.int64]:
        return np.zeros(0, np.int64)

    def whole(self) -> bool:
        return False

    def backing(self) -> Backing | None:
        return None


class NoChunkCache:
    """For commands that read a repository once."""

    def file(self, ids: NDArray[np.uint8], lengths: NDArray[np.uint32]) -> FileCache:
        return NoFileCache()

    def find(self, chunk_id: ChunkId, length: int) -> tuple[FileCache, int] | None:
        return None
