"""Histories are loaded once for all who ask, and a store that does not answer costs one deadline, whatever waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from repository.builder import Builder, deadline
from transfer.pushed import eventually, in_background

from modelfs.errors import Unavailable
from modelfs.ids import ModelName, ObjectId
from modelfs.repository.held import Held
from modelfs.repository.repository import Repository
from modelfs.stores.http_store import HttpStore
from modelfs.units import Deadline
from modelfs.view.shelves import Library, Shelf

A, B, C = (ModelName("acme", name) for name in "abc")


class Kept:
    """An ObjectCache in memory."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], bytes] = {}

    def get(self, kind: str, name: str) -> bytes | None:
        return self.objects.get((kind, name))

    def put(self, kind: str, name: str, data: bytes) -> None:
        self.objects[kind, name] = data

    def hold(self, kind: str, name: str, digest: ObjectId | None = None) -> Held | None:
        data = self.get(kind, name)
        return None if data is None else Held(data)

    def keep(self, kind: str, name: str, data: bytes | memoryview, digest: ObjectId | None = None) -> Held:
        self.put(kind, name, bytes(data))
        return Held(data)

    def receive(self, kind: str, name: str, size: int, readinto: Callable[[memoryview], None],
                digest: ObjectId) -> Held | None:
        return None


@pytest.fixture
def built(tmp_path: Path) -> Builder:
    builder = Builder(tmp_path / "repository")
    for model in (A, B, C):
        builder.push(str(model), {"f": b"1"})
    return builder


@pytest.fixture
def server(built: Builder) -> Iterator[FaultProxy]:
    with FaultProxy(built.store.root) as proxy:
        yield proxy


def library_of(server: FaultProxy, seconds: float, cache: Kept | None = None) -> Library:
    """seconds: the deadline of each load."""
    repository = Repository.open(HttpStore(server.url), deadline(), cache)
    return Library(repository, repository.catalog(deadline()).catalog, lambda: Deadline(seconds))


def push_all(built: Builder) -> None:
    for model in (A, B, C):
        built.push(str(model), {"f": b"2"})


def newest(library: Library) -> list[int]:
    return [max(library.now.shelves[model].versions) for model in (A, B, C)]


def test_all_who_ask_for_a_model_share_one_request_and_for_a_moment_its_failure(server: FaultProxy) -> None:
    library = library_of(server, 1)
    rule = server.add("hang", "histories/")
    asking = [in_background(lambda: library.shelf(A)) for _ in range(10)]
    assert all(isinstance(one.result(), Unavailable) for one in asking)
    hits = rule.hits
    assert hits < 5
    with pytest.raises(Unavailable):
        library.shelf(A)
    assert rule.hits == hits
    server.clear()
    assert library.shelf(B).model == B  # what failed was another
    eventually(lambda: isinstance(in_background(lambda: library.shelf(A)).result(), Shelf))
    server.forget()
    assert in_background(lambda: library.shelf(A)).result() is library.shelf(A)
    assert not server.requests()


def test_an_update_asks_for_no_more_histories_once_the_store_does_not_answer(built: Builder,
                                                                             server: FaultProxy) -> None:
    library = library_of(server, 0.3)
    for model in (A, B, C):
        library.shelf(model)
    push_all(built)
    catalog = built.repository.catalog(deadline()).catalog
    rule = server.add("hang", "histories/")
    assert library.update(catalog) is True
    assert rule.hits == 1
    assert newest(library) == [1, 1, 1]
    server.clear()
    assert library.update(catalog) is False
    assert newest(library) == [2, 2, 2]


def test_one_history_that_hangs_for_ever_keeps_no_other_back(built: Builder, server: FaultProxy) -> None:
    library = library_of(server, 0.3)
    for model in (A, B, C):
        library.shelf(model)
    push_all(built)
    catalog = built.repository.catalog(deadline()).catalog
    server.add("hang", catalog.models[A].hex())
    assert library.update(catalog) is True
    assert library.update(catalog) is True
    assert newest(library) == [1, 2, 2]


def test_a_model_of_which_the_cache_has_the_history_stays_when_the_next_one_cannot_be_had(
        built: Builder, server: FaultProxy) -> None:
    cache = Kept()
    library_of(server, 0.3, cache).shelf(A)
    again = library_of(server, 0.3, cache)
    push_all(built)
    server.add("hang", "histories/")
    assert again.update(built.repository.catalog(deadline()).catalog) is True
    server.forget()
    assert list(again.shelf(A).versions) == [1]
    assert not server.requests()
    with pytest.raises(Unavailable):
        again.shelf(B)
