"""Files that the kernel reads by itself once they are whole in the cache: when that begins, and what does not end it.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from mount.mounting import LINUX_6_9, Daemon, Mounted, Mounter, end_process, gone, until
from mount.readers import script
from repository.builder import Builder

from modelfs.units import MiB

pytestmark = LINUX_6_9
SIZE = 8 * MiB + 1234


@pytest.fixture
def files() -> dict[str, bytes]:
    random_bytes = random.Random(17).randbytes
    return {name: random_bytes(SIZE) for name in ("a.bin", "b.bin", "c.bin")} | {"small": random_bytes(5000)}


@pytest.fixture
def repo(tmp_path: Path, files: dict[str, bytes]) -> Path:
    Builder(tmp_path / "repo").push("acme/base", files)
    return tmp_path / "repo"


def passthrough_opens(mounted: Mounted) -> int:
    return int(mounted.status()["counters"]["passthrough_opens"])


def opened_by_the_kernel(mounted: Mounted, path: Path) -> bool:
    """Opens it, and says whether the kernel got the file."""
    before = passthrough_opens(mounted)
    os.close(os.open(path, os.O_RDONLY))
    return passthrough_opens(mounted) == before + 1


def become_whole(mounted: Mounted, path: Path) -> None:
    path.read_bytes()
    until(lambda: opened_by_the_kernel(mounted, path))


def test_a_file_that_becomes_whole_is_handed_over_and_old_handles_and_maps_go_on(
        mount: Mounter, repo: Path, files: dict[str, bytes]) -> None:
    mounted = mount(repo, "--model", "acme/base")
    assert mounted.status()["passthrough"] is True
    path, want = mounted / "a.bin", files["a.bin"]
    with path.open("rb", buffering=0) as old, mmap.mmap(old.fileno(), 0, prot=mmap.PROT_READ) as old_map:
        assert old_map[:100] == want[:100] and passthrough_opens(mounted) == 0
        become_whole(mounted, path)
        reads = mounted.status()["counters"]["reads"]
        with path.open("rb", buffering=0) as new, mmap.mmap(new.fileno(), 0, prot=mmap.PROT_READ) as new_map:
            assert os.fstat(old.fileno()).st_ino == os.fstat(new.fileno()).st_ino == path.stat().st_ino
            assert new.read() == want == new_map[:] == bytes(old_map[:])
            os.posix_fadvise(old.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(old.fileno(), 2 * SIZE, 0) == want
        assert path.read_bytes() == want
        assert mounted.status()["counters"]["reads"] >= reads
    assert opened_by_the_kernel(mounted, path)
    assert (mounted / "small").read_bytes() == files["small"]
    mounted.umount()


def test_reads_of_a_file_that_was_handed_over_do_not_reach_the_daemon(mount: Mounter, repo: Path,
                                                                    files: dict[str, bytes]) -> None:
    mounted = mount(repo, "--model", "acme/base")
    become_whole(mounted, mounted / "a.bin")
    reads = mounted.status()["counters"]["reads"]
    assert (mounted / "a.bin").read_bytes() == files["a.bin"]
    assert mounted.status()["counters"]["reads"] == reads
    for write in (lambda path: os.open(path, os.O_RDWR), lambda path: os.truncate(path, 0)):
        with pytest.raises(OSError, match="Read-only"):
            write(mounted / "a.bin")


@pytest.mark.parametrize("verify", ["changed", "mount", "always"])
def test_after_a_restart_whole_files_are_handed_over_as_cache_verify_says(
        mount: Mounter, repo: Path, files: dict[str, bytes], verify: str, tmp_path: Path) -> None:
    with FaultProxy(repo) as server:
        options = ("--model", "acme/base", "--cache-dir", tmp_path / "kept", "--verify", verify)
        first = mount(server.url, *options)
        assert (first / "a.bin").read_bytes() == files["a.bin"]
        if verify == "always":
            assert first.status()["passthrough"] is False
        else:
            become_whole(first, first / "a.bin")
        if verify == "changed":  # the check of all of it is noted on the disk a moment later
            first.umount()
            first = _restarted_until_sealed(mount, server.url, options, "a.bin")
        first.umount()
        server.forget()
        again = mount(server.url, *options)
        path = again / "a.bin"
        if verify == "changed":
            assert opened_by_the_kernel(again, path)
            assert again.status()["counters"]["chunks_verified"] == 0
        elif verify == "mount":
            until(lambda: opened_by_the_kernel(again, path))
            assert again.status()["counters"]["chunks_verified"] >= SIZE >> 16
        assert path.read_bytes() == files["a.bin"]
        if verify == "always":
            assert passthrough_opens(again) == 0
        assert server.bytes_sent("packs/") == 0
        again.umount()


def _restarted_until_sealed(mount: Mounter, url: str, options: tuple[object, ...], name: str) -> Mounted:
    for _ in range(10):
        mounted = mount(url, *options)
        if opened_by_the_kernel(mounted, mounted / name):
            return mounted
        become_whole(mounted, mounted / name)
        mounted.umount()
    raise AssertionError("it is never believed")


def kill_all(mounted: Daemon) -> None:
    worker = mounted.worker
    os.kill(mounted.keeper, signal.SIGKILL)
    end_process(worker)
    end_process(mounted.keeper)


MAPPER = """
import ctypes, mmap, os, sys
file, size = os.open(sys.argv[1], os.O_RDONLY), os.path.getsize(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
at = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file, 0)
os.close(file)  # Python's own map would keep it open
print("ready", flush=True)
sys.stdin.readline()
print(ctypes.string_at(at, size) == open(sys.argv[2], "rb").read(), flush=True)
"""
"""A map of a file, of which nothing else is open."""


@pytest.mark.parametrize("befalls", ["everything is killed", "the worker is killed"])
def test_a_handed_over_file_stays_right_while_others_are_evicted_and_can_be_evicted_once_it_is_closed(
        mount: Mounter, repo: Path, files: dict[str, bytes], tmp_path: Path, befalls: str) -> None:
    options = ("--model", "acme/base", "--cache-dir", tmp_path / "kept", "--cache-size", "13 MiB")
    mount.environ["MODELFS_FETCH_MEMORY"] = "16 MiB"  # of which it keeps little that the cache does not take
    first = mount.daemon(repo, *options, name="first")
    become_whole(first, first / "a.bin")
    want = files["a.bin"]
    with (first / "a.bin").open("rb", buffering=0) as held, mmap.mmap(held.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        second: Mounted = first
        if befalls == "the worker is killed":
            first.upgraded(first.kill_worker())
        else:
            kill_all(first)
            first.umount("--lazy")
            second = mount(repo, *options, name="second")
        for _ in range(2):
            for name in ("b.bin", "c.bin"):  # it is the least recently used, and there is no room beside it
                assert read_anew(second / name) == files[name]
        os.posix_fadvise(held.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(held.fileno(), SIZE, 0) == want
        assert mapped[:] == want  # only now: a map of what is gone would end us
        assert cached(second, "a.bin") == SIZE
    until(lambda: _evicted(second, files))
    second.umount()


@pytest.mark.parametrize("befalls", ["nothing", "everything is killed", "the worker is killed"])
def test_a_map_whose_file_is_closed_stays_right_when_the_file_is_evicted(
        mount: Mounter, repo: Path, files: dict[str, bytes], tmp_path: Path, befalls: str) -> None:
    """It is the backing file that the kernel maps, so closing the handle is all that the daemon hears of."""
    options = ("--model", "acme/base", "--cache-dir", tmp_path / "kept", "--cache-size", "13 MiB")
    mount.environ["MODELFS_FETCH_MEMORY"] = "16 MiB"
    first = mount.daemon(repo, *options, name="first")
    become_whole(first, first / "a.bin")
    (tmp_path / "a.bin").write_bytes(files["a.bin"])
    opens = passthrough_opens(first)
    with script(MAPPER, first / "a.bin", tmp_path / "a.bin") as mapper:
        assert passthrough_opens(first) == opens + 1
        second: Mounted = first
        if befalls == "the worker is killed":
            first.upgraded(first.kill_worker())
        elif befalls == "everything is killed":
            kill_all(first)
            first.umount("--lazy")
            second = mount(repo, *options, name="second")
        until(lambda: _evicted(second, files))
        assert mapper.stdin and mapper.stdout
        mapper.stdin.write("\n")
        mapper.stdin.flush()
        assert mapper.stdout.readline() == "True\n", "a signal ended it" if mapper.wait(30) < 0 else "other bytes"
    assert read_anew(second / "a.bin") == files["a.bin"]
    second.umount()


def read_anew(path: Path) -> bytes:
    """Not from the kernel's pages."""
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.readall()


def cached(mounted: Mounted, name: str) -> int:
    return int(os.getxattr(mounted / name, "user.modelfs.cached"))


def _evicted(mounted: Mounted, files: dict[str, bytes]) -> bool:
    for name in ("b.bin", "c.bin"):
        assert read_anew(mounted / name) == files[name]
    return cached(mounted, "a.bin") < SIZE


def test_a_file_that_is_evicted_after_it_was_looked_up_is_read_through_the_daemon_and_later_by_the_kernel(
        mount: Mounter, repo: Path, files: dict[str, bytes], tmp_path: Path) -> None:
    mounted = mount(repo, "--model", "acme/base", "--cache-dir", tmp_path / "kept")
    path = mounted / "a.bin"
    become_whole(mounted, path)
    assert mount.run("cache", "clear", "--cache-dir", tmp_path / "kept").returncode == 0
    assert not opened_by_the_kernel(mounted, path), "its name still means the id for passthrough"
    with path.open("rb", buffering=0) as old:
        assert old.readall() == files["a.bin"]
        become_whole_again: Callable[[], bool] = lambda: opened_by_the_kernel(mounted, path)  # noqa: E731
        assert path.read_bytes() == files["a.bin"]
    until(become_whole_again)
    assert path.read_bytes() == files["a.bin"]


def test_many_opens_of_one_file_have_one_backing_and_its_last_release_lets_it_go(
        mount: Mounter, repo: Path, files: dict[str, bytes]) -> None:
    mounted = mount.daemon(repo, "--model", "acme/base")
    become_whole(mounted, mounted / "a.bin")
    before = passthrough_opens(mounted)
    held = [os.open(mounted / "a.bin", os.O_RDONLY) for _ in range(300)]
    try:
        assert passthrough_opens(mounted) == before + 300
        mounted.upgraded(mounted.kill_worker())
        held += [os.open(mounted / "a.bin", os.O_RDONLY) for _ in range(300)]
        assert all(os.pread(fd, 100, SIZE - 50) == files["a.bin"][-50:] for fd in held)
    finally:
        for fd in held:
            os.close(fd)
    mounted.umount()
    assert gone(mounted.keeper)


def test_a_scrub_finds_what_the_disk_changed_in_a_cache_and_the_file_is_read_right(
        mount: Mounter, repo: Path, files: dict[str, bytes], tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[cache]\nscrub = '1s'\n")
    mounted = mount(repo, "--config", config, "--model", "acme/base", "--cache-dir", tmp_path / "kept")
    become_whole(mounted, mounted / "a.bin")
    kept = next(path for path in (tmp_path / "kept" / "files").rglob("*") if path.stat().st_size == SIZE)
    with kept.open("r+b") as file:
        file.seek(3 * MiB)
        file.write(bytes([files["a.bin"][3 * MiB] ^ 1]))
    until(lambda: "scrub.corrupt" in mounted.log.read_text())
    until(lambda: read_anew(mounted / "a.bin") == files["a.bin"])
