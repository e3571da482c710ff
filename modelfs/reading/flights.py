"""What the fetcher has under way: one flight a chunk, and jobs, which are ranges of one pack.

Rule: a chunk has at most one flight at a time, whoever wants it (single flight); who waits is told exactly once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from modelfs.errors import ModelfsError
from modelfs.ids import ChunkId, ObjectId
from modelfs.reading.sources import Source
from modelfs.reading.versions import FileCache, LoadedVersion
from modelfs.repository.chunk import ChunkRef
from modelfs.stores.replicas import Replica, Replicas
from modelfs.units import Deadline, KiB, MiB

MAX_RANGE = 20 * MiB
"""A whole pack, which is a little more than 16 MiB: a request costs 1.1 ms of Python, as decoding 2 MB of bf16 does."""
MAX_GAP = 64 * KiB
_SPREAD, _LEAST_SPREAD = 4, 4 * MiB


class Priority(IntEnum):
    """Who goes first where connections are short: a reader who waits, what a stream reads next, the rest of a file."""

    DEMAND = 0
    AHEAD = 1
    HYDRATION = 2


class Waiter(Protocol):
    """Told of each chunk it asked for, once, from a thread of the fetcher."""

    def arrived(self, id: ChunkId, decoded: memoryview) -> None:
        """decoded is checked, and valid only until this returns."""

    def failed(self, id: ChunkId, error: ModelfsError) -> None: ...


class Places(Protocol):
    """Where the chunks of a file lie; reading.sources.Sources is one. Rows: see ChunkFile.row."""

    @property
    def replicas(self) -> Replicas: ...

    def source(self, row: int) -> Source | None: ...

    def look_up(self, row: int, wrong: Sequence[Source], deadline: Deadline) -> Source | None: ...


class ChunkFile(Protocol):
    """What is fetched in chunks: a file of a version (reading.versions.ModelFile), or what belongs to none.

    path: for the log. ahead: chunks that were fetched ahead and not used yet.
    """

    @property
    def version(self) -> LoadedVersion | None: ...

    @property
    def cache(self) -> FileCache: ...

    @property
    def sources(self) -> Places: ...

    @property
    def path(self) -> str: ...

    @property
    def ahead(self) -> set[int]: ...

    def ref(self, chunk: int) -> ChunkRef: ...

    def row(self, chunk: int) -> int:
        """By which `sources` knows a chunk."""


@dataclass(frozen=True, slots=True)
class Want:
    """Chunk number `chunk` of a file."""

    file: ChunkFile
    chunk: int


@dataclass(eq=False, slots=True)
class Flight:
    """source: None until it is known. priority: the highest of those who want it. ahead: fetched before a reader came.

    tries: at this source. moves: to another replica, since one did not answer. wrong: sources that proved wrong; error:
    how the last of them did.
    """

    ref: ChunkRef
    wants: list[Want]
    deadline: Deadline
    priority: Priority
    waiters: list[Waiter] = field(default_factory=list)
    ahead: bool = False
    source: Source | None = None
    job: Job | None = None
    tries: int = 0
    moves: int = 0
    wrong: list[Source] = field(default_factory=list)
    error: ModelfsError | None = None

    @property
    def demand(self) -> bool:
        """Whether a reader waits."""
        return self.priority is Priority.DEMAND

    @property
    def sources(self) -> Places:
        return self.wants[0].file.sources

    @property
    def row(self) -> int:
        return self.wants[0].file.row(self.wants[0].chunk)


@dataclass(eq=False, slots=True)
class Job:
    """Flights of one pack on one replica, in the order of their offsets, fetched as one range; they leave `flights` as
    they land.

    pack, replica: None where the flights have no source yet: it is looked up first.
    priority: of the queue in which it waits; of one that runs, what it is not to be broken off for.
    started, taken (the flights at the start): under the queue's lock. limited: it counts among those ahead of need.
    """

    pack: ObjectId | None
    replica: Replica | None
    flights: list[Flight]
    priority: Priority
    started: bool = False
    taken: tuple[Flight, ...] = ()
    limited: bool = False

    def deadline(self) -> Deadline:
        return max((flight.deadline for flight in self.flights), key=Deadline.remaining)

    def span(self) -> tuple[int, int]:
        places = [flight.source.place for flight in self.flights if flight.source]
        return min(p.offset for p in places), max(p.offset + p.length for p in places)


def spread_range(flights: Sequence[Flight]) -> int:
    """How long the ranges of one window should be: so that several connections and cores share it, and it does not
    fall into requests that are mostly waiting. Cold sequential reads: 1.5 times as fast as one range a window."""
    stored = sum(flight.source.place.length for flight in flights if flight.source)
    return max(_LEAST_SPREAD, min(MAX_RANGE, stored // _SPREAD))


def jobs_of(flights: Sequence[Flight], priority: Priority, largest: int = MAX_RANGE) -> list[Job]:
    """Group flights into ranges: near neighbours in one pack, up to `largest` bytes; those without a source apart."""
    jobs: list[Job] = []
    lost = [flight for flight in flights if flight.source is None]
    start = end = 0
    placed = [(flight.source, flight) for flight in flights if flight.source is not None]
    for source, flight in sorted(placed, key=lambda pair: _order(pair[0])):
        place = source.place
        stop = place.offset + place.length
        near = jobs and jobs[-1].pack == place.pack and jobs[-1].replica is source.replica and \
            end <= place.offset <= end + MAX_GAP
        if near and stop - start <= largest:
            jobs[-1].flights.append(flight)
        else:
            jobs.append(Job(place.pack, source.replica, [flight], priority))
            start = place.offset
        end = stop
    if lost:
        jobs.append(Job(None, None, lost, priority))
    for job in jobs:
        for flight in job.flights:
            flight.job = job
    return jobs


def _order(source: Source) -> tuple[int, ObjectId, int]:
    return source.replica.number, source.place.pack, source.place.offset


class Queue:
    """Jobs that wait for a worker, the highest priority first. The lock is the fetcher's, too: it guards flights and
    jobs. width: how many jobs ahead of need may run at once; the rest of the workers are kept for demand."""

    def __init__(self, width: int) -> None:
        self.changed = threading.Condition()
        self.width = width  # guarded by changed, and so is the rest
        self._waiting: dict[Priority, deque[Job]] = {priority: deque() for priority in Priority}
        self._idle = self._limited_running = 0
        self.closed = False

    def put(self, jobs: Sequence[Job]) -> None:
        """Under `changed`."""
        for job in jobs:
            self._waiting[job.priority].append(job)
        self.changed.notify(len(jobs))

    def add(self, flights: Sequence[Flight], ahead: int = MAX_RANGE) -> None:
        """Under `changed`, as ranges. ahead: the longest range of what a stream reads next."""
        for priority in Priority:
            same = [flight for flight in flights if flight.priority is priority]
            self.put(jobs_of(same, priority, ahead if priority is Priority.AHEAD else MAX_RANGE))

    def take(self) -> Job | None:
        """The next job, or None once closed. Blocks."""
        with self.changed:
            while not self.closed:
                job = self._next()
                if job is not None:
                    job.started, job.taken = True, tuple(job.flights)
                    return job
                self._idle += 1
                self.changed.wait()
                self._idle -= 1
            return None

    def _next(self) -> Job | None:
        if self._waiting[Priority.DEMAND]:
            return self._waiting[Priority.DEMAND].popleft()
        ahead = self._waiting[Priority.AHEAD] or self._waiting[Priority.HYDRATION]
        if not ahead or self._limited_running >= self.width:
            return None
        job = ahead.popleft()
        job.limited = True
        self._limited_running += 1
        return job

    def done(self, job: Job) -> None:
        if job.limited:
            with self.changed:
                self._limited_running -= 1
                self.changed.notify()

    def widen(self, width: int) -> None:
        with self.changed:
            self.changed.notify(max(0, width - self.width))
            self.width = width

    def full(self) -> bool:
        """Whether more would run ahead of need if `width` were larger."""
        return self._limited_running >= self.width and bool(
            self._waiting[Priority.AHEAD] or self._waiting[Priority.HYDRATION])

    def outranked(self, job: Job) -> bool:
        """Whether what goes before this running job waits for a worker, and there is none for it."""
        if job.priority is Priority.DEMAND:
            return False
        if len(self._waiting[Priority.DEMAND]) > self._idle:
            return True
        return job.priority is Priority.HYDRATION and bool(self._waiting[Priority.AHEAD]) and (
            self._limited_running >= self.width)

    def promote(self, flights: Sequence[Flight], priority: Priority) -> None:
        """Under `changed`: somebody of a higher priority came for these. A reader's leave their range for one of their
        own; for others the whole range moves up. What runs goes on, and is not broken off for other prefetches."""
        moved: list[Flight] = []
        for flight in flights:
            flight.priority, job = priority, flight.job
            if job is None or job.priority <= priority:
                continue
            if job.started:
                job.priority = Priority.AHEAD
            elif priority is Priority.DEMAND:
                moved.append(flight)
                flight.ahead = False
                job.flights.remove(flight)
                if not job.flights:
                    self._waiting[job.priority].remove(job)
            else:
                self._waiting[job.priority].remove(job)
                job.priority = priority
                self._waiting[priority].append(job)
        self.put(jobs_of(moved, priority))

    def drain(self) -> None:
        """Under `changed`."""
        for jobs in self._waiting.values():
            jobs.clear()
