"""HttpStore against servers that misbehave: every fault is an error in time, and never wrong bytes."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

import pytest
from faultproxy import FaultProxy

from modelfs.errors import (
    BadInput,
    DeadlinePassed,
    Forbidden,
    Malformed,
    ModelfsError,
    ObjectMissing,
    Unavailable,
    WrongServer,
)
from modelfs.stores.file_store import FileStore
from modelfs.stores.http_store import HttpStore
from modelfs.stores.http_transport import STALL_S
from modelfs.stores.opening import TlsFiles
from modelfs.units import Deadline, MiB

PACK = "packs/ab/ab" + "1" * 62
CONTENT = bytes(range(256)) * 4096  # 1 MiB


def soon() -> Deadline:
    return Deadline(20)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultProxy]:
    store = FileStore(tmp_path / "root")
    store.put(PACK, CONTENT, soon())
    store.put("catalog.json", b"{}", soon())
    with FaultProxy(tmp_path / "root", writable=True) as proxy:
        yield proxy


def read(store: HttpStore, offset: int, length: int, deadline: Deadline | None = None) -> bytes:
    out = bytearray(length)
    with store.open_range(PACK, offset, length, deadline or soon()) as stream:
        stream.readinto(memoryview(out))
    return bytes(out)


def passes_its_deadline(call: Callable[[], object]) -> None:
    """call, with a deadline of less than a second, raises DeadlinePassed before a stall timeout would end it."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except ModelfsError as error:
            raised.append(error)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(STALL_S * 0.7)
    assert not thread.is_alive() and isinstance(raised[0], DeadlinePassed), raised


@pytest.mark.parametrize("kind", ["reset", "truncate", "short_range", "wrong_range", "encoding", "huge_head",
                                  "lost_answer"])
def test_a_broken_range_is_unavailable_and_the_next_request_works(server: FaultProxy, kind: str) -> None:
    server.add(kind, match=PACK, times=1, after=1000)
    store = HttpStore(server.url)
    with pytest.raises(Unavailable) as caught:
        read(store, 5, 100_000)
    assert not isinstance(caught.value, DeadlinePassed)
    assert read(store, 5, 100_000) == CONTENT[5:100_005]


@pytest.mark.parametrize("kind", ["reset", "truncate", "encoding", "huge_head", "lost_answer"])
def test_a_broken_get_is_unavailable(server: FaultProxy, kind: str) -> None:
    server.add(kind, match=PACK, times=1, after=1000)
    with pytest.raises(Unavailable):
        HttpStore(server.url).get(PACK, soon(), limit=2 * MiB)


@pytest.mark.parametrize(("kind", "options"), [
    ("hang", {}), ("stall", {"after": 1000}), ("drip", {"piece": 1, "interval_s": 0.02}),
    ("drip_head", {"piece": 1, "interval_s": 0.02})])
@pytest.mark.parametrize("call", ["range", "get"])
def test_who_sends_too_slowly_is_left_at_the_deadline(server: FaultProxy, kind: str, options: dict[str, float],
                                                       call: str) -> None:
    server.add(kind, match=PACK, times=1, **options)
    store = HttpStore(server.url)
    deadline = Deadline(0.4)
    if call == "range":
        passes_its_deadline(lambda: read(store, 0, 200_000, deadline))
    else:
        passes_its_deadline(lambda: store.get(PACK, deadline, limit=2 * MiB))
    assert not server.release.is_set()  # it was still dripping: the reader left, not the server
    assert read(store, 0, 10) == CONTENT[:10]


def test_a_slow_answer_within_the_deadline_is_read_whole(server: FaultProxy) -> None:
    server.add("drip", match=PACK, piece=50_000, interval_s=0.001)
    assert read(HttpStore(server.url), 7, 300_000) == CONTENT[7:300_007]


def test_a_server_without_ranges_is_read_by_skipping(server: FaultProxy) -> None:
    server.add("ignore_range", match=PACK)
    store = HttpStore(server.url)
    assert read(store, 700_001, 1000) == CONTENT[700_001:701_001]
    assert read(store, 0, len(CONTENT)) == CONTENT
    with pytest.raises(Malformed):
        read(store, len(CONTENT) - 10, 11)


def test_skipping_is_bounded(tmp_path: Path) -> None:
    root = tmp_path / "root"
    path = root / PACK
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(80 * MiB)
    with FaultProxy(root) as server:
        server.add("ignore_range", match=PACK)
        with pytest.raises(Unavailable, match="ignores ranges"):
            read(HttpStore(server.url), 65 * MiB, 10)


def test_a_get_without_a_length_is_read_to_its_end_and_its_limit_holds(server: FaultProxy) -> None:
    server.add("unsized", match=PACK)
    store = HttpStore(server.url)
    found = store.get(PACK, soon(), limit=len(CONTENT))
    assert found and found.data == CONTENT
    with pytest.raises(Malformed):
        store.get(PACK, soon(), limit=len(CONTENT) - 1)
    assert read(store, 3, 70_000) == CONTENT[3:70_003]


def test_a_flipped_bit_is_for_the_hash_to_find(server: FaultProxy) -> None:
    server.add("flip", match=PACK, times=1, offset=10)
    assert read(HttpStore(server.url), 0, 20) != CONTENT[:20]


@pytest.mark.parametrize(("code", "kind"), [
    (400, Forbidden), (401, Forbidden), (403, Forbidden), (407, Forbidden), (404, ObjectMissing),
    (410, ObjectMissing), (416, Malformed), (408, Unavailable), (429, Unavailable), (500, Unavailable),
    (503, Unavailable), (204, Unavailable), (302, Unavailable)])
def test_every_status_has_its_error(server: FaultProxy, code: int, kind: type[ModelfsError]) -> None:
    server.add("status", code=code)
    store = HttpStore(server.url)
    with pytest.raises(kind) as caught:
        read(store, 0, 10)
    assert type(caught.value) is kind
    for call in (lambda: store.get(PACK, soon(), limit=9), lambda: store.stat(PACK, soon())):
        with pytest.raises(kind):
            call()


@pytest.mark.parametrize("code", [403, 405, 501])
def test_a_store_that_takes_no_writes_is_forbidden(server: FaultProxy, code: int) -> None:
    server.add("status", code=code)
    store = HttpStore(server.url)
    for call in (lambda: store.put(PACK, b"x", soon()), lambda: store.delete(PACK, soon()),
                 lambda: store.swap("catalog.json", None, b"x", soon())):
        with pytest.raises(Forbidden):
            call()


def test_retry_after_is_read_as_seconds_and_as_a_date(server: FaultProxy) -> None:
    store = HttpStore(server.url)
    for text, low, high in (("7", 7, 7), (formatdate(time.time() + 100, usegmt=True), 50, 101),
                            ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0)):
        server.clear()
        server.add("status", code=503, retry_after=text)
        with pytest.raises(Unavailable) as caught:
            store.stat(PACK, soon())
        assert caught.value.retry_after_s is not None and low <= caught.value.retry_after_s <= high
    server.clear()
    server.add("status", code=503, retry_after="soon")
    with pytest.raises(Unavailable) as caught:
        store.stat(PACK, soon())
    assert caught.value.retry_after_s is None


def test_connections_are_kept_also_after_errors(server: FaultProxy) -> None:
    store = HttpStore(server.url)
    with counted_connections(server) as (url, opened):
        store = HttpStore(url)
        for n in range(10):
            read(store, n, 100_000)
            store.get("catalog.json", soon(), limit=10)
            store.stat(PACK, soon())
            with pytest.raises(ObjectMissing):
                store.stat("packs/ab/none", soon())
            with pytest.raises(ObjectMissing):
                store.get("packs/ab/none", soon(), limit=10)
    assert len(opened) == 1


@contextmanager
def counted_connections(server: FaultProxy) -> Iterator[tuple[str, list[int]]]:
    """A TCP relay before server: its URL and one entry a connection."""
    opened: list[int] = []
    port = int(server.url.rsplit(":", 1)[1])

    def pump(a: socket.socket, b: socket.socket) -> None:
        try:
            while data := a.recv(65536):
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)
        except OSError:
            b.close()

    def accept() -> None:
        while True:
            try:
                near = listener.accept()[0]
            except OSError:
                return
            opened.append(1)
            far = socket.create_connection(("127.0.0.1", port))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=pump, args=pair, daemon=True).start()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", opened
        listener.shutdown(socket.SHUT_RDWR)


def test_a_server_that_is_down_is_unavailable_and_one_that_comes_back_is_used(server: FaultProxy) -> None:
    store = HttpStore(server.url)
    read(store, 0, 10)
    server.down()
    with pytest.raises(Unavailable):
        read(store, 0, 10)
    server.up()
    assert read(store, 0, 10) == CONTENT[:10]


def test_a_name_that_nobody_has_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        HttpStore("http://nobody.invalid").stat(PACK, Deadline(10))


def test_a_resolver_that_hangs_is_left_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    hung, release = threading.Event(), threading.Event()

    def getaddrinfo(*_: object, **__: object) -> object:
        hung.set()
        release.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    try:
        store = HttpStore("http://models.example.org")
        passes_its_deadline(lambda: store.stat(PACK, Deadline(0.3)))
        assert hung.is_set()
    finally:
        release.set()


def test_what_is_not_http_is_unavailable() -> None:
    def talk() -> None:
        connection = listener.accept()[0]
        connection.recv(1000)
        connection.sendall(b"220 mail.example.org ESMTP\r\n")
        connection.close()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=talk, daemon=True).start()
        with pytest.raises(Unavailable):
            HttpStore(f"http://127.0.0.1:{listener.getsockname()[1]}").stat(PACK, soon())


def test_redirects_are_followed_and_endless_ones_are_not(server: FaultProxy, tmp_path: Path) -> None:
    with FaultProxy(tmp_path / "root") as first:
        first.add("redirect", target=server.url, methods=("GET", "HEAD"))
        store = HttpStore(first.url)
        assert read(store, 3, 50) == CONTENT[3:53]
        assert store.stat(PACK, soon()).size == len(CONTENT)
        server.add("redirect", target=first.url)
        with pytest.raises(Unavailable, match="redirects"):
            read(store, 3, 50)
    with pytest.raises(Forbidden):
        HttpStore(server.url).put(PACK, b"x", soon())


def test_credentials_go_to_their_own_host_only(server: FaultProxy, tmp_path: Path) -> None:
    secret = {"Authorization": "Bearer s3cret", "X-Api-Key": "s3cret"}
    with FaultProxy(tmp_path / "root") as first:
        store = HttpStore(first.url, headers=lambda: secret)
        store.stat(PACK, soon())
        first.add("redirect", target=server.url)
        store.stat(PACK, soon())
    assert [seen.headers.get("authorization") for seen in first.seen()] == ["Bearer s3cret"] * 2
    assert server.requests() == 1
    assert "s3cret" not in str(server.seen()[0].headers)


def test_a_redirect_to_the_same_host_keeps_the_credentials(server: FaultProxy) -> None:
    server.add("redirect", target=server.url, times=1)
    HttpStore(server.url, headers=lambda: {"Authorization": "Bearer s3cret"}).stat(PACK, soon())
    assert [seen.headers.get("authorization") for seen in server.seen()] == ["Bearer s3cret"] * 2


def test_netrc_does_not_replace_our_token(server: FaultProxy, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    HttpStore(server.url, headers=lambda: {"Authorization": "Bearer ours"}).stat(PACK, soon())
    HttpStore(server.url).stat(PACK, soon())
    assert [seen.headers.get("authorization") for seen in server.seen()] == ["Bearer ours", None]


def test_headers_say_who_asks_and_what_is_wanted(server: FaultProxy) -> None:
    store = HttpStore(server.url)
    store.get("catalog.json", soon(), limit=10, fresh=True)
    store.get("catalog.json", soon(), limit=10)
    fresh, plain = server.seen()
    assert fresh.headers["accept-encoding"] == "identity" and fresh.headers["user-agent"].startswith("modelfs/")
    assert fresh.headers["cache-control"] == "no-cache" and "cache-control" not in plain.headers


def test_a_proxy_from_the_environment_is_used(server: FaultProxy, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultProxy(upstream=server.url) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        with pytest.raises(ObjectMissing):  # the upstream knows no absolute URL: that it was asked is what counts
            HttpStore("http://models.example.org").stat(PACK, soon())
        assert proxy.seen()[0].path == f"http://models.example.org/{PACK}"


def test_an_upload_that_is_taken_too_slowly_ends_at_the_deadline() -> None:
    """No single wait is long: each piece is taken after a moment."""
    done = threading.Event()

    def take_slowly() -> None:
        with listener.accept()[0] as connection:
            while not done.wait(0.02) and connection.recv(65536):
                pass
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        threading.Thread(target=take_slowly, daemon=True).start()
        store = HttpStore(f"http://127.0.0.1:{listener.getsockname()[1]}")
        try:
            passes_its_deadline(lambda: store.put(PACK, b"x" * (64 * MiB), Deadline(0.5)))
        finally:
            done.set()


def test_a_large_upload_arrives_whole(server: FaultProxy) -> None:
    store = HttpStore(server.url)
    assert store.put(PACK, CONTENT * 40, soon())
    assert server.store
    found = server.store.get(PACK, soon(), limit=40 * MiB)
    assert found and found.data == CONTENT * 40


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Key and self-signed certificate of 127.0.0.1 in one file."""
    path = tmp_path / "certificate.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-keyout", path, "-out", tmp_path / "public.pem", "-subj", "/CN=127.0.0.1", "-days", "2",
                    "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    path.write_text(path.read_text() + (tmp_path / "public.pem").read_text())
    return path


def test_https_is_checked_and_has_the_same_deadlines(server: FaultProxy, tmp_path: Path, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with FaultProxy(tmp_path / "root", tls=context) as secure:
        store = HttpStore(secure.url, tls=TlsFiles(tmp_path / "public.pem"))
        assert read(store, 3, 500_000) == CONTENT[3:500_003]
        secure.add("drip", match=PACK, piece=1, interval_s=0.02)
        passes_its_deadline(lambda: read(store, 0, 200_000, Deadline(0.5)))
        with pytest.raises(WrongServer, match=r"certificate does not hold, self.signed"):
            HttpStore(secure.url).stat(PACK, soon())


def test_a_tls_handshake_that_hangs_is_left_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        store = HttpStore(f"https://127.0.0.1:{listener.getsockname()[1]}")
        passes_its_deadline(lambda: store.stat(PACK, Deadline(0.3)))


@pytest.mark.parametrize("url", ["ftp://x/y", "http://", "http://x:port/", "https://user:pass@x/", "http://x/?a=b",
                                 "http://x/#a", "nonsense"])
def test_a_bad_url_is_bad_input_and_shows_no_secret(url: str) -> None:
    with pytest.raises(BadInput) as caught:
        HttpStore(url)
    assert "pass" not in str(caught.value)
