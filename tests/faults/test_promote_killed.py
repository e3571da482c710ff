"""kill -9 during `promote`, and while a primary that comes back is merged: at each write in turn, then run again."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.killing import KILLED, Killer, killer
from transfer.pushed import Content, make_repository, noise, push_files, soon
from transfer.pushed import content as content_of

from modelfs.ids import ModelName
from modelfs.maintenance.agreement import differences
from modelfs.maintenance.verify import verify
from modelfs.repository.repository import Repository
from modelfs.stores.file_store import FileStore
from modelfs.transfer.replicate import promote, replicate


@pytest.fixture
def killed(tmp_path: Path, environ: dict[str, str]) -> Iterator[Killer]:
    with killer(environ, tmp_path) as made:
        yield made


def opened(root: Path) -> Repository:
    return Repository.open(FileStore(root), soon())


def content(root: Path) -> Content:
    return content_of(opened(root))


def versions(*stores: Content) -> set[tuple[str, str]]:
    """(model, what it is) of every version, by whatever number."""
    return {(model, repr(sorted(files.items()))) for store in stores for model, rows in store.items()
            for files in rows.values()}


def primary_of(root: Path) -> str | None:
    return opened(root).catalog(soon()).catalog.replica_of


def restore(saved: Path, *stores: Path) -> None:
    """As they were: nothing writes in place, so links are copies."""
    for store in stores:
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(saved / store.name, store, copy_function=os.link)


def save(saved: Path, *stores: Path) -> None:
    for store in stores:
        shutil.copytree(store, saved / store.name)


def test_a_promote_killed_before_its_swap_leaves_a_replica_and_after_it_a_primary(tmp_path: Path,
                                                                                 killed: Killer) -> None:
    source = make_repository(tmp_path / "source")
    push_files(source, {"w.bin": noise(1, 100_000)})
    replica, saved = tmp_path / "replica", tmp_path / "saved"
    replicate(source, FileStore(replica), soon)
    save(saved, replica)
    before, serial = content(replica), opened(replica).catalog(soon()).catalog.serial
    writes = killed.writes("promote", replica)
    assert primary_of(replica) is None
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "w.bin").write_bytes(noise(2, 100_000))
    for last in range(1, writes + 2):
        restore(saved, replica)
        assert killed.run("promote", replica, before_write=last) == KILLED
        assert content(replica) == before
        done = last > writes
        assert primary_of(replica) == (None if done else source.store.url)
        assert killed.run("push", tmp_path / "tree", replica, "lab/model") == (0 if done else 7)
        assert killed.run("promote", replica) == (7 if done else 0)
        assert killed.run("push", tmp_path / "tree", replica, "lab/model") == 0
        assert content(replica) == {"lab/model": {**before["lab/model"], "v2": {"w.bin": noise(2, 100_000)}}}
        assert opened(replica).catalog(soon()).catalog.serial == serial + 2
        assert verify(opened(replica), read_data=True).ok


def test_a_merge_killed_at_any_write_loses_nothing_and_ends_the_next_time(tmp_path: Path, killed: Killer) -> None:
    """Both changed one model, the old primary another one, too, and it made a third."""
    old, new, saved = (tmp_path / name for name in ("old", "new", "saved"))
    source = make_repository(old)
    push_files(source, {"w.bin": noise(1, 100_000)})
    push_files(source, {"w.bin": noise(2, 70_000)}, "acme/other")
    replicate(source, FileStore(new), soon)
    promote(opened(new), soon)
    push_files(opened(new), {"w.bin": noise(3, 70_000)})
    for model, seed in (("lab/model", 4), ("acme/other", 5), ("acme/fresh", 6)):
        push_files(source, {"w.bin": noise(seed, 70_000), "seed": b"%d" % seed}, model)
    save(saved, old, new)
    mine, its = content(new), content(old)
    writes = killed.writes("replicate", new, old)
    merged = content(new)
    assert versions(merged) == versions(mine, its) and content(old) == merged
    assert {model: sorted(rows) for model, rows in merged.items()} == {
        "acme/fresh": ["v1"], "acme/other": ["v1", "v2"], "lab/model": ["v1", "v2", "v3"]}
    assert writes > 15
    seen = Counter[str]()
    for last in range(1, writes + 2):
        restore(saved, old, new)
        assert killed.run("replicate", new, old, before_write=last) == KILLED
        here, there = content(new), content(old)
        assert versions(here, there) == versions(mine, its), f"before write {last}"
        for model, rows in mine.items():
            assert {number: here[model][number] for number in rows} == rows, "a number of the primary's is what it was"
        assert there in (its, merged) and here in (mine, merged)
        seen[f"{here == merged} {there == merged}"] += 1
        assert killed.run("replicate", new, old) == 0
        assert content(new) == content(old) == merged, f"killed before write {last}"
        assert primary_of(old) == opened(new).store.url and primary_of(new) is None
        assert killed.run("verify", new, old, "--read-data") == 0
    assert min(seen.values()) >= 1 and set(seen) == {"False False", "True False", "True True"}
    rows = opened(new).history(opened(new).catalog(soon()).catalog, ModelName.parse("lab/model"), soon())
    assert rows.next == 4, "and no number was given in vain"
    assert differences([opened(new), opened(old)]) == [[], []]
