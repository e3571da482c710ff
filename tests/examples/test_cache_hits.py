"""Two hosts behind the caching nginx of examples/nginx-cache.conf: what `modelfs serve` behind it is asked for."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from examples.proxies import modelfs_serve, nginx
from faultproxy import FaultProxy
from mount.mounting import Mounter, until

from modelfs.units import MiB

NEVER_CHANGES = re.compile(r"/(packs|manifests|histories|indexes)/")


@dataclass(frozen=True, slots=True)
class Site:
    """url: the cache's. origin: counts what it is asked for. log: of the cache, "METHOD /path STATUS HIT" a line."""

    url: str
    origin: FaultProxy
    log: Path

    def hits(self, first: int) -> tuple[int, int]:
        """(hits, all) of the objects that never change, from the log's line `first` on."""
        found = [line.split() for line in self.log.read_text().splitlines()[first:]]
        states = [words[3] for words in found if words[0] == "GET" and NEVER_CHANGES.match(words[1])]
        return states.count("HIT"), len(states)

    def asked(self) -> int:
        return len(self.log.read_text().splitlines())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "weights.bin").write_bytes(random.Random(19).randbytes(10 * MiB))
    (root / "config.json").write_text("{}")
    return root


@pytest.fixture
def repository(mount: Mounter, tmp_path: Path, tree: Path) -> Path:
    root = tmp_path / "repository"
    for words in (("init", root), ("push", tree, root, "lab/model")):
        assert mount.run(*words).returncode == 0
    return root


@pytest.fixture
def site(tmp_path: Path, environ: dict[str, str], repository: Path) -> Iterator[Site]:
    with (modelfs_serve(repository, environ) as behind, FaultProxy(upstream=f"http://{behind}") as origin,
          nginx("nginx-cache.conf", tmp_path / "cache", {
              "/var/cache/nginx/modelfs": str(tmp_path / "kept"),
              "server models.example.org:8080;": f"server {origin.url.removeprefix('http://')};"}) as url):
        yield Site(url, origin, tmp_path / "cache" / "access.log")


def test_the_second_host_is_served_by_the_cache_and_a_moved_tag_is_seen_through_it(
        mount: Mounter, tmp_path: Path, site: Site, repository: Path, tree: Path) -> None:
    weights = (tree / "weights.bin").read_bytes()
    hosts = []
    for name in ("host1", "host2"):
        before = site.asked()
        site.origin.forget()
        host = mount(site.url, "--cache-dir", tmp_path / f"cache-of-{name}", "--poll", "300ms", name=name)
        assert (host / "lab/model/latest/weights.bin").read_bytes() == weights
        hosts.append(host)
    hits, all_of_them = site.hits(before)
    assert hits == all_of_them > 3, "every range of a pack that the second host asked for, and what leads to them"
    assert not [seen.path for seen in site.origin.seen() if NEVER_CHANGES.match(seen.path)]
    assert site.origin.requests("catalog.json"), "that one is asked for each time"

    (tree / "config.json").write_text('{"changed": true}')
    assert mount.run("push", tree, repository, "lab/model").returncode == 0
    for host in hosts:
        until(lambda host=host: os.readlink(host / "lab/model/latest") == "v2")
        assert (host / "lab/model/latest/config.json").read_text() == '{"changed": true}', "no purge was needed"
        assert (host / "lab/model/v1/config.json").read_text() == "{}"


def test_a_cache_that_holds_all_serves_ranges_of_any_kind_from_it(mount: Mounter, tmp_path: Path, site: Site,
                                                                  tree: Path) -> None:
    """A pull by one host, then single reads by another: other ranges of the same packs."""
    assert mount.run("pull", site.url, "lab/model", tmp_path / "pulled").returncode == 0
    before = site.asked()
    site.origin.forget()
    host = mount(site.url, "--cache-dir", tmp_path / "cache-of-host", name="host")
    weights = (tree / "weights.bin").read_bytes()
    with (host / "lab/model/latest/weights.bin").open("rb") as stream:
        for offset in (7 * MiB + 5, 3 * MiB, 9 * MiB + 77):
            assert os.pread(stream.fileno(), 1000, offset) == weights[offset:offset + 1000]
    hits, all_of_them = site.hits(before)
    assert hits == all_of_them > 0 and not site.origin.requests("packs/")
