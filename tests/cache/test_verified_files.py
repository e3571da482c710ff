"""Files that are wholly cached and checked: read in one piece, handed to the kernel, sealed for the next mount."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import select
import signal
from pathlib import Path

import numpy as np
import pytest
from cache_helpers import (
    NONE,
    data_path,
    end_worker,
    eventually,
    fill_all,
    flip,
    good_rows,
    open_cache,
    random_model,
    start_worker,
)

from modelfs.cache.cache import Cache
from modelfs.cache.cache_file import Read
from modelfs.units import DiskShare, KiB, MiB

LENGTH = 256 * KiB


def sealed_by_another(directory: Path, seed: int = 1, rows: int = 8) -> None:
    worker = start_worker("seal", directory, seed, rows, LENGTH)
    try:
        worker.communicate(timeout=60)
    finally:
        end_worker(worker)
    assert worker.returncode == 0


def bytes_read() -> int:
    """By read calls of this process so far, from the page cache or not."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar:"))


def test_a_read_across_chunks_needs_each_of_them_present_and_checked(cache: Cache, directory: Path) -> None:
    model = random_model(1, 5000, 300, 7000)
    data, file = b"".join(model.data), model.in_cache(cache)
    buffer = bytearray(2000)
    view = memoryview(buffer)
    assert file.read_at(4000, view, nowait=False) is Read.MISS
    fill_all(file, model)
    assert file.read_at(4000, view, nowait=False) is Read.DONE and buffer == data[4000:6000]
    other = open_cache(directory)
    again = model.in_cache(other)
    assert again.read_at(4000, view, nowait=False) is Read.MISS, "nobody checked it in this mount"
    assert again.unchecked().tolist() == [0, 1, 2] and not again.whole()
    good_rows(again, model)
    assert not len(again.unchecked()) and again.whole()
    file.discard(1, file.presence(1))
    assert not again.whole() and not len(again.unchecked())
    assert again.read_at(4000, view, nowait=False) is Read.MISS
    assert again.read_at(5300, view, nowait=False) is Read.DONE and buffer == data[5300:7300]
    assert again.read_at(0, view, nowait=False) is Read.DONE and buffer == data[:2000]
    other.close()


def _left_the_page_cache(fd: int, offset: int) -> bool:
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP
    return False


def test_a_read_that_must_not_wait_does_not_read_from_the_disk(cache: Cache, directory: Path) -> None:
    model = random_model(2, MiB, MiB)
    file = model.in_cache(cache)
    fill_all(file, model)
    view = memoryview(bytearray(64 * KiB))
    assert file.read_at(MiB - 1000, view, nowait=True) is Read.DONE
    with open(data_path(directory, file), "rb") as data:
        if not eventually(lambda: _left_the_page_cache(data.fileno(), MiB - 1000)):
            pytest.skip("this filesystem cannot tell whether a read would wait")
    assert file.read_at(MiB - 1000, view, nowait=True) is Read.BLOCK
    assert file.read_at(MiB - 1000, view, nowait=False) is Read.DONE
    assert file.read_at(MiB - 1000, view, nowait=True) is Read.DONE
    assert view == (model.data[0] + model.data[1])[MiB - 1000:MiB - 1000 + len(view)]


def test_where_the_filesystem_cannot_tell_a_read_waits(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(3, 5000)
    file = model.in_cache(cache)
    fill_all(file, model)
    real, flags_seen = os.preadv, []

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        flags_seen.append(flags)
        if flags:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    view = memoryview(bytearray(5000))
    for _ in range(3):
        assert file.read_at(0, view, nowait=True) is Read.DONE and view == model.data[0]
    assert flags_seen == [os.RWF_NOWAIT, 0, 0, 0], "it is asked once"


def test_reading_keeps_chunks_recent_to_the_second(cache: Cache) -> None:
    model = random_model(4, 5000, 5000)
    file = model.in_cache(cache)
    fill_all(file, model)
    handle = file._handle
    now = handle.last_use[0]
    handle.last_use[0] = (now - 5) & 0xFFFFFFFF
    handle.last_use[1] = (now - 500) & 0xFFFFFFFF
    assert file.read_at(4000, memoryview(bytearray(2000)), nowait=False) is Read.DONE
    assert handle.last_use[0] == (now - 5) & 0xFFFFFFFF, "a second has not gone by: the map's page stays clean"
    assert (handle.last_use[1] - now) & 0xFFFFFFFF < 160


def test_the_kernel_gets_a_descriptor_of_a_whole_checked_file_and_nothing_of_it_is_evicted(cache: Cache) -> None:
    model = random_model(5, *[MiB] * 4)
    file, whole = model.in_cache(cache), b"".join(model.data)
    assert file.backing() is None
    for row in range(3):
        file.fill(row, memoryview(model.data[row]))
    assert file.backing() is None and not file.whole()
    file.fill(3, memoryview(model.data[3]))
    backing = file.backing()
    assert backing is not None and os.pread(backing.fd, 5 * MiB, 0) == whole
    cache.set_limits(DiskShare(size_bytes=MiB), NONE)
    assert file.whole() and os.pread(backing.fd, 5 * MiB, 0) == whole
    backing.close()
    cache.set_limits(DiskShare(size_bytes=MiB), NONE)
    assert not file.whole() and file.backing() is None


def test_a_file_in_which_somebody_punches_just_now_is_not_handed_out(cache: Cache, directory: Path) -> None:
    model = random_model(6, 5000)
    file = model.in_cache(cache)
    fill_all(file, model)
    with open(data_path(directory, file), "rb") as punching:
        fcntl.flock(punching, fcntl.LOCK_EX)
        assert file.whole() and file.backing() is None
    backing = file.backing()
    assert backing is not None
    backing.close()


def test_a_data_file_that_was_replaced_is_not_handed_out(cache: Cache, directory: Path) -> None:
    model = random_model(7, 5000, 5000)
    file = model.in_cache(cache)
    fill_all(file, model)
    path = data_path(directory, file)
    path.rename(path.with_name("away"))
    path.write_bytes(bytes(10_000))
    assert file.backing() is None
    path.unlink()
    assert file.backing() is None


def test_a_file_of_the_kernel_is_not_evicted_after_its_daemon_was_killed(directory: Path) -> None:
    model, rows = random_model(8, *[LENGTH] * 8), 8
    cache = open_cache(directory)
    file, path = model.in_cache(cache), data_path(directory, model.in_cache(cache))
    fill_all(file, model)
    daemon = start_worker("hand_out", directory, 8, rows, LENGTH)
    child = 0
    try:
        assert daemon.stdout is not None
        child = int(daemon.stdout.readline())
        daemon.send_signal(signal.SIGKILL)
        daemon.wait(30)
        cache.set_limits(DiskShare(size_bytes=MiB), NONE)
        assert path.read_bytes() == b"".join(model.data) and file.whole()
        handle = os.pidfd_open(child)
        os.kill(child, signal.SIGKILL)
        assert select.select([handle], [], [], 30)[0]
        os.close(handle)
        child = 0
        cache.set_limits(DiskShare(size_bytes=MiB), NONE)
        assert len(good_rows(file, model)) < 4 and file.backing() is None
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
        end_worker(daemon)
        cache.close()


def test_a_bad_chunk_is_a_miss_while_the_kernel_has_the_file_and_a_fill_mends_it_in_place(
        cache: Cache, directory: Path) -> None:
    model = random_model(9, *[LENGTH] * 4)
    file, whole = model.in_cache(cache), b"".join(model.data)
    fill_all(file, model)
    backing = file.backing()
    assert backing is not None
    flip(data_path(directory, file), LENGTH + 7)
    assert os.pread(backing.fd, len(whole), 0) != whole
    file.discard(1, file.presence(1))
    assert not file.presence(1) & 1 and file.backing() is None
    assert len(os.pread(backing.fd, LENGTH, LENGTH).strip(b"\0")) > LENGTH - 10, "its bytes stay: zeros would be worse"
    assert file.fill(1, memoryview(model.data[1])) & 1
    assert os.pread(backing.fd, len(whole), 0) == whole and file.whole()
    backing.close()


def test_a_sealed_file_is_whole_in_a_later_mount_without_reading_it(directory: Path) -> None:
    sealed_by_another(directory)
    model = random_model(1, *[LENGTH] * 8)
    cache = open_cache(directory, verify="changed")
    file, before = model.in_cache(cache), bytes_read()
    backing = file.backing()
    assert backing is not None and file.whole()
    assert bytes_read() - before < LENGTH
    assert os.pread(backing.fd, 8 * LENGTH, 0) == b"".join(model.data)
    backing.close()
    cache.close()
    strict = open_cache(directory, verify="mount")
    assert not model.in_cache(strict).whole() and len(model.in_cache(strict).unchecked()) == 8
    strict.close()


def test_what_is_read_locked_and_opened_keeps_its_seal(directory: Path) -> None:
    sealed_by_another(directory)
    model = random_model(1, *[LENGTH] * 8)
    strict = open_cache(directory)
    file = model.in_cache(strict)
    assert good_rows(file, model) == set(range(8))
    backing = file.backing()
    assert backing is not None
    backing.close()
    assert file.pin() and file.unpin()
    strict.close()
    cache = open_cache(directory, verify="changed")
    assert model.in_cache(cache).whole()
    cache.close()


def _write_a_byte(path: Path) -> None:
    flip(path, 3 * LENGTH + 5)


def _write_and_set_the_times_back(path: Path) -> None:
    before = path.stat()
    flip(path, 3 * LENGTH + 5)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _put_another_in_its_place(path: Path) -> None:
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)
    flip(path, 3 * LENGTH + 5)


@pytest.mark.parametrize("change", [_write_a_byte, _write_and_set_the_times_back, _put_another_in_its_place])
def test_a_changed_file_is_not_believed_and_its_bad_chunk_is_found(directory: Path, change: object) -> None:
    sealed_by_another(directory)
    model = random_model(1, *[LENGTH] * 8)
    cache = open_cache(directory, verify="changed")
    file = model.in_cache(cache)
    cache.close()
    assert callable(change)
    change(data_path(directory, file))
    cache = open_cache(directory, verify="changed")
    file = model.in_cache(cache)
    assert not file.whole() and file.unchecked().tolist() == list(range(8))
    assert good_rows(file, model) == {0, 1, 2, 4, 5, 6, 7}
    assert file.fill(3, memoryview(model.data[3])) & 1
    cache.close()
    again = open_cache(directory, verify="changed")
    assert model.in_cache(again).whole(), "mended, and sealed anew"
    again.close()


@pytest.mark.parametrize("at", range(8))
def test_a_count_that_changed_in_the_map_breaks_the_seal(directory: Path, at: int) -> None:
    sealed_by_another(directory)
    model = random_model(1, *[LENGTH] * 8)
    map_path = next((directory / "files").glob("*/*.map"))
    presence = map_path.stat().st_size - 8
    with open(map_path, "r+b") as file:
        count = os.pread(file.fileno(), 1, presence + at)[0]
        os.pwrite(file.fileno(), bytes([(count + 2) & 0xFF]), presence + at)
    cache = open_cache(directory, verify="changed")
    assert not model.in_cache(cache).whole() and len(model.in_cache(cache).unchecked()) == 8
    cache.close()


def test_what_another_mount_drops_and_fills_again_is_not_believed_without_a_new_seal(directory: Path) -> None:
    sealed_by_another(directory)
    model = random_model(1, *[LENGTH] * 8)
    strict = open_cache(directory)
    file = model.in_cache(strict)
    file.discard(2, file.presence(2))
    file.fill(2, memoryview(model.data[2]))
    strict.close()
    cache = open_cache(directory, verify="changed")
    file = model.in_cache(cache)
    assert not file.whole() and file.checked(2) == 0
    good_rows(file, model)
    cache.close()
    again = open_cache(directory, verify="changed")
    assert model.in_cache(again).whole()
    again.close()


def test_a_map_from_before_there_were_seals_is_unsealed(directory: Path) -> None:
    sealed_by_another(directory)
    model = random_model(1, *[LENGTH] * 8)
    map_path = next((directory / "files").glob("*/*.map"))
    with open(map_path, "r+b") as file:
        os.pwrite(file.fileno(), bytes(128 - 34), 34)
    cache = open_cache(directory, verify="changed")
    assert not model.in_cache(cache).whole()
    assert good_rows(model.in_cache(cache), model) == set(range(8))
    cache.close()


def test_a_chunk_that_never_came_is_a_miss_whatever_the_counts_begin_with(
        cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "randbelow", lambda below: 0)
    model = random_model(11, 5000, 5000)
    file = model.in_cache(cache)
    assert file.pin() and file.presence(0) == 0
    view = memoryview(bytearray(1000))
    assert file.read_at(4500, view, nowait=False) is Read.MISS and file.read_at(0, view, nowait=False) is Read.MISS
    assert not file.whole() and file.backing() is None
    file.fill(0, memoryview(model.data[0]))
    assert file.read_at(4500, view, nowait=False) is Read.MISS and file.read_at(0, view, nowait=False) is Read.DONE


def test_a_chunk_shared_by_many_rows_counts_in_each(cache: Cache) -> None:
    model = random_model(10, 5000)
    file = cache.file(np.repeat(model.ids, 5, axis=0), np.repeat(model.lengths, 5))
    for row in range(5):
        assert not file.whole()
        file.fill(row, memoryview(model.data[0]))
        file.fill(row, memoryview(model.data[0]))
    assert file.whole()
