"""gc: what no version needs goes, after its grace; what anybody needs stays, whoever pushes meanwhile."""

from __future__ import annotations

import os
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
from maintenance.care import (
    DAY,
    MODEL,
    Between,
    assert_whole,
    files,
    gc,
    history,
    make_repository,
    push_files,
    rm,
    soon,
    tag,
)
from repository.builder import Builder
from servers import own_server
from transfer.pushed import CHUNK, noise, packs, push_tree, reading, repository_root, write

from modelfs.errors import Conflict, Forbidden, IntegrityError
from modelfs.ids import ChunkId, ModelName, ModelRef, ObjectId
from modelfs.maintenance.gc import GcOptions, collect
from modelfs.maintenance.verify import verify
from modelfs.repository import keys
from modelfs.repository.pack import PackWriter
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.stores.opening import open_store
from modelfs.transfer.journal import Journal
from modelfs.transfer.push import PushOptions, push

ONE = {"config.json": b"{}", "w.bin": noise(1, 8 * CHUNK + 5)}
TWO = {"config.json": b"two", "w.bin": noise(2, 6 * CHUNK)}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def pack_ids(repository: Repository, ref: str = f"{MODEL}:v1") -> set[ObjectId]:
    found = repository.resolve(repository.catalog(soon()).catalog, ModelRef.parse(ref), soon())
    layout = repository.layout(repository.manifest(found.version.manifest, soon()), soon())
    return {ObjectId(pack.tobytes()) for pack in layout.places.packs}


def test_what_a_removed_model_held_is_freed_and_nothing_else(repository: Repository, root: Path) -> None:
    push_files(repository, ONE, "lab/keep")
    kept = {path for path in files(root) if not path.startswith("catalog")}
    push_files(repository, TWO, "lab/drop")
    rm(repository, "lab/drop")
    before = files(root)
    planned = gc(repository, dry_run=True)
    assert files(root) == before
    report = gc(repository)
    after = files(root)
    assert (planned.dry_run, report.dry_run) == (True, False)
    assert report.objects_deleted == planned.objects_deleted and report.bytes_freed == planned.bytes_freed > 6 * CHUNK
    assert report.bytes_kept == planned.bytes_kept
    assert report.bytes_kept == sum(len(data) for path, data in after.items() if "/" in path)
    assert report.bytes_freed == sum(len(data) for path, data in before.items() if path not in after)
    tombstone = keys.history(repository.catalog(soon()).catalog.removed[ModelName.parse("lab/drop")])
    assert set(after) == kept | {"catalog.json", tombstone}
    assert repository.catalog(soon()).catalog.dropped == {}
    assert_whole(repository, {"lab/keep:v1": ONE})
    assert gc(repository).objects_deleted == 0


def test_what_was_named_stays_for_the_grace_and_a_reader_of_before_reads_on(repository: Repository, root: Path) -> None:
    push_files(repository, ONE)
    with reading(root) as r:
        file = r.file("w.bin")
        push_files(repository, TWO)
        rm(repository, f"{MODEL}:v1")
        first = gc(repository, 7 * DAY, days=100)  # so old is everything that it dates by the store
        assert (first.objects_deleted, first.bytes_freed) == (0, 0)
        assert first.objects_waiting >= 4 and first.bytes_waiting > 8 * CHUNK
        assert r.read(file) == ONE["w.bin"]
    waiting = dict(repository.catalog(soon()).catalog.dropped)
    assert {keys.pack(id) for id in pack_ids(repository, f"{MODEL}:v2")} & set(waiting) == set()
    again = gc(repository, 7 * DAY, days=106)
    assert (again.objects_deleted, again.objects_waiting) == (0, len(waiting))
    assert repository.catalog(soon()).catalog.dropped == waiting
    last = gc(repository, 7 * DAY, days=107.1)
    assert (last.objects_deleted, last.bytes_freed) == (len(waiting), first.bytes_waiting)
    assert not set(files(root)) & set(waiting)
    assert repository.catalog(soon()).catalog.dropped == {}
    assert_whole(repository, {f"{MODEL}:v2": TWO})


def test_a_pack_that_was_never_named_is_deleted_by_its_own_age(repository: Repository, root: Path) -> None:
    push_files(repository, ONE)
    for path in files(root):
        os.utime(root / path, (time.time() - 30 * DAY,) * 2)
    old, young = stray(repository, 5), stray(repository, 6)
    os.utime(root / keys.pack(old), (time.time() - 8 * DAY,) * 2)
    report = gc(repository, 7 * DAY)
    assert report.objects_deleted == 1
    assert not (root / keys.pack(old)).exists() and (root / keys.pack(young)).exists()
    assert_whole(repository, {f"{MODEL}:v1": ONE})


def stray(repository: Repository, seed: int) -> ObjectId:
    """What a push that was killed leaves."""
    pack, data = PackWriter(), noise(seed, CHUNK)
    pack.add(ChunkId.of(data), len(data), "raw", data)
    sealed = pack.seal()
    repository.store.put(keys.pack(sealed.id), sealed.data, soon())
    return sealed.id


def test_files_that_are_no_objects_are_left_alone(repository: Repository, root: Path) -> None:
    push_files(repository, ONE)
    (root / "packs/notes.txt").write_text("mine")
    (root / "other").mkdir()
    (root / "other/file").write_text("mine")
    before = files(root)
    assert gc(repository).objects_deleted == 0
    assert files(root) == before


def test_a_shared_pack_stays_and_an_index_loses_only_what_went(repository: Repository) -> None:
    push_files(repository, ONE)
    push_files(repository, {**TWO, "w.bin": ONE["w.bin"]})
    (before, _) = repository.catalog(soon()).catalog.indexes
    dead = pack_ids(repository, f"{MODEL}:v1") - pack_ids(repository, f"{MODEL}:v2")
    assert len(dead) == 1
    rm(repository, f"{MODEL}:v1")
    gc(repository)
    found = repository.catalog(soon()).catalog
    assert before not in found.indexes and len(found.indexes) == 2
    named = {row.place.pack for table in repository.indexes(found, soon()) for row in table.all()}
    assert named == pack_ids(repository, f"{MODEL}:v2")
    assert_whole(repository, {f"{MODEL}:v2": {**TWO, "w.bin": ONE["w.bin"]}})
    assert push_files(repository, ONE, "lab/third").new_chunks == 1  # config.json


def test_payload_and_signatures_stay(repository: Repository) -> None:
    push_files(repository, ONE)
    push_files(repository, TWO)
    rm(repository, f"{MODEL}:v1")
    before = repository.catalog(soon()).catalog
    gc(repository)
    after = repository.catalog(soon()).catalog
    assert after.payload == before.payload and after.indexes != before.indexes


@pytest.mark.parametrize("kind", ["manifests", "indexes", "histories"])
def test_where_something_named_cannot_be_read_nothing_is_deleted(repository: Repository, root: Path,
                                                                 kind: str) -> None:
    push_files(repository, ONE, "lab/keep")
    push_files(repository, TWO, "lab/drop")
    rm(repository, "lab/drop")
    found = repository.catalog(soon()).catalog
    lost = {"manifests": keys.manifest(history(repository, "lab/keep").versions[0].manifest),
            "indexes": keys.index(found.indexes[0]),
            "histories": keys.history(found.models[ModelName.parse("lab/keep")])}[kind]
    (root / lost).write_bytes(b"junk")
    before = files(root)
    with pytest.raises(IntegrityError, match="verify"):
        gc(repository)
    assert files(root) == before


def test_a_chunk_without_a_place_ends_it(repository: Repository, root: Path) -> None:
    push_files(repository, ONE)
    state = repository.catalog(soon())
    repository.store.swap(keys.CATALOG, state.etag, replace(state.catalog, indexes=()).serialise(), soon())
    for path in files(root):
        if path.startswith("layouts/"):
            (root / path).unlink()
    before = files(root)
    with pytest.raises(IntegrityError, match="verify"):
        gc(repository)
    assert files(root) == before


def test_the_indexes_go_on_naming_every_chunk_of_every_version(tmp_path: Path) -> None:
    """Two models stored a chunk twice, an index knows only the copy of the one that goes."""
    made = Builder(tmp_path / "made")
    made.push("lab/keep", {"w": noise(1, 3 * CHUNK)})
    made.push("lab/drop", {"w": noise(1, 3 * CHUNK) + noise(2, CHUNK)})
    state = made.repository.catalog(soon())
    made.store.swap(keys.CATALOG, state.etag, replace(state.catalog, indexes=state.catalog.indexes[1:]).serialise(),
                    soon())
    rm(made.repository, "lab/drop")
    gc(made.repository)
    (index,) = made.repository.indexes(made.repository.catalog(soon()).catalog, soon())
    manifest = made.repository.manifest(history(made.repository, "lab/keep").versions[0].manifest, soon())
    assert all(index.find(manifest.chunk_id(row)) for row in range(3))
    assert_whole(made.repository, {"lab/keep:v1": {"w": noise(1, 3 * CHUNK)}})


def test_a_version_without_its_layout_keeps_the_packs_that_the_indexes_name(repository: Repository, root: Path) -> None:
    push_files(repository, ONE)
    for path in files(root):
        if path.startswith("layouts/"):
            (root / path).unlink()
    assert gc(repository).objects_deleted == 0
    with reading(root) as r:
        assert r.read(r.file("w.bin")) == ONE["w.bin"]


def test_a_push_between_reading_and_dropping_loses_nothing(repository: Repository) -> None:
    """It names again, by its indexes, what was about to be dropped."""
    push_files(repository, ONE)
    rm(repository, MODEL)
    between = Between(repository.store, "swap", keys.CATALOG, lambda: push_files(repository, ONE, "lab/again"))
    gc(between.repository())
    assert between.happened
    assert_whole(repository, {"lab/again:v1": ONE})


def test_a_push_of_what_was_dropped_names_it_again_and_it_stays(repository: Repository) -> None:
    push_files(repository, ONE)
    rm(repository, MODEL)
    assert gc(repository, 7 * DAY).objects_waiting
    report = push_files(repository, ONE)
    assert (report.version, report.reused_chunks) == ("v2", 0)
    dropped = repository.catalog(soon()).catalog.dropped
    assert not {keys.pack(id) for id in pack_ids(repository, f"{MODEL}:v2")} & set(dropped)
    gc(repository, 7 * DAY, days=30)
    assert_whole(repository, {f"{MODEL}:v2": ONE})


def test_a_push_finds_other_packs_than_a_dropped_layout_names_and_replaces_it(repository: Repository) -> None:
    """The same files, of which some lie in another version's packs by now."""
    push_files(repository, ONE)
    rm(repository, MODEL)
    gc(repository, 7 * DAY)
    push_files(repository, {"other": b"".join([ONE["w.bin"], noise(9, CHUNK)])}, "lab/other")
    push_tree(repository_root(repository).parent / "source-0", repository)
    dropped = repository.catalog(soon()).catalog.dropped
    assert {keys.pack(id) for id in pack_ids(repository, f"{MODEL}:v2")} & set(dropped) == set()
    assert verify(repository).ok
    gc(repository, 7 * DAY, days=8)
    assert_whole(repository, {f"{MODEL}:v2": ONE, "lab/other:v1": {"other": ONE["w.bin"] + noise(9, CHUNK)}})


@pytest.mark.parametrize("grace_s", [7 * DAY, 0.0])
def test_a_push_while_objects_are_being_deleted_keeps_what_it_put_and_named(repository: Repository,
                                                                           grace_s: float) -> None:
    """A gc is at the first deletion when the same files are pushed, a week after they were dropped."""
    push_files(repository, ONE)
    rm(repository, MODEL)
    gc(repository, 7 * DAY, days=-20)
    assert repository.catalog(soon()).catalog.dropped
    for path in files(repository_root(repository)):
        os.utime(repository_root(repository) / path, (time.time() - 20 * DAY,) * 2)
    between = Between(repository.store, "stat", "", lambda: push_files(repository, ONE))
    report = gc(between.repository(), grace_s)
    assert between.happened and report.objects_deleted
    assert_whole(repository, {f"{MODEL}:v2": ONE})


def test_what_is_named_again_without_being_written_again_stays(repository: Repository,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """A server does not write what it has: the objects are as old as they were."""
    monkeypatch.setattr("modelfs.maintenance.gc._BATCH", 1)
    push_files(repository, ONE)
    rm(repository, MODEL)
    gc(repository, 7 * DAY, days=-20)

    def age() -> None:
        for path in files(repository_root(repository)):
            os.utime(repository_root(repository) / path, (time.time() - 20 * DAY,) * 2)

    def push_and_age() -> None:
        push_files(repository, ONE)
        age()

    age()
    between = Between(repository.store, "delete", "", push_and_age)
    assert gc(between.repository(), 7 * DAY).objects_deleted
    assert between.happened
    assert_whole(repository, {f"{MODEL}:v2": ONE})


def test_a_resumed_pack_that_gc_condemned_is_pushed_again(repository: Repository, root: Path, tmp_path: Path) -> None:
    """gc begins after the push has looked at its journal, and before it commits."""
    source = write(tmp_path / "source", ONE)
    push_tree(source, repository, "lab/first")
    (first,) = packs_with(repository, "lab/first:v1", root)
    rm(repository, "lab/first")
    gc(repository)
    (root / keys.pack(first[0])).parent.mkdir(exist_ok=True)
    (root / keys.pack(first[0])).write_bytes(first[1])
    journal = Journal(tmp_path / "state", repository.info.id, ModelName.parse(MODEL))
    journal.note(first[0])
    journal.close()
    between = Between(repository.store, "put", "indexes/", lambda: gc(repository))
    report = push(source, between.repository(), ModelRef.parse(MODEL), PushOptions(tmp_path / "state", soon))
    assert between.happened and report.changed
    assert_whole(repository, {f"{MODEL}:v1": ONE})


@pytest.mark.parametrize("kind", ["indexes/", "histories/"])
def test_what_gc_takes_between_the_catalog_and_what_it_names_is_not_missed(repository: Repository, tmp_path: Path,
                                                                          kind: str) -> None:
    """Of a catalog that another has replaced since."""
    push_files(repository, ONE)

    def remove_all() -> None:
        rm(repository, MODEL)
        gc(repository)

    between = Between(repository.store, "get", kind, remove_all)
    options = PushOptions(tmp_path / "state", soon)
    report = push(write(tmp_path / "source", ONE), between.repository(), ModelRef.parse(MODEL), options)
    assert between.happened and (report.version, report.changed) == ("v2", True)
    assert_whole(repository, {f"{MODEL}:v2": ONE})


def packs_with(repository: Repository, ref: str, root: Path) -> list[tuple[ObjectId, bytes]]:
    return [(id, data) for id in pack_ids(repository, ref)
            if len(data := (root / keys.pack(id)).read_bytes()) > 4 * CHUNK]


def test_what_killed_writers_left_is_swept(repository: Repository, root: Path) -> None:
    push_files(repository, ONE)
    left = root / "packs" / f".{'ab' * 32}.0123456789abcdef"
    left.write_bytes(bytes(1000))
    sweep = FileStore(root).sweep
    assert collect(repository, GcOptions(60, False, soon, sweep=sweep)).bytes_freed == 0
    os.utime(left, (time.time() - 2 * 3600,) * 2)
    assert collect(repository, GcOptions(60, True, soon, sweep=sweep)).bytes_freed == 0
    assert collect(repository, GcOptions(60, False, soon, sweep=sweep)).bytes_freed == 1000
    assert not left.exists()


def test_a_store_that_cannot_list_is_refused(repository: Repository, root: Path) -> None:
    push_files(repository, ONE)
    with own_server(root) as url, pytest.raises(Forbidden, match=r"cannot list.*directory"):
        gc(Repository.open(open_store(url), soon()))


def test_more_than_a_catalog_should_hold_goes_in_rounds(repository: Repository, root: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelfs.maintenance.gc._MOST_DROPPED", 3)
    push_files(repository, ONE, "lab/keep")
    for n in range(3):
        push_files(repository, {"w": noise(n + 10, 3 * CHUNK)}, "lab/drop")
    rm(repository, "lab/drop")
    assert gc(repository, 7 * DAY).objects_waiting == 3
    assert len(repository.catalog(soon()).catalog.dropped) == 3
    gc(repository)
    assert len(packs(root)) == len(pack_ids(repository, "lab/keep:v1"))
    assert_whole(repository, {"lab/keep:v1": ONE})


@pytest.mark.parametrize("seed", range(3))
def test_after_any_changes_and_any_gc_every_version_is_there(repository: Repository, root: Path, seed: int) -> None:
    """A reference model beside the repository: a dictionary."""
    pick = random.Random(seed)
    blocks = [noise(n, CHUNK) for n in range(12)]
    expected: dict[str, dict[str, bytes]] = {}
    days = 0.0
    for _ in range(30):
        model = pick.choice(["lab/a", "lab/b"])
        mine = sorted(ref for ref in expected if ref.startswith(f"{model}:"))
        step = pick.choice(["push", "push", "push", "rm", "rm", "rm all", "gc", "gc"])
        if step == "push":
            contents = {f"f{n}": b"".join(pick.choices(blocks, k=pick.randrange(1, 6)))
                        for n in range(pick.randrange(1, 4))}
            expected[f"{model}:{push_files(repository, contents, model).version}"] = contents
        elif step == "rm" and mine:
            ref = pick.choice(mine)
            try:
                rm(repository, ref)
                del expected[ref]
            except Conflict:
                tag(repository, pick.choice(mine), "latest")
        elif step == "rm all" and mine:
            rm(repository, model)
            expected = {ref: contents for ref, contents in expected.items() if ref not in mine}
        elif step == "gc":
            days += pick.choice([0, 3, 8])
            gc(repository, pick.choice([0, 7 * DAY, 7 * DAY]), days=days)
    assert_whole(repository, expected)
    gc(repository)
    assert_whole(repository, expected)
    live = {keys.pack(id) for ref in expected for id in pack_ids(repository, ref)}
    assert {str(path.relative_to(root)) for path in packs(root)} == live
