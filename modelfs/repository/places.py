"""Places: where stored chunks lie. The one table that layouts, indexes and pack tails have in common.

Rule: a place is a hint. It is bounded here, so that nothing is read or allocated beyond a chunk's size, and
proved only by the hash of what comes out of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelfs.errors import Malformed
from modelfs.ids import ChunkId, ObjectId
from modelfs.repository.columns import Columns, ids_column, texts_column

NO_BASE = 0xFFFF_FFFF
MAX_PACK_BYTES = 64 << 20
SELF = ObjectId(bytes(32))
"""In a pack's tail: the pack that the tail is part of, whose digest it cannot hold."""


@dataclass(frozen=True, slots=True)
class Place:
    """length: stored bytes. base: the chunk that this one is stored as a difference to, or None."""

    pack: ObjectId
    offset: int
    length: int
    codec: str
    base: Base | None = None

    @property
    def packs(self) -> tuple[ObjectId, ...]:
        """What has to be there for the chunk to be read."""
        return (self.pack,) if self.base is None else (self.pack, self.base.place.pack)


@dataclass(frozen=True, slots=True)
class Base:
    """As long, decoded, as the chunks that are differences to it. place: has no base itself."""

    id: ChunkId
    place: Place


@dataclass(frozen=True, slots=True)
class PlaceTable:
    """k places: packs [p, 32] u8 and codecs (names) hold what pack [k] u32 and codec [k] u16 number;
    offset [k] u64, stored [k] u32, base [k] u32 (another row, or NO_BASE). based [m]: the rows that have a base;
    base_ids [m, 32] u8: its chunk id."""

    packs: NDArray[np.uint8]
    codecs: list[str]
    pack: NDArray[np.uint32]
    offset: NDArray[np.uint64]
    stored: NDArray[np.uint32]
    codec: NDArray[np.uint16]
    base: NDArray[np.uint32]
    based: NDArray[np.intp]
    base_ids: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.pack)

    def place(self, row: int) -> Place:
        base = int(self.base[row])
        return Place(ObjectId(self.packs[self.pack[row]].tobytes()), int(self.offset[row]), int(self.stored[row]),
                     self.codecs[self.codec[row]], None if base == NO_BASE else self._base(row, base))

    def _base(self, row: int, base: int) -> Base:
        return Base(ChunkId(self.base_ids[np.searchsorted(self.based, row)].tobytes()), self.place(base))

    def columns(self) -> dict[str, NDArray[Any]]:
        bases = {"place_base_id": self.base_ids} if len(self.base_ids) else {}
        return {"place_base": self.base, "place_codec": self.codec, "place_offset": self.offset,
                "place_pack": self.pack, "place_stored": self.stored, "packs": self.packs,
                "codecs": texts_column(self.codecs), **bases}

    @classmethod
    def from_columns(cls, columns: Columns, chunk_size: int) -> PlaceTable:
        """Raises Malformed where a place lies outside a pack, is larger than a chunk, or names what is not there."""
        pack = columns.get("place_pack", "U32")
        k = len(pack)
        base = columns.get("place_base", "U32", rows=k)
        rows = np.flatnonzero(base != NO_BASE)
        table = cls(columns.get("packs", "U8", 32), columns.texts("codecs"), pack,
                    columns.get("place_offset", "U64", rows=k), columns.get("place_stored", "U32", rows=k),
                    columns.get("place_codec", "U16", rows=k), base, rows,
                    columns.get("place_base_id", "U8", 32, rows=len(rows)) if len(rows) else ids_column([]))
        if k:
            based = base[rows]
            why = ("a place names a pack that is not there" if int(pack.max()) >= len(table.packs) else
                   "a place names a codec that is not there" if int(table.codec.max()) >= len(table.codecs) else
                   "a place is empty or larger than a chunk"
                   if not 1 <= int(table.stored.min()) <= int(table.stored.max()) <= chunk_size else
                   "a place lies outside a pack" if int(table.offset.max()) > MAX_PACK_BYTES - chunk_size else
                   "a base that is not there" if len(based) and int(based.max()) >= k else
                   "a base that has a base" if len(based) and bool((base[based] != NO_BASE).any()) else "")
            if why:
                raise Malformed(columns.what, why=why)
        return table


@dataclass(slots=True)
class PlaceTableBuilder:
    """Collects places and numbers their packs and codecs in the order they are met."""

    _packs: dict[ObjectId, int] = field(default_factory=dict)
    _codecs: dict[str, int] = field(default_factory=dict)
    _rows: list[tuple[int, int, int, int]] = field(default_factory=list)
    _based: dict[int, Base] = field(default_factory=dict)

    def add(self, place: Place) -> int:
        """The new row's number."""
        if place.base is not None:
            self._based[len(self._rows)] = place.base
        self._rows.append((self._packs.setdefault(place.pack, len(self._packs)), place.offset, place.length,
                           self._codecs.setdefault(place.codec, len(self._codecs))))
        return len(self._rows) - 1

    def pack_number(self, pack: ObjectId) -> int:
        return self._packs.setdefault(pack, len(self._packs))

    def build(self) -> PlaceTable:
        """Bases that were not added themselves come behind the rows that were."""
        based = np.array(list(self._based), np.intp)
        base_ids = ids_column([base.id for base in self._based.values()])
        bases = {row: self.add(base.place) for row, base in tuple(self._based.items())}
        pack, offset, stored, codec = (np.array(column, np.int64) for column in (zip(*self._rows, strict=True)
                                       if self._rows else ((), (), (), ())))
        base_of = np.full(len(self._rows), NO_BASE, "<u4")
        base_of[list(bases)] = list(bases.values())
        return PlaceTable(ids_column(list(self._packs)), list(self._codecs), pack.astype("<u4"),
                          offset.astype("<u8"), stored.astype("<u4"), codec.astype("<u2"), base_of, based, base_ids)


def table_of(places: Iterable[Place]) -> PlaceTable:
    builder = PlaceTableBuilder()
    for place in places:
        builder.add(place)
    return builder.build()


def joined(tables: Sequence[PlaceTable]) -> PlaceTable:
    """One table with the rows of all, in order."""
    codecs = list(dict.fromkeys(name for table in tables for name in table.codecs))
    pack, codec, base, based = [], [], [], []
    packs = rows = 0
    for table in tables:
        pack.append(table.pack + np.uint32(packs))
        codec.append(np.array([codecs.index(name) for name in table.codecs], np.uint16)[table.codec])
        base.append(np.where(table.base == NO_BASE, table.base, table.base + np.uint32(rows)))
        based.append(table.based + rows)
        packs, rows = packs + len(table.packs), rows + len(table)
    return PlaceTable(
        np.concatenate([table.packs for table in tables]), codecs, np.concatenate(pack),
        np.concatenate([table.offset for table in tables]), np.concatenate([table.stored for table in tables]),
        np.concatenate(codec), np.concatenate(base), np.concatenate(based),
        np.concatenate([table.base_ids for table in tables]))
