"""https:// stores through proxies of the environment: handed on, refused, dead, silent; no secret is told."""

from __future__ import annotations

import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from connectproxy import ConnectProxy
from faultproxy import FaultProxy
from tlsservers import Authority, server_context

from modelfs.errors import BadInput, DeadlinePassed, Forbidden, ModelfsError, Unavailable
from modelfs.stores.file_store import FileStore
from modelfs.stores.http_store import HttpStore
from modelfs.stores.http_transport import STALL_S
from modelfs.stores.opening import TlsFiles
from modelfs.units import Deadline

KEY = "catalog.json"
HOST = "models.example.org"
PASSWORD = "ann:s3cret"
Through = Callable[[ConnectProxy], HttpStore]


def soon() -> Deadline:
    return Deadline(20)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


@pytest.fixture
def server(tmp_path: Path, authority: Authority) -> Iterator[FaultProxy]:
    """Calls itself HOST, a name that only a proxy finds."""
    FileStore(tmp_path / "root").put(KEY, b"{}", soon())
    with FaultProxy(tmp_path / "root", tls=server_context(authority.issue("server", [HOST, "127.0.0.1"]))) as made:
        yield made


@pytest.fixture
def routes(server: FaultProxy) -> dict[str, int]:
    return {f"{HOST}:443": int(server.url.rsplit(":", 1)[1])}


@pytest.fixture
def through(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Through:
    """A store at HOST, asked as the environment of everybody says: by the proxy."""
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY", "https_proxy", "http_proxy", "HTTP_PROXY",
                 "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)

    def store(proxy: ConnectProxy) -> HttpStore:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        return HttpStore(f"https://{HOST}", headers=lambda: {"Authorization": "Bearer t0ken"},
                         tls=TlsFiles(authority.ca))
    return store


def reads(store: HttpStore) -> bool:
    found = store.get(KEY, soon(), limit=10)
    return found is not None and found.data == b"{}"


def test_a_store_is_reached_through_a_proxy_and_neither_sees_the_others_secret(
        server: FaultProxy, routes: dict[str, int], through: Through) -> None:
    with ConnectProxy(routes, password=PASSWORD) as proxy:
        store = through(proxy)
        for _ in range(3):
            assert reads(store)
        assert len(proxy.heads) == 1, "the tunnel is kept"
        assert proxy.heads[0].startswith(f"CONNECT {HOST}:443 ")
        assert b64encode(PASSWORD.encode()).decode() in proxy.heads[0] and "t0ken" not in proxy.heads[0]
    assert [seen.headers.get("authorization") for seen in server.seen()] == ["Bearer t0ken"] * 3
    assert not any("proxy-authorization" in seen.headers for seen in server.seen())


def test_who_is_named_by_no_proxy_is_asked_directly(server: FaultProxy, routes: dict[str, int], through: Through,
                                                    authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    with ConnectProxy(routes) as proxy:
        through(proxy)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,.example.com")
        assert reads(HttpStore(server.url, tls=TlsFiles(authority.ca)))
        assert proxy.heads == []


def test_a_proxy_with_tls_is_believed_by_the_usual_authorities_and_not_by_the_remotes(
        routes: dict[str, int], through: Through, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Authority(tmp_path / "other", "other")
    with ConnectProxy(routes, tls=server_context(other.issue("proxy"))) as proxy:
        store = through(proxy)
        with pytest.raises(Unavailable, match=rf"a proxy does not answer as itself, {proxy.url}"):
            reads(store)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other.ca))
        assert reads(through(proxy))


@pytest.mark.parametrize(("status", "kind", "said"), [
    ("407 Proxy Authentication Required", Forbidden, "a proxy refuses, {}: HTTP 407 Proxy Authentication Required"),
    ("403 Forbidden", Forbidden, "a proxy refuses, {}: HTTP 403 Forbidden. NO_PROXY names"),
    ("502 Bad Gateway", Unavailable, "a proxy does not reach the store, {}: HTTP 502 Bad Gateway"),
    ("503 Busy", Unavailable, "a proxy does not reach the store, {}: HTTP 503 Busy")])
def test_a_proxy_that_refuses_is_named_without_its_password(routes: dict[str, int], through: Through, status: str,
                                                            kind: type[ModelfsError], said: str) -> None:
    with ConnectProxy(routes, password=PASSWORD, status=status) as proxy, pytest.raises(ModelfsError) as caught:
        reads(through(proxy))
    assert type(caught.value) is kind and said.format(f"http://{proxy.host}") in str(caught.value)
    assert "s3cret" not in str(caught.value) and "ann" not in str(caught.value)


def test_a_proxy_that_wants_a_password_refuses_plain_http_too(server: FaultProxy, tmp_path: Path, through: Through,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultProxy(tmp_path / "root") as proxy:
        proxy.add("status", code=407)
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", f"//{PASSWORD}@"))
        monkeypatch.setenv("http_proxy", proxy.url.replace("//", f"//{PASSWORD}@"))
        with pytest.raises(Forbidden, match=rf"a proxy refuses, {proxy.url}: HTTP 407") as caught:
            reads(HttpStore(f"http://{HOST}"))
    assert "s3cret" not in str(caught.value)


def test_a_proxy_that_is_dead_is_named(routes: dict[str, int], through: Through) -> None:
    with ConnectProxy(routes, password=PASSWORD) as proxy:
        store, host = through(proxy), proxy.host
    with pytest.raises(Unavailable, match=rf"a proxy does not answer, http://{host}: Connection refused") as caught:
        reads(store)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("how", ["silent", "drips"])
def test_a_proxy_that_does_not_come_to_an_end_is_left_at_the_deadline(routes: dict[str, int], through: Through,
                                                                      how: str) -> None:
    with ConnectProxy(routes, silent=how == "silent", drips=how == "drips") as proxy:
        store = through(proxy)
        raised: list[ModelfsError] = []

        def ask() -> None:
            try:
                store.stat(KEY, Deadline(0.5))
            except ModelfsError as error:
                raised.append(error)
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(STALL_S * 0.7)
        assert not thread.is_alive() and isinstance(raised[0], DeadlinePassed), raised
        assert f"by the proxy http://{proxy.host}" in str(raised[0])


def test_a_server_behind_a_proxy_that_breaks_off_is_named_with_the_way_to_it(
        server: FaultProxy, routes: dict[str, int], through: Through) -> None:
    server.add("hang", times=1)
    with ConnectProxy(routes) as proxy:
        store = through(proxy)
        threading.Timer(0.3, server.clear).start()
        with pytest.raises(Unavailable, match=rf"a store does not answer, https://{HOST}/{KEY}: .*by the proxy http"):
            reads(store)
        assert reads(store)


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1080", "http://"])
def test_a_proxy_that_cannot_be_used_is_bad_input(through: Through, monkeypatch: pytest.MonkeyPatch,
                                                  proxy: str) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(BadInput):
        reads(HttpStore(f"https://{HOST}"))
