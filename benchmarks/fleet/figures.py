"""What a simulation found, from what was done to the fleet and what the readers saw.

Rule: an error is excused only where, at a moment of that read, no server was well that had the version; then it is
counted apart. Nothing is left out.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from benchmarks.fleet.journal import Event
from benchmarks.fleet.plan import ALL, BLACKOUT
from benchmarks.fleet.readers import Read, by_mount

REMEMBERED_S = 2.5  # a failed chunk is for 2 s not asked for again
MET_S = 1.0
_TOLD = 20


@dataclass(frozen=True, slots=True)
class Spread:
    """Of so many times, in seconds; zeros where there are none."""

    count: int
    median: float
    p99: float
    longest: float

    @classmethod
    def of(cls, times: Sequence[float]) -> Spread:
        if not times:
            return cls(0, 0.0, 0.0, 0.0)
        ordered = sorted(times)
        return cls(len(ordered), round(median(ordered), 3), round(ordered[math.ceil(0.99 * len(ordered)) - 1], 3),
                   round(ordered[-1], 3))


@dataclass(frozen=True, slots=True)
class FailOver:
    """Of a kind of fault. faults: how many; next_read: from one to the next read that came to its end at each mount
    that the server was feeding, or that was hit itself; all_met: to the end of the last read there that it met, or that
    began within a second."""

    faults: int
    next_read: Spread
    all_met: Spread


@dataclass(slots=True)
class Figures:
    """errors: while a server was well that had the version. dark_errors: while none was. longest_stall_s: of a read
    that a server could have answered all the time; dark_stall_s: of the others."""

    seconds: float
    mounts: int
    versions: int
    pushes_tried_again: int
    reads: int
    bytes_compared: int
    wrong: int
    errors: int
    dark_errors: int
    longest_stall_s: float
    dark_stall_s: float
    reading: Spread
    fail_over: dict[str, FailOver]
    after_blackouts: Spread
    left_out: int
    sent_bytes: dict[str, int]
    counters: dict[str, int]
    unexpected: list[Any] = field(default_factory=list)
    details: list[Any] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.wrong and not self.errors and not self.unexpected

    def document(self) -> dict[str, Any]:
        return asdict(self)


class Lights:
    """When a server was well that had a version, as seen from a mount."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._unwell = defaultdict[str, list[tuple[float, float]]](list)
        self._away = defaultdict[str, list[tuple[float, float]]](list)
        self._held = defaultdict[str, list[tuple[float, int]]](list)
        over = {event["id"]: event["t"] for event in events if event["event"] == "over"}
        for event in events:
            if event["event"] == "holds":
                self._held[event["server"]].append((event["t"], event["version"]))
            elif event["event"] == "fault":
                span = event["t"], over.get(event["id"], math.inf)
                for server in event["unwell"]:
                    self._unwell[server].append(span)
                for mount in event["away"]:
                    self._away[mount].append(span)
        self._changes = sorted({moment for spans in (*self._unwell.values(), *self._away.values()) for span in spans
                                for moment in span} | {t for held in self._held.values() for t, _ in held})

    def dark(self, read: Read) -> bool:
        """Whether at some moment of it none was; or a moment before, which is remembered."""
        since = read.began - REMEMBERED_S
        first, last = bisect_right(self._changes, since), bisect_right(self._changes, read.ended)
        return any(self._dark_at(moment, read) for moment in (since, *self._changes[first:last]))

    def _dark_at(self, moment: float, read: Read) -> bool:
        if _within(moment, self._away[read.mount]):
            return True
        number = int(read.version[1:]) if read.version else 1
        return not any(not _within(moment, self._unwell[server]) and any(
            t <= moment and version >= number for t, version in held) for server, held in self._held.items())


def _within(moment: float, spans: Sequence[tuple[float, float]]) -> bool:
    return any(begin <= moment < end for begin, end in spans)


def figures(events: Sequence[Event], reads: Sequence[Read], sent: dict[str, int], counters: dict[str, int]) -> Figures:
    lights, mounts = Lights(events), by_mount(reads)
    failed = [read for read in reads if read.error is not None]
    dark = {id(read): lights.dark(read) for read in reads if read.error is not None or read.ended - read.began > 1}
    plain = [read for read in failed if not dark[id(read)]]
    faults = [event for event in events if event["event"] == "fault"]
    wrong = [read for read in reads if read.wrong]
    took = [read.ended - read.began for read in reads]

    def longest(wanted: bool) -> float:
        return round(max((read.stall_s for read in reads if dark.get(id(read), False) is wanted), default=0.0), 3)

    return Figures(
        seconds=round(events[-1]["t"] - events[0]["t"], 1), mounts=len(mounts),
        versions=max(event["version"] for event in events if event["event"] == "holds"),
        pushes_tried_again=sum(event["event"] == "published" and event["code"] != 0 for event in events),
        reads=len(reads), bytes_compared=sum(read.bytes for read in reads), wrong=sum(read.wrong for read in wrong),
        errors=len(plain), dark_errors=len(failed) - len(plain), longest_stall_s=longest(False),
        dark_stall_s=longest(True), reading=Spread.of(took),
        fail_over={kind: _fail_over([fault for fault in faults if fault["kind"] == kind], mounts)
                   for kind in sorted(Counter(fault["kind"] for fault in faults))},
        after_blackouts=Spread.of([_next_end(mounts[mount], event["t"]) - event["t"] for event in events for mount in
                                   mounts if event["event"] == "over" and event["kind"] == BLACKOUT]),
        left_out=sum(event["event"] == "left out" for event in events), sent_bytes=sent, counters=counters,
        unexpected=[event for event in events if event["event"] == "unexpected"],
        details=[asdict(read) for read in [*wrong, *plain][:_TOLD]])


def _fail_over(faults: Sequence[Event], mounts: dict[str, list[Read]] | Any) -> FailOver:
    following, met = [], []
    for fault in faults:
        for mount in fault["fed"] if fault["target"] != ALL else ():
            at, reads = fault["t"], mounts[mount]
            following.append(_next_end(reads, at) - at)
            met.append(max((read.ended for read in reads if read.began <= at + MET_S and read.ended > at),
                           default=at) - at)
    return FailOver(len(faults), Spread.of(following), Spread.of(met))


def _next_end(reads: Sequence[Read], at: float) -> float:
    """Of a read without an error; they are in the order of their ends."""
    return next((read.ended for read in reads if read.ended > at and read.error is None), math.inf)
