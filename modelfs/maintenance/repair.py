"""Layouts and indexes made anew from what packs say of themselves.

Rule: only what is missing, or cannot be read, is replaced; histories and manifests are what versions are, and
nothing but their own bytes can bring them back. A layout is put again only where every chunk has a place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from modelfs.errors import BadInput, Forbidden, IntegrityError, ObjectMissing, SwapLost
from modelfs.ids import ChunkId, ObjectId
from modelfs.maintenance.placing import from_indexes
from modelfs.maintenance.survey import Owner, Survey, survey
from modelfs.repository import index, keys, layout
from modelfs.repository.changing import swap_catalog, until_swapped
from modelfs.repository.chunking import SMALL_FILE
from modelfs.repository.index import Index, Located
from modelfs.repository.pack import HEAD_TARGET_BYTES
from modelfs.repository.parallel import in_parallel
from modelfs.repository.repository import CatalogState, Repository
from modelfs.units import Deadline, MiB, rfc3339

_MAX_LAYOUT_BYTES = 4096 * MiB


def repair(repository: Repository, *, now: float, deadline_s: float = 60.0, jobs: int = 8) -> tuple[str, ...]:
    """The keys of the objects that were put.

    Packs are found by listing the store, or, where it cannot be listed, by what other layouts and indexes name.
    now: seconds since the epoch. Raises Forbidden where the store only reads, Unavailable, Conflict.
    """
    found = survey(repository, deadline_s=deadline_s, jobs=jobs)
    if not found.bad_layouts and not found.bad_indexes:
        return ()
    tails = _Tails(repository, found, deadline_s, jobs)
    made = [key for owner in {owner.manifest: owner for owner in found.bad_layouts}.values()
            if (key := _layout(repository, tails, owner, deadline_s))]
    if found.bad_indexes:
        made += _index(repository, found, tails, now, deadline_s)
    return tuple(made)


class _Tails:
    """Every chunk that a pack says it holds. live: packs that versions need, as far as is known by now.

    In what no version needs may lie what gc is about to delete: an index must not promise that to a push.
    """

    def __init__(self, repository: Repository, found: Survey, deadline_s: float, jobs: int) -> None:
        self.live = {id for id, _ in found.packs()}
        self.sizes: dict[ObjectId, int] = {}
        self.chunks: dict[ChunkId, Located] = {}
        self._rows: dict[ObjectId, list[Located]] = {}
        dropped = found.catalog.dropped if found.catalog else {}
        packs = sorted(self.live | _listed(repository, deadline_s), key=lambda id: (keys.pack(id) in dropped, id))

        def tail(id: ObjectId) -> list[Located]:
            try:
                return repository.pack_chunks(id, Deadline(deadline_s))
            except IntegrityError:  # verify reports it
                return []

        for id, rows in zip(packs, in_parallel(jobs, tail, packs), strict=True):
            self._rows[id] = rows
            self.sizes[id] = max((row.place.offset + row.place.length for row in rows), default=0)
            for row in rows:
                self.chunks.setdefault(row.id, row)
        data = index.serialise(list(self.chunks.values()))
        self.index = index.parse(data, "packs' tails", repository.info.chunk_size)

    def living(self) -> Iterable[Located]:
        return (row for id in sorted(self.live) for row in self._rows.get(id, ()))


def _listed(repository: Repository, deadline_s: float) -> set[ObjectId]:
    found = set()
    try:
        for item in repository.store.list(keys.PACKS, Deadline(deadline_s)):
            try:
                found.add(ObjectId.from_hex(item.key.rpartition("/")[2]))
            except BadInput:  # not a pack's name, so not a pack
                continue
    except Forbidden:
        return set()
    return found


def _layout(repository: Repository, tails: _Tails, owner: Owner, deadline_s: float) -> str | None:
    """The layout's key; None where it could not be made, or somebody else put one meanwhile."""
    try:
        manifest = repository.manifest(owner.manifest, Deadline(deadline_s))
    except IntegrityError:  # without it there is nothing to place
        return None
    found, known = from_indexes(manifest.chunk_ids, [tails.index])
    if not known.all():
        return None
    places = [found.place(row) for row in range(len(manifest.chunk_ids))]
    # packs do not say which of them are head packs: small ones that hold small files or headers serve as such
    heads = {places[file.first_row].pack for file in manifest.files()
             if file.row_count and (file.format or file.size <= SMALL_FILE)}
    data = layout.serialise(manifest.id, places,
                            {pack for pack in heads if tails.sizes.get(pack, 0) <= 2 * HEAD_TARGET_BYTES})
    key = keys.layout(manifest.id)
    try:
        old = repository.store.get(key, Deadline(deadline_s), limit=_MAX_LAYOUT_BYTES, fresh=True)
        etag = old.etag if old else None
    except ObjectMissing:
        etag = None
    try:
        repository.store.swap(key, etag, data, Deadline(deadline_s))
    except SwapLost:
        return None
    tails.live.update(pack for place in places for pack in place.packs)
    return key


def _index(repository: Repository, found: Survey, tails: _Tails, now: float, deadline_s: float) -> list[str]:
    """One index for what only the bad ones knew, in their place in the catalog."""
    chunks = [row for row in tails.living() if not _knows(found.indexes, row.id)]
    made: list[ObjectId] = []
    if chunks:
        data = index.serialise(chunks)
        made = [ObjectId.of(data)]
        repository.store.put(keys.index(made[0]), data, Deadline(deadline_s))

    def attempt(state: CatalogState) -> None:
        bad = [id for id in found.bad_indexes if id in state.catalog.indexes]
        kept = [id for id in state.catalog.indexes if id not in bad and id not in made]
        dropped = {**state.catalog.dropped, **{keys.index(id): rfc3339(now) for id in bad if id not in made}}
        for id in made:
            dropped.pop(keys.index(id), None)
        # the payload and its signatures stay: what the repository holds is the same
        catalog = replace(state.catalog, indexes=(*kept, *made), dropped=dropped)
        swap_catalog(repository, state, catalog, lambda: Deadline(deadline_s))

    until_swapped(repository, "repair", lambda: Deadline(deadline_s), attempt)
    return [keys.index(id) for id in made]


def _knows(indexes: list[Index], id: ChunkId) -> bool:
    return any(one.find(id) is not None for one in indexes)
