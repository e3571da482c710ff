"""RetryingStore and MeteredStore over a real HTTP store whose server fails for a while."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from faultproxy import FaultProxy

from modelfs.errors import DeadlinePassed, Forbidden, ObjectMissing, SwapLost, Unavailable, WrongServer
from modelfs.metrics import Metrics
from modelfs.stores import retrying
from modelfs.stores.file_store import FileStore
from modelfs.stores.http_store import HttpStore
from modelfs.stores.retrying import MeteredStore, RetryingStore
from modelfs.units import Deadline

PACK = "packs/ab/ab" + "1" * 62


def soon() -> Deadline:
    return Deadline(20)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultProxy]:
    FileStore(tmp_path).put(PACK, b"0123456789", soon())
    with FaultProxy(tmp_path, writable=True) as proxy:
        yield proxy


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def store(server: FaultProxy, metrics: Metrics) -> RetryingStore:
    return RetryingStore(MeteredStore(HttpStore(server.url), metrics), metrics, first_wait_s=0.005)


@pytest.mark.parametrize("kind", ["status", "reset", "lost_answer", "encoding"])
def test_what_fails_for_a_while_succeeds_and_is_counted(
        server: FaultProxy, store: RetryingStore, metrics: Metrics, kind: str) -> None:
    server.add(kind, times=3)
    found = store.get(PACK, soon(), limit=100)
    assert found and found.data == b"0123456789"
    assert (server.requests(), metrics.snapshot()["fetch_retries"], metrics.snapshot()["requests"]) == (4, 3, 4)


def test_a_range_is_opened_again_and_its_bytes_are_counted(
        server: FaultProxy, store: RetryingStore, metrics: Metrics) -> None:
    server.add("wrong_range", times=2)
    out = bytearray(4)
    with store.open_range(PACK, 2, 4, soon()) as stream:
        stream.readinto(memoryview(out))
    assert out == b"2345" and metrics.snapshot()["bytes_fetched"] == 4 and server.requests() == 3


def test_a_range_that_breaks_midway_is_its_readers_to_plan_anew(server: FaultProxy, store: RetryingStore) -> None:
    server.add("truncate", after=3)
    with store.open_range(PACK, 0, 10, soon()) as stream:
        stream.readinto(memoryview(bytearray(3)))
        with pytest.raises(Unavailable):
            stream.readinto(memoryview(bytearray(7)))
    assert server.requests() == 1


def test_a_server_that_stays_broken_is_asked_until_the_deadline(server: FaultProxy, store: RetryingStore) -> None:
    server.add("status", code=500)
    with pytest.raises(DeadlinePassed, match=r"HTTP 500.*tried [0-9]+ times"):
        store.stat(PACK, Deadline(0.3))
    assert server.requests() > 3


def test_what_a_store_last_said_is_told_when_time_is_up(server: FaultProxy, store: RetryingStore) -> None:
    server.add("status", code=500, times=1)
    server.add("hang")
    with pytest.raises(DeadlinePassed, match=r"HTTP 500.*tried 2 times"):
        store.stat(PACK, Deadline(0.5))


def test_what_trying_again_cannot_mend_is_tried_once(server: FaultProxy, store: RetryingStore) -> None:
    with pytest.raises(ObjectMissing):
        store.stat("packs/none", soon())
    server.add("status", code=403)
    with pytest.raises(Forbidden):
        store.stat(PACK, soon())
    assert server.requests() == 2


def test_retry_after_beyond_the_deadline_gives_up_at_once(server: FaultProxy, store: RetryingStore) -> None:
    server.add("status", retry_after="120")
    with pytest.raises(Unavailable, match="asks to wait 120 s"):
        store.stat(PACK, Deadline(60))
    assert server.requests() == 1


def test_retry_after_within_the_deadline_is_waited_for(server: FaultProxy, store: RetryingStore) -> None:
    server.add("status", times=1, retry_after="1")
    assert store.stat(PACK, soon()).size == 10
    assert server.requests() == 2


def test_a_swap_whose_answer_was_lost_has_succeeded(server: FaultProxy, store: RetryingStore) -> None:
    etag = store.swap("catalog.json", None, b"one", soon())
    server.add("lost_answer", methods=("PUT",), times=1)
    second = store.swap("catalog.json", etag, b"two", soon())
    found = store.get("catalog.json", soon(), limit=10)
    assert found and (found.data, found.etag) == (b"two", second)
    assert [seen.method for seen in server.seen()].count("PUT") == 3


def test_a_swap_that_never_arrived_is_made(server: FaultProxy, store: RetryingStore) -> None:
    etag = store.swap("catalog.json", None, b"one", soon())
    server.add("status", methods=("PUT",), times=2)
    store.swap("catalog.json", etag, b"two", soon())
    found = store.get("catalog.json", soon(), limit=10)
    assert found and found.data == b"two"


def test_a_swap_whose_answer_was_lost_and_that_another_overtook_is_lost(
        server: FaultProxy, store: RetryingStore) -> None:
    etag = store.swap("catalog.json", None, b"one", soon())
    assert server.store
    server.store.put("catalog.json", b"by another", soon())
    server.add("status", methods=("PUT",), times=1)
    with pytest.raises(SwapLost):
        store.swap("catalog.json", etag, b"two", soon())
    found = store.get("catalog.json", soon(), limit=10)
    assert found and found.data == b"by another"


def test_a_first_swap_whose_answer_was_lost_has_succeeded(server: FaultProxy, store: RetryingStore) -> None:
    server.add("lost_answer", methods=("PUT",), times=1)
    assert store.swap("catalog.json", None, b"one", soon())


def test_puts_and_deletes_are_made_again(server: FaultProxy, store: RetryingStore) -> None:
    server.add("lost_answer", methods=("PUT", "DELETE"), times=2)
    assert store.put("packs/x", b"x", soon()) is True
    server.clear()
    server.add("lost_answer", methods=("DELETE",), times=2)
    store.delete("packs/x", soon())
    with pytest.raises(ObjectMissing):
        store.stat("packs/x", soon())


def test_a_server_that_comes_back_before_the_deadline_is_met(server: FaultProxy, store: RetryingStore,
                                                             metrics: Metrics) -> None:
    server.down()
    seen = metrics.snapshot

    def back_after_some_tries(name: str, n: int = 1) -> None:
        Metrics.add(metrics, name, n)
        if name == "fetch_retries" and seen()["fetch_retries"] == 3:
            server.up()
    store._metrics = type("Counting", (), {"add": staticmethod(back_after_some_tries)})()  # type: ignore[assignment]
    assert store.stat(PACK, soon()).size == 10


def test_who_waits_for_a_store_is_told_once_why_and_until_when(server: FaultProxy,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "TELL_AFTER_S", 0.2)
    told: list[str] = []
    store = RetryingStore(HttpStore(server.url), tell=told.append, first_wait_s=0.005)
    server.add("status", code=503, times=2)
    assert store.stat(PACK, soon()).size == 10
    assert told == [], "two quick tries are no wait"
    server.down()
    for _ in range(2):
        with pytest.raises(DeadlinePassed):
            store.stat(PACK, Deadline(1))
    assert len(told) == 1
    assert re.fullmatch(rf"{server.url} does not answer \(Connection refused\); trying until \d\d:\d\d:\d\d", told[0])


def test_what_answers_without_tls_is_not_asked_again(server: FaultProxy, metrics: Metrics) -> None:
    store = RetryingStore(HttpStore(server.url.replace("http:", "https:")), metrics)
    with pytest.raises(WrongServer, match=r"does not answer with TLS.*http://"):
        store.stat(PACK, soon())
    assert metrics.snapshot()["fetch_retries"] == 0
