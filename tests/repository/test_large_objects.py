"""A version whose manifest and layout are large: read from the store, then from the cache, and wrong nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cache.cache_helpers import open_cache
from faultproxy import FaultProxy
from repository.builder import Builder, deadline

from modelfs.cache.cache import Cache
from modelfs.errors import IntegrityError
from modelfs.ids import ObjectId
from modelfs.repository import keys
from modelfs.repository.manifest import Manifest
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.stores.http_store import HttpStore
from modelfs.stores.store import ObjectStore
from modelfs.units import MiB

FILES = {f"{'directory-' * 20}/{'file-' * 30}{number:05}": b"" for number in range(2500)} | {"z": b"content"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ObjectId]:
    root = tmp_path_factory.mktemp("large") / "repository"
    version = Builder(root).push("acme/large", FILES)
    assert (root / keys.manifest(version.manifest)).stat().st_size > 1 * MiB
    return root, version.manifest


@pytest.fixture(params=["directory", "server"])
def store(request: pytest.FixtureRequest, built: tuple[Path, ObjectId]) -> Iterator[ObjectStore]:
    if request.param == "directory":
        yield FileStore(built[0])
        return
    with FaultProxy(built[0]) as server:
        yield HttpStore(server.url)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    made = open_cache(tmp_path / "cache")
    yield made
    made.close()


def load(store: ObjectStore, cache: Cache | None, id: ObjectId) -> Manifest:
    repository = Repository.open(store, deadline(), cache.meta if cache else None)
    found, at = repository.manifest_and_layout(id, deadline())
    assert not isinstance(at, IntegrityError)
    return found


def assert_right(found: Manifest) -> None:
    assert [file.path for file in found.files()] == list(FILES) and found.decoded_bytes == len(b"content")


def test_it_is_read_without_a_cache(store: ObjectStore, built: tuple[Path, ObjectId]) -> None:
    assert_right(load(store, None, built[1]))


def test_what_was_read_lies_in_the_cache_and_is_mapped_from_there(store: ObjectStore, built: tuple[Path, ObjectId],
                                                                  cache: Cache) -> None:
    first = load(store, cache, built[1])
    kept = cache.meta.get("manifest", built[1].hex())
    assert kept == (built[0] / keys.manifest(built[1])).read_bytes()
    assert f"{cache.directory}/meta/" in Path("/proc/self/maps").read_text()
    again = load(store, cache, built[1])
    cache.meta.clear()  # under them
    assert_right(first)
    assert_right(again)


def test_one_that_the_cache_cannot_hold_is_read_all_the_same(store: ObjectStore, built: tuple[Path, ObjectId],
                                                             tmp_path: Path) -> None:
    small = open_cache(tmp_path / "small", 256 * 1024)
    assert_right(load(store, small, built[1]))
    small.close()


def test_a_damaged_one_in_the_cache_is_asked_for_again(store: ObjectStore, built: tuple[Path, ObjectId],
                                                       cache: Cache) -> None:
    load(store, cache, built[1])
    for path in (cache.directory / "meta").iterdir():
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    assert_right(load(store, cache, built[1]))


@pytest.mark.parametrize("kind", ["directory", "server"])
def test_a_damaged_one_in_the_store_is_refused_and_not_kept(tmp_path: Path, cache: Cache, kind: str) -> None:
    root = tmp_path / "damaged"
    id = Builder(root).push("acme/large", FILES).manifest
    path = root / keys.manifest(id)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with FaultProxy(root) as server, pytest.raises(IntegrityError, match="hash"):
        load(FileStore(root) if kind == "directory" else HttpStore(server.url), cache, id)
    assert cache.meta.get("manifest", id.hex()) is None
