"""`verify --repair` that is killed -9 at each of its writes in turn: the next one ends well, whatever this one did."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.killing import KILLED, Killer, killer
from maintenance.care import assert_whole
from transfer.pushed import make_repository, noise, packs, push_files, soon

from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.transfer.replicate import replicate

CONTENTS = {"lab/model:v1": {"w.bin": noise(1, 200_000)}, "lab/model:v2": {"w.bin": noise(2, 150_000)},
            "acme/other:v1": {"x.bin": noise(3, 100_000), "y": b"small"}}


@pytest.fixture
def killed(tmp_path: Path, environ: dict[str, str]) -> Iterator[Killer]:
    with killer(environ, tmp_path) as made:
        yield made


@pytest.fixture
def stores(tmp_path: Path) -> list[Path]:
    """A repository and a replica of it."""
    repository = make_repository(tmp_path / "a")
    for ref, files in CONTENTS.items():
        push_files(repository, files, ref.partition(":")[0])
    replicate(repository, FileStore(tmp_path / "b"), soon)
    return [tmp_path / "a", tmp_path / "b"]


def objects(root: Path, kind: str) -> list[Path]:
    return sorted(path for path in (root / kind).rglob("*") if path.is_file() and not path.name.startswith("."))


def restore(saved: Path, root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(saved, root, copy_function=os.link)


def whole(root: Path) -> None:
    assert_whole(Repository.open(FileStore(root), soon()), CONTENTS)


def test_a_repair_from_packs_alone_killed_at_any_write_is_ended_by_the_next(stores: list[Path], tmp_path: Path,
                                                                           killed: Killer) -> None:
    root, saved = stores[0], tmp_path / "saved"
    for path in objects(root, "layouts") + objects(root, "indexes"):
        path.unlink()
    shutil.copytree(root, saved)
    packed = {path.name for path in packs(root)}
    writes = killed.writes("verify", root, "--repair", "--read-data")
    assert writes >= len(CONTENTS) + 2, "a layout each, an index, the catalog"
    for last in range(1, writes + 2):
        restore(saved, root)
        assert killed.run("verify", root, "--repair", "--read-data", before_write=last) == KILLED
        assert {path.name for path in packs(root)} == packed
        assert killed.run("verify", root, "--repair", "--read-data") == 0, killed.said.read_text()
        whole(root)
        assert killed.writes("verify", root, "--repair") == 0, "there is nothing left to repair"


def test_a_repair_from_a_replica_killed_at_any_write_is_ended_by_the_next(stores: list[Path], tmp_path: Path,
                                                                         killed: Killer) -> None:
    root, saved = stores[1], tmp_path / "saved"
    for kind in ("packs", "manifests", "histories", "layouts"):
        objects(root, kind)[0].unlink()
    spoilt = packs(root)[0]
    data = bytearray(spoilt.read_bytes())
    data[500] ^= 1
    spoilt.unlink()
    spoilt.write_bytes(data)
    shutil.copytree(root, saved)
    arguments = ("verify", *stores, "--repair", "--read-data")
    writes = killed.writes(*arguments)
    assert writes >= 4
    for last in range(1, writes + 2):
        restore(saved, root)
        assert killed.run(*arguments, before_write=last) == KILLED
        whole(stores[0])
        assert killed.run(*arguments) == 0, killed.said.read_text()
        whole(root)
        assert spoilt.read_bytes() != bytes(data)
        assert killed.writes(*arguments) == 0
