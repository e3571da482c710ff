"""How many ranges are fetched at once ahead of need: as many as make it faster, and no more.

Rule: one more connection is kept only where bytes a second rose for it, by half of what it would add if each had its
own; what was tried in vain is not tried again for a while. Demand is not counted and not limited here.
"""

from __future__ import annotations

import threading

_START = 3
"""On 2 cores shared with the server 3 connections reach what 8 do, and wait for one another less."""
_PERIOD_S = 0.25
_ARRIVALS = 3  # of each connection, before its rate means anything
_REST = 8  # periods between trials once one was in vain
_NO_LOSS = 0.97


class Width:
    """Hill climbing on the rate at which stored bytes arrive, in periods in which all connections are busy."""

    def __init__(self, most: int) -> None:
        """most: at least 1."""
        self._most = most
        self.now = min(most, _START)
        self._lock = threading.Lock()
        self._before = 0  # the width that a trial is compared with; 0: none is under way. Guarded by _lock, as the rest
        self._rate = 0.0  # bytes a second at `now`, or, in a trial, at _before
        self._rest = 0
        self._upwards = True
        self._began_s: float | None = None
        self._skipped = self._arrivals = self._bytes = 0

    def moved(self, size: int, full: bool, now_s: float) -> bool:
        """size bytes arrived at now_s; full: whether more ranges waited for a connection. Whether `now` changed."""
        with self._lock:
            if not full:  # what limits is not the connections: nothing can be learnt
                self._began_s, self._skipped = None, 0
                return False
            if self._skipped < self.now:  # of those that were under way before, or are on their first bytes
                self._skipped += 1
                self._began_s, self._arrivals, self._bytes = now_s, 0, 0
                return False
            assert self._began_s is not None
            self._arrivals, self._bytes = self._arrivals + 1, self._bytes + size
            passed_s = now_s - self._began_s
            if passed_s < _PERIOD_S or self._arrivals < _ARRIVALS * self.now:
                return False
            before = self.now
            self._judge(self._bytes / passed_s)
            self._began_s, self._arrivals, self._bytes = now_s, 0, 0
            if self.now != before:
                self._skipped = 0
            return self.now != before

    def _judge(self, rate: float) -> None:
        if not self._before:
            self._rate = rate
            self._rest -= 1
            if self._rest <= 0:
                self._try()
            return
        gain = rate / self._rate
        needed = 1 + (self.now / self._before - 1) / 2 if self.now > self._before else _NO_LOSS
        if gain >= needed:
            self._rate = rate
            self._try()
            return
        self.now, self._before = self._before, 0
        self._rest, self._upwards = _REST, not self._upwards

    def _try(self) -> None:
        """One step on, of about a third; at an end the other way, after a rest."""
        step = max(1, self.now // 3)
        wanted = min(self._most, self.now + step) if self._upwards else max(1, self.now - step)
        if wanted == self.now:
            self._before, self._rest, self._upwards = 0, _REST, not self._upwards
            return
        self._before, self.now = self.now, wanted
