"""Packs: stored chunks back to back, then a tail that says what they are, then a fixed footer.

Rule: packs explain themselves: from packs alone every index and layout can be made again.
Layout: chunks | tail (a column container: see index.py) | footer of 64 bytes (docs/format.md).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

from modelfs.errors import Malformed
from modelfs.ids import ChunkId, Digest, ObjectId
from modelfs.repository import index
from modelfs.repository.index import Located
from modelfs.repository.places import MAX_PACK_BYTES, SELF, Base, Place

MAGIC = b"MFSPACK1"
FOOTER = struct.Struct("<8sQQ8x32s")
"""magic, tail offset, tail length, 8 zero bytes, BLAKE3 of the tail."""

TARGET_BYTES = 16 << 20
"""A pack is closed at the first chunk that brings it here: a killed push repeats one pack at most, and a
sequential read finds ranges of this size."""
MAX_OBJECT_BYTES = MAX_PACK_BYTES + (MAX_PACK_BYTES >> 1)
"""Of a whole pack: chunks, tail and footer."""
HEAD_TARGET_BYTES = 2 << 20
"""Head packs are fetched whole at the first touch, so they are kept small: at most twice this."""


class PackWriter:
    """One open pack, in memory."""

    def __init__(self, target_bytes: int = TARGET_BYTES) -> None:
        self._target = target_bytes
        self._data = bytearray()
        self._rows: list[Located] = []

    @property
    def full(self) -> bool:
        return len(self._data) >= self._target

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, id: ChunkId, length: int, codec: str, stored: bytes | memoryview,
            base: Base | None = None) -> None:
        """length: of the decoded chunk. base: what stored is a difference to."""
        self._rows.append(Located(id, length, Place(SELF, len(self._data), len(stored), codec, base)))
        self._data += stored

    def seal(self) -> SealedPack:
        tail = index.serialise(self._rows, "tail")
        start = len(self._data)
        self._data += tail
        self._data += FOOTER.pack(MAGIC, start, len(tail), Digest.of(tail))
        return SealedPack(ObjectId.of(self._data), self._data, self._rows)


class SealedPack:
    """A pack ready to be put. chunks: with places that name it."""

    def __init__(self, id: ObjectId, data: bytearray, rows: list[Located]) -> None:
        self.id, self.data = id, data
        self.chunks = [_within(row, id) for row in rows]


class OpenPacks:
    """Two packs that are being filled: one of head chunks, one of all others."""

    def __init__(self, put: Callable[[SealedPack, bool], None]) -> None:
        """put: is given each that is full, and whether it is a head pack."""
        self._put = put
        self._writers = {head: _writer(head) for head in (False, True)}

    def add(self, id: ChunkId, length: int, codec: str, stored: bytes | memoryview, base: Base | None = None, *,
            head: bool) -> None:
        """As PackWriter.add."""
        writer = self._writers[head]
        writer.add(id, length, codec, stored, base)
        if writer.full:
            self._seal(head)

    def seal(self) -> None:
        """Both, full or not."""
        for head in self._writers:
            if len(self._writers[head]):
                self._seal(head)

    def _seal(self, head: bool) -> None:
        full, self._writers[head] = self._writers[head], _writer(head)
        self._put(full.seal(), head)


def _writer(head: bool) -> PackWriter:
    return PackWriter(HEAD_TARGET_BYTES if head else TARGET_BYTES)


def _within(row: Located, pack: ObjectId) -> Located:
    place, base = row.place, row.place.base
    if base is not None:
        base = replace(base, place=_named(base.place, pack))
    return replace(row, place=replace(_named(place, pack), base=base))


def _named(place: Place, pack: ObjectId) -> Place:
    return replace(place, pack=pack) if place.pack == SELF else place


def tail_span(footer: bytes | memoryview, size: int, what: str) -> tuple[int, int, Digest]:
    """(offset, length, digest) of the tail of a pack of `size` bytes. Raises Malformed."""
    if len(footer) != FOOTER.size or size > MAX_OBJECT_BYTES:
        raise Malformed(what, why="too short or too long for a pack")
    magic, start, length, digest = FOOTER.unpack(footer)
    if magic != MAGIC or not length or start + length + FOOTER.size != size:
        raise Malformed(what, why="it does not end as a pack does")
    return start, length, Digest(digest)


def parse_tail(pack: ObjectId, tail: bytes | memoryview, digest: Digest, chunk_size: int) -> list[Located]:
    """The chunks of a pack, with places that name it. Raises Malformed."""
    what = f"tail of pack {pack.hex()[:16]}"
    if Digest.of(tail) != digest:
        raise Malformed(what, why="its hash differs")
    rows = index.parse(tail, what, chunk_size).all()
    if any(row.place.pack != SELF for row in rows):
        raise Malformed(what, why="it names another pack's chunks")
    return [_within(row, pack) for row in rows]
