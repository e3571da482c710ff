"""The watch over the catalog, one look at a time, over a server that misbehaves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from repository.builder import Builder

from modelfs.daemon.watch import CatalogWatch
from modelfs.repository.catalog import Catalog
from modelfs.repository.repository import Repository
from modelfs.stores.opening import open_store
from modelfs.units import Deadline


class Seen:
    """A view that takes what it is given. unready: how many times it still says that something is missing."""

    def __init__(self) -> None:
        self.catalogs: list[Catalog] = []
        self.unready = 0
        self.told = threading.Event()

    def update(self, catalog: Catalog) -> bool:
        self.catalogs.append(catalog)
        self.told.set()
        self.unready -= 1
        return self.unready >= 0


@pytest.fixture
def built(tmp_path: Path) -> Builder:
    return Builder(tmp_path / "repository")


@pytest.fixture
def server(built: Builder) -> Iterator[FaultProxy]:
    with FaultProxy(built.store.root) as proxy:
        yield proxy


@pytest.fixture
def watch(server: FaultProxy) -> Iterator[CatalogWatch]:
    def renew() -> Deadline:
        return Deadline(2)

    repository = Repository.open(open_store(server.url), renew())
    begun_with = repository.catalog(renew())
    made = CatalogWatch(repository, begun_with, poll_s=600, renew=renew,
                        remember=repository.remember_catalog)
    yield made
    made.stop()


def test_a_new_catalog_reaches_the_view_once(built: Builder, watch: CatalogWatch, server: FaultProxy) -> None:
    view = Seen()
    watch.look(view)
    assert view.catalogs == []
    built.push("acme/base", {"a": b"1"})
    watch.look(view)
    watch.look(view)
    assert [catalog.serial for catalog in view.catalogs] == [2]
    assert [seen.sent > 0 for seen in server.seen("catalog.json")][-3:] == [False, True, False]


def test_what_the_view_could_not_load_is_tried_again_without_a_new_catalog(built: Builder,
                                                                           watch: CatalogWatch) -> None:
    view = Seen()
    view.unready = 2
    built.push("acme/base", {"a": b"1"})
    for _ in range(4):
        watch.look(view)
    assert [catalog.serial for catalog in view.catalogs] == [2, 2, 2]


def test_each_trouble_of_a_store_has_a_name_and_is_logged_once_a_change(
        watch: CatalogWatch, server: FaultProxy, built: Builder, caplog: pytest.LogCaptureFixture) -> None:
    view = Seen()
    watch.look(view)
    assert watch.stores()[0]["state"] == "ok"
    latency = watch.stores()[0]["latency_ms"]
    assert latency > 0
    with caplog.at_level(logging.INFO):
        for kind, options, state in (("status", {"code": 403}, "refused"), ("reset", {}, "unreachable"),
                                     ("flip", {"offset": 0}, "faulty")):
            built.push("acme/base", {"a": kind.encode()})
            server.add(kind, "catalog.json", **options)
            watch.look(view)
            watch.look(view)
            assert watch.stores()[0]["state"] == state
            server.clear()
    assert caplog.text.count("catalog.store") == 3
    watch.look(view)
    assert watch.stores() == [{"url": server.url, "state": "ok", "errors": 6,
                               "latency_ms": watch.stores()[0]["latency_ms"]}]
    assert view.catalogs[-1].serial == 4


def test_a_new_period_holds_from_now_on(watch: CatalogWatch, built: Builder) -> None:
    view = Seen()
    built.push("acme/base", {"a": b"1"})
    watch.start(view)
    watch.set_poll(0.01)
    assert view.told.wait(30)


def test_a_fault_of_ours_does_not_end_the_watching(watch: CatalogWatch, built: Builder) -> None:
    class Broken(Seen):
        def update(self, catalog: Catalog) -> bool:
            self.catalogs.append(catalog)
            if len(self.catalogs) == 1:
                raise RuntimeError("a fault")
            self.told.set()
            return False

    view = Broken()
    built.push("acme/base", {"a": b"1"})
    watch.start(view)
    watch.set_poll(0.01)
    assert view.told.wait(30)
    assert len(view.catalogs) == 2
