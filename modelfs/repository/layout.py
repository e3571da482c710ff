"""A layout: where the chunks of one version lie now. Replaceable at any time, and never trusted.

Rule: a layout may be missing, stale or false; the worst that follows is that a chunk is looked for again.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from modelfs.errors import Malformed
from modelfs.ids import ObjectId
from modelfs.repository import columns
from modelfs.repository.pack import HEAD_TARGET_BYTES
from modelfs.repository.places import Place, PlaceTable, PlaceTableBuilder

MAX_HEAD_BYTES = 2 * HEAD_TARGET_BYTES


@dataclass(frozen=True)
class Layout:
    """places: of k places; row_place [n] u32: for each row of the manifest its place; heads [h] u32: which of
    places.packs are head packs, fetched whole at the first touch."""

    places: PlaceTable
    row_place: NDArray[np.uint32]
    heads: NDArray[np.uint32]

    @cached_property
    def head_packs(self) -> frozenset[ObjectId]:
        return frozenset(ObjectId(self.places.packs[number].tobytes()) for number in self.heads)

    def place(self, row: int) -> Place:
        return self.places.place(int(self.row_place[row]))

    def stored_bytes(self, rows: NDArray[np.intp] | slice = slice(None)) -> int:
        """Stored bytes of the rows, each place once."""
        return int(self.places.stored[np.unique(self.row_place[rows])].sum(dtype=np.int64))


def serialise(manifest_id: ObjectId, row_places: list[Place], heads: set[ObjectId]) -> bytes:
    """row_places: one for each row of the manifest; equal places are kept once."""
    builder = PlaceTableBuilder()
    numbers: dict[Place, int] = {}
    rows = []
    for place in row_places:
        if place not in numbers:
            numbers[place] = builder.add(place)
        rows.append(numbers[place])
    packs_used = {place.pack for place in numbers}
    head_numbers = sorted(builder.pack_number(pack) for pack in heads & packs_used)
    return columns.serialise({"row_place": np.array(rows, "<u4"), "heads": np.array(head_numbers, "<u4"),
                              **builder.build().columns()},
                             {"modelfs": "layout", "manifest": manifest_id.hex()})


def head_packs(places: Iterable[Place], made: Set[ObjectId], holders: Set[ObjectId]) -> set[ObjectId]:
    """Which packs a version with these places has as head packs: those that were made as such, and holders of its heads
    where all it has there is small."""
    ends: dict[ObjectId, int] = {}
    for place in places:
        ends[place.pack] = max(ends.get(place.pack, 0), place.offset + place.length)
    return {pack for pack, end in ends.items() if pack in made or (pack in holders and end <= MAX_HEAD_BYTES)}


def parse(manifest_id: ObjectId, data: bytes | memoryview, rows: int | None, chunk_size: int) -> Layout:
    """rows: how many the manifest has, None where that is not known yet. Raises Malformed."""
    table = columns.parse(data, f"layout of {manifest_id.hex()[:16]}")
    if table.scalars.get("manifest") != manifest_id.hex():
        raise Malformed(table.what, why="it belongs to another manifest")
    places = PlaceTable.from_columns(table, chunk_size)
    row_place = table.get("row_place", "U32", rows=rows)
    heads = table.get("heads", "U32")
    if len(row_place) and int(row_place.max()) >= len(places):
        raise Malformed(table.what, why="a row names a place that is not there")
    if len(heads) and int(heads.max()) >= len(places.packs):
        raise Malformed(table.what, why="a head pack that is not there")
    return Layout(places, row_place, heads)
