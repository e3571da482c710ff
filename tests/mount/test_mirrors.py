"""A mount of a remote with two mirrors, while a fault script takes them away and brings them back."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from mount.mounting import Mounter, until

from modelfs.units import KiB


@pytest.fixture
def mirrors(tmp_path: Path, repository: Path) -> Iterator[list[FaultProxy]]:
    """The remote `lab` of the configuration."""
    copies = [repository, Path(shutil.copytree(repository, tmp_path / "second"))]
    with ExitStack() as stack:
        yield [stack.enter_context(FaultProxy(copy)) for copy in copies]


def configured(tmp_path: Path, mirrors: list[FaultProxy], fetch: str = "") -> Path:
    path = tmp_path / "config.toml"
    path.write_text(f'[fetch]\nmemory = "16 MiB"\n{fetch}\n'  # nothing to speak of stays in memory
                    f'[remotes.lab]\nurls = {json.dumps([mirror.url for mirror in mirrors])}\n')
    return path


def test_reads_go_on_whichever_mirror_is_gone(mount: Mounter, tmp_path: Path, mirrors: list[FaultProxy],
                                              source: Path) -> None:
    """The cache has no room, so every read goes to a mirror; they die and come back in turns."""
    mounted = mount("lab", "--config", configured(tmp_path, mirrors), "--model", "acme/base", "--cache-size", "0",
                    "--poll", "300ms")
    wanted = (source / "big.bin").read_bytes()
    passes, stop = [0], threading.Event()
    wrong: list[object] = []

    def read() -> None:
        while not stop.is_set():
            fd = os.open(mounted / "big.bin", os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                got = os.pread(fd, 2 * len(wanted), 0)
            except OSError as error:
                wrong.append(error)
                return
            finally:
                os.close(fd)
            if got != wanted:
                wrong.append(len(got))
            passes[0] += 1

    readers = [threading.Thread(target=read, daemon=True) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for turn in range(4):
            gone, there = mirrors[turn % 2], mirrors[1 - turn % 2]
            before = passes[0]
            gone.down()
            until(lambda before=before: passes[0] > before + 2 or wrong)
            there.forget()
            until(lambda there=there: there.requests("packs/") > 3 or wrong)
            gone.up()
            until(lambda: all(store["state"] == "ok" for store in mounted.status()["stores"]) or wrong)
    finally:
        stop.set()
        for reader in readers:
            reader.join(60)
    assert wrong == []
    assert mounted.status()["counters"]["failovers"] >= 2
    assert [store["url"] for store in mounted.status()["stores"]] == [mirror.url for mirror in mirrors]


def test_a_mirror_that_lags_takes_nothing_back_and_one_that_is_ahead_is_followed(
        mount: Mounter, tmp_path: Path, mirrors: list[FaultProxy], repository: Path, source: Path) -> None:
    mounted = mount("lab", "--config", configured(tmp_path, mirrors), "--poll", "200ms")
    assert os.readlink(mounted / "acme/base/latest") == "v1"
    (source / "run.sh").write_text("#!/bin/sh\ntrue\n")
    assert mount.run("push", source, tmp_path / "second", "acme/base").returncode == 0
    until(lambda: os.readlink(mounted / "acme/base/latest") == "v2")
    assert (mounted / "acme/base/v2/run.sh").read_text() == "#!/bin/sh\ntrue\n", "only the second has it"
    mirrors[1].down()
    mirrors[0].forget()
    until(lambda: mirrors[0].requests("catalog.json") > 3)
    assert os.readlink(mounted / "acme/base/latest") == "v2"
    assert (mounted / "acme/base/v2/big.bin").read_bytes() == (source / "big.bin").read_bytes()


def test_a_mount_begins_with_the_first_mirror_gone(mount: Mounter, tmp_path: Path, mirrors: list[FaultProxy],
                                                   source: Path) -> None:
    mirrors[0].down()
    mounted = mount("lab", "--config", configured(tmp_path, mirrors), "--model", "acme/base")
    assert (mounted / "big.bin").read_bytes() == (source / "big.bin").read_bytes()


def test_a_hedged_read_ends_with_the_second_mirror_while_the_first_is_still_silent(
        mount: Mounter, tmp_path: Path, mirrors: list[FaultProxy], source: Path) -> None:
    """Once enough answers have shown how long one takes."""
    config = configured(tmp_path, mirrors, 'hydrate = "off"\nhedge = true')
    mounted = mount("lab", "--config", config, "--model", "acme/base", "--cache-size", "0")
    wanted, chunk = (source / "big.bin").read_bytes(), 256 * KiB
    order = random.Random(1).sample(range(len(wanted) // chunk), len(wanted) // chunk)
    fd = os.open(mounted / "big.bin", os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for number in order[:-1]:
            assert os.pread(fd, 4096, number * chunk) == wanted[number * chunk:number * chunk + 4096]
        before = mounted.status()["counters"]
        silent = mirrors[0].add("hang", "packs/", times=1)
        at = order[-1] * chunk
        assert os.pread(fd, 4096, at) == wanted[at:at + 4096]
    finally:
        os.close(fd)
    after = mounted.status()["counters"]
    grown = {name: after[name] - before[name] for name in ("hedges", "failovers", "errors")}
    assert silent.hits == 1, "it was asked, and has said nothing yet"
    assert grown == {"hedges": 1, "failovers": 0, "errors": 0}


def test_remote_check_shows_how_each_mirror_is(mount: Mounter, tmp_path: Path, mirrors: list[FaultProxy],
                                               source: Path) -> None:
    config = configured(tmp_path, mirrors)
    listed = mount.run("remote", "ls", "--json", "--config", config)
    assert json.loads(listed.stdout)["remotes"][0]["urls"] == [mirror.url for mirror in mirrors]
    (source / "run.sh").write_text("#!/bin/sh\ntrue\n")
    assert mount.run("push", source, tmp_path / "second", "acme/base").returncode == 0
    done = mount.run("remote", "check", "lab", "--json", "--config", config)
    stores = json.loads(done.stdout)["remotes"][0]["stores"]
    assert done.returncode == 0 and [store["behind"] for store in stores] == [1, 0]
    assert all(store["state"] == "ok" and store["latency_ms"] > 0 for store in stores)
    mirrors[0].down()
    done = mount.run("remote", "check", "--json", "--config", config)
    stores = json.loads(done.stdout)["remotes"][0]["stores"]
    assert done.returncode == 5 and [store["state"] for store in stores] == ["unreachable", "ok"]
    assert mount.run("remote", "check", "none", "--config", config).returncode == 3
