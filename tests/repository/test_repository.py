"""A repository from its modelfs.json down to a chunk: what is found where one should be, and what is refused."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterator
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from repository.builder import CHUNK, WHEN, Builder, deadline

from modelfs.errors import (
    BadInput,
    Conflict,
    CorruptChunk,
    IntegrityError,
    Malformed,
    NotFound,
    ObjectMissing,
    Unsupported,
)
from modelfs.ids import ModelName, ModelRef, ObjectId
from modelfs.repository import keys
from modelfs.repository.absent import no_repository
from modelfs.repository.catalog import Catalog
from modelfs.repository.info import initialise, parse_info
from modelfs.repository.layout import Layout
from modelfs.repository.manifest import Manifest
from modelfs.repository.records import canonical
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.stores.opening import open_store
from modelfs.stores.retrying import RetryingStore
from modelfs.units import KiB, MiB

FILES = {"a/data.bin": bytes(range(256)) * 300, "b.txt": b"text", "empty": b""}


@pytest.fixture
def made(tmp_path: Path) -> Builder:
    builder = Builder(tmp_path / "repo")
    builder.push("acme/base", FILES)
    return builder


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """The address of a directory of tmp_path, by a static server."""
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield lambda path: f"http://127.0.0.1:{server.server_port}/{path}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def opened(repository: Repository) -> tuple[Manifest, Layout]:
    resolved = repository.resolve(repository.catalog(deadline()).catalog, ModelRef.parse("acme/base"), deadline())
    assert (resolved.tag, resolved.version.name) == ("latest", "v1")
    found = repository.manifest(resolved.version.manifest, deadline())
    return found, repository.layout(found, deadline())


def test_a_version_is_read_from_the_catalog_down_to_its_bytes(made: Builder) -> None:
    repository, (found, at) = made.repository, opened(made.repository)
    for file in found.files():
        rows = range(file.first_row, file.first_row + file.row_count)
        assert b"".join(repository.read_chunk(found, at, row, deadline()) for row in rows) == FILES[file.path]


def test_a_pack_says_the_same_as_the_index_that_was_made_with_it(made: Builder) -> None:
    (rows,) = made.repository.indexes(made.repository.catalog(deadline()).catalog, deadline())
    pack = rows.all()[0].place.pack
    assert made.repository.pack_chunks(pack, deadline()) == rows.all()


def test_a_repository_is_made_once(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "repo")
    info = initialise(store, 1 * MiB, 0, deadline())
    assert Repository.open(store, deadline()).info == info
    before = made_of(tmp_path / "repo")
    with pytest.raises(Conflict, match="already"):
        initialise(store, 2 * MiB, 0, deadline())
    assert made_of(tmp_path / "repo") == before


@pytest.mark.parametrize("others", [False, True])
def test_a_repository_that_was_left_without_a_catalog_is_finished_by_the_next_init(tmp_path: Path,
                                                                                   others: bool) -> None:
    store = FileStore(tmp_path / "repo")
    left = initialise(store, 1 * MiB, 0, deadline())
    (tmp_path / "repo" / keys.CATALOG).unlink()
    if others:
        with pytest.raises(Conflict, match="chunk size is 1 MiB"):
            initialise(store, 2 * MiB, 0, deadline())
        assert not (tmp_path / "repo" / keys.CATALOG).exists()
    assert initialise(store, 1 * MiB, 0, deadline()) == left
    assert Repository.open(store, deadline()).catalog(deadline()).catalog.repository == left.id


@pytest.mark.parametrize("lost", [keys.INFO, keys.CATALOG])
def test_a_repository_is_made_though_the_answer_to_one_of_its_objects_is_lost(tmp_path: Path, lost: str) -> None:
    with FaultProxy(tmp_path / "repo", writable=True) as server:
        rule = server.add("lost_answer", lost, times=1, methods=("PUT",))
        store = RetryingStore(open_store(server.url), first_wait_s=0.01)
        info = initialise(store, 1 * MiB, 0, deadline())
        assert rule.hits == 1
        assert Repository.open(store, deadline()).catalog(deadline()).catalog.repository == info.id


def test_of_many_who_make_one_repository_at_once_one_does(tmp_path: Path) -> None:
    stores = [FileStore(tmp_path / "repo") for _ in range(8)]
    found: list[object] = []

    def make(store: FileStore) -> None:
        try:
            found.append(initialise(store, 1 * MiB, 0, deadline()))
        except Conflict as error:
            found.append(error)

    threads = [threading.Thread(target=make, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    repository = Repository.open(stores[0], deadline())
    assert [info for info in found if not isinstance(info, Conflict)] == [repository.info]
    assert repository.catalog(deadline()).catalog.repository == repository.info.id


def made_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("size", [0, 1, 32 * KiB, 64 * KiB + 1, 3 * MiB, 32 * MiB])
def test_a_chunk_size_is_a_power_of_two_from_64_kib_to_16_mib(tmp_path: Path, size: int) -> None:
    with pytest.raises(BadInput, match="power of two"):
        initialise(FileStore(tmp_path / "repo"), size, 0, deadline())
    assert not (tmp_path / "repo").exists()


def an_info(**fields: object) -> bytes:
    return canonical({"format": 1, "repository": "ab" * 16, "digest": "blake3-256", "chunk_size": CHUNK,
                      "encrypted": False, "features": []} | fields)


def test_fields_of_modelfs_json_that_are_not_known_are_ignored() -> None:
    assert parse_info(an_info(later={"a": 1}), "here").chunk_size == CHUNK


@pytest.mark.parametrize(("fields", "error", "says"), [
    ({"format": 2}, Unsupported, "format 2"), ({"features": ["telepathy"]}, Unsupported, "telepathy"),
    ({"digest": "sha256"}, Unsupported, "sha256"), ({"encrypted": True}, Unsupported, "encrypted"),
    ({"format": "1"}, Malformed, "format"), ({"features": [["a"]]}, Malformed, "feature"),
    ({"features": {}}, Malformed, "list"),
    ({"chunk_size": 0}, Malformed, "chunk size"), ({"chunk_size": 3 * MiB}, Malformed, "chunk size"),
    ({"chunk_size": 2**40}, Malformed, "chunk size"), ({"repository": "../../etc"}, Malformed, "hex"),
    ({"repository": ""}, Malformed, "hex"), ({"encrypted": None}, Malformed, "encrypted")])
def test_what_this_modelfs_cannot_read_is_refused_by_name(fields: dict[str, object], error: type[Exception],
                                                          says: str) -> None:
    with pytest.raises(error, match=says):
        parse_info(an_info(**fields), "here")


def test_what_is_there_instead_of_a_repository_is_said(tmp_path: Path, served: Callable[[str], str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "page").mkdir()
    (tmp_path / "page/modelfs.json").write_text("\n<!DOCTYPE html><html>Welcome</html>")
    (tmp_path / "file").write_text("x")
    for spec, says in [(str(tmp_path / "nowhere"), "no such directory"), (str(tmp_path / "empty"), "is empty"),
                       (str(tmp_path / "model"), "config.json"), (str(tmp_path / "file"), "is a file"),
                       (str(tmp_path / "file/below"), "no such directory|is a file"),
                       (str(tmp_path / "page"), "web page"), (served("page"), "web page"), (served("empty"), "404"),
                       ("https://huggingface.co/acme/base", "Hugging Face hub"),
                       ("https://huggingface.co/datasets/acme/base/tree/main", "Hugging Face hub")]:
        with pytest.raises(NotFound, match=says):
            Repository.open(open_store(spec), deadline())


def test_an_object_store_without_a_repository_is_not_spoken_of_as_a_server() -> None:
    assert str(no_repository("s3://bucket/models", None)).endswith(
        "it has no modelfs.json. Check bucket and prefix; `modelfs init` makes one there.")


def test_a_modelfs_json_without_a_catalog_is_no_repository(made: Builder) -> None:
    made.path(keys.CATALOG).unlink()
    with pytest.raises(NotFound, match=r"catalog\.json"):
        made.repository.catalog(deadline())


def test_the_catalog_of_another_repository_is_refused(made: Builder) -> None:
    made.put(keys.CATALOG, Catalog("cd" * 16, 9, WHEN, {}).serialise())
    with pytest.raises(Malformed, match="another repository"):
        made.repository.catalog(deadline())


def test_names_that_are_not_there_are_not_found_and_near_ones_are_named(made: Builder) -> None:
    repository, catalog = made.repository, made.repository.catalog(deadline()).catalog
    for ref, says in [("acme/bass", "acme/base"), ("acme/base:prod", "latest"), ("acme/base:v2", "no version v2")]:
        with pytest.raises(NotFound, match=says):
            repository.resolve(catalog, ModelRef.parse(ref), deadline())


@pytest.mark.parametrize("kind", ["histories", "manifests", "indexes"])
def test_an_object_that_does_not_hash_to_its_name_is_refused(made: Builder, kind: str) -> None:
    (path,) = (each for each in (made.store.root / kind).rglob("*") if each.is_file())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    repository = made.repository
    with pytest.raises(IntegrityError, match="hash"):
        catalog = repository.catalog(deadline()).catalog
        repository.indexes(catalog, deadline())
        rows = repository.history(catalog, ModelName("acme", "base"), deadline())
        repository.manifest(rows.versions[0].manifest, deadline())


def test_a_flipped_byte_in_a_pack_is_a_corrupt_chunk_and_a_missing_pack_is_missing(made: Builder) -> None:
    repository, (found, at) = made.repository, opened(made.repository)
    path = made.path(keys.pack(at.place(0).pack))
    data = bytearray(path.read_bytes())
    data[at.place(0).offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptChunk):
        repository.read_chunk(found, at, 0, deadline())
    assert len(repository.read_chunk(found, at, 1, deadline())) == int(found.chunk_lengths[1])
    path.write_bytes(data[:at.place(1).offset + 1])
    with pytest.raises(Malformed):
        repository.read_chunk(found, at, 1, deadline())
    path.unlink()
    with pytest.raises(ObjectMissing):
        repository.read_chunk(found, at, 0, deadline())


def test_a_false_layout_brings_an_error_and_never_other_bytes(made: Builder) -> None:
    repository, (found, at) = made.repository, opened(made.repository)
    swapped = at.row_place[::-1].copy()
    with pytest.raises(CorruptChunk):
        repository.read_chunk(found, type(at)(at.places, swapped, at.heads), 0, deadline())


def test_a_history_under_anothers_name_is_malformed(made: Builder) -> None:
    state = made.repository.catalog(deadline())
    (digest,) = state.catalog.models.values()
    assert isinstance(digest, ObjectId)
    with pytest.raises(Malformed, match="another model"):
        made.repository.history_at(digest, ModelName("acme", "other"), deadline())


def test_what_is_written_is_canonical_json(made: Builder) -> None:
    for path in [made.path(keys.INFO), made.path(keys.CATALOG), *(made.store.root / "histories").rglob("*")]:
        if path.is_file():
            assert canonical(json.loads(path.read_bytes())) == path.read_bytes()
