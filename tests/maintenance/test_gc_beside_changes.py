"""gc whose swap of the catalog is lost to a push, again and again: it reads only what is new, and believes nothing that
was replaced meanwhile."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from maintenance.care import MODEL, Between, assert_whole, gc, make_repository, push_files, rm, soon
from transfer.pushed import CHUNK, noise, packs

from modelfs.ids import ChunkId, ModelRef
from modelfs.repository import keys, layout
from modelfs.repository.pack import PackWriter
from modelfs.repository.repository import Repository
from modelfs.stores.store import ObjectStore
from modelfs.units import Deadline, MiB

FILES = {f"lab/m{number}:v1": {"w": noise(number, 3 * CHUNK)} for number in range(6)}
LOST = 4


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")


class Busy:
    """A store at which somebody pushes before each of the first swaps of the catalog. reads: how often each manifest,
    layout and history was read."""

    def __init__(self, store: ObjectStore, others: Repository) -> None:
        self.url, self._store, self._others = store.url, store, others
        self.pushed: dict[str, dict[str, bytes]] = {}
        self.reads: Counter[str] = Counter()

    def __getattr__(self, name: str) -> object:
        call = getattr(self._store, name)

        def watched(key: str, *args: object, **kwargs: object) -> object:
            if name == "get" and key.startswith((keys.MANIFESTS, keys.LAYOUTS, keys.HISTORIES)):
                self.reads[key] += 1
            if name == "swap" and key == keys.CATALOG and len(self.pushed) < LOST:
                number = len(self.pushed)
                self.pushed[f"lab/new{number}:v1"] = {"w": noise(100 + number, CHUNK)}
                push_files(self._others, self.pushed[f"lab/new{number}:v1"], f"lab/new{number}")
            return call(key, *args, **kwargs)

        return watched


def test_what_was_read_before_a_lost_swap_is_not_read_again(repository: Repository, tmp_path: Path) -> None:
    for ref, files in FILES.items():
        push_files(repository, files, ref.removesuffix(":v1"))
    push_files(repository, {"w": noise(50, 3 * CHUNK)}, "lab/gone")
    dead = set(packs(tmp_path / "repository"))
    rm(repository, "lab/gone")
    busy = Busy(repository.store, repository)
    report = gc(Repository.open(busy, Deadline(30)))  # type: ignore[arg-type]
    assert len(busy.pushed) == LOST and report.objects_deleted
    assert len(dead - set(packs(tmp_path / "repository"))) == 1
    assert_whole(repository, FILES | busy.pushed)
    catalog = repository.catalog(soon()).catalog
    for ref in FILES:
        found = repository.resolve(catalog, ModelRef.parse(ref), soon())
        id = found.version.manifest
        history = keys.history(catalog.models[ModelRef.parse(ref).model])
        assert [busy.reads[key] for key in (history, keys.manifest(id), keys.layout(id))] == [1, 1, 1], ref


def test_a_layout_that_is_replaced_before_a_lost_swap_is_read_again(repository: Repository, tmp_path: Path) -> None:
    """Nothing else names the pack that it leads to."""
    push_files(repository, {"w": noise(1, 3 * CHUNK)})
    push_files(repository, {"w": noise(50, 3 * CHUNK)}, "lab/gone")
    rm(repository, "lab/gone")
    before = set(packs(tmp_path / "repository"))

    def move() -> None:
        id = repository.resolve(repository.catalog(soon()).catalog, ModelRef.parse(MODEL), soon()).version.manifest
        manifest = repository.manifest(id, soon())
        found, pack = repository.layout(manifest, soon()), PackWriter()
        pack.add(ChunkId.of(b"1"), 1, "raw", b"1")  # else it would be the pack that there is
        for row, chunk in enumerate(manifest.chunk_ids):
            data = bytes(repository.read_chunk(manifest, found, row, soon()))
            pack.add(ChunkId(chunk.tobytes()), len(data), "raw", data)
        sealed = pack.seal()
        repository.store.put(keys.pack(sealed.id), sealed.data, soon())
        old = repository.store.get(keys.layout(id), soon(), limit=MiB)
        assert old is not None and old.etag is not None
        repository.store.swap(keys.layout(id), old.etag,
                              layout.serialise(id, [row.place for row in sealed.chunks[1:]], set()), soon())
        push_files(repository, {"w": b"2"}, "lab/other")

    between = Between(repository.store, "swap", keys.CATALOG, move)
    gc(between.repository())
    assert between.happened and len(set(packs(tmp_path / "repository")) - before) == 2
    assert_whole(repository, {f"{MODEL}:v1": {"w": noise(1, 3 * CHUNK)}, "lab/other:v1": {"w": b"2"}})
