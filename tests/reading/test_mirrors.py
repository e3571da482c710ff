"""Reads of a repository that several stores have: whatever one of them does, as long as another lives nobody notices,
and nothing wrong is handed out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from repository.builder import Builder
from transfer.pushed import Reading, eventually, in_background, make_repository, noise, push_files, push_tree, soon

from modelfs.errors import CorruptChunk, DeadlinePassed, ModelfsError, ObjectMissing, Unavailable
from modelfs.metrics import Metrics
from modelfs.reading.fetcher import Fetcher
from modelfs.reading.reader import Reader
from modelfs.reading.versions import NoChunkCache, Versions
from modelfs.repository import keys
from modelfs.repository.catalog import Catalog
from modelfs.repository.info import parse_info
from modelfs.repository.repository import NoCache, Repository
from modelfs.stores.http_store import HttpStore
from modelfs.stores.replicas import Replicas, replicas_of
from modelfs.stores.retrying import MeteredStore, RetryingStore
from modelfs.units import Deadline, MiB

DATA = noise(9, 6 * MiB)


@contextmanager
def mirrored(*servers: FaultProxy, deadline_s: float = 20, hedge: bool = False,
             connections: int = 4) -> Iterator[Reading]:
    metrics = Metrics()
    stores = [MeteredStore(HttpStore(server.url, stall_s=0.5), metrics) for server in servers]
    replicas = Replicas(stores, keys.agrees, metrics, hedge=hedge)
    repository = Repository.open(RetryingStore(replicas, metrics), Deadline(deadline_s))
    fetcher = Fetcher(NoChunkCache(), metrics, connections=connections, memory_bytes=64 * MiB, deadline_s=deadline_s)
    try:
        yield Reading(repository, Versions(repository, NoChunkCache(), lambda: Deadline(deadline_s)), fetcher,
                      Reader(fetcher, metrics, 0), metrics)
    finally:
        replicas_of(repository.store).close()
        fetcher.close()


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    """The same repository twice."""
    push_files(make_repository(tmp_path / "one"), {"w.bin": DATA})
    return [tmp_path / "one", Path(shutil.copytree(tmp_path / "one", tmp_path / "two"))]


@pytest.fixture
def servers(roots: list[Path]) -> Iterator[list[FaultProxy]]:
    with ExitStack() as stack:
        yield [stack.enter_context(FaultProxy(root)) for root in roots]


def test_the_first_is_preferred_as_long_as_it_is_well(servers: list[FaultProxy]) -> None:
    with mirrored(*servers) as r:
        assert r.read(r.file("w.bin")) == DATA
        assert servers[0].requests("packs/") and not servers[1].requests("packs/")
        assert r.count("failovers") == 0


@pytest.mark.parametrize(("kind", "how"), [
    ("reset", {"after": 100_000}), ("truncate", {"after": 100_000}), ("stall", {"after": 100_000}), ("hang", {}),
    ("status", {"code": 503}), ("status", {"code": 429, "retry_after": "60"}), ("status", {"code": 404}),
    ("status", {"code": 403}), ("flip", {"offset": 50_000}), ("short_range", {}), ("wrong_range", {})])
def test_whatever_one_does_to_packs_a_reader_gets_right_bytes(servers: list[FaultProxy], kind: str,
                                                              how: dict[str, object]) -> None:
    with mirrored(*servers) as r:
        file = r.file("w.bin")
        servers[0].add(kind, "packs/", **how)  # type: ignore[arg-type]
        assert r.read(file) == DATA
        assert r.count("failovers") > 0
        assert servers[1].requests("packs/")


def test_one_that_dies_in_the_middle_of_a_read_is_replaced_and_later_preferred_again(
        servers: list[FaultProxy]) -> None:
    with mirrored(*servers) as r:
        file = r.file("w.bin")
        servers[0].add("drip", "packs/", piece=64 << 10, interval_s=0.05)
        reading = in_background(lambda: r.read(file))
        eventually(lambda: servers[0].bytes_sent("packs/") > 256 << 10)
        servers[0].down()
        assert reading.result() == DATA
        states = [replica.state for replica in r.repository.replicas.replicas]
        assert states == ["unreachable", "ok"]
        servers[0].clear()
        servers[0].up()
        eventually(lambda: r.repository.replicas.in_order()[0].number == 0)
        servers[1].forget()
        assert r.read(file, 3 * MiB, 1000) == DATA[3 * MiB:3 * MiB + 1000]
        assert not servers[1].requests("packs/")


def test_each_has_layouts_of_its_own(tmp_path: Path, servers: list[FaultProxy], roots: list[Path]) -> None:
    """The same version at other places: on the second, half of its chunks lie in a pack of another model."""
    source, info = tmp_path / "source-0", (roots[0] / "modelfs.json").read_bytes()
    shutil.rmtree(roots[1])
    other = make_repository(roots[1])
    (roots[1] / "modelfs.json").write_bytes(info)
    (roots[1] / "catalog.json").unlink()
    other.store.swap("catalog.json", None, Catalog(parse_info(info, "").id, 1, "2026-01-02T03:04:05Z", {}).serialise(),
                     soon())
    other = Repository.open(other.store, soon())
    push_files(other, {"half.bin": DATA[:3 * MiB]}, "acme/other")
    push_tree(source, other)
    with mirrored(*servers) as r:
        file = r.file("w.bin")
        layouts = [root / keys.layout(file.version.manifest.id) for root in roots]
        assert layouts[0].read_bytes() != layouts[1].read_bytes()
        servers[0].down()
        assert r.read(file) == DATA
        assert r.count("hash_failures") == 0, "planned by its own layout"


def test_missing_here_is_not_missing(servers: list[FaultProxy], roots: list[Path]) -> None:
    shutil.rmtree(roots[0] / "packs")
    with mirrored(*servers) as r:
        assert r.read(r.file("w.bin")) == DATA


def test_missing_everywhere_is_an_error_that_says_so_at_once(servers: list[FaultProxy], roots: list[Path]) -> None:
    for root in roots:
        shutil.rmtree(root / "packs")
    with mirrored(*servers) as r:
        file = r.file("w.bin")
        began = time.monotonic()
        with pytest.raises(ObjectMissing):
            r.read(file, 0, 10)
        assert time.monotonic() - began < 10


def test_missing_here_and_silence_there_is_no_missing(servers: list[FaultProxy], roots: list[Path]) -> None:
    shutil.rmtree(roots[0] / "packs")
    with mirrored(*servers, deadline_s=3) as r:
        file = r.file("w.bin")
        servers[1].down()
        with pytest.raises(ModelfsError) as caught:
            r.read(file, 0, 10)
        assert isinstance(caught.value, (Unavailable, DeadlinePassed))


def test_a_chunk_that_is_wrong_everywhere_is_never_handed_out(servers: list[FaultProxy]) -> None:
    with mirrored(*servers) as r:
        file = r.file("w.bin")
        for server in servers:
            server.add("flip", "packs/", offset=50_000)
        with pytest.raises(CorruptChunk):
            r.read(file, 0, 10)
        assert [replica.errors for replica in r.repository.replicas.replicas] == [1, 1]


def test_a_bad_chunk_counts_against_the_one_that_has_it(servers: list[FaultProxy]) -> None:
    with mirrored(*servers) as r:
        file = r.file("w.bin")
        servers[0].add("flip", "packs/", offset=50_000)
        assert r.read(file) == DATA
        assert r.count("hash_failures") == 1
        assert [replica.errors for replica in r.repository.replicas.replicas] == [1, 0]
        assert r.repository.replicas.replicas[0].well, "one bad object is no reason to leave it"


def test_both_gone_for_a_while_only_costs_time(servers: list[FaultProxy]) -> None:
    with mirrored(*servers) as r:
        file = r.file("w.bin")
        for server in servers:
            server.down()
        reading = in_background(lambda: r.read(file))
        time.sleep(0.5)
        servers[1].up()
        assert reading.result() == DATA


@pytest.mark.parametrize("kind", ["manifests/", "histories/", "modelfs.json", "catalog.json"])
def test_what_is_named_by_its_digest_comes_from_any(servers: list[FaultProxy], kind: str) -> None:
    servers[0].add("status", kind, code=404)
    with mirrored(*servers) as r:
        assert r.read(r.file("w.bin"), 0, 10) == DATA[:10]


@pytest.mark.parametrize("kind", ["manifests/", "histories/"])
def test_a_wrong_object_is_asked_of_the_next(servers: list[FaultProxy], kind: str) -> None:
    servers[0].add("flip", kind, offset=5)
    with mirrored(*servers) as r:
        assert r.read(r.file("w.bin"), 0, 10) == DATA[:10]


def test_a_slow_one_goes_behind_a_quick_one(servers: list[FaultProxy]) -> None:
    with mirrored(*servers) as r:
        replicas = r.repository.replicas
        replicas.replicas[0].served(0.5)
        for _ in range(20):
            replicas.replicas[0].served(0.5)
            replicas.replicas[1].served(0.01)
        assert [one.number for one in replicas.in_order()] == [1, 0]
        for _ in range(40):
            replicas.replicas[0].served(0.02)
        assert [one.number for one in replicas.in_order()] == [0, 1], "preferred, where it makes little difference"


def test_the_newest_catalog_is_begun_with(tmp_path: Path) -> None:
    built = Builder(tmp_path / "one")
    shutil.copytree(built.store.root, tmp_path / "two")
    built.push("acme/base", {"a": b"1"})
    with FaultProxy(tmp_path / "two") as lags, FaultProxy(built.store.root) as newest:
        store = Replicas([HttpStore(lags.url), HttpStore(newest.url)], keys.agrees)
        _, found = Repository.open_with_catalog(store, soon(), NoCache())
        assert found.catalog.serial == 2


def test_a_hedged_request_is_answered_by_the_mirror_where_the_first_is_slow(servers: list[FaultProxy]) -> None:
    with mirrored(*servers, hedge=True) as r:
        file = r.file("w.bin")
        first = r.repository.replicas.replicas[0]
        for _ in range(20):  # what is usual has to be known
            first.served(0.02)
        rule = servers[0].add("hang", "packs/", times=1)
        assert r.read(file) == DATA
        assert rule.hits == 1 and r.count("hedges") >= 1 and servers[1].requests("packs/")
        assert r.count("failovers") == 0 and first.well


def test_nothing_is_asked_twice_where_hedging_is_off_or_too_little_is_known(servers: list[FaultProxy]) -> None:
    for hedge in (False, True):
        with mirrored(*servers, hedge=hedge) as r:
            if not hedge:
                for _ in range(20):
                    r.repository.replicas.replicas[0].served(0.0)
            assert r.read(r.file("w.bin")) == DATA
            assert r.count("hedges") == 0 and not servers[1].requests("packs/")
