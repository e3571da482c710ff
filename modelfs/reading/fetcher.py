"""The fetcher: missing chunks → ranges → decode → check → waiting readers → cache.

Rule: a chunk reaches a reader or the cache only from open_chunk or check_chunk, which hash it. Demand never
queues behind what is fetched ahead of need, and a thread that waits for the network holds nothing that a cached read
needs.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Sequence

from modelfs.errors import IntegrityError, Malformed, ModelfsError, Unavailable
from modelfs.ids import ChunkId
from modelfs.metrics import Metrics
from modelfs.reading.buffers import BufferPool
from modelfs.reading.detours import FIRST_BACKOFF_S, LONGEST_BACKOFF_S, Detours
from modelfs.reading.differences import Difference, base_of
from modelfs.reading.failures import Failures, memory_of
from modelfs.reading.flights import MAX_RANGE, Flight, Job, Priority, Queue, Waiter, Want, spread_range
from modelfs.reading.heads import Companion, Heads
from modelfs.reading.landing import broken, hand_over, keep, log_flight
from modelfs.reading.localcopies import LocalCopies
from modelfs.reading.recent import RecentChunks
from modelfs.reading.sources import Source
from modelfs.reading.versions import ChunkCache
from modelfs.reading.width import Width
from modelfs.repository import keys
from modelfs.repository.chunk import ChunkRef, check_chunk, open_chunk
from modelfs.stores.store import RangeStream
from modelfs.units import Deadline, Patience

_LEAST_TRIES = 5
_SOON_S = 0.05
"""A range that will have come to its end so soon is not broken off for readers: most of it is on its way by then, and
would be sent twice."""
_ANSWER_S = 0.25
"""A fetch ends so long before its reader's deadline (or a twentieth of it), so that the reader hears why."""


class Fetcher:
    """Threads: `connections` for the network, LocalCopies' own for the disk."""

    def __init__(self, cache: ChunkCache, metrics: Metrics, *, connections: int,
                 memory_bytes: int, deadline_s: float, patient: bool = False) -> None:
        """patient: as long as bytes arrive, the deadline begins anew: for transfers, which nobody waits for."""
        self._metrics = metrics
        self.deadline_s = deadline_s
        self._patience = Patience(deadline_s) if patient else None  # all flights': who waits its turn is no silence
        self._pool = BufferPool(memory_bytes - memory_bytes // 4)
        self._recent = RecentChunks(memory_bytes // 4)
        self.prefetches = connections > 1  # the only connection is kept for readers
        self._width = Width(max(1, connections - 2))
        self._queue = Queue(self._width.now)
        self._detours = Detours(self._queue, metrics, self._fail)
        self._flights: dict[ChunkRef, Flight] = {}  # guarded by _queue.changed
        self._heads = Heads()
        self._failures = Failures[ChunkRef]()  # guarded by _queue.changed
        self._stopped: ModelfsError | None = None
        self._stopping = threading.Event()
        self._local = LocalCopies(cache, metrics, self._land, self._to_network)
        self._threads = [threading.Thread(target=self._work, name=f"fetch-{n}", daemon=True)
                         for n in range(connections)]
        for thread in self._threads:
            thread.start()

    def set_limits(self, *, memory_bytes: int, deadline_s: float) -> None:
        self._pool.set_limit(memory_bytes - memory_bytes // 4)
        self._recent.set_limit(memory_bytes // 4)
        self.deadline_s = deadline_s

    def ensure(self, wants: Sequence[Want], waiter: Waiter | None, priority: Priority = Priority.DEMAND) -> None:
        """Have these chunks fetched and put into the cache, and tell waiter of each, if there is one.

        priority: below DEMAND nothing is done where there are no connections for it (`prefetches`).
        Returns at once; takes no chunk from network or disk. The waiter may be told before this returns.
        """
        if priority is not Priority.DEMAND and not self.prefetches:
            return
        failed: dict[ChunkId, ModelfsError] = {}
        recent: dict[ChunkId, bytes] = {}
        new: list[Flight] = []
        raised: list[Flight] = []
        with self._queue.changed:
            for want in wants:
                ref = want.file.ref(want.chunk)
                if error := self._known_failure(ref):
                    failed[ref.id] = error
                elif (flight := self._flights.get(ref)) is not None:
                    self._join(flight, want, waiter)
                    if priority < flight.priority:
                        raised.append(flight)
                elif (data := self._recent.get(ref.id)) is not None and len(data) == ref.length:
                    recent[ref.id] = data
                else:
                    flight = Flight(ref, [want], self._deadline(), priority, [waiter] if waiter else [],
                                    ahead=priority is not Priority.DEMAND)
                    self._flights[ref] = flight
                    new.append(flight)
            if raised:
                self._queue.promote(raised, priority)
        if waiter:
            for id, error in failed.items():
                waiter.failed(id, error)
            for id, data in recent.items():
                hand_over(waiter, id, memoryview(data))
        missing: list[Flight] = []
        for flight in new:
            if self._local.may_have(flight):
                self._local.put([flight])
            else:
                missing.append(flight)
        self._to_network(missing)

    def remember_failure(self, refs: Sequence[ChunkRef], error: ModelfsError) -> None:
        """A reader gave up on these, though their flights may go on: for a moment, nobody else begins to wait."""
        with self._queue.changed:
            for ref in refs:
                self._failures.note(ref, error, memory_of(error))
            late = [flight for ref in refs if (flight := self._flights.get(ref)) is not None]
        for flight in late if self._stopped is None else ():
            log_flight(flight, "chunk.late", error)

    def fail_all(self, error: ModelfsError) -> None:
        """End every wait with error, and every later one at once."""
        with self._queue.changed:
            self._stopped = error
            flights = list(self._flights.values())
            self._queue.drain()
        self._stopping.set()
        for flight in flights:
            self._fail(flight, error)

    def close(self) -> None:
        self.fail_all(Unavailable("the mount is going"))
        with self._queue.changed:
            self._queue.closed = True
            self._queue.changed.notify_all()
        self._local.close()

    # flights

    def _deadline(self) -> Deadline:
        if self._patience:
            return self._patience.renewed()
        return Deadline(self.deadline_s - min(_ANSWER_S, self.deadline_s / 20))

    def _join(self, flight: Flight, want: Want, waiter: Waiter | None) -> None:
        if all(want.file.cache is not other.file.cache or want.chunk != other.chunk for other in flight.wants):
            flight.wants.append(want)
        if waiter:
            if waiter not in flight.waiters:  # a chunk that a read touches twice is told once
                flight.waiters.append(waiter)
            flight.deadline = self._deadline()

    def _known_failure(self, ref: ChunkRef) -> ModelfsError | None:
        return self._stopped or self._failures.of(ref)

    def _to_network(self, flights: list[Flight]) -> None:
        """Plan ranges; what comes along with headers, too. Without a place it is looked up first."""
        if not flights:
            return
        try:
            beside: list[tuple[Flight, Companion]] = []
            for flight in flights:
                flight.source = flight.sources.source(flight.row)
                if flight.source is not None:
                    beside += ((flight, companion) for companion in self._heads.companions(flight))
            with self._queue.changed:
                more = [found for one in beside if (found := self._companion(*one)) is not None]
                self._queue.add([*flights, *more], MAX_RANGE if more else spread_range(flights))
            self._bases_beside(flights)
        except Exception as error:
            self._fail_each(flights, broken(error))

    def _bases_beside(self, flights: Sequence[Flight]) -> None:
        """Behind their differences, which are smaller and can wait for them in fewer bytes than the other way round."""
        bases = [(flight.priority, base) for flight in flights if flight.source is not None
                 and (base := base_of(flight)) is not None]
        for priority in dict.fromkeys(priority for priority, _ in bases):
            self.ensure([base for its, base in bases if its is priority], None, priority)

    def _companion(self, flight: Flight, found: Companion) -> Flight | None:
        """Under the queue's lock. None where the chunk is on its way already, or was here a moment ago."""
        ref = found.want.file.ref(found.want.chunk)
        if self._stopped or ref in self._flights or self._recent.get(ref.id) is not None:
            return None
        more = self._flights[ref] = Flight(ref, [found.want], flight.deadline, found.priority, source=found.source)
        return more

    def _fail_each(self, flights: Iterable[Flight], error: ModelfsError) -> None:
        for flight in flights:
            self._fail(flight, error)

    def _fail(self, flight: Flight, error: ModelfsError) -> None:
        with self._queue.changed:
            if self._flights.get(flight.ref) is not flight:
                return
            del self._flights[flight.ref]
            waiters, flight.waiters = flight.waiters, []
            if flight.demand:
                self._failures.note(flight.ref, error, memory_of(error))
        if flight.demand and self._stopped is None and not self._patience:  # a command's one line says it
            log_flight(flight, "chunk.failed", error)
        for waiter in waiters:
            waiter.failed(flight.ref.id, error)

    def _land(self, flight: Flight, decoded: memoryview) -> None:
        """decoded is checked: hand it to who waits, keep it, and end the flight."""
        kept = 0
        while True:
            with self._queue.changed:
                waiters, flight.waiters = flight.waiters, []
                wants = flight.wants[kept:]
                if not waiters and not wants:
                    if self._flights.get(flight.ref) is flight:
                        del self._flights[flight.ref]
                    self._failures.forget(flight.ref)
                    return
            for waiter in waiters:
                hand_over(waiter, flight.ref.id, decoded)
            if not keep(wants, decoded):
                self._recent.put(flight.ref.id, decoded)
            kept += len(wants)

    # the network

    def _work(self) -> None:
        while (job := self._queue.take()) is not None:
            try:
                self._run(job)
            except Exception as error:
                # A bug here must not leave readers waiting: they get EIO, the log gets the cause.
                self._fail_each(job.taken, broken(error))
            finally:
                self._queue.done(job)

    def _run(self, job: Job) -> None:
        """Fetch until every flight has landed, failed, or was queued anew."""
        backoff, in_vain, enough = FIRST_BACKOFF_S, 0, Deadline(self.deadline_s)
        for flight in job.flights:
            if not flight.demand:  # nobody waited, however long it lay in the queue
                flight.deadline = self._deadline()
        while job.flights and self._stopped is None:
            before = len(job.flights)
            try:
                if job.pack is None:
                    self._detours.look_up(job)
                elif not self._stream(job):
                    return
            except Unavailable as error:
                if self._detours.fail_over(job, error):
                    return
                if len(job.flights) < before:
                    backoff, in_vain, enough = FIRST_BACKOFF_S, 0, Deadline(self.deadline_s)
                in_vain += 1
                hopeless = self._patience is not None and in_vain >= _LEAST_TRIES and enough.passed
                self._detours.give_up_late(job, error, hopeless)
                if job.flights:
                    self._metrics.add("fetch_retries")
                    self._stopping.wait(max(backoff * random.uniform(0.5, 1.0), error.retry_after_s or 0.0))
                    backoff = min(backoff * 2, LONGEST_BACKOFF_S)
            except ModelfsError as error:
                flights, job.flights = job.flights, []
                if isinstance(error, Malformed) and len(flights) > 1:
                    # The range reaches beyond the pack's end: that is the last chunk's fault, not its neighbours'.
                    with self._queue.changed:
                        for flight in flights:
                            self._queue.add([flight])
                    return
                for flight in flights:
                    self._detours.elsewhere(flight, error)

    def _stream(self, job: Job) -> bool:
        """One range; flights leave job.flights as they land. False: the rest was queued anew."""
        start, end = job.span()
        assert job.pack is not None and job.replica is not None
        began = time.monotonic()
        replicas = job.flights[0].sources.replicas
        giver, answer = replicas.open_range_of(job.replica, keys.pack(job.pack), start, end - start, job.deadline(),
                                               urgent=job.priority is Priority.DEMAND)
        if giver is not job.replica:
            job.replica = giver
            for flight in job.flights:
                assert flight.source is not None
                flight.source = Source(giver, flight.source.place)
        with answer as stream:
            at = start
            while job.flights:
                soon = at > start and (end - at) * (time.monotonic() - began) < (at - start) * _SOON_S
                if len(job.flights) > 1 and not soon and self._queue.outranked(job):
                    flights, job.flights = job.flights, []
                    with self._queue.changed:
                        self._queue.add(flights)
                    return False
                at = self._receive(job, job.flights[0], stream, at)
        return True

    def _receive(self, job: Job, flight: Flight, stream: RangeStream, at: int) -> int:
        """Read up to the end of flight's stored bytes, decode, check, land. Returns the new offset."""
        assert flight.source is not None
        place, length = flight.source.place, flight.ref.length
        as_it_is = place.codec == "raw" and place.length == length and place.base is None
        behind = 0 if as_it_is or place.base is not None else length
        size = max(place.length, place.offset - at) + behind
        with self._pool.take(size, flight.deadline, demand=flight.demand) as buffer:
            out, stored = buffer[:length], buffer[behind:]
            if place.offset > at:
                stream.readinto(stored[:place.offset - at])
            stream.readinto(stored[:place.length])
            job.flights.remove(flight)
            self._came(flight, place.length)
            difference = bytes(stored[:place.length]) if place.base is not None else None
            wrong = None
            try:
                if as_it_is:  # half of the memory, and no copy
                    check_chunk(flight.ref, out, place)
                elif difference is None:
                    open_chunk(flight.ref, place, stored[:place.length], out)
            except IntegrityError as error:
                wrong = error
            else:
                if difference is None:
                    self._opened(flight, out)
        if wrong is not None:
            self._detours.again(flight, wrong)
        if difference is not None:
            self._await_base(flight, difference)
        return place.offset + place.length

    def _came(self, flight: Flight, stored: int) -> None:
        if self._width.moved(stored, self._queue.full(), time.monotonic()):
            self._queue.widen(self._width.now)
        self._metrics.add("chunks_fetched")
        if flight.ahead:
            self._metrics.add("prefetched_chunks")
            if flight.demand:  # a reader came while it was on its way
                self._metrics.add("prefetched_used")
            else:
                for want in flight.wants:
                    want.file.ahead.add(want.chunk)

    def _opened(self, flight: Flight, decoded: memoryview) -> None:
        self._metrics.add("chunks_verified")
        self._land(flight, decoded)

    def _await_base(self, flight: Flight, stored: bytes) -> None:
        base = base_of(flight)
        assert base is not None
        self.ensure([base], Difference(flight, stored, self._opened, self._detours.again, self._baseless),
                    flight.priority if self.prefetches else Priority.DEMAND)

    def _baseless(self, flight: Flight, error: ModelfsError) -> None:
        """Its base is not to be had: elsewhere the chunk may lie otherwise."""
        if isinstance(error, IntegrityError) and self._stopped is None:
            self._detours.elsewhere(flight, error)
        else:
            self._fail(flight, error)

