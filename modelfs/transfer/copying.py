"""Objects of a repository copied from one store to another: packs verbatim, each checked by its digest on the way.

Rule: whoever names an object comes after it: packs, then layouts, manifests, histories. What is there already is not
copied again, so whatever was cut off goes on at the pack.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from modelfs.cache.system import page_buffer
from modelfs.errors import IntegrityError, Malformed, ObjectMissing
from modelfs.ids import ChunkId, ObjectId
from modelfs.repository import index, keys
from modelfs.repository.changing import Renew
from modelfs.repository.index import Index, Located
from modelfs.repository.layout import Layout
from modelfs.repository.manifest import Manifest
from modelfs.repository.pack import MAX_OBJECT_BYTES, SealedPack
from modelfs.repository.repository import Repository
from modelfs.stores.store import Buffer, ObjectStore

MAX_SMALL_BYTES = 4096 << 20
_JOBS = 4


class CopyProgress:
    """Told of bytes of packs, from any thread; this one tells nobody."""

    def total(self, size_bytes: int) -> None: ...

    def advance(self, size_bytes: int, known_bytes: int) -> None: ...


@dataclass(slots=True)
class Copied:
    """packs, bytes: that were sent. known: bytes of packs, or of chunks for new packs, that were there already."""

    packs: int = 0
    bytes: int = 0
    known: int = 0
    versions: int = 0


class Copier:
    """From a repository to a store of the same. done: what has been copied so far."""

    def __init__(self, source: Repository, target: ObjectStore, renew: Renew, progress: CopyProgress) -> None:
        self.source, self.target, self.renew, self.progress = source, target, renew, progress
        self.done = Copied()
        self.written: set[str] = set()  # guarded by _lock, as done
        self._seen: set[ObjectId] = set()  # packs that are there; guarded by _lock
        self._lock = threading.Lock()

    def has(self, key: str) -> bool:
        """The target."""
        try:
            self.target.stat(key, self.renew())
        except ObjectMissing:
            return False
        return True

    def small(self, key: str, digest: ObjectId | None = None, *, only_if_absent: bool = False) -> bytes:
        """An object that is no pack; digest: what its bytes must have, after one more look past caches."""
        data = b""
        for fresh in (False, True):
            fetched = self.source.store.get(key, self.renew(), limit=MAX_SMALL_BYTES, fresh=fresh)
            assert fetched is not None
            data = fetched.data
            if digest is None or ObjectId.of(data) == digest:
                break
        else:
            raise IntegrityError(key, where=self.source.store.url, why="its hash differs",
                                 advice="Run `modelfs verify --repair` there.")
        self.put(key, data, only_if_absent=only_if_absent)
        return data

    def put(self, key: str, data: Buffer, *, only_if_absent: bool = False) -> None:
        self.target.put(key, data, self.renew(), only_if_absent=only_if_absent)
        with self._lock:
            self.written.add(key)

    def look_again(self) -> None:
        """What was there may have gone since."""
        self._seen.clear()

    def new_pack(self, pack: SealedPack) -> None:
        """One that the source does not have. From any thread."""
        self.put(keys.pack(pack.id), pack.data)
        with self._lock:
            self.done.packs += 1
            self.done.bytes += len(pack.data)

    def packs(self, ids: Iterable[ObjectId]) -> None:
        """Those that this has not seen to yet, several at a time. The first that fails ends all that have not begun."""
        wanted = [id for id in ids if id not in self._seen]
        with ThreadPoolExecutor(_JOBS, thread_name_prefix="copy") as pool:
            sizes = dict(zip(wanted, pool.map(self._size, wanted), strict=True))
            self.progress.total(sum(sizes.values()))
            try:
                for _ in pool.map(self._pack, sizes, sizes.values()):
                    pass
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _size(self, id: ObjectId) -> int:
        size = self.source.store.stat(keys.pack(id), self.renew()).size
        if size > MAX_OBJECT_BYTES:
            raise Malformed("a pack is too large", where=self.source.store.url, why=f"{id.hex()} has {size} bytes")
        return size

    def _pack(self, id: ObjectId, size: int) -> None:
        key = keys.pack(id)
        try:
            there = self.target.stat(key, self.renew()).size == size
        except ObjectMissing:
            there = False
        if not there:
            self.target.put(key, self._checked(key, id, size), self.renew())
        with self._lock:
            self.written.add(key)
            self._seen.add(id)
            self.done.packs += not there
            if there:
                self.done.known += size
            else:
                self.done.bytes += size
        self.progress.advance(size, size if there else 0)

    def _checked(self, key: str, id: ObjectId, size: int) -> memoryview:
        """Raises IntegrityError where it is wrong twice: bytes may be spoilt on their way."""
        data = memoryview(page_buffer(max(size, 1)))[:size]
        for _ in range(2):
            with self.source.store.open_range(key, 0, size, self.renew()) as stream:
                stream.readinto(data)
            if ObjectId.of(data) == id:
                return data
        raise IntegrityError(f"pack {id.hex()[:16]}", where=self.source.store.url, why="its hash differs",
                             advice="Run `modelfs verify --repair` there.")

    def layout(self, id: ObjectId, data: bytes) -> None:
        """In the place of one that whoever was cut off left, or gc: it may name packs that went. Raises SwapLost."""
        key = keys.layout(id)
        try:
            old = self.target.get(key, self.renew(), limit=MAX_SMALL_BYTES, fresh=True)
        except ObjectMissing:
            old = None
        self.target.swap(key, old.etag if old else None, data, self.renew())
        with self._lock:
            self.written.add(key)

    def versions(self, ids: Iterable[ObjectId]) -> list[tuple[Manifest, Layout]]:
        return [self.version(id) for id in ids]

    def version(self, id: ObjectId) -> tuple[Manifest, Layout]:
        """Packs, layout, manifest of one version, all it needs but to be named."""
        found = self.source.manifest(id, self.renew())
        placed = self.source.layout(found, self.renew(), fresh=True)
        self.packs(packs_of(placed))
        self.small(keys.layout(id), only_if_absent=True)
        self.small(keys.manifest(id), id)
        self.done.versions += 1
        return found, placed


def packs_of(table: Layout | Index) -> list[ObjectId]:
    """Bases' too."""
    return [ObjectId(row.tobytes()) for row in table.places.packs]


def index_of(versions: Collection[tuple[Manifest, Layout]]) -> bytes:
    """Of all chunks of these versions."""
    return index.serialise([Located(ChunkId(of.chunk_ids[row].tobytes()), int(of.chunk_lengths[row]), placed.place(row))
                            for of, placed in versions for row in range(len(of.chunk_ids))])
