"""`modelfs cache` beside real mounts: what was warmed serves without a network, and nothing read is ever wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faultproxy import FaultProxy
from mount.mounting import Mounter, until

from modelfs.app import caching
from modelfs.config import load_config
from modelfs.units import MiB


def done(mount: Mounter, *arguments: object, code: int = 0) -> str:
    """What the command printed, standard error after standard output."""
    ended = mount.run(*arguments)
    assert ended.returncode == code, ended.stderr
    return ended.stdout + ended.stderr


def told(mount: Mounter, *arguments: object) -> dict[str, Any]:
    ended = mount.run(*arguments, "--json")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert isinstance(found, dict)
    return found


def cached(mount: Mounter) -> dict[str, dict[str, Any]]:
    """By path."""
    return {at["path"] or at["file"]: at for at in told(mount, "cache", "ls")["files"]}


def push(mount: Mounter, source: Path, repository: Path, model: str = "acme/base") -> None:
    done(mount, "push", source, repository, model)


def test_a_warmed_model_is_mounted_and_read_with_the_network_gone(mount: Mounter, repository: Path,
                                                                  source: Path) -> None:
    with FaultProxy(repository) as server:
        warmed = told(mount, "cache", "warm", server.url, "acme/base", "--pin")
        size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
        assert (warmed["model"], warmed["version"], warmed["files"]) == ("acme/base", "v1", 5)
        assert warmed["bytes"] == warmed["fetched_bytes"] == size and warmed["pinned"] is True
        server.down()
        whole = mount(server.url, "--deadline", "1s", name="whole")
        alone = mount(server.url, "--deadline", "1s", "--model", "acme/base:v1", name="alone")
        for path in source.rglob("*"):
            if path.is_file():
                name = path.relative_to(source)
                assert (whole.place / "acme/base/latest" / name).read_bytes() == path.read_bytes()
                assert (alone.place / name).read_bytes() == path.read_bytes()
        assert whole.status()["cache"]["pinned_bytes"] == size


def test_warming_again_fetches_only_what_is_missing_and_globs_choose(mount: Mounter, repository: Path) -> None:
    with FaultProxy(repository) as server:
        first = told(mount, "cache", "warm", server.url, "acme/base", "deep", "*.sh")
        assert first["files"] == 4 and "big.bin" not in cached(mount)
        server.add("hang", "packs/", times=None)
        assert told(mount, "cache", "warm", server.url, "acme/base", "deep/er/small.bin")["fetched_bytes"] == 0
        server.clear()
        server.forget()
        rest = told(mount, "cache", "warm", server.url, "acme/base")
        assert rest["fetched_bytes"] == 8 * MiB + 12_345
        assert server.bytes_sent("packs/") < 8 * MiB + 64_000
        assert "Did you mean big.bin" in done(mount, "cache", "warm", server.url, "acme/base", "bigg.bin", code=3)
        assert "Did you mean acme/base" in done(mount, "cache", "warm", server.url, "acme/bas", code=3)


def test_warming_goes_through_a_mount_that_has_the_cache(mount: Mounter, repository: Path, source: Path) -> None:
    with FaultProxy(repository) as server:
        mounted = mount(server.url, "--cache-dir", mount.tmp_path / "shared")
        mount(server.url, "--cache-dir", mount.tmp_path / "another", name="other")
        warmed = told(mount, "cache", "warm", server.url, "acme/base", "--pin", "--cache-dir", "shared")
        assert warmed["through"] == str(mounted.place)
        status = mounted.status()
        assert status["counters"]["chunks_fetched"] >= 33
        assert status["cache"]["pinned_bytes"] == warmed["bytes"]
        server.add("hang", "packs/", times=None)
        assert (mounted / "acme/base/v1/big.bin").read_bytes() == (source / "big.bin").read_bytes()
        assert "no model" in done(mount, "cache", "warm", server.url, "acme/none", "--cache-dir", "shared", code=3)


def test_more_than_fits_is_refused_with_both_sizes_before_anything_is_fetched(mount: Mounter,
                                                                              repository: Path) -> None:
    with FaultProxy(repository) as server:
        mount.environ["MODELFS_CACHE_SIZE"] = "6 MiB"
        said = done(mount, "cache", "warm", server.url, "acme/base", code=8)
        assert len(re.findall(r"MiB \(\d+ bytes\)", said)) == 2 and len(said.splitlines()) == 1
        mounted = mount(server.url)
        again = done(mount, "cache", "warm", server.url, "acme/base", code=8)
        assert len(re.findall(r"MiB \(\d+ bytes\)", again)) == 2 and len(again.splitlines()) == 1
        assert mounted.status()["counters"]["chunks_fetched"] == server.requests("packs/") == 0
        assert told(mount, "cache", "warm", server.url, "acme/base", "deep")["files"] == 3


def test_what_is_pinned_leaves_no_room_for_more(mount: Mounter, repository: Path, source: Path) -> None:
    (source / "big.bin").write_bytes(os.urandom(8 * MiB))
    push(mount, source, repository, "acme/more")
    mount.environ["MODELFS_CACHE_SIZE"] = "12 MiB"
    told(mount, "cache", "warm", repository, "acme/base", "--pin")
    done(mount, "cache", "warm", repository, "acme/more", code=8)
    done(mount, "cache", "unpin", repository, "acme/base")
    assert told(mount, "cache", "warm", repository, "acme/more")["version"] == "v1"
    whole = [at["model"] for at in told(mount, "cache", "ls")["files"] if at["cached_bytes"] == 8 * MiB]
    assert whole == ["acme/more"]


def test_what_is_pinned_outlives_reads_that_need_the_room_and_unpinned_does_not(mount: Mounter, repository: Path,
                                                                               source: Path) -> None:
    before = (source / "big.bin").read_bytes()
    (source / "big.bin").write_bytes(os.urandom(24 * MiB))
    push(mount, source, repository)
    told(mount, "cache", "warm", repository, "acme/base:v1", "big.bin", "--pin")
    mounted = mount(repository, "--cache-size", "16 MiB", "--poll", "100ms")
    assert (mounted / "acme/base/v2/big.bin").read_bytes() == (source / "big.bin").read_bytes()
    counters = mounted.status()["counters"]
    assert counters["evictions"] > 0
    pinned = [at for at in told(mount, "cache", "ls")["files"] if at["pinned"]]
    assert [(at["version"], at["path"], at["cached_bytes"]) for at in pinned] == [("v1", "big.bin", len(before))]
    unpinned = told(mount, "cache", "unpin", repository, "acme/base")
    assert (unpinned["versions"], unpinned["unpinned"]) == (["v1"], ["big.bin"])
    (source / "big.bin").write_bytes(os.urandom(24 * MiB))
    push(mount, source, repository)
    until(lambda: (mounted / "acme/base/v3").exists())
    assert (mounted / "acme/base/v3/big.bin").read_bytes() == (source / "big.bin").read_bytes()
    assert not any(at["pinned"] for at in told(mount, "cache", "ls")["files"])
    assert (mounted / "acme/base/v1/big.bin").read_bytes() == before


def test_pin_says_what_is_missing_and_keeps_what_is_there(mount: Mounter, repository: Path) -> None:
    done(mount, "cache", "warm", repository, "acme/base", "big.bin")
    said = told(mount, "cache", "pin", repository, "acme/base")
    assert said["pinned"] == ["big.bin"] and "run.sh" in said["missing"] and said["bytes"] == 8 * MiB + 12_345
    assert "cache warm" in done(mount, "cache", "pin", repository, "acme/base")
    assert cached(mount)["big.bin"]["pinned"] is True
    assert told(mount, "cache", "clear")["kept_pinned"] == 1
    assert list(cached(mount)) == ["big.bin"]


def test_clearing_below_a_mount_makes_misses_and_nothing_else(mount: Mounter, repository: Path, source: Path) -> None:
    mounted = mount(repository, "--model", "acme/base")
    descriptor = os.open(mounted / "big.bin", os.O_RDONLY)
    try:
        assert os.pread(descriptor, 4096, 0) == (source / "big.bin").read_bytes()[:4096]
        (mounted / "run.sh").read_bytes()
        assert {"big.bin", "run.sh"} <= set(cached(mount))
        cleared = told(mount, "cache", "clear", repository, "acme/base")
        assert cleared["files"] >= 2 and cleared["freed_bytes"] > 0 and not cached(mount)
        assert (mounted / "big.bin").read_bytes() == (source / "big.bin").read_bytes()
    finally:
        os.close(descriptor)
    assert mounted.status()["counters"]["errors"] == 0
    assert told(mount, "cache", "clear")["kept_pinned"] == 0 and not cached(mount)


def test_ls_names_what_it_can_without_the_store(mount: Mounter, repository: Path) -> None:
    with FaultProxy(repository) as server:
        told(mount, "cache", "warm", server.url, "acme/base", "big.bin", "--pin")
        server.down()
        at = cached(mount)["big.bin"]
        assert (at["repository"], at["model"], at["version"]) == (server.url, "acme/base", "v1")
        assert (at["size"], at["cached_bytes"], at["pinned"]) == (8 * MiB + 12_345, 8 * MiB + 12_345, True)
        assert [one["path"] for one in told(mount, "cache", "ls", server.url, "acme/base")["files"]] == ["big.bin"]
        assert "acme/base" in done(mount, "cache", "ls") and "pinned" in done(mount, "cache", "ls", server.url,
                                                                              "acme/base")
        assert "Did you mean acme/base" in done(mount, "cache", "ls", server.url, "acme/bse", code=3)
        assert "cache warm" in done(mount, "cache", "ls", mount.tmp_path / "elsewhere", code=3)
        told(mount, "cache", "unpin", server.url, "acme/base")
        assert told(mount, "cache", "clear")["files"] == 1


def test_a_warmed_version_is_found_offline_after_another_mount_saw_newer_catalogs(mount: Mounter, repository: Path,
                                                                                  source: Path) -> None:
    before = (source / "run.sh").read_bytes()
    with FaultProxy(repository) as server:
        told(mount, "cache", "warm", server.url, "acme/base", "--pin")
        (source / "run.sh").write_text("other")
        push(mount, source, repository)
        push(mount, source, repository, "acme/other")
        mount(server.url, "--model", "acme/other", name="other").umount()
        server.down()
        mounted = mount(server.url, "--model", "acme/base:v1", "--deadline", "1s")
        assert (mounted / "run.sh").read_bytes() == before


def test_a_command_leaves_the_limits_of_a_mount_alone(mount: Mounter, repository: Path) -> None:
    mounted = mount(repository, "--cache-size", "200 MiB")
    (mounted / "acme/base/v1/big.bin").read_bytes()
    held = mounted.status()["cache"]["bytes"]
    mount.environ["MODELFS_CACHE_SIZE"] = "1 MiB"
    with caching.cache_of(load_config(file=None, flags={}, environ=mount.environ)) as cache:
        assert cache.status().limit_bytes == 200 * MiB
    told(mount, "cache", "warm", repository, "acme/base")
    assert (mounted.status()["cache"]["limit_bytes"], mounted.status()["cache"]["bytes"] >= held) == (200 * MiB, True)


def test_a_store_that_dies_ends_the_warming_within_its_deadline_and_leaves_no_pin(mount: Mounter,
                                                                                 repository: Path) -> None:
    with FaultProxy(repository) as server:
        server.add("hang", "packs/")
        mount.environ["MODELFS_FETCH_DEADLINE"] = "1s"
        assert len(done(mount, "cache", "warm", server.url, "acme/base", "--pin", code=5).splitlines()) == 1
        mount(server.url)
        done(mount, "cache", "warm", server.url, "acme/base", "--pin", code=5)
        assert not any(at["pinned"] for at in told(mount, "cache", "ls")["files"])


@pytest.mark.parametrize("mounted", [False, True])
def test_ctrl_c_ends_the_warming_with_130_and_leaves_no_pin(mount: Mounter, repository: Path, source: Path,
                                                            mounted: bool) -> None:
    with FaultProxy(repository) as server:
        if mounted:
            mount(server.url)
        server.add("hang", "packs/")
        process = subprocess.Popen([sys.executable, "-m", "modelfs", "cache", "warm", server.url, "acme/base", "--pin"],
                                   env=mount.environ, cwd=mount.tmp_path, stderr=subprocess.PIPE, text=True)
        until(lambda: server.requests("packs/"))
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[1] == "modelfs: interrupted\n"
        assert process.returncode == 130
        until(lambda: not any(at["pinned"] for at in told(mount, "cache", "ls")["files"]))
        server.clear()
        assert told(mount, "cache", "warm", server.url, "acme/base", "--pin")["files"] == 5
        assert cached(mount)["big.bin"]["cached_bytes"] == (source / "big.bin").stat().st_size
