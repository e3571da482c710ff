"""Rate limits: the limiter's arithmetic by a clock of its own, and pushes and pulls that have one."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from results import Result
from transfer.pushed import make_repository, noise, packs, push_files, soon, write

from modelfs.stores.file_store import FileStore
from modelfs.stores.http_store import HttpStore
from modelfs.stores.throttled import Throttle, ThrottledStore
from modelfs.units import Deadline, KiB, MiB

PACK = "packs/ab/ab" + "1" * 62
RATE = 100_000
Run = Callable[..., Result]


@dataclass
class Clock:
    """Goes on when somebody sleeps, and only then."""

    now: float = 1000.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self.lock:
            self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def throttle(clock: Clock) -> Throttle:
    return Throttle(RATE, clock=clock, sleep=clock.sleep)


def test_what_moves_takes_its_size_by_the_rate_in_whatever_pieces(clock: Clock, throttle: Throttle) -> None:
    pick, moved = random.Random(1), 0
    for _ in range(500):
        size = pick.randrange(1, 50_000)
        throttle.take(size)
        moved += size
    assert clock.now - 1000 == pytest.approx(moved / RATE)


def test_time_that_was_not_used_is_worth_a_tenth_of_a_second_at_most(clock: Clock, throttle: Throttle) -> None:
    clock.now += 3600
    began = clock.now
    throttle.take(RATE)
    assert clock.now - began == pytest.approx(0.9)


def test_who_takes_at_the_same_time_waits_in_a_row() -> None:
    """A clock that stands: each sleep says when its bytes may have moved."""
    slept: list[float] = []
    throttle = Throttle(RATE, clock=lambda: 1000.0, sleep=slept.append)
    threads = [threading.Thread(target=throttle.take, args=(RATE,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(slept) == pytest.approx([1, 2, 3, 4, 5, 6, 7, 8])


@pytest.mark.parametrize("kind", ["directory", "server"])
def test_bytes_both_ways_count_and_each_once(tmp_path: Path, clock: Clock, throttle: Throttle, kind: str) -> None:
    data = noise(1, MiB + 5)
    with FaultProxy(tmp_path / "root", writable=True) as server:
        inner = FileStore(tmp_path / "root") if kind == "directory" else HttpStore(server.url)
        store = ThrottledStore(inner, throttle)
        assert store.put(PACK, data, soon(), only_if_absent=True)
        sent = (clock.now - 1000) * RATE
        assert len(data) <= sent + 0.01 < len(data) + 4 * KiB, "but for the heads of requests"
        before = clock.now
        out = bytearray(300_000)
        with store.open_range(PACK, 7, 300_000, soon()) as stream:
            stream.readinto(memoryview(out))
        assert bytes(out) == data[7:300_007] and (clock.now - before) * RATE == pytest.approx(300_000)
        before = clock.now
        found = store.get(PACK, soon(), limit=2 * MiB)
        assert found and found.data == data and (clock.now - before) * RATE == pytest.approx(len(data))


def test_an_upload_that_we_hold_up_ourselves_is_no_silence_of_the_store(tmp_path: Path) -> None:
    """The whole takes longer than the deadline, which begins anew with each piece."""
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        threading.Event().wait(min(seconds, 0.1))

    with FaultProxy(tmp_path / "root", writable=True) as server:
        store = ThrottledStore(HttpStore(server.url), Throttle(MiB, clock=lambda: 0.0, sleep=sleep))
        assert store.put(PACK, noise(2, 4 * MiB), Deadline(0.5).patient())
    assert len(waited) >= 16 and sum(seconds >= 0.1 for seconds in waited) * 0.1 > 0.5


def test_pushes_and_pulls_with_a_limit_arrive(tmp_path: Path, modelfs: Run) -> None:
    make_repository(tmp_path / "repository")
    data = noise(3, 600_000)
    source = write(tmp_path / "source", {"w.bin": data})
    with FaultProxy(tmp_path / "repository", writable=True) as server:
        done = modelfs("push", source, server.url, "lab/model", "--bwlimit", "1MB", "--json")
        assert done.code == 0 and json.loads(done.out)["changed"], done.err
        done = modelfs("pull", server.url, "lab/model", tmp_path / "out", "--bwlimit", "1 MB/s", "--json")
    assert done.code == 0 and json.loads(done.out)["downloaded_bytes"] >= len(data), done.err
    assert (tmp_path / "out/w.bin").read_bytes() == data


def test_a_pull_from_mirrors_has_one_limit_for_all_of_them(tmp_path: Path, modelfs: Run) -> None:
    """It still plans by each mirror's own layout, and fails over."""
    push_files(make_repository(tmp_path / "one"), {"w.bin": noise(4, 300_000)})
    assert modelfs("replicate", tmp_path / "one", tmp_path / "two", "--bwlimit", "2MB").code == 0
    for path in packs(tmp_path / "one"):
        path.unlink()
    config = tmp_path / "config.toml"
    config.write_text(f"[remotes.lab]\nurls = ['{tmp_path}/one', '{tmp_path}/two']\n")
    done = modelfs("pull", "lab", "lab/model", tmp_path / "out", "--bwlimit", "2MB", "--config", config)
    assert done.code == 0, done.err
    assert (tmp_path / "out/w.bin").read_bytes() == noise(4, 300_000)


@pytest.mark.parametrize(("command", "rate"), [("push", "fast"), ("pull", "1KB"), ("replicate", "0")])
def test_what_is_no_rate_is_exit_2(tmp_path: Path, modelfs: Run, command: str, rate: str) -> None:
    make_repository(tmp_path / "repository")
    (tmp_path / "source").mkdir()
    words = {"push": ("source", "repository", "lab/model"), "pull": ("repository", "lab/model", "out"),
             "replicate": ("repository", "copy")}[command]
    done = modelfs(command, *words, "--bwlimit", rate)
    assert done.code == 2 and repr(rate) in done.err, done.err
    assert not (tmp_path / "copy").exists()
