"""The catalog in etcd: three real members, a store beside them, and answers that are lost on their way."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import etcdservers
import pytest
import s3servers
from etcdservers import Cluster
from faultproxy import FaultProxy
from servers import own_server
from transfer.pushed import eventually, in_background

from modelfs.app.repositories import stores_of
from modelfs.config import load_config
from modelfs.errors import (
    Conflict,
    DeadlinePassed,
    Forbidden,
    NoSpace,
    ObjectMissing,
    SwapLost,
    Unavailable,
    WrongServer,
)
from modelfs.repository.info import RepositoryInfo, initialise
from modelfs.stores.etcd_catalog import CatalogKeys, ConsensusStore
from modelfs.stores.etcd_client import EtcdClient
from modelfs.stores.file_store import FileStore
from modelfs.stores.http_store import HttpStore
from modelfs.stores.store import Buffer, ObjectStore
from modelfs.units import Deadline, MiB

KEY, MARK = "catalog.json", "etcd.json"
TXN = "v3/kv/txn"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with etcdservers.cluster(tmp_path_factory.mktemp("etcd")) as made:
        yield made


@pytest.fixture
def etcd(running: Cluster) -> Cluster:
    """All of its members run, and hold nothing."""
    running.heal()
    running.forget()
    return running


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def soon() -> Deadline:
    return Deadline(20)


def kept(store: ObjectStore, urls: list[str]) -> ConsensusStore:
    """Its catalogs are numbers, which are their serials."""
    return ConsensusStore(store, EtcdClient(urls), CatalogKeys(KEY, MARK), limit=8 * MiB,
                          repository=lambda store, deadline: "ab" * 16, serial=lambda data: int(data[:20].split()[0]))


def get(store: ObjectStore) -> tuple[bytes, str]:
    found = store.get(KEY, soon(), limit=8 * MiB)
    assert found is not None and found.etag is not None
    return found.data, found.etag


def count_up(store: ObjectStore, times: int) -> None:
    """Each time what stands there, and one more."""
    done = 0
    while done < times:
        data, etag = get(store)
        try:
            store.swap(KEY, etag, b"%d" % (int(data) + 1), soon())
            done += 1
        except SwapLost:
            pass


class Broken(FileStore):
    """A directory of which the catalog (or, of a first use, the mark) may fail to be written, or be written late."""

    def __init__(self, root: Path, before: Callable[[], None] = lambda: None,
                 before_mark: Callable[[], None] = lambda: None) -> None:
        super().__init__(root)
        self._before, self._before_mark = before, before_mark

    def put(self, key: str, data: Buffer, deadline: Deadline, *, only_if_absent: bool = False) -> bool:
        if key == MARK:
            self._before_mark()
        return super().put(key, data, deadline, only_if_absent=only_if_absent)

    def swap(self, key: str, expected: str | None, new: bytes, deadline: Deadline) -> str | None:
        """Without a condition, as the plainest servers put."""
        self._before()
        self.put(key, new, deadline)
        return self._etag(key)


def refuse() -> None:
    raise Forbidden("an object may not be written")


def test_the_first_change_takes_over_what_the_store_has_and_readers_see_each_in_both(etcd: Cluster, root: Path) -> None:
    FileStore(root).swap(KEY, None, b"1", soon())
    store = kept(FileStore(root), etcd.urls)
    data, etag = get(store)
    assert (data, etcd.held()) == (b"1", [])
    etag2 = store.swap(KEY, etag, b"2", soon())
    assert get(store) == get(kept(FileStore(root), etcd.urls)) == (b"2", etag2)
    assert (root / KEY).read_bytes() == b"2" and store.stat(KEY, soon()).size == 1
    assert store.get(KEY, soon(), limit=10, etag=etag2) is None
    assert [info.key for info in store.list("", soon())] == [KEY], "the mark is no object of the repository"
    with pytest.raises(SwapLost):
        store.swap(KEY, etag, b"3", soon())


@pytest.mark.parametrize("others", [2, 0], ids=["of one of three", "of the only one"])
def test_a_swap_whose_answer_was_lost_is_made_once_and_is_no_error(etcd: Cluster, root: Path, others: int) -> None:
    with FaultProxy(upstream=etcd.urls[0]) as proxy:
        store = kept(FileStore(root), [proxy.url, *etcd.urls[1:1 + others]])
        one = store.swap(KEY, None, b"1", soon())
        lost = proxy.add("lost_answer", TXN, times=1, methods=("POST",))
        two = store.swap(KEY, one, b"2", soon())
        assert lost.hits == 1 and get(store) == (b"2", two)


def test_a_swap_of_which_nobody_can_be_asked_is_not_said_to_be_lost(etcd: Cluster, root: Path) -> None:
    with FaultProxy(upstream=etcd.urls[0]) as proxy:
        store = kept(FileStore(root), [proxy.url])
        one = store.swap(KEY, None, b"1", soon())
        lost = proxy.add("lost_answer", TXN, methods=("POST",))
        with pytest.raises(DeadlinePassed, match="does not say whether the catalog was changed"):
            store.swap(KEY, one, b"2", Deadline(1))
        proxy.clear()
        assert lost.hits > 1 and get(store)[0] == b"2"


def test_a_lost_answer_is_no_error_either_where_others_changed_the_catalog_since(etcd: Cluster, root: Path) -> None:
    with FaultProxy(upstream=etcd.urls[0]) as proxy:
        store, other = kept(FileStore(root), [proxy.url, *etcd.urls[1:]]), kept(FileStore(root), etcd.urls[1:])
        one = store.swap(KEY, None, b"1", soon())
        held = proxy.add("stall", TXN, times=1, methods=("POST",))
        swap = in_background(lambda: store.swap(KEY, one, b"2", soon()))
        eventually(lambda: held.hits == 1 and get(other)[0] == b"2")
        count_up(other, 3)
        proxy.clear()
        assert isinstance(swap.result(), str)
        assert get(store)[0] == b"5"


def test_a_swap_that_never_arrived_and_came_second_is_lost(etcd: Cluster, root: Path) -> None:
    with FaultProxy(upstream=etcd.urls[0]) as proxy:
        store, other = kept(FileStore(root), [proxy.url, *etcd.urls[1:]]), kept(FileStore(root), etcd.urls[1:])
        one = store.swap(KEY, None, b"1", soon())
        held = proxy.add("hang", TXN, times=1, methods=("POST",))
        swap = in_background(lambda: store.swap(KEY, one, b"2", soon()))
        eventually(lambda: held.hits == 1)
        other.swap(KEY, one, b"3", soon())
        proxy.clear()
        assert isinstance(swap.result(), SwapLost) and get(store)[0] == b"3"


def test_an_equal_catalog_of_another_is_no_success_of_ours(etcd: Cluster, root: Path) -> None:
    """Two who count from the same number write the same bytes, and one of them has lost."""
    stores = [kept(FileStore(root), etcd.urls) for _ in range(4)]
    stores[0].swap(KEY, None, b"0", soon())
    threads = [threading.Thread(target=count_up, args=(store, 4)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert get(stores[0])[0] == b"16" == (root / KEY).read_bytes()


def test_of_many_who_are_the_first_to_use_etcd_all_are_served(etcd: Cluster, root: Path) -> None:
    FileStore(root).swap(KEY, None, b"0", soon())
    threads = [threading.Thread(target=count_up, args=(kept(FileStore(root), etcd.urls), 1)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert get(kept(FileStore(root), etcd.urls))[0] == b"5"


def test_of_two_first_users_the_one_who_came_second_puts_the_others_mark_back(etcd: Cluster, root: Path) -> None:
    waits, go = threading.Event(), threading.Event()

    def wait() -> None:
        if not waits.is_set():
            waits.set()
            assert go.wait(30)

    late = in_background(lambda: kept(Broken(root, before_mark=wait), etcd.urls).swap(KEY, None, b"1", soon()))
    assert waits.wait(20)
    store = kept(FileStore(root), etcd.urls)
    one = store.swap(KEY, None, b"1", soon())
    mark = (root / MARK).read_bytes()
    go.set()
    assert isinstance(late.result(), SwapLost) and (root / MARK).read_bytes() == mark
    assert kept(FileStore(root), etcd.urls).swap(KEY, one, b"2", soon()) == get(store)[1]


def test_what_a_writer_could_not_publish_the_next_reader_publishes(etcd: Cluster, root: Path) -> None:
    one = kept(FileStore(root), etcd.urls).swap(KEY, None, b"1", soon())
    kept(Broken(root, refuse), etcd.urls).swap(KEY, one, b"2", soon())
    assert (root / KEY).read_bytes() == b"1"
    assert get(kept(Broken(root, refuse), etcd.urls))[0] == b"2", "who may not write reads what holds"
    assert (root / KEY).read_bytes() == b"1"
    assert get(kept(FileStore(root), etcd.urls))[0] == b"2"
    assert (root / KEY).read_bytes() == b"2"


def test_a_publisher_that_rested_leaves_no_older_catalog(etcd: Cluster, root: Path) -> None:
    """Over a store without conditions, where its old one goes over the newer."""
    one = kept(FileStore(root), etcd.urls).swap(KEY, None, b"1", soon())
    resting, go = threading.Event(), threading.Event()

    def rest() -> None:
        if not resting.is_set():
            resting.set()
            assert go.wait(30)

    slow = in_background(lambda: kept(Broken(root, rest), etcd.urls).swap(KEY, one, b"2", soon()))
    assert resting.wait(20)
    other = kept(FileStore(root), etcd.urls)
    three = other.swap(KEY, get(other)[1], b"3", soon())
    assert get(other) == (b"3", three) and (root / KEY).read_bytes() == b"3", "whose turn is over is not waited for"
    go.set()
    assert isinstance(slow.result(), str)
    assert (root / KEY).read_bytes() == b"3"


def test_without_a_majority_nothing_changes_and_the_store_is_read(etcd: Cluster, root: Path) -> None:
    store = kept(FileStore(root), etcd.urls)
    one = store.swap(KEY, None, b"1", soon())
    for member in etcd.members[:2]:
        member.kill()
    with pytest.raises(Unavailable, match="no majority of 3 members") as raised:
        store.swap(KEY, one, b"2", Deadline(1))
    assert all(url in str(raised.value) for url in etcd.urls)
    assert get(store) == (b"1", one) and store.get(KEY, soon(), limit=10, etag=one) is None
    assert (root / KEY).read_bytes() == b"1"
    etcd.heal()
    assert store.swap(KEY, one, b"2", soon()) == get(kept(FileStore(root), etcd.urls))[1]


def test_two_stores_of_one_repository_are_not_taken_for_each_other(etcd: Cluster, root: Path, tmp_path: Path) -> None:
    first, second = kept(FileStore(root), etcd.urls), kept(FileStore(tmp_path / "replica"), etcd.urls)
    first.swap(KEY, None, b"5", soon())
    FileStore(tmp_path / "replica").swap(KEY, None, b"4", soon())
    data, etag = get(second)
    assert data == b"4"
    with pytest.raises(Conflict, match="another store"):
        second.swap(KEY, etag, b"6", soon())
    assert (get(first)[0], get(second)[0]) == (b"5", b"4")
    etcd.forget()
    assert second.swap(KEY, etag, b"6", soon()) == get(second)[1], "as the message advises"


def test_a_catalog_that_came_past_etcd_is_taken_over_and_an_older_one_is_not(etcd: Cluster, root: Path) -> None:
    store = kept(FileStore(root), etcd.urls)
    one = store.swap(KEY, None, b"10", soon())
    (root / KEY).write_bytes(b"11 past")
    data, etag = get(store)
    assert data == b"11 past"
    (root / KEY).write_bytes(b"9 of a backup")
    assert get(store) == (data, etag) and (root / KEY).read_bytes() == data
    with pytest.raises(SwapLost):
        store.swap(KEY, one, b"11", soon())
    assert store.swap(KEY, etag, b"12", soon()) == get(store)[1]


def test_a_catalog_that_came_past_etcd_does_not_undo_what_was_not_published_yet(etcd: Cluster, root: Path) -> None:
    one = kept(FileStore(root), etcd.urls).swap(KEY, None, b"1", soon())
    kept(Broken(root, refuse), etcd.urls).swap(KEY, one, b"2", soon())
    (root / KEY).write_bytes(b"3 past")
    assert get(kept(FileStore(root), etcd.urls))[0] == b"2" == (root / KEY).read_bytes()


def test_a_catalog_beyond_etcds_limit_is_refused_and_the_limit_named(etcd: Cluster, root: Path) -> None:
    store = kept(FileStore(root), etcd.urls)
    one = store.swap(KEY, None, b"1", soon())
    large = b"2 " + random.Random(3).randbytes(2 * MiB)
    with pytest.raises(NoSpace, match="--max-request-bytes"):
        store.swap(KEY, one, large, soon())
    with pytest.raises(NoSpace, match="--max-request-bytes"):
        store.swap(KEY, one, large * 3, soon())
    assert get(store) == (b"1", one)
    text = b"2 " + bytes(3 * MiB)
    assert store.swap(KEY, one, text, soon()) == get(store)[1], "what counts is its size compressed"
    assert get(store)[0] == text


def test_what_is_no_etcd_is_said_to_be_none(root: Path) -> None:
    (root / "www").mkdir(parents=True)
    with FaultProxy(root / "www") as server:
        store = kept(FileStore(root), [server.url])
        with pytest.raises(WrongServer, match="no etcd"):
            store.swap(KEY, None, b"1", soon())


def test_a_member_that_hangs_costs_its_share_of_the_time_and_no_more(etcd: Cluster, root: Path) -> None:
    with FaultProxy(upstream=etcd.urls[0]) as proxy:
        proxy.add("hang", "v3/", methods=("POST",))
        store = kept(FileStore(root), [proxy.url, *etcd.urls[1:]])
        one = store.swap(KEY, None, b"1", soon())
        asked = proxy.requests()
        store.swap(KEY, one, b"2", soon())
        assert proxy.requests() == asked == 1, "who answered last is asked first"


def test_over_an_object_store_without_conditions_no_update_is_lost_and_nobody_is_warned(
        etcd: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """As a remote of the configuration has it."""
    said: list[str] = []
    for name, value in s3servers.environ("moto").items():
        monkeypatch.setenv(name, value)
    with s3servers.stripping(s3servers.endpoint("moto"), "if-") as proxy:
        prefix = s3servers.new_prefix()
        (tmp_path / "config.toml").write_text(
            f'[remotes.lab]\nurls = ["s3://{s3servers.BUCKET}/{prefix}"]\nendpoint = "{proxy.url}"\n'
            f"etcd = {json.dumps(etcd.urls)}\n")
        config = load_config(file=tmp_path / "config.toml", flags={}, environ={"HOME": str(tmp_path)},
                             etc=tmp_path / "none")

        def new() -> ObjectStore:
            return stores_of(config, "lab", tell=said.append)[0]

        first = new()
        assert first.put("modelfs.json", RepositoryInfo("cd" * 16, MiB).serialise(), soon(), only_if_absent=True)
        first.swap(KEY, None, b"0", soon())
        threads = [threading.Thread(target=count_up, args=(new(), 3)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert get(first)[0] == b"12" == s3servers.Bucket(proxy.url, prefix).get(KEY)
    assert f"modelfs/{'cd' * 16}/catalog" in etcd.held()
    assert not said and not [record for record in caplog.records if "single_writer" in record.getMessage()]


def test_over_http_the_servers_own_condition_guards_what_is_published(etcd: Cluster, root: Path) -> None:
    root.mkdir()
    with FaultProxy(root, writable=True) as server:
        store = kept(HttpStore(server.url), etcd.urls)
        with pytest.raises(ObjectMissing):
            store.get(KEY, soon(), limit=10)
        store.swap(KEY, None, b"0", soon())
        count_up(store, 3)
        assert (root / KEY).read_bytes() == b"3"


def test_a_repository_behind_our_own_server_is_said_to_need_no_etcd(etcd: Cluster, root: Path) -> None:
    initialise(FileStore(root), MiB, 0.0, soon())
    with own_server(root, writable=True) as url:
        store = kept(HttpStore(url), etcd.urls)
        found = store.get(KEY, soon(), limit=MiB)
        assert found is not None
        with pytest.raises(Forbidden, match="needs no etcd"):
            store.swap(KEY, found.etag, b"2", soon())
    assert etcd.held() == []
