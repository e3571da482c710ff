"""A replica whose disk is full: it is named, by exit 8, and the others get all of it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from results import Result
from transfer.pushed import make_repository, noise, packs, push_files, reading, write

from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.units import Deadline, MiB

DATA = noise(90, 6 * MiB)
_FULL = "No space left on device"
Run = Callable[..., Result]
DiskOf = Callable[[int], Path]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    push_files(make_repository(tmp_path / "source"), {"w.bin": DATA})
    return tmp_path / "source"


def has_all(root: Path) -> bool:
    with reading(root) as r:
        return r.read(r.file("w.bin")) == DATA


def test_replication_to_a_full_disk_is_exit_8_and_the_others_are_complete(source: Path, tmp_path: Path,
                                                                          disk_of: DiskOf, modelfs: Run) -> None:
    full, disk = tmp_path / "disk0" / "replica", disk_of(3 * MiB)
    done = modelfs("replicate", source, full, tmp_path / "other", "--json")
    assert done.code == 8 and f"warning: file://{full} is behind" in done.err, done.err
    assert [one["destination"] for one in json.loads(done.out)["replicas"]] == [f"file://{tmp_path}/other"]
    assert has_all(tmp_path / "other") and not (full / "catalog.json").exists(), "never half a repository"
    subprocess.run(["mount", "-o", f"remount,size={20 * MiB}", str(disk)], check=True)
    assert modelfs("replicate", source, full).code == 0 and has_all(full)


def test_a_push_that_others_must_hold_does_without_the_full_one(tmp_path: Path, disk_of: DiskOf,
                                                               modelfs: Run) -> None:
    make_repository(tmp_path / "one")
    tree, full = write(tmp_path / "tree", {"w.bin": DATA}), disk_of(3 * MiB) / "replica"
    config = tmp_path / "config.toml"
    config.write_text(f"[remotes.lab]\nurls = ['{tmp_path}/one', '{full}', '{tmp_path}/two']\n")
    done = modelfs("push", tree, "lab", "lab/model", "--sync", "2", "--json", "--config", config)
    assert done.code == 0 and f"{full} does not hold it" in done.err and _FULL in done.err, done.err
    assert json.loads(done.out)["held_by"] == [f"file://{tmp_path}/{name}" for name in ("one", "two")]
    assert has_all(tmp_path / "two")
    write(tree, {"more.bin": noise(91, MiB)})
    done = modelfs("push", tree, "lab", "lab/model", "--sync", "3", "--config", config)
    assert done.code == 5 and "held by 2 of 3" in done.err.splitlines()[-1], done.err


def test_a_repair_mends_the_others_when_one_has_no_room(source: Path, tmp_path: Path, disk_of: DiskOf,
                                                        modelfs: Run) -> None:
    disk = disk_of(9 * MiB)
    for copy in (disk / "full", tmp_path / "other"):
        shutil.copytree(source, copy)
        for path in packs(copy):
            path.unlink()
    (disk / "ballast").write_bytes(bytes(7 * MiB))
    done = modelfs("verify", source, disk / "full", tmp_path / "other", "--repair", "--json")
    assert done.code == 8 and _FULL in done.err, done.err
    assert [one["ok"] for one in json.loads(done.out)["repositories"]] == [True, False, True]
    assert has_all(tmp_path / "other")
    (disk / "ballast").unlink()
    assert modelfs("verify", source, disk / "full", tmp_path / "other", "--repair").code == 0
    assert has_all(disk / "full")
    assert Repository.open(FileStore(disk / "full"), Deadline(5)).catalog(Deadline(5)).catalog.serial
