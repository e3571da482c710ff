"""What az:// and gs:// have of their own: keys and signatures, refusals, uploads in parts; against servers that speak
their protocols. What every store does is in tests/contract."""

from __future__ import annotations

import random
from pathlib import Path
from urllib.parse import urlsplit

import azureservers
import cloudservers
import gcsservers
import pytest
from faultproxy import FaultProxy

from modelfs.errors import Forbidden, NotFound, ObjectMissing
from modelfs.stores.cloud_access import CloudOptions
from modelfs.stores.cloud_store import CloudStore
from modelfs.units import Deadline, MiB

PACK = "packs/ab/ab" + "1" * 62
LARGE = random.Random(3).randbytes(40 * MiB + 17)  # more parts than are sent at once


def soon() -> Deadline:
    return Deadline(30)


def read(store: CloudStore, key: str, offset: int, length: int) -> bytes:
    out = bytearray(length)
    with store.open_range(key, offset, length, soon()) as stream:
        stream.readinto(memoryview(out))
    return bytes(out)


@pytest.fixture(params=["azurite", "fake-gcs-server"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Its name; the environment leads to it."""
    for name, value in cloudservers.environ(request.param).items():
        monkeypatch.setenv(name, value)
    return str(request.param)


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch) -> str:
    """A repository's URL; the environment has account and endpoint, and no credentials."""
    for name, value in azureservers.environ().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY")
    return cloudservers.url("azurite", cloudservers.new_prefix())


def test_a_large_object_goes_up_in_parts_and_comes_back(server: str) -> None:
    prefix = cloudservers.new_prefix()
    store, bucket = CloudStore(cloudservers.url(server, prefix)), cloudservers.bucket(server, prefix)
    store.put(PACK, memoryview(LARGE), soon())
    assert bucket.get(PACK) == LARGE
    assert read(store, PACK, 7 * MiB + 1, 16 * MiB) == LARGE[7 * MiB + 1:23 * MiB + 1]
    found = store.get(PACK, soon(), limit=len(LARGE))
    assert found and found.content == LARGE
    assert store.swap(PACK, found.etag, b"small", soon()) and bucket.get(PACK) == b"small"


def test_an_upload_in_parts_that_is_refused_leaves_no_object(server: str) -> None:
    prefix = cloudservers.new_prefix()
    endpoint = urlsplit(cloudservers.endpoint(server))
    with FaultProxy(upstream=f"http://{endpoint.netloc}") as proxy:
        store = CloudStore(cloudservers.url(server, prefix), CloudOptions(proxy.url + endpoint.path))
        proxy.add("status", code=403, methods=("PUT",), match="comp=block&|partNumber=2")
        with pytest.raises(Forbidden):
            store.put(PACK, LARGE, soon())
    assert list(cloudservers.bucket(server, prefix).list("", soon())) == []


def test_a_bucket_that_is_not_there_is_said_to_be(server: str) -> None:
    store = CloudStore(cloudservers.url(server, "x").replace("models", "no-such-bucket"))
    with pytest.raises(ObjectMissing if server == "fake-gcs-server" else NotFound):  # which says "not found", no more
        store.get(PACK, soon(), limit=1)


@pytest.mark.parametrize("told", ["key", "signature", "connection string", "connection string with a signature"])
def test_azure_is_asked_with_what_the_environment_has(azure: str, monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    url, signature = azureservers.endpoint(), azureservers.shared_access("racwdl")
    if told == "key":
        monkeypatch.setenv("AZURE_STORAGE_KEY", azureservers.KEY)
    elif told == "signature":
        monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", signature)
    else:
        monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
        monkeypatch.delenv("AZURE_STORAGE_ENDPOINT")
        secret = f"AccountKey={azureservers.KEY}" if told == "connection string" else (
            f"SharedAccessSignature={signature}")
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING",
                           f"AccountName={azureservers.ACCOUNT};{secret};BlobEndpoint={url}")
    store = CloudStore(azure)
    assert store.url == f"{azure}?endpoint={url}"
    assert store.put(PACK, b"0123456789", soon(), only_if_absent=True)
    assert read(store, PACK, 3, 4) == b"3456"
    assert [info.key for info in store.list("", soon())] == [PACK]
    store.delete(PACK, soon())


def test_a_signature_that_gives_no_right_to_delete_is_forbidden(azure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", azureservers.shared_access("racwl"))
    store = CloudStore(azure)
    store.put(PACK, b"x", soon())
    with pytest.raises(Forbidden, match="AZURE_STORAGE_SAS_TOKEN") as caught:
        store.delete(PACK, soon())
    assert "sig=" not in str(caught.value)
    assert store.stat(PACK, soon()).size == 1


def test_a_wrong_key_is_forbidden_and_no_message_shows_it(azure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "aHVudGVyMmh1bnRlcjI=")
    store = CloudStore(azure)
    for call in (lambda: store.get(PACK, soon(), limit=1), lambda: store.put(PACK, b"x", soon()),
                 lambda: store.swap("catalog.json", None, b"x", soon()), lambda: store.stat(PACK, soon()),
                 lambda: list(store.list("", soon()))):
        with pytest.raises(Forbidden, match="AZURE_STORAGE_ACCOUNT_KEY") as caught:
            call()
        assert "aHVudGVy" not in str(caught.value)
    assert "aHVudGVy" not in store.url + repr(vars(store))


def test_a_public_container_is_read_without_credentials_and_others_are_not(azure: str, tmp_path: Path) -> None:
    prefix = azure.rpartition("models/")[2]
    for container in (azureservers.PUBLIC, azureservers.CONTAINER):
        azureservers.Bucket(prefix, container).put(PACK, b"0123456789", soon())
    public = CloudStore(f"az://{azureservers.PUBLIC}/{prefix}")
    assert read(public, PACK, 3, 4) == b"3456"
    with pytest.raises(Forbidden, match="without credentials"):
        public.put(PACK, b"x", soon())
    with pytest.raises(Forbidden, match="without credentials"):
        CloudStore(azure).stat(PACK, soon())


def test_who_writes_to_google_without_credentials_hears_it_from_the_store(monkeypatch: pytest.MonkeyPatch,
                                                                         tmp_path: Path) -> None:
    """And waits for no metadata server, which obstore would ask for a token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    with FaultProxy(upstream=gcsservers.endpoint()) as proxy:
        proxy.add("status", code=401, methods=("PUT",))
        store = CloudStore(cloudservers.url("fake-gcs-server", "x"), CloudOptions(proxy.url))
        with pytest.raises(Forbidden, match=r"HTTP 401.*without credentials"):
            store.put(PACK, b"x", soon())
        assert proxy.requests() == 1
