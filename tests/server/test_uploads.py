"""What is uploaded shows whole, and with the bytes that its name says, or not at all."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from server.uploading import (
    a_layout,
    answer_of,
    chunked_head_of,
    connect,
    current,
    eventually,
    get,
    head_of,
    name_of,
    new_repository,
    noise,
    put,
    soon,
    unfinished,
    with_model,
)
from servers import own_server, start_own_server

from modelfs.errors import Forbidden, NoSpace, ObjectMissing, SwapLost, Unavailable
from modelfs.ids import ObjectId
from modelfs.repository import keys
from modelfs.stores.file_store import FileStore
from modelfs.stores.http_store import HttpStore
from modelfs.stores.retrying import RetryingStore
from modelfs.units import Deadline, KiB, MiB

NAMED = ("packs", "manifests", "histories", "indexes")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uploads") / "root"
    new_repository(root)
    return root


@pytest.fixture(scope="module")
def store(root: Path) -> FileStore:
    return FileStore(root)


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    with own_server(root, writable=True) as url:
        yield url


@pytest.mark.parametrize("kind", NAMED)
def test_an_object_with_the_bytes_of_its_name_shows_and_again_is_as_good(url: str, root: Path, kind: str) -> None:
    data = noise(300_000)
    key = name_of(data, kind)
    first = put(url, key, data)
    os.utime(root / key, (1, 1))
    second = put(url, key, data)
    assert (root / key).stat().st_mtime > 1, "gc goes by age, and must not take it for an old one"
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.headers["ETag"] == second.headers["ETag"] == f'"{key[-64:]}"' == get(url, key).headers["ETag"]
    assert get(url, key).content == data and not unfinished(root)


@pytest.mark.parametrize("kind", NAMED)
def test_an_object_with_other_bytes_never_shows(url: str, root: Path, kind: str) -> None:
    key = name_of(noise(10), kind)
    answer = put(url, key, noise(300_000))
    assert answer.status_code == 422 and answer.text.count("\n") == 1
    assert get(url, key).status_code == 404 and not unfinished(root)


def test_nothing_shows_before_the_last_byte_came(url: str, root: Path) -> None:
    data = noise(MiB)
    key = name_of(data)
    with connect(url) as connection:
        connection.sendall(head_of(key, len(data)) + data[:-1])
        eventually(lambda: sum(path.stat().st_size for path in unfinished(root)) == len(data) - 1)
        assert get(url, key).status_code == 404
        connection.sendall(data[-1:])
        assert answer_of(connection).startswith(b"HTTP/1.1 201")
    assert get(url, key).content == data


@pytest.mark.parametrize("chunked", [False, True])
def test_half_an_upload_leaves_nothing(url: str, root: Path, chunked: bool) -> None:
    data = noise(MiB)
    key = name_of(data)
    head = chunked_head_of(key) + f"{len(data):x}\r\n".encode() if chunked else head_of(key, len(data))
    with connect(url) as connection:
        connection.sendall(head + data[:-1])
        eventually(lambda: len(unfinished(root)) == 1)
    eventually(lambda: not unfinished(root))
    assert get(url, key).status_code == 404


def test_a_malformed_chunk_leaves_nothing(url: str, root: Path) -> None:
    key = name_of(b"hello")
    with connect(url) as connection:
        connection.sendall(chunked_head_of(key) + b"5\r\nhel")
        eventually(lambda: len(unfinished(root)) == 1)
        connection.sendall(b"lo\r\nzz\r\n")
    eventually(lambda: not unfinished(root))
    assert get(url, key).status_code == 404


def test_an_upload_without_a_length_is_taken(url: str) -> None:
    data = noise(MiB)
    answer = requests.put(f"{url}/{name_of(data)}", data=iter([data[:5], data[5:]]), timeout=20)
    assert answer.status_code == 201 and get(url, name_of(data)).content == data


def test_who_expects_to_be_asked_sends_only_what_is_missing(url: str) -> None:
    data = noise(100_000)
    head = head_of(name_of(data), len(data), "Expect: 100-continue")
    with connect(url) as connection:
        connection.sendall(head)
        assert answer_of(connection).startswith(b"HTTP/1.1 100")
        connection.sendall(data)
        assert answer_of(connection).startswith(b"HTTP/1.1 201")
    with connect(url) as connection:
        connection.sendall(head)
        assert answer_of(connection).startswith(b"HTTP/1.1 200")
    with connect(url) as connection:
        connection.sendall(head_of("packs/x", 100_000, "Expect: 100-continue"))
        assert answer_of(connection).startswith(b"HTTP/1.1 404")


def test_a_damaged_object_is_replaced_by_the_right_one(url: str, root: Path) -> None:
    data = noise(50_000)
    key = name_of(data)
    put(url, key, data)
    (root / key).write_bytes(b"x" * len(data))
    assert put(url, key, data).status_code == 201
    assert (root / key).read_bytes() == data


@pytest.mark.parametrize(("key", "size"), [("modelfs.json", MiB), ("packs/ab/ab" + "1" * 62, 96 * MiB),
                                           ("catalog.json", 64 * MiB)])
def test_more_than_an_object_may_have_is_refused(url: str, root: Path, key: str, size: int) -> None:
    condition = {"If_None_Match": "*"}
    with connect(url) as connection:  # before a byte of it came
        connection.sendall(head_of(key, size + 1, "If-None-Match: *"))
        if size < 90 * MiB:
            connection.sendall(b"x" * (size + 1))
        assert answer_of(connection).startswith(b"HTTP/1.1 413")
    if size == MiB:
        answer = requests.put(f"{url}/{key}", data=iter([b"x" * size, b"x"]), timeout=20,
                              headers={"If-None-Match": "*"})
        assert answer.status_code == 413
        assert put(url, key, b"x" * size, **condition).status_code == 400
    assert not unfinished(root)


def test_after_a_refused_upload_its_connection_goes_on(url: str) -> None:
    data = noise(MiB)
    with connect(url) as connection:
        connection.sendall(head_of(name_of(b""), len(data)) + data + head_of(name_of(data), len(data)) + data)
        assert answer_of(connection).startswith(b"HTTP/1.1 422")
        while not (rest := answer_of(connection)).partition(b"\n")[2].startswith(b"HTTP/1.1 201"):
            assert rest


@pytest.mark.parametrize(("header", "value", "status"), [("Content-Encoding", "gzip", 415),
                                                         ("Content-Range", "bytes 0-4/5", 400)])
def test_what_is_not_the_object_as_it_is_is_refused(url: str, header: str, value: str, status: int) -> None:
    assert requests.put(f"{url}/{name_of(b'hello')}", data=b"hello", headers={header: value}, timeout=20
                        ).status_code in (status, 400)
    assert get(url, name_of(b"hello")).status_code == 404


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE", "OPTIONS"])
def test_other_methods_are_refused_and_the_known_named(url: str, method: str) -> None:
    for key in ("catalog.json", "packs/ab/ab" + "1" * 62, ""):
        answer = requests.request(method, f"{url}/{key}", data=b"x" * 100_000, timeout=20)
        assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, HEAD, PUT")


@pytest.mark.parametrize("key", ["x", "", "packs/ab", "packs/ac/ab" + "1" * 62, "keys/" + "3" * 64, ".lock",
                                 "packs/ab/.ab" + "1" * 62, "../x", "packs/ab/%61b" + "1" * 62])
def test_what_the_format_does_not_name_cannot_be_put(url: str, root: Path, key: str) -> None:
    before = sorted(root.parent.rglob("*"))
    with connect(url) as connection:
        connection.sendall(head_of(key, 4, "Connection: close") + b"EVIL")
        assert answer_of(connection)[9:12] in (b"404", b"400")
    assert sorted(root.parent.rglob("*")) == before


def test_an_upload_follows_no_link_out_of_the_repository(url: str, root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    data = next(data for data in iter(lambda: noise(100), b"") if not (root / name_of(data)[:8]).exists())
    (root / name_of(data)[:8]).symlink_to(outside)
    assert put(url, name_of(data), data).status_code == 403
    assert not list(outside.iterdir())
    other = next(data for data in iter(lambda: noise(100), b"") if not (root / name_of(data)).parent.is_symlink())
    (root / name_of(other)).parent.mkdir(parents=True, exist_ok=True)
    (root / name_of(other)).symlink_to(outside / "x")
    assert put(url, name_of(other), other).status_code == 403
    for link in ((root / name_of(data)).parent, root / name_of(other)):
        link.unlink()  # other tests put what they like into this root


def test_a_layout_is_made_once_and_replaced_by_who_knows_it(url: str) -> None:
    manifest_id = ObjectId.of(noise(20))
    key, first, second = keys.layout(manifest_id), a_layout(manifest_id), a_layout(manifest_id, 5)
    assert put(url, key, first).status_code == 428
    made = put(url, key, first, If_None_Match="*")
    assert made.status_code == 201
    assert put(url, key, second, If_None_Match="*").status_code == 412
    assert put(url, key, second, If_Match='"' + "0" * 64 + '"').status_code == 412
    assert get(url, key).content == first
    replaced = put(url, key, second, If_Match=made.headers["ETag"])
    assert replaced.status_code == 200 and get(url, key).content == second
    assert replaced.headers["ETag"] == get(url, key).headers["ETag"]


def test_what_is_no_layout_of_this_manifest_is_refused(url: str, root: Path) -> None:
    manifest_id = ObjectId.of(noise(20))
    for junk in (b"", b"junk", b"\xff" * 1000, a_layout(ObjectId.of(b"another"))):
        answer = put(url, keys.layout(manifest_id), junk, If_None_Match="*")
        assert answer.status_code == 400 and str(root) not in answer.text
    assert get(url, keys.layout(manifest_id)).status_code == 404


def test_the_catalog_is_swapped_by_who_knows_it(url: str, store: FileStore) -> None:
    before, etag = current(store)
    new = with_model(store, before, "acme/one").serialise()
    assert put(url, "catalog.json", new).status_code == 428
    assert put(url, "catalog.json", new, If_None_Match="*").status_code == 412
    assert put(url, "catalog.json", new, If_Match='"' + "0" * 64 + '"').status_code == 412
    assert put(url, "catalog.json", new, If_Match="*").status_code == 412
    assert current(store)[1] == etag
    answer = put(url, "catalog.json", new, If_Match=f'"{etag}"')
    assert answer.status_code == 200 and answer.headers["ETag"] == f'"{current(store)[1]}"'
    assert get(url, "catalog.json").content == new


def test_a_catalog_that_readers_would_stumble_over_is_refused(url: str, store: FileStore) -> None:
    before, etag = current(store)
    new = with_model(store, before, "acme/two")
    stale = replace(before, created="2026-02-02T00:00:00Z", payload="")
    for junk in (b"", b"{}", b"[" * 100_000, b"<html>", new.serialise()[:-1],
                 replace(new, repository="0" * 32).serialise(), stale.serialise(),
                 replace(new, indexes=(ObjectId.of(b"nowhere"),)).serialise(),
                 with_model(store, before, "acme/three", put_history=False).serialise()):
        answer = put(url, "catalog.json", junk, If_Match=f'"{etag}"')
        assert answer.status_code == 400, junk[:100]
        assert answer.text.count("\n") == 1 and str(store.root) not in answer.text
    assert current(store)[1] == etag
    assert put(url, "catalog.json", new.serialise(), If_Match=f'"{etag}"').status_code == 200


def test_modelfs_json_is_written_once(url: str, root: Path) -> None:
    text = (root / "modelfs.json").read_bytes()
    for headers in ({}, {"If_Match": get(url, "modelfs.json").headers["ETag"]}):
        assert put(url, "modelfs.json", text, **headers).status_code == 428
    assert put(url, "modelfs.json", text, If_None_Match="*").status_code == 412


def test_a_web_page_may_not_write(url: str) -> None:
    data = noise(100)
    assert put(url, name_of(data), data, Origin="http://evil.example").status_code == 403
    assert get(url, name_of(data)).status_code == 404


def test_the_store_writes_through_it(url: str) -> None:
    store, data = HttpStore(url), noise(3 * MiB)
    for wrapped in (data, bytearray(data), memoryview(data)):
        assert store.put(name_of(data), wrapped, soon())
    assert not store.put(name_of(data), data, soon(), only_if_absent=True)
    with pytest.raises(Unavailable, match="digest"):
        store.put(name_of(noise(9)), data, soon())
    with pytest.raises(Forbidden, match="deletes nothing"):
        store.delete(name_of(data), soon())
    with pytest.raises(Forbidden, match="no JSON"):
        store.swap("catalog.json", get(url, "catalog.json").headers["ETag"], b"junk", soon())


def test_two_servers_lose_no_update_of_one_repository(tmp_path: Path) -> None:
    behind = new_repository(tmp_path)
    with own_server(tmp_path, writable=True) as one, own_server(tmp_path, writable=True) as two:
        def work(url: str, n: int) -> None:
            store = RetryingStore(HttpStore(url))
            for m in range(4):
                while True:
                    found = store.get("catalog.json", soon(), limit=MiB)
                    assert found
                    new = with_model(behind, current(behind)[0], f"acme/m{n}-{m}")
                    try:
                        store.swap("catalog.json", found.etag, new.serialise(), soon())
                        break
                    except SwapLost:
                        continue
                    except Forbidden:  # it was built on a later catalog than the one that was read
                        continue
        threads = [threading.Thread(target=work, args=((one, two)[n % 2], n)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert current(behind)[0].serial == 1 + 6 * 4
    assert len(current(behind)[0].models) == 6 * 4


def test_64_clients_at_once_put_and_get(url: str, root: Path) -> None:
    wrong: list[object] = []

    def work(n: int) -> None:
        store = RetryingStore(HttpStore(url))
        shared = bytes([n % 8]) * 200_000  # the same objects by several at once, too
        for data in (noise(200_000), shared):
            store.put(name_of(data), data, Deadline(60))
            found = store.get(name_of(data), Deadline(60), limit=MiB)
            if found is None or found.data != data:
                wrong.append(n)
    threads = [threading.Thread(target=work, args=(n,)) for n in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert not wrong and not any(thread.is_alive() for thread in threads) and not unfinished(root)


def test_many_half_uploads_hold_up_nobody(url: str, root: Path) -> None:
    data = noise(1000)
    opened = [connect(url) for _ in range(64)]
    for connection in opened:
        connection.sendall(head_of(name_of(data), len(data)) + data[:500])
    eventually(lambda: len(unfinished(root)) == 64)
    assert put(url, name_of(data), data).status_code == 201
    for connection in opened:
        connection.close()
    eventually(lambda: not unfinished(root))


def test_a_body_that_comes_too_slowly_is_ended(tmp_path: Path) -> None:
    new_repository(tmp_path)
    short = "from modelfs.server import pace; pace.GRACE_S = 0.3; pace.SLOWEST_BYTES_PER_S = 1 << 30"
    with own_server(tmp_path, writable=True, before=short) as url, connect(url) as silent, connect(url) as dripping:
        silent.sendall(head_of(name_of(b"x"), 1000))
        dripping.sendall(chunked_head_of(name_of(b"x")))
        try:
            while True:  # for ever, if it were let
                dripping.sendall(b"1\r\nx\r\n")
                time.sleep(0.01)
        except ConnectionError:
            pass
        assert answer_of(silent).startswith(b"HTTP/1.1 408")
        eventually(lambda: not unfinished(tmp_path))


def test_a_head_that_does_not_end_is_ended_and_an_answer_that_lasts_is_not(tmp_path: Path) -> None:
    store = new_repository(tmp_path)
    data = noise(MiB) * 32
    store.put(name_of(data), data, soon())
    with own_server(tmp_path, before="from modelfs.server import running; running.SILENT_S = 0.2") as url:
        with connect(url) as lasting, connect(url) as half, connect(url) as nothing, connect(url) as idle:
            lasting.sendall(f"GET /{name_of(data)} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            half.sendall(b"GET / HTTP/1.1\r\nHost:")
            idle.sendall(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            for connection in (half, nothing, idle):
                try:
                    while connection.recv(1000):
                        pass
                except ConnectionError:
                    pass
            got = bytearray()
            while piece := lasting.recv(MiB):
                got += piece
        assert got.endswith(data[-1000:]) and len(got) > len(data)


def test_a_full_disk_is_no_space_and_leaves_nothing(tmp_path: Path) -> None:
    new_repository(tmp_path)
    small = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"
    with own_server(tmp_path, writable=True, before=small) as url:
        data = noise(2 * MiB)
        with pytest.raises(NoSpace):
            HttpStore(url).put(name_of(data), data, soon())
        assert not unfinished(tmp_path)
        with pytest.raises(ObjectMissing):
            HttpStore(url).stat(name_of(data), soon())
        assert HttpStore(url).put(name_of(data[:MiB]), data[:MiB], soon())


def test_a_lock_that_is_held_is_unavailable_for_now(tmp_path: Path) -> None:
    store = new_repository(tmp_path)
    before, etag = current(store)
    new = with_model(store, before, "acme/one").serialise()
    short = "from modelfs.server import uploads; uploads._COMMIT_S = 0.2"
    with own_server(tmp_path, writable=True, before=short) as url:
        with store._lock(soon()):
            answer = put(url, "catalog.json", new, If_Match=f'"{etag}"')
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert put(url, "catalog.json", new, If_Match=f'"{etag}"').status_code == 200


def test_what_a_killed_server_left_is_swept_and_what_is_fresh_is_not(tmp_path: Path) -> None:
    new_repository(tmp_path)
    process, url = start_own_server(tmp_path, writable=True)
    data = noise(100 * KiB)
    with connect(url) as connection:
        connection.sendall(head_of(name_of(data), len(data)) + data[:-1])
        eventually(lambda: sum(path.stat().st_size for path in unfinished(tmp_path)) == len(data) - 1)
        process.kill()
        process.communicate(timeout=20)
    left = unfinished(tmp_path)[0]
    assert not (tmp_path / name_of(data)).exists()
    fresh = left.with_name(left.name[:-1] + ("0" if left.name[-1] != "0" else "1"))
    fresh.write_bytes(b"")
    os.utime(left, (time.time() - 7200, time.time() - 7200))
    with own_server(tmp_path, writable=True) as url:
        eventually(lambda: not left.exists())
        assert fresh.exists()
        assert put(url, name_of(data), data).status_code == 201


def test_a_signal_ends_it_also_while_uploads_come(tmp_path: Path) -> None:
    new_repository(tmp_path)
    process, url = start_own_server(tmp_path, writable=True)
    with connect(url) as connection:
        connection.sendall(head_of(name_of(b"x"), 1000) + b"half")
        eventually(lambda: len(unfinished(tmp_path)) == 1)
        process.terminate()
        _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors, unfinished(tmp_path)) == (0, "", [])
