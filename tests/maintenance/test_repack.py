"""Repacking: what lives in packs that are mostly dead, and what lies scattered, is copied in order; every version stays
to the byte what it was, whoever reads, pushes or collects meanwhile."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import s3servers
from maintenance.care import (
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
from results import Result
from transfer.pushed import CHUNK, noise, packs, reading, write

from modelfs.errors import IntegrityError
from modelfs.ids import ChunkId, ModelRef, ObjectId
from modelfs.maintenance.scatter import MEAN_RANGE_BYTES, ranges_of
from modelfs.maintenance.verify import verify
from modelfs.repository import keys, layout
from modelfs.repository.layout import Layout
from modelfs.repository.places import Base, Place
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.stores.opening import open_store
from modelfs.transfer.replicate import replicate
from modelfs.units import MiB

CHUNKS = 132  # of a file that is large enough to be worth putting in order
TUNES = 4
Scattered = tuple[Repository, dict[str, dict[str, bytes]]]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def layout_of(repository: Repository, ref: str) -> Layout:
    found = repository.resolve(repository.catalog(soon()).catalog, ModelRef.parse(ref), soon())
    return repository.layout(repository.manifest(found.version.manifest, soon()), soon())


def pack_ids(repository: Repository, ref: str) -> set[ObjectId]:
    return {ObjectId(pack.tobytes()) for pack in layout_of(repository, ref).places.packs}


def mean_range(repository: Repository, ref: str) -> float:
    """Bytes of one request of who reads a version from front to back."""
    found = layout_of(repository, ref)
    rows = found.row_place[~np.isin(found.places.pack[found.row_place], found.heads)].astype(np.intp)
    stored = found.places.stored[rows].astype(np.int64)
    return int(stored.sum()) / ranges_of(found.places.pack[rows].astype(np.int64),
                                         found.places.offset[rows].astype(np.int64), stored)


def tunes() -> list[dict[str, bytes]]:
    """A base, and versions of which each replaces every fourth chunk of the one before: of the last none is left that
    lies beside its neighbour."""
    blocks = [noise(n, CHUNK) for n in range(CHUNKS)]
    out = [{"w.bin": b"".join(blocks), "config.json": b"0"}]
    for tune in range(TUNES):
        for n in range(tune, CHUNKS, TUNES):
            blocks[n] = noise(1000 * (tune + 1) + n, CHUNK)
        out.append({"w.bin": b"".join(blocks), "config.json": b"%d" % (tune + 1)})
    return out


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, bytes]]]:
    root = tmp_path_factory.mktemp("tuned") / "repository"
    repository = make_repository(root)
    return root, {f"{MODEL}:{push_files(repository, contents).version}": contents for contents in tunes()}


@pytest.fixture
def scattered(tuned: tuple[Path, dict[str, dict[str, bytes]]], root: Path) -> Scattered:
    """A repository of one's own with all of tunes()."""
    shutil.copytree(tuned[0], root)
    return Repository.open(FileStore(root), soon()), dict(tuned[1])


def push_mostly_dead(repository: Repository) -> dict[str, dict[str, bytes]]:
    """Two models whose chunks lie in a pack of a third that went; the catalog before a gc."""
    blocks = [noise(n, CHUNK) for n in range(20)]
    push_files(repository, {"all": b"".join(blocks)}, "lab/gone")
    contents = {"lab/a": {"w": b"".join(blocks[3:8]), "config.json": b"{}"}, "lab/b": {"w": b"".join(blocks[4:9])}}
    for model, each in contents.items():
        push_files(repository, each, model)
    rm(repository, "lab/gone")
    return {f"{model}:v1": each for model, each in contents.items()}


def test_what_lives_in_a_mostly_dead_pack_is_copied_once_and_the_pack_goes(repository: Repository, root: Path) -> None:
    expected = push_mostly_dead(repository)
    (old,) = [id for id in pack_ids(repository, "lab/b:v1")
              if (root / keys.pack(id)).stat().st_size > 20 * CHUNK]
    assert gc(repository).bytes_freed < CHUNK and (root / keys.pack(old)).exists()
    report = gc(repository, repack=True)
    assert (report.packs_rewritten, report.versions_rewritten, report.bytes_rewritten) == (1, 2, 6 * CHUNK)
    assert report.bytes_freed > 20 * CHUNK and not (root / keys.pack(old)).exists()
    assert_whole(repository, expected)
    live = {keys.pack(id) for ref in expected for id in pack_ids(repository, ref)}
    assert {str(path.relative_to(root)) for path in packs(root)} == live
    assert push_files(repository, expected["lab/a:v1"], "lab/c").new_chunks == 0


def test_a_pack_of_which_half_lives_is_left_where_it_is(repository: Repository) -> None:
    push_files(repository, {"all": noise(1, 20 * CHUNK)}, "lab/gone")
    push_files(repository, {"w": noise(1, 20 * CHUNK)[:11 * CHUNK]})
    rm(repository, "lab/gone")
    report = gc(repository, repack=True)
    assert (report.packs_rewritten, report.versions_rewritten, report.bytes_rewritten) == (0, 0, 0)


def test_a_scattered_version_is_put_in_order_and_all_versions_stay_what_they_were(scattered: Scattered,
                                                                                  root: Path) -> None:
    repository, expected = scattered
    newest = f"{MODEL}:v{TUNES + 1}"
    before = files(root)
    was = mean_range(repository, newest)
    assert was < 2 * CHUNK
    planned = gc(repository, repack=True, dry_run=True)
    assert files(root) == before
    report = gc(repository, repack=True)
    assert report.bytes_rewritten >= CHUNKS * CHUNK and report.versions_rewritten >= 1
    assert (planned.versions_rewritten, planned.bytes_rewritten, planned.packs_rewritten) == \
        (report.versions_rewritten, report.bytes_rewritten, report.packs_rewritten)
    assert mean_range(repository, newest) >= MEAN_RANGE_BYTES
    assert_whole(repository, expected)


def test_a_second_run_finds_nothing_to_do(scattered: Scattered, root: Path) -> None:
    repository, _ = scattered
    push_mostly_dead(repository)
    gc(repository, repack=True)
    before = files(root)
    again = gc(repository, repack=True)
    assert (again.packs_rewritten, again.versions_rewritten, again.bytes_rewritten) == (0, 0, 0)
    assert files(root) == before


def test_a_version_that_a_tag_names_comes_before_a_newer_one(scattered: Scattered) -> None:
    repository, expected = scattered
    tag(repository, f"{MODEL}:v{TUNES}", "latest")
    gc(repository, repack=True)
    assert mean_range(repository, f"{MODEL}:v{TUNES}") >= MEAN_RANGE_BYTES
    assert mean_range(repository, f"{MODEL}:v{TUNES + 1}") < MEAN_RANGE_BYTES
    assert_whole(repository, expected)


def test_a_version_that_is_smaller_than_a_good_range_is_left_scattered(repository: Repository) -> None:
    blocks = [noise(n, CHUNK) for n in range(40)]
    push_files(repository, {"w": b"".join(blocks)})
    blocks[::2] = [noise(100 + n, CHUNK) for n in range(20)]
    push_files(repository, {"w": b"".join(blocks)})
    assert gc(repository, repack=True).bytes_rewritten == 0


def test_history_payload_serial_and_signatures_stay(scattered: Scattered) -> None:
    repository, _ = scattered
    state = repository.catalog(soon())
    signed = replace(state.catalog, signatures=({"by": "somebody"},))
    repository.store.swap(keys.CATALOG, state.etag, signed.serialise(), soon())
    gc(repository, repack=True)
    after = repository.catalog(soon()).catalog
    assert (after.payload, after.signatures) == (signed.payload, signed.signatures)
    assert after.indexes != signed.indexes


def test_old_packs_wait_for_the_grace(repository: Repository, root: Path) -> None:
    expected = push_mostly_dead(repository)
    gc(repository)
    before = set(packs(root))
    report = gc(repository, 7 * 86_400.0, repack=True)
    assert report.objects_deleted == 0 and report.bytes_waiting > 20 * CHUNK
    assert before < set(packs(root))
    gc(repository, 7 * 86_400.0, days=8)
    assert_whole(repository, expected)
    live = {root / keys.pack(id) for ref in expected for id in pack_ids(repository, ref)}
    assert set(packs(root)) == live


def test_head_packs_stay_head_packs(repository: Repository, root: Path) -> None:
    configs = {f"{n}.json": noise(n, 900) for n in range(12)}
    push_files(repository, {**configs, **{f"dead{n}.json": noise(100 + n, 4000) for n in range(12)}}, "lab/gone")
    push_files(repository, {**configs, "w.bin": noise(1, 5 * CHUNK)})
    rm(repository, "lab/gone")
    before = layout_of(repository, f"{MODEL}:v1").head_packs
    gc(repository, repack=True)
    found = layout_of(repository, f"{MODEL}:v1")
    (head,) = found.head_packs
    assert {head} & before == set() and (root / keys.pack(head)).stat().st_size < 20_000
    places = [found.place(row) for row in range(len(found.row_place))]
    assert [place.pack == head for place in places] == [True] * len(configs) + [False] * 5


def test_who_reads_by_an_old_layout_reads_on(repository: Repository, root: Path) -> None:
    """Its packs have gone: it asks for the layout again."""
    expected = push_mostly_dead(repository)
    with reading(root) as r:
        old = [(r.file(path, model), data) for model, each in expected.items() for path, data in each.items()]
        gc(repository, repack=True)
        assert all(r.read(file) == data for file, data in old)


@pytest.mark.parametrize(("method", "key"), [("open_range", "packs/"), ("put", "packs/"), ("swap", "layouts/"),
                                             ("put", "indexes/"), ("swap", "catalog.json")])
def test_a_push_in_between_loses_nothing(repository: Repository, method: str, key: str) -> None:
    """At each step one comes that reuses, by the indexes, what is about to be dropped, also what no version needed."""
    expected = push_mostly_dead(repository)
    contents = {"w": noise(4, CHUNK) + noise(7, CHUNK) + noise(15, CHUNK) + noise(16, CHUNK)}
    between = Between(repository.store, method, key, lambda: push_files(repository, contents, "lab/new"))
    gc(between.repository(), repack=True)
    assert between.happened
    assert_whole(repository, {**expected, "lab/new:v1": contents})
    gc(repository, repack=True)
    assert_whole(repository, {**expected, "lab/new:v1": contents})


def test_a_layout_that_somebody_else_replaced_is_read_again(repository: Repository, root: Path) -> None:
    expected = push_mostly_dead(repository)
    changed: list[str] = []

    def replace_all() -> None:
        """With one that names the same places in another order of packs."""
        for path in (root / "layouts").glob("*/*"):
            id = ObjectId.from_hex(path.name)
            found = repository.layout(repository.manifest(id, soon()), soon())
            places = [found.place(row) for row in range(len(found.row_place))]
            key = keys.layout(id)
            old = repository.store.get(key, soon(), limit=MiB)
            assert old
            repository.store.swap(key, old.etag, layout.serialise(id, places, {p.pack for p in places}), soon())
            changed.append(key)

    between = Between(repository.store, "swap", "layouts/", replace_all)
    gc(between.repository(), repack=True)
    assert between.happened and changed
    assert_whole(repository, expected)


@pytest.mark.parametrize(("method", "key"), [("put", "packs/"), ("swap", "layouts/"), ("stat", "packs/"),
                                             ("swap", "catalog.json")])
def test_a_gc_without_grace_beside_it_loses_nothing(repository: Repository, root: Path, method: str, key: str) -> None:
    """It may take new packs that no layout named when it looked."""
    expected = push_mostly_dead(repository)
    gc(repository, 7 * 86_400.0)
    between = Between(repository.store, method, key, lambda: gc(repository))
    gc(between.repository(), repack=True)
    assert between.happened
    assert_whole(repository, expected)
    gc(repository, repack=True)
    assert_whole(repository, expected)
    assert len(packs(root)) <= 3


def test_a_new_pack_that_another_gc_took_is_made_again(repository: Repository, root: Path) -> None:
    """That gc had read the layouts before they were replaced."""
    expected = push_mostly_dead(repository)
    before = set(packs(root))

    def take() -> None:
        for path in set(packs(root)) - before:
            path.unlink()

    between = Between(repository.store, "swap", "layouts/", take)
    gc(repository)
    gc(between.repository(), repack=True)
    assert between.happened
    assert_whole(repository, expected)


def test_two_at_once_lose_nothing(scattered: Scattered, root: Path) -> None:
    repository, expected = scattered
    expected |= push_mostly_dead(repository)
    troubles: list[Exception] = []

    def run() -> None:
        try:
            gc(Repository.open(open_store(str(root)), soon()), 60.0, repack=True)
        except Exception as error:
            troubles.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert troubles == []
    assert_whole(repository, expected)


def test_a_damaged_chunk_ends_it_before_anything_is_lost(repository: Repository, root: Path) -> None:
    push_files(repository, {"all": noise(1, 20 * CHUNK)}, "lab/gone")
    push_files(repository, {"w": noise(1, 20 * CHUNK)[:5 * CHUNK]})
    rm(repository, "lab/gone")
    gc(repository)
    (path,) = [path for path in packs(root) if path.stat().st_size > CHUNK]
    path.write_bytes(bytes(64) + path.read_bytes()[64:])
    before = files(root)
    with pytest.raises(IntegrityError, match="verify"):
        gc(repository, repack=True)
    assert files(root) == before


def test_a_false_layout_does_not_cost_the_chunks_that_the_index_knows(repository: Repository, root: Path) -> None:
    """It names another pack, which is there, and knows nothing of them."""
    push_files(repository, {"w": noise(1, 5 * CHUNK)})
    push_files(repository, {"w": noise(2, 5 * CHUNK)}, "lab/other")
    id = history(repository).versions[0].manifest
    (other,) = pack_ids(repository, "lab/other:v1")
    found = layout_of(repository, f"{MODEL}:v1")
    places = [replace(found.place(row), pack=other) for row in range(len(found.row_place))]
    old = repository.store.get(keys.layout(id), soon(), limit=MiB)
    assert old
    repository.store.swap(keys.layout(id), old.etag, layout.serialise(id, places, set()), soon())
    before = set(packs(root))
    gc(repository, repack=True)
    assert set(packs(root)) == before
    with reading(root) as r:
        assert r.read(r.file("w")) == noise(1, 5 * CHUNK)


def test_what_a_false_layout_places_wrongly_is_copied_from_where_the_index_knows_it(repository: Repository) -> None:
    expected = push_mostly_dead(repository)
    gc(repository)
    id = history(repository, "lab/b").versions[0].manifest
    found = layout_of(repository, "lab/b:v1")
    places = [found.place(row) for row in range(len(found.row_place))]
    old = repository.store.get(keys.layout(id), soon(), limit=MiB)
    assert old
    repository.store.swap(keys.layout(id), old.etag, layout.serialise(id, [*places[1:], places[0]], set()), soon())
    assert verify(repository, read_data=True).faults
    assert gc(repository, repack=True).bytes_rewritten == 6 * CHUNK
    assert_whole(repository, expected)


def test_what_is_a_difference_to_another_chunk_is_left_alone_with_its_base(tmp_path: Path) -> None:
    """As a later modelfs may store it: this one can neither read it nor copy it."""
    made = Builder(tmp_path / "made")
    made.push("lab/model", {"w": noise(1, 2 * CHUNK)})
    made.push("lab/gone", {"w": noise(2, 8 * CHUNK)})
    repository = made.repository
    id = history(repository, "lab/model").versions[0].manifest
    (based_in,) = pack_ids(repository, "lab/gone:v1")
    place = layout_of(repository, "lab/model:v1").place(0)
    base = Base(ChunkId.of(b"gone"), Place(based_in, 0, CHUNK, "raw"))
    told = layout.serialise(id, [place, Place(based_in, CHUNK, CHUNK, "delta", base)], set())
    old = made.store.get(keys.layout(id), soon(), limit=MiB)
    assert old
    made.store.swap(keys.layout(id), old.etag, told, soon())
    rm(repository, "lab/gone")
    assert gc(repository, repack=True).bytes_rewritten == 0
    assert made.path(keys.layout(id)).read_bytes() == told
    assert made.path(keys.pack(based_in)).exists()


def test_a_version_without_its_layout_is_read_by_the_indexes_after_it(repository: Repository, root: Path) -> None:
    expected = push_mostly_dead(repository)
    (root / keys.layout(history(repository, "lab/a").versions[0].manifest)).unlink()
    gc(repository, repack=True)
    with reading(root) as r:
        for model, each in expected.items():
            assert all(r.read(r.file(path, model)) == data for path, data in each.items())


def test_a_replica_follows_its_primary_and_copies_nothing(repository: Repository, root: Path, tmp_path: Path) -> None:
    expected = push_mostly_dead(repository)
    gc(repository)
    replica = Repository.open(FileStore(tmp_path / "replica"), soon()) \
        if replicate(repository, FileStore(tmp_path / "replica"), soon).changed else repository
    gc(repository, repack=True)
    replicate(repository, replica.store, soon)
    assert gc(replica).bytes_freed < CHUNK
    report = gc(replica, repack=True)
    assert (report.versions_rewritten, report.bytes_rewritten) == (2, 0) and report.bytes_freed > 20 * CHUNK
    assert_whole(replica, expected)
    assert {path.name for path in packs(tmp_path / "replica")} == {path.name for path in packs(root)}
    assert layout_of(replica, "lab/a:v1").head_packs == layout_of(repository, "lab/a:v1").head_packs
    assert not replicate(repository, replica.store, soon).changed
    assert gc(replica, repack=True).versions_rewritten == 0


def test_chunks_of_which_two_pushes_stored_a_copy_each_have_one_afterwards(tmp_path: Path) -> None:
    made = Builder(tmp_path / "made")
    contents = {"w": noise(1, 6 * CHUNK)}
    made.push("lab/a", contents)
    made.push("lab/b", {**contents, "x": b"x"})
    report = gc(made.repository, repack=True)
    assert report.bytes_rewritten <= 1 and report.bytes_freed > 6 * CHUNK
    assert sum(path.stat().st_size > CHUNK for path in packs(tmp_path / "made")) == 1
    assert_whole(made.repository, {"lab/a:v1": contents, "lab/b:v1": {**contents, "x": b"x"}})


@pytest.mark.parametrize("seed", range(2))
def test_after_any_changes_and_any_repacking_every_version_is_there(repository: Repository, root: Path, seed: int,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference model beside the repository: a dictionary. Ranges count as short from four chunks on."""
    monkeypatch.setattr("modelfs.maintenance.scatter.MEAN_RANGE_BYTES", 4 * CHUNK)
    monkeypatch.setattr("modelfs.maintenance.scatter.TARGET_BYTES", 6 * CHUNK)
    monkeypatch.setattr("modelfs.repository.pack.TARGET_BYTES", 6 * CHUNK)
    pick = random.Random(seed)
    blocks = [noise(n, CHUNK) for n in range(40)]
    expected: dict[str, Mapping[str, bytes]] = {}
    copied = 0
    for number in range(14):
        model = pick.choice(["lab/a", "lab/b"])
        contents = {"w": b"".join(pick.choices(blocks, k=pick.randrange(5, 20))), "c": bytes([number])}
        expected[f"{model}:{push_files(repository, contents, model).version}"] = contents
        if pick.random() < 0.3:
            mine = [ref for ref in expected if ref.startswith(f"{model}:")]
            gone = pick.choice(mine[:-1] or ["none"])
            if gone in expected:
                rm(repository, gone)
                del expected[gone]
        if pick.random() < 0.4:
            copied += gc(repository, pick.choice([0.0, 60.0]), repack=True).bytes_rewritten
            assert verify(repository, read_data=True).faults == ()
    assert copied
    gc(repository, repack=True)
    assert_whole(repository, expected)
    assert gc(repository, repack=True).bytes_rewritten == 0
    live = {keys.pack(id) for ref in expected for id in pack_ids(repository, ref)}
    assert {str(path.relative_to(root)) for path in packs(root)} == live


def test_an_object_store_is_repacked_as_a_directory_is(tmp_path: Path, modelfs: Callable[..., Result]) -> None:
    there = s3servers.environ("seaweedfs")
    bucket = s3servers.Bucket(s3servers.endpoint("seaweedfs"), s3servers.new_prefix())
    repository = f"s3://{s3servers.BUCKET}/{bucket.prefix}"

    def run(*arguments: object) -> str:
        done = modelfs(*arguments, env=there)
        assert done.code == 0, done.err
        return done.out

    run("init", repository, "--chunk-size", "64KiB")
    whole = noise(1, 20 * CHUNK)
    run("push", write(tmp_path / "gone", {"w": whole}), repository, "lab/gone")
    run("push", write(tmp_path / "kept", {"w": whole[3 * CHUNK:9 * CHUNK]}), repository, "lab/kept")
    run("rm", repository, "lab/gone", "--yes")
    report = json.loads(run("gc", repository, "--grace", "0s", "--repack", "--json"))
    assert (report["packs_rewritten"], report["versions_rewritten"], report["bytes_rewritten"]) == (1, 1, 6 * CHUNK)
    assert [info.size < 8 * CHUNK for info in bucket.list("packs/", soon())] == [True]
    assert json.loads(run("verify", repository, "--read-data", "--json"))["ok"]
    run("pull", repository, "lab/kept", tmp_path / "pulled")
    assert (tmp_path / "pulled" / "w").read_bytes() == whole[3 * CHUNK:9 * CHUNK]
