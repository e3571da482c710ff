"""A repository as its readers see it: from the catalog down to manifests and layouts, each checked as it comes.

Rule: an object named by its digest is returned only after it hashed to it; nothing here lists a store.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from modelfs.errors import (
    IntegrityError,
    Malformed,
    ModelfsError,
    NotFound,
    ObjectMissing,
    Unavailable,
)
from modelfs.ids import ModelName, ModelRef, ObjectId
from modelfs.repository import catalog, history, index, keys, layout, manifest, pack
from modelfs.repository.absent import is_web_page, no_repository, refuse_hub_page
from modelfs.repository.beside import beside
from modelfs.repository.catalog import Catalog
from modelfs.repository.chunk import ChunkRef, open_chunk
from modelfs.repository.held import Held
from modelfs.repository.history import History, Version
from modelfs.repository.index import Index, Located
from modelfs.repository.info import MAX_INFO_BYTES, RepositoryInfo, parse_info
from modelfs.repository.layout import Layout
from modelfs.repository.manifest import Manifest
from modelfs.repository.places import Place
from modelfs.stores.replicas import Replica, replicas_of
from modelfs.stores.store import LARGE_BYTES, Fetched, ObjectStore
from modelfs.units import Deadline, MiB

_MIRROR_WAIT_S = 2.0
_MAX_COLUMNS_BYTES = 4096 * MiB
Asked = Callable[[], Fetched | None]
"""A request that is on its way."""


class ObjectCache(Protocol):
    """Keeps objects of a repository nearer than its store. A miss is never an error."""

    def get(self, kind: str, name: str) -> bytes | None: ...

    def put(self, kind: str, name: str, data: bytes) -> None: ...

    def hold(self, kind: str, name: str, digest: ObjectId | None = None) -> Held | None:
        """As `get`, without a copy of what is large. digest: what the data must hash to, where that is known."""

    def keep(self, kind: str, name: str, data: bytes | memoryview, digest: ObjectId | None = None) -> Held:
        """As `put`; what is held then: the object that was kept, or data itself. digest: of data, where known."""

    def receive(self, kind: str, name: str, size: int, readinto: Callable[[memoryview], None],
                digest: ObjectId) -> Held | None:
        """As `keep`, from who hands out size bytes in pieces; None where it was not kept, for whatever reason, or does
        not hash to digest. Raises what readinto raises."""


class NoCache:
    """An ObjectCache that keeps nothing: for commands that run once."""

    def get(self, kind: str, name: str) -> bytes | None:
        return None

    def put(self, kind: str, name: str, data: bytes) -> None:
        return None

    def hold(self, kind: str, name: str, digest: ObjectId | None = None) -> Held | None:
        return None

    def keep(self, kind: str, name: str, data: bytes | memoryview, digest: ObjectId | None = None) -> Held:
        return Held(data)

    def receive(self, kind: str, name: str, size: int, readinto: Callable[[memoryview], None],
                digest: ObjectId) -> Held | None:
        return None


@dataclass(frozen=True, slots=True)
class CatalogState:
    """A catalog with the etag that its swap needs."""

    catalog: Catalog
    etag: str | None


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a ModelRef meant: the version, the tag by which it was found (None for vN), its model's history."""

    version: Version
    tag: str | None
    history: History

    @property
    def yanked(self) -> str | None:
        """Why the version was withdrawn, or None."""
        return self.history.yanked.get(self.version.number)


class Repository:
    """Reads one repository, from whichever of its replicas can answer. Calls may come from several threads.

    Every method raises Unavailable or DeadlinePassed, Forbidden, and IntegrityError for what does not agree.
    """

    def __init__(self, store: ObjectStore, info: RepositoryInfo, cache: ObjectCache, *, mirror: bool = False) -> None:
        """mirror: a replica that is not the first of its remote."""
        self.store, self.info, self.cache, self._mirror = store, info, cache, mirror
        self.replicas = replicas_of(store)

    def on(self, replica: Replica) -> Repository:
        """As one of the replicas has it: for what they need not have in common, layouts, indexes and catalogs."""
        if len(self.replicas.replicas) == 1:
            return self
        return Repository(replica.store, self.info, self.cache, mirror=replica.number > 0)

    @classmethod
    def open(cls, store: ObjectStore, deadline: Deadline, cache: ObjectCache | None = None) -> Repository:
        """Raises NotFound where there is no repository; the error says what is there instead."""
        cache = cache or NoCache()
        refuse_hub_page(store.url)
        try:
            fetched = store.get(keys.INFO, deadline, limit=MAX_INFO_BYTES)
        except ObjectMissing as error:
            raise no_repository(store.url, None) from error
        assert fetched is not None
        if is_web_page(fetched.data):
            raise no_repository(store.url, fetched.data)
        info = parse_info(fetched.data, store.url)
        cache.put("info", store.url, fetched.data)
        return cls(store, info, cache)

    @classmethod
    def open_with_catalog(cls, store: ObjectStore, deadline: Deadline,
                          cache: ObjectCache) -> tuple[Repository, CatalogState]:
        """As `open` and `catalog`, in one round trip; the newest catalog of all replicas that answer soon."""
        asked = _ask_all(store, deadline)
        repository = cls.open(store, deadline, cache)
        return repository, repository._newest(*asked)

    @classmethod
    def open_cached(cls, store: ObjectStore, cache: ObjectCache) -> Repository | None:
        """From what the cache remembers of this store, without asking it; None where that is nothing."""
        data = cache.get("info", store.url)
        return None if data is None else cls(store, parse_info(data, store.url), cache)

    def catalog(self, deadline: Deadline) -> CatalogState:
        """The newest of all replicas that answer soon. Raises NotFound where modelfs.json stands without a catalog,
        Malformed."""
        if len(self.replicas.replicas) > 1:
            return self._newest(*_ask_all(self.store, deadline))
        state = self.newer_catalog(None, deadline)
        assert state is not None
        return state

    def _newest(self, first: Asked, others: Sequence[Asked]) -> CatalogState:
        newest = self._state(first)
        assert newest is not None
        for other in others:
            with suppress(ModelfsError):  # who reads will see what is wrong with it, if anybody must
                found = self._state(other)
                if found is not None and found.catalog.serial > newest.catalog.serial:
                    newest = found
        return newest

    def newer_catalog(self, etag: str | None, deadline: Deadline) -> CatalogState | None:
        """One conditional request; None where the catalog is still the one with this etag."""
        return self._state(lambda: self.store.get(keys.CATALOG, deadline, limit=catalog.MAX_CATALOG_BYTES, etag=etag))

    def _state(self, fetch: Asked) -> CatalogState | None:
        try:
            fetched = fetch()
        except ObjectMissing as error:
            raise NotFound("no modelfs repository", where=self.store.url, why="it has no catalog.json") from error
        if fetched is None:
            return None
        found = catalog.parse(fetched.data)
        if found.repository != self.info.id:
            raise Malformed("catalog.json", where=self.store.url, why="it belongs to another repository")
        return CatalogState(found, fetched.etag)

    def has(self, key: str, deadline: Deadline) -> bool:
        """Whether an object is there."""
        try:
            self.store.stat(key, deadline)
        except ObjectMissing:
            return False
        return True

    def remember_catalog(self, found: Catalog) -> None:
        self.cache.put("catalog", self.info.id, found.serialise())

    def cached_catalog(self) -> Catalog | None:
        data = self.cache.get("catalog", self.info.id)
        return None if data is None else catalog.parse(data)

    def history(self, found: Catalog, model: ModelName, deadline: Deadline) -> History:
        """Raises NotFound, with the nearest names."""
        digest = found.models.get(model)
        if digest is not None:
            return self.history_at(digest, model, deadline)
        names = [str(name) for name in found.models]
        near = difflib.get_close_matches(str(model), names, 3, 0.5)
        raise NotFound(f"no model {model}", where=self.store.url,
                       advice=f"Did you mean {', '.join(near)}?" if near else
                       "`modelfs ls` shows what there is.")

    def history_at(self, digest: ObjectId, model: ModelName, deadline: Deadline) -> History:
        return history.parse(self._history(digest, deadline), model)

    def versions(self, rows: History, deadline: Deadline) -> list[Version]:
        """All that are not removed, newest first, sealed segments too."""
        gone, out = rows.removed_numbers, list(rows.versions)[::-1]
        for part in reversed(rows.segments):
            data = self._history(part.digest, deadline)
            out += [row for row in reversed(history.parse_segment(data, rows.model, part)) if row.number not in gone]
        return out

    def _history(self, digest: ObjectId, deadline: Deadline) -> bytes:
        return bytes(self._named("history", digest, keys.history(digest), history.MAX_HISTORY_BYTES, deadline).data)

    def version(self, rows: History, number: int, deadline: Deadline) -> Version:
        """Raises NotFound."""
        found = next((row for row in rows.versions if row.number == number), None)
        if found is None and any(part.first <= number <= part.last for part in rows.segments):
            found = next((row for row in self.versions(rows, deadline) if row.number == number), None)
        if found is None:
            raise NotFound(f"no version v{number} of {rows.model}", where=self.store.url,
                           why="it was removed" if number in rows.removed_numbers else "",
                           advice="`modelfs log` shows what there is.")
        return found

    def resolve(self, found: Catalog, ref: ModelRef, deadline: Deadline) -> Resolved:
        """Raises NotFound for the model, the tag (the tags there are in the line) or the version."""
        rows = self.history(found, ref.model, deadline)
        if ref.version:
            return Resolved(self.version(rows, ref.version, deadline), None, rows)
        tag = ref.tag or "latest"
        number = rows.live_tags.get(tag)
        if number is None:
            tags = [*rows.live_tags]
            raise NotFound(f"no tag {tag} of {ref.model}", where=self.store.url,
                           why=f"its tags are {', '.join(tags) or 'none'}",
                           advice="" if ref.tag else f"Say which is meant, as in {ref.model}:{(*tags, 'vN')[0]}.")
        return Resolved(self.version(rows, number, deadline), tag, rows)

    def manifest(self, id: ObjectId, deadline: Deadline) -> Manifest:
        held = self._named("manifest", id, keys.manifest(id), _MAX_COLUMNS_BYTES, deadline)
        found = manifest.parse(id, held.data, self.info.chunk_size)
        held.rest()
        return found

    def manifest_and_layout(self, id: ObjectId, deadline: Deadline,
                            replica: Replica | None = None) -> tuple[Manifest, Layout | ModelfsError]:
        """With the layout of that replica (the first), in one round trip. What is cached can be read without a layout:
        its error is returned."""
        its = self.on(replica or self.replicas.replicas[0])
        kept = its._kept_layout(id)
        fetch: Callable[[], Held] = partial(its._fetch_layout, id, deadline, fresh=False)
        if kept is None:
            fetch = beside(fetch)
        found = self.manifest(id, deadline)
        try:
            return found, its._layout(found, kept, fetch)
        except ModelfsError as error:
            return found, error

    def layout(self, of: Manifest, deadline: Deadline, *, fresh: bool = False) -> Layout:
        """From the cache unless fresh. A false one costs a retry, so it is not checked beyond its form."""
        kept = None if fresh else self._kept_layout(of.id)
        return self._layout(of, kept, partial(self._fetch_layout, of.id, deadline, fresh=fresh))

    def _fetch_layout(self, of: ObjectId, deadline: Deadline, *, fresh: bool) -> Held:
        """Kept only after a look: a malformed one must not take a good one's place."""
        fetched = self.store.get(keys.layout(of), deadline, limit=_MAX_COLUMNS_BYTES, fresh=fresh)
        assert fetched is not None
        layout.parse(of, fetched.content, None, self.info.chunk_size)
        return self.cache.keep("layout", self._layout_name(of), fetched.content)

    def _kept_layout(self, of: ObjectId) -> Held | None:
        return self.cache.hold("layout", self._layout_name(of))

    def _layout_name(self, of: ObjectId) -> str:
        """In the cache: a mirror's is another one than the first replica's."""
        return ObjectId.of(f"{of.hex()} {self.store.url}".encode()).hex() if self._mirror else of.hex()

    def _layout(self, of: Manifest, kept: Held | None, fetch: Callable[[], Held]) -> Layout:
        if kept is not None:
            with suppress(Malformed):  # the store's is as good
                return self._parsed_layout(of, kept)
        return self._parsed_layout(of, fetch())

    def _parsed_layout(self, of: Manifest, held: Held) -> Layout:
        found = layout.parse(of.id, held.data, len(of.chunk_ids), self.info.chunk_size)
        held.rest()
        return found

    def index(self, id: ObjectId, deadline: Deadline) -> Index:
        held = self._named("index", id, keys.index(id), _MAX_COLUMNS_BYTES, deadline)
        found = index.parse(held.data, f"index {id.hex()[:16]}", self.info.chunk_size)
        held.rest()
        return found

    def indexes(self, found: Catalog, deadline: Deadline) -> list[Index]:
        return [self.index(id, deadline) for id in found.indexes]

    def pack_chunks(self, id: ObjectId, deadline: Deadline) -> list[Located]:
        """What a pack's own tail says lies in it. Raises ObjectMissing, Malformed."""
        key, what = keys.pack(id), f"pack {id.hex()[:16]}"
        size = self.store.stat(key, deadline).size
        footer = self._range(key, size - pack.FOOTER.size, pack.FOOTER.size, what, deadline)
        start, length, digest = pack.tail_span(footer, size, what)
        return pack.parse_tail(id, self._range(key, start, length, what, deadline), digest, self.info.chunk_size)

    def read_chunk(self, of: Manifest, at: Layout, row: int, deadline: Deadline) -> memoryview:
        """One chunk, checked: for those who want a header and no machinery. Raises CorruptChunk, ObjectMissing."""
        return self.chunk_at(ChunkRef(of.chunk_id(row), int(of.chunk_lengths[row])), at.place(row), deadline)

    def chunk_at(self, ref: ChunkRef, place: Place, deadline: Deadline) -> memoryview:
        """As read_chunk, at a place that is known."""
        base = None if place.base is None else \
            self.chunk_at(ChunkRef(place.base.id, ref.length), place.base.place, deadline)
        out = memoryview(bytearray(ref.length))
        stored = self._range(keys.pack(place.pack), place.offset, place.length, "pack", deadline)
        open_chunk(ref, place, stored, out, base)
        return out

    def _range(self, key: str, offset: int, length: int, what: str, deadline: Deadline) -> memoryview:
        if offset < 0:
            raise Malformed(what, why="too short for a pack")
        out = memoryview(bytearray(length))
        with self.store.open_range(key, offset, length, deadline) as stream:
            stream.readinto(out)
        return out

    def _named(self, kind: str, digest: ObjectId, key: str, limit: int, deadline: Deadline) -> Held:
        """An object whose name is its digest, from the cache or the store; asked once more past caches where
        it does not hash to it."""
        kept = self.cache.hold(kind, digest.hex(), digest)
        if kept is None and self.store.url.startswith("file:"):
            kept = self._received(kind, digest, key, limit, deadline)
        if kept is not None:
            return kept
        for fresh in (False, True):
            fetched = self.store.get(key, deadline, limit=limit, fresh=fresh)
            assert fetched is not None
            if ObjectId.of(fetched.content) == digest:
                return self.cache.keep(kind, digest.hex(), fetched.content, digest)
        raise IntegrityError(f"{kind} {digest.hex()[:16]}", where=self.store.url, why="its hash differs",
                             advice="`modelfs verify` shows what else is damaged.")

    def _received(self, kind: str, digest: ObjectId, key: str, limit: int, deadline: Deadline) -> Held | None:
        """A large object of a local store, piece by piece: to ask for its size first costs no round trip. None where
        `get` may do better, or says what is wrong."""
        with suppress(Unavailable, Malformed, ObjectMissing):
            size = self.store.stat(key, deadline).size
            if LARGE_BYTES <= size <= limit:
                with self.store.open_range(key, 0, size, deadline) as stream:
                    return self.cache.receive(kind, digest.hex(), size, stream.readinto, digest)
        return None


def _ask_all(store: ObjectStore, deadline: Deadline) -> tuple[Asked, list[Asked]]:
    """For the catalog: of whichever replica answers, and of each where there are several, which have less time."""
    def ask(one: ObjectStore, until: Deadline) -> Asked:
        return beside(partial(one.get, keys.CATALOG, until, limit=catalog.MAX_CATALOG_BYTES))

    replicas = replicas_of(store).replicas
    soon = deadline.sooner(_MIRROR_WAIT_S)
    return ask(store, deadline), [ask(replica.store, soon) for replica in replicas if len(replicas) > 1]
