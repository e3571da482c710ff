"""A site's cache between clients and a repository elsewhere: one request for all, and nothing wrong is passed on."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from faultproxy import FaultProxy
from results import Result
from server.sites import Site, environ_in, model_in_packs, new_pack, site
from server.uploading import answer_of, connect
from servers import own_server
from transfer.pushed import eventually, packs, soon

from modelfs.repository import catalog, keys
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.stores.http_store import HttpStore
from modelfs.units import KiB

Run = Callable[..., Result]


@dataclass(frozen=True, slots=True)
class Shared:
    """One site for the tests that leave it as it was: each takes packs of its own."""

    root: Path
    upstream: FaultProxy
    cache: Site


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made") / "repository"
    model_in_packs(root)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "repository"))


@pytest.fixture
def upstream(root: Path) -> Iterator[FaultProxy]:
    with FaultProxy(root) as server:
        yield server


@pytest.fixture
def environ(environ: dict[str, str], tmp_path: Path) -> dict[str, str]:
    return {**environ, **environ_in(tmp_path / "home")}


@pytest.fixture(scope="module")
def running(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    place = tmp_path_factory.mktemp("running")
    root = Path(shutil.copytree(made, place / "repository"))
    with FaultProxy(root) as upstream, site(place / "site", upstream.url, environ_in(place)) as cache:
        yield Shared(root, upstream, cache)


@pytest.fixture
def shared(running: Shared) -> Iterator[Shared]:
    running.upstream.forget()
    yield running
    running.upstream.clear()


def objects(root: Path, *kinds: str) -> list[str]:
    found = [os.fspath(path.relative_to(root)) for path in sorted(root.rglob("*"))
             if path.is_file() and not path.name.startswith(".")]
    return [key for key in found if not kinds or key.startswith(kinds)]


def by_many(clients: int, ask: Callable[[int], requests.Response]) -> list[requests.Response]:
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(ask, range(clients)))


def test_each_object_is_the_upstreams_with_the_heads_that_serve_gives(shared: Shared) -> None:
    cache, root = shared.cache, shared.root
    assert {key.partition("/")[0] for key in objects(root)} > {"packs", "histories", "manifests", "layouts", "indexes"}
    with own_server(root) as server:
        for key in objects(root):
            want = requests.get(f"{server}/{key}", timeout=20)
            for _ in ("cold", "warm"):
                found, head = cache.get(key), cache.get(key, "HEAD")
                assert (found.status_code, found.content) == (200, want.content), key
                for name in ("ETag", "Cache-Control", "Content-Length", "Accept-Ranges"):
                    assert found.headers[name] == head.headers[name] == want.headers[name], (key, name)
            again = cache.get(key, If_None_Match=want.headers["ETag"])
            assert (again.status_code, again.content) == (304, b"")
            part = cache.get(key, Range="bytes=10-19")
            assert (part.status_code, part.content) == (206, want.content[10:20])
            assert cache.get(key, Range=f"bytes={len(want.content)}-").status_code == 416
    for key in objects(root, "packs/", "histories/", "manifests/", "indexes/"):
        assert [seen.method for seen in shared.upstream.seen(key)].count("GET") == 1, key
    directory = Path(cache.log.parent / "site")
    assert oct(directory.stat().st_mode & 0o777) == "0o700"


def test_the_head_of_a_pack_costs_no_pack(shared: Shared) -> None:
    pack = new_pack(shared.root, 1)
    head = shared.cache.get(pack.key, "HEAD")
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(pack.data)))
    assert [seen.method for seen in shared.upstream.seen(pack.key)] == ["HEAD"]


def test_clients_at_once_wait_for_one_request_upstream(shared: Shared) -> None:
    """Also those who ask for other ranges, and when some of them leave."""
    pack, cache = new_pack(shared.root, 2), shared.cache
    other = new_pack(shared.root, 3, 300 * KiB)
    history = shared.root / "histories" / other.key.partition("/")[2]
    history.parent.mkdir(exist_ok=True)
    history.write_bytes(other.data)
    key = os.fspath(history.relative_to(shared.root))
    shared.upstream.add("drip", f"{pack.key}|{key}", methods=("GET",), piece=128 * KiB, interval_s=0.05)
    for _ in range(3):
        with connect(cache.url) as left:
            left.sendall(f"GET /{pack.key} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            eventually(lambda: shared.upstream.requests(pack.key))
    answers = by_many(40, lambda n: cache.get(pack.key, Range=f"bytes={n * 1000}-{n * 1000 + 999}")
                      if n < 30 else cache.get(key))
    assert [answer.content for answer in answers[:30]] == [pack.data[n * 1000:n * 1000 + 1000] for n in range(30)]
    assert {answer.content for answer in answers[30:]} == {other.data}
    assert [seen.method for seen in shared.upstream.seen(pack.key)] == ["HEAD", "GET"]
    assert shared.upstream.requests(key) == 1


def test_our_clients_hear_that_a_pack_is_on_its_way_and_others_hear_the_answer_alone(shared: Shared) -> None:
    """Who has a mirror would ask that after 4 s of silence."""
    pack, second = new_pack(shared.root, 4), new_pack(shared.root, 5)
    rule = shared.upstream.add("drip", f"{pack.key}|{second.key}", methods=("GET",), piece=64 * KiB, interval_s=0.1)
    with connect(shared.cache.url) as ours, connect(shared.cache.url) as other, connect(shared.cache.url) as proxied:
        for connection, more in ((ours, "User-Agent: modelfs/1\r\nConnection: keep-alive"), (other, "X-Other: 1"),
                                 (proxied, "User-Agent: modelfs/1\r\nConnection: close")):
            connection.sendall(f"GET /{pack.key} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n\r\n".encode())
        heads = [answer_of(ours)]
        while heads[-1].startswith(b"HTTP/1.1 100 "):
            heads.append(answer_of(ours))
        assert len(heads) > 1 and heads[-1].startswith(b"HTTP/1.1 200 ")
        assert answer_of(other).startswith(b"HTTP/1.1 200 ") and answer_of(proxied).startswith(b"HTTP/1.1 200 ")
    got = bytearray(100_000)
    with HttpStore(shared.cache.url).open_range(second.key, 5, len(got), soon()) as stream:
        stream.readinto(memoryview(got))
    assert rule.hits == 2 and got == second.data[5:100_005]


def test_who_waits_for_upstream_keeps_nobody_from_what_is_here(shared: Shared) -> None:
    here, *others = [new_pack(shared.root, 10 + n, 10_000) for n in range(12)]
    cache, keys_ = shared.cache, [pack.key for pack in others]
    assert cache.get(here.key).content == here.data
    shared.upstream.add("hang", "|".join(keys_))
    waiting = [connect(cache.url) for _ in range(64)]
    for number, connection in enumerate(waiting):
        connection.sendall(f"GET /{keys_[number % len(keys_)]} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    eventually(lambda: shared.upstream.requests("|".join(keys_)) >= 8)
    assert cache.get(here.key).content == here.data
    assert len(os.listdir(f"/proc/{cache.process.pid}/task")) < 64
    shared.upstream.clear()
    for connection in waiting:
        connection.close()
    eventually(lambda: cache.get(others[-1].key).content == others[-1].data)


def test_wrong_bytes_of_upstream_are_never_passed_on(shared: Shared) -> None:
    pack, cache, upstream = new_pack(shared.root, 30), shared.cache, shared.upstream
    (shared.root / "keys").mkdir(exist_ok=True)
    named = shared.root / "keys" / pack.key.rpartition("/")[2]
    named.write_bytes(pack.data)
    rules = [upstream.add("flip", pack.key, methods=("GET",), offset=77_777),
             upstream.add("flip", "keys/", methods=("GET",), offset=5)]
    for key in (pack.key, f"keys/{named.name}"):
        answer = cache.get(key)
        assert answer.status_code == 502 and len(answer.content) < 200
    assert [rule.hits for rule in rules] == [2, 2], "asked once more, past caches, and then given up"
    end_s = time.monotonic() + 0.6  # the fetcher itself remembers for 0.25 s
    while time.monotonic() < end_s:
        assert cache.get(pack.key).status_code == 502
    assert rules[0].hits == 2, "for a moment clients that ask again are answered without upstream"
    assert "chunk.corrupt" in cache.said
    upstream.clear()
    assert cache.get(f"keys/{named.name}").content == pack.data
    eventually(lambda: cache.get(pack.key).content == pack.data)


def test_an_upstream_that_refuses_the_site_is_no_refusal_of_its_clients(shared: Shared) -> None:
    shared.upstream.add("status", code=403)
    assert shared.cache.get(new_pack(shared.root, 31).key).status_code == 502
    assert shared.cache.get(keys.CATALOG).content == (shared.root / keys.CATALOG).read_bytes()


def test_what_upstream_does_not_have_is_missing(shared: Shared) -> None:
    cache, layout = shared.cache, shared.root / objects(shared.root, "layouts/")[0]
    key, data = os.fspath(layout.relative_to(shared.root)), layout.read_bytes()
    for kind in ("packs", "histories", "layouts"):
        assert cache.get(f"{kind}/ab/ab{'0' * 62}").status_code == 404
    assert cache.get("files").status_code == cache.get("CACHEDIR.TAG").status_code == 404
    assert cache.get(key).content == data
    layout.unlink()
    assert cache.get(key, Cache_Control="no-cache").status_code == 404
    layout.write_bytes(data)
    assert cache.get(key, Cache_Control="no-cache").content == data


def test_pushes_are_refused_and_the_upstream_is_named(shared: Shared, tmp_path: Path, modelfs: Run) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "new.bin").write_bytes(b"new")
    done = modelfs("push", tmp_path / "new", shared.cache.url, "acme/other")
    assert done.code == 6 and f"push to {shared.upstream.url}" in done.err
    assert {seen.method for seen in shared.upstream.seen()} <= {"GET", "HEAD"}


def test_catalogs_are_asked_for_once_a_second_for_all_or_when_a_client_insists(shared: Shared) -> None:
    cache, path = shared.cache, shared.root / keys.CATALOG
    began_s = time.monotonic()
    by_many(8, lambda n: [cache.get(keys.CATALOG) for _ in range(10)][-1])
    assert shared.upstream.requests(keys.CATALOG) <= 1 + time.monotonic() - began_s
    shared.upstream.forget()
    newer = catalog.parse(path.read_bytes()).next("2026-11-28T00:00:00Z").serialise()
    path.write_bytes(newer)
    assert cache.get(keys.CATALOG, Cache_Control="no-cache").content == newer
    assert shared.upstream.requests(keys.CATALOG) == 1


def test_the_catalog_never_goes_back(shared: Shared) -> None:
    cache, path = shared.cache, shared.root / keys.CATALOG
    old = path.read_bytes()
    newer = catalog.parse(old).next("2026-11-28T00:00:01Z").serialise()
    path.write_bytes(newer)
    assert cache.get(keys.CATALOG, Cache_Control="no-cache").content == newer
    path.write_bytes(old)
    assert cache.get(keys.CATALOG, Cache_Control="no-cache").content == newer
    path.unlink()
    assert cache.get(keys.CATALOG, Cache_Control="no-cache").content == newer
    path.write_bytes(newer)
    assert "catalog.older" in cache.said and "upstream.unusable" in cache.said


def test_a_restart_without_upstream_serves_what_it_has(root: Path, upstream: FaultProxy, tmp_path: Path,
                                                       environ: dict[str, str], modelfs: Run) -> None:
    with site(tmp_path / "site", upstream.url, environ) as cache:
        assert modelfs("pull", cache.url, "acme/base", "out").code == 0
        for pack in packs(root):
            cache.get(keys.PACKS + f"{pack.parent.name}/{pack.name}")
    lost = new_pack(root, 1)
    upstream.down()
    with site(tmp_path / "site", upstream.url, environ) as cache:
        assert "Starting from the cache." in cache.said
        assert modelfs("pull", cache.url, "acme/base", "again").code == 0
        manifest = newest_manifest(root)
        for key in objects(root):
            if (key.startswith("packs/") and key != lost.key) or manifest in key:
                assert cache.get(key, Cache_Control="no-cache").content == (root / key).read_bytes(), key
        gone = cache.get(lost.key)
        assert (gone.status_code, gone.headers["Retry-After"]) == (503, "1")
        assert cache.said.count("upstream.silent") == 1
        upstream.up()
        eventually(lambda: cache.get(lost.key).content == lost.data)
        eventually(lambda: cache.get(keys.CATALOG).status_code == 200 and "upstream.answers" in cache.said)


def newest_manifest(root: Path) -> str:
    repository = Repository.open(FileStore(root), soon())
    found = repository.catalog(soon()).catalog
    return repository.history(found, next(iter(found.models)), soon()).versions[-1].manifest.hex()


def test_what_one_mirror_has_wrong_comes_from_the_other(root: Path, upstream: FaultProxy, tmp_path: Path,
                                                        environ: dict[str, str]) -> None:
    """Wrong bytes, a wrong size, and a pack that is missing."""
    flipped, short, missing = [new_pack(root, seed) for seed in range(3)]
    second = Path(shutil.copytree(root, tmp_path / "second"))
    (root / flipped.key).write_bytes(flipped.data[:1000] + bytes([flipped.data[1000] ^ 1]) + flipped.data[1001:])
    (root / short.key).write_bytes(short.data[:-10])
    (root / missing.key).unlink()
    (tmp_path / "config.toml").write_text(f'[remotes.lab]\nurls = ["{upstream.url}", "{second}"]\n')
    with site(tmp_path / "site", "lab", environ, "--config", tmp_path / "config.toml") as cache:
        for pack in (flipped, short, missing):
            assert cache.get(pack.key).content == pack.data
        assert "chunk.corrupt" in cache.said


def test_killed_in_the_middle_it_begins_again_with_what_it_had_but_for_what_its_disk_changed(
        root: Path, upstream: FaultProxy, tmp_path: Path, environ: dict[str, str]) -> None:
    kept, under_way = [new_pack(root, seed) for seed in range(3)], new_pack(root, 3)
    with site(tmp_path / "site", upstream.url, environ) as cache:
        for pack in kept:
            assert cache.get(pack.key).content == pack.data
        upstream.add("stall", under_way.key, methods=("GET",), after=500_000)
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(cache.get, under_way.key)
            eventually(lambda: upstream.bytes_sent(under_way.key) >= 500_000)
            cache.kill()
            assert isinstance(asking.exception(), requests.RequestException)
    upstream.clear()
    upstream.forget()
    on_disk = [path for path in (tmp_path / "site" / "files").rglob("*") if path.is_file() and path.suffix != ".map"]
    damaged = next(path for path in on_disk if path.read_bytes() == kept[1].data)
    with damaged.open("r+b") as file:
        file.seek(4321)
        file.write(bytes([kept[1].data[4321] ^ 16]))
    with site(tmp_path / "site", upstream.url, environ) as cache:
        for _ in ("first touch", "later"):
            for pack in (*kept, under_way):
                assert cache.get(pack.key).content == pack.data
        assert cache.said.count("cache.corrupt") == 1
    fetched = {seen.path[1:] for seen in upstream.seen("packs/") if seen.method == "GET"}
    assert fetched == {kept[1].key, under_way.key}


@pytest.mark.parametrize("size", ["3200KiB", "0"])
def test_a_cache_that_is_too_small_or_keeps_nothing_gives_the_right_bytes(root: Path, upstream: FaultProxy, size: str,
                                                                          tmp_path: Path,
                                                                          environ: dict[str, str]) -> None:
    made, memory = [new_pack(root, seed) for seed in range(6)], {"MODELFS_FETCH_MEMORY": "24 MiB"}
    with site(tmp_path / "site", upstream.url, {**environ, **memory}, "--cache-size", size) as cache:
        def ask(number: int) -> bool:
            pack, start = made[number * 7 % len(made)], number * 4001 % 900_000
            return cache.get(pack.key, Range=f"bytes={start}-{start + 99_999}").content == \
                pack.data[start:start + 100_000]

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(ask, range(200)))
        taken = sum(path.stat().st_blocks * 512 for path in (tmp_path / "site" / "files").rglob("*"))
    assert taken < 4 << 20 and upstream.requests("packs/") > 2 * len(made)


def test_a_clients_token_goes_no_further_and_the_sites_own_does(root: Path, tmp_path: Path,
                                                                environ: dict[str, str]) -> None:
    tokens = {name: tmp_path / name for name in ("ours", "theirs")}
    for name, path in tokens.items():
        path.write_text(f"{name}-token\n")
        path.chmod(0o600)
    pack = new_pack(root, 1)
    with FaultProxy(root) as upstream, site(tmp_path / "site", upstream.url,
                                            {**environ, "MODELFS_TOKEN_FILE": str(tokens["ours"])},
                                            "--token-file", tokens["theirs"]) as cache:
        assert cache.get(pack.key).status_code == 401
        assert cache.get(pack.key, Authorization="Bearer ours-token").status_code == 401
        assert cache.get(pack.key, Authorization="Bearer theirs-token").content == pack.data
        assert {seen.headers.get("authorization") for seen in upstream.seen()} == {"Bearer ours-token"}


def test_what_cannot_be_a_site_is_refused(root: Path, upstream: FaultProxy, tmp_path: Path, modelfs: Run) -> None:
    before = objects(root)
    done = modelfs("serve", root, "--upstream", upstream.url)
    assert done.code == 7 and "a directory of its own" in done.err and objects(root) == before
    assert modelfs("serve", root, "--cache-size", "1GiB").code == 2
    upstream.down()
    done = modelfs("serve", tmp_path / "site", "--upstream", upstream.url, env={"MODELFS_FETCH_DEADLINE": "500ms"})
    assert done.code == 5 and upstream.url in done.err, "neither an upstream nor a cache"
