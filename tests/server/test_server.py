"""The server as a process, asked by raw sockets and by requests."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import own_server, start_own_server

from modelfs.stores.file_store import FileStore
from modelfs.units import Deadline, MiB

PACK = "packs/ab/ab" + "1" * 62
LAYOUT = "layouts/cd/cd" + "2" * 62
CONTENT = bytes(range(256)) * 40 + b"end"
SECRET = b"THE-SECRET-FILE"
NAMED_BY_DIGEST = [PACK, "manifests/12/12" + "0" * 62, "histories/12/12" + "0" * 62, "indexes/12/12" + "0" * 62,
                   "keys/" + "3" * 64]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("server")
    (base / "secret.txt").write_bytes(SECRET)
    store = FileStore(base / "root")
    for key in [*NAMED_BY_DIGEST, LAYOUT, "modelfs.json", "catalog.json"]:
        store.put(key, CONTENT, Deadline(20))
    return base / "root"


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    with own_server(root) as url:
        yield url


def ask(url: str, key: str, method: str = "GET", **headers: str) -> requests.Response:
    return requests.request(method, f"{url}/{key}", headers={"Accept-Encoding": "identity", **headers}, timeout=20)


def raw(url: str, request: bytes, half_close: bool = False) -> bytes:
    """Everything that comes back until the server closes; nothing where it resets."""
    out = b""
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), 20) as connection:
        try:
            connection.sendall(request)
            if half_close:
                with suppress(OSError):  # ENOTCONN: it has been reset already
                    connection.shutdown(socket.SHUT_WR)
            while data := connection.recv(65536):
                out += data
        except ConnectionError:
            pass
    return out


@pytest.mark.parametrize("key", NAMED_BY_DIGEST)
def test_what_a_digest_names_may_be_kept_for_ever(url: str, key: str) -> None:
    answer = ask(url, key)
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["ETag"] == f'"{key.rpartition("/")[2]}"'
    assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"


@pytest.mark.parametrize(("key", "caching"), [
    ("catalog.json", "no-cache"), (LAYOUT, "no-cache"), ("modelfs.json", "public, max-age=31536000, immutable")])
def test_what_can_change_has_an_etag_of_its_content(url: str, root: Path, key: str, caching: str) -> None:
    first = ask(url, key)
    assert first.headers["Cache-Control"] == caching
    path = root / key
    found = path.stat()
    path.write_bytes(CONTENT[:-1] + b"X")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    try:
        assert ask(url, key, **{"If-None-Match": first.headers["ETag"]}).status_code == 200
    finally:
        path.write_bytes(CONTENT)
    assert ask(url, key).headers["ETag"] == first.headers["ETag"]


@pytest.mark.parametrize("key", [PACK, "catalog.json"])
@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
def test_what_the_client_has_is_not_sent_again(url: str, key: str, form: str) -> None:
    etag = ask(url, key).headers["ETag"]
    answer = ask(url, key, **{"If-None-Match": form.format(etag)})
    assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", etag)
    assert "Cache-Control" in answer.headers
    assert ask(url, key, **{"If-None-Match": '"other"'}).status_code == 200


def test_head_is_get_without_the_body(url: str) -> None:
    get, head = ask(url, PACK), ask(url, PACK, "HEAD")
    names = ("Content-Length", "ETag", "Cache-Control", "Accept-Ranges", "Content-Type")
    assert (head.status_code, head.content) == (200, b"")
    assert [head.headers[name] for name in names] == [get.headers[name] for name in names]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(first=st.integers(0, len(CONTENT) + 5), last=st.none() | st.integers(0, len(CONTENT) + 5))
def test_ranges_follow_the_rfc(url: str, first: int, last: int | None) -> None:
    answer = ask(url, PACK, Range=f"bytes={first}-{'' if last is None else last}")
    size = len(CONTENT)
    end = size - 1 if last is None else min(last, size - 1)
    if first > end:
        assert (answer.status_code, answer.headers["Content-Range"]) == (416, f"bytes */{size}")
    else:
        assert (answer.status_code, answer.content) == (206, CONTENT[first:end + 1])
        assert answer.headers["Content-Range"] == f"bytes {first}-{end}/{size}"


@pytest.mark.parametrize(("range_", "status", "expected"), [
    ("bytes=-3", 206, CONTENT[-3:]), ("bytes=-999999", 206, CONTENT), ("bytes=-0", 416, None),
    ("bytes=9-1", 416, None), ("lines=1-2", 200, CONTENT), ("bytes=0-1,4-5", 200, CONTENT),
    ("bytes=" + "9" * 30 + "-", 200, CONTENT), ("nonsense", 200, CONTENT), ("bytes=-", 200, CONTENT)])
def test_odd_ranges(url: str, range_: str, status: int, expected: bytes | None) -> None:
    answer = ask(url, PACK, Range=range_)
    assert answer.status_code == status and expected in (None, answer.content)


def test_a_range_of_another_state_is_answered_by_the_whole_object(url: str) -> None:
    etag = ask(url, PACK).headers["ETag"]
    assert ask(url, PACK, Range="bytes=0-1", **{"If-Range": etag}).content == CONTENT[:2]
    assert ask(url, PACK, Range="bytes=0-1", **{"If-Range": '"other"'}).content == CONTENT


def test_an_empty_object_has_no_range(url: str, root: Path) -> None:
    key = "packs/00/00" + "4" * 62
    FileStore(root).put(key, b"", Deadline(20))
    assert (ask(url, key).status_code, ask(url, key).content) == (200, b"")
    assert ask(url, key, Range="bytes=0-0").status_code == 416


def test_a_connection_serves_one_request_after_another(url: str) -> None:
    asked = f"GET /{PACK} HTTP/1.1\r\nHost: x\r\nRange: bytes=0-9\r\n\r\n".encode()
    last = f"HEAD /{PACK} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    assert raw(url, asked * 3 + last).count(b"HTTP/1.1 206") == 3


@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH", "DELETE"])
def test_this_server_only_reads(url: str, root: Path, method: str) -> None:
    for key in ("catalog.json", PACK, "packs/aa/" + "0" * 64, "x"):
        answer = requests.request(method, f"{url}/{key}", data=b"x" * 100_000, timeout=20)
        assert answer.status_code == 403 and answer.text.count("\n") == 1
    assert (root / PACK).read_bytes() == CONTENT


def test_the_root_is_a_line_for_people(url: str) -> None:
    answer = ask(url, "")
    assert answer.status_code == 200 and answer.text.count("\n") == 1


@pytest.fixture(scope="module")
def traps(root: Path) -> Iterator[list[str]]:
    """Links and other things below the root, by names that are keys and that are not."""
    secret = root.parent / "secret.txt"
    digest = "5" * 64
    keys = [f"packs/55/{digest}", f"manifests/55/{digest}", f"histories/55/{digest}", f"indexes/55/{digest}"]
    (root / "packs/55").mkdir()
    (root / keys[0]).symlink_to(secret)
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / digest).write_bytes(SECRET)
    (root / "manifests/55").symlink_to(outside)
    (root / "histories/55").mkdir()
    os.mkfifo(root / keys[2])
    (root / keys[3]).mkdir(parents=True)
    (root / "link").symlink_to(secret)
    (root / ".lock").write_bytes(SECRET)
    (root / "packs" / "plain.txt").write_bytes(SECRET)
    (root / "packs/ac").mkdir()
    (root / PACK.replace("/ab/", "/ac/")).write_bytes(SECRET)
    yield [*keys, "link", ".lock", "packs/plain.txt", "packs", "packs/", "packs/55",
           "packs/ab/.ab" + "1" * 62 + ".0123456789abcdef", PACK + "/", PACK.upper(), PACK.replace("/ab/", "/ac/"),
           "packs/zz/zz" + "1" * 62, "catalog.json/", "catalog.json%00", "%63atalog.json", "packs//" + PACK[6:]]


def test_what_the_repository_does_not_name_is_not_shown(url: str, traps: list[str]) -> None:
    for key in traps:
        for method in ("GET", "HEAD"):
            got = raw(url, f"{method} /{key} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            assert got.startswith(b"HTTP/1.1 404"), (key, got[:200])
            assert SECRET not in got


def test_no_disguise_of_dots_leaves_the_root(url: str, root: Path) -> None:
    ups = ["../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%5c", "..\\", "%252e%252e%252f", "..;/", ".%2e/", "..%c0%af",
           "..//", "./../", "..%00/", "packs/../../", "packs/%2e%2e/%2e%2e/", "packs/ab/../../../"]
    absolute = str(root.parent / "secret.txt")
    targets = [f"/{up * n}secret.txt" for up in ups for n in (1, 2, 3)] + [
        absolute, "/" + absolute, "/%2f" + absolute[1:], "/file://" + absolute, "http://x/../secret.txt",
        "//etc/passwd", "/" + "../" * 12 + "etc/passwd", "*", "x", "http://", "?", "/?/../secret.txt"[0:1] + "../x"]
    for target in targets:
        got = raw(url, f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode("latin-1"))
        assert SECRET not in got and b"root:x:" not in got
        assert not got or re.match(rb"HTTP/1\.[01] [34]", got), (target, got[:100])


def test_an_absolute_target_as_proxies_write_it_is_understood(url: str) -> None:
    got = raw(url, b"GET http://x.example/catalog.json?a=b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 200") and got.endswith(CONTENT)


@pytest.mark.parametrize("junk", [
    b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9.9\r\n\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n",
    b"PUT /packs/aa/x HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999\r\n\r\nshort",
    b"PUT /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"BREW /pot HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_malformed_requests_do_not_stop_it(url: str, junk: bytes) -> None:
    got = raw(url, junk, half_close=True)
    assert not got or re.match(rb"HTTP/1\.[01] [45]", got), got[:200]
    assert ask(url, "catalog.json").content == CONTENT


def test_a_client_that_leaves_midway_disturbs_nobody(tmp_path: Path) -> None:
    FileStore(tmp_path).put(PACK, b"x" * (32 * MiB), Deadline(20))
    process, url = start_own_server(tmp_path)
    try:
        port = int(url.rsplit(":", 1)[1])
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port), 20) as connection:
                connection.sendall(f"GET /{PACK} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                connection.recv(1000)
        assert len(ask(url, PACK).content) == 32 * MiB
        wait_for(lambda: not [name for name in open_files(process.pid) if name.endswith(PACK)])
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=20)
    assert errors == ""


def open_files(pid: int) -> list[str]:
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except FileNotFoundError:
            continue
    return found


def wait_for(condition: object, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    process, url = start_own_server(tmp_path)
    session = requests.Session()
    assert session.get(url, timeout=20).status_code == 200  # and stays connected
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=20)


def test_an_answer_that_runs_is_finished_before_the_end(tmp_path: Path) -> None:
    data = os.urandom(MiB) * 32
    FileStore(tmp_path).put(PACK, data, Deadline(20))
    process, url = start_own_server(tmp_path)
    answer = requests.get(f"{url}/{PACK}", stream=True, timeout=20)
    got = bytearray(answer.raw.read(1000))
    process.terminate()
    wait_for(lambda: refused(url))
    got += answer.raw.read()
    process.communicate(timeout=20)
    assert got == data and process.returncode == 0


def refused(url: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), 20).close()
    except ConnectionError:  # refused, or reset: it stood in the queue of the listener when that closed
        return True
    return False


def test_a_client_that_does_not_read_cannot_hold_up_the_end(tmp_path: Path) -> None:
    FileStore(tmp_path).put(PACK, b"x" * (64 * MiB), Deadline(20))
    process, url = start_own_server(tmp_path)
    with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), 20) as connection:
        connection.sendall(f"GET /{PACK} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        connection.recv(1000)
        process.terminate()
        process.communicate(timeout=10)  # what a service manager is told to wait
    assert process.returncode == 0


def test_a_port_that_is_taken_is_a_conflict(url: str, tmp_path: Path) -> None:
    process, said = start_own_server(tmp_path, port=int(url.rsplit(":", 1)[1]))
    _, errors = process.communicate(timeout=20)
    assert said == "" and "Conflict" in errors and "taken" in errors


def test_a_host_that_is_not_ours_is_bad_input(tmp_path: Path) -> None:
    process, said = start_own_server(tmp_path, host="192.0.2.1")
    _, errors = process.communicate(timeout=20)
    assert said == "" and "BadInput" in errors


def test_an_object_that_cannot_be_read_is_logged_once_by_its_event(tmp_path: Path) -> None:
    FileStore(tmp_path).put(PACK, CONTENT, Deadline(20))
    (tmp_path / PACK).chmod(0)
    process, url = start_own_server(tmp_path, before="import os, modelfs.server.running; from modelfs import logs; "
                                    "logs.set_up_logging(level='info', format='text'); "
                                    "os.getuid() or os.setuid(65534)")
    try:
        assert [ask(url, PACK).status_code for _ in range(3)] == [403] * 3
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=20)
    lines = errors.splitlines()
    assert f"ERROR modelfs.server event=object.unreadable object={PACK} why=\"Permission denied\"" in lines[0]
    assert len(lines) == 2 and lines[1].endswith("repeated=2")  # told at the end
