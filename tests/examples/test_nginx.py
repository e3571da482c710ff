"""examples/nginx-serve.conf and examples/nginx-cache.conf do what they say, in real nginx processes."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from examples.proxies import modelfs_serve, nginx
from mount.mounting import Mounter, until

from modelfs.units import MiB


@dataclass(frozen=True, slots=True)
class Front:
    """url: nginx's, in front of `modelfs serve`. tokens: files, each with the token of one role, and one of nobody's.

    sent: what nginx was asked for, "METHOD /path status" a line.
    """

    url: str
    repository: Path
    tokens: dict[str, Path]
    log: Path

    def sent(self, method: str, start: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(f"{method} /{start}")]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    root.mkdir()
    (root / "weights.bin").write_bytes(random.Random(9).randbytes(20 * MiB + 12_345))
    (root / "config.json").write_text("{}")
    return root


@pytest.fixture
def front(tmp_path: Path, environ: dict[str, str]) -> Iterator[Front]:
    tokens = {}
    for name in ("write", "read", "wrong"):
        tokens[name] = tmp_path / f"{name}.token"
        tokens[name].write_text(f"a-token-that-may-{name}\n")
        tokens[name].chmod(0o600)
    allowed = tmp_path / "tokens"
    allowed.write_text("a-token-that-may-write\na-token-that-may-read read\n")
    allowed.chmod(0o600)
    repository = tmp_path / "repository"
    repository.mkdir()
    with (modelfs_serve(repository, environ, "--token-file", allowed) as behind,
          nginx("nginx-serve.conf", tmp_path / "front",
                {"server 127.0.0.1:8750;": f"server {behind};", "root /srv/models;": f"root {repository};"}) as url):
        yield Front(url, repository, tokens, tmp_path / "front" / "access.log")


@pytest.fixture
def pushed(mount: Mounter, front: Front, source: Path) -> Path:
    """source as acme/base, pushed through nginx; commands go on showing the token that may write."""
    mount.environ["MODELFS_TOKEN_FILE"] = str(front.tokens["write"])
    for arguments in (("init", front.url), ("push", source, front.url, "acme/base")):
        done = mount.run(*arguments)
        assert done.returncode == 0, done.stderr
    return source


def same(place: Path, source: Path) -> bool:
    return subprocess.run(["diff", "-r", str(source), str(place)], check=False).returncode == 0


def test_uploads_go_through_nginx_and_packs_come_from_its_own_disk(mount: Mounter, front: Front, pushed: Path,
                                                                  tmp_path: Path) -> None:
    assert front.sent("PUT", "packs/") and front.sent("PUT", "catalog.json")
    assert same(mount(front.url) / "acme/base/latest", pushed)
    assert mount.run("pull", front.url, "acme/base", tmp_path / "pulled").returncode == 0
    assert same(tmp_path / "pulled", pushed)
    answers = {name: requests.get(f"{front.url}/{name}", timeout=10, headers=bearer(front, "read"))
               for name in (any_pack(front), "catalog.json")}
    assert [answer.status_code for answer in answers.values()] == [200, 200]
    pack, catalog = answers.values()
    assert pack.headers["Server"].startswith("nginx") and "immutable" in pack.headers["Cache-Control"]
    assert catalog.headers["Cache-Control"] == "no-cache"
    # a second version: the catalog is swapped by the ETag that came through nginx
    (pushed / "config.json").write_text('{"changed": true}')
    assert mount.run("push", pushed, front.url, "acme/base").returncode == 0
    assert json.loads(mount.run("ls", front.url, "--json").stdout)["models"][0]["latest"] == "v2"


def test_tokens_hold_for_what_nginx_sends_itself(mount: Mounter, front: Front, pushed: Path, tmp_path: Path) -> None:
    def status(method: str, name: str, role: str | None) -> int:
        return requests.request(method, f"{front.url}/{name}", timeout=10, data=b"x" if method == "PUT" else None,
                                headers=bearer(front, role) if role else {}).status_code

    pack = any_pack(front)
    for name in (pack, "catalog.json"):
        assert [status("GET", name, role) for role in (None, "wrong", "read", "write")] == [401, 401, 200, 200], name
    assert [status("PUT", pack[:-1] + "0", role) for role in (None, "wrong", "read")] == [401, 401, 403]
    mount.environ["MODELFS_TOKEN_FILE"] = str(front.tokens["read"])
    assert mount.run("pull", front.url, "acme/base", tmp_path / "pulled").returncode == 0
    assert mount.run("push", pushed, front.url, "acme/other").returncode == 6
    mount.environ["MODELFS_TOKEN_FILE"] = str(front.tokens["wrong"])
    assert mount.run("ls", front.url).returncode == 6


def test_nothing_but_objects_is_sent(front: Front, pushed: Path) -> None:
    (front.repository / "packs" / ".secret").write_text("no object")
    directory = any_pack(front).rpartition("/")[0]
    (front.repository / directory / "notes.txt").write_text("no object")
    for name in ("packs/", "packs/.secret", f"{directory}/", f"{directory}/notes.txt", "../tokens", "%2e%2e/tokens"):
        with requests.Session() as session:
            request = requests.Request("GET", front.url, headers=bearer(front, "write")).prepare()
            request.url = f"{front.url}/{name}"  # as it stands: requests would tidy it up
            assert session.send(request, timeout=10).status_code in (400, 404), name


def test_a_cache_fetches_each_pack_once_for_all_its_hosts(mount: Mounter, front: Front, pushed: Path,
                                                          tmp_path: Path) -> None:
    with cache(front, tmp_path) as url:
        mount.environ["MODELFS_TOKEN_FILE"] = str(front.tokens["read"])
        before = len(front.sent("GET", "packs/"))
        assert same(mount(url, "--cache-dir", tmp_path / "cache-of-host1", name="host1") / "acme/base/latest", pushed)
        once = len(front.sent("GET", "packs/"))
        assert once > before
        assert same(mount(url, "--cache-dir", tmp_path / "cache-of-host2", name="host2") / "acme/base/latest", pushed)
        assert len(front.sent("GET", "packs/")) == once, "the second host's packs all came from the cache"

        answer = requests.get(f"{url}/{any_pack(front)}", timeout=10, headers=bearer(front, "read"))
        assert answer.headers["X-Cache-Status"] == "HIT"
        assert answer.content == (front.repository / any_pack(front)).read_bytes()
        ranged = requests.get(f"{url}/{any_pack(front)}", timeout=10,
                              headers={**bearer(front, "read"), "Range": "bytes=4194300-4194309"})
        assert ranged.status_code == 206 and ranged.content == answer.content[4_194_300:4_194_310]


def test_a_small_read_makes_a_cache_fetch_slices_and_not_packs(front: Front, pushed: Path, tmp_path: Path) -> None:
    with cache(front, tmp_path) as url:
        pack = any_pack(front)
        answer = requests.get(f"{url}/{pack}", timeout=10, headers={**bearer(front, "read"), "Range": "bytes=0-9"})
        assert answer.status_code == 206 and answer.headers["X-Cache-Status"] == "MISS"
        assert answer.headers["Content-Range"] == f"bytes 0-9/{(front.repository / pack).stat().st_size}"

        def kept() -> int:
            return sum(each.stat().st_size for each in (tmp_path / "kept").rglob("*") if each.is_file())
        until(lambda: kept() >= 4 * MiB)  # nginx goes on with the slice after its first bytes were answered
        assert kept() < 5 * MiB


def test_a_cache_shows_a_new_version_at_once_keeps_to_tokens_and_takes_no_uploads(mount: Mounter, front: Front,
                                                                                 pushed: Path, tmp_path: Path) -> None:
    with cache(front, tmp_path) as url:
        assert json.loads(mount.run("ls", url, "--json").stdout)["models"][0]["latest"] == "v1"
        (pushed / "config.json").write_text('{"changed": true}')
        assert mount.run("push", pushed, front.url, "acme/base").returncode == 0
        assert json.loads(mount.run("ls", url, "--json").stdout)["models"][0]["latest"] == "v2"
        (pushed / "config.json").write_text('{"changed": "again"}')
        assert mount.run("push", pushed, url, "acme/base").returncode == 6
        assert mount.run("verify", url).returncode == 0

        pack = any_pack(front)
        assert requests.get(f"{url}/{pack}", timeout=10, headers=bearer(front, "read")).status_code == 200
        for headers in ({}, bearer(front, "wrong")):
            assert requests.get(f"{url}/{pack}", timeout=10, headers=headers).status_code == 401, "though it is kept"


def cache(front: Front, tmp_path: Path) -> AbstractContextManager[str]:
    return nginx("nginx-cache.conf", tmp_path / "cache", {
        "/var/cache/nginx/modelfs": str(tmp_path / "kept"),
        "server models.example.org:8080;": f"server {front.url.removeprefix('http://')};"})


def any_pack(front: Front) -> str:
    """The largest."""
    packs = [each for each in (front.repository / "packs").rglob("*") if each.is_file() and len(each.name) == 64]
    return str(max(packs, key=lambda each: each.stat().st_size).relative_to(front.repository))


def bearer(front: Front, role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {front.tokens[role].read_text().strip()}"}
