"""Chunks that could not be had from where they were asked for: asked for again, of another replica, at another place.

Rule: a flight that comes in here goes back into the queue or has failed; none is forgotten, and none goes round for
ever: tries, moves and places that proved wrong are counted, and its deadline passes.
"""

from __future__ import annotations

from collections.abc import Callable

from modelfs.errors import CorruptChunk, IntegrityError, ModelfsError, ObjectMissing, Unavailable, WrongServer
from modelfs.metrics import Metrics
from modelfs.reading.flights import Flight, Job, Queue
from modelfs.reading.landing import log_flight

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.1, 2.0
_MOST_MOVES = 16


class Detours:
    """fail: ends a flight with an error."""

    def __init__(self, queue: Queue, metrics: Metrics, fail: Callable[[Flight, ModelfsError], None]) -> None:
        self._queue, self._metrics, self._fail = queue, metrics, fail

    def give_up_late(self, job: Job, error: Unavailable, hopeless: bool) -> None:
        """Fail the flights whose time is over, or is so before the store can be or wants to be asked again; all of them
        where it is hopeless: bytes may renew a deadline, and yet no chunk comes to its end; the only store there is may
        not be what it says."""
        wait = error.retry_after_s or 0.0
        for flight in list(job.flights):
            lost = isinstance(error, WrongServer) and len(flight.sources.replicas.replicas) == 1
            if hopeless or lost or flight.deadline.remaining() <= max(wait, FIRST_BACKOFF_S):
                job.flights.remove(flight)
                self._fail(flight, error)

    def again(self, flight: Flight, error: IntegrityError) -> None:
        """A chunk that came and is wrong: fetched once more, in case the wire or a cache on it was at fault."""
        if isinstance(error, CorruptChunk):
            self._metrics.add("hash_failures")
            log_flight(flight, "chunk.corrupt", error)
        flight.tries += 1
        if flight.tries > 1 or not isinstance(error, CorruptChunk) or len(flight.sources.replicas.replicas) > 1:
            self.elsewhere(flight, error)
            return
        self._metrics.add("fetch_retries")
        with self._queue.changed:
            self._queue.add([flight])

    def elsewhere(self, flight: Flight, error: ModelfsError) -> None:
        """The chunk is not where it should be: a job of its own looks for another place."""
        if flight.source is not None:
            flight.wrong.append(flight.source)
            if isinstance(error, CorruptChunk):
                flight.source.replica.wrong()
        flight.source, flight.error = None, error
        with self._queue.changed:
            self._queue.add([flight])

    def fail_over(self, job: Job, error: Unavailable) -> bool:
        """Another replica that is well takes over what is left of a job. False: there is none, or none is known."""
        replica, flights = job.replica, job.flights
        if replica is None or not flights:
            return False
        replicas = flights[0].sources.replicas
        replicas.failed(replica, error)
        # Those that break off again and again are left to the rule by which a range that gets nowhere ends.
        if len(replicas.replicas) == 1 or not replicas.in_order()[0].well or flights[0].moves >= _MOST_MOVES:
            return False
        job.flights = []
        for flight in flights:
            flight.moves += 1
            flight.source, flight.error = flight.sources.source(flight.row), error
            if flight.source is not None and flight.source.replica is replica:
                flight.source = None  # of the one that is well no place is known yet
        self._metrics.add("failovers")
        with self._queue.changed:
            self._queue.add(flights)
        return True

    def look_up(self, job: Job) -> None:
        """Find sources for flights that have none; one that has no other left has failed, by its last error. Raises
        Unavailable where that could not be found out: what it is about stays in the job."""
        flights, job.flights = job.flights, []
        trouble: Unavailable | None = None
        for flight in flights:
            error = flight.error or ObjectMissing("a chunk has no place", where=flight.sources.replicas.url,
                                                  why="neither a layout nor the indexes say where it lies")
            if not flight.deadline.passed:
                try:
                    flight.source = flight.sources.look_up(flight.row, flight.wrong, flight.deadline)
                except Unavailable as second:
                    trouble = second
                    if isinstance(flight.error, ObjectMissing):  # missing elsewhere, and silence here
                        flight.error = second
                    job.flights.append(flight)
                    continue
                except ModelfsError as second:
                    error = flight.error or second
            if flight.source is None:
                self._fail(flight, error)
                continue
            if flight.wrong and flight.source.replica is not flight.wrong[-1].replica:
                self._metrics.add("failovers")
            flight.tries = 0
            with self._queue.changed:
                self._queue.add([flight])
        if trouble is not None:
            raise trouble
