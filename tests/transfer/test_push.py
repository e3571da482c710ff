"""What a push stores, what it finds again, and that nothing of it shows before everything does."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from transfer.pushed import (
    CHUNK,
    MODEL,
    make_repository,
    noise,
    packs,
    push_files,
    push_tree,
    reading,
    soon,
    write,
)

from modelfs.errors import Conflict, Forbidden, Unavailable
from modelfs.ids import ModelName, ModelRef, ObjectId
from modelfs.metrics import Metrics
from modelfs.repository import history, keys
from modelfs.repository.repository import Repository
from modelfs.stores.http_store import HttpStore
from modelfs.stores.retrying import RetryingStore
from modelfs.transfer import encoding
from modelfs.transfer.push import PushOptions, PushProgress, push
from modelfs.units import Deadline, MiB

DATA = noise(1, 10 * CHUNK)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repository")


def test_a_push_of_the_same_makes_no_version(repository: Repository) -> None:
    first = push_files(repository, {"w.bin": DATA})
    second = push_files(repository, {"w.bin": DATA})
    assert (first.version, first.changed, first.new_chunks) == ("v1", True, 10)
    assert (second.version, second.changed, second.uploaded_bytes) == ("v1", False, 0)


def test_an_execute_bit_makes_a_version_and_an_mtime_does_not(repository: Repository, tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"run": b"1"})
    push_tree(source, repository)
    (source / "run").touch()
    assert not push_tree(source, repository).changed
    (source / "run").chmod(0o755)
    assert push_tree(source, repository).version == "v2"


def test_what_equals_an_older_version_moves_the_tag_back(repository: Repository) -> None:
    for data, version, changed in ((b"1", "v1", True), (b"2", "v2", True), (b"1", "v1", True), (b"1", "v1", False)):
        report = push_files(repository, {"w": data})
        assert (report.version, report.changed) == (version, changed)


def test_only_new_chunks_are_stored(repository: Repository) -> None:
    push_files(repository, {"w.bin": DATA})
    report = push_files(repository, {"copy.bin": DATA, "w.bin": DATA[:5 * CHUNK] + noise(2, CHUNK) + DATA[6 * CHUNK:]},
                        "lab/other")
    assert (report.new_chunks, report.reused_chunks) == (1, 10)
    assert report.uploaded_bytes < 2 * CHUNK


def test_a_dry_run_counts_and_writes_nothing(repository: Repository, tmp_path: Path) -> None:
    before = sorted((tmp_path / "repository").rglob("*"))
    report = push_tree(write(tmp_path / "source", {"w": DATA}), repository, dry_run=True)
    assert (report.version, report.new_chunks, report.uploaded_bytes) == ("v1", 10, 0)
    assert sorted((tmp_path / "repository").rglob("*")) == before
    assert not (tmp_path / "state").exists()


class Changing(PushProgress):
    """Changes the source while it is pushed."""

    def __init__(self, change: Callable[[], object]) -> None:
        self._change = change

    def advance(self, size_bytes: int, known_bytes: int) -> None:
        self._change()


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize("change", [
    _grow, lambda path: path.write_bytes(b""), lambda path: path.touch(),
    lambda path: (path.unlink(), path.write_bytes(noise(3, 40 * CHUNK))), lambda path: path.unlink()])
def test_a_file_that_changes_meanwhile_leaves_no_version(repository: Repository, tmp_path: Path,
                                                         change: Callable[[Path], object]) -> None:
    source = write(tmp_path / "source", {"a.bin": DATA, "b.bin": noise(2, 40 * CHUNK)})
    once: list[object] = []

    def first_time() -> None:
        if not once:
            once.append(change(source / "b.bin"))

    with pytest.raises(Conflict, match=r"b\.bin"):
        push(source, repository, ModelRef.parse(MODEL), PushOptions(tmp_path / "state", soon), Changing(first_time))
    assert repository.catalog(soon()).catalog.models == {}
    if (source / "b.bin").exists():
        assert push_tree(source, repository).version == "v1"


def test_a_file_that_may_not_be_read_is_named(repository: Repository, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str, flags: int) -> int:  # root may read everything
        raise PermissionError(13, "Permission denied", path)

    source = write(tmp_path / "source", {"secret.bin": DATA})
    monkeypatch.setattr(encoding.os, "open", refused)
    with pytest.raises(Forbidden, match=r"secret\.bin"):
        encoding._open(encoding.SourceFile("secret.bin", str(source / "secret.bin"), 1, 1, 0o444))


def test_many_pushes_leave_few_indexes_and_every_version_readable(repository: Repository, tmp_path: Path) -> None:
    sizes = []
    for n in range(100):
        push_files(repository, {"w": noise(n, 100)}, f"lab/m{n}")
        sizes.append(len(repository.catalog(soon()).catalog.indexes))
    assert max(sizes) == 16  # eight of one chunk each, eight of nine; then one of eighty-one and more
    for path in (tmp_path / "repository" / "layouts").rglob("*"):
        if path.is_file():
            path.unlink()
    with reading(tmp_path / "repository") as r:
        assert all(r.read(r.file("w", f"lab/m{n}")) == noise(n, 100) for n in range(100))
    dropped = repository.catalog(soon()).catalog.dropped
    assert dropped and not {keys.index(id) for id in repository.catalog(soon()).catalog.indexes} & set(dropped)


def test_old_rows_of_a_history_are_sealed_and_found(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "SEGMENT", 4)
    for n in range(19):
        assert push_files(repository, {"w": b"%d" % n}).version == f"v{n + 1}"
    rows = repository.history(repository.catalog(soon()).catalog, ModelName.parse(MODEL), soon())
    assert [(part.first, part.last) for part in rows.segments] == [(1, 4), (5, 8), (9, 12)]
    assert [row.number for row in repository.versions(rows, soon())] == list(range(19, 0, -1))
    assert push_files(repository, {"w": b"0"}).version == "v1"


def test_what_gc_was_to_delete_is_kept_once_it_is_named_again(repository: Repository, tmp_path: Path) -> None:
    source = write(tmp_path / "source", {"w.bin": DATA})
    report = push_tree(source, repository)
    state = repository.catalog(soon())
    model = ModelName.parse(MODEL)
    objects = [keys.manifest(ObjectId.from_hex(report.manifest)), keys.index(state.catalog.indexes[0]),
               *(f"packs/{path.parent.name}/{path.name}" for path in packs(tmp_path / "repository"))]
    gone = history.History(model, next=2)
    repository.store.put(keys.history(ObjectId.of(gone.serialise())), gone.serialise(), soon())
    removed = state.catalog.next(state.catalog.created, models={}, removed={model: ObjectId.of(gone.serialise())},
                                 indexes=(), dropped={**dict.fromkeys(objects, state.catalog.created), "other": "x"})
    repository.store.swap(keys.CATALOG, state.etag, removed.serialise(), soon())
    assert push_tree(source, repository).version == "v2"
    assert set(repository.catalog(soon()).catalog.dropped) == {"other"}


def test_a_swap_that_is_lost_is_tried_again_on_what_won(repository: Repository, tmp_path: Path) -> None:
    """Another push gets in between reading the catalog and swapping it, every time for a while."""
    class Beaten:
        def __init__(self, store: object) -> None:
            self._store, self.times = store, 3

        def __getattr__(self, name: str) -> object:
            return getattr(self._store, name)

        def swap(self, *arguments: object) -> object:
            if self.times:
                self.times -= 1
                push_files(repository, {"w": b"other %d" % self.times, "x": DATA}, "lab/other")
            return self._store.swap(*arguments)  # type: ignore[attr-defined]

    slow = Repository.open(repository.store, soon())
    source = write(tmp_path / "mine", {"w.bin": DATA})
    slow.store = Beaten(repository.store)  # type: ignore[assignment]
    assert push(source, slow, ModelRef.parse(MODEL), PushOptions(tmp_path / "state2", soon)).version == "v1"
    found = repository.catalog(soon()).catalog
    assert {str(name) for name in found.models} == {MODEL, "lab/other"}
    assert len(repository.versions(repository.history(found, ModelName.parse("lab/other"), soon()), soon())) == 3


def test_a_store_that_fails_in_the_middle_ends_the_push_and_the_next_resumes(repository: Repository,
                                                                             tmp_path: Path) -> None:
    big = noise(1, 60 * MiB)
    source = write(tmp_path / "source", {"w.bin": big})
    with FaultProxy(tmp_path / "repository", writable=True) as proxy:
        remote = Repository.open(RetryingStore(HttpStore(proxy.url), Metrics()), soon())
        options = PushOptions(tmp_path / "state", lambda: Deadline(1))
        accepted = threading.Event()

        class Down(PushProgress):
            def advance(self, size_bytes: int, known_bytes: int) -> None:
                if len(packs(tmp_path / "repository")) >= 1 and not accepted.is_set():
                    accepted.set()
                    proxy.add("status", "packs/", methods=("PUT",), code=503)

        with pytest.raises(Unavailable):
            push(source, remote, ModelRef.parse(MODEL), options, Down())
        assert accepted.is_set()
        assert repository.catalog(soon()).catalog.models == {}
        there = sum(path.stat().st_size for path in packs(tmp_path / "repository"))
        proxy.clear()
        report = push(source, remote, ModelRef.parse(MODEL), PushOptions(tmp_path / "state", soon))
        assert report.changed and report.uploaded_bytes < len(big) - there + MiB
    with reading(tmp_path / "repository") as r:
        assert r.read(r.file("w.bin")) == big


def test_a_full_disk_ends_the_push_and_nothing_shows(repository: Repository, tmp_path: Path,
                                                     environ: dict[str, str]) -> None:
    source = write(tmp_path / "source", {"w.bin": noise(1, 20 * MiB)})
    command = [sys.executable, "-m", "modelfs", "push", str(source), str(tmp_path / "repository"), MODEL]
    env = {**environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    full = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (MiB, MiB)))
    assert full.returncode == 8, full.stderr
    assert repository.catalog(soon()).catalog.models == {}
    assert subprocess.run(command, env=env, capture_output=True, timeout=60, check=False).returncode == 0
    with reading(tmp_path / "repository") as r:
        assert r.read(r.file("w.bin")) == (source / "w.bin").read_bytes()
