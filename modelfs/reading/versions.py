"""Versions that are being read: a manifest with its layout, and each of its files with its place in the cache.

Rule: what is loaded is immutable but for where chunks lie: a place that proved wrong is looked up again, in a
fresh layout first, in the catalog's indexes then.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from modelfs.errors import IntegrityError, ModelfsError, ObjectMissing
from modelfs.ids import ChunkId, ObjectId
from modelfs.logs import log_event, logger_for
from modelfs.repository.chunk import ChunkRef
from modelfs.repository.index import Index
from modelfs.repository.layout import Layout
from modelfs.repository.manifest import FileEntry, Manifest
from modelfs.repository.places import Place
from modelfs.repository.repository import Repository
from modelfs.units import Deadline

_LOG = logger_for(__name__)
_RELOCATE_PERIOD_S = 2.0
_MAX_LOADED = 64


class FileCache(Protocol):
    """Where the chunks of one file are kept on disk; `presence` and friends are counts (design section 6)."""

    def presence(self, row: int) -> int: ...

    def checked(self, row: int) -> int: ...

    def read(self, row: int, start: int, view: memoryview, count: int) -> bool: ...

    def load(self, row: int, view: memoryview) -> int: ...

    def mark_checked(self, row: int, count: int) -> None: ...

    def fill(self, row: int, data: memoryview) -> int: ...

    def discard(self, row: int, count: int) -> None: ...

    def cached_bytes(self) -> int: ...


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
        self.ahead = bytearray(count)
        """1 for a chunk that was fetched ahead and not used yet."""

    def chunks_of(self, offset: int, size: int) -> range:
        """The chunks that bytes offset..offset+size touch; size at least 1, within the file."""
        first = int(np.searchsorted(self.offsets, np.uint64(offset), side="right")) - 1
        last = first
        end = offset + size
        while int(self.offsets[last + 1]) < end:
            last += 1
        return range(first, last + 1)

    def ref(self, chunk: int) -> ChunkRef:
        row = self.entry.first_row + chunk
        manifest = self.version.manifest
        return ChunkRef(manifest.chunk_id(row), int(manifest.chunk_lengths[row]))

    def cached_bytes(self) -> int:
        return self.cache.cached_bytes()

    def stored_bytes(self) -> int:
        """In the repository: each chunk of the file once."""
        return self.version.stored_bytes(self.entry.first_row, self.entry.row_count)


class LoadedVersion:
    """places are asked for by the manifest's row."""

    def __init__(self, repository: Repository, manifest: Manifest, layout: Layout | None, cache: ChunkCache,
                 renew: Callable[[], Deadline]) -> None:
        self.repository, self.manifest = repository, manifest
        self._layout, self._cache, self._renew = layout, cache, renew
        self._lock = threading.Lock()
        self._files: dict[int, ModelFile] = {}  # guarded by _lock
        self._moved: dict[int, Place] = {}  # guarded by _lock
        self._renewed = 0.0  # guarded by _relocating
        self._relocating = threading.Lock()
        self._indexes: list[Index] = []  # guarded by _relocating

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

    def file_of_row(self, row: int) -> ModelFile:
        """An empty file's first row is the next one's, so the last file that begins at or before row owns it."""
        return self.file(int(np.searchsorted(self.manifest.first_rows, np.uint64(row), side="right")) - 1)

    def place(self, row: int) -> Place:
        """From memory. Raises ObjectMissing where no layout and no index named a place."""
        with self._lock:
            moved, layout = self._moved.get(row), self._layout
        if moved is not None:
            return moved
        if layout is None:
            raise ObjectMissing(f"layout of {self.manifest.id.hex()[:16]}", where=self.repository.store.url,
                                why="neither it nor the indexes say where the chunk lies")
        return layout.place(row)

    def head_rows(self, pack: ObjectId) -> list[int]:
        """All rows that lie in this pack if it is a head pack, else none."""
        layout = self._layout
        if layout is None or pack not in layout.head_packs:
            return []
        number = next(n for n in layout.heads if layout.places.packs[n].tobytes() == pack)
        return [int(row) for row in np.flatnonzero(layout.places.pack[layout.row_place] == number)]

    def stored_bytes(self, first: int, count: int) -> int:
        layout = self._layout
        return 0 if layout is None or not count else layout.stored_bytes(slice(first, first + count))

    def relocate(self, row: int, wrong: Place | None, deadline: Deadline) -> Place | None:
        """Where else the chunk lies, or None. Asks for a fresh layout, then the catalog's indexes; at most once
        in two seconds, whoever asks."""
        with self._relocating:
            if time.monotonic() - self._renewed > _RELOCATE_PERIOD_S:
                self._renew_places(deadline)
                self._renewed = time.monotonic()
            id = self.manifest.chunk_id(row)
            candidates = [] if self._layout is None else [self._layout.place(row)]
            candidates += [found.place for index in self._indexes if (found := index.find(id))]
        for place in candidates:
            if place != wrong:
                with self._lock:
                    self._moved[row] = place
                return place
        return None

    def _renew_places(self, deadline: Deadline) -> None:
        try:
            self._layout = self.repository.layout(self.manifest, deadline, fresh=True)
        except ModelfsError as error:
            log_event(_LOG, "warning", "layout.unusable", manifest=self.manifest.id.hex(), why=str(error))
        try:
            self._indexes = self.repository.indexes(self.repository.catalog(deadline).catalog, deadline)
        except ModelfsError as error:
            log_event(_LOG, "warning", "index.unusable", manifest=self.manifest.id.hex(), why=str(error))


class Versions:
    """Loads versions, each once at a time, and keeps the ones used last."""

    def __init__(self, repository: Repository, cache: ChunkCache, renew: Callable[[], Deadline]) -> None:
        """renew: a deadline from now, for one load."""
        self._repository, self._cache, self._renew = repository, cache, renew
        self._lock = threading.Lock()
        self._kept: OrderedDict[ObjectId, LoadedVersion] = OrderedDict()  # guarded by _lock
        self._loading: dict[ObjectId, threading.Lock] = {}  # guarded by _lock

    def loaded(self, manifest_id: ObjectId) -> LoadedVersion | None:
        with self._lock:
            found = self._kept.get(manifest_id)
            if found is not None:
                self._kept.move_to_end(manifest_id)
            return found

    def load(self, manifest_id: ObjectId) -> LoadedVersion:
        """Raises ModelfsError where the manifest cannot be had; without a layout the indexes are asked."""
        if (found := self.loaded(manifest_id)) is not None:
            return found
        with self._lock:
            loading = self._loading.setdefault(manifest_id, threading.Lock())
        with loading:
            if (found := self.loaded(manifest_id)) is not None:
                return found
            version = self._fetch(manifest_id)
            with self._lock:
                self._kept[manifest_id] = version
                self._loading.pop(manifest_id, None)
                while len(self._kept) > _MAX_LOADED:
                    self._kept.popitem(last=False)
            return version

    def _fetch(self, manifest_id: ObjectId) -> LoadedVersion:
        deadline = self._renew()
        manifest = self._repository.manifest(manifest_id, deadline)
        layout = None
        try:
            layout = self._repository.layout(manifest, deadline)
        except IntegrityError as error:
            log_event(_LOG, "warning", "layout.unusable", manifest=manifest_id.hex(), why=str(error))
        version = LoadedVersion(self._repository, manifest, layout, self._cache, self._renew)
        if layout is None and len(manifest.chunk_ids):
            for row in range(len(manifest.chunk_ids)):
                version.relocate(row, None, deadline)
        return version


class NoFileCache:
    """A FileCache that keeps nothing."""

    def presence(self, row: int) -> int:
        return 0

    def checked(self, row: int) -> int:
        return 0

    def read(self, row: int, start: int, view: memoryview, count: int) -> bool:
        return False

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


class NoChunkCache:
    """For commands that read a repository once."""

    def file(self, ids: NDArray[np.uint8], lengths: NDArray[np.uint32]) -> FileCache:
        return NoFileCache()

    def find(self, chunk_id: ChunkId, length: int) -> tuple[FileCache, int] | None:
        return None
