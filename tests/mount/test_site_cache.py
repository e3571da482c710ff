"""Mounts and pulls by way of a site's cache: cold clients at once, tags that move, a site that dies, an upstream that
lies."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from mount.mounting import ROOT, Mounted, Mounter, until
from server.sites import model_in_packs, site
from transfer.pushed import packs

from modelfs.units import MiB

PULLS, MOUNTS = 16, 4
MEMORY = 32 * MiB
_PLAIN = 96 * MiB
"""What a server that has done nothing takes: Python, numpy, aiohttp."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "origin"


@pytest.fixture
def files(root: Path) -> dict[str, bytes]:
    """Of acme/base in root, each in a pack of its own."""
    return model_in_packs(root)


@pytest.fixture
def upstream(root: Path, files: dict[str, bytes]) -> Iterator[FaultProxy]:
    with FaultProxy(root) as server:
        yield server


@pytest.fixture
def environ(environ: dict[str, str]) -> dict[str, str]:
    return {**environ, "MODELFS_CACHE_MIN_FREE": "0"}


def agrees(place: Path, files: dict[str, bytes]) -> bool:
    return {path.name: path.read_bytes() for path in place.iterdir()} == files


def test_twenty_cold_clients_at_once_cost_upstream_each_pack_once(mount: Mounter, root: Path, upstream: FaultProxy,
                                                                  files: dict[str, bytes], tmp_path: Path,
                                                                  environ: dict[str, str]) -> None:
    with ExitStack() as undo:
        cache = undo.enter_context(site(tmp_path / "site", upstream.url,
                                        {**environ, "MODELFS_FETCH_MEMORY": str(MEMORY)}))
        pulls = [subprocess.Popen([sys.executable, "-m", "modelfs", "pull", cache.url, "acme/base",
                                   str(tmp_path / f"out{n}")], env={**environ, "PYTHONPATH": str(ROOT)},
                                  stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                 for n in range(PULLS)]
        for process in pulls:
            undo.callback(process.wait)
            undo.callback(process.kill)
        mounts = [mount.start(cache.url, "--model", "acme/base", "--cache-dir", tmp_path / f"cache{n}", name=f"mnt{n}")
                  for n in range(MOUNTS)]
        for mounted in mounts:
            until(lambda each=mounted: "mounted " in each.log.read_text(), 60)
            assert agrees(mounted.place, files)
        assert [process.wait(60) for process in pulls] == [0] * PULLS
        assert all(agrees(tmp_path / f"out{n}", files) for n in range(PULLS))
        assert cache.peak_bytes() < _PLAIN + MEMORY
    asked = Counter((seen.method, seen.path) for seen in upstream.seen("packs/|histories/|manifests/"))
    assert set(asked.values()) == {1}
    assert upstream.bytes_sent("packs/") == sum(pack.stat().st_size for pack in packs(root))


def test_a_tag_that_moves_upstream_is_seen_through_the_site(mount: Mounter, root: Path, upstream: FaultProxy,
                                                            files: dict[str, bytes], tmp_path: Path,
                                                            environ: dict[str, str]) -> None:
    with site(tmp_path / "site", upstream.url, environ) as cache:
        mounted = mount(cache.url, "--poll", "200ms")
        shown = mounted / "acme" / "base"
        assert os.readlink(shown / "latest") == "v6" and agrees(shown / "latest", files)
        assert mount.run("tag", root, "acme/base:v2", "latest").returncode == 0
        until(lambda: os.readlink(shown / "latest") == "v2")
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "0.bin").write_bytes(b"something else")
        assert mount.run("push", tmp_path / "new", root, "acme/base").returncode == 0
        until(lambda: os.readlink(shown / "latest") == "v7")
        assert (shown / "latest" / "0.bin").read_bytes() == b"something else"
        mounted.umount()


def test_a_mount_of_site_and_origin_goes_on_when_the_site_dies(mount: Mounter, root: Path, upstream: FaultProxy,
                                                               files: dict[str, bytes], tmp_path: Path,
                                                               environ: dict[str, str]) -> None:
    with site(tmp_path / "site", upstream.url, environ) as cache, FaultProxy(root) as origin:
        (tmp_path / "config.toml").write_text(f"[remotes.lab]\nurls = {json.dumps([cache.url, origin.url])}\n")
        mounted = mount("lab", "--config", tmp_path / "config.toml", "--model", "acme/base", "--cache-size", "0")
        assert (mounted / "0.bin").read_bytes() == files["0.bin"]
        assert origin.requests("packs/") == 0, "the site comes first"
        cache.kill()
        for name in list(files)[1:]:
            assert (mounted / name).read_bytes() == files[name]
        assert states(mounted) == ["unreachable", "ok"]


def states(mounted: Mounted) -> list[str]:
    return [store["state"] for store in mounted.status()["stores"]]


def test_what_upstream_has_wrong_is_eio_through_the_site(mount: Mounter, root: Path, upstream: FaultProxy,
                                                         files: dict[str, bytes], tmp_path: Path,
                                                         environ: dict[str, str]) -> None:
    with site(tmp_path / "site", upstream.url, environ) as cache:
        mounted = mount(cache.url, "--model", "acme/base", "--deadline", "2s")
        for pack in packs(root):
            pack.write_bytes(b"\0" * pack.stat().st_size)
        with pytest.raises(OSError, check=lambda error: error.errno == errno.EIO):
            (mounted / "3.bin").read_bytes()
        assert "502" in mounted.log.read_text()
