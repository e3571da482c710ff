"""The care of versions that are stored as differences: their bases are checked, kept, brought along and named."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from maintenance.care import DAY, Between, gc, rm
from transfer.pushed import packs, repository_root, soon
from transfer.test_differences import TUNED, layout_of, push, read, repository, safetensors, spoil

from modelfs.ids import ModelName, ModelRef
from modelfs.maintenance.repair import repair
from modelfs.maintenance.verify import Report, verify
from modelfs.repository import keys
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.transfer.replicate import replicate

__all__ = ["repository"]
FILE = safetensors({"w": TUNED})


@pytest.fixture
def tuned(repository: Repository) -> Repository:
    push(repository, FILE, differences=True)
    return repository


def told(report: Report) -> set[tuple[str, str | None, str | None]]:
    return {(fault.kind, fault.version, fault.path) for fault in report.faults}


def test_a_sound_one_is_ok_and_differences_are_decoded(tuned: Repository) -> None:
    report = verify(tuned, read_data=True)
    assert report.faults == () and report.versions == 2
    assert verify(tuned, sample=1.0).faults == ()


def test_a_damaged_difference_is_its_versions_fault_alone(tuned: Repository) -> None:
    spoil(tuned, "lab/model:v2", 3)
    assert told(verify(tuned, read_data=True)) >= {("corrupt", "v2", "model.safetensors")}
    assert not {fault.version for fault in verify(tuned, read_data=True).faults} & {"v1"}


def test_a_damaged_base_is_the_fault_of_both(tuned: Repository) -> None:
    spoil(tuned, "lab/model:v1", 3)
    found = told(verify(tuned, read_data=True))
    assert found >= {("corrupt", version, "model.safetensors") for version in ("v1", "v2")}


def test_a_base_that_is_gone_is_missed_without_reading(tuned: Repository) -> None:
    gone = layout_of(tuned, "lab/model:v1").place(3).pack
    next(path for path in packs(repository_root(tuned)) if path.name == gone.hex()).unlink()
    assert {("missing", "v1", "model.safetensors"), ("missing", "v2", "model.safetensors")} <= told(verify(tuned))


def test_gc_keeps_bases_of_versions_that_were_removed_and_takes_them_with_the_last_difference(
        tuned: Repository) -> None:
    root = repository_root(tuned)
    rm(tuned, "lab/model:v1")
    gc(tuned)
    gc(tuned, days=30)
    assert verify(tuned, read_data=True).faults == ()
    assert read(root) == FILE
    rm(tuned, "lab/model")
    gc(tuned)
    gc(tuned, days=30)
    assert not packs(root)


def test_gc_repack_leaves_differences_and_their_bases_where_they_are(tuned: Repository) -> None:
    rm(tuned, "lab/model:v1")
    gc(tuned, repack=True)
    assert verify(tuned, read_data=True).faults == ()
    assert read(repository_root(tuned)) == FILE


def test_a_layout_and_indexes_are_made_anew_from_packs_with_their_bases(tuned: Repository) -> None:
    root = repository_root(tuned)
    catalog = tuned.catalog(soon()).catalog
    version = tuned.history(catalog, next(iter(catalog.models)), soon()).versions[-1]
    (root / keys.layout(version.manifest)).unlink()
    for id in catalog.indexes:
        (root / keys.index(id)).unlink()
    assert repair(tuned, now=time.time())
    assert verify(tuned, read_data=True).faults == ()
    assert read(root) == FILE


@pytest.mark.parametrize(("models", "repack"), [((), False), (("lab/tuned",), False), (("lab/tuned",), True)])
def test_a_replica_gets_the_bases_too_or_repacked_whole_chunks(repository: Repository, tmp_path: Path,
                                                               models: tuple[str, ...], repack: bool) -> None:
    push(repository, FILE, "lab/tuned", differences=True, base=ModelRef.parse("lab/model"))
    target = tmp_path / "replica"
    replicate(repository, FileStore(target), soon, models=[ModelName.parse(name) for name in models], repack=repack)
    replica = Repository.open(FileStore(target), soon())
    assert verify(replica, read_data=True).faults == ()
    assert read(target, "lab/tuned") == FILE
    if models:
        gc(replica)
        gc(replica, days=30)
        assert read(target, "lab/tuned") == FILE


@pytest.mark.parametrize("grace_s", [0.0, 7 * DAY])
def test_a_gc_that_takes_the_bases_of_a_push_under_way_costs_it_the_saving_and_no_byte(repository: Repository,
                                                                                       grace_s: float) -> None:
    def take() -> None:
        rm(repository, "lab/model")
        gc(repository, grace_s)

    between = Between(repository.store, "put", "indexes/", take)
    report = push(between.repository(), FILE, "lab/tuned", differences=True, base=ModelRef.parse("lab/model"))
    assert between.happened and report.version == "v1"
    gc(repository, grace_s, days=30)
    assert verify(repository, read_data=True).faults == ()
    assert read(repository_root(repository), "lab/tuned") == FILE
