"""An index: which chunk lies in which pack, sorted by chunk id. Pushes look here for what is already stored.

Rule: an index, like a layout, is a hint; what it names is proved by the chunk's own hash.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from modelfs.errors import Malformed
from modelfs.ids import ChunkId
from modelfs.repository import columns
from modelfs.repository.columns import ids_column
from modelfs.repository.places import Place, PlaceTable, table_of


@dataclass(frozen=True, slots=True)
class Located:
    """A stored chunk: its id, decoded length and place."""

    id: ChunkId
    length: int
    place: Place


@dataclass(frozen=True)
class Index:
    """r chunks: ids [r, 32] u8, lengths [r] u32, and the first r of places; further places are bases only."""

    ids: NDArray[np.uint8]
    lengths: NDArray[np.uint32]
    places: PlaceTable

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def _prefixes(self) -> NDArray[np.uint64]:
        return np.ascontiguousarray(self.ids[:, :8]).view(">u8").ravel().astype(np.uint64)

    def find(self, id: ChunkId) -> Located | None:
        """By binary search on the first 8 bytes; equal prefixes are looked through."""
        prefix = np.uint64(int.from_bytes(id[:8], "big"))
        row = int(np.searchsorted(self._prefixes, prefix))
        while row < len(self) and self._prefixes[row] == prefix:
            if self.ids[row].tobytes() == id:
                return Located(id, int(self.lengths[row]), self.places.place(row))
            row += 1
        return None

    def row(self, row: int) -> Located:
        return Located(ChunkId(self.ids[row].tobytes()), int(self.lengths[row]), self.places.place(row))

    def all(self) -> list[Located]:
        return [self.row(row) for row in range(len(self))]


def serialise(chunks: list[Located], kind: str = "index") -> bytes:
    """Sorted by id, each id once (the first place given wins)."""
    unique: dict[ChunkId, Located] = {}
    for chunk in chunks:
        unique.setdefault(chunk.id, chunk)
    rows = [unique[id] for id in sorted(unique)]
    return columns.serialise({"chunk_id": ids_column([row.id for row in rows]),
                              "chunk_length": np.array([row.length for row in rows], "<u4"),
                              **table_of(row.place for row in rows).columns()}, {"modelfs": kind})


def parse(data: bytes | memoryview, what: str, chunk_size: int) -> Index:
    """Raises Malformed."""
    table = columns.parse(data, what)
    ids = table.get("chunk_id", "U8", 32)
    lengths = table.get("chunk_length", "U32", rows=len(ids))
    places = PlaceTable.from_columns(table, chunk_size)
    if len(places) < len(ids):
        raise Malformed(what, why="a chunk without a place")
    if len(ids) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= chunk_size:
        raise Malformed(what, why="a chunk's length is not within 1 and the chunk size")
    index = Index(ids, lengths, places)
    if (index._prefixes[1:] < index._prefixes[:-1]).any():
        raise Malformed(what, why="not sorted")
    return index
