"""The ceiling of buffers holds, and neither it nor what is fetched ahead can block a reader for ever."""

from __future__ import annotations

import random

import pytest
from transfer.pushed import in_background

from modelfs.errors import DeadlinePassed
from modelfs.ids import ChunkId
from modelfs.reading.buffers import BufferPool
from modelfs.reading.recent import RecentChunks
from modelfs.units import Deadline, KiB


def test_taken_and_kept_together_never_pass_the_limit() -> None:
    pool = BufferPool(256 * KiB)
    most = [0]

    def use(seed: int) -> None:
        pick = random.Random(seed)
        for _ in range(300):
            with pool.take(pick.randrange(1, 64 * KiB), Deadline(30), demand=pick.random() < 0.5) as view:
                most[0] = max(most[0], pool.held_bytes())
                view[0] = 1

    users = [in_background(lambda n=n: use(n)) for n in range(6)]
    assert [one.result() for one in users] == [None] * 6
    # one buffer of a reader may pass it, where what was fetched ahead has its half
    assert 128 * KiB < most[0] <= (256 + 64) * KiB
    assert pool.held_bytes() <= 256 * KiB


def test_a_buffer_larger_than_the_limit_is_given_alone() -> None:
    pool = BufferPool(10)
    with pool.take(1000, Deadline(30)) as view, pytest.raises(DeadlinePassed), pool.take(1, Deadline(0)):
        assert len(view) == 1000
    with pool.take(1, Deadline(0)):
        pass


def test_what_is_fetched_ahead_leaves_readers_their_half() -> None:
    pool = BufferPool(100)
    with pool.take(50, Deadline(0), demand=False):
        with pytest.raises(DeadlinePassed), pool.take(1, Deadline(0), demand=False):
            pass
        with pool.take(50, Deadline(0)):
            pass


def test_who_waits_gets_what_comes_free() -> None:
    pool = BufferPool(100)
    with pool.take(100, Deadline(30)):
        waiting = in_background(lambda: pool.take(80, Deadline(30)).__enter__())
    assert isinstance(waiting.result(), memoryview)


def test_recent_chunks_stay_within_their_bytes() -> None:
    recent = RecentChunks(100)
    ids = [ChunkId.of(bytes([n])) for n in range(5)]
    for id in ids:
        recent.put(id, memoryview(bytes(40)))
    assert [recent.get(id) is not None for id in ids] == [False, False, False, True, True]
    recent.put(ChunkId.of(b"large"), memoryview(bytes(101)))
    assert recent.get(ChunkId.of(b"large")) is None
    recent.set_limit(0)
    assert recent.get(ids[4]) is None
