"""Versions brought to a replica in packs of its own, which hold only the chunks that these need and it lacks, in the
order of their files.

Rule: a pack comes before the layouts that name it, a layout before its manifest. So what was cut off is found again:
the packs that the replica has and its indexes do not name say themselves what is in them. Where its store cannot list,
only versions that were finished are found.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from modelfs.errors import Forbidden, IntegrityError
from modelfs.ids import ChunkId, ObjectId
from modelfs.reading.stored import stored_chunks
from modelfs.repository import keys, layout
from modelfs.repository.catalog import Catalog
from modelfs.repository.index import Index, Located
from modelfs.repository.layout import Layout
from modelfs.repository.manifest import Manifest
from modelfs.repository.pack import OpenPacks, SealedPack
from modelfs.repository.parallel import in_parallel
from modelfs.repository.places import Place
from modelfs.repository.repository import Repository
from modelfs.transfer.copying import Copier, packs_of
from modelfs.transfer.uploads import Uploads

_READERS = 4
_UNNAMED_PACKS = 64
"""After so many (1 GiB) layouts name them: where a store cannot list, who is killed repeats no more."""


@dataclass(frozen=True, slots=True)
class _Copied:
    """A version whose chunks are all there. heads: those of them that belong into head packs."""

    manifest: Manifest
    heads: set[ChunkId]


class Repacker:
    """For one pass, from the source of a copier to its target."""

    def __init__(self, copier: Copier, catalog: Catalog, replica: Repository, there: Catalog | None) -> None:
        """catalog: the source's. replica: the target; there: its catalog, if it has one yet."""
        self.copier, self.source, self.renew = copier, copier.source, copier.renew
        self.catalog, self.replica = catalog, replica
        self._indexes = replica.indexes(there, self.renew()) if there else []
        self._found = dict[ChunkId, Place]()  # that no index names
        self._placed = dict[ChunkId, Place]()  # all that this pass came across, and is there
        self._coming = set[ChunkId]()
        self._heads = set[ObjectId]()
        self._made = 0
        self._there = self._list(there.dropped if there else {})
        self._looked_into = set[ObjectId]()
        self._look_into((self._there or frozenset()).difference(*map(packs_of, self._indexes)))

    def know(self, of: Manifest, placed: Layout) -> None:
        """A version that is there."""
        self._found.update((of.chunk_id(row), placed.place(row)) for row in range(len(of.chunk_ids)))

    def versions(self, ids: Iterable[ObjectId]) -> list[tuple[Manifest, Layout]]:
        """Brought there, all they need but to be named. Of chunks that several have, the order is that of the first."""
        rest, fresh = iter(ids), list[tuple[Manifest, Layout]]()
        while batch := self._copy(rest):
            fresh += [self._lay(version) for version in batch]
        return fresh

    def _list(self, dropped: Container[str]) -> frozenset[ObjectId] | None:
        """The replica's packs, but for those that gc may be deleting; None where its store cannot list."""
        try:
            return frozenset(id for info in self.replica.store.list(keys.PACKS, self.renew())
                             if info.key not in dropped and (id := keys.pack_id(info.key)))
        except Forbidden:
            return None

    def _look_into(self, packs: Iterable[ObjectId]) -> None:
        """What lies in packs of the replica, as these say themselves. Nothing of those that were looked into before."""
        new = set(packs) - self._looked_into
        self._looked_into |= new

        def chunks(id: ObjectId) -> list[Located]:
            try:
                return self.replica.pack_chunks(id, self.renew())
            except IntegrityError:  # no pack, or gone meanwhile
                return []

        for found in in_parallel(_READERS, chunks, new):
            self._found.update((chunk.id, chunk.place) for chunk in found)

    # chunks

    def _copy(self, ids: Iterator[ObjectId]) -> list[_Copied]:
        """Some versions of these, in packs that nothing names."""
        done: list[_Copied] = []
        until = self._made + _UNNAMED_PACKS
        with Uploads(self.copier.new_pack) as uploads:
            packs = OpenPacks(lambda pack, head: self._put(pack, head, uploads))
            for id in ids:
                done.append(self._copy_version(id, packs))
                if self._made >= until:
                    break
            packs.seal()
        self._coming.clear()
        return done

    def _copy_version(self, id: ObjectId, packs: OpenPacks) -> _Copied:
        of = self.source.manifest(id, self.renew())
        placed = self.source.layout(of, self.renew(), fresh=True)
        head_rows = np.isin(placed.places.pack[placed.row_place], placed.heads)
        heads = {of.chunk_id(row) for row in np.flatnonzero(head_rows).tolist()}
        rows, known = self._lacking(of, placed)
        rows.sort(key=lambda row: not head_rows[row])  # so that neighbours stay neighbours where heads lie between
        self.copier.progress.total(known + placed.stored_bytes(np.array(rows, np.intp)))
        self.copier.progress.advance(known, known)
        self.copier.done.known += known
        wanted = (Located(of.chunk_id(row), int(of.chunk_lengths[row]), placed.place(row)) for row in rows)
        found = stored_chunks(self.source, wanted, self._elsewhere, self.renew)
        for row, copy in zip(rows, found, strict=True):
            copy.into(packs, head=bool(head_rows[row]))
            self.copier.progress.advance(len(copy.data), 0)
        return _Copied(of, heads)

    def _lacking(self, of: Manifest, placed: Layout) -> tuple[list[int], int]:
        """Rows whose chunks are to be copied, each chunk once; and the stored bytes of those that were there, as far as
        this pass had not come across them before."""
        rows, known = [], 0
        for row in range(len(of.chunk_ids)):
            id = of.chunk_id(row)
            if id in self._placed or id in self._coming:
                continue
            place = self._place(id, placed, row)
            if place is None:
                self._coming.add(id)
                rows.append(row)
            else:
                self._placed[id] = place
                known += place.length
        return rows, known

    def _place(self, id: ChunkId, at_source: Layout, row: int) -> Place | None:
        """In the replica. By its indexes, or in what they do not name, such as the rest of a pack that came whole."""
        known = next(filter(self._is_there, _places(id, self._indexes)), None) or self._found.get(id)
        if known is None and self._there and (pack := at_source.place(row).pack) in self._there:
            self._look_into([pack])
            known = self._found.get(id)
        return known

    def _is_there(self, place: Place) -> bool:
        """As far as the store tells."""
        return self._there is None or self._there.issuperset(place.packs)

    def _elsewhere(self, id: ChunkId) -> Iterator[Place]:
        yield from _places(id, self._source_indexes)

    @cached_property
    def _source_indexes(self) -> list[Index]:
        return self.source.indexes(self.catalog, self.renew())

    def _put(self, pack: SealedPack, head: bool, uploads: Uploads) -> None:
        self._placed.update((chunk.id, chunk.place) for chunk in pack.chunks)
        self._made += 1
        if head:
            self._heads.add(pack.id)
        uploads.put(pack)

    # layouts

    def _lay(self, version: _Copied) -> tuple[Manifest, Layout]:
        """Layout, then manifest. Raises SwapLost."""
        of = version.manifest
        places = [self._placed[of.chunk_id(row)] for row in range(len(of.chunk_ids))]
        heads = layout.head_packs(places, self._heads, {self._placed[id].pack for id in version.heads})
        data = layout.serialise(of.id, places, heads)
        self.copier.layout(of.id, data)
        self.copier.small(keys.manifest(of.id), of.id)
        self.copier.done.versions += 1
        return of, layout.parse(of.id, data, len(places), self.source.info.chunk_size)


def _places(id: ChunkId, indexes: Iterable[Index]) -> Iterator[Place]:
    return (found.place for table in indexes if (found := table.find(id)))
