"""A stored chunk becomes bytes that may be trusted, here and nowhere else.

Rule: `open_chunk` returns only after the decoded bytes hash to the id asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelfs.codecs import codec_named, difference_named
from modelfs.codecs.codec import CodecError
from modelfs.errors import CorruptChunk
from modelfs.ids import ChunkId, Digest
from modelfs.repository.places import Place


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """A chunk that is wanted. length: decoded bytes."""

    id: ChunkId
    length: int


def open_chunk(ref: ChunkRef, place: Place, stored: memoryview, out: memoryview,
               base: memoryview | None = None) -> None:
    """Decode `stored` into `out` and check it.

    stored: the chunk as it lies in its pack, place.length bytes. out: ref.length writable bytes; its content
    is undefined if this raises. base: of a difference, what place.base decodes to. Raises CorruptChunk if it does not
    decode or does not hash to ref.id, Unsupported for a codec that this modelfs lacks.
    """
    try:
        if place.base is None:
            codec_named(place.codec).decode(stored, out)
        else:
            assert base is not None
            difference_named(place.codec).decode(stored, base, out)
    except CodecError as error:
        raise corrupt(ref, place, f"it does not decode ({error})") from error
    check_chunk(ref, out, place)


def check_chunk(ref: ChunkRef, decoded: memoryview, place: Place | None = None) -> None:
    """Raises CorruptChunk unless decoded hashes to ref.id."""
    if Digest.of(decoded) != ref.id:
        raise corrupt(ref, place, "its hash differs")


def corrupt(ref: ChunkRef, place: Place | None, why: str) -> CorruptChunk:
    where = f"pack {place.pack.hex()[:16]} at {place.offset}" if place else "the cache"
    if place and place.base:
        where += f", a difference to chunk {place.base.id.hex()[:16]}"
    return CorruptChunk(f"chunk {ref.id.hex()[:16]}", where=where, why=why)
