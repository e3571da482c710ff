"""Objects to upload, and raw requests, for the tests of the server's writing side."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import requests

from modelfs.ids import Digest, ModelName, ObjectId
from modelfs.repository import keys, layout
from modelfs.repository.catalog import Catalog, parse
from modelfs.repository.history import History
from modelfs.repository.info import initialise
from modelfs.repository.places import Place
from modelfs.stores.file_store import FileStore
from modelfs.units import Deadline, KiB


def soon() -> Deadline:
    return Deadline(20)


def new_repository(root: Path) -> FileStore:
    store = FileStore(root)
    initialise(store, 64 * KiB, time.time(), soon())
    return store


def name_of(data: bytes, kind: str = "packs") -> str:
    digest = Digest.of(data).hex()
    return f"{kind}/{digest[:2]}/{digest}"


def put(url: str, key: str, data: bytes, **headers: str) -> requests.Response:
    return requests.put(f"{url}/{key}", data=data, timeout=20,
                        headers={name.replace("_", "-"): value for name, value in headers.items()})


def get(url: str, key: str) -> requests.Response:
    return requests.get(f"{url}/{key}", timeout=20)


def unfinished(root: Path) -> list[Path]:
    """What writers left, and have not finished."""
    return [path for path in root.rglob(".*") if path.name != ".lock"]


def eventually(what: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), 20)


def head_of(key: str, length: int, *more: str) -> bytes:
    return "\r\n".join([f"PUT /{key} HTTP/1.1", "Host: localhost", f"Content-Length: {length}", *more, "", ""]).encode()


def chunked_head_of(key: str) -> bytes:
    return f"PUT /{key} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()


def answer_of(connection: socket.socket) -> bytes:
    """The head of the next answer."""
    out = b""
    while b"\r\n\r\n" not in out:
        data = connection.recv(1)
        if not data:
            break
        out += data
    return out


def a_layout(manifest_id: ObjectId, offset: int = 0) -> bytes:
    place = Place(ObjectId.of(b"pack"), offset, 10, "raw")
    return layout.serialise(manifest_id, [place], set())


def current(store: FileStore) -> tuple[Catalog, str]:
    found = store.get(keys.CATALOG, soon(), limit=1 << 20)
    assert found and found.etag
    return parse(found.data), found.etag


def with_model(store: FileStore, before: Catalog, model: str, *, put_history: bool = True) -> Catalog:
    name = ModelName.parse(model)
    text = History(name).serialise()
    if put_history:
        store.put(keys.history(ObjectId.of(text)), text, soon())
    return before.next("2026-01-01T00:00:00Z", models={**before.models, name: ObjectId.of(text)})


def noise(size: int) -> bytes:
    return os.urandom(size)
