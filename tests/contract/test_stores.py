"""What every store must do, whichever it is: the same tests over a directory, our server, nginx, a plain server,
object stores behind servers that speak like S3, Azure and Google, and a directory whose catalog is in etcd.

Rule: a store that cannot write (servers that only read) is filled through its directory, and must refuse by Forbidden.
An object store is filled by another client.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import cloudservers
import etcdservers
import pytest
from faultproxy import FaultProxy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import nginx, own_server

from modelfs.errors import BadInput, DeadlinePassed, Forbidden, Malformed, ObjectMissing, SwapLost
from modelfs.metrics import Metrics
from modelfs.stores.cloud_store import CloudStore
from modelfs.stores.etcd_catalog import CatalogKeys, ConsensusStore
from modelfs.stores.etcd_client import EtcdClient
from modelfs.stores.file_store import FileStore
from modelfs.stores.http_store import HttpStore
from modelfs.stores.retrying import MeteredStore, RetryingStore
from modelfs.stores.store import ObjectStore
from modelfs.units import Deadline, MiB

PACK = "packs/ab/ab" + "1" * 62
LAYOUT = "layouts/cd/cd" + "2" * 62
ABSENT = "packs/ee/ee" + "3" * 62
CONTENT = bytes(range(256)) * 40 + b"end"
KINDS = ("directory", "wrapped directory", "own server", "nginx", "plain server", "writable server", "etcd",
         *cloudservers.SERVERS)
WRITABLE = ("directory", "wrapped directory", "writable server", "etcd", *cloudservers.SERVERS)
LISTABLE = ("directory", "wrapped directory", "etcd", *cloudservers.SERVERS)
slow_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
                        max_examples=40)


@dataclass(frozen=True, slots=True)
class Case:
    """store: the one under test. behind: its directory, or bucket, to fill it."""

    kind: str
    store: ObjectStore
    behind: FileStore | cloudservers.Bucket


def soon() -> Deadline:
    return Deadline(20)


def _store(kind: str, root: Path, scratch: Path, stack: ExitStack) -> ObjectStore:
    match kind:
        case "directory":
            return FileStore(root)
        case "wrapped directory":
            metrics = Metrics()
            return RetryingStore(MeteredStore(FileStore(root), metrics), metrics)
        case "etcd":
            members = stack.enter_context(etcdservers.cluster(scratch, 1)).urls
            return ConsensusStore(FileStore(root), EtcdClient(members), CatalogKeys("catalog.json", "etcd.json"),
                                  limit=MiB, repository=lambda store, deadline: "contract", serial=lambda data: 0)
        case "own server":
            return HttpStore(stack.enter_context(own_server(root)))
        case "nginx":
            return HttpStore(stack.enter_context(nginx(root, scratch)))
        case _:
            return HttpStore(stack.enter_context(FaultProxy(root, writable=kind == "writable server")).url)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Case]]:
    """One store of each kind for all tests of this module: its root is emptied between them."""
    made: dict[str, Case] = {}
    with ExitStack() as stack, pytest.MonkeyPatch.context() as environment:
        def case(kind: str) -> Case:
            if kind not in made and kind in cloudservers.SERVERS:
                for name, value in cloudservers.environ(kind).items():
                    environment.setenv(name, value)
                prefix = cloudservers.new_prefix()
                made[kind] = Case(kind, CloudStore(cloudservers.url(kind, prefix)), cloudservers.bucket(kind, prefix))
            elif kind not in made:
                base = tmp_path_factory.mktemp("store")
                (base / "root").mkdir()
                store = _store(kind, base / "root", base / "scratch", stack)
                made[kind] = Case(kind, store, FileStore(base / "root"))
            return made[kind]
        yield case


def _fresh(case: Case) -> Case:
    if isinstance(case.store, ConsensusStore):
        case.store.delete("catalog.json", soon())
    for info in list(case.behind.list("", soon())):
        case.behind.delete(info.key, soon())
    return case


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    return _fresh(cases(request.param))


@pytest.fixture(params=WRITABLE)
def writable(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    return _fresh(cases(request.param))


@pytest.fixture(params=[kind for kind in KINDS if kind not in WRITABLE])
def read_only(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    return _fresh(cases(request.param))


def read(store: ObjectStore, key: str, offset: int, length: int) -> bytes:
    out = bytearray(length)
    with store.open_range(key, offset, length, soon()) as stream:
        stream.readinto(memoryview(out))
    return bytes(out)


def get(store: ObjectStore, key: str, limit: int = MiB) -> bytes:
    found = store.get(key, soon(), limit=limit)
    assert found is not None
    return found.data


def test_an_object_comes_back_as_it_was_stored(case: Case) -> None:
    case.behind.put(PACK, CONTENT, soon())
    assert get(case.store, PACK) == CONTENT


def test_a_large_object_comes_back_without_a_copy_and_nobody_can_write_to_it(case: Case) -> None:
    for size in (MiB - 1, MiB, 3 * MiB + 5):
        data = random.Random(size).randbytes(size)
        case.behind.put(PACK, data, soon())
        found = case.store.get(PACK, soon(), limit=size)
        assert found is not None and found.content == data == found.data
        assert size < MiB or (isinstance(found.content, memoryview) and found.content.readonly)
        assert found.etag is not None and case.store.get(PACK, soon(), limit=size, etag=found.etag) is None


def test_an_empty_object_is_an_object(case: Case) -> None:
    case.behind.put(LAYOUT, b"", soon())
    assert get(case.store, LAYOUT) == b""
    assert case.store.stat(LAYOUT, soon()).size == 0


def test_stat_tells_size_and_time(case: Case) -> None:
    case.behind.put(PACK, CONTENT, soon())
    found, behind = case.store.stat(PACK, soon()), case.behind.stat(PACK, soon())
    assert (found.key, found.size) == (PACK, len(CONTENT))
    assert found.modified == 0.0 or abs(found.modified - behind.modified) <= 1


def test_a_missing_object_is_reported_by_every_call(case: Case) -> None:
    with pytest.raises(ObjectMissing):
        case.store.get(ABSENT, soon(), limit=10)
    with pytest.raises(ObjectMissing):
        case.store.stat(ABSENT, soon())
    with pytest.raises(ObjectMissing):
        case.store.open_range(ABSENT, 0, 1, soon())


def test_an_object_as_large_as_the_limit_is_read_and_a_larger_one_is_malformed(case: Case) -> None:
    case.behind.put(PACK, CONTENT, soon())
    assert get(case.store, PACK, len(CONTENT)) == CONTENT
    with pytest.raises(Malformed):
        case.store.get(PACK, soon(), limit=len(CONTENT) - 1)


def test_an_unchanged_object_is_not_sent_again(case: Case) -> None:
    case.behind.put("catalog.json", b"one", soon())
    first = case.store.get("catalog.json", soon(), limit=100)
    assert first and first.etag
    assert case.store.get("catalog.json", soon(), limit=100, etag=first.etag) is None
    assert case.store.get("catalog.json", soon(), limit=100, etag=first.etag, fresh=True) is None


def test_an_object_replaced_at_once_by_one_as_long_has_another_etag(case: Case) -> None:
    etag = case.behind.swap("catalog.json", None, b"one", soon())
    first = case.store.get("catalog.json", soon(), limit=100)
    case.behind.swap("catalog.json", etag, b"two", soon())
    assert first
    second = case.store.get("catalog.json", soon(), limit=100, etag=first.etag)
    assert second and second.data == b"two" and second.etag != first.etag


@slow_fixture
@given(data=st.data())
def test_every_range_has_its_bytes(case: Case, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, len(CONTENT) - 1))
    length = data.draw(st.integers(1, len(CONTENT) - offset))
    case.behind.put(PACK, CONTENT, soon(), only_if_absent=True)
    assert read(case.store, PACK, offset, length) == CONTENT[offset:offset + length]


@slow_fixture
@given(offset=st.integers(0, len(CONTENT) + 9), beyond=st.integers(1, 10_000))
def test_a_range_past_the_end_is_malformed(case: Case, offset: int, beyond: int) -> None:
    case.behind.put(PACK, CONTENT, soon(), only_if_absent=True)
    with pytest.raises(Malformed):
        case.store.open_range(PACK, offset, max(0, len(CONTENT) - offset) + beyond, soon())


def test_a_range_is_read_in_pieces_of_any_size(case: Case) -> None:
    case.behind.put(PACK, CONTENT, soon())
    out = bytearray(5000)
    with case.store.open_range(PACK, 100, 5000, soon()) as stream:
        for start, end in ((0, 1), (1, 4000), (4000, 5000)):
            stream.readinto(memoryview(out)[start:end])
    assert out == CONTENT[100:5100]


def test_a_range_that_was_not_read_to_its_end_spoils_no_later_one(case: Case) -> None:
    case.behind.put(PACK, CONTENT * 50, soon())
    for _ in range(3):
        with case.store.open_range(PACK, 0, len(CONTENT) * 50, soon()) as stream:
            stream.readinto(memoryview(bytearray(10)))
        assert read(case.store, PACK, 5, 20) == CONTENT[5:25]


def test_a_stream_opened_before_a_replacement_keeps_the_old_bytes(case: Case) -> None:
    case.behind.put(PACK, b"a" * MiB, soon())
    out = bytearray(MiB)
    with case.store.open_range(PACK, 0, MiB, soon()) as stream:
        case.behind.put(PACK, b"b" * MiB, soon())
        stream.readinto(memoryview(out))
    assert out == b"a" * MiB


def test_many_threads_read_at_once(case: Case) -> None:
    case.behind.put(PACK, CONTENT * 20, soon())
    wrong: list[int] = []

    def work(start: int) -> None:
        for offset in range(start, start + 2000, 100):
            if read(case.store, PACK, offset, 4000) != (CONTENT * 20)[offset:offset + 4000]:
                wrong.append(offset)
    threads = [threading.Thread(target=work, args=(n * 3000,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("key", ["", "../secret", "/etc/passwd", "packs/../../x", "packs//x", ".lock", "packs/.x",
                                 "Packs/x", "packs/x\0", "packs/%2e", "packs/x/", "packs/..", "a" * 201, "packs\\x"])
def test_what_is_no_key_is_refused_before_anything_is_asked(case: Case, key: str) -> None:
    for call in (lambda: case.store.stat(key, soon()), lambda: case.store.get(key, soon(), limit=1),
                 lambda: case.store.open_range(key, 0, 1, soon()), lambda: case.store.put(key, b"", soon()),
                 lambda: case.store.swap(key, None, b"", soon()), lambda: case.store.delete(key, soon())):
        with pytest.raises(BadInput):
            call()


def test_after_the_deadline_nothing_is_read(case: Case) -> None:
    case.behind.put(PACK, CONTENT, soon())
    with pytest.raises(DeadlinePassed):
        case.store.get(PACK, Deadline(0), limit=MiB)
    with pytest.raises(DeadlinePassed):
        case.store.open_range(PACK, 0, 1, Deadline(0))


def test_a_server_that_only_reads_refuses_every_write(read_only: Case) -> None:
    read_only.behind.put("catalog.json", b"one", soon())
    store = read_only.store
    for call in (lambda: store.put(PACK, CONTENT, soon()), lambda: store.put(PACK, b"", soon(), only_if_absent=True),
                 lambda: store.swap("catalog.json", None, b"x", soon()),
                 lambda: store.swap("catalog.json", '"x"', b"x", soon()), lambda: store.delete("catalog.json", soon())):
        with pytest.raises(Forbidden):
            call()
    assert get(store, "catalog.json") == b"one"
    with pytest.raises(ObjectMissing):
        read_only.behind.stat(PACK, soon())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in LISTABLE])
def test_http_has_no_listing(cases: Callable[[str], Case], kind: str) -> None:
    with pytest.raises(Forbidden):
        list(cases(kind).store.list("", soon()))


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_any_buffer_can_be_put(writable: Case, wrap: Callable[[bytes], bytes]) -> None:
    assert writable.store.put(PACK, wrap(CONTENT * 200), soon()) is True
    assert get(writable.store, PACK, 10 * MiB) == CONTENT * 200


def test_put_is_idempotent_and_only_if_absent_leaves_what_is_there(writable: Case) -> None:
    assert writable.store.put(PACK, CONTENT, soon(), only_if_absent=True) is True
    assert writable.store.put(PACK, CONTENT, soon()) is True
    assert writable.store.put(PACK, b"other", soon(), only_if_absent=True) is False
    assert get(writable.store, PACK) == CONTENT


def test_of_many_that_put_only_if_absent_one_wins(writable: Case) -> None:
    won: list[int] = []

    def work(n: int) -> None:
        if writable.store.put(PACK, b"%d" % n, soon(), only_if_absent=True):
            won.append(n)
    threads = [threading.Thread(target=work, args=(n,)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(won) == 1 and get(writable.store, PACK) == b"%d" % won[0]


def test_swap_replaces_what_was_read_and_nothing_else(writable: Case) -> None:
    store = writable.store
    first = store.swap("catalog.json", None, b"one", soon())
    with pytest.raises(SwapLost):
        store.swap("catalog.json", None, b"two", soon())
    second = store.swap("catalog.json", first, b"two", soon())
    with pytest.raises(SwapLost):
        store.swap("catalog.json", first, b"three", soon())
    found = store.get("catalog.json", soon(), limit=10)
    assert found and (found.data, found.etag) == (b"two", second)
    store.delete("catalog.json", soon())
    with pytest.raises(SwapLost):
        store.swap("catalog.json", second, b"four", soon())


def test_swaps_at_once_lose_no_update(writable: Case) -> None:
    writable.store.swap("catalog.json", None, b"0", soon())

    def work() -> None:
        done = 0
        while done < 5:
            found = writable.store.get("catalog.json", soon(), limit=10)
            assert found
            try:
                writable.store.swap("catalog.json", found.etag, b"%d" % (int(found.data) + 1), soon())
                done += 1
            except SwapLost:
                pass
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert get(writable.store, "catalog.json") == b"20"


def test_delete_removes_and_a_missing_object_is_as_good_as_removed(writable: Case) -> None:
    writable.store.put(PACK, CONTENT, soon())
    writable.store.delete(PACK, soon())
    writable.store.delete(PACK, soon())
    with pytest.raises(ObjectMissing):
        writable.store.stat(PACK, soon())


@pytest.mark.parametrize("kind", LISTABLE)
def test_listing_names_every_object_and_nothing_else(cases: Callable[[str], Case], kind: str) -> None:
    case = _fresh(cases(kind))
    keys = sorted(["catalog.json", "modelfs.json", PACK, LAYOUT, "packs/ac/ac" + "1" * 62])
    for key in keys:
        case.store.put(key, b"12345", soon())
    if isinstance(case.behind, FileStore):
        (case.behind.root / "packs" / ".hidden").write_bytes(b"x")
        (case.behind.root / "packs" / "UPPER").write_bytes(b"x")
    else:
        case.behind.put("packs/.hidden", b"x", soon())
        case.behind.put("packs/UPPER", b"x", soon())
    assert [info.key for info in case.store.list("", soon())] == keys
    assert {info.size for info in case.store.list("", soon())} == {5}
    assert [info.key for info in case.store.list("packs/ab", soon())] == [PACK]
    assert [info.key for info in case.store.list("packs/ab/ab1", soon())] == [PACK]
    assert list(case.store.list("histories/", soon())) == []
    with pytest.raises(BadInput):
        list(case.store.list("../", soon()))
