"""Chunks that are stored as differences: the base is fetched beside, as a chunk like any other, and then they are put
together.

Rule: a base is checked by its own hash before anything is added to it, so that what proves wrong is the difference's
own fault; and a difference holds nothing but its stored bytes while it waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from modelfs.errors import IntegrityError, ModelfsError
from modelfs.ids import ChunkId
from modelfs.reading.flights import Flight, Places, Want
from modelfs.reading.sources import Source
from modelfs.reading.versions import NoFileCache
from modelfs.repository.chunk import ChunkRef, open_chunk
from modelfs.stores.replicas import Replicas
from modelfs.units import Deadline


def base_of(flight: Flight) -> Want | None:
    """What a flight with a source needs beside its own bytes."""
    assert flight.source is not None
    base = flight.source.place.base
    return None if base is None else Want(_BaseFile(flight.wants[0], ChunkRef(base.id, flight.ref.length)), 0)


@dataclass(eq=False, slots=True)
class Difference:
    """A reading.flights.Waiter for the base of one flight. done: takes the flight and its checked bytes; wrong: takes
    one that proved wrong; failed_for: one whose base is not to be had."""

    flight: Flight
    stored: bytes
    done: Callable[[Flight, memoryview], None]
    wrong: Callable[[Flight, IntegrityError], None]
    failed_for: Callable[[Flight, ModelfsError], None]

    def arrived(self, id: ChunkId, decoded: memoryview) -> None:
        assert self.flight.source is not None
        out = memoryview(bytearray(self.flight.ref.length))
        try:
            open_chunk(self.flight.ref, self.flight.source.place, memoryview(self.stored), out, decoded)
        except IntegrityError as error:
            self.wrong(self.flight, error)
        else:
            self.done(self.flight, out)

    def failed(self, id: ChunkId, error: ModelfsError) -> None:
        self.failed_for(self.flight, error)


@dataclass(frozen=True, eq=False, slots=True)
class _BaseFile:
    """The base of one chunk as a ChunkFile of its own, which nothing keeps. Its row is that chunk's."""

    of: Want
    wanted: ChunkRef
    version: None = None
    cache: NoFileCache = field(default_factory=NoFileCache)
    ahead: set[int] = field(default_factory=set)

    @property
    def sources(self) -> Places:
        return _BasePlaces(self.of.file.sources, self.wanted.id)

    @property
    def path(self) -> str:
        return self.of.file.path

    def ref(self, chunk: int) -> ChunkRef:
        return self.wanted

    def row(self, chunk: int) -> int:
        return self.of.file.row(self.of.chunk)


@dataclass(frozen=True, slots=True)
class _BasePlaces:
    """Where a base lies: each replica says it where it says where the difference lies."""

    places: Places
    id: ChunkId

    @property
    def replicas(self) -> Replicas:
        return self.places.replicas

    def source(self, row: int) -> Source | None:
        return self._base(self.places.source(row))

    def look_up(self, row: int, wrong: Sequence[Source], deadline: Deadline) -> Source | None:
        others: list[Source] = []
        while (source := self.places.look_up(row, others, deadline)) is not None:
            base = self._base(source)
            if base is not None and base not in wrong:
                return base
            others.append(source)
        return None

    def _base(self, source: Source | None) -> Source | None:
        base = source.place.base if source is not None else None
        return Source(source.replica, base.place) if source and base and base.id == self.id else None

