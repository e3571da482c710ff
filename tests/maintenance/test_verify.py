"""verify: what is damaged is found and named, what is not is not; --repair brings back what packs can tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from repository.builder import CHUNK, WHEN, Builder, deadline

from modelfs.errors import Unavailable
from modelfs.ids import ModelName, ModelRef, ObjectId
from modelfs.maintenance.repair import repair
from modelfs.maintenance.verify import Report, verify
from modelfs.repository import index, keys, layout
from modelfs.repository.places import Place
from modelfs.repository.repository import Repository

NOISE = np.random.default_rng(7).bytes
ONE = {"a/data.bin": NOISE(5 * CHUNK + 9), "b.txt": b"text"}
TWO = {"a/data.bin": NOISE(3 * CHUNK), "b.txt": b"other text", "c.bin": NOISE(CHUNK)}


@pytest.fixture
def made(tmp_path: Path) -> Builder:
    """acme/base v1 and v2, and acme/other v1 with v1's files again."""
    builder = Builder(tmp_path / "repo")
    builder.push("acme/base", ONE)
    builder.push("acme/base", TWO)
    builder.push("acme/other", ONE)
    return builder


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def objects(made: Builder, kind: str) -> list[Path]:
    return sorted(path for path in (made.store.root / kind).rglob("*") if path.is_file())


def version(made: Builder, ref: str) -> ObjectId:
    catalog = made.repository.catalog(deadline()).catalog
    return made.repository.resolve(catalog, ModelRef.parse(ref), deadline()).version.manifest


def place_in(made: Builder, ref: str, row: int) -> Place:
    found = made.repository.manifest(version(made, ref), deadline())
    return made.repository.layout(found, deadline()).place(row)


def told(report: Report) -> set[tuple[str, str | None, str | None, str | None]]:
    return {(fault.kind, fault.model, fault.version, fault.path) for fault in report.faults}


def test_a_sound_repository_is_ok_and_every_chunk_of_it_was_read(made: Builder) -> None:
    report = verify(made.repository, read_data=True)
    assert (report.ok, report.faults, report.versions) == (True, (), 3)
    # the first and the last push made one pack: their chunks are the same
    assert report.chunks_checked == 7 + 5
    assert report.bytes_checked == sum(place.length for place in stored_places(made))
    structure = verify(made.repository)
    assert (structure.ok, structure.versions, structure.chunks_checked, structure.bytes_checked) == (True, 3, 0, 0)


def stored_places(made: Builder) -> set[Place]:
    catalog = made.repository.catalog(deadline()).catalog
    return {row.place for rows in made.repository.indexes(catalog, deadline()) for row in rows.all()}


def test_an_empty_repository_is_ok(tmp_path: Path) -> None:
    assert verify(Builder(tmp_path / "repo").repository, read_data=True).ok


def test_a_flipped_byte_in_a_pack_names_each_version_and_file_that_needs_it(made: Builder) -> None:
    place = place_in(made, "acme/base:v1", 2)
    flip(made.path(keys.pack(place.pack)), place.offset)
    assert verify(made.repository).ok
    report = verify(made.repository, read_data=True)
    assert told(report) == {("corrupt", "acme/base", "v1", "a/data.bin"), ("corrupt", "acme/other", "v1", "a/data.bin"),
                            ("corrupt", None, None, None)}
    assert {fault.object for fault in report.faults} == {keys.pack(place.pack)}
    assert verify(made.repository, sample=1.0).chunks_checked == 12
    assert told(verify(made.repository, sample=1.0)) == told(report) - {("corrupt", None, None, None)}


def test_a_flipped_byte_in_a_packs_tail_is_the_packs_fault_and_no_files(made: Builder) -> None:
    pack = made.path(keys.pack(place_in(made, "acme/base:v2", 0).pack))
    flip(pack, pack.stat().st_size - 70)
    report = verify(made.repository, read_data=True)
    assert {(fault.kind, fault.path) for fault in report.faults} == {("corrupt", None), ("malformed", None)}
    assert report.chunks_checked == 12


def test_a_missing_pack_names_the_files_that_need_it(made: Builder) -> None:
    made.path(keys.pack(place_in(made, "acme/base:v2", 0).pack)).unlink()
    for report in (verify(made.repository), verify(made.repository, read_data=True), verify(made.repository, sample=1)):
        assert told(report) == {("missing", "acme/base", "v2", path) for path in TWO}


def test_a_pack_that_is_cut_short_names_the_files_beyond_its_end(made: Builder) -> None:
    place = place_in(made, "acme/base:v2", 4)
    pack = made.path(keys.pack(place.pack))
    pack.write_bytes(pack.read_bytes()[:place.offset + 1])
    assert told(verify(made.repository)) == {("corrupt", "acme/base", "v2", "c.bin")}
    pack.write_bytes(pack.read_bytes()[:place.offset] + bytes(place.length))
    assert told(verify(made.repository)) == {("corrupt", None, None, None)}


@pytest.mark.parametrize(("spoil", "kind"), [(Path.unlink, "missing"), (lambda path: flip(path, 20), "corrupt")])
def test_histories_manifests_and_indexes_that_are_missing_or_damaged_are_found(
        made: Builder, spoil: Callable[[Path], None], kind: str) -> None:
    catalog = made.repository.catalog(deadline()).catalog
    id = version(made, "acme/base:v2")
    spoil(made.path(keys.manifest(id)))
    spoil(made.path(keys.index(catalog.indexes[0])))
    assert {(fault.kind, fault.object, fault.version) for fault in verify(made.repository).faults} == {
        (kind, keys.manifest(id), "v2"), (kind, keys.index(catalog.indexes[0]), None)}
    history = keys.history(catalog.models[ModelName("acme", "base")])
    spoil(made.path(history))
    report = verify(made.repository)
    assert (kind, history) in {(fault.kind, fault.object) for fault in report.faults}
    assert report.versions == 1


@pytest.mark.parametrize(("data", "kind"), [(None, "missing"), (b"junk", "malformed")])
def test_a_catalog_that_is_missing_or_malformed_is_a_fault(made: Builder, data: bytes | None, kind: str) -> None:
    made.path(keys.CATALOG).unlink() if data is None else made.put(keys.CATALOG, data)
    (fault,) = verify(made.repository).faults
    assert (fault.kind, fault.object) == (kind, keys.CATALOG)


def test_a_tag_that_names_no_version_is_a_fault(made: Builder) -> None:
    state = made.repository.catalog(deadline())
    model = ModelName("acme", "other")
    text = made.repository.history(state.catalog, model, deadline()).with_tag("prod", 9, WHEN).serialise()
    made.put(keys.history(ObjectId.of(text)), text)
    moved = state.catalog.next(WHEN, models={**state.catalog.models, model: ObjectId.of(text)})
    made.put(keys.CATALOG, moved.serialise())
    (fault,) = verify(made.repository).faults
    assert (fault.kind, fault.model, fault.version) == ("missing", "acme/other", "v9")


def test_a_codec_that_this_modelfs_lacks_is_named(made: Builder) -> None:
    id = version(made, "acme/base:v2")
    found = made.repository.manifest(id, deadline())
    at = made.repository.layout(found, deadline())
    places = [replace(at.place(row), codec="telepathy") for row in range(len(found.chunk_ids))]
    made.put(keys.layout(id), layout.serialise(id, places, set()))
    assert any("telepathy" in fault.detail for fault in verify(made.repository).faults)
    assert ("malformed", "acme/base", "v2", "c.bin") in told(verify(made.repository, read_data=True))


@pytest.mark.parametrize(("data", "kind"), [(None, "missing"), (b"junk", "malformed")])
def test_a_layout_that_is_missing_or_malformed_is_a_fault_and_is_made_anew(
        made: Builder, data: bytes | None, kind: str) -> None:
    id = version(made, "acme/base:v2")
    before = made.repository.layout(made.repository.manifest(id, deadline()), deadline())
    path = made.path(keys.layout(id))
    path.unlink() if data is None else path.write_bytes(data)
    report = verify(made.repository, read_data=True)
    assert told(report) == {(kind, "acme/base", "v2", None)}
    assert report.chunks_checked == 12
    assert repair(made.repository, now=0) == (keys.layout(id),)
    assert verify(made.repository, read_data=True).ok
    after = made.repository.layout(made.repository.manifest(id, deadline()), deadline())
    assert [after.place(row) for row in range(5)] == [before.place(row) for row in range(5)]
    assert repair(made.repository, now=0) == ()


def test_without_layouts_and_indexes_packs_alone_bring_back_both(made: Builder) -> None:
    for path in objects(made, "layouts") + objects(made, "indexes"):
        path.unlink()
    report = verify(made.repository, read_data=True)
    assert {fault.kind for fault in report.faults} == {"missing"}
    assert ("missing", "acme/base", "v2", "c.bin") in told(report)
    assert report.chunks_checked == 0
    before = made.repository.catalog(deadline()).catalog
    made_anew = repair(made.repository, now=0)
    after = made.repository.catalog(deadline()).catalog
    assert sorted(key.partition("/")[0] for key in made_anew) == ["indexes", "layouts", "layouts"]
    assert (after.payload, len(after.indexes)) == (before.payload, 1)
    assert set(after.dropped) == {keys.index(id) for id in before.indexes}
    assert verify(made.repository, read_data=True).chunks_checked == 12
    assert verify(made.repository).ok


def test_an_index_made_anew_promises_nothing_that_no_version_needs(made: Builder) -> None:
    spare = Builder(made.store.root.parent / "spare")
    spare.push("a/b", {"x": NOISE(CHUNK)})
    (pack,) = objects(spare, "packs")
    made.put(f"packs/{pack.name[:2]}/{pack.name}", pack.read_bytes())
    catalog = made.repository.catalog(deadline()).catalog
    made.path(keys.index(catalog.indexes[0])).write_bytes(index.serialise([]))
    repair(made.repository, now=0)
    assert ObjectId.from_hex(pack.name) not in {place.pack for place in stored_places(made)}
    assert verify(made.repository, read_data=True).chunks_checked == 12


def test_a_layout_is_not_made_where_a_pack_is_missing(made: Builder) -> None:
    id = version(made, "acme/base:v2")
    made.path(keys.pack(place_in(made, "acme/base:v2", 0).pack)).unlink()
    made.path(keys.layout(id)).unlink()
    assert repair(made.repository, now=0) == ()
    assert {"missing"} == {fault.kind for fault in verify(made.repository).faults}


def test_a_sample_reads_a_part_and_at_least_one_chunk(made: Builder) -> None:
    assert verify(made.repository, sample=0.5).chunks_checked == 6
    assert verify(made.repository, sample=0.0001).chunks_checked == 1


def test_progress_comes_to_what_there_was_to_read(made: Builder) -> None:
    steps: list[tuple[int, int]] = []
    report = verify(made.repository, read_data=True, progress=lambda done, total: steps.append((done, total)))
    assert sum(done for done, _ in steps) == report.bytes_checked == steps[0][1]


def test_many_faults_are_told_up_to_a_thousand(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "repo")
    builder.push("acme/many", {f"f{n:04}": n.to_bytes(2, "big") for n in range(1100)})
    objects(builder, "packs")[0].unlink()
    assert len(verify(builder.repository).faults) == 1000


def test_a_store_that_does_not_answer_ends_it(made: Builder) -> None:
    from modelfs.stores.http_store import HttpStore
    away = Repository(HttpStore("http://127.0.0.1:9/", connections=1), made.repository.info, made.repository.cache)
    with pytest.raises(Unavailable):
        verify(away, deadline_s=1)
