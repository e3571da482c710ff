"""Requests that wait are answered once, whatever arrives, is interrupted or grows late at the same moment."""

from __future__ import annotations

import errno
import math
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from mount.mounting import until
from repository.builder import Builder

from modelfs.cache.cache_file import Read
from modelfs.engines.native import protocol
from modelfs.engines.native.connection import Connection
from modelfs.engines.native.parking import Loads, Parked, ParkedRequests
from modelfs.engines.native.reads import Reads, ReplyBuffer
from modelfs.errors import ModelfsError, NotFound, Unavailable
from modelfs.ids import ChunkId
from modelfs.metrics import Metrics
from modelfs.reading.flights import Want
from modelfs.reading.reader import Reader, Waiting
from modelfs.reading.versions import ModelFile
from modelfs.view.loading import NotLoaded
from modelfs.view.view import View

DATA = os.urandom(3000)


@dataclass
class HeldFetcher:
    """What a reader needs of a fetcher; nothing arrives before the test says so."""

    deadline_s: float = math.inf
    waiting: list[Waiting] = field(default_factory=list)

    def ensure(self, wants: list[Want], waiting: Waiting) -> None:
        self.waiting.append(waiting)

    def remember_failure(self, missing: object, error: ModelfsError) -> None:
        pass


@pytest.fixture
def file(built: Builder, show: Callable[..., View]) -> ModelFile:
    built.push("acme/base", {"a.bin": DATA})
    view = show()
    return view.open(view.resolve("acme/base/v1/a.bin")).file


@pytest.fixture
def parked() -> Iterator[ParkedRequests]:
    made = ParkedRequests()
    yield made
    made.close()


@pytest.fixture
def kernel() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The kernel's end of a descriptor and ours: one message, one answer, as on /dev/fuse."""
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, ours:
        yield theirs, ours


def answers(theirs: socket.socket) -> list[tuple[int, int, bytes]]:
    """(unique, errno, body) of all that were sent."""
    found = []
    while True:
        try:
            data = theirs.recv(1 << 20, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return found
        length, error, unique = protocol.OUT_HEADER.unpack_from(data)
        assert length == len(data)
        found.append((unique, -error, data[protocol.OUT_HEADER.size:]))


def at_once(*actions: Callable[[], object]) -> None:
    barrier = threading.Barrier(len(actions))

    def act(action: Callable[[], object]) -> None:
        barrier.wait(30)
        action()

    threads = [threading.Thread(target=act, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)


@pytest.mark.parametrize("late", [False, True])
def test_a_read_that_arrives_is_interrupted_and_is_late_at_once_is_answered_once(
        file: ModelFile, parked: ParkedRequests, kernel: tuple[socket.socket, socket.socket], late: bool) -> None:
    theirs, ours = kernel
    connection, fetcher = Connection(ours.fileno()), HeldFetcher(0.05 if late else math.inf)
    reads = Reads(connection, Reader(fetcher, Metrics(), 0), parked)  # type: ignore[arg-type]
    buffer, chunk = ReplyBuffer(), ChunkId.of(DATA)
    kinds = set()
    try:
        for unique in range(2, 202, 2):
            reads.read(unique, file, 100, 500, buffer)
            waiting, = fetcher.waiting
            fetcher.waiting.clear()

            def interrupt(unique: int = unique) -> None:
                if parked.interrupt(unique):
                    connection.fail(unique, errno.EINTR)

            def arrive(waiting: Waiting = waiting) -> None:
                waiting.arrived(chunk, memoryview(DATA))

            actions = [arrive, interrupt, lambda: waiting.failed(chunk, Unavailable("gone"))]  # noqa: B023
            if late and unique % 4:
                until(lambda: not len(parked))  # the watch takes it, then the others come
            at_once(*actions[unique // 2 % 3:], *actions[:unique // 2 % 3])
            (told, code, body), = answers(theirs)
            assert told == unique and (code, body) in ((0, DATA[100:600]), (errno.EINTR, b""), (errno.EIO, b""))
            kinds.add(code)
            assert len(parked) == 0
    finally:
        reads.close()
    assert len(kinds) > 1, "at least two of them came first now and then"


def test_a_read_at_its_deadline_is_eio_and_what_comes_later_is_nobodys(
        file: ModelFile, parked: ParkedRequests, kernel: tuple[socket.socket, socket.socket]) -> None:
    theirs, ours = kernel
    fetcher = HeldFetcher(0.0)
    reads = Reads(Connection(ours.fileno()), Reader(fetcher, Metrics(), 0), parked)  # type: ignore[arg-type]
    try:
        reads.read(2, file, 0, 100, ReplyBuffer())
        until(lambda: not len(parked))
        assert answers(theirs) == [(2, errno.EIO, b"")]
        fetcher.waiting[0].arrived(ChunkId.of(DATA), memoryview(DATA))
        assert answers(theirs) == []
    finally:
        reads.close()


class SlowDisk(Reader):
    """What is read has to wait for the disk; meanwhile the first request is interrupted."""

    def __init__(self, fetcher: HeldFetcher, found: Read, interrupt: Callable[[], None]) -> None:
        super().__init__(fetcher, Metrics(), 0)  # type: ignore[arg-type]
        self._found, self._interrupts = found, [interrupt]

    def read_now(self, file: ModelFile, offset: int, out: memoryview, *, nowait: bool) -> Read:
        if nowait:
            return Read.BLOCK
        if self._interrupts:
            self._interrupts.pop()()
        out[:] = DATA[offset:offset + len(out)]
        return self._found


@pytest.mark.parametrize("found", [Read.DONE, Read.MISS])
def test_a_read_that_is_interrupted_while_it_waits_for_the_disk_is_answered_then_and_never_again(
        file: ModelFile, parked: ParkedRequests, kernel: tuple[socket.socket, socket.socket], found: Read,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed reader with O_DIRECT waits for just this answer."""
    monkeypatch.setattr("modelfs.engines.native.reads._DISK_THREADS", 1)
    theirs, ours = kernel
    connection, fetcher = Connection(ours.fileno()), HeldFetcher()

    def interrupt() -> None:
        assert parked.interrupt(2)
        connection.fail(2, errno.EINTR)

    reads = Reads(connection, SlowDisk(fetcher, found, interrupt), parked)
    try:
        for unique in (2, 4):  # one thread for both: when the second has its answer, the first was dealt with
            reads.read(unique, file, 100, 500, ReplyBuffer())
        until(lambda: not len(parked) or fetcher.waiting)
        for waiting in fetcher.waiting:
            waiting.arrived(ChunkId.of(DATA), memoryview(DATA))
        until(lambda: not len(parked))
        assert len(fetcher.waiting) == (found == Read.MISS)
        assert answers(theirs) == [(2, errno.EINTR, b""), (4, 0, DATA[100:600])]
    finally:
        reads.close()


def test_who_takes_a_request_first_has_it_alone(parked: ParkedRequests) -> None:
    for unique in range(300):
        won: list[str] = []
        parked.put(unique, Parked())
        at_once(lambda: won.append("take") if parked.take(unique) else None,  # noqa: B023
                lambda: won.append("interrupt") if parked.interrupt(unique) else None,  # noqa: B023
                lambda: won.append("take") if parked.take(unique) else None)  # noqa: B023
        assert len(won) == 1


def test_what_many_wait_for_is_loaded_once_and_a_fault_is_told_to_all() -> None:
    gate, calls, told = threading.Event(), [], []

    def load() -> None:
        calls.append(1)
        gate.wait(30)
        raise NotFound("nowhere")

    loads = Loads(lambda error: ModelfsError("broken", why=str(error)))
    for _ in range(20):
        loads.put(NotLoaded("key", load), told.append)
    gate.set()
    until(lambda: len(told) == 20)
    assert len(calls) == 1 and all(isinstance(error, NotFound) for error in told)
    loads.put(NotLoaded("key", lambda: 1 / 0), told.append)
    until(lambda: len(told) == 21)
    assert isinstance(told[-1], ModelfsError) and "broken" in str(told[-1])


def test_more_loads_than_threads_all_come_to_an_end() -> None:
    gate, told = threading.Event(), []
    loads = Loads(lambda error: ModelfsError("broken", why=str(error)))
    for number in range(200):
        loads.put(NotLoaded(number, lambda: gate.wait(30)), told.append)
    before = threading.active_count()
    assert before < 150
    gate.set()
    until(lambda: len(told) == 200)
    assert told == [None] * 200
