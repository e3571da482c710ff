"""Versions are loaded once for all who want them, and a layout that is missing, stale or false is never fatal."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from transfer.pushed import (
    CHUNK,
    MODEL,
    eventually,
    in_background,
    make_repository,
    noise,
    packs,
    push_files,
    reading,
    soon,
)

from modelfs.errors import IntegrityError, Unavailable
from modelfs.ids import ModelRef, ObjectId
from modelfs.reading.versions import LoadedVersion, NoChunkCache, Versions
from modelfs.repository import keys, layout
from modelfs.repository.places import Place
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.stores.store import Fetched
from modelfs.units import Deadline

DATA = noise(1, 30 * CHUNK)
FILES = {"w.bin": DATA, "config.json": b"{}"}


def layout_path(root: Path, manifest: str) -> Path:
    return root / keys.layout(ObjectId.from_hex(manifest))


def write_layout(repository: Repository, root: Path, manifest: str, places: list[Place]) -> None:
    id = ObjectId.from_hex(manifest)
    (root / keys.layout(id)).write_bytes(layout.serialise(id, places, set()))


def places_of(repository: Repository, manifest: str) -> list[Place]:
    found = repository.manifest(ObjectId.from_hex(manifest), soon())
    now = repository.layout(found, soon())
    return [now.place(row) for row in range(len(found.chunk_ids))]


def moved(place: Place) -> Place:
    return Place(ObjectId(bytes(32)), place.offset, place.length, place.codec)


def test_without_a_layout_the_indexes_say_where_chunks_lie(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "r")
    report = push_files(repository, FILES)
    layout_path(tmp_path / "r", report.manifest).unlink()
    with reading(tmp_path / "r") as r:
        assert r.read(r.file("w.bin")) == DATA
        assert r.read(r.file("config.json")) == b"{}"
        assert r.file("w.bin").stored_bytes() == len(DATA)  # it is random: nothing is saved


def test_a_layout_that_is_damaged_is_as_good_as_none(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "r")
    report = push_files(repository, FILES)
    layout_path(tmp_path / "r", report.manifest).write_bytes(b"not a layout")
    with reading(tmp_path / "r") as r:
        assert r.read(r.file("w.bin")) == DATA


def test_a_version_repacked_while_it_is_read_is_found_by_its_fresh_layout(tmp_path: Path) -> None:
    root = tmp_path / "r"
    repository = make_repository(root)
    report = push_files(repository, FILES)
    true = places_of(repository, report.manifest)
    write_layout(repository, root, report.manifest, [moved(place) for place in true])
    with reading(root) as r:
        file = r.file("w.bin")
        write_layout(repository, root, report.manifest, true)
        for path in (root / "indexes").rglob("*"):
            if path.is_file():
                path.unlink()
        assert r.read(file) == DATA


def test_a_layout_that_stays_false_leads_to_the_indexes(tmp_path: Path) -> None:
    root = tmp_path / "r"
    repository = make_repository(root)
    report = push_files(repository, FILES)
    write_layout(repository, root, report.manifest, [moved(place) for place in places_of(repository, report.manifest)])
    with reading(root) as r:
        assert r.read(r.file("w.bin")) == DATA


def test_a_layout_that_changes_from_one_falsehood_to_another_leads_to_the_indexes(tmp_path: Path) -> None:
    root = tmp_path / "r"
    repository = make_repository(root)
    report = push_files(repository, FILES)
    true = places_of(repository, report.manifest)
    write_layout(repository, root, report.manifest, [moved(place) for place in true])
    with reading(root) as r:
        file = r.file("w.bin")
        # in the right pack, but each row has the place of another
        write_layout(repository, root, report.manifest, true[1:] + true[:1])
        assert r.read(file) == DATA


def test_a_chunk_that_nothing_names_is_an_integrity_error(tmp_path: Path) -> None:
    root = tmp_path / "r"
    repository = make_repository(root)
    report = push_files(repository, FILES)
    layout_path(root, report.manifest).unlink()
    state = repository.catalog(soon())
    empty = state.catalog.next(state.catalog.created, indexes=())
    repository.store.swap(keys.CATALOG, state.etag, empty.serialise(), soon())
    with reading(root) as r, pytest.raises(IntegrityError, match="no place"):
        r.read(r.file("w.bin"))


def test_a_version_whose_layout_could_not_be_had_reads_once_the_store_is_back(tmp_path: Path) -> None:
    root = tmp_path / "r"
    repository = make_repository(root)
    push_files(repository, FILES)
    with FaultProxy(root) as proxy, reading(proxy.url, deadline_s=2) as r:
        proxy.add("status", "layouts/", code=503)
        file = r.file("w.bin")
        proxy.clear()
        assert r.read(file) == DATA


def test_all_who_load_a_version_share_one_request_and_its_failure(tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "r")
    report = push_files(repository, FILES)
    with FaultProxy(tmp_path / "r") as proxy, reading(proxy.url, deadline_s=1) as r:
        rule = proxy.add("hang", "manifests/")
        id = ObjectId.from_hex(report.manifest)
        loading = [in_background(lambda: r.versions.load(id)) for _ in range(10)]
        assert all(isinstance(one.result(), Unavailable) for one in loading)
        hits = rule.hits
        assert hits < 10
        with pytest.raises(Unavailable):  # whom the kernel let wait for the others is told what they were told
            r.versions.load(id)
        assert rule.hits == hits
        proxy.clear()
        eventually(lambda: isinstance(in_background(lambda: r.versions.load(id)).result(), LoadedVersion))
        assert in_background(lambda: r.versions.load(id)).result() is r.versions.loaded(id)


def test_a_manifest_that_is_not_what_its_name_says_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "r"
    repository = make_repository(root)
    report = push_files(repository, FILES)
    path = root / keys.manifest(ObjectId.from_hex(report.manifest))
    path.write_bytes(path.read_bytes() + b" ")
    with reading(root) as r, pytest.raises(IntegrityError):
        r.file("w.bin")


def test_packs_are_looked_up_by_the_newest_catalog(tmp_path: Path) -> None:
    """A pack that both layout and index name, and that is gone, is found again once it was pushed again."""
    root = tmp_path / "r"
    repository = make_repository(root)
    push_files(repository, {"w.bin": DATA})
    with reading(root) as r:
        file = r.file("w.bin")
        for path in packs(root):
            path.unlink()
        state = repository.catalog(soon())
        forgotten = state.catalog.next(state.catalog.created, indexes=())
        repository.store.swap(keys.CATALOG, state.etag, forgotten.serialise(), soon())
        push_files(repository, {"copy.bin": DATA, "more.bin": noise(5, CHUNK)}, "lab/copy")
        assert r.read(file) == DATA
    assert repository.resolve(repository.catalog(soon()).catalog, ModelRef.parse(MODEL), soon())


class Noting(FileStore):
    """Notes the priority of every thread that reads an object of one kind."""

    def __init__(self, root: Path, kind: str) -> None:
        super().__init__(root)
        self.kind, self.priorities = kind, list[int]()

    def get(self, key: str, deadline: Deadline, *, limit: int, etag: str | None = None,
            fresh: bool = False) -> Fetched | None:
        if key.startswith(self.kind):
            self.priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return super().get(key, deadline, limit=limit, etag=etag, fresh=fresh)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives threads a priority of their own")
@pytest.mark.parametrize("kind", [keys.MANIFESTS, keys.LAYOUTS])
def test_a_version_that_is_loaded_beside_another_gives_way_to_its_readers(tmp_path: Path, kind: str) -> None:
    made = make_repository(tmp_path / "r")
    ids = [ObjectId.from_hex(push_files(made, {"w.bin": noise(seed, CHUNK)}).manifest) for seed in range(3)]
    store = Noting(tmp_path / "r", kind)
    versions = Versions(Repository.open(store, soon()), NoChunkCache(), soon)
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    for id in ids:
        assert versions.load(id).manifest.id == id
    first, *later = store.priorities
    assert first == own < 10 and later == [10, 10]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own
