"""Ranges that are asked for twice: of a second replica, where the first takes longer than nearly all requests did.

Rule: the first answer counts, whoever gives it, and the other is dropped as it comes. (Hedged requests: Dean and
Barroso, The Tail at Scale, CACM 56(2), 2013.)
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from modelfs.errors import ModelfsError
from modelfs.stores.store import RangeStream

_KEPT = 128
_LEAST = 20
"""Fewer measurements than this say nothing of one in twenty."""


class Latencies:
    """Seconds that a replica's last answers took to begin. Its owner's lock guards it."""

    def __init__(self) -> None:
        self._seconds = deque[float](maxlen=_KEPT)

    def note(self, seconds: float) -> None:
        self._seconds.append(seconds)

    def p95_s(self) -> float | None:
        """None while too few are known."""
        if len(self._seconds) < _LEAST:
            return None
        return sorted(self._seconds)[len(self._seconds) * 95 // 100]


class Asked(Protocol):
    """Begins the range at one replica, and notes how long the answer took. Raises ModelfsError."""

    def __call__(self) -> RangeStream: ...


class Race:
    """At most two who are asked for the same range, each in a thread of its own, which its deadline ends."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._asked = 0                                                 # guarded by _changed, as the rest
        self._answers: list[tuple[int, RangeStream | ModelfsError]] = []
        self._over = False

    def first_of(self, first: Asked, second: Asked, wait_s: float,
                 hedged: Callable[[], None]) -> tuple[int, RangeStream]:
        """The number (0, 1) of who answered, and the answer. second is asked once first took wait_s seconds; hedged is
        called then. Raises what first raised, unless second has an answer."""
        self._start(0, first)
        with self._changed:
            self._changed.wait_for(lambda: self._answers, wait_s)
            slow = not self._answers
        if slow:
            hedged()
            self._start(1, second)
        with self._changed:
            self._changed.wait_for(lambda: self._best() is not None or len(self._answers) == self._asked)
            self._over = True
            best = self._best()
            late = [answer for answer in self._answers if best is None or answer[0] != best[0]]
        for _, other in late:
            if not isinstance(other, ModelfsError):
                other.close()
        if best is None:
            raise next(error for number, error in self._answers if number == 0 and isinstance(error, ModelfsError))
        return best

    def _best(self) -> tuple[int, RangeStream] | None:
        for number, answer in self._answers:
            if not isinstance(answer, ModelfsError):
                return number, answer
        return None

    def _start(self, number: int, ask: Asked) -> None:
        with self._changed:
            self._asked += 1
        threading.Thread(target=self._run, args=(number, ask), name="hedge", daemon=True).start()

    def _run(self, number: int, ask: Asked) -> None:
        answer: RangeStream | ModelfsError
        try:
            answer = ask()
        except ModelfsError as error:
            answer = error
        except Exception as error:  # a fault of ours must not leave a reader waiting
            answer = ModelfsError("an internal fault while asking a store", why=f"{type(error).__name__}: {error}")
        with self._changed:
            over = self._over
            if not over:
                self._answers.append((number, answer))
                self._changed.notify_all()
        if over and not isinstance(answer, ModelfsError):
            answer.close()
