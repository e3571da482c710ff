"""Stored chunks as they lie in packs, for who copies them into other packs: near neighbours come by one request,
several requests at once, in the order that is asked for.

Rule: what is handed out hashed to its id once decoded. What is false at one place is looked for at others before that
is an error. A difference comes out whole: where it goes to, its base need not be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain

from modelfs.codecs import encode_chunk
from modelfs.errors import IntegrityError
from modelfs.ids import ChunkId
from modelfs.reading.flights import MAX_GAP
from modelfs.repository import keys
from modelfs.repository.changing import Renew
from modelfs.repository.chunk import ChunkRef, open_chunk
from modelfs.repository.index import Located
from modelfs.repository.pack import OpenPacks
from modelfs.repository.parallel import in_parallel
from modelfs.repository.places import Place
from modelfs.repository.repository import Repository
from modelfs.units import MiB

_READERS = 3
_READ_BYTES = 4 * MiB
"""Of one request. in_parallel keeps four times _READERS of them: 48 MiB."""
Elsewhere = Callable[[ChunkId], Iterable[Place]]
"""More places where a chunk may lie; from any thread."""


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """data: the chunk as it is stored at its place."""

    chunk: Located
    data: memoryview

    def into(self, packs: OpenPacks, *, head: bool) -> None:
        packs.add(self.chunk.id, self.chunk.length, self.chunk.place.codec, self.data, head=head)


def stored_chunks(repository: Repository, wanted: Iterable[Located], elsewhere: Elsewhere,
                  renew: Renew) -> Iterator[StoredChunk]:
    """One for each of wanted, in its order. Raises IntegrityError, also of a codec that is not known here; Unavailable,
    Forbidden."""
    def read(run: list[Located]) -> list[StoredChunk]:
        try:
            return _proved(repository, run, renew)
        except IntegrityError as error:
            return [_from_anywhere(repository, chunk, elsewhere, renew, error) for chunk in run]

    return chain.from_iterable(in_parallel(_READERS, read, _neighbours(wanted)))


def _neighbours(wanted: Iterable[Located]) -> Iterator[list[Located]]:
    """Runs that one request brings."""
    run: list[Located] = []
    end = 0
    for chunk in wanted:
        place = chunk.place
        near = run and place.pack == run[-1].place.pack and 0 <= place.offset - end <= MAX_GAP
        if run and not (near and place.offset + place.length - run[0].place.offset <= _READ_BYTES):
            yield run
            run = []
        run.append(chunk)
        end = place.offset + place.length
    if run:
        yield run


def _from_anywhere(repository: Repository, chunk: Located, elsewhere: Elsewhere, renew: Renew,
                   error: IntegrityError) -> StoredChunk:
    """By itself, where it was said to be first: of its run another may be the false one."""
    for place in chain([chunk.place], elsewhere(chunk.id)):
        with suppress(IntegrityError):
            return _proved(repository, [replace(chunk, place=place)], renew)[0]
    raise error


def _proved(repository: Repository, run: list[Located], renew: Renew) -> list[StoredChunk]:
    first, last = run[0].place, run[-1].place
    data = memoryview(bytearray(last.offset + last.length - first.offset))
    with repository.store.open_range(keys.pack(first.pack), first.offset, len(data), renew().patient()) as stream:
        stream.readinto(data)
    found = [StoredChunk(chunk, data[place.offset - first.offset:place.offset - first.offset + place.length])
             for chunk in run for place in (chunk.place,)]
    return [_checked(repository, each, renew) for each in found]


def _checked(repository: Repository, each: StoredChunk, renew: Renew) -> StoredChunk:
    chunk, place = each.chunk, each.chunk.place
    out, base = memoryview(bytearray(chunk.length)), None
    if place.base is not None:
        base = repository.chunk_at(ChunkRef(place.base.id, chunk.length), place.base.place, renew().patient())
    open_chunk(ChunkRef(chunk.id, chunk.length), place, each.data, out, base)
    if base is None:
        return each
    codec, stored = encode_chunk(out, 0)
    return StoredChunk(replace(chunk, place=replace(place, length=len(stored), codec=codec, base=None)),
                       memoryview(stored))
