"""The same repository in several stores: which of them to ask, what each was like lately, and one store out of all.

Rule: "missing here" is not "missing", and "does not answer" is nobody's last word as long as another replica lives. A
replica that fails goes behind the others until a probe of its own finds it well again; what is written goes to the
first one only. Where objects lie within packs is each replica's own business: who plans ranges asks one of them
(`replicas_of`), not the whole.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from modelfs.errors import Forbidden, IntegrityError, ModelfsError, ObjectMissing, Unavailable
from modelfs.logs import log_event, logger_for
from modelfs.metrics import Metrics
from modelfs.stores.hedging import Latencies, Race
from modelfs.stores.retrying import RetryingStore
from modelfs.stores.store import Buffer, Fetched, ObjectInfo, ObjectStore, RangeStream
from modelfs.units import Deadline, KiB

T = TypeVar("T")
Check = Callable[[str, Fetched], bool]
"""Key, object → whether it is what its key says, as far as that can be told."""

_LOG = logger_for(__name__)
_FIRST_PROBE_S, _LONGEST_PROBE_S, _PROBE_DEADLINE_S = 1.0, 30.0, 5.0
_SLOWER, _SLOWER_MS = 3.0, 20.0
"""One that takes more than three times as long as the quickest, and 20 ms more, goes behind those that do not."""
_SHARE = 0.2  # of the newest measurement in a latency
_LEAST_SHARE_S = 1.0
_SMALL = 64 * KiB
_PROBED = "modelfs.json"  # every repository has it, and it never changes


class Replica:
    """One store of a repository. state: ok, unreachable, refused (our credentials) or faulty (what it sends is wrong).

    latency_ms: until an answer begins, smoothed; None before the first. errors: requests that failed, and objects that
    were wrong, since the start. last_error: one line.
    """

    def __init__(self, number: int, store: ObjectStore) -> None:
        self.number, self.store, self.url = number, store, store.url
        self._lock = threading.Lock()
        self.state, self.errors = "ok", 0  # guarded by _lock, as the next two
        self.last_error: str | None = None
        self.latency_ms: float | None = None
        self._latencies = Latencies()  # guarded by _lock

    @property
    def well(self) -> bool:
        return self.state == "ok"

    def health(self) -> dict[str, Any]:
        """As `status` shows it."""
        with self._lock:
            latency_ms = None if self.latency_ms is None else round(self.latency_ms, 3)
            return {"url": self.url, "state": self.state, "latency_ms": latency_ms, "errors": self.errors}

    def served(self, seconds: float | None) -> None:
        """It answered, and began to after so long, if that is known."""
        with self._lock:
            if seconds is not None:
                share = 1.0 if self.latency_ms is None else _SHARE
                self.latency_ms = (1 - share) * (self.latency_ms or 0.0) + share * seconds * 1000
                self._latencies.note(seconds)
            before, self.state = self.state, "ok"
        if before != "ok":
            log_event(_LOG, "info", "catalog.store", store=self.url, state="ok", key=f"ok {self.errors}")

    def p95_s(self) -> float | None:
        """Within this 19 of 20 answers began lately; None while too few are known."""
        with self._lock:
            return self._latencies.p95_s()

    def failed(self, error: ModelfsError) -> None:
        """It could not be asked, or what it sent was wrong. An object that it lacks is no failure of it."""
        state = "unreachable" if isinstance(error, Unavailable) else "refused" if isinstance(error, Forbidden) \
            else "faulty"
        with self._lock:
            self.errors, self.last_error = self.errors + 1, str(error)
            before, self.state = self.state, state
        if before != state:
            log_event(_LOG, "warning", "catalog.store", store=self.url, state=state, key=f"{state} {self.errors}",
                      error=error)

    def wrong(self) -> None:
        """One object of it was not what it should be: that counts, but others may well be right."""
        with self._lock:
            self.errors += 1


class Replicas:
    """An ObjectStore out of several, without retries once all have failed (see RetryingStore)."""

    def __init__(self, stores: Sequence[ObjectStore], right: Check = lambda key, found: True,
                 metrics: Metrics | None = None, *, hedge: bool = False) -> None:
        """stores: at least one, in order of preference; where there are several, without retries of their own.
        right: refuses an object that is not what its key says, so that the next replica is asked for it.
        hedge: whether `open_range_of` asks a second replica where the first is slow."""
        self.replicas = [Replica(number, store) for number, store in enumerate(stores)]
        self.url = self.replicas[0].url
        self._right, self._metrics, self._hedge = right, metrics, hedge
        self._lock = threading.Lock()
        self._probing = False  # guarded by _lock
        self._closed = threading.Event()

    def in_order(self) -> list[Replica]:
        """The healthiest first: those that are well before the others, in order of preference; one that is much
        slower than the quickest after those that are not."""
        if len(self.replicas) == 1:
            return self.replicas
        well = [replica for replica in self.replicas if replica.well]
        known = [replica.latency_ms for replica in well if replica.latency_ms is not None]
        bound = max(_SLOWER * min(known), min(known) + _SLOWER_MS) if known else 0.0
        well.sort(key=lambda replica: (replica.latency_ms or 0.0) > bound)
        return well + [replica for replica in self.replicas if replica not in well]

    def failed(self, replica: Replica, error: ModelfsError) -> None:
        """Puts it behind the others, and has it probed until it is well; nothing where there are no others."""
        if len(self.replicas) > 1:
            replica.failed(error)
            self.probe()

    def probe(self) -> None:
        """Those that are not well, if there are several, in a thread of its own until they are."""
        with self._lock:
            if len(self.replicas) == 1 or self._probing or self._closed.is_set():
                return
            self._probing = True
        threading.Thread(target=self._probe, name="probe", daemon=True).start()

    def close(self) -> None:
        """Ends probing."""
        self._closed.set()

    # reads, from any

    def get(self, key: str, deadline: Deadline, *, limit: int, etag: str | None = None,
            fresh: bool = False) -> Fetched | None:
        def ask(replica: Replica, share: Deadline) -> Fetched | None:
            found = replica.store.get(key, share, limit=limit, etag=etag, fresh=fresh)
            if found is not None and not self._right(key, found):
                raise _Wrong(replica.url, key)
            return found

        return self._anywhere(deadline, ask)

    def open_range(self, key: str, offset: int, length: int, deadline: Deadline) -> RangeStream:
        return self._anywhere(deadline, lambda replica, share: replica.store.open_range(key, offset, length, share))

    def open_range_of(self, replica: Replica, key: str, offset: int, length: int, deadline: Deadline, *,
                      urgent: bool) -> tuple[Replica, RangeStream]:
        """A range of one replica, and who gave it: with hedging, and urgent, another one that is well may be quicker.

        key: of an object that is named by its digest, so that the same bytes lie at offset wherever it is.
        """
        second = next((other for other in self.in_order() if other is not replica and other.well), None)
        wait_s = replica.p95_s() if self._hedge and urgent and second is not None else None

        def ask(one: Replica) -> RangeStream:
            began = time.monotonic()
            stream = one.store.open_range(key, offset, length, deadline)
            one.served(time.monotonic() - began)
            return stream

        if wait_s is None or second is None:
            return replica, ask(replica)
        number, stream = Race().first_of(partial(ask, replica), partial(ask, second), wait_s, self._count_hedge)
        return (replica, second)[number], stream

    def stat(self, key: str, deadline: Deadline) -> ObjectInfo:
        return self._anywhere(deadline, lambda replica, share: replica.store.stat(key, share))

    # writes, to the first

    def put(self, key: str, data: Buffer, deadline: Deadline, *, only_if_absent: bool = False) -> bool:
        return self.replicas[0].store.put(key, data, deadline, only_if_absent=only_if_absent)

    def swap(self, key: str, expected: str | None, new: bytes, deadline: Deadline) -> str | None:
        return self.replicas[0].store.swap(key, expected, new, deadline)

    def list(self, prefix: str, deadline: Deadline) -> Iterator[ObjectInfo]:
        return self.replicas[0].store.list(prefix, deadline)

    def delete(self, key: str, deadline: Deadline) -> None:
        self.replicas[0].store.delete(key, deadline)

    def _count_hedge(self) -> None:
        if self._metrics:
            self._metrics.add("hedges")

    def _anywhere(self, deadline: Deadline, call: Callable[[Replica, Deadline], T]) -> T:
        """call, of the healthiest replica that can answer. Raises Unavailable if one could not be asked, else what
        the first said that did not just lack the object, else ObjectMissing."""
        errors: list[ModelfsError] = []
        order = self.in_order()
        for count, replica in enumerate(order):
            # Who stalls takes no more than half of the time, so that the next can still be asked.
            share = deadline if count == len(order) - 1 else \
                deadline.sooner(max(_LEAST_SHARE_S, deadline.remaining() / 2))
            began = time.monotonic()
            try:
                found = call(replica, share)
            except ObjectMissing as error:
                replica.served(time.monotonic() - began)
                errors.append(error)
            except _Wrong as error:
                replica.wrong()
                log_event(_LOG, "error", "object.wrong", store=replica.url, why=str(error))
                errors.append(error)
            except ModelfsError as error:
                self.failed(replica, error)
                errors.append(error)
            else:
                replica.served(None if isinstance(found, Fetched) and len(found.content) > _SMALL else
                               time.monotonic() - began)
                if errors and self._metrics:
                    self._metrics.add("failovers")
                return found
            if deadline.passed:
                break
        raise min(errors, key=_weight)

    def _probe(self) -> None:
        """Until all are well, or this is closed; ever more seldom."""
        pause_s = _FIRST_PROBE_S
        while not self._closed.wait(pause_s):
            for replica in self.replicas:
                if not replica.well:
                    self._ask(replica)
            with self._lock:
                if all(replica.well for replica in self.replicas):
                    self._probing = False
                    return
            pause_s = min(2 * pause_s, _LONGEST_PROBE_S)

    def _ask(self, replica: Replica) -> None:
        began = time.monotonic()
        try:
            replica.store.stat(_PROBED, Deadline(_PROBE_DEADLINE_S))
        except ModelfsError as error:
            replica.failed(error)
        else:
            replica.served(time.monotonic() - began)


class _Wrong(IntegrityError):
    def __init__(self, where: str, key: str) -> None:
        super().__init__("an object is not what its name says", where=where, why=key)


def _weight(error: ModelfsError) -> int:
    return 0 if isinstance(error, Unavailable) else 2 if isinstance(error, ObjectMissing) else 1


def replicas_of(store: ObjectStore) -> Replicas:
    """The replicas behind a store; one that is no set of them is the only one, with its own retries."""
    inner = store.store if isinstance(store, RetryingStore) else store
    return inner if isinstance(inner, Replicas) else Replicas([store])
