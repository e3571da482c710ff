"""What the fetcher has under way: one flight a chunk, and jobs, which are ranges of one pack.

Rule: a chunk has at most one flight at a time, whoever wants it (single flight); who waits is told exactly once.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from modelfs.errors import ModelfsError
from modelfs.ids import ChunkId, ObjectId
from modelfs.reading.versions import ModelFile
from modelfs.repository.chunk import ChunkRef
from modelfs.repository.places import Place
from modelfs.units import Deadline, KiB, MiB

MAX_RANGE = 16 * MiB
"""Ranges of about 16 MiB on a few connections beat one chunk a request (design section 8)."""
MAX_GAP = 64 * KiB
_SPREAD, _LEAST_SPREAD = 4, 2 * MiB


class Waiter(Protocol):
    """Told of each chunk it asked for, once, from a thread of the fetcher."""

    def arrived(self, id: ChunkId, decoded: memoryview) -> None:
        """decoded is checked, and valid only until this returns."""

    def failed(self, id: ChunkId, error: ModelfsError) -> None: ...


@dataclass(frozen=True, slots=True)
class Want:
    """Chunk number `chunk` of a file."""

    file: ModelFile
    chunk: int


@dataclass(eq=False, slots=True)
class Flight:
    """place: None until it is known. demand: a reader waits, so it goes before prefetches.

    tries: at this place. wrong: places that proved wrong; error: how the last of them did.
    """

    ref: ChunkRef
    wants: list[Want]
    deadline: Deadline
    demand: bool
    waiters: list[Waiter] = field(default_factory=list)
    place: Place | None = None
    job: Job | None = None
    tries: int = 0
    wrong: list[Place] = field(default_factory=list)
    error: ModelfsError | None = None

    @property
    def row(self) -> int:
        want = self.wants[0]
        return want.file.entry.first_row + want.chunk


@dataclass(eq=False, slots=True)
class Job:
    """Flights of one pack, in the order of their offsets, fetched as one range; they leave `flights` as they land.

    pack: None where the flights have no place yet: it is looked up first.
    started, taken (the flights at the start): under the queue's lock.
    """

    pack: ObjectId | None
    flights: list[Flight]
    demand: bool
    started: bool = False
    taken: tuple[Flight, ...] = ()

    def deadline(self) -> Deadline:
        return max((flight.deadline for flight in self.flights), key=Deadline.remaining)

    def span(self) -> tuple[int, int]:
        places = [flight.place for flight in self.flights if flight.place]
        return min(p.offset for p in places), max(p.offset + p.length for p in places)


def spread_range(flights: Sequence[Flight]) -> int:
    """How long the ranges of one window should be: so that several connections and cores share it, and it does not
    fall into requests that are mostly waiting. Cold sequential reads: 1.5 times as fast as one range a window."""
    stored = sum(flight.place.length for flight in flights if flight.place)
    return max(_LEAST_SPREAD, min(MAX_RANGE, stored // _SPREAD))


def jobs_of(flights: Sequence[Flight], demand: bool, largest: int = MAX_RANGE) -> list[Job]:
    """Group flights into ranges: near neighbours in one pack, up to `largest` bytes; those without a place apart."""
    jobs: list[Job] = []
    lost = [flight for flight in flights if flight.place is None]
    start = end = 0
    placed = [(flight.place, flight) for flight in flights if flight.place is not None]
    for place, flight in sorted(placed, key=lambda pair: (pair[0].pack, pair[0].offset)):
        stop = place.offset + place.length
        near = jobs and jobs[-1].pack == place.pack and end <= place.offset <= end + MAX_GAP
        if near and stop - start <= largest:
            jobs[-1].flights.append(flight)
        else:
            jobs.append(Job(place.pack, [flight], demand))
            start = place.offset
        end = stop
    if lost:
        jobs.append(Job(None, lost, demand))
    for job in jobs:
        for flight in job.flights:
            flight.job = job
    return jobs


class Queue:
    """Jobs that wait for a worker: demand first. At most `ahead_limit` prefetch jobs run at once, so that a
    demand always finds a connection. The lock is the fetcher's, too: it guards flights and jobs."""

    def __init__(self, ahead_limit: int) -> None:
        self.changed = threading.Condition()
        self._demand: list[Job] = []
        self._ahead: list[Job] = []
        self._ahead_running = 0
        self._ahead_limit = ahead_limit
        self.closed = False

    def put(self, jobs: list[Job]) -> None:
        """Under `changed`."""
        for job in jobs:
            (self._demand if job.demand else self._ahead).append(job)
        self.changed.notify(len(jobs))

    def take(self) -> Job | None:
        """The next job, or None once closed. Blocks."""
        with self.changed:
            while True:
                if self.closed:
                    return None
                if self._demand:
                    job = self._demand.pop(0)
                    break
                if self._ahead and self._ahead_running < self._ahead_limit:
                    job = self._ahead.pop(0)
                    self._ahead_running += 1
                    break
                self.changed.wait()
            job.started, job.taken = True, tuple(job.flights)
            return job

    def done(self, job: Job) -> None:
        if not job.demand:
            with self.changed:
                self._ahead_running -= 1
                self.changed.notify()

    def demand_waits(self) -> bool:
        return bool(self._demand)

    def promote(self, flight: Flight) -> None:
        """Under `changed`: a reader came for a flight that waits as a prefetch."""
        job = flight.job
        if job is None or job.started or job.demand:
            return
        job.flights.remove(flight)
        if not job.flights:
            self._ahead.remove(job)
        self.put(jobs_of([flight], demand=True))

    def drain(self) -> None:
        """Under `changed`."""
        self._demand.clear()
        self._ahead.clear()
