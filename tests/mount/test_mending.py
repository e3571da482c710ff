"""Files of which something was bad for a while: on the disk, under the kernel's own handles, or at the store."""

from __future__ import annotations

import errno
import mmap
import os
import random
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from mount.mounting import LINUX_6_9, Mounted, Mounter, until
from repository.builder import Builder

from modelfs.units import MiB

pytestmark = LINUX_6_9
DATA = random.Random(29).randbytes(4 * MiB + 1234)
BAD = 3 * MiB


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    Builder(tmp_path / "repo").push("acme/base", {"a.bin": DATA})
    return tmp_path / "repo"


def opened_by_the_kernel(mounted: Mounted, path: Path) -> bool:
    def opens() -> int:
        return int(mounted.status()["counters"]["passthrough_opens"])

    before = opens()
    os.close(os.open(path, os.O_RDONLY))
    return opens() == before + 1


def pages_dropped(fd: int) -> None:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def test_damage_that_a_scrub_finds_under_the_kernels_handle_is_mended_by_the_next_open_of_the_file(
        mount: Mounter, repo: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[cache]\nscrub = '1s'\n")
    mounted = mount(repo, "--config", config, "--model", "acme/base", "--cache-dir", tmp_path / "kept")
    path = mounted / "a.bin"
    path.read_bytes()
    until(lambda: opened_by_the_kernel(mounted, path))
    with path.open("rb", buffering=0) as held, mmap.mmap(held.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        kept = next(each for each in (tmp_path / "kept" / "files").rglob("*") if each.stat().st_size == len(DATA))
        with kept.open("r+b") as file:
            file.seek(BAD)
            file.write(bytes([DATA[BAD] ^ 1]))
        assert os.pread(held.fileno(), 1, BAD) != DATA[BAD:BAD + 1], "it is the damaged file that the kernel reads"
        until(lambda: "scrub.corrupt" in mounted.log.read_text())
        with path.open("rb", buffering=0) as new:
            assert os.fstat(new.fileno()).st_ino == os.fstat(held.fileno()).st_ino
            assert new.readall() == DATA
        until(lambda: os.pread(held.fileno(), len(DATA), 0) == DATA)
        assert mapped[:] == DATA
        until(lambda: opened_by_the_kernel(mounted, path))
        assert path.read_bytes() == DATA
    mounted.umount()


def test_a_file_with_a_chunk_that_was_bad_at_the_store_is_handed_over_once_it_is_right_there(
        mount: Mounter, repo: Path) -> None:
    with FaultProxy(repo) as server:
        server.add("flip", "packs/", offset=100)
        mounted = mount(server.url, "--model", "acme/base", "--deadline", "3s")
        path = mounted / "a.bin"
        with path.open("rb", buffering=0) as old:
            with pytest.raises(OSError) as caught:
                old.readall()
            assert caught.value.errno == errno.EIO
            assert not opened_by_the_kernel(mounted, path)
            server.clear()
            until(lambda: _read(path) == DATA)
            until(lambda: opened_by_the_kernel(mounted, path))
            pages_dropped(old.fileno())
            assert os.pread(old.fileno(), len(DATA), 0) == DATA, "the handle from before goes on"
            assert path.read_bytes() == DATA
        mounted.umount()


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
