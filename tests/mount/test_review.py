"""Mounts whose store answers some requests and hangs on others: what waits, for how long, and what is served anyway."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from mount.mounting import Mounter, until


def ok(mount: Mounter, *arguments: object) -> str:
    done = mount.run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def push_again(mount: Mounter, repository: Path, source: Path) -> None:
    (source / "run.sh").write_text("another\n")
    ok(mount, "push", source, repository, "acme/base")


def looked_up(directory: Path) -> set[str]:
    """What twelve processes print that look up a name each in directory, all at once: an errno or nothing."""
    code = "import os, sys\ntry: os.stat(sys.argv[1])\nexcept OSError as error: print(error.errno)"
    processes = [subprocess.Popen([sys.executable, "-c", code, str(directory / f"name{number}")],
                                  stdout=subprocess.PIPE, text=True) for number in range(12)]
    try:
        return {process.communicate(timeout=60)[0] for process in processes}
    finally:
        for process in processes:
            process.kill()
            process.wait(30)


@pytest.mark.parametrize("engine", ["native", "fusepy"])
def test_readers_of_one_model_share_one_wait_for_a_history_that_hangs(mount: Mounter, repository: Path,
                                                                     engine: str) -> None:
    with FaultProxy(repository) as server:
        mounted = mount(server.url, "--deadline", "1500ms", "--engine", engine)
        rule = server.add("hang", "histories/")
        assert looked_up(mounted / "acme/base") == {f"{errno.EIO}\n"}
        assert rule.hits < 6, "each of them waited for its own"
        server.clear()
        until(lambda: _listed(mounted / "acme/base") == ["latest", "v1"])


@pytest.mark.parametrize("engine", ["native", "fusepy"])
def test_readers_of_one_version_share_one_wait_for_a_manifest_that_hangs(mount: Mounter, repository: Path,
                                                                        engine: str) -> None:
    with FaultProxy(repository) as server:
        mounted = mount(server.url, "--deadline", "1500ms", "--engine", engine)
        os.listdir(mounted / "acme/base")
        rule = server.add("hang", "manifests/")
        assert looked_up(mounted / "acme/base/v1") == {f"{errno.EIO}\n"}
        assert rule.hits < 6, "each of them waited for its own"
        server.clear()
        until(lambda: "run.sh" in _listed(mounted / "acme/base/v1"))


def _listed(path: Path) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def test_a_mount_begins_with_the_cached_catalog_when_the_newer_ones_histories_hang(
        mount: Mounter, repository: Path, source: Path) -> None:
    with FaultProxy(repository) as server:
        ok(mount, "cache", "warm", server.url, "acme/base", "--pin")
        before = (source / "run.sh").read_bytes()
        push_again(mount, repository, source)
        server.add("hang", "histories/")
        mounted = mount(server.url, "--deadline", "1s", "--poll", "100ms")
        assert "Starting from the cache" in mounted.log.read_text()
        # the watch sees the newer catalog all the time, and must not take away what is here
        asked = server.requests("catalog.json")
        until(lambda: server.requests("catalog.json") > asked + 2)
        assert (mounted / "acme/base/latest/run.sh").read_bytes() == before
        server.clear()
        until(lambda: (mounted / "acme/base/latest/run.sh").read_bytes() == b"another\n")


@pytest.mark.parametrize("follow", [False, True])
def test_a_mount_waits_for_such_histories_no_longer_than_for_a_store_that_is_gone(
        mount: Mounter, repository: Path, source: Path, follow: bool) -> None:
    with FaultProxy(repository) as server:
        ok(mount, "cache", "warm", server.url, "acme/base", "--pin")
        before = (source / "run.sh").read_bytes()
        push_again(mount, repository, source)
        server.add("hang", "histories/")
        # it is there before the deadline, which is longer than `mount` waits
        mounted = mount(server.url, "--model", "acme/base", "--deadline", "5m", *["--follow"] * follow)
        assert (mounted / "run.sh").read_bytes() == before


def test_an_interrupted_warming_leaves_the_pins_of_another_that_goes_on(mount: Mounter, repository: Path,
                                                                       source: Path) -> None:
    command = [sys.executable, "-m", "modelfs", "cache", "warm", "--pin", "--json"]
    with FaultProxy(repository) as first_server, FaultProxy(repository) as server:
        first_server.add("hang", "packs/")
        server.add("hang", "packs/")
        first = subprocess.Popen([*command, first_server.url, "acme/base"], env=mount.environ, cwd=mount.tmp_path,
                                 stderr=subprocess.PIPE, text=True)
        second = None
        try:
            until(lambda: first_server.requests("packs/"))  # it has pinned all by then
            second = subprocess.Popen([*command, server.url, "acme/base"], env=mount.environ, cwd=mount.tmp_path,
                                      stdout=subprocess.PIPE, text=True)
            until(lambda: server.requests("packs/"))
            first.send_signal(signal.SIGINT)
            first.communicate(timeout=30)
            assert first.returncode == 130
            server.clear()
            assert json.loads(second.communicate(timeout=60)[0])["pinned"] is True
        finally:
            for process in (first, second):
                if process is not None and process.poll() is None:
                    process.kill()
                    process.wait(30)
        files = json.loads(ok(mount, "cache", "ls", "--json"))["files"]
        assert len(files) == 4 and all(file["pinned"] for file in files)


def test_a_followed_version_may_have_a_file_named_as_a_hidden_version(mount: Mounter, repository: Path,
                                                                     source: Path) -> None:
    (source / ".v7").write_text("seven")
    (source / ".v2").write_text("two")
    ok(mount, "push", source, repository, "acme/base")
    for engine in ("native", "fusepy"):
        mounted = mount(repository, "--model", "acme/base", "--follow", "--engine", engine, name=engine)
        assert sorted(os.listdir(mounted.place)) == sorted(os.listdir(source))
        assert ((mounted / ".v7").read_text(), (mounted / ".v2").read_text()) == ("seven", "two")
        mounted.umount()
