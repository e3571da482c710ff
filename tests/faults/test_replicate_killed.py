"""kill -9 during `replicate` to a replica of some models, whose indexes are its own: at each write, then again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.killing import KILLED, Killer, killer
from maintenance.care import gc, rm
from transfer.pushed import CHUNK, content, make_repository, noise, packs, push_files, soon

from modelfs.maintenance.verify import verify
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore


@pytest.fixture
def killed(tmp_path: Path, environ: dict[str, str]) -> Iterator[Killer]:
    with killer(environ, tmp_path) as made:
        yield made


@pytest.fixture
def source(tmp_path: Path) -> Repository:
    """lab/one with two versions and lab/two, which share chunks, in the pack of a model that went."""
    blocks = [noise(number, CHUNK) for number in range(24)]
    made = make_repository(tmp_path / "source")
    push_files(made, {"w.bin": b"".join(blocks)}, "lab/gone")
    push_files(made, {"config.json": b"{}", "w.bin": b"".join(blocks[::3])}, "lab/one")
    push_files(made, {"config.json": b"{ }", "w.bin": b"".join(blocks[::4])}, "lab/one")
    push_files(made, {"w.bin": b"".join(blocks[1::3] + blocks[::4])}, "lab/two")
    rm(made, "lab/gone")
    return made


def opened(root: Path) -> Repository:
    return Repository.open(FileStore(root), soon())


def assert_indexed(replica: Repository) -> None:
    """Every chunk of every version."""
    state = replica.catalog(soon()).catalog
    known = {row.tobytes() for table in replica.indexes(state, soon()) for row in table.ids}
    for model in state.models:
        for version in replica.versions(replica.history(state, model, soon()), soon()):
            assert {row.tobytes() for row in replica.manifest(version.manifest, soon()).chunk_ids} <= known


@pytest.mark.parametrize("options", [["--repack"], []])
def test_killed_at_any_write_it_shows_nothing_by_halves_and_repeats_no_pack(
        source: Repository, tmp_path: Path, killed: Killer, options: list[str]) -> None:
    """The replica has lab/two already, or nothing of either."""
    replica, begun = tmp_path / "replica", tmp_path / "begun"
    command = ("replicate", tmp_path / "source", replica, "--model", "lab/one", "--model", "lab/two", *options)
    assert killed.run("replicate", tmp_path / "source", begun, "--model", "lab/two", *options) == 0
    wanted = content(source)
    for before in (None, begun):
        restore(before, replica)
        writes = killed.writes(*command)
        size = sum(path.stat().st_size for path in packs(replica))
        assert writes >= 8
        for last in range(1, writes + 2):
            restore(before, replica)
            assert killed.run(*command, before_write=last) == KILLED
            done = last > writes
            if before or done:
                assert content(opened(replica)) == (wanted if done else {"lab/two": wanted["lab/two"]})
            else:
                assert not (replica / "catalog.json").exists()
            there = set(packs(replica)) if (replica / "packs").exists() else set()
            assert killed.run(*command) == 0, killed.said.read_text()
            found = opened(replica)
            assert content(found) == wanted, f"killed before write {last}"
            assert verify(found, read_data=True).ok
            assert_indexed(found)
            assert there <= set(packs(replica))
            assert gc(found).objects_deleted <= 1, "no pack was written that nothing needs; perhaps an index"
            assert there <= set(packs(replica)), "and what was there was taken up"
            assert sum(path.stat().st_size for path in packs(replica)) <= size + 4096 * len(there)


def restore(before: Path | None, replica: Path) -> None:
    """As it was: nothing writes in place, so links are copies."""
    shutil.rmtree(replica, ignore_errors=True)
    if before:
        shutil.copytree(before, replica, copy_function=os.link)
