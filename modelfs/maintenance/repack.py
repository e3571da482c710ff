"""Repacking: chunks that live among dead ones, or far apart, are copied into new packs in the order of their files.

Rule: stored chunks are copied as they are, each checked by its id on the way, and a layout names a pack only once the
store has it. Nothing is deleted here: until gc has swapped the catalog, its indexes lead to the old packs; so at
whatever point this is cut off, all can be read, and who repacks next goes on from the layouts that he finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from modelfs.errors import BadInput, IntegrityError, Malformed, ObjectMissing, SwapLost
from modelfs.ids import ChunkId, ObjectId
from modelfs.maintenance.placing import Placing, comparable, placing_of
from modelfs.maintenance.scatter import Chunks, Planner, Standing
from modelfs.reading.stored import stored_chunks
from modelfs.repository import keys, layout
from modelfs.repository.catalog import Catalog
from modelfs.repository.changing import Renew, until_swapped
from modelfs.repository.columns import ids_column
from modelfs.repository.index import Located
from modelfs.repository.manifest import Manifest
from modelfs.repository.pack import OpenPacks, SealedPack
from modelfs.repository.parallel import in_parallel
from modelfs.repository.places import Place
from modelfs.repository.repository import CatalogState, Repository
from modelfs.units import MiB, seconds_of

Progress = Callable[[int, int], None]
"""(bytes copied since the last call, bytes to copy in all)."""

_LOADERS = 2
"""Versions that are loaded at once; of 500 000 chunks each takes 30 MB."""
_UNNAMED_PACKS = 64
"""After so many packs (1 GiB) layouts name them, so that who is killed repeats no more."""
_MAX_LAYOUT_BYTES = 4096 * MiB
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Repacked:
    """packs: that versions needed, and need no more. versions: that have a new layout. bytes: stored ones, copied.
    left: packs that some layout named before and does not now."""

    packs: int = 0
    versions: int = 0
    bytes: int = 0
    left: frozenset[ObjectId] = frozenset()


def repack(repository: Repository, renew: Renew, *, dry_run: bool = False,
           progress: Progress = lambda done, total: None) -> Repacked:
    """With dry_run: what would be done. A replica, whose indexes and packs are its primary's, copies nothing: its
    layouts follow its indexes. Raises Forbidden where the store cannot list or only reads, NoSpace, Unavailable;
    IntegrityError where what is to be copied is damaged."""
    done = Repacked()

    def attempt(state: CatalogState) -> Repacked:
        nonlocal done
        run = _Repack(repository, _planned(repository, state.catalog, renew), renew, progress)
        try:
            run.preview() if dry_run else run.run()
        finally:
            done = Repacked(0, done.versions + run.versions, done.bytes + run.bytes, done.left | run.left)
        return replace(done, packs=run.plan.emptied())

    try:
        return until_swapped(repository, "repacking", renew, attempt)
    except IntegrityError as error:
        raise IntegrityError("gc cannot copy what it should", where=repository.store.url, why=str(error),
                             advice="Run `modelfs verify --read-data` first.") from error


def _planned(repository: Repository, catalog: Catalog, renew: Renew) -> Planner:
    sizes = {id: size for id, size in _packs(repository, renew) if keys.pack(id) not in catalog.dropped}
    indexes = repository.indexes(catalog, renew())
    plan = Planner(sizes, indexes, follow=catalog.replica_of is not None)

    def load(id: ObjectId) -> tuple[Manifest, Placing]:
        manifest = repository.manifest(id, renew())
        return manifest, placing_of(repository, manifest, indexes, renew())

    for manifest, placing in in_parallel(_LOADERS, load, _by_rank(repository, catalog, renew)):
        if not placing.known.all():
            raise placing.fault or IntegrityError(f"manifest {manifest.id.hex()[:16]}", why="chunks without a place")
        plan.take(manifest, placing)
    plan.mostly_dead(lambda id: _stored_in(repository, id, renew))
    return plan


def _packs(repository: Repository, renew: Renew) -> Iterator[tuple[ObjectId, int]]:
    for info in repository.store.list(keys.PACKS, renew()):
        if id := keys.pack_id(info.key):
            yield id, info.size


def _by_rank(repository: Repository, catalog: Catalog, renew: Renew) -> list[ObjectId]:
    """Manifests, those first that are read most: tagged versions, then newer ones."""
    rank: dict[ObjectId, tuple[bool, float]] = {}
    for model, digest in catalog.models.items():
        rows = repository.history_at(digest, model, renew())
        tagged = set(rows.live_tags.values())
        for version in repository.versions(rows, renew()):
            mine = (version.number in tagged, _created(version.created))
            rank[version.manifest] = max(mine, rank.get(version.manifest, mine))
    return sorted(rank, key=lambda id: (rank[id], id), reverse=True)


def _created(text: str) -> float:
    try:
        return seconds_of(text)
    except BadInput:
        return 0.0


def _stored_in(repository: Repository, id: ObjectId, renew: Renew) -> int:
    """0 where the pack does not say: it is left alone, and verify reports it."""
    try:
        return sum(chunk.place.length for chunk in repository.pack_chunks(id, renew()))
    except IntegrityError:
        return 0


class _Repack:
    """versions, bytes, left: what was done so far; see Repacked."""

    def __init__(self, repository: Repository, plan: Planner, renew: Renew, progress: Progress) -> None:
        self.repository, self.plan, self.renew, self.progress = repository, plan, renew, progress
        self.versions = self.bytes = 0
        self.left: set[ObjectId] = set()
        self._chunks: Chunks = plan.chunks
        rows = self._chunks.rows
        moved = np.flatnonzero(rows["moved"])
        self._moved = moved[np.argsort(rows["order"][moved])]
        self._orders = rows["order"][self._moved]
        rows["to_pack"][self._moved] = -1
        self._packs = OpenPacks(self._put)
        self._made: list[ObjectId] = []
        self._named: set[ObjectId] = set()  # packs that layouts name because of this
        self._tails: dict[ObjectId, frozenset[tuple[ChunkId, Place]]] = {}
        self._total = int(rows["stored"][self._moved].sum(dtype=np.int64))

    def preview(self) -> None:
        self.bytes = self._total
        self.versions = sum(self._new_layout(version.manifest) is not None for version in self._affected())

    def run(self) -> None:
        """Raises SwapLost where it is all to be looked at again."""
        waiting: list[Standing] = []
        named = 0
        for version in self._affected():
            self._copy(version)
            waiting.append(version)
            if version.in_order or len(self._made) - named >= _UNNAMED_PACKS:
                self._name(waiting)
                waiting, named = [], len(self._made)
        self._name(waiting)
        self._settle()

    def _affected(self) -> list[Standing]:
        """If chunks move, any version may have them."""
        return [version for version in self.plan.versions if len(self._moved) or version.moves]

    # copies

    def _copy(self, version: Standing) -> None:
        """What moves of the chunks that are the version's own."""
        first, last = np.searchsorted(self._orders, [version.chunks.start, version.chunks.stop])
        rows = self._moved[first:last].tolist()
        found = stored_chunks(self.repository, map(self._located, rows), self._elsewhere, self.renew)
        for row, copy in zip(rows, found, strict=True):
            copy.into(self._packs, head=bool(self._chunks.rows["head"][row]))
            self.bytes += len(copy.data)
            self.progress(len(copy.data), self._total)

    def _located(self, row: int) -> Located:
        return Located(self._id(row), int(self._chunks.rows["length"][row]), self._chunks.place(row))

    def _elsewhere(self, id: ChunkId) -> Iterator[Place]:
        return (found.place for table in self.plan.indexes if (found := table.find(id)))

    def _id(self, row: int) -> ChunkId:
        return ChunkId(self._chunks.ids[row:row + 1].tobytes())

    def _put(self, sealed: SealedPack, head: bool) -> None:
        self.repository.store.put(keys.pack(sealed.id), sealed.data, self.renew().patient())
        rows = self._chunks.rows
        at, _ = self._chunks.find(comparable(ids_column([chunk.id for chunk in sealed.chunks])))
        rows["to_pack"][at] = len(self._made)
        for row, chunk in zip(at.tolist(), sealed.chunks, strict=True):
            rows["to_offset"][row], rows["stored"][row] = chunk.place.offset, chunk.place.length
            rows["codec"][row] = self.plan.codec(chunk.place.codec)
        self._made.append(sealed.id)
        if head:
            self._chunks.heads.add(sealed.id)

    # layouts

    def _name(self, versions: list[Standing]) -> None:
        self._packs.seal()
        for version in versions:
            self._lay(version.manifest)

    def _lay(self, manifest: ObjectId) -> None:
        """A new layout in the place of the one that there is now. Raises SwapLost."""
        for last in (*[False] * (_TRIES - 1), True):
            found = self._new_layout(manifest)
            if found is None:
                return
            etag, data, named, left = found
            try:
                self.repository.store.swap(keys.layout(manifest), etag, data, self.renew())
            except SwapLost:  # by a push of the same files, or somebody else who repacks
                if last:
                    raise
                continue
            self._named |= named
            self.left |= left
            self.versions += 1
            return

    def _new_layout(self, id: ObjectId) -> tuple[str | None, bytes, set[ObjectId], set[ObjectId]] | None:
        """With the etag of the old one, the packs that the old one does not name, and those that only that one does.
        None where nothing changes, and where there is no layout that could be read: that is for verify --repair."""
        manifest = self.repository.manifest(id, self.renew())
        try:
            fetched = self.repository.store.get(keys.layout(id), self.renew(), limit=_MAX_LAYOUT_BYTES, fresh=True)
            assert fetched is not None
            old = layout.parse(id, fetched.content, len(manifest.chunk_ids), self.repository.info.chunk_size)
        except (ObjectMissing, Malformed):
            return None
        at, _ = self._chunks.find(comparable(manifest.chunk_ids))
        before = [old.place(row) for row in range(len(at))]
        new = [self._place(row, was) for row, was in zip(at.tolist(), before, strict=True)]
        if new == before:
            return None
        packs, packs_before = {place.pack for place in new}, {place.pack for place in before}
        data = layout.serialise(id, new, packs & (self._chunks.heads | old.head_packs))
        return fetched.etag, data, packs - packs_before, packs_before - packs

    def _place(self, row: int, was: Place) -> Place:
        """Where a chunk lies from now on. What was not copied moves only to where the pack itself says that it is."""
        found, place = self._chunks.rows[row], self._chunks.place(row)
        if found["moved"]:
            pack = self._made[found["to_pack"]] if found["to_pack"] >= 0 else ObjectId(bytes(32))
            return Place(pack, int(found["to_offset"]), place.length, place.codec)
        if place == was or found["fixed"] or (self._id(row), place) not in self._held(place.pack):
            return was
        return place

    def _held(self, pack: ObjectId) -> frozenset[tuple[ChunkId, Place]]:
        if pack not in self._tails:
            try:
                found = self.repository.pack_chunks(pack, self.renew())
            except IntegrityError:
                found = []
            self._tails[pack] = frozenset((each.id, each.place) for each in found)
        return self._tails[pack]

    def _settle(self) -> None:
        """A gc that had read older layouts may have taken packs that these name now. Raises SwapLost."""
        dropped = self.repository.catalog(self.renew()).catalog.dropped
        for id in self._named:
            if keys.pack(id) in dropped or not self.repository.has(keys.pack(id), self.renew()):
                raise SwapLost(f"pack {id.hex()[:16]}", where=self.repository.store.url,
                               why="another gc took it meanwhile", advice="Try again.")
