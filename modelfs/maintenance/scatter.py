"""How scattered versions lie over packs, and what is to be copied to put that right: found from layouts and packs'
sizes, before a byte of a chunk is read.

Rule: a chunk belongs to one version, the first that has it (tagged ones before others, then newest first), and lies
where that one wants it. So what stands in order for one version is never taken apart for an older one, each chunk
needs one copy only, and a repository that was put in order gives nothing to copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from modelfs.codecs import codec_named
from modelfs.errors import Unsupported
from modelfs.ids import ObjectId
from modelfs.maintenance.placing import Placing, comparable, from_indexes
from modelfs.reading.flights import MAX_GAP
from modelfs.repository.index import Index
from modelfs.repository.layout import Layout
from modelfs.repository.manifest import Manifest
from modelfs.repository.pack import HEAD_TARGET_BYTES, TARGET_BYTES
from modelfs.repository.places import NO_BASE, Place
from modelfs.units import MiB

MEAN_RANGE_BYTES = 8 * MiB
"""A version whose ranges are shorter on average is worth rewriting: at 1 ms to 30 ms a request and 100 MB/s to 1 GB/s a
range of this size is still mostly bytes. One that is smaller as a whole is left alone."""
GAIN = 2
"""A version is rewritten only where that leaves at most one request of so many; else it would be copied again and again
for its share of chunks that newer versions keep elsewhere."""
LEAST_LIVE = 0.5
"""A pack of which less is needed is copied. With a half, what is dead takes no more room than what lives, and no more
is copied than is freed."""
MAX_HEAD_BYTES = 2 * HEAD_TARGET_BYTES + MiB // 2
"""Of a pack with its tail that may be fetched whole for the head chunks in it."""

_CHUNK = np.dtype([("order", "i8"), ("offset", "i8"), ("to_offset", "i8"), ("pack", "i4"), ("to_pack", "i4"),
                   ("stored", "i4"), ("length", "i4"), ("codec", "i4"), ("head", "?"), ("fixed", "?"), ("moved", "?")])
"""One chunk. order: by the turn of its version, then by its place in there. to_pack, to_offset: where it will be, in
(negative) numbers of packs that are still to be made; as pack and offset where it stays. fixed: it cannot be copied."""
Rows = NDArray[np.void]


def ranges_of(pack: NDArray[np.int64], offset: NDArray[np.int64], stored: NDArray[np.int64]) -> int:
    """How many requests a reader makes for chunks in this order: near neighbours of one pack come in one."""
    gap = offset[1:] - (offset[:-1] + stored[:-1])
    return int(len(pack) > 0) + int(((pack[1:] != pack[:-1]) | (gap < 0) | (gap > MAX_GAP)).sum())


def cut(stored: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For chunks that are written back to back: the number of each one's pack, and its offset there."""
    ends = np.cumsum(stored)
    pack, offset = np.zeros(len(stored), np.int64), ends - stored
    start = number = 0
    while start < len(stored):
        base = int(offset[start])
        stop = int(np.searchsorted(ends, base + TARGET_BYTES)) + 1
        pack[start:stop] = number
        offset[start:stop] -= base
        start, number = stop, number + 1
    return pack, offset


@dataclass(slots=True)
class Standing:
    """One version in the plan. chunks: of which it is the first, in numbers of _CHUNK.order. in_order: it is to be
    written in order. moves: whether its layout names a place that a chunk leaves, as far as was known in its turn.

    ranges, bytes: of its chunks but those of head packs; after: the ranges that writing it in order would leave.
    """

    manifest: ObjectId
    chunks: range
    ranges: int
    after: int
    bytes: int
    moves: bool

    @property
    def in_order(self) -> bool:
        return self.bytes >= MEAN_RANGE_BYTES > self.bytes / self.ranges and self.after * GAIN <= self.ranges


@dataclass(slots=True)
class Chunks:
    """Every chunk of every version, sorted by id. packs, codecs: what rows number; heads: packs that are head packs of
    some version."""

    ids: NDArray[np.bytes_] = field(default_factory=lambda: np.zeros(0, "S32"))
    rows: Rows = field(default_factory=lambda: np.zeros(0, _CHUNK))
    packs: list[ObjectId] = field(default_factory=list)
    codecs: list[str] = field(default_factory=list)
    heads: set[ObjectId] = field(default_factory=set)

    def find(self, ids: NDArray[np.bytes_]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Where each would stand, and whether it does."""
        at = np.searchsorted(self.ids, ids)
        there = np.zeros(len(ids), np.bool_)
        within = at < len(self.ids)
        there[within] = self.ids[at[within]] == ids[within]
        return at, there

    def place(self, row: int) -> Place:
        """Where it lies now."""
        at = self.rows[row]
        return Place(self.packs[at["pack"]], int(at["offset"]), int(at["stored"]), self.codecs[at["codec"]])


class Planner:
    """Takes versions in the order in which they may claim chunks, then says which packs are mostly dead."""

    def __init__(self, sizes: Mapping[ObjectId, int], indexes: Sequence[Index], *, follow: bool = False) -> None:
        """sizes: of all packs that are there to stay. indexes: for chunks of packs that are not. follow: take what the
        indexes say of all others, too, and have nothing copied."""
        self.chunks, self.versions = Chunks(), list[Standing]()
        self.indexes = indexes
        self._sizes, self._follow = sizes, follow
        self._there: list[bool] = []  # for each pack of chunks.packs
        self._pack_numbers: dict[ObjectId, int] = {}
        self._codec_numbers: dict[str, int] = {}
        self._unreadable: set[int] = set()  # codecs
        self._kept: set[int] = set()  # packs that hold what cannot be copied
        self._made = 0  # packs that are to be made

    def take(self, manifest: Manifest, placing: Placing) -> Standing:
        ids, first = np.unique(comparable(manifest.chunk_ids), return_index=True)
        rows, moves = self._rows(manifest, placing, first)
        at, known = self.chunks.find(ids)
        theirs = self.chunks.rows[at[known]]
        moves |= bool(((theirs["pack"] != rows["pack"][known]) | (theirs["offset"] != rows["offset"][known])).any())
        in_file = np.argsort(first)
        mine = in_file[~known[in_file]]
        start = len(self.chunks.ids)
        rows["order"][mine] = start + np.arange(len(mine))
        there = rows.copy()
        there[known] = self.chunks.rows[at[known]]
        found = self._standing(manifest.id, range(start, start + len(mine)), there, in_file, mine, moves)
        rows = there[~known]
        self.chunks.rows = np.insert(self.chunks.rows, at[~known], rows)
        self.chunks.ids = np.insert(self.chunks.ids, at[~known], ids[~known])
        self.versions.append(found)
        return found

    def _standing(self, id: ObjectId, owned: range, there: Rows, in_file: NDArray[np.intp], mine: NDArray[np.intp],
                  moves: bool) -> Standing:
        """there: all chunks of the version; its own are given new places in it if it is to be written in order."""
        body = in_file[~there["head"][in_file]]
        stored = there["stored"].astype(np.int64)
        now = ranges_of(there["to_pack"][body], there["to_offset"][body], stored[body])
        new = there.copy()
        moved = mine[~there["fixed"][mine] & (not self._follow)]
        for head in (False, True):
            part = moved[there["head"][moved] == head]
            pack, offset = cut(stored[part])
            new["to_pack"][part], new["to_offset"][part] = -1 - self._made - pack, offset
            self._made += int(pack[-1]) + 1 if len(pack) else 0
        new["moved"][moved] = True
        after = ranges_of(new["to_pack"][body], new["to_offset"][body], stored[body])
        found = Standing(id, owned, now, after, int(stored[body].sum()), moves)
        if found.in_order:
            there[mine] = new[mine]
        return found

    def _rows(self, manifest: Manifest, placing: Placing, first: NDArray[np.intp]) -> tuple[Rows, bool]:
        """One for each distinct chunk, and whether one of them is not where the layout says; first: its first row in
        the manifest."""
        rows = self._of_layout(placing.layout, placing.layout.row_place[first].astype(np.intp))
        rows["length"] = manifest.chunk_lengths[first]
        before = rows.copy()
        lost = np.flatnonzero(~self._is_there(rows) | (self._follow & ~rows["fixed"]))
        if len(lost):
            other, known = from_indexes(manifest.chunk_ids[first[lost]], self.indexes)
            found = self._of_layout(other, other.row_place.astype(np.intp))
            known &= self._is_there(found)
            for name in ("pack", "offset", "stored", "codec", "fixed"):
                rows[name][lost[known]] = found[name][known]
        heads = set(rows["pack"][rows["head"]].tolist())
        self.chunks.heads |= {id for id in map(self.chunks.packs.__getitem__, heads)
                              if self._sizes.get(id, MAX_HEAD_BYTES) < MAX_HEAD_BYTES}
        rows["fixed"] |= ~self._is_there(rows)
        rows["to_pack"], rows["to_offset"] = rows["pack"], rows["offset"]
        return rows, bool(((rows["pack"] != before["pack"]) | (rows["offset"] != before["offset"])).any())

    def _is_there(self, rows: Rows) -> NDArray[np.bool_]:
        numbers: NDArray[np.int32] = rows["pack"]
        return np.array(self._there, np.bool_)[numbers]

    def _of_layout(self, layout: Layout, at: NDArray[np.intp]) -> Rows:
        """at: rows of its places."""
        places, rows = layout.places, np.zeros(len(at), _CHUNK)
        packs = np.array([self._pack(ObjectId(pack.tobytes())) for pack in places.packs], np.int32)
        codecs = np.array([self.codec(name) for name in places.codecs], np.int32)
        rows["pack"], rows["codec"] = packs[places.pack[at]], codecs[places.codec[at]]
        rows["offset"], rows["stored"] = places.offset[at], places.stored[at]
        rows["head"] = np.isin(places.pack[at], layout.heads)
        based = places.base[at] != NO_BASE
        rows["fixed"] = based | np.isin(rows["codec"], list(self._unreadable))
        self._kept.update(rows["pack"][rows["fixed"]].tolist())
        self._kept.update(packs[places.pack[places.base[at[based]].astype(np.intp)]].tolist())
        self.chunks.heads |= layout.head_packs
        return rows

    def _pack(self, id: ObjectId) -> int:
        if id not in self._pack_numbers:
            self.chunks.packs.append(id)
            self._there.append(id in self._sizes)
        return self._pack_numbers.setdefault(id, len(self._pack_numbers))

    def codec(self, name: str) -> int:
        """Its number."""
        if name not in self._codec_numbers:
            self.chunks.codecs.append(name)
            try:
                codec_named(name)
            except Unsupported:
                self._unreadable.add(len(self._codec_numbers))
        return self._codec_numbers.setdefault(name, len(self._codec_numbers))

    def mostly_dead(self, stored_in: Callable[[ObjectId], int]) -> None:
        """Have what lives in packs of which most is dead moved, too. stored_in: the bytes of all of a pack's chunks; it
        is asked only for packs that may be such, by what they take in the store."""
        if self._follow:
            return
        rows = self.chunks.rows
        stays = rows[~rows["moved"]]
        live = np.bincount(stays["pack"], stays["stored"], len(self.chunks.packs)).astype(np.int64)
        dead = [number for number in np.flatnonzero(live).tolist()
                if self._there[number] and number not in self._kept
                and live[number] < LEAST_LIVE * self._sizes[self.chunks.packs[number]]
                and live[number] < LEAST_LIVE * stored_in(self.chunks.packs[number])]
        rows["moved"] |= np.isin(rows["pack"], dead)

    def emptied(self) -> int:
        """How many packs lose all that lives in them."""
        rows = self.chunks.rows
        return len(set(rows["pack"][rows["moved"]].tolist()) - set(rows["pack"][~rows["moved"]].tolist()))
