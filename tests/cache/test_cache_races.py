"""Several threads and processes at one cache: what a reader is given is right, and the limits of all hold."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from cache_helpers import (
    disk_usage,
    disk_used,
    end_worker,
    eventually,
    fill_all,
    good_rows,
    open_cache,
    random_model,
    start_worker,
)

from modelfs.cache import sparse_file
from modelfs.cache.cache_file import Read
from modelfs.cache.system import punch, write_all
from modelfs.units import KiB, MiB


@pytest.mark.parametrize("small_disk", ["size=64m"], indirect=True)
@pytest.mark.parametrize("rows, length, enough", [(4, MiB + 300, 40), (2, 20_300, 300)])
def test_a_read_on_tmpfs_is_never_true_with_other_bytes(small_disk: Path, rows: int, length: int, enough: int) -> None:
    _race(small_disk / "cache", rows, length, enough)


def test_a_read_on_disk_is_never_true_with_other_bytes(directory: Path) -> None:
    _race(directory, 4, MiB + 300, 40)


def _race(directory: Path, rows: int, length: int, enough: int) -> None:
    """Read with a thread and a process that punch and fill, until `enough` reads were refused for that."""
    model = random_model(77, *[length] * rows)
    worker = start_worker("churn", directory, 77, rows, length)
    cache = open_cache(directory)
    file = model.in_cache(cache)
    wrong: list[tuple[int, int]] = []
    counts = {"read": 0, "raced": 0, "read across": 0}
    whole = b"".join(model.data)
    stop = threading.Event()

    def churn() -> None:
        pick = random.Random(1)
        while not stop.is_set():
            row = pick.randrange(rows)
            file.discard(row, file.presence(row))
            file.fill(row, memoryview(model.data[row]))

    def read(seed: int) -> None:
        pick, buffer = random.Random(seed), bytearray(length)
        view = memoryview(buffer)
        while not stop.is_set():
            row = pick.randrange(rows)
            start = pick.randrange(0, length // 4)
            count = file.presence(row)
            if file.read(row, start, view[start:], count):
                counts["read"] += 1
                if view[start:] != model.data[row][start:]:
                    wrong.append((row, start))
            elif count & 1:
                counts["raced"] += 1  # the second look, or the first one again, said no
            at = row * length + start
            across = view[:min(length, rows * length - at)]  # up to two chunks
            if file.read_at(at, across, nowait=False) is Read.DONE:
                counts["read across"] += 1
                if across != whole[at:at + len(across)]:
                    wrong.append((row, at))

    threads = [threading.Thread(target=churn), *(threading.Thread(target=read, args=(seed,)) for seed in (2, 3))]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # the daemon's is as short; 5 ms make races rare
    try:
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
        for thread in threads:
            thread.start()
        assert eventually(lambda: bool(wrong) or (counts["raced"] > enough and counts["read"] > 300
                          and counts["read across"] > 100), 60)
        stop.set()
        for thread in threads:
            thread.join()
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        end_worker(worker)
        cache.close()
    assert not wrong


def test_a_chunk_is_absent_before_its_blocks_go_and_until_its_bytes_are_written(
        directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, model = open_cache(directory), random_model(9, 50_000, 50_000)
    file = model.in_cache(cache)
    fill_all(file, model)
    seen: list[tuple[str, int]] = []

    def punched(fd: int, start: int, length: int) -> bool:
        seen.append(("punch", file.presence(0) & 1))
        return punch(fd, start, length)

    def written(fd: int, data: memoryview, offset: int) -> None:
        write_all(fd, data, offset)
        seen.append(("write", file.presence(0) & 1))

    monkeypatch.setattr(sparse_file, "punch", punched)
    monkeypatch.setattr(sparse_file, "write_all", written)
    file.discard(0, file.presence(0))
    file.fill(0, memoryview(model.data[0]))
    assert seen == [("punch", 0), ("write", 0)] and file.presence(0) & 1
    cache.close()


def test_of_two_daemons_limits_the_smaller_holds_until_its_daemon_has_gone(directory: Path) -> None:
    cache, model = open_cache(directory, 48 * MiB), random_model(1, *[MiB] * 40)
    file = model.in_cache(cache)
    assert fill_all(file, model) == 40
    small = start_worker("hold", directory, 12 * MiB)
    try:
        assert small.stdout is not None and small.stdout.readline() == "ready\n"
        assert eventually(lambda: disk_usage(directory) <= 12 * MiB + 64 * KiB)
        assert eventually(lambda: cache.status().limit_bytes == 12 * MiB)
        fill_all(file, model)
        assert disk_usage(directory) <= 12 * MiB + 64 * KiB
        small.send_signal(signal.SIGKILL)
        assert eventually(lambda: cache.status().limit_bytes == 48 * MiB)
        assert len(list((directory / "limits").iterdir())) == 1
        assert fill_all(file, model) == 40 and good_rows(file, model) == set(range(40))
    finally:
        end_worker(small)
        cache.close()


@pytest.mark.parametrize("small_disk", ["size=100m"], indirect=True)
def test_two_processes_that_fill_one_directory_stay_within_the_limit(small_disk: Path) -> None:
    directory, limit = small_disk / "cache", 20 * MiB
    workers = [start_worker("fill", directory, seed, limit) for seed in (1000, 2000)]
    most, lines = 0, [0, 0]

    def count(worker: int) -> None:
        out = workers[worker].stdout
        assert out is not None
        for _ in out:
            lines[worker] += 1

    threads = [threading.Thread(target=count, args=(number,)) for number in range(2)]
    try:
        for thread in threads:
            thread.start()
        end = time.monotonic() + 60
        while min(lines) < 150 and time.monotonic() < end:
            most = max(most, disk_used(small_disk))
    finally:
        for worker in workers:
            worker.kill()
        for thread in threads:
            thread.join()
        for worker in workers:
            end_worker(worker)
    assert min(lines) >= 150 and limit // 2 < most <= limit + MiB


def test_a_killed_filler_leaves_no_wrong_chunk_and_no_uncounted_block(directory: Path) -> None:
    pick = random.Random(5)
    for round_ in range(5):
        first = round_ * 100
        worker = start_worker("fill", directory, first, 64 * MiB)
        try:
            assert worker.stdout is not None
            for _ in range(pick.randrange(1, 40)):
                assert worker.stdout.readline()
        finally:
            end_worker(worker)
        cache = open_cache(directory)
        left = 0
        for seed in range(first, first + 4):
            model = random_model(seed, *[512 * KiB + 100] * 16)
            present = int(model.in_cache(cache).present().sum())
            assert len(good_rows(model.in_cache(cache), model)) == present
            left += present
        assert left
        assert eventually(lambda c=cache: abs(c.status().bytes - disk_usage(directory)) <= 64 * KiB)
        cache.close()


def test_blocks_of_a_chunk_that_was_never_finished_are_freed_at_the_next_open(directory: Path) -> None:
    cache, model = open_cache(directory), random_model(6, *[256 * KiB] * 8)
    model.in_cache(cache).fill(0, memoryview(model.data[0]))
    cache.close()
    data = next(p for p in (directory / "files").glob("*/*") if not p.suffix)
    with open(data, "r+b") as file:
        file.seek(4 * 256 * KiB)
        file.write(b"x" * 512 * KiB)
    assert data.stat().st_blocks * 512 >= 768 * KiB
    (directory / "files" / data.parent.name / ("f" * 64)).write_bytes(b"left over" * 1000)
    cache = open_cache(directory)
    assert eventually(lambda: data.stat().st_blocks * 512 <= 260 * KiB)
    assert eventually(lambda: not (data.parent / ("f" * 64)).exists())
    assert good_rows(model.in_cache(cache), model) == {0}
    cache.close()
