"""The fetcher: missing chunks → ranges → decode → check → waiting readers → cache.

Rule: a chunk reaches a reader or the cache only from open_chunk or check_chunk, which hash it. Demand never
queues behind prefetch, and a thread that waits for the network holds nothing that a cached read needs.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence

from modelfs.errors import CorruptChunk, IntegrityError, ModelfsError, Unavailable
from modelfs.ids import ChunkId
from modelfs.logs import log_event, logger_for
from modelfs.metrics import Metrics
from modelfs.reading.buffers import BufferPool
from modelfs.reading.flights import Flight, Job, Queue, Waiter, Want, jobs_of
from modelfs.reading.localcopies import LocalCopies
from modelfs.reading.recent import RecentChunks
from modelfs.reading.versions import ChunkCache
from modelfs.repository import keys
from modelfs.repository.chunk import open_chunk
from modelfs.stores.store import ObjectStore, RangeStream
from modelfs.units import Deadline

_LOG = logger_for(__name__)
_REMEMBER_FAILURE_S = 2.0
"""After a failed read-ahead the kernel asks for the same page again; that is answered from memory."""
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.1, 2.0


class Fetcher:
    """Threads: `connections` for the network, LocalCopies' own for the disk."""

    def __init__(self, store: ObjectStore, cache: ChunkCache, metrics: Metrics, *, connections: int,
                 memory_bytes: int, deadline_s: float, patient: bool = False) -> None:
        """patient: as long as chunks arrive, the deadline begins anew: for transfers, which nobody waits for."""
        self._store, self._metrics = store, metrics
        self.deadline_s = deadline_s
        self._patient, self._landed = patient, time.monotonic()
        self._pool = BufferPool(memory_bytes)
        self._recent = RecentChunks(memory_bytes // 4)
        self._queue = Queue(ahead_limit=max(1, connections - 2))
        self._flights: dict[ChunkId, Flight] = {}  # guarded by _queue.changed
        self._failures: dict[ChunkId, tuple[float, ModelfsError]] = {}  # guarded by _queue.changed
        self._stopped: ModelfsError | None = None
        self._stopping = threading.Event()
        self._local = LocalCopies(cache, metrics, self._land, self._fail, self._to_network)
        self._threads = [threading.Thread(target=self._work, name=f"fetch-{n}", daemon=True)
                         for n in range(connections)]
        for thread in self._threads:
            thread.start()

    def set_limits(self, *, memory_bytes: int, deadline_s: float) -> None:
        self._pool.set_limit(memory_bytes)
        self.deadline_s = deadline_s

    def ensure(self, wants: Sequence[Want], waiter: Waiter | None) -> None:
        """Have these chunks fetched and put into the cache, and tell waiter of each; None: ahead of need.

        Returns at once; takes nothing from network or disk. The waiter may be told before this returns.
        """
        failed: list[tuple[ChunkId, ModelfsError]] = []
        recent: list[tuple[ChunkId, bytes]] = []
        new: list[Flight] = []
        with self._queue.changed:
            for want in wants:
                ref = want.file.ref(want.chunk)
                if error := self._known_failure(ref.id):
                    failed.append((ref.id, error))
                elif (data := self._recent.get(ref.id)) is not None:
                    recent.append((ref.id, data))
                elif (flight := self._flights.get(ref.id)) is not None:
                    self._join(flight, want, waiter)
                else:
                    flight = Flight(ref, [want], Deadline(self.deadline_s), waiter is not None,
                                    [waiter] if waiter else [])
                    self._flights[ref.id] = flight
                    new.append(flight)
        for id, error in failed:
            if waiter:
                waiter.failed(id, error)
        for id, data in recent:
            if waiter:
                waiter.arrived(id, memoryview(data))
        on_disk = [flight for flight in new if self._local.may_have(flight)]
        self._local.put(on_disk)
        self._to_network([flight for flight in new if flight not in on_disk])

    def remember_failure(self, ids: Sequence[ChunkId], error: ModelfsError) -> None:
        """A reader gave up on these, though their flights may go on: for a moment, nobody else begins to wait."""
        until = time.monotonic() + _REMEMBER_FAILURE_S
        with self._queue.changed:
            self._failures.update((id, (until, error)) for id in ids)

    def fail_all(self, error: ModelfsError) -> None:
        """End every wait with error, and every later one at once."""
        with self._queue.changed:
            self._stopped = error
            flights = list(self._flights.values())
            self._queue.drain()
        for flight in flights:
            self._fail(flight, error)

    def close(self) -> None:
        self.fail_all(Unavailable("the mount is going"))
        self._stopping.set()
        with self._queue.changed:
            self._queue.closed = True
            self._queue.changed.notify_all()
        self._local.close()

    # flights

    def _join(self, flight: Flight, want: Want, waiter: Waiter | None) -> None:
        if all(want.file.cache is not other.file.cache or want.chunk != other.chunk for other in flight.wants):
            flight.wants.append(want)
        if waiter:
            flight.waiters.append(waiter)
            flight.deadline = Deadline(self.deadline_s)
            if not flight.demand:
                flight.demand = True
                self._queue.promote(flight)

    def _known_failure(self, id: ChunkId) -> ModelfsError | None:
        if self._stopped:
            return self._stopped
        if id in self._failures:
            until, error = self._failures[id]
            if time.monotonic() < until:
                return error
            del self._failures[id]
        return None

    def _to_network(self, flights: list[Flight]) -> None:
        """Plan ranges; a chunk in a head pack brings the whole pack along."""
        placed: list[Flight] = []
        for flight in flights:
            try:
                flight.place = flight.wants[0].file.version.place(flight.row)
                placed.append(flight)
            except ModelfsError as error:
                self._fail(flight, error)
        if placed:
            with self._queue.changed:
                placed += [more for flight in placed for more in self._head_companions(flight)]
                for demand in (True, False):
                    self._queue.put(jobs_of([f for f in placed if f.demand is demand], demand))

    def _head_companions(self, flight: Flight) -> list[Flight]:
        version = flight.wants[0].file.version
        found = []
        for row in version.head_rows(flight.place.pack) if flight.place else []:
            id = version.manifest.chunk_id(row)
            if id not in self._flights:
                file = version.file_of_row(row)
                want = Want(file, row - file.entry.first_row)
                if not file.cache.presence(want.chunk) & 1:
                    more = Flight(file.ref(want.chunk), [want], flight.deadline, flight.demand)
                    more.place = version.place(row)
                    self._flights[id] = more
                    found.append(more)
        return found

    def _fail(self, flight: Flight, error: ModelfsError) -> None:
        with self._queue.changed:
            if self._flights.get(flight.ref.id) is not flight:
                return
            del self._flights[flight.ref.id]
            waiters, flight.waiters = flight.waiters, []
            if waiters:
                now = time.monotonic()
                if len(self._failures) > 10_000:
                    self._failures = {k: v for k, v in self._failures.items() if v[0] > now}
                self._failures[flight.ref.id] = (now + _REMEMBER_FAILURE_S, error)
        if waiters and self._stopped is None:
            self._log(flight, "chunk.failed", error)
        for waiter in waiters:
            waiter.failed(flight.ref.id, error)

    def _land(self, flight: Flight, decoded: memoryview) -> None:
        """decoded is checked: hand it to who waits, keep it, and end the flight."""
        kept = False
        self._landed = time.monotonic()
        while True:
            with self._queue.changed:
                waiters, flight.waiters = flight.waiters, []
                if not waiters and kept:
                    if self._flights.get(flight.ref.id) is flight:
                        del self._flights[flight.ref.id]
                    self._failures.pop(flight.ref.id, None)
                    return
            for waiter in waiters:
                waiter.arrived(flight.ref.id, decoded)
            if not kept:
                filled = [want.file.cache.fill(want.chunk, decoded) for want in flight.wants]
                if not all(filled):
                    self._recent.put(flight.ref.id, decoded)
                kept = True

    # the network

    def _work(self) -> None:
        while (job := self._queue.take()) is not None:
            try:
                self._run(job)
            except Exception as error:
                # A bug here must not leave readers waiting: they get EIO, the log gets the cause.
                log_event(_LOG, "error", "fetch.broken", why=f"{type(error).__name__}: {error}")
                for flight in job.taken:
                    self._fail(flight, ModelfsError("internal error while fetching", why=str(error)))
            finally:
                self._queue.done(job)

    def _run(self, job: Job) -> None:
        """Fetch until every flight has landed, failed, or was queued anew."""
        backoff = _FIRST_BACKOFF_S
        while job.flights and self._stopped is None:
            before = len(job.flights)
            try:
                if not self._stream(job):
                    return
            except Unavailable as error:
                backoff = _FIRST_BACKOFF_S if len(job.flights) < before else backoff
                self._give_up_late(job, error)
                if job.flights:
                    self._metrics.add("fetch_retries")
                    self._stopping.wait(backoff * random.uniform(0.5, 1.0))
                    backoff = min(backoff * 2, _LONGEST_BACKOFF_S)
            except ModelfsError as error:
                flights, job.flights = job.flights, []
                for flight in flights:
                    self._elsewhere(flight, error)

    def _give_up_late(self, job: Job, error: Unavailable) -> None:
        """Fail the flights whose time is over, or is so before the store wants to be asked again."""
        wait = error.retry_after_s or 0.0
        for flight in list(job.flights):
            if flight.deadline.remaining() > wait:
                continue
            if self._patient and time.monotonic() - self._landed < self.deadline_s > wait:
                flight.deadline = Deadline(self.deadline_s)
            else:
                job.flights.remove(flight)
                self._fail(flight, error)

    def _stream(self, job: Job) -> bool:
        """One range; flights leave job.flights as they land. False: the rest was queued anew, behind a demand."""
        start, end = job.span()
        with self._store.open_range(keys.pack(job.pack), start, end - start, job.deadline()) as stream:
            at = start
            while job.flights:
                if not job.demand and self._queue.demand_waits() and len(job.flights) > 1:
                    self._requeue(job)
                    return False
                at = self._receive(job, job.flights[0], stream, at)
        return True

    def _receive(self, job: Job, flight: Flight, stream: RangeStream, at: int) -> int:
        """Read up to the end of flight's stored bytes, decode, check, land. Returns the new offset."""
        place, length = flight.place, flight.ref.length
        assert place is not None
        with self._pool.take(max(place.length, place.offset - at) + length) as buffer:
            stored, out = buffer[:-length], buffer[-length:]
            if place.offset > at:
                stream.readinto(stored[:place.offset - at])
            if place.offset >= at:
                stream.readinto(stored[:place.length])
            job.flights.remove(flight)
            self._metrics.add("chunks_fetched")
            if not flight.demand:
                self._metrics.add("prefetched_chunks")
                for want in flight.wants:
                    want.file.ahead[want.chunk] = 1
            try:
                open_chunk(flight.ref, place, stored[:place.length], out)
            except IntegrityError as error:
                self._again(flight, error)
            else:
                self._metrics.add("chunks_verified")
                self._land(flight, out)
        return place.offset + place.length

    def _requeue(self, job: Job) -> None:
        flights, job.flights = job.flights, []
        with self._queue.changed:
            for demand in (True, False):
                self._queue.put(jobs_of([f for f in flights if f.demand is demand], demand))

    def _again(self, flight: Flight, error: IntegrityError) -> None:
        """A chunk that came and is wrong: fetched once more, in case the wire or a cache on it was at fault."""
        if isinstance(error, CorruptChunk):
            self._metrics.add("hash_failures")
            self._log(flight, "chunk.corrupt", error)
        flight.tries += 1
        if flight.tries > 1 or not isinstance(error, CorruptChunk):
            self._elsewhere(flight, error)
            return
        self._metrics.add("fetch_retries")
        with self._queue.changed:
            self._queue.put(jobs_of([flight], flight.demand))

    def _elsewhere(self, flight: Flight, error: ModelfsError) -> None:
        """The chunk is not where it should be: look it up anew, once; then it has failed."""
        place = None
        if not flight.relocated and self._stopped is None:
            flight.relocated, flight.tries = True, 0
            try:
                place = flight.wants[0].file.version.relocate(flight.row, flight.place, flight.deadline)
            except ModelfsError as second:
                error = second
        if place is None:
            self._fail(flight, error)
            return
        flight.place = place
        with self._queue.changed:
            self._queue.put(jobs_of([flight], flight.demand))

    def _log(self, flight: Flight, event: str, error: ModelfsError) -> None:
        place = flight.place
        log_event(_LOG, "error", event, file=flight.wants[0].file.entry.path, chunk=flight.ref.id.hex(),
                  pack=place.pack.hex() if place else None, store=self._store.url, why=str(error))


