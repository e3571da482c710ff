"""Certificates of an https:// store, against real servers: who is believed, what is shown, and what is said of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from faultproxy import FaultProxy
from mount.mounting import until
from tlsservers import HERE, Authority, Shown, TlsServer, replace, server_context, tls_nginx

from modelfs.errors import BadInput, Forbidden, ModelfsError, WrongServer
from modelfs.metrics import Metrics
from modelfs.stores.file_store import FileStore
from modelfs.stores.http_store import HttpStore
from modelfs.stores.opening import TlsFiles
from modelfs.stores.retrying import RetryingStore
from modelfs.units import Deadline

KEY = "catalog.json"
VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
Secured = Callable[..., FaultProxy]


def soon() -> Deadline:
    return Deadline(20)


@pytest.fixture(autouse=True)
def no_authorities_but_the_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    FileStore(tmp_path / "root").put(KEY, b"{}", soon())
    return tmp_path / "root"


@pytest.fixture
def secured(root: Path) -> Iterator[Secured]:
    """A server of root with a certificate, in this process."""
    with ExitStack() as stack:
        yield lambda shown, **options: stack.enter_context(
            FaultProxy(root, tls=server_context(shown, **options)))


@pytest.fixture
def asking(root: Path, tmp_path: Path, authority: Authority) -> Iterator[TlsServer]:
    """nginx that wants to see a certificate of authority."""
    with (FaultProxy(root) as behind,
          tls_nginx(tmp_path / "nginx", behind.url, authority.issue("server"), clients=authority.ca) as server):
        yield server


def files(authority: Authority, shown: Shown | None = None) -> TlsFiles:
    return TlsFiles(authority.ca, shown.cert if shown else None, shown.key if shown else None, "remotes.lab.")


def reads(store: HttpStore) -> bool:
    found = store.get(KEY, soon(), limit=10)
    return found is not None and found.data == b"{}"


def test_an_authority_of_our_own_is_believed_where_it_is_named(secured: Secured, authority: Authority,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    server = secured(authority.issue("server"))
    assert reads(HttpStore(server.url, tls=files(authority)))
    with pytest.raises(WrongServer, match="unable to get local issuer"):
        reads(HttpStore(server.url))
    for name in VARIABLES:
        with monkeypatch.context() as patch:
            patch.setenv(name, str(authority.ca))
            assert reads(HttpStore(server.url)), name


def test_a_remote_believes_its_own_authority_and_no_other(secured: Secured, authority: Authority, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    other = Authority(tmp_path / "other", "other")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other.ca))
    server = secured(other.issue("server"))
    assert reads(HttpStore(server.url))
    with pytest.raises(WrongServer):
        reads(HttpStore(server.url, tls=files(authority)))


@pytest.mark.parametrize(("days", "hosts", "said"), [
    ((-9, -2), HERE, r"certificate has expired\. Is the clock right\? It is 20\d\d-\d\d-\d\dT"),
    ((2, 9), HERE, r"certificate is not yet valid\. Is the clock right\?"),
    ((-1, 1), ("models.example.org",), "IP address mismatch")])
def test_a_certificate_that_does_not_hold_is_said_to_and_asked_for_once(
        secured: Secured, authority: Authority, days: tuple[int, int], hosts: Sequence[str], said: str) -> None:
    shown = authority.issue("server", hosts, days=days)
    server, metrics = secured(shown), Metrics()
    store = RetryingStore(HttpStore(server.url, tls=files(authority)), metrics)
    with pytest.raises(WrongServer, match=said) as caught:
        store.stat(KEY, soon())
    assert server.url in str(caught.value) and "\n" not in str(caught.value)
    assert metrics.snapshot()["fetch_retries"] == 0


def test_a_client_certificate_opens_the_door(asking: TlsServer, authority: Authority, tmp_path: Path) -> None:
    client = authority.issue("client", ["client.example.org"])
    store = HttpStore(asking.url, tls=files(authority, client))
    for _ in range(3):
        assert reads(store)
    until(lambda: asking.serials() == [client.serial] * 3)
    assert len({words[0] for words in asking.seen()}) == 1, "one connection: its context did not change"
    together = tmp_path / "together.pem"
    replace(together, client.key.read_bytes() + client.cert.read_bytes())
    assert reads(HttpStore(asking.url, tls=TlsFiles(authority.ca, together)))


def test_who_shows_none_or_a_strangers_is_refused_and_told(asking: TlsServer, authority: Authority,
                                                           tmp_path: Path) -> None:
    with pytest.raises(Forbidden, match=r"No required SSL certificate was sent\. client_cert of a remote"):
        reads(HttpStore(asking.url, tls=files(authority)))
    stranger = Authority(tmp_path / "other", "other").issue("client")
    with pytest.raises(Forbidden, match=r"The SSL certificate error\. client_cert"):
        reads(HttpStore(asking.url, tls=files(authority, stranger)))


def test_who_is_refused_in_the_handshake_is_told(secured: Secured, authority: Authority) -> None:
    server = secured(authority.issue("server"), clients=authority.ca)
    assert reads(HttpStore(server.url, tls=files(authority, authority.issue("client"))))
    with pytest.raises(Forbidden, match="TLS alert, certificate required"):
        reads(HttpStore(server.url, tls=files(authority)))


def test_a_certificate_that_is_renewed_is_shown_from_the_next_request_on(asking: TlsServer,
                                                                        authority: Authority) -> None:
    first = authority.issue("client")
    store = HttpStore(asking.url, tls=files(authority, first))
    assert reads(store)
    second = authority.issue("client")
    assert second.cert == first.cert and reads(store)
    until(lambda: asking.serials() == [first.serial, second.serial])


@pytest.mark.parametrize("spoil", ["cert half", "key half", "key gone", "key of another"])
def test_a_renewal_that_is_half_done_stops_nothing(asking: TlsServer, authority: Authority, spoil: str,
                                                   caplog: pytest.LogCaptureFixture) -> None:
    client = authority.issue("client")
    store = HttpStore(asking.url, tls=files(authority, client))
    assert reads(store)
    path = client.cert if spoil.startswith("cert") else client.key
    good = path.read_bytes()
    if spoil == "key gone":
        path.unlink()
    elif spoil == "key of another":
        replace(path, authority.issue("another").key.read_bytes())
    else:
        replace(path, good[:60])
    assert reads(store)
    until(lambda: asking.serials() == [client.serial] * 2)
    assert any("tls_files.bad" in record.getMessage() for record in caplog.records)
    third = authority.issue("client")
    assert reads(store)
    until(lambda: asking.serials() == [client.serial] * 2 + [third.serial])


def test_an_authority_that_is_replaced_is_believed(secured: Secured, authority: Authority, tmp_path: Path) -> None:
    new = Authority(tmp_path / "new", "new")
    old_server, new_server = secured(authority.issue("server")), secured(new.issue("server"))
    bundle = tmp_path / "bundle.pem"
    replace(bundle, authority.ca.read_bytes())
    store = HttpStore(old_server.url, tls=TlsFiles(bundle))
    assert reads(store)
    replace(bundle, new.ca.read_bytes())
    with pytest.raises(WrongServer):
        reads(store)
    assert reads(HttpStore(new_server.url, tls=TlsFiles(bundle)))


def test_who_we_are_sent_to_does_not_see_our_certificate(root: Path, tmp_path: Path, authority: Authority) -> None:
    client, shown = authority.issue("client"), authority.issue("server")
    with (FaultProxy(root) as behind, ExitStack() as stack):
        far = stack.enter_context(tls_nginx(tmp_path / "far", behind.url, shown, clients=authority.ca, optional=True))
        elsewhere = far.url.replace("127.0.0.1", "localhost")
        near = stack.enter_context(tls_nginx(tmp_path / "near", behind.url, shown, clients=authority.ca,
                                             more=f"location = /{KEY} {{ return 302 {elsewhere}/{KEY}; }}"))
        assert reads(HttpStore(near.url, tls=files(authority, client)))
        until(lambda: near.serials() == [client.serial] and far.serials() == [None])


def spoilt(tmp_path: Path, authority: Authority, how: str) -> TlsFiles:
    client, bad = authority.issue("client"), tmp_path / "bad.pem"
    if how.endswith("missing"):
        bad = tmp_path / "none.pem"
    elif how == "key open":
        bad.write_bytes(client.key.read_bytes())
        bad.chmod(0o640)
    elif how == "key of another":
        replace(bad, authority.issue("another").key.read_bytes())
    elif how == "key with a passphrase":
        key = serialization.load_pem_private_key(client.key.read_bytes(), None)
        replace(bad, key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                       serialization.BestAvailableEncryption(b"s3cret")))
    elif how.endswith("fifo"):
        os.mkfifo(bad, 0o600)
    else:
        replace(bad, b"nothing in PEM\n")
    if how.startswith("ca"):
        return TlsFiles(bad, keys="remotes.lab.")
    if how == "cert without a key":
        return TlsFiles(cert=client.cert, keys="remotes.lab.")
    if how == "key alone":
        return TlsFiles(key=client.key, keys="remotes.lab.")
    return TlsFiles(cert=bad if how.startswith("cert") else client.cert,
                    key=bad if how.startswith("key") else client.key, keys="remotes.lab.")


@pytest.mark.parametrize(("how", "kind", "key"), [
    ("ca missing", BadInput, "ca_file"), ("ca nonsense", BadInput, "ca_file"), ("ca fifo", BadInput, "ca_file"),
    ("cert missing", BadInput, "client_cert"), ("cert nonsense", BadInput, "client_cert"),
    ("cert without a key", BadInput, "client_key"), ("key alone", BadInput, "client_key"),
    ("key missing", BadInput, "client_key"), ("key nonsense", BadInput, "client_key"),
    ("key of another", BadInput, ""), ("key with a passphrase", BadInput, ""), ("key open", Forbidden, "client_key")])
def test_files_that_are_of_no_use_are_named_before_anything_is_asked(
        tmp_path: Path, authority: Authority, how: str, kind: type[ModelfsError], key: str) -> None:
    made = spoilt(tmp_path, authority, how)
    with pytest.raises(kind) as caught:
        HttpStore("https://models.example.org", tls=made)
    said = str(caught.value)
    assert type(caught.value) is kind and "\n" not in said and "s3cret" not in said
    assert key == "" or f"remotes.lab.{key}" in said
    assert any(str(path) in said for path in (made.ca, made.cert, made.key) if path)


def test_authorities_that_the_environment_names_in_vain_are_named(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(BadInput, match=r"none\.pem: .*REQUESTS_CA_BUNDLE names it"):
        HttpStore("https://models.example.org")


def test_certificates_are_nothing_to_a_store_without_tls(root: Path, tmp_path: Path) -> None:
    with FaultProxy(root) as server:
        assert reads(HttpStore(server.url, tls=TlsFiles(tmp_path / "none.pem")))
