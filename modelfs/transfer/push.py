"""Push: a directory becomes a version. Packs, index, layout, manifest, history, and the catalog last.

Rule: until the catalog is swapped nothing of a push is visible, and after it everything is; who loses the swap
to another push reads the catalog again and goes on from there, so pushes at once all succeed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Container, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from modelfs.errors import Conflict, IntegrityError, ModelfsError, ObjectMissing
from modelfs.ids import ChunkId, ModelName, ModelRef, ObjectId
from modelfs.repository import history, index, keys, layout, manifest
from modelfs.repository.catalog import Catalog
from modelfs.repository.changing import swap_catalog, until_swapped
from modelfs.repository.history import History, Version
from modelfs.repository.index import Index, Located
from modelfs.repository.manifest import content_digest
from modelfs.repository.pack import HEAD_TARGET_BYTES, SealedPack
from modelfs.repository.places import Place
from modelfs.repository.repository import CatalogState, Repository
from modelfs.stores.store import Buffer
from modelfs.transfer.encoding import Encoder, Tree
from modelfs.transfer.journal import Journal
from modelfs.transfer.scan import scan
from modelfs.units import Deadline, rfc3339

_UPLOADS = 4
_LIKE_INDEXES = 8
MAX_HEAD_BYTES = 2 * HEAD_TARGET_BYTES
MAX_LAYOUT_BYTES = 4096 << 20


@dataclass(frozen=True, slots=True)
class PushOptions:
    """renew: a deadline from now, for one object. state: the directory of journals."""

    state: Path
    renew: Callable[[], Deadline]
    message: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    jobs: int = 0
    follow_links: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class PushReport:
    """What `push --json` shows."""

    model: str
    version: str
    tag: str
    manifest: str
    created: str
    files: int
    decoded_bytes: int
    stored_bytes: int
    new_chunks: int
    reused_chunks: int
    uploaded_bytes: int
    elapsed_s: float
    changed: bool


class PushProgress:
    """What a push tells while it runs; this one tells nobody."""

    def total(self, size_bytes: int) -> None: ...

    def advance(self, size_bytes: int, known_bytes: int) -> None: ...


def push(source: Path, repository: Repository, ref: ModelRef, options: PushOptions,
         progress: PushProgress | None = None) -> PushReport:
    """Raises NotFound, BadInput, Conflict (a file changed), NoSpace, Forbidden, Unavailable."""
    return _Push(repository, ref, options, progress or PushProgress()).run(source)


class _Push:
    def __init__(self, repository: Repository, ref: ModelRef, options: PushOptions, progress: PushProgress) -> None:
        self.repository, self.options, self.progress = repository, options, progress
        self.model: ModelName = ref.model
        self.tag = ref.tag or "latest"
        self.started = time.monotonic()
        self.journal = Journal(options.state, repository.info.id, ref.model)
        self.indexes: list[tuple[ObjectId, Index]] = []
        self.resumed: dict[ChunkId, Located] = {}
        self.resumed_at: str | None = None  # etag of the catalog, read before the resumed packs were seen to be there
        self.placed: dict[ChunkId, Located] = {}  # guarded by lock
        self.heads: set[ObjectId] = set()
        self.uploaded = 0  # guarded by lock
        self.written: set[str] = set()  # keys of this push's objects; guarded by lock
        self.lock = threading.Lock()

    def run(self, source: Path) -> PushReport:
        files = scan(source, self.options.follow_links)
        self.progress.total(sum(file.size for file in files))
        try:
            state = self.repository.catalog(self.options.renew())
            self._load_indexes(state.catalog)
            if not self.options.dry_run:
                self._resume(state)
            with ThreadPoolExecutor(_UPLOADS, thread_name_prefix="upload") as uploads:
                pending = _Pending(uploads, self._put_pack)
                encoder = Encoder(self.repository.info.chunk_size, self.options.jobs or os.cpu_count() or 1,
                                  self._known, pending.put, lambda pack: self._head(pack, pending),
                                  self.progress.advance)
                try:
                    tree = encoder.run(files)
                except BaseException:
                    pending.cancel()
                    raise
                pending.finish()
            return self._commit(tree)
        finally:
            self.journal.close()

    # chunks

    def _load_indexes(self, catalog: Catalog) -> None:
        have = dict(self.indexes)
        self.indexes = [(id, have.get(id) or self.repository.index(id, self.options.renew()))
                        for id in catalog.indexes]

    def _resume(self, state: CatalogState) -> None:
        self.resumed_at = state.etag
        for pack in self.journal.adopt():
            if keys.pack(pack) in state.catalog.dropped:  # gc may be deleting it
                continue
            try:
                chunks = self.repository.pack_chunks(pack, self.options.renew())
            except IntegrityError:  # missing, or no pack any more: it is pushed again
                continue
            self.resumed.update((chunk.id, chunk) for chunk in chunks)

    def _indexed(self, id: ChunkId) -> Located | None:
        return next((found for _, rows in self.indexes if (found := rows.find(id))), None)

    def _known(self, id: ChunkId) -> bool:
        return id in self.resumed or self._indexed(id) is not None

    def _head(self, pack: SealedPack, pending: _Pending) -> None:
        self.heads.add(pack.id)
        pending.put(pack)

    def _put_pack(self, pack: SealedPack) -> None:
        with self.lock:
            self.placed.update((chunk.id, chunk) for chunk in pack.chunks)
        if not self.options.dry_run:
            self.journal.note(pack.id)
            self._put(keys.pack(pack.id), pack.data)

    def _put(self, key: str, data: Buffer, *, only_if_absent: bool = False) -> None:
        with self.lock:
            self.written.add(key)
        if self.repository.store.put(key, data, self.options.renew(), only_if_absent=only_if_absent):
            with self.lock:
                self.uploaded += len(data)

    # the commit

    def _commit(self, tree: Tree) -> PushReport:
        body = manifest.serialise(tree.files, tree.ids, tree.lengths, [])
        manifest_id = ObjectId.of(body)
        located: tuple[dict[ChunkId, Place], list[Located]] | None = None

        def attempt(state: CatalogState) -> PushReport:
            nonlocal located
            still_there = {id for id, _ in self.indexes} <= set(state.catalog.indexes)
            self._load_indexes(state.catalog)
            if self._forsake(state) or not still_there or located is None:
                located = self._locate(tree)
            places, fresh = located
            return self._publish(state, tree, self._version(tree, manifest_id, places), body, places, fresh)

        return until_swapped(self.repository, f"push of {self.model}", self.options.renew, attempt)

    def _forsake(self, state: CatalogState) -> bool:
        """Give up resumed packs that gc took, or is about to: it drops them first, so this catalog, read before they
        are looked for, either shows it or cannot be swapped any more.

        Returns whether there were any. Raises Conflict where an object of this push's own has gone.
        """
        dropped = state.catalog.dropped
        if not all(self._is_there(key) for key in self.written & dropped.keys()):
            raise self._removed_meanwhile()
        if state.etag is not None and state.etag == self.resumed_at:
            return False
        self.resumed_at = state.etag
        gone = {id for id in {chunk.place.pack for chunk in self.resumed.values()}
                if keys.pack(id) in dropped or not self._is_there(keys.pack(id))}
        self.resumed = {id: chunk for id, chunk in self.resumed.items() if chunk.place.pack not in gone}
        return bool(gone)

    def _is_there(self, key: str) -> bool:
        try:
            self.repository.store.stat(key, self.options.renew())
        except ObjectMissing:
            return False
        return True

    def _removed_meanwhile(self) -> Conflict:
        return Conflict(f"push of {self.model}", where=self.repository.store.url,
                        why="chunks that it counted on were removed meanwhile", advice="Push again.")

    def _locate(self, tree: Tree) -> tuple[dict[ChunkId, Place], list[Located]]:
        """Where each chunk lies, and which of them no index names yet."""
        places: dict[ChunkId, Place] = {}
        fresh: list[Located] = []
        for id in dict.fromkeys(tree.ids):
            found = self._indexed(id)
            if found is None:
                found = self.placed.get(id) or self.resumed.get(id)
                if found is None:
                    raise self._removed_meanwhile()
                fresh.append(found)
            places[id] = found.place
        return places, fresh

    def _version(self, tree: Tree, manifest_id: ObjectId, places: Mapping[ChunkId, Place]) -> Version:
        """The row but for its number and parent."""
        return Version(1, manifest_id, content_digest(tree.files), rfc3339(time.time()), self.options.message, None,
                       dict(self.options.metadata), len(tree.files), len(tree.ids),
                       sum(tree.lengths), sum(place.length for place in places.values()))

    def _publish(self, state: CatalogState, tree: Tree, version: Version, body: bytes,
                 places: Mapping[ChunkId, Place], fresh: list[Located]) -> PushReport:
        rows = self._history(state.catalog)
        parent = rows.live_tags.get(self.tag, rows.live_tags.get("latest"))
        same = self._equal_version(rows, version)
        if same is not None and rows.live_tags.get(self.tag) == same.number:
            self.journal.finish(self._unused(places))
            return self._report(same, places, fresh, changed=False)
        if same is None:
            version = _numbered(version, rows.next, parent)
            rows = rows.with_version(version)
        rows = rows.with_tag(self.tag, (same or version).number, rfc3339(time.time()))
        if not self.options.dry_run:
            self._write(state, tree, version, body, places, fresh, rows, new=same is None)
            self.journal.finish(self._unused(places))
        return self._report(same or version, places, fresh, changed=True)

    def _write(self, state: CatalogState, tree: Tree, version: Version, body: bytes,
               places: Mapping[ChunkId, Place], fresh: list[Located], rows: History, *, new: bool) -> None:
        indexes, dropped = state.catalog.indexes, dict(state.catalog.dropped)
        if new:
            indexes, dropped = self._write_index(fresh, dropped)
            placement = layout.serialise(version.manifest, [places[id] for id in tree.ids],
                                         self._head_packs(tree, places))
            self._put_layout(keys.layout(version.manifest), placement, dropped)
            self._put(keys.manifest(version.manifest), body)
        if rows.sealable():
            segment = history.segment_bytes(self.model, rows.sealable())
            self._put(keys.history(ObjectId.of(segment)), segment)
            rows = rows.sealed(ObjectId.of(segment))
        text = rows.serialise()
        self._put(keys.history(ObjectId.of(text)), text)
        for key in (*self.written, *(keys.pack(place.pack) for place in places.values())):
            dropped.pop(key, None)  # it is named again: gc must not delete it
        removed = {name: digest for name, digest in state.catalog.removed.items() if name != self.model}
        catalog = state.catalog.next(rfc3339(time.time()), models={**state.catalog.models,
                                                                   self.model: ObjectId.of(text)},
                                     removed=removed, indexes=indexes, dropped=dropped)
        swap_catalog(self.repository, state, catalog, self.options.renew)

    def _put_layout(self, key: str, placement: bytes, dropped: Container[str]) -> None:
        """Only where there is none, or one that was dropped with its version, and may name packs that go."""
        if key not in dropped:
            self._put(key, placement, only_if_absent=True)
            return
        try:
            old = self.repository.store.get(key, self.options.renew(), limit=MAX_LAYOUT_BYTES, fresh=True)
        except ObjectMissing:
            old = None
        self.repository.store.swap(key, old.etag if old else None, placement, self.options.renew())
        with self.lock:
            self.written.add(key)
            self.uploaded += len(placement)

    def _head_packs(self, tree: Tree, places: Mapping[ChunkId, Place]) -> set[ObjectId]:
        """This push's head packs, and older ones that hold heads of this version (all it has there is small)."""
        ends: dict[ObjectId, int] = {}
        for place in places.values():
            ends[place.pack] = max(ends.get(place.pack, 0), place.offset + place.length)
        older = {places[id].pack for id in tree.heads}
        return {pack for pack in ends if pack in self.heads or (pack in older and ends[pack] <= MAX_HEAD_BYTES)}

    def _write_index(self, fresh: list[Located], dropped: dict[str, str]) -> tuple[tuple[ObjectId, ...],
                                                                                   dict[str, str]]:
        """The catalog's new indexes: one more for what is new; more than eight of like size become one."""
        parts = [(id, len(rows)) for id, rows in self.indexes]
        if not fresh:
            return tuple(id for id, _ in parts), dropped
        merged: list[ObjectId] = []
        chunks = list(fresh)
        while True:  # the union may be one more of the next size
            size = _size_class(len(chunks))
            like = [id for id, rows in parts if id not in merged and _size_class(rows) == size]
            if len(like) < _LIKE_INDEXES:
                break
            merged += like
            chunks += [chunk for id, rows in self.indexes if id in like for chunk in rows.all()]
        data = index.serialise(chunks)
        id = ObjectId.of(data)
        self._put(keys.index(id), data)
        now = rfc3339(time.time())
        dropped.update((keys.index(old), now) for old in merged)
        return (*(old for old, _ in parts if old not in merged), id), dropped

    def _unused(self, places: Mapping[ChunkId, Place]) -> set[ObjectId]:
        """Packs found by the journals of other pushes, with chunks that neither an index nor this version names."""
        return {chunk.place.pack for id, chunk in self.resumed.items() if id not in places and not self._indexed(id)}

    def _history(self, catalog: Catalog) -> History:
        digest = catalog.models.get(self.model) or catalog.removed.get(self.model)
        return self.repository.history_at(digest, self.model, self.options.renew()) if digest else History(self.model)

    def _equal_version(self, rows: History, version: Version) -> Version | None:
        """The newest version with the same content."""
        return next((row for row in self.repository.versions(rows, self.options.renew())
                     if row.content == version.content), None)

    def _report(self, version: Version, places: Mapping[ChunkId, Place], fresh: list[Located], *,
                changed: bool) -> PushReport:
        new = sum(chunk.id in self.placed for chunk in fresh)
        return PushReport(str(self.model), version.name, self.tag, version.manifest.hex(), version.created,
                          version.files, version.decoded_bytes, sum(place.length for place in places.values()), new,
                          len(places) - new, self.uploaded, round(time.monotonic() - self.started, 3), changed)


class _Pending:
    """Packs on their way to the store, as many as there are uploads: memory stays bounded, and a kill loses little."""

    def __init__(self, pool: ThreadPoolExecutor, put: Callable[[SealedPack], None]) -> None:
        self._pool, self._put = pool, put
        self._room = threading.BoundedSemaphore(_UPLOADS)
        self._futures: list[Future[None]] = []
        self._failed: ModelfsError | None = None

    def put(self, pack: SealedPack) -> None:
        """Blocks while there is no room. Raises what an earlier put raised."""
        self._room.acquire()
        if self._failed:
            raise self._failed
        self._futures = [future for future in self._futures if not future.done() or future.exception()]
        self._futures.append(self._pool.submit(self._one, pack))

    def _one(self, pack: SealedPack) -> None:
        try:
            if self._failed is None:
                self._put(pack)
        except ModelfsError as error:
            self._failed = self._failed or error
            raise
        finally:
            self._room.release()

    def finish(self) -> None:
        """Wait for all. Raises what a put raised."""
        for future in self._futures:
            future.result()
        if self._failed:
            raise self._failed

    def cancel(self) -> None:
        """Begin no more puts; those on their way are let finish, so that the journal's packs are whole."""
        for future in self._futures:
            future.cancel()


def _numbered(version: Version, number: int, parent: int | None) -> Version:
    return Version(number, version.manifest, version.content, version.created, version.message, parent,
                   version.metadata, version.files, version.chunks, version.decoded_bytes, version.stored_bytes)


def _size_class(rows: int) -> int:
    """Powers of eight."""
    return max(rows, 1).bit_length() // 3
