"""As many connections as make what is fetched ahead of need faster, and no more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from reading.narrow import NarrowLink
from transfer.pushed import CHUNK, eventually, make_repository, noise, push_files, reading

from modelfs.errors import ModelfsError
from modelfs.ids import ChunkId
from modelfs.reading import width
from modelfs.reading.flights import Priority, Want
from modelfs.reading.width import Width
from modelfs.units import KiB, MiB


def climbed(rate_at: Callable[[int], float], most: int, seconds: float) -> tuple[Width, list[int]]:
    """What a link whose rate depends on the number of connections makes of it, and each width that it had."""
    made, now_s, seen = Width(most), 0.0, []
    while now_s < seconds:
        now_s += MiB / rate_at(made.now)
        made.moved(MiB, True, now_s)
        seen.append(made.now)
    return made, seen


def test_it_grows_to_its_limit_where_each_connection_has_its_own_rate() -> None:
    assert climbed(lambda width: width * 20 * MiB, 14, 60)[1][-200:].count(14) > 100


def test_it_stays_small_where_all_connections_share_one_rate() -> None:
    _, seen = climbed(lambda width: 100 * MiB, 14, 60)
    assert max(seen) <= 4 and seen[-1] <= 3


def test_it_finds_the_number_beyond_which_nothing_is_gained() -> None:
    _, seen = climbed(lambda width: min(width, 6) * 20 * MiB, 14, 60)
    assert sum(6 <= width <= 8 for width in seen) > 0.7 * len(seen)


def test_it_comes_down_again_when_the_link_becomes_narrow() -> None:
    made, now_s = Width(14), 0.0
    for rate in (lambda width: width * 20 * MiB, lambda width: 100 * MiB):
        end_s = now_s + 60
        while now_s < end_s:
            now_s += MiB / rate(made.now)
            made.moved(MiB, True, now_s)
    assert made.now <= 5


def test_nothing_is_learnt_while_connections_are_idle() -> None:
    made = Width(14)
    assert not any(made.moved(MiB, False, second / 10) for second in range(10_000))


RANGE = 12  # chunks


class Told:
    """A waiter that counts."""

    def __init__(self) -> None:
        self.count = 0
        self.errors: list[ModelfsError] = []
        self._lock = threading.Lock()

    def arrived(self, id: ChunkId, decoded: memoryview) -> None:
        with self._lock:
            self.count += 1

    def failed(self, id: ChunkId, error: ModelfsError) -> None:
        self.errors.append(error)


def fetched(url: str, widest: list[int], enough: int = 10) -> None:
    """All of a file, ahead of need; widest: each number of connections that was tried, until enough of them were."""
    with reading(url, connections=10) as r:
        file, told = r.file("w.bin"), Told()
        for first in range(0, file.entry.row_count, RANGE):
            r.fetcher.ensure([Want(file, chunk) for chunk in range(first, first + RANGE)], told, Priority.HYDRATION)

        def done() -> bool:
            assert not told.errors
            widest.append(r.fetcher._width.now)
            return widest[-1] >= enough or told.count == file.entry.row_count

        eventually(done, 60)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    push_files(make_repository(tmp_path / "repository"), {"w.bin": noise(3, 60 * RANGE * CHUNK)})
    return tmp_path / "repository"


def test_more_connections_are_used_where_a_server_slows_each_of_them(root: Path) -> None:
    found: list[int] = []
    for _ in range(3):  # a busy machine may now and then be the bound itself
        with FaultProxy(root) as proxy:
            proxy.add("drip", "packs/", piece=64 * KiB, interval_s=0.1)  # so slow that even then it keeps up
            widest: list[int] = []
            fetched(proxy.url, widest, 6)
            found.append(max(widest))
        if found[-1] >= 6:
            return
    pytest.fail(f"no more than {found} at once, where each of ten would bring as much again")


def test_a_shared_link_is_not_asked_by_ever_more_connections(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(width, "_PERIOD_S", 0.1)
    found: list[int] = []
    for _ in range(3):  # a busy machine may now and then take a rise of its own for the connection's
        with FaultProxy(root) as proxy, NarrowLink(int(proxy.url.rpartition(":")[2]), 12 * MiB) as link:
            widest: list[int] = []
            fetched(f"http://127.0.0.1:{link.port}", widest)
            found.append(max(widest))
        if found[-1] <= 5:
            return
    pytest.fail(f"as many as {found} at once, on a link that 3 fill")
