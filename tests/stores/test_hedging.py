"""Who is asked second, when, and what becomes of the other answer."""

from __future__ import annotations

import threading
from types import TracebackType

import pytest

from modelfs.errors import ModelfsError, Unavailable
from modelfs.stores.hedging import Asked, Latencies, Race
from modelfs.stores.store import RangeStream


class Stream:
    """An answer that says when it is closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def readinto(self, view: memoryview) -> None:
        raise AssertionError

    def close(self) -> None:
        self.closed.set()

    def __enter__(self) -> RangeStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


class Asking:
    """Answers, or raises, once it is let."""

    def __init__(self, answer: Stream | ModelfsError, let: bool = True) -> None:
        self.answer, self.asked, self.let = answer, threading.Event(), threading.Event()
        if let:
            self.let.set()

    def __call__(self) -> RangeStream:
        self.asked.set()
        assert self.let.wait(30)
        if isinstance(self.answer, ModelfsError):
            raise self.answer
        return self.answer


def race(first: Asked, second: Asked, wait_s: float) -> tuple[int, RangeStream, int]:
    hedged: list[None] = []
    number, stream = Race().first_of(first, second, wait_s, lambda: hedged.append(None))
    return number, stream, len(hedged)


def test_one_that_answers_in_time_is_asked_alone() -> None:
    first, second = Asking(Stream()), Asking(Stream())
    assert race(first, second, 30) == (0, first.answer, 0)
    assert not second.asked.is_set()


def test_the_second_wins_where_the_first_is_slow_and_the_late_answer_is_closed() -> None:
    late = Stream()
    first, second = Asking(late, let=False), Asking(Stream())
    assert race(first, second, 0.01) == (1, second.answer, 1)
    assert not late.closed.is_set()
    first.let.set()
    assert late.closed.wait(30)


def test_an_error_of_the_second_is_nobodys() -> None:
    first, second = Asking(Stream(), let=False), Asking(Unavailable("no"))
    threading.Timer(0.0, lambda: second.asked.wait(30) and first.let.set()).start()
    assert race(first, second, 0.01) == (0, first.answer, 1)


def test_the_first_ones_error_counts_where_neither_answers() -> None:
    first, second = Asking(Unavailable("first"), let=False), Asking(Unavailable("second"))
    threading.Timer(0.0, lambda: second.asked.wait(30) and first.let.set()).start()
    with pytest.raises(Unavailable, match="first"):
        race(first, second, 0.01)


def test_a_fault_of_ours_ends_the_wait() -> None:
    def broken() -> RangeStream:
        raise ZeroDivisionError

    with pytest.raises(ModelfsError, match="ZeroDivisionError"):
        race(broken, broken, 30)


def test_the_bound_is_what_19_of_20_answers_kept() -> None:
    found = Latencies()
    for _ in range(19):
        found.note(0.01)
    assert found.p95_s() is None
    found.note(5.0)
    assert found.p95_s() == 5.0
    for _ in range(100):
        found.note(0.02)
    assert found.p95_s() == 0.02
