"""Push: a directory becomes a version. Packs, index, layout, manifest, history, and the catalog last.

Rule: until the catalog is swapped nothing of a push is visible, and after it everything is; who loses the swap
to another push reads the catalog again and goes on from there, so pushes at once all succeed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelfs.errors import Conflict, IntegrityError, ObjectMissing
from modelfs.ids import ChunkId, ModelName, ModelRef, ObjectId
from modelfs.repository import history, index, keys, layout, manifest
from modelfs.repository.catalog import Catalog
from modelfs.repository.changing import collected, swap_catalog, until_swapped
from modelfs.repository.history import History, Version
from modelfs.repository.index import Index, Located
from modelfs.repository.manifest import content_digest
from modelfs.repository.pack import SealedPack
from modelfs.repository.places import Place
from modelfs.repository.repository import CatalogState, Repository
from modelfs.stores.store import Buffer
from modelfs.transfer.bases import Bases
from modelfs.transfer.encoding import Encoder, Tree
from modelfs.transfer.journal import Journal
from modelfs.transfer.scan import SourceFile, scan
from modelfs.transfer.uploads import Uploads
from modelfs.units import Deadline, rfc3339

_LIKE_INDEXES = 8
MAX_LAYOUT_BYTES = 4096 << 20


@dataclass(frozen=True, slots=True)
class PushOptions:
    """renew: a deadline from now, for one object; it begins anew as bytes move. state: the directory of journals.

    differences: store chunks as differences to those of base, or without one of the version that the tag names, where
    that saves a tenth of them. variant: of what `latest` names, which is its parent whatever its own tag named before.
    """

    state: Path
    renew: Callable[[], Deadline]
    message: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    jobs: int = 0
    follow_links: bool = False
    dry_run: bool = False
    differences: bool = False
    base: ModelRef | None = None
    variant: bool = False


@dataclass(frozen=True, slots=True)
class PushReport:
    """What `push --json` shows. new_version: False where the tag names, now or already, one that was there."""

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
    difference_chunks: int
    uploaded_bytes: int
    elapsed_s: float
    changed: bool
    new_version: bool


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
        self.placed: dict[ChunkId, Located] = {}  # guarded by lock
        self.dropped: Mapping[str, str] = {}  # as it was when the push began
        self.collected: object = None  # gc's mark in a catalog that was read before packs were seen to be there
        self.heads: set[ObjectId] = set()
        self.bases: Bases | None = None
        self.uploaded = 0  # guarded by lock
        self.written: set[str] = set()  # keys of this push's objects; guarded by lock
        self.lock = threading.Lock()

    def run(self, source: Path) -> PushReport:
        files = scan(source, self.options.follow_links)
        self.progress.total(sum(file.size for file in files))
        try:
            until_swapped(self.repository, f"push of {self.model}", self._renew, self._begin)
            return self._commit(files, self._encode(files, self.progress, self.bases))
        finally:
            self.journal.close()

    def _renew(self) -> Deadline:
        return self.options.renew().patient()

    # chunks

    def _begin(self, state: CatalogState) -> None:
        state.catalog.check_writable()  # before anything is uploaded
        self.dropped, self.collected = state.catalog.dropped, collected(state.catalog)
        self._load_indexes(state.catalog)
        self.bases = self._bases(state.catalog) if self.options.differences else None
        if not self.options.dry_run:
            self._resume(state.catalog)

    def _bases(self, catalog: Catalog) -> Bases | None:
        ref = self.options.base
        if ref is None:
            tags = self._history(catalog).live_tags
            tag = next((tag for tag in (self.tag, "latest") if tag in tags), None)
            if tag is None:
                return None
            ref = ModelRef(self.model, tag=tag)
        version = self.repository.resolve(catalog, ref, self._renew()).version
        found = self.repository.manifest(version.manifest, self._renew())
        try:
            return Bases(self.repository, found, self.repository.layout(found, self._renew()), self._renew)
        except IntegrityError:  # a layout that is not there: for `verify` to say
            return None

    def _encode(self, files: Iterable[SourceFile], progress: PushProgress, bases: Bases | None = None) -> Tree:
        with Uploads(self._put_pack) as uploads:
            encoder = Encoder(self.repository.info.chunk_size, self.options.jobs or os.cpu_count() or 1, self._known,
                              lambda pack, head: self._sealed(pack, head, uploads), progress.advance, bases)
            return encoder.run(files)

    def _load_indexes(self, catalog: Catalog) -> None:
        have = dict(self.indexes)
        self.indexes = [(id, have.get(id) or self.repository.index(id, self._renew())) for id in catalog.indexes]

    def _resume(self, catalog: Catalog) -> None:
        for pack in self.journal.adopt():
            if keys.pack(pack) in catalog.dropped:  # gc may be deleting it
                continue
            try:
                chunks = self.repository.pack_chunks(pack, self._renew())
            except IntegrityError:  # missing, or no pack any more: it is pushed again
                continue
            self.resumed.update((chunk.id, chunk) for chunk in chunks)

    def _indexed(self, id: ChunkId) -> Located | None:
        return next((found for _, rows in self.indexes if (found := rows.find(id))), None)

    def _known(self, id: ChunkId) -> bool:
        with self.lock:
            if id in self.placed:
                return True
        return id in self.resumed or self._indexed(id) is not None

    def _sealed(self, pack: SealedPack, head: bool, uploads: Uploads) -> None:
        if head:
            self.heads.add(pack.id)
        uploads.put(pack)

    def _put_pack(self, pack: SealedPack) -> None:
        with self.lock:
            self.placed.update((chunk.id, chunk) for chunk in pack.chunks)
        if not self.options.dry_run:
            self.journal.note(pack.id)
            self._put(keys.pack(pack.id), pack.data)

    def _put(self, key: str, data: Buffer, *, only_if_absent: bool = False) -> None:
        with self.lock:
            self.written.add(key)
        if self.repository.store.put(key, data, self._renew(), only_if_absent=only_if_absent):
            with self.lock:
                self.uploaded += len(data)

    # the commit

    def _commit(self, files: list[SourceFile], tree: Tree) -> PushReport:
        body = manifest.serialise(tree.files, tree.ids, tree.lengths, [])
        manifest_id = ObjectId.of(body)
        located: tuple[dict[ChunkId, Place], list[Located]] | None = None

        def attempt(state: CatalogState) -> PushReport:
            nonlocal located
            if self._changed(state.catalog) or located is None:
                located = self._locate(files, tree)
            places, fresh = located
            return self._publish(state, tree, self._version(tree, manifest_id, places), body, places, fresh)

        return until_swapped(self.repository, f"push of {self.model}", self._renew, attempt)

    def _changed(self, catalog: Catalog) -> bool:
        """Take over the catalog's indexes, and forsake packs of the push's own that gc took, or is about to: it drops
        them first, so this catalog, read before they are looked for, either shows it or cannot be swapped any more.

        Returns whether a chunk may lie elsewhere now, or nowhere.
        """
        before = {id for id, _ in self.indexes}
        self._load_indexes(catalog)
        gone = set() if self.options.dry_run else self._gone(catalog)
        self.placed, self.resumed = ({id: chunk for id, chunk in chunks.items() if gone.isdisjoint(chunk.place.packs)}
                                     for chunks in (self.placed, self.resumed))
        return bool(gone) or not before <= {id for id, _ in self.indexes}

    def _gone(self, catalog: Catalog) -> set[ObjectId]:
        """What was dropped since the push began may be deleted at this moment; what gc may have deleted before is
        looked for."""
        packs = {pack for chunks in (self.resumed, self.placed) for chunk in chunks.values()
                 for pack in chunk.place.packs}
        dropped = {pack for pack in packs if keys.pack(pack) in catalog.dropped}
        condemned = {pack for pack in dropped
                     if catalog.dropped[keys.pack(pack)] != self.dropped.get(keys.pack(pack))}
        gc_was_here, self.collected = collected(catalog) != self.collected, collected(catalog)
        doubtful = (packs if gc_was_here else dropped) - condemned
        return condemned | {pack for pack in doubtful if not self.repository.has(keys.pack(pack), self._renew())}


    def _locate(self, files: list[SourceFile], tree: Tree) -> tuple[dict[ChunkId, Place], list[Located]]:
        """Where each chunk lies, and which of them no index names yet. What lies nowhere any more is encoded again, and
        whole: where gc takes what this push counted on, bases may go as well.

        Raises Conflict where its file is not what it was.
        """
        places: dict[ChunkId, Place] = {}
        fresh: list[Located] = []
        lost = self._place(dict.fromkeys(tree.ids), places, fresh)
        if lost:
            self._encode([file for file, row in zip(files, tree.files, strict=True)
                          if not lost.isdisjoint(tree.ids[row.first_row:row.first_row + row.row_count])],
                         PushProgress())
            if self._place(lost, places, fresh):
                raise Conflict(f"push of {self.model}", where=self.repository.store.url, advice="Push again.",
                               why="chunks that it counted on were removed, and their files are not what they were")
        return places, fresh

    def _place(self, ids: Iterable[ChunkId], places: dict[ChunkId, Place], fresh: list[Located]) -> set[ChunkId]:
        """Those that lie nowhere."""
        lost = set()
        for id in ids:
            found = self._indexed(id)
            if found is None:
                found = self.placed.get(id) or self.resumed.get(id)
                if found is None:
                    lost.add(id)
                    continue
                fresh.append(found)
            places[id] = found.place
        return lost

    def _version(self, tree: Tree, manifest_id: ObjectId, places: Mapping[ChunkId, Place]) -> Version:
        """The row but for its number and parent."""
        return Version(1, manifest_id, content_digest(tree.files), rfc3339(time.time()), self.options.message, None,
                       dict(self.options.metadata), len(tree.files), len(tree.ids),
                       sum(tree.lengths), sum(place.length for place in places.values()))

    def _publish(self, state: CatalogState, tree: Tree, version: Version, body: bytes,
                 places: Mapping[ChunkId, Place], fresh: list[Located]) -> PushReport:
        rows = self._history(state.catalog)
        parent = rows.live_tags.get(self.tag)
        if parent is None or self.options.variant:
            parent = rows.live_tags.get("latest", parent)
        same = self._equal_version(rows, version)
        if same is not None and rows.live_tags.get(self.tag) == same.number:
            self.journal.finish(self._unused(places))
            return self._report(same, places, fresh, changed=False, new_version=False)
        if same is None:
            version = _numbered(version, rows.next, parent)
            rows = rows.with_version(version)
        rows = rows.with_tag(self.tag, (same or version).number, rfc3339(time.time()))
        if not self.options.dry_run:
            self._write(state, tree, version, body, places, fresh, rows, new=same is None)
            self.journal.finish(self._unused(places))
        return self._report(same or version, places, fresh, changed=True, new_version=same is None)

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
        for key in (*self.written, *(keys.pack(pack) for place in places.values() for pack in place.packs)):
            dropped.pop(key, None)  # it is named again: gc must not delete it
        removed = {name: digest for name, digest in state.catalog.removed.items() if name != self.model}
        catalog = state.catalog.next(rfc3339(time.time()), models={**state.catalog.models,
                                                                   self.model: ObjectId.of(text)},
                                     removed=removed, indexes=indexes, dropped=dropped)
        swap_catalog(self.repository, state, catalog, self._renew)

    def _put_layout(self, key: str, placement: bytes, dropped: Container[str]) -> None:
        """Only where there is none, or one that may name packs that went: dropped with its version, or put by this
        push itself, before it lost a swap."""
        if key not in dropped and key not in self.written:
            self._put(key, placement, only_if_absent=True)
            return
        try:
            old = self.repository.store.get(key, self._renew(), limit=MAX_LAYOUT_BYTES, fresh=True)
        except ObjectMissing:
            old = None
        self.repository.store.swap(key, old.etag if old else None, placement, self._renew())
        with self.lock:
            self.written.add(key)
            self.uploaded += len(placement)

    def _head_packs(self, tree: Tree, places: Mapping[ChunkId, Place]) -> set[ObjectId]:
        """This push's, and older ones."""
        return layout.head_packs(places.values(), self.heads, {places[id].pack for id in tree.heads})

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
        return self.repository.history_at(digest, self.model, self._renew()) if digest else History(self.model)

    def _equal_version(self, rows: History, version: Version) -> Version | None:
        """The newest version with the same content."""
        return next((row for row in self.repository.versions(rows, self._renew())
                     if row.content == version.content), None)

    def _report(self, version: Version, places: Mapping[ChunkId, Place], fresh: list[Located], *, changed: bool,
                new_version: bool) -> PushReport:
        new = sum(chunk.id in self.placed for chunk in fresh)
        return PushReport(str(self.model), version.name, self.tag, version.manifest.hex(), version.created,
                          version.files, version.decoded_bytes, sum(place.length for place in places.values()), new,
                          len(places) - new, sum(place.base is not None for place in places.values()), self.uploaded,
                          round(time.monotonic() - self.started, 3), changed, new_version)


def _numbered(version: Version, number: int, parent: int | None) -> Version:
    return Version(number, version.manifest, version.content, version.created, version.message, parent,
                   version.metadata, version.files, version.chunks, version.decoded_bytes, version.stored_bytes)


def _size_class(rows: int) -> int:
    """Powers of eight."""
    return max(rows, 1).bit_length() // 3
