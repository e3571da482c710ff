"""What one process sees of one cache: fill, read, find, pin, limits, and whose directory it is."""

from __future__ import annotations

import gc
import os
import resource
import threading
from pathlib import Path

import numpy as np
import pytest
from cache_helpers import (
    NONE,
    disk_usage,
    disk_used,
    end_worker,
    eventually,
    fill_all,
    good_rows,
    model_of,
    open_cache,
    random_model,
    start_worker,
)

from modelfs.cache.cache import Cache
from modelfs.errors import BadInput, Forbidden
from modelfs.metrics import Metrics
from modelfs.units import DiskShare, KiB, MiB


def test_nothing_is_on_disk_before_the_first_fill_and_a_filled_chunk_is_read_back_and_checked(directory: Path) -> None:
    cache, model = open_cache(directory), random_model(1, 300_000, 5000, 1)
    file = model.in_cache(cache)
    assert (file.rows, file.size, file.offsets.tolist()) == (3, 305_001, [0, 300_000, 305_000, 305_001])
    assert file.presence(1) % 2 == 0 and not os.listdir(directory / "files")
    count = file.fill(1, memoryview(model.data[1]))
    assert count & 1 and file.presence(1) == count and file.checked(1) == count and not file.checked(0)
    buffer = bytearray(100)
    assert file.read(1, 4900, memoryview(buffer), count) and buffer == model.data[1][4900:]
    assert not file.read(1, 4901, memoryview(buffer), count), "that would reach into the next chunk"
    assert not file.read(1, 0, memoryview(buffer), count + 2) and not file.read(0, 0, memoryview(buffer), 1)
    assert file.cached_bytes() == 5000
    assert [os.stat(p).st_size for p in (directory / "files").glob("*/*") if not p.suffix] == [305_001]
    cache.close()


def test_a_chunk_that_another_mount_filled_counts_as_checked_only_once_it_was_checked_here(directory: Path) -> None:
    model = random_model(2, 100_000)
    first, second = open_cache(directory), open_cache(directory)
    count = model.in_cache(first).fill(0, memoryview(model.data[0]))
    file = model.in_cache(second)
    assert file.presence(0) == count and file.checked(0) == 0
    buffer = bytearray(100_000)
    assert file.load(0, memoryview(buffer)) == count and buffer == model.data[0]
    file.mark_checked(0, count)
    assert file.checked(0) == count
    model.in_cache(first).discard(0, count)
    assert file.checked(0) == 0 and file.presence(0) != count
    again = model.in_cache(first).fill(0, memoryview(model.data[0]))
    assert again and file.checked(0) == 0, "checked at another count"
    first.close()
    second.close()


def test_the_same_list_is_the_same_object_and_a_bad_list_is_refused(directory: Path) -> None:
    cache, model = open_cache(directory), random_model(3, 10, 20)
    assert model.in_cache(cache) is not model_of(*model.data[:1]).in_cache(cache)
    held = model.in_cache(cache)
    gc.collect()
    assert model.in_cache(cache) is held
    with pytest.raises(BadInput):
        cache.file(model.ids[:1], model.lengths)
    with pytest.raises(ValueError):
        held.fill(0, memoryview(b"x"))
    cache.close()


def test_discard_frees_the_blocks_that_two_absent_chunks_share(directory: Path) -> None:
    cache, model = open_cache(directory), random_model(4, *[6000] * 20)
    file = model.in_cache(cache)
    fill_all(file, model)
    data = next(p for p in (directory / "files").glob("*/*") if not p.suffix)
    for row in range(20):
        file.discard(row, file.presence(row))
        assert good_rows(file, model) == set(range(row + 1, 20))
    assert data.stat().st_blocks == 0
    cache.close()


def test_find_gives_a_present_chunk_of_any_other_file_and_length(directory: Path) -> None:
    old = random_model(5, *[50_000] * 8)
    cache = open_cache(directory)
    fill_all(old.in_cache(cache), old)
    new = model_of(*old.data[:6], b"new" * 1000)
    found = cache.find(new.chunk_id(3), 50_000)
    assert found is not None and found[0] is old.in_cache(cache) and found[1] == 3
    assert cache.find(new.chunk_id(3), 49_999) is None and cache.find(new.chunk_id(6), 3000) is None
    found[0].discard(3, found[0].presence(3))
    assert cache.find(new.chunk_id(3), 50_000) is None
    cache.close()


def test_find_sees_what_another_daemon_and_an_earlier_mount_left(directory: Path) -> None:
    models = [random_model(seed, *[5000] * 7) for seed in range(40)]
    first = open_cache(directory)
    for model in models[:39]:
        fill_all(model.in_cache(first), model)
    second = open_cache(directory)
    for model in models[:39]:
        assert eventually(lambda m=model: second.find(m.chunk_id(6), 5000) is not None)
    fill_all(models[39].in_cache(first), models[39])
    assert eventually(lambda: second.find(models[39].chunk_id(0), 5000) is not None)
    file, row = second.find(models[39].chunk_id(0), 5000) or pytest.fail("gone")
    assert good_rows(file, models[39]) == set(range(7)) and row == 0
    first.close()
    second.close()


@pytest.mark.parametrize("small_disk", ["size=100m"], indirect=True)
def test_the_disk_usage_stays_within_the_limit_while_four_threads_fill_ten_times_as_much(small_disk: Path) -> None:
    directory, limit, metrics = small_disk / "cache", 24 * MiB, Metrics()
    cache = open_cache(directory, limit, metrics)
    models = [random_model(seed, *[MiB - 500] * 15) for seed in range(4)]
    others = [random_model(100 + seed, *[300 * KiB] * 10) for seed in range(60)]
    wrong: list[str] = []

    def work(part: int) -> None:
        for other in others[part::4]:
            for model in (models[part], other):
                file = model.in_cache(cache)
                stored = fill_all(file, model)
                if stored != len(model.data):
                    wrong.append(f"{stored} of {len(model.data)}")
                good_rows(file, model)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    most = 0
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        most = max(most, disk_used(small_disk))
    assert not wrong, "every fill must find room by eviction"
    assert limit // 2 < most <= limit + MiB
    assert metrics.snapshot()["evictions"] > 150
    assert abs(cache.status().bytes - disk_usage(directory)) <= 128 * KiB
    cache.close()


def test_a_smaller_limit_shrinks_at_once_and_pinned_files_stay(directory: Path) -> None:
    cache = open_cache(directory)
    pinned, other = random_model(6, *[MiB] * 6), random_model(7, *[MiB] * 20)
    assert pinned.in_cache(cache).pin() and pinned.in_cache(cache).pinned
    fill_all(pinned.in_cache(cache), pinned)
    fill_all(other.in_cache(cache), other)
    cache.set_limits(DiskShare(size_bytes=10 * MiB), NONE)
    assert disk_usage(directory) <= 10 * MiB + 64 * KiB
    assert len(good_rows(pinned.in_cache(cache), pinned)) == 6
    assert 1 <= len(good_rows(other.in_cache(cache), other)) <= 4
    assert cache.status().pinned_bytes == 6 * MiB and cache.status().limit_bytes == 10 * MiB
    cache.set_limits(DiskShare(size_bytes=4 * MiB), NONE)
    assert len(good_rows(pinned.in_cache(cache), pinned)) == 6 and not good_rows(other.in_cache(cache), other)
    assert other.in_cache(cache).fill(0, memoryview(other.data[0])) == 0, "no room, and nothing to drop"
    assert pinned.in_cache(cache).unpin()
    cache.set_limits(DiskShare(size_bytes=4 * MiB), NONE)
    assert disk_usage(directory) <= 4 * MiB + 64 * KiB and cache.status().pinned_bytes == 0
    assert other.in_cache(cache).fill(0, memoryview(other.data[0]))
    cache.close()


def test_min_free_shrinks_the_cache_when_the_disk_is_fuller_than_that(directory: Path) -> None:
    cache, model = open_cache(directory), random_model(8, *[MiB] * 8)
    file = model.in_cache(cache)
    fill_all(file, model)
    cache.set_limits(DiskShare(size_bytes=64 * MiB), DiskShare(fraction=1.0))
    assert not good_rows(file, model) and not file.fill(0, memoryview(model.data[0]))
    cache.set_limits(DiskShare(size_bytes=64 * MiB), NONE)
    assert file.fill(0, memoryview(model.data[0]))
    cache.close()


def test_an_older_and_larger_cache_comes_down_to_the_limit_by_itself(directory: Path) -> None:
    cache = open_cache(directory)
    for seed in range(5):
        model = random_model(seed, *[MiB] * 8)
        fill_all(model.in_cache(cache), model)
    cache.close()
    cache = open_cache(directory, 8 * MiB)
    assert eventually(lambda: disk_usage(directory) <= 8 * MiB + 64 * KiB)
    cache.close()


def test_the_longest_unused_chunks_go_first_over_all_files(directory: Path) -> None:
    cache = open_cache(directory, 40 * MiB)
    models = [random_model(seed, *[MiB] * 6) for seed in range(4)]
    for model in models:
        fill_all(model.in_cache(cache), model)
    for number, model in enumerate(models):  # the clock has 1/16 s: times are set by hand, oldest last
        handle = model.in_cache(cache)._handle
        for row in range(6):
            handle.last_use[row] = (handle.last_use[row] - 100 * number - (50 if row == 0 else 0)) & 0xFFFFFFFF
    cache.set_limits(DiskShare(size_bytes=16 * MiB), NONE)
    left = [good_rows(model.in_cache(cache), model) for model in models]
    assert left[0] == set(range(6)) and left[1] == set(range(6)) and len(left[2]) <= 3 and not left[3]
    assert 0 not in left[2] or len(left[2]) == 6
    cache.close()


def test_a_file_whose_data_is_locked_for_the_kernel_is_left_alone(directory: Path) -> None:
    import fcntl
    cache, model, other = open_cache(directory), random_model(9, *[MiB] * 4), random_model(10, *[MiB] * 4)
    file = model.in_cache(cache)
    fill_all(file, model)
    data = next(p for p in (directory / "files").glob("*/*") if not p.suffix)
    fill_all(other.in_cache(cache), other)
    with open(data, "rb") as handed_out:
        fcntl.flock(handed_out, fcntl.LOCK_SH)
        cache.set_limits(DiskShare(size_bytes=MiB), NONE)
        assert handed_out.read() == b"".join(model.data)
        assert good_rows(file, model) == {0, 1, 2, 3} and not good_rows(other.in_cache(cache), other)
    cache.set_limits(DiskShare(size_bytes=MiB), NONE)
    assert not good_rows(file, model)
    cache.close()


def test_a_directory_of_another_mode_or_owner_or_a_file_is_refused_by_name(directory: Path) -> None:
    directory.mkdir(mode=0o755)
    (directory / "something").touch()
    with pytest.raises(Forbidden, match=str(directory)):
        open_cache(directory)
    assert directory.stat().st_mode & 0o777 == 0o755
    directory.chmod(0o700)
    open_cache(directory).close()
    with pytest.raises(BadInput, match="CACHEDIR"):
        open_cache(directory / "CACHEDIR.TAG")
    if os.geteuid() == 0:
        os.chown(directory, 12345, 12345)
        with pytest.raises(Forbidden, match="12345"):
            open_cache(directory)


def test_an_empty_directory_of_our_own_becomes_private(directory: Path) -> None:
    directory.mkdir(mode=0o755)
    open_cache(directory).close()
    assert directory.stat().st_mode & 0o777 == 0o700


def test_a_new_directory_is_private_and_tagged(directory: Path) -> None:
    open_cache(directory).close()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "CACHEDIR.TAG").read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55\n")
    assert not os.listdir(directory / "limits")


def test_1200_files_in_use_need_few_descriptors(directory: Path) -> None:
    worker = start_worker("many", directory, 1200)
    try:
        out, _ = worker.communicate(timeout=120)
    finally:
        end_worker(worker)
    assert worker.returncode == 0
    most, after_close = map(int, out.split())
    assert most <= 2 * 200 + 40 and after_close <= 20


def test_a_process_out_of_descriptors_reads_on_without_the_cache(directory: Path) -> None:
    cache, models = open_cache(directory), [random_model(seed, 5000) for seed in range(30)]
    for model in models:
        fill_all(model.in_cache(cache), model)
    cache._table.halve()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, hard))
        for model in models:
            good_rows(model.in_cache(cache), model)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert eventually(lambda: all(good_rows(model.in_cache(cache), model) for model in models))
    cache.close()


def test_a_closed_cache_misses(directory: Path) -> None:
    cache, model = open_cache(directory), random_model(11, 5000)
    file = model.in_cache(cache)
    count = file.fill(0, memoryview(model.data[0]))
    cache.close()
    assert not file.read(0, 0, memoryview(bytearray(5)), count) and not file.fill(0, memoryview(model.data[0]))
    assert cache.meta.get("a", "b") is None and cache.find(model.chunk_id(0), 5000) is None


def test_a_cache_of_a_part_of_the_disk_knows_how_much_that_is(directory: Path) -> None:
    cache = Cache(directory, DiskShare(fraction=0.1), DiskShare(fraction=0.0), Metrics())
    disk = os.statvfs(directory)
    assert cache.status().limit_bytes == int(disk.f_blocks * disk.f_frsize * 0.1)
    cache.close()


def test_presence_of_all_rows_is_one_array(directory: Path) -> None:
    cache, model = open_cache(directory), random_model(12, *[100] * 50)
    file = model.in_cache(cache)
    assert not file.present().any()
    for row in range(0, 50, 3):
        file.fill(row, memoryview(model.data[row]))
    assert np.flatnonzero(file.present()).tolist() == list(range(0, 50, 3))
    cache.close()
