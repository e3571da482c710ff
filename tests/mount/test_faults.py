"""What a reader of a mount gets when the store, the cache, the disk or the daemon fails: right bytes or an errno."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from mount.mounting import BOTH_ENGINES, Mounted, Mounter, PushedOnce, end_process, reader, until

from modelfs.ids import ObjectId
from modelfs.units import MiB

pytestmark = BOTH_ENGINES


def fill(root: Path) -> None:
    """One file of 8 MiB of noise, in 32 chunks, and twenty small ones."""
    rng = random.Random(11)
    (root / "noise.bin").write_bytes(rng.randbytes(8 * MiB))
    for number in range(20):
        (root / f"small-{number}.json").write_bytes(rng.randbytes(3000))


@pytest.fixture
def model(pushed_once: PushedOnce) -> Path:
    """As `fill` says; nobody changes it."""
    return pushed_once(fill) / "source"


@pytest.fixture
def repo(tmp_path: Path, pushed_once: PushedOnce) -> Path:
    """With the model as acme/base:v1."""
    return Path(shutil.copytree(pushed_once(fill) / "repository", tmp_path / "repo"))


def whole(path: Path) -> bytes | int:
    """A file's bytes, or the errno that reading it came to."""
    try:
        return path.read_bytes()
    except OSError as error:
        return error.errno or 0


def objects(repo: Path, kind: str) -> list[Path]:
    return [path for path in (repo / kind).rglob("*") if path.is_file()]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def largest_pack(repo: Path) -> Path:
    return max(objects(repo, "packs"), key=lambda path: path.stat().st_size)


def test_a_flipped_byte_in_a_pack_is_eio_logged_and_counted(mount: Mounter, repo: Path, model: Path) -> None:
    pack = largest_pack(repo)
    flip(pack, 3 * MiB)
    mounted = mount(repo, "--model", "acme/base", "--deadline", "3s")
    assert whole(mounted / "noise.bin") == errno.EIO
    for name in ("small-0.json", "small-19.json"):
        assert whole(mounted / name) == (model / name).read_bytes()
    line = next(line for line in mounted.log.read_text().splitlines() if "chunk.failed" in line)
    assert "noise.bin" in line and pack.name in line and repo.as_uri() in line
    counters = mounted.status()["counters"]
    assert counters["hash_failures"] >= 2, "fetched once more before it was given up"
    assert counters["errors"] >= 1


def test_a_byte_flipped_once_on_the_wire_is_fetched_again(mount: Mounter, repo: Path, model: Path) -> None:
    with FaultProxy(repo) as server:
        server.add("flip", match="packs/", times=1, offset=100_000)
        mounted = mount(server.url, "--model", "acme/base")
        assert whole(mounted / "noise.bin") == (model / "noise.bin").read_bytes()
        counters = mounted.status()["counters"]
    assert (counters["hash_failures"], counters["errors"]) == (1, 0)
    assert counters["fetch_retries"] >= 1


def test_a_server_that_goes_in_the_middle_of_a_read_and_returns_costs_time_only(mount: Mounter, repo: Path,
                                                                              model: Path) -> None:
    with FaultProxy(repo) as server:
        mounted = mount(server.url, "--model", "acme/base", "--deadline", "30s")
        rule = server.add("drip", match="packs/", piece=65536, interval_s=0.02)
        reading = reader(mounted / "noise.bin", 0, 8 * MiB)
        until(lambda: rule.hits and server.bytes_sent("packs/") > MiB)
        server.down()
        until(lambda: mounted.status()["counters"]["fetch_retries"] > 0)
        assert reading.poll() is None
        server.clear()
        server.up()
        assert reading.communicate(timeout=30)[0] == "read\n"
        assert whole(mounted / "noise.bin") == (model / "noise.bin").read_bytes()


@pytest.mark.parametrize("kind", ["gone", "hang", "stall"])
def test_a_store_that_does_not_answer_is_eio_at_the_deadline_and_cached_bytes_are_served(
        mount: Mounter, repo: Path, model: Path, kind: str) -> None:
    with FaultProxy(repo) as server:
        mounted = mount(server.url, "--model", "acme/base", "--deadline", "2s")
        head = (model / "noise.bin").read_bytes()[:4096]
        assert os.pread(os.open(mounted / "noise.bin", os.O_RDONLY), 4096, 0) == head
        if kind == "gone":
            server.down()
        else:
            server.add(kind, match="packs/")
        reading = reader(mounted / "noise.bin", 5 * MiB, 4096)
        began = time.monotonic()
        fd = os.open(mounted / "noise.bin", os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, 4096, 0) == head
        os.close(fd)
        assert time.monotonic() - began < 2, "a cached read does not wait for the store"
        assert sorted(os.listdir(mounted.place)) == sorted(path.name for path in model.iterdir())
        assert reading.communicate(timeout=10)[0] == f"{errno.EIO}\n"
        server.clear()
        if kind == "gone":
            server.up()
        until(lambda: whole(mounted / "noise.bin") == (model / "noise.bin").read_bytes())


HANG = """
import os, sys, threading
read = lambda at: os.pread(os.open(sys.argv[1], os.O_RDONLY), 1, at)
for number in range(64):
    threading.Thread(target=read, args=((2 << 20) + number * (96 << 10),), daemon=True).start()
sys.stdin.read()
"""


def test_while_sixty_four_reads_hang_nothing_else_waits(mount: Mounter, repo: Path, model: Path) -> None:
    with FaultProxy(repo) as server:
        mounted = mount(server.url, "--model", "acme/base", "--deadline", "10m")
        head = (model / "noise.bin").read_bytes()[:4096]
        assert os.pread(os.open(mounted / "noise.bin", os.O_RDONLY), 4096, 0) == head
        server.add("hang", "packs/")
        hanging = subprocess.Popen([sys.executable, "-c", HANG, mounted / "noise.bin"], stdin=subprocess.PIPE)
        try:
            until(lambda: mounted.status()["counters"]["cache_misses"] >= 64)
            for name in sorted(path.name for path in model.iterdir()):
                assert os.stat(mounted / name).st_size == (model / name).stat().st_size
                os.close(os.open(mounted / name, os.O_RDONLY))
            assert sorted(os.listdir(mounted.place)) == sorted(path.name for path in model.iterdir())
            fd = os.open(mounted / "noise.bin", os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(fd, 4096, 0) == head
            os.close(fd)
            assert hanging.poll() is None, "all of them wait"
        finally:
            hanging.kill()
            hanging.communicate()


def test_a_missing_a_stale_and_a_false_layout_are_made_good_from_the_indexes(mount: Mounter, repo: Path,
                                                                           model: Path) -> None:
    layout, = objects(repo, "layouts")
    right = layout.read_bytes()
    for number, damage in enumerate((None, b"", right[:len(right) // 2], _with_other_packs(right))):
        layout.unlink() if damage is None else layout.write_bytes(damage)
        mounted = mount(repo, "--model", "acme/base", "--cache-dir", mount.tmp_path / f"cache{number}",
                        "--deadline", "5s", name=f"mnt{number}")
        for name in ("noise.bin", "small-3.json"):
            assert whole(mounted / name) == (model / name).read_bytes()
        mounted.umount()


def _with_other_packs(layout: bytes) -> bytes:
    """Well-formed, and every pack's digest is one that is nowhere."""
    from modelfs.repository import columns
    table = columns.parse(layout, "a layout")
    arrays = {**table.arrays, "packs": table.arrays["packs"] ^ 1}
    return columns.serialise(arrays, table.scalars)


@pytest.mark.parametrize("kind", ["histories", "manifests", "catalog.json", "modelfs.json"])
def test_a_flipped_byte_above_the_chunks_ends_the_mount_with_exit_4(mount: Mounter, repo: Path, kind: str) -> None:
    for path in [repo / kind] if kind.endswith("json") else objects(repo, kind):
        # In a catalog and modelfs.json not every byte tells; the first makes it no JSON at all.
        flip(path, 0 if kind.endswith("json") else path.stat().st_size // 2)
    (mount.tmp_path / "mnt").mkdir()
    done = mount.run("mount", repo, mount.tmp_path / "mnt", "--model", "acme/base")
    assert (done.returncode, done.stderr.count("\n")) == (4, 1), done.stderr
    assert done.stderr.startswith("modelfs: ")


def test_a_manifest_that_leaves_the_tree_is_refused_though_its_digest_is_right(mount: Mounter, repo: Path) -> None:
    """As a publisher of ill will would make it: every digest agrees, up to the catalog."""
    from modelfs.repository import columns
    manifest, = objects(repo, "manifests")
    table = columns.parse(manifest.read_bytes(), "a manifest")
    paths = table.arrays["paths"].tobytes().replace(b"small-0.json", b"../evil.json")
    evil = columns.serialise({**table.arrays, "paths": columns.texts_column([])[:0]} | {
        "paths": _bytes_column(paths)}, table.scalars)
    _republish(repo, manifest, evil)
    (mount.tmp_path / "mnt").mkdir()
    for arguments in (("mount", repo, mount.tmp_path / "mnt", "--model", "acme/base"),
                      ("pull", repo, "acme/base", mount.tmp_path / "out")):
        done = mount.run(*arguments)
        assert done.returncode == 4 and "evil" in done.stderr, done.stderr
    assert not list(mount.tmp_path.rglob("evil.json"))


def _bytes_column(data: bytes):  # type: ignore[no-untyped-def]
    import numpy as np
    return np.frombuffer(data, np.uint8)


def _republish(repo: Path, manifest: Path, data: bytes) -> None:
    """Put another manifest in the place of this one, and change every digest above it."""
    old, new = manifest.name, ObjectId.of(data).hex()
    (repo / "manifests" / new[:2]).mkdir(exist_ok=True)
    (repo / "manifests" / new[:2] / new).write_bytes(data)
    history, = objects(repo, "histories")
    text = history.read_bytes().replace(old.encode(), new.encode())
    name = ObjectId.of(text).hex()
    (repo / "histories" / name[:2]).mkdir(exist_ok=True)
    (repo / "histories" / name[:2] / name).write_bytes(text)
    catalog = repo / "catalog.json"
    catalog.write_bytes(catalog.read_bytes().replace(history.name.encode(), name.encode()))


@pytest.mark.parametrize("damage", ["flip", "cut", "swap", "junk"])
def test_damage_to_the_cache_between_mounts_is_found_and_fetched_again(mount: Mounter, repo: Path, model: Path,
                                                                     damage: str) -> None:
    cache = mount.tmp_path / "cache"
    first = mount(repo, "--model", "acme/base", "--cache-dir", cache)
    expected = {path.name: path.read_bytes() for path in model.iterdir()}
    assert {name: whole(first / name) for name in expected} == expected
    first.umount()
    rng = random.Random(3)
    files = sorted((path for path in cache.rglob("*") if path.is_file() and path.stat().st_size), key=str)
    if damage == "swap":
        data = sorted((cache / "files").rglob("*"), key=lambda path: path.stat().st_size)[-2:]
        data[0].rename(cache / "aside")
        data[1].rename(data[0])
        (cache / "aside").rename(data[1])
    for path in files if damage != "swap" else []:
        size = path.stat().st_size
        if damage == "flip":
            flip(path, rng.randrange(size))
        elif damage == "cut":
            os.truncate(path, size // 2)
        elif size < 5000:
            path.write_bytes(rng.randbytes(size))
    again = mount(repo, "--model", "acme/base", "--cache-dir", cache)
    assert {name: whole(again / name) for name in expected} == expected
    if damage == "flip":
        assert again.status()["counters"]["hash_failures"] > 0


def test_a_daemon_killed_while_it_fills_its_cache_leaves_nothing_wrong(mount: Mounter, repo: Path,
                                                                     model: Path) -> None:
    rng = random.Random(5)
    with FaultProxy(repo) as server:
        for number in range(4):
            server.add("drip", match="packs/", piece=100_000, interval_s=0.01)
            mounted = mount(server.url, "--model", "acme/base", "--cache-dir", mount.tmp_path / "cache",
                            name=f"mnt{number}")
            server.forget()
            reading = reader(mounted / "noise.bin", 0, 8 * MiB)
            stop = rng.randrange(MiB)
            until(lambda r=reading, n=stop: server.bytes_sent("packs/") > n or r.poll() is not None)
            os.kill(mounted.status()["pid"], signal.SIGKILL)
            assert reading.communicate(timeout=20)[0].strip() in (str(errno.ENOTCONN), str(errno.ECONNABORTED),
                                                                  str(errno.EIO), "read")
            assert whole(mounted / "noise.bin") in (errno.ENOTCONN, errno.ECONNABORTED)
            assert mount.run("umount", mounted.place).returncode == 0
            server.clear()
        last = mount(server.url, "--model", "acme/base", "--cache-dir", mount.tmp_path / "cache")
        assert whole(last / "noise.bin") == (model / "noise.bin").read_bytes()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_cache_disk_leaves_reads_uncached_and_right(mount: Mounter, repo: Path, model: Path,
                                                         small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(4 * MiB))
    mounted = mount(repo, "--model", "acme/base", "--cache-dir", small_disk / "cache", "--cache-size", "1GiB",
                    "--config", _config(mount.tmp_path, '[cache]\nmin_free = "0%"\n'))
    try:
        for _ in range(2):
            fd = os.open(mounted / "noise.bin", os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
            assert whole(mounted / "noise.bin") == (model / "noise.bin").read_bytes()
    finally:
        mounted.end()


def _config(directory: Path, text: str) -> Path:
    path = directory / "config.toml"
    path.write_text(text)
    return path


def test_a_full_disk_of_the_repository_is_exit_8_and_the_next_push_is_right(mount: Mounter, model: Path,
                                                                          small_disk: Path) -> None:
    repo = small_disk / "repo"
    assert mount.run("init", repo).returncode == 0
    done = mount.run("push", model, repo, "acme/base")
    assert done.returncode == 8 and done.stderr.count("\n") == 1, done.stderr
    assert mount.run("log", repo, "acme/base").returncode == 3
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    assert mount.run("push", model, repo, "acme/base").returncode == 0
    assert mount.run("verify", repo, "--read-data").returncode == 0


def test_twenty_readers_of_one_cold_file_cause_each_chunk_to_be_fetched_once(mount: Mounter, repo: Path) -> None:
    with FaultProxy(repo) as server:
        mounted: Mounted = mount(server.url, "--model", "acme/base")
        readers = [reader(mounted / "noise.bin", 0, 8 * MiB) for _ in range(20)]
        assert [each.communicate(timeout=60)[0] for each in readers] == ["read\n"] * 20
        assert server.bytes_sent("packs/") < 8.5 * MiB  # a chunk has one MiB
        pid = mounted.status()["pid"]
        mounted.umount()
        end_process(pid)


def test_verify_always_sees_damage_to_the_cache_after_the_first_read(mount: Mounter, repo: Path,
                                                                  model: Path) -> None:
    cache = mount.tmp_path / "cache"
    mounted = mount(repo, "--model", "acme/base", "--cache-dir", cache, "--verify", "always")
    expected = (model / "noise.bin").read_bytes()
    assert whole(mounted / "noise.bin") == expected
    data = max((cache / "files").rglob("*"), key=lambda path: path.stat().st_size)
    with data.open("r+b") as file:
        for at in range(1000, 8 * MiB, MiB):
            file.seek(at)
            file.write(b"damage")
    fd = os.open(mounted / "noise.bin", os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    assert whole(mounted / "noise.bin") == expected
    assert mounted.status()["counters"]["hash_failures"] == 8
