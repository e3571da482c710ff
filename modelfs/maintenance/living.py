"""What a catalog leads to, and so what gc must keep: histories, segments, manifests, layouts, indexes, packs.

Rule: where anything that is named cannot be read, it is not known what else it names, and the walk raises; what is
not known to be dead is alive.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from modelfs.errors import IntegrityError
from modelfs.ids import ChunkId, ModelName, ObjectId
from modelfs.maintenance.placing import comparable, placing_of
from modelfs.repository import index, keys
from modelfs.repository.catalog import Catalog
from modelfs.repository.changing import Renew
from modelfs.repository.columns import ids_column
from modelfs.repository.index import Index, Located
from modelfs.repository.parallel import in_parallel
from modelfs.repository.places import NO_BASE, PlaceTable
from modelfs.repository.repository import Repository
from modelfs.stores.store import ObjectInfo

_WAITING_IDS = 1 << 20


@dataclass(frozen=True, slots=True)
class Living:
    """live: keys of what the catalog leads to, with the indexes that it is to have. indexes: these. rewritten: the
    bytes of those of them that lost rows, and are not in the store. once: keys of what was named, and is no more, as
    far as tombstones and indexes tell: readers of an older catalog may need these."""

    live: frozenset[str]
    indexes: tuple[ObjectId, ...]
    rewritten: Mapping[ObjectId, bytes]
    once: frozenset[str]


@dataclass(slots=True)
class _Walk:
    live: set[str] = field(default_factory=set)
    manifests: set[ObjectId] = field(default_factory=set)
    tombstones: set[ObjectId] = field(default_factory=set)


class Seen:
    """What the walks of one gc have read. After a swap that it lost, only what came since is read: else a large
    repository that many push to would never be walked before the next push.

    Of versions only all or nothing is believed: as long as each is there, with the layout that was listed before it was
    read. One that is replaced again within a tick of the store's clock goes unseen: it may be false then, as any may.
    """

    def __init__(self) -> None:
        self.histories: dict[ObjectId, _Walk] = {}
        self.forget()

    def forget(self) -> None:
        self.layouts: dict[ObjectId, ObjectInfo] = {}
        self.packs: set[ObjectId] = set()
        self.ids = _Ids()


def living(repository: Repository, catalog: Catalog, listed: Mapping[str, ObjectInfo], renew: Renew, jobs: int,
           seen: Seen, *, reindex: bool = False) -> Living:
    """listed: what the store has, by key. seen: by earlier walks of the same gc. reindex: a chunk whose index row leads
    elsewhere than to the packs of layouts gets one of those, if the pack itself says so, and what held it before may
    go. Raises IntegrityError, Unavailable, Forbidden."""
    indexes = dict(zip(catalog.indexes, in_parallel(jobs, lambda id: repository.index(id, renew()), catalog.indexes),
                       strict=True))
    walk = _histories(repository, catalog, renew, jobs, seen)
    packs = _versions(repository, walk.manifests, [*indexes.values()], listed, renew, jobs, seen)
    indexed = {id for table in indexes.values() for id in _packs(table.places)}
    usable = {id for id in packs | indexed if keys.pack(id) in listed and keys.pack(id) not in catalog.dropped}
    covered = _Covered(seen.ids.all())
    for table in indexes.values():
        covered.within(table, packs & usable)
    added: list[Located] = []
    if reindex and covered.lacking():
        holders = {pack for found in in_parallel(jobs, lambda id: _holders(repository, id, covered, renew),
                                                 sorted(walk.manifests)) for pack in found}
        added = _from_tails(repository, holders & usable, covered, renew, jobs)
    for table in indexes.values():
        packs |= covered.elsewhere(table, _rows_within(table, usable))
    for table in indexes.values():
        packs |= covered.elsewhere(table, np.ones(len(table), np.bool_))
    once = {keys.pack(id) for id in indexed} | {keys.index(id) for id in indexes}
    for id in sorted(walk.tombstones - walk.manifests):
        once |= _of_tombstone(repository, id, listed, renew)
    kept, rewritten = _left(indexes, packs)
    if added:
        data = index.serialise(added)
        kept, rewritten = (*kept, ObjectId.of(data)), {**rewritten, ObjectId.of(data): data}
    live = walk.live | {keys.pack(id) for id in packs} | {keys.index(id) for id in kept}
    return Living(frozenset(live), kept, rewritten, frozenset(once - live))


def _histories(repository: Repository, catalog: Catalog, renew: Renew, jobs: int, seen: Seen) -> _Walk:
    named = {digest: model for model, digest in [*catalog.models.items(), *catalog.removed.items()]}
    new = [digest for digest in named if digest not in seen.histories]
    for digest, found in zip(new, in_parallel(jobs, lambda digest: _history(repository, digest, named[digest], renew),
                                              new), strict=True):
        seen.histories[digest] = found
    walk = _Walk()
    for digest in named:
        walk.live |= seen.histories[digest].live
        walk.manifests |= seen.histories[digest].manifests
        walk.tombstones |= seen.histories[digest].tombstones
    walk.live |= {key for id in walk.manifests for key in (keys.manifest(id), keys.layout(id))}
    return walk


def _history(repository: Repository, digest: ObjectId, model: ModelName, renew: Renew) -> _Walk:
    rows = repository.history_at(digest, model, renew())
    return _Walk({keys.history(digest), *(keys.history(part.digest) for part in rows.segments)},
                 {version.manifest for version in repository.versions(rows, renew())},
                 {row.manifest for row in rows.removed})


def _versions(repository: Repository, manifests: set[ObjectId], indexes: list[Index], listed: Mapping[str, ObjectInfo],
              renew: Renew, jobs: int, seen: Seen) -> set[ObjectId]:
    """The packs that all versions need; the ids of their chunks are in seen then."""
    layouts = {id: listed.get(keys.layout(id)) for id in manifests}
    if any(layouts.get(id) != info for id, info in seen.layouts.items()):
        seen.forget()
    new = sorted(manifests - seen.layouts.keys())
    walked = in_parallel(jobs, lambda id: _version(repository, id, indexes, renew), new)
    for id, (packs, chunk_ids, by_layout) in zip(new, walked, strict=True):
        seen.packs |= packs
        seen.ids.add(chunk_ids)
        info = layouts[id]
        if by_layout and info is not None and info.modified:
            seen.layouts[id] = info
    return set(seen.packs)


def _version(repository: Repository, id: ObjectId, indexes: list[Index],
             renew: Renew) -> tuple[set[ObjectId], NDArray[np.uint8], bool]:
    """The packs that a version needs, the ids of its chunks, and whether its layout says so, not the indexes."""
    manifest = repository.manifest(id, renew())
    placing = placing_of(repository, manifest, indexes, renew())
    if not placing.known.all():
        raise placing.fault or IntegrityError(f"manifest {id.hex()[:16]}", why="chunks without a place")
    packs = _packs(placing.layout.places, np.unique(placing.layout.row_place).astype(np.intp))
    return packs, manifest.chunk_ids, placing.fault is None


def _holders(repository: Repository, id: ObjectId, covered: _Covered, renew: Renew) -> set[ObjectId]:
    """The packs in which a version's layout places what is not covered."""
    manifest = repository.manifest(id, renew())
    placing = placing_of(repository, manifest, (), renew())
    rows = np.flatnonzero(placing.known & ~covered.of(manifest.chunk_ids))
    return _packs(placing.layout.places, placing.layout.row_place[rows].astype(np.intp))


class _Ids:
    """Collects chunk ids, each once, before they are many more than they need to be."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.bytes_]] = [np.zeros(0, "S32")]
        self._waiting = 0

    def add(self, ids: NDArray[np.uint8]) -> None:
        self._parts.append(comparable(ids))
        self._waiting += len(ids)
        if self._waiting > max(_WAITING_IDS, len(self._parts[0])):
            self.all()

    def all(self) -> NDArray[np.bytes_]:
        """Sorted."""
        self._parts, self._waiting = [np.unique(np.concatenate(self._parts))], 0
        return self._parts[0]


class _Covered:
    """Which chunks the catalog's next indexes name: they name every chunk of every version, also once rows have left
    them. Where two pushes stored a chunk twice, a layout may name one copy and the indexes only the other.

    ids: sorted.
    """

    def __init__(self, ids: NDArray[np.bytes_]) -> None:
        self._ids, self._known = ids, np.zeros(len(ids), np.bool_)

    def within(self, table: Index, packs: set[ObjectId]) -> None:
        """By the rows that lie in packs."""
        at, needed = self._rows(table)
        self._known[at[needed & _rows_within(table, packs)]] = True

    def elsewhere(self, table: Index, usable: NDArray[np.bool_]) -> set[ObjectId]:
        """More packs to keep: for what is not covered yet by the rows [r] of an index that are usable."""
        if self._known.all():
            return set()
        at, needed = self._rows(table)
        rows = np.flatnonzero(needed & usable & ~self._known[at])
        self._known[at[rows]] = True
        return _packs(table.places, rows)

    def of(self, ids: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """ids: of those that this was made for."""
        return self._known[np.searchsorted(self._ids, comparable(ids))]

    def lacking(self) -> set[bytes]:
        rest = self._ids[~self._known].view(np.uint8).reshape(-1, 32)
        return {row.tobytes() for row in rest}

    def add(self, ids: Collection[ChunkId]) -> None:
        if ids:
            self._known[np.searchsorted(self._ids, comparable(ids_column([*ids])))] = True

    def _rows(self, table: Index) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """For each row of an index its place in ids, and whether it is there at all."""
        if not len(self._ids):
            return np.zeros(len(table), np.intp), np.zeros(len(table), np.bool_)
        mine = comparable(table.ids)
        at = np.minimum(np.searchsorted(self._ids, mine), len(self._ids) - 1)
        return at, self._ids[at] == mine


def _from_tails(repository: Repository, packs: set[ObjectId], covered: _Covered, renew: Renew,
                jobs: int) -> list[Located]:
    """Rows for what is not covered yet, as the packs themselves say: that a layout says so is not enough to let go of
    what an index knew, since it may be false."""
    lacking = covered.lacking()

    def tail(id: ObjectId) -> list[Located]:
        try:
            return [row for row in repository.pack_chunks(id, renew()) if row.id in lacking]
        except IntegrityError:  # then what the indexes know stays
            return []

    found: dict[ChunkId, Located] = {}
    for rows in in_parallel(jobs, tail, sorted(packs)):
        found.update((row.id, row) for row in rows)
    covered.add(found)
    return [*found.values()]


def _rows_within(table: Index, packs: set[ObjectId]) -> NDArray[np.bool_]:
    """Which rows [r] of an index lie, with their bases, in packs."""
    places = table.places
    alive = np.array([ObjectId(pack.tobytes()) in packs for pack in places.packs], np.bool_)[places.pack]
    based = np.flatnonzero(places.base != NO_BASE)
    whole = alive.copy()
    whole[based] &= alive[places.base[based]]
    return whole[:len(table)]


def _packs(places: PlaceTable, rows: NDArray[np.intp] | None = None) -> set[ObjectId]:
    """Of the given rows, with their bases; of all without rows."""
    numbers = np.arange(len(places.packs))
    if rows is not None:
        bases = places.base[rows]
        numbers = np.unique(places.pack[np.concatenate([rows, bases[bases != NO_BASE].astype(np.intp)])])
    return {ObjectId(places.packs[number].tobytes()) for number in numbers}


def _left(indexes: Mapping[ObjectId, Index],
          packs: set[ObjectId]) -> tuple[tuple[ObjectId, ...], dict[ObjectId, bytes]]:
    """The indexes without the rows that lie elsewhere than in packs, and the bytes of those that are new for it."""
    left: dict[ObjectId, None] = {}
    rewritten: dict[ObjectId, bytes] = {}
    for id, table in indexes.items():
        kept = _rows_within(table, packs)
        if not kept.any():
            continue
        if kept.all():
            left[id] = None
            continue
        data = index.serialise([table.row(row) for row in np.flatnonzero(kept).tolist()])
        rewritten[ObjectId.of(data)] = data
        left[ObjectId.of(data)] = None
    return tuple(left), rewritten


def _of_tombstone(repository: Repository, id: ObjectId, listed: Container[str], renew: Renew) -> set[str]:
    """Keys of a removed version, as far as they are still there; a catalog of before may lead to them."""
    there = {key for key in (keys.manifest(id), keys.layout(id)) if key in listed}
    if len(there) == 2:
        try:
            layout = repository.layout(repository.manifest(id, renew()), renew())
        except IntegrityError:  # nobody reads this version any more
            return there
        there |= {keys.pack(pack) for pack in _packs(layout.places)}
    return there
