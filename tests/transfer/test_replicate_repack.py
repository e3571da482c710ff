"""`replicate --repack`: a replica of some models gets packs of its own with what these need, and stays as good a
replica for readers, gc, verify, later passes and replicas of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import s3servers
from faultproxy import FaultProxy
from maintenance.care import Between, gc, rm, tag
from results import Result
from transfer.pushed import (
    CHUNK,
    content,
    eventually,
    make_repository,
    noise,
    packs,
    push_files,
    push_tree,
    soon,
    write,
)

from modelfs.errors import BadInput, Conflict, Forbidden, IntegrityError
from modelfs.ids import ModelName, ModelRef, ObjectId
from modelfs.maintenance.agreement import differences
from modelfs.maintenance.scatter import ranges_of
from modelfs.maintenance.verify import verify
from modelfs.repository import keys, layout
from modelfs.repository.layout import Layout
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.stores.opening import open_store
from modelfs.stores.store import ObjectStore
from modelfs.transfer.replicate import ReplicateReport, promote, replicate
from modelfs.units import MiB

BLOCKS = [noise(number, CHUNK) for number in range(48)]
ONE, TWO, THREE = ModelName.parse("lab/one"), ModelName.parse("lab/two"), ModelName.parse("lab/three")


@pytest.fixture
def source(tmp_path: Path) -> Repository:
    """Three models in the pack of a fourth that went: a chunk's neighbours are other models', or dead."""
    made = make_repository(tmp_path / "source")
    push_files(made, {"w.bin": b"".join(BLOCKS)}, "lab/gone")
    push_files(made, {"config.json": b"{}" * 500, "w.bin": b"".join(BLOCKS[::-3])}, "lab/one")
    push_files(made, {"config.json": b"[]" * 500, "w.bin": b"".join(BLOCKS[::3] + BLOCKS[1::3])}, "lab/two")
    push_files(made, {"w.bin": b"".join(BLOCKS[1::3])}, "lab/three")
    rm(made, "lab/gone")
    return made


def bring(source: Repository, target: Path | ObjectStore, *models: ModelName, repack: bool = True) -> ReplicateReport:
    store = FileStore(target) if isinstance(target, Path) else target
    return replicate(source, store, soon, models=models, repack=repack)


def opened(root: Path) -> Repository:
    return Repository.open(FileStore(root), soon())


def size(root: Path) -> int:
    return sum(path.stat().st_size for path in packs(root))


def layout_of(repository: Repository, model: ModelName) -> Layout:
    found = repository.resolve(repository.catalog(soon()).catalog, ModelRef.parse(str(model)), soon())
    return repository.layout(repository.manifest(found.version.manifest, soon()), soon())


def pack_ids(repository: Repository, model: ModelName) -> set[ObjectId]:
    return {ObjectId(pack.tobytes()) for pack in layout_of(repository, model).places.packs}


def requests(repository: Repository, model: ModelName) -> int:
    """Of who reads all but the heads of a version from front to back."""
    found = layout_of(repository, model)
    rows = found.row_place[~np.isin(found.places.pack[found.row_place], found.heads)].astype(np.intp)
    return ranges_of(found.places.pack[rows].astype(np.int64), found.places.offset[rows].astype(np.int64),
                     found.places.stored[rows].astype(np.int64))


def assert_like(source: Repository, root: Path, *models: ModelName) -> None:
    """These models are there and no others, all verifies, and the replica's indexes name every chunk."""
    replica = opened(root)
    assert content(replica) == {model: files for model, files in content(source).items()
                                if model in map(str, models)}
    assert verify(replica, read_data=True).faults == ()
    assert differences([source, replica]) == [[], []]
    state = replica.catalog(soon()).catalog
    assert state.held == frozenset(models)
    known = {row.tobytes() for table in replica.indexes(state, soon()) for row in table.ids}
    for model in state.models:
        for version in replica.versions(replica.history(state, model, soon()), soon()):
            assert {row.tobytes() for row in replica.manifest(version.manifest, soon()).chunk_ids} <= known


def test_only_what_a_model_needs_is_copied_in_the_order_of_its_files(source: Repository, tmp_path: Path) -> None:
    report = bring(source, tmp_path / "replica", ONE)
    assert_like(source, tmp_path / "replica", ONE)
    assert (report.packs, report.bytes, report.known_bytes) == (2, size(tmp_path / "replica"), 0)
    assert report.bytes < 17 * CHUNK < 48 * CHUNK < bring(source, tmp_path / "verbatim", ONE, repack=False).bytes
    assert requests(source, ONE) == 16 and requests(opened(tmp_path / "replica"), ONE) == 1
    mine, its = (each.catalog(soon()).catalog for each in (source, opened(tmp_path / "replica")))
    assert its.payload == mine.payload and its.replica_of == source.store.url
    again = bring(source, tmp_path / "replica", ONE)
    assert (again.changed, again.packs, again.bytes) == (False, 0, 0)


def test_headers_lie_in_small_packs_that_layouts_name_as_such(source: Repository, tmp_path: Path) -> None:
    bring(source, tmp_path / "replica", ONE, TWO)
    replica = opened(tmp_path / "replica")
    for model in (ONE, TWO):
        found = layout_of(replica, model)
        (head,) = found.head_packs
        rows = [found.place(row).pack == head for row in range(len(found.row_place))]
        assert rows == [True] + [False] * (len(rows) - 1)
        assert (tmp_path / "replica" / keys.pack(head)).stat().st_size < CHUNK


@pytest.mark.parametrize("verbatim", [True, False])
def test_what_the_replica_has_is_named_where_it_lies_and_not_copied_again(source: Repository, tmp_path: Path,
                                                                          verbatim: bool) -> None:
    bring(source, tmp_path / "replica", THREE, repack=not verbatim)
    before = set(packs(tmp_path / "replica"))
    (its,) = pack_ids(opened(tmp_path / "replica"), THREE)
    report = bring(source, tmp_path / "replica", TWO)
    assert_like(source, tmp_path / "replica", TWO, THREE)
    new = set(packs(tmp_path / "replica")) - before
    assert report.packs == len(new) and report.bytes == sum(path.stat().st_size for path in new)
    if verbatim:
        assert report.bytes < CHUNK and report.known_bytes == 32 * CHUNK, "the pack of all has these chunks, too"
    else:
        assert 16 * CHUNK < report.bytes < 17 * CHUNK and report.known_bytes == 16 * CHUNK
    assert its in pack_ids(opened(tmp_path / "replica"), TWO)
    push_files(source, {"w.bin": b"".join(BLOCKS[::3]) + noise(99, CHUNK)}, "lab/two")
    assert CHUNK < bring(source, tmp_path / "replica", TWO).bytes < 2 * CHUNK
    assert_like(source, tmp_path / "replica", TWO, THREE)


def test_a_version_that_a_tag_names_is_in_order_before_a_newer_one(source: Repository, tmp_path: Path) -> None:
    push_files(source, {"w.bin": b"".join(BLOCKS[2::3])}, "lab/one")  # the same, in the other direction
    tag(source, "lab/one:v1", "latest")
    assert bring(source, tmp_path / "replica", ONE).bytes < 17 * CHUNK, "each chunk once"
    assert_like(source, tmp_path / "replica", ONE)
    assert requests(opened(tmp_path / "replica"), ONE) == 1


def test_what_a_false_layout_of_the_source_places_wrongly_is_found_by_its_indexes(source: Repository,
                                                                                  tmp_path: Path) -> None:
    found = source.resolve(source.catalog(soon()).catalog, ModelRef.parse("lab/three"), soon())
    placed = layout_of(source, THREE)
    places = [placed.place(row) for row in range(len(placed.row_place))]
    key = keys.layout(found.version.manifest)
    told = layout.serialise(found.version.manifest, [*places[1:], places[0]], set())
    (tmp_path / "source" / key).write_bytes(told)
    bring(source, tmp_path / "replica", THREE)
    assert verify(opened(tmp_path / "replica"), read_data=True).ok


def test_a_chunk_that_is_wrong_wherever_it_lies_ends_it_before_the_catalog(source: Repository, tmp_path: Path) -> None:
    place = layout_of(source, ONE).place(3)
    path = tmp_path / "source" / keys.pack(place.pack)
    data = bytearray(path.read_bytes())
    data[place.offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError):
        bring(source, tmp_path / "replica", ONE)
    assert not (tmp_path / "replica" / "catalog.json").exists()
    bring(source, tmp_path / "replica", THREE)  # has nothing of it, though of its pack
    assert verify(opened(tmp_path / "replica"), read_data=True).ok


def test_bytes_that_were_spoilt_on_the_way_are_asked_for_again(source: Repository, tmp_path: Path) -> None:
    with FaultProxy(tmp_path / "source") as proxy:
        proxy.add("flip", "packs/", times=2, methods=("GET",), offset=10)
        bring(Repository.open(open_store(proxy.url), soon()), tmp_path / "replica", ONE)
    assert content(opened(tmp_path / "replica")) == {"lab/one": content(source)["lab/one"]}


def test_neighbours_in_a_pack_are_one_request_also_where_headers_lie_between(source: Repository,
                                                                             tmp_path: Path) -> None:
    files = {f"{part}.bin": noise(100 + part, 8 * CHUNK) for part in range(4)}
    push_files(source, {**files, **{f"{part}.json": noise(part, 900) for part in range(4)}}, "lab/four")
    with FaultProxy(tmp_path / "source") as proxy:
        four = Repository.open(open_store(proxy.url), soon())
        bring(four, tmp_path / "replica", ModelName.parse("lab/four"))
        assert proxy.requests("packs/") == 2


def test_a_replica_of_everything_is_not_repacked(source: Repository, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="gc --repack"):
        bring(source, tmp_path / "replica")
    assert not (tmp_path / "replica").exists()
    bring(source, tmp_path / "replica", repack=False)
    before = {path: path.read_bytes() for path in (tmp_path / "replica").rglob("*.json")}
    with pytest.raises(BadInput, match="gc --repack"):
        bring(source, tmp_path / "replica", ONE)
    assert before == {path: path.read_bytes() for path in (tmp_path / "replica").rglob("*.json")}


def test_gc_of_such_a_replica_keeps_all_and_repacks_nothing(source: Repository, tmp_path: Path) -> None:
    bring(source, tmp_path / "replica", ONE, THREE)
    replica = opened(tmp_path / "replica")
    assert gc(replica).objects_deleted == 0
    assert gc(replica, repack=True).bytes_rewritten == 0
    assert_like(source, tmp_path / "replica", ONE, THREE)
    rm(source, "lab/one")
    bring(source, tmp_path / "replica", THREE)
    assert gc(replica).bytes_freed > 16 * CHUNK
    assert_like(source, tmp_path / "replica", ONE, THREE)


def test_later_passes_without_it_go_on_and_a_replica_of_all_of_it_can_be_promoted(source: Repository,
                                                                                  tmp_path: Path) -> None:
    bring(source, tmp_path / "replica", ONE)
    bring(source, tmp_path / "replica", TWO, repack=False)
    assert_like(source, tmp_path / "replica", ONE, TWO)
    push_files(source, {"w.bin": b"".join(BLOCKS[4:8])}, "lab/one")
    bring(source, tmp_path / "replica", repack=False)
    replica = opened(tmp_path / "replica")
    assert content(replica) == content(source) and replica.catalog(soon()).catalog.holds is None
    promote(replica, soon)
    gc(replica, repack=True)
    push_files(replica, {"w.bin": b"".join(BLOCKS[::2])}, "lab/two")
    gc(replica)
    assert verify(replica, read_data=True).ok
    assert {**content(replica), "lab/two": {}} == {**content(source), "lab/two": {}}


@pytest.mark.parametrize("repack", [True, False])
def test_a_replica_of_such_a_replica_holds_what_it_holds(source: Repository, tmp_path: Path, repack: bool) -> None:
    bring(source, tmp_path / "near", ONE, THREE)
    near = opened(tmp_path / "near")
    bring(near, tmp_path / "far", repack=repack)
    assert_like(near, tmp_path / "far", ONE, THREE)
    push_files(source, {"w.bin": noise(200, 1000)}, "lab/three")
    bring(source, tmp_path / "near", THREE)
    bring(near, tmp_path / "far", THREE, repack=repack)
    assert_like(near, tmp_path / "far", ONE, THREE)
    bring(source, tmp_path / "other", TWO)
    with pytest.raises(Conflict, match="only some models"):
        bring(near, tmp_path / "other", repack=repack)
    assert_like(source, tmp_path / "other", TWO)


@pytest.mark.parametrize(("method", "key", "repack"), [
    ("put", "packs/", True), ("swap", "layouts/", True), ("put", "manifests/", True), ("put", "histories/", True),
    ("put", "indexes/", True), ("swap", "catalog.json", True), ("put", "layouts/", False)])
def test_a_gc_of_the_replica_meanwhile_that_takes_what_nothing_names_yet_costs_nothing(
        source: Repository, tmp_path: Path, method: str, key: str, repack: bool) -> None:
    root = tmp_path / "replica"
    bring(source, root, THREE)
    between = Between(FileStore(root), method, key, lambda: gc(opened(root)))
    bring(source, between, ONE, TWO, repack=repack)  # type: ignore[arg-type]
    assert between.happened
    assert_like(source, root, ONE, TWO, THREE)


def test_two_at_once_make_one_replica(source: Repository, tmp_path: Path) -> None:
    root = tmp_path / "replica"
    between = Between(FileStore(root), "swap", "catalog.json", lambda: bring(source, root, ONE, TWO))
    bring(source, between, TWO, THREE)  # type: ignore[arg-type]
    assert between.happened
    assert_like(source, root, ONE, TWO, THREE)
    gc(opened(root))
    assert_like(source, root, ONE, TWO, THREE)


@pytest.mark.parametrize(("refused", "deleted"), [("layouts/", "packs/"), ("catalog.json", "manifests/")])
def test_what_gc_may_be_deleting_is_not_counted_on(source: Repository, tmp_path: Path, refused: str,
                                                   deleted: str) -> None:
    """A pass that was cut off left it; the next one comes when gc has begun to delete."""
    root = tmp_path / "replica"
    bring(source, root, THREE)
    with FaultProxy(root, writable=True) as proxy:
        proxy.add("status", refused, methods=("PUT",), code=403)
        with pytest.raises(Forbidden):
            bring(source, open_store(proxy.url), ONE)
    between = Between(FileStore(root), "stat", deleted, lambda: bring(source, root, ONE))
    gc(between.repository())
    assert between.happened
    assert_like(source, root, ONE, THREE)


def test_a_version_that_comes_again_before_gc_deletes_what_it_had_is_dropped_no_more(source: Repository,
                                                                                     tmp_path: Path) -> None:
    root, tree, four = tmp_path / "replica", write(tmp_path / "tree", {"w.bin": noise(500, 8 * CHUNK)}), "lab/four"
    push_tree(tree, source, four)
    bring(source, root, THREE, ModelName.parse(four))
    rm(source, four)
    bring(source, root, THREE)
    gc(opened(root), 60.0)
    assert {"packs", "layouts", "manifests"} <= dropped(root)
    push_tree(tree, source, four)
    bring(source, root, THREE)
    assert not {"layouts", "manifests"} & dropped(root)
    gc(opened(root), 60.0, days=1)
    assert_like(source, root, THREE, ModelName.parse(four))


def dropped(root: Path) -> set[str]:
    """Kinds of what waits for its grace."""
    return {key.partition("/")[0] for key in opened(root).catalog(soon()).catalog.dropped}


def test_where_a_store_cannot_list_what_was_finished_is_found_again(source: Repository, tmp_path: Path) -> None:
    root = tmp_path / "replica"
    with FaultProxy(root, writable=True) as proxy:
        proxy.add("status", "catalog.json", methods=("PUT",), code=403)
        with pytest.raises(Forbidden):
            bring(source, open_store(proxy.url), ONE, THREE)
        proxy.clear()
        before = set(packs(root))
        push_files(source, {"w.bin": b"".join(BLOCKS[1::6]) + noise(300, 1000)}, "lab/three")
        report = bring(source, open_store(proxy.url), ONE, THREE)
    assert (report.packs, report.versions) == (1, 1) and report.bytes < CHUNK and before < set(packs(root))
    assert_like(source, root, ONE, THREE)


def test_layouts_name_packs_before_there_are_many_that_nothing_names(source: Repository, tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelfs.transfer.repacking._UNNAMED_PACKS", 2)
    for seed in range(6):
        push_files(source, {"w.bin": noise(400 + seed, 5 * CHUNK)}, "lab/three")
    monkeypatch.setattr("modelfs.repository.pack.TARGET_BYTES", 5 * CHUNK)
    with FaultProxy(tmp_path / "replica", writable=True) as proxy:
        bring(source, open_store(proxy.url), THREE)
        puts = [seen.path.split("/")[1] for seen in proxy.seen() if seen.method == "PUT"]
    assert [kind for kind in puts if kind in ("packs", "layouts")][:8] == 2 * (2 * ["packs"] + 2 * ["layouts"])
    assert_like(source, tmp_path / "replica", THREE)


def test_a_pack_that_the_replica_lost_is_not_counted_on(source: Repository, tmp_path: Path) -> None:
    bring(source, tmp_path / "replica", THREE)
    (lost,) = packs(tmp_path / "replica")
    lost.unlink()
    bring(source, tmp_path / "replica", TWO)
    assert content(opened_without(tmp_path / "replica", THREE))["lab/two"] == content(source)["lab/two"]


@pytest.mark.parametrize("repack", [True, False])
def test_a_history_that_the_replica_lost_costs_nothing_once_there_is_a_newer_one(source: Repository, tmp_path: Path,
                                                                                 repack: bool) -> None:
    bring(source, tmp_path / "replica", THREE, repack=repack)
    (lost,) = (tmp_path / "replica" / "histories").glob("*/*")
    lost.unlink()
    push_files(source, {"w.bin": noise(600, CHUNK)}, "lab/three")
    report = bring(source, tmp_path / "replica", THREE, repack=repack)
    assert report.versions == 1 and report.bytes < 2 * CHUNK
    assert_like(source, tmp_path / "replica", THREE)


def opened_without(root: Path, model: ModelName) -> Repository:
    """A repository of which one model is not looked at."""
    repository = opened(root)
    state = repository.catalog(soon())
    holds = sorted(str(name) for name in (state.catalog.held or frozenset()) - {model})
    raw = json.loads((root / "catalog.json").read_bytes())
    (root / "catalog.json").write_text(json.dumps({**raw, "holds": holds}))
    return repository


def test_the_command_says_what_it_copied_and_stays_within_its_rate(source: Repository, tmp_path: Path,
                                                                   modelfs: Callable[..., Result]) -> None:
    done = modelfs("replicate", tmp_path / "source", tmp_path / "replica", "--model", "lab/one", "--repack", "--json",
                   "--bwlimit", "50MB")
    assert done.code == 0, done.err
    (report,) = json.loads(done.out)["replicas"]
    assert (report["packs"], report["bytes"]) == (2, size(tmp_path / "replica"))
    assert_like(source, tmp_path / "replica", ONE)
    done = modelfs("replicate", tmp_path / "source", tmp_path / "all", "--repack")
    assert done.code == 2 and "gc --repack" in done.err and not (tmp_path / "all").exists()
    done = modelfs("replicate", tmp_path / "source", tmp_path / "all", "--repack", "--watch")
    assert done.code == 2, "it does not go on for ever"


def test_an_object_store_is_such_a_replica_as_a_directory_is(source: Repository, tmp_path: Path,
                                                             modelfs: Callable[..., Result]) -> None:
    bucket = s3servers.Bucket(s3servers.endpoint("seaweedfs"), s3servers.new_prefix())
    replica = f"s3://{s3servers.BUCKET}/{bucket.prefix}"

    def run(*arguments: object) -> str:
        done = modelfs(*arguments, env=s3servers.environ("seaweedfs"))
        assert done.code == 0, done.err
        return done.out

    for models in (["lab/three"], ["lab/two", "lab/three"]):
        chosen = [option for model in models for option in ("--model", model)]
        run("replicate", tmp_path / "source", replica, *chosen, "--repack")
    assert sum(info.size for info in bucket.list("packs/", soon())) < 33 * CHUNK
    assert json.loads(run("verify", replica, tmp_path / "source", "--read-data", "--json"))["ok"]
    report = json.loads(run("gc", replica, "--grace", "0s", "--json"))
    assert (report["objects_deleted"], report["objects_waiting"]) == (0, 0)


def test_a_watch_repacks_what_comes_later(source: Repository, tmp_path: Path, environ: dict[str, str]) -> None:
    watching = subprocess.Popen([sys.executable, "-m", "modelfs", "replicate", str(tmp_path / "source"),
                                 str(tmp_path / "replica"), "--model", "lab/three", "--repack", "--watch"],
                                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                env={**environ, "PYTHONPATH": os.getcwd(), "MODELFS_MOUNT_POLL": "1s"})
    try:
        eventually(lambda: (tmp_path / "replica" / "catalog.json").exists())
        push_files(source, {"w.bin": b"".join(BLOCKS[::3])}, "lab/three")
        eventually(lambda: "v2" in content(opened(tmp_path / "replica"))["lab/three"])
    finally:
        watching.kill()
        watching.wait()
    assert_like(source, tmp_path / "replica", THREE)
    assert size(tmp_path / "replica") < 2 * MiB + CHUNK
