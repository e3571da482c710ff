"""Replication: what a replica shows, what it takes up after a kill, and what becomes of two that both took changes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from results import Result
from transfer.pushed import content, eventually, make_repository, noise, packs, push_files, soon

from modelfs.errors import Conflict, IntegrityError, NotFound
from modelfs.ids import ModelName, ModelRef
from modelfs.maintenance.tagging import move_tag
from modelfs.repository import keys
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.stores.opening import open_store
from modelfs.stores.store import ObjectStore
from modelfs.transfer.reconcile import FROM
from modelfs.transfer.replicate import ReplicateReport, promote, replicate
from modelfs.units import MiB

A, B = noise(1, MiB), noise(2, MiB)


@pytest.fixture
def source(tmp_path: Path) -> Repository:
    """lab/model v1 and v2, acme/other v1."""
    made = make_repository(tmp_path / "source")
    push_files(made, {"a.bin": A})
    push_files(made, {"a.bin": A, "b.bin": B[:1000]})
    push_files(made, {"other.bin": B}, "acme/other")
    return made


def bring(source: Repository, target: Path | ObjectStore, **options: object) -> ReplicateReport:
    store = FileStore(target) if isinstance(target, Path) else target
    return replicate(source, store, soon, **options)  # type: ignore[arg-type]


def opened(root: Path) -> Repository:
    return Repository.open(FileStore(root), soon())


def tags(repository: Repository, model: str = "lab/model") -> dict[str, int]:
    catalog = repository.catalog(soon()).catalog
    return repository.history(catalog, ModelName.parse(model), soon()).live_tags


def test_a_replica_has_all_bytes_and_the_same_payload(source: Repository, tmp_path: Path) -> None:
    report = bring(source, tmp_path / "replica")
    assert (report.behind, report.versions, report.changed) == (4, 3, True)
    replica = opened(tmp_path / "replica")
    assert content(replica) == content(source)
    mine, its = (each.catalog(soon()).catalog for each in (source, replica))
    assert its.payload == mine.payload and its.replica_of == source.store.url and its.holds is None
    assert {path.name for path in packs(tmp_path / "replica")} == {path.name for path in packs(tmp_path / "source")}


def test_only_what_is_new_is_copied_and_nothing_at_all_where_nothing_is(source: Repository, tmp_path: Path) -> None:
    bring(source, tmp_path / "replica")
    again = bring(source, tmp_path / "replica")
    assert (again.changed, again.packs, again.bytes) == (False, 0, 0)
    push_files(source, {"a.bin": A, "new.bin": noise(3, 1000)})
    third = bring(source, tmp_path / "replica")
    assert third.changed and third.packs == 1 and third.bytes < 100_000
    assert content(opened(tmp_path / "replica")) == content(source)


def test_a_replica_takes_no_changes_until_it_is_promoted(source: Repository, tmp_path: Path) -> None:
    bring(source, tmp_path / "replica")
    replica = opened(tmp_path / "replica")
    before = {path.name for path in packs(tmp_path / "replica")}
    with pytest.raises(Conflict, match="promote"):
        push_files(replica, {"c.bin": noise(4, MiB)})
    with pytest.raises(Conflict, match="promote"):
        move_tag(replica, ModelRef.parse("lab/model:v1"), "old", soon)
    assert {path.name for path in packs(tmp_path / "replica")} == before, "nothing was uploaded in vain"
    serial = promote(replica, soon).serial
    assert serial == source.catalog(soon()).catalog.serial + 1
    push_files(replica, {"c.bin": noise(4, MiB)})
    assert "v3" in content(replica)["lab/model"]
    with pytest.raises(Conflict, match="takes changes already"):
        promote(replica, soon)


def test_a_replica_of_some_models_shows_only_these(source: Repository, tmp_path: Path) -> None:
    bring(source, tmp_path / "replica", models=[ModelName.parse("acme/other")])
    replica = opened(tmp_path / "replica")
    assert content(replica) == {"acme/other": {"v1": {"other.bin": B}}}
    with pytest.raises(Conflict, match="only some"):
        promote(replica, soon)
    push_files(source, {"other.bin": B[:-1]}, "acme/other")
    bring(source, tmp_path / "replica", models=[ModelName.parse("lab/model")])
    assert content(replica) == content(source)
    with pytest.raises(NotFound):
        bring(source, tmp_path / "more", models=[ModelName.parse("acme/none")])


def test_another_repository_is_not_written_to(source: Repository, tmp_path: Path) -> None:
    other = make_repository(tmp_path / "other")
    push_files(other, {"x": b"1"})
    with pytest.raises(Conflict, match="another repository"):
        bring(source, tmp_path / "other")


def test_a_replica_does_not_make_a_replica_of_its_primary(source: Repository, tmp_path: Path) -> None:
    bring(source, tmp_path / "replica")
    with pytest.raises(Conflict, match="other way"):
        bring(opened(tmp_path / "replica"), tmp_path / "source")
    assert source.catalog(soon()).catalog.replica_of is None


def test_changes_to_different_models_merge(source: Repository, tmp_path: Path) -> None:
    bring(source, tmp_path / "replica")
    new = opened(tmp_path / "replica")
    promote(new, soon)
    push_files(new, {"a.bin": B}, "lab/model")
    push_files(source, {"other.bin": A}, "acme/other")
    push_files(source, {"fresh.bin": A[:5]}, "acme/fresh")
    wanted = {**content(source), "lab/model": content(new)["lab/model"]}
    report = bring(new, tmp_path / "source")
    assert {one.model: one.diverged for one in report.reconciled} == {"acme/other": False, "acme/fresh": False}
    assert content(new) == content(source) == wanted
    assert source.catalog(soon()).catalog.replica_of == new.store.url


def test_changes_to_one_model_become_two_versions_and_say_so(source: Repository, tmp_path: Path) -> None:
    bring(source, tmp_path / "replica")
    new = opened(tmp_path / "replica")
    promote(new, soon)
    push_files(new, {"mine.bin": b"new primary"})
    push_files(source, {"its.bin": b"old primary"})
    push_files(source, {"its.bin": b"old primary, again"})
    said: list[str] = []
    report = bring(new, tmp_path / "source", tell=said.append)
    assert [dict(one.versions) for one in report.reconciled] == [{"v3": "v4", "v4": "v5"}] and said
    found = content(new)["lab/model"]
    assert found["v3"] == {"mine.bin": b"new primary"}
    assert (found["v4"], found["v5"]) == ({"its.bin": b"old primary"}, {"its.bin": b"old primary, again"})
    catalog = new.catalog(soon()).catalog
    rows = new.history(catalog, ModelName.parse("lab/model"), soon())
    assert [row.metadata.get(FROM) for row in rows.versions] == [
        None, None, None, f"{source.store.url} v3", f"{source.store.url} v4"]
    assert tags(new) == {"latest": 3}
    again = bring(new, tmp_path / "source")
    assert not again.changed and not again.reconciled


def test_a_tag_that_moved_on_the_old_primary_is_kept_where_the_new_one_left_it_alone(source: Repository,
                                                                                    tmp_path: Path) -> None:
    bring(source, tmp_path / "replica")
    new = opened(tmp_path / "replica")
    promote(new, soon)
    move_tag(source, ModelRef.parse("lab/model:v1"), "prod", soon)
    bring(new, tmp_path / "source")
    assert tags(new) == {"latest": 2, "prod": 1}


def test_a_spoilt_pack_is_not_passed_on(source: Repository, tmp_path: Path) -> None:
    spoilt = packs(tmp_path / "source")[0]
    data = bytearray(spoilt.read_bytes())
    data[100] ^= 1
    spoilt.write_bytes(data)
    with pytest.raises(IntegrityError):
        bring(source, tmp_path / "replica")
    assert not (tmp_path / "replica" / "catalog.json").exists()
    assert not (tmp_path / "replica" / keys.pack(bytes.fromhex(spoilt.name))).exists()  # type: ignore[arg-type]


def test_bytes_that_were_spoilt_on_the_way_are_asked_for_again(source: Repository, tmp_path: Path) -> None:
    with FaultProxy(tmp_path / "source") as proxy:
        proxy.add("flip", "packs/", times=1, offset=1000)
        proxy.add("flip", "manifests/", times=1, offset=3)
        bring(Repository.open(open_store(proxy.url), soon()), tmp_path / "replica")
    assert content(opened(tmp_path / "replica")) == content(source)


def until_killed(run: Callable[[], subprocess.Popen[bytes]], there: Callable[[], bool]) -> None:
    process = run()
    while not there() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again_it_ends_like_the_source_and_repeats_no_pack(tmp_path: Path, environ: dict[str, str],
                                                                            seed: int) -> None:
    """kill -9 at any moment; a server slows the packs, so that there are moments."""
    pick = random.Random(seed)
    source = make_repository(tmp_path / "source")
    for number in range(6):
        push_files(source, {"w.bin": noise(100 + number, MiB)}, f"acme/m{number}")
    command: Sequence[object] = [sys.executable, "-m", "modelfs", "replicate", "--quiet"]
    with FaultProxy(tmp_path / "source") as proxy:
        proxy.add("drip", "packs/", piece=128 << 10, interval_s=0.02)

        def run() -> subprocess.Popen[bytes]:
            return subprocess.Popen([*map(str, command), proxy.url, str(tmp_path / "replica")],
                                    env={**environ, "PYTHONPATH": os.getcwd()}, stdin=subprocess.DEVNULL,
                                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        for kill in range(3):
            wanted = pick.randrange(1, 3) + kill
            until_killed(run, lambda wanted=wanted: len(packs(tmp_path / "replica")) >= wanted
                         if (tmp_path / "replica" / "packs").exists() else False)
            assert not (tmp_path / "replica" / "catalog.json").exists(), "never half a repository"
        there = {path.name for path in packs(tmp_path / "replica")}
        proxy.forget()
        assert run().wait(60) == 0
        asked = {seen.path.rpartition("/")[2] for seen in proxy.seen("packs/") if seen.method == "GET"}
    assert not asked & there, "what the replica has is not fetched again"
    assert content(opened(tmp_path / "replica")) == content(source)


def test_replicas_of_a_replica_and_of_a_copied_directory(source: Repository, tmp_path: Path) -> None:
    bring(source, tmp_path / "near")
    bring(opened(tmp_path / "near"), tmp_path / "far")
    assert content(opened(tmp_path / "far")) == content(source)
    shutil.copytree(tmp_path / "source", tmp_path / "copy")
    report = bring(source, tmp_path / "copy")
    assert report.packs == 0 and opened(tmp_path / "copy").catalog(soon()).catalog.replica_of == source.store.url


def test_a_push_returns_once_so_many_stores_hold_it(tmp_path: Path, modelfs: Callable[..., Result]) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "w.bin").write_bytes(A)
    assert modelfs("init", "one").code == 0
    config = tmp_path / "config.toml"
    config.write_text(f'[fetch]\ndeadline = "2s"\n[remotes.lab]\nurls = ["{tmp_path}/one", "{tmp_path}/two", '
                      f'"http://127.0.0.1:9/gone"]\n')
    done = modelfs("push", "tree", "lab", "acme/base", "--sync", "2", "--json", "--config", config)
    assert done.code == 0, done.err
    assert json.loads(done.out)["held_by"] == [f"file://{tmp_path}/one", f"file://{tmp_path}/two"]
    assert "127.0.0.1:9" in done.err, "who does not hold it is told"
    assert content(opened(tmp_path / "two"))["acme/base"]["v1"] == {"w.bin": A}
    (tmp_path / "tree" / "w.bin").write_bytes(B)
    done = modelfs("push", "tree", "lab", "acme/base", "--sync", "3", "--config", config)
    assert done.code == 5 and "2 of 3" in done.err.splitlines()[-1]
    assert content(opened(tmp_path / "two"))["acme/base"]["v2"] == {"w.bin": B}
    assert modelfs("push", "tree", "lab", "acme/base", "--sync", "4", "--config", config).code == 2


def test_a_watch_sees_what_is_pushed_right_after_its_first_pass(source: Repository, tmp_path: Path,
                                                                environ: dict[str, str]) -> None:
    watching = subprocess.Popen([sys.executable, "-m", "modelfs", "replicate", str(tmp_path / "source"),
                                 str(tmp_path / "replica"), "--watch"], stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                env={**environ, "PYTHONPATH": os.getcwd(), "MODELFS_MOUNT_POLL": "2s"})
    try:
        eventually(lambda: (tmp_path / "replica" / "catalog.json").exists())
        push_files(source, {"new.bin": noise(3, 1000)})
        eventually(lambda: content(opened(tmp_path / "replica")) == content(source))
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 130
    finally:
        watching.kill()
        watching.wait()


def test_what_is_on_its_way_counts_once(source: Repository, tmp_path: Path) -> None:
    report = bring(source, tmp_path / "replica")
    assert report.packs == len(packs(tmp_path / "source")) and report.known_bytes == 0
