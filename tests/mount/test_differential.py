"""Random reads, maps and copies in two mounts of one cache that is too small, against the original, byte for byte."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from faultproxy import FaultProxy
from mount.mounting import BOTH_ENGINES, Mounter, PushedOnce, until

from modelfs.units import MiB

pytestmark = BOTH_ENGINES

SEED = 20241124

STORM = """
import mmap, os, random, sys, threading
mounted, original, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
names = sorted(os.path.relpath(os.path.join(d, f), original) for d, _, fs in os.walk(original) for f in fs)
names = [name for name in names if os.path.getsize(os.path.join(original, name))]
whole = {name: open(os.path.join(original, name), "rb").read() for name in names}
wrong = []
def work(thread):
    rng = random.Random(seed * 1000 + thread)
    for step in range(60):
        name = rng.choice(names)
        size = len(whole[name])
        at = rng.choice((0, rng.randrange(size), rng.randrange(size) >> 12 << 12,
                         max(0, size - rng.randrange(1, 9000))))
        n = rng.choice((1, 4096, 100_000, 1 << 20))
        path = os.path.join(mounted, name)
        if step % 6 == 0:
            fd = os.open(path, os.O_RDONLY)
            with mmap.mmap(fd, 0, prot=mmap.PROT_READ, flags=rng.choice((mmap.MAP_SHARED, mmap.MAP_PRIVATE))) as mapped:
                got = mapped[at:at + n]
        else:
            fd = os.open(path, os.O_RDONLY)
            got = os.pread(fd, n, at)
        if rng.random() < 0.3:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        if got != whole[name][at:at + n]:
            wrong.append((name, at, n, len(got)))
threads = [threading.Thread(target=work, args=(thread,)) for thread in range(6)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(wrong)
"""


def fill(root: Path) -> None:
    """24 MiB: weights in bf16 that compress by planes, noise that does not, text, small files."""
    (root / "small").mkdir()
    rng = np.random.default_rng(SEED)
    weights = rng.standard_normal(6 * MiB, dtype=np.float32) * np.float32(0.02)
    (root / "weights.bin").write_bytes((weights.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    (root / "noise.bin").write_bytes(rng.bytes(11 * MiB + 4321))
    (root / "text.txt").write_bytes(b"".join(b"line %d\n" % n for n in range(90_000)))
    for number in range(40):
        (root / "small" / f"{number}.json").write_bytes(rng.bytes(int(rng.integers(1, 6000))))


@pytest.fixture
def checkpoint(tmp_path: Path, pushed_once: PushedOnce) -> Path:
    """As `fill` says."""
    return Path(shutil.copytree(pushed_once(fill) / "source", tmp_path / "checkpoint"))


@pytest.fixture
def pushed(tmp_path: Path, pushed_once: PushedOnce) -> Path:
    """With the checkpoint as acme/base:v1."""
    return Path(shutil.copytree(pushed_once(fill) / "repository", tmp_path / "pushed"))


def storm(mounted: Path, original: Path, seed: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", STORM, str(mounted), str(original), str(seed)],
                            stdout=subprocess.PIPE, text=True)


def test_two_mounts_of_one_cache_that_is_too_small_read_every_byte_right(mount: Mounter, pushed: Path,
                                                                       checkpoint: Path, tmp_path: Path) -> None:
    with FaultProxy(pushed) as server:
        options = ("--model", "acme/base", "--cache-dir", tmp_path / "shared", "--cache-size", "6MiB")
        mounts = [mount(server.url, *options, name="one"), mount(pushed, *options, name="two")]
        readers = [storm(mounts[number % 2].place, checkpoint, SEED + number) for number in range(4)]
        assert [reader.communicate(timeout=120)[0].strip() for reader in readers] == ["[]"] * 4
        counters = [mounted.status()["counters"] for mounted in mounts]
    assert sum(counter["evictions"] for counter in counters) > 0
    assert all(counter["hash_failures"] == counter["errors"] == 0 for counter in counters)


def test_a_copy_of_the_tree_is_the_tree(mount: Mounter, pushed: Path, checkpoint: Path, tmp_path: Path) -> None:
    mounted = mount(pushed, "--model", "acme/base")
    subprocess.run(["cp", "-r", str(mounted.place), str(tmp_path / "copy")], check=True)
    assert subprocess.run(["diff", "-r", str(tmp_path / "copy"), str(checkpoint)], check=False).returncode == 0


def test_a_numpy_map_of_the_weights_equals_them(mount: Mounter, pushed: Path, checkpoint: Path) -> None:
    mounted = mount(pushed, "--model", "acme/base")
    there = np.memmap(mounted / "weights.bin", np.uint16, "r")
    assert np.array_equal(there, np.fromfile(checkpoint / "weights.bin", np.uint16))


def test_a_sequential_read_is_fetched_ahead_in_few_requests_and_a_random_one_is_not(mount: Mounter, pushed: Path,
                                                                                 checkpoint: Path) -> None:
    with FaultProxy(pushed) as server:
        mounted = mount(server.url, "--model", "acme/base")
        at = random.Random(SEED).randrange(8 * MiB)
        fd = os.open(mounted / "noise.bin", os.O_RDONLY)
        os.pread(fd, 4096, at)
        os.close(fd)
        assert server.bytes_sent("packs/") < 2 * MiB
        assert mounted.status()["counters"]["prefetched_chunks"] == 0
        server.forget()
        assert (mounted / "weights.bin").read_bytes() == (checkpoint / "weights.bin").read_bytes()
        counters = mounted.status()["counters"]
        assert counters["prefetched_used"] > 20
        assert server.requests("packs/") < 25, "48 chunks of 256 KiB, in ranges"


def test_what_is_cached_needs_no_network_at_the_next_mount(mount: Mounter, pushed: Path, checkpoint: Path) -> None:
    with FaultProxy(pushed) as server:
        first = mount(server.url, "--model", "acme/base")
        assert (first / "weights.bin").read_bytes() == (checkpoint / "weights.bin").read_bytes()
        first.umount()
        server.forget()
        again = mount(server.url, "--model", "acme/base")
        with (again / "weights.bin").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == (checkpoint / "weights.bin").read_bytes()
        assert server.bytes_sent("packs/") == 0
        assert again.status()["counters"]["chunks_verified"] >= 48, "hashed again in this mount"


def test_a_fine_tune_fetches_only_the_chunks_that_changed(mount: Mounter, pushed: Path, checkpoint: Path) -> None:
    data = bytearray((checkpoint / "weights.bin").read_bytes())
    data[5 * MiB:5 * MiB + 1000] = bytes(1000)
    with FaultProxy(pushed) as server:
        mounted = mount(server.url, "--poll", "200ms")
        assert (mounted / "acme/base/v1/weights.bin").read_bytes() == (checkpoint / "weights.bin").read_bytes()
        (checkpoint / "weights.bin").write_bytes(data)
        assert mount.run("push", checkpoint, pushed, "acme/base").returncode == 0
        server.forget()
        until(lambda: os.readlink(mounted / "acme/base/latest") == "v2")
        assert (mounted / "acme/base/latest/weights.bin").read_bytes() == bytes(data)
        assert server.bytes_sent("packs/") < MiB
