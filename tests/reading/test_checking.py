"""What lies in the cache is checked in the background, file by file, and what is wrong there is dropped."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cache.cache_helpers import data_path, flip
from faultproxy import FaultProxy
from transfer.pushed import CHUNK, Reading, eventually, make_repository, noise, push_files, reading

from modelfs.cache.cache import Cache
from modelfs.logs import Event
from modelfs.metrics import Metrics
from modelfs.reading.checking import Checker
from modelfs.reading.versions import ModelFile
from modelfs.settings import Verify
from modelfs.units import DiskShare, MiB

FILES = {"a.bin": noise(1, 20 * CHUNK + 5), "b.bin": noise(2, 10 * CHUNK), "c.bin": noise(3, 1000), "none": b""}
CHUNKS = 21 + 10 + 1


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A cache directory with all of the files, as an earlier mount left it."""
    push_files(make_repository(tmp_path / "r"), FILES)
    with cache_at(tmp_path / "cache") as cache, reading(tmp_path / "r", cache) as r:
        for path, data in FILES.items():
            file = r.file(path)
            assert r.read(file) == data
            eventually(lambda f=file, d=data: f.cached_bytes() == len(d))
    return tmp_path / "cache"


@contextmanager
def cache_at(directory: Path, verify: Verify = "mount") -> Iterator[Cache]:
    cache = Cache(directory, DiskShare(size_bytes=64 * MiB), DiskShare(size_bytes=0), Metrics(), verify=verify)
    try:
        yield cache
    finally:
        cache.close()


@contextmanager
def checking(r: Reading) -> Iterator[Checker]:
    checker = Checker(r.metrics)
    try:
        yield checker
    finally:
        checker.close()


def test_files_are_checked_without_a_read_and_without_the_store(directory: Path, tmp_path: Path) -> None:
    with FaultProxy(tmp_path / "r") as proxy, cache_at(directory) as cache, reading(proxy.url, cache) as r:
        *files, none = [r.file(path) for path in FILES]
        proxy.down()
        assert not any(file.cache.whole() for file in files)
        with checking(r) as checker:
            for file in [*files, none, *files]:
                checker.check(file)
            eventually(lambda: all(file.cache.whole() for file in files))
        assert r.count("chunks_verified") == CHUNKS, "each once"
        backing = files[0].cache.backing()
        assert backing is not None and os.pread(backing.fd, len(FILES["a.bin"]), 0) == FILES["a.bin"]
        backing.close()
        assert r.read(files[1]) == FILES["b.bin"] and r.count("chunks_verified") == CHUNKS


def test_a_wrong_chunk_is_dropped_counted_and_told_and_the_others_stay(
        directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with cache_at(directory) as cache, reading(tmp_path / "r", cache) as r:
        file = r.file("a.bin")
        flip(data_path(directory, cache.file(*chunks_of(file))), 3 * CHUNK + 17)
        with checking(r) as checker, caplog.at_level(logging.WARNING, "modelfs.reading"):
            checker.check(file)
            eventually(lambda: r.count("hash_failures") == 1 and not len(file.cache.unchecked()))
        assert [row for row in range(21) if not file.cache.checked(row)] == [3]
        events = [getattr(record, "modelfs_event", None) for record in caplog.records]
        fields = [event.fields for event in events if isinstance(event, Event) and event.name == "cache.corrupt"]
        assert [(f["file"], f["chunk"]) for f in fields] == [("a.bin", file.ref(3).id.hex())]
        assert not file.cache.whole()
        assert r.read(file) == FILES["a.bin"] and r.count("chunks_fetched") == 1
        eventually(file.cache.whole)


def chunks_of(file: ModelFile) -> tuple[object, object]:
    rows = slice(file.entry.first_row, file.entry.first_row + file.entry.row_count)
    return file.version.manifest.chunk_ids[rows], file.version.manifest.chunk_lengths[rows]


def test_a_checked_file_is_sealed_where_seals_are_believed(directory: Path, tmp_path: Path) -> None:
    with cache_at(directory, "changed") as cache, reading(tmp_path / "r", cache) as r:
        assert not r.file("a.bin").cache.whole(), "the mount that filled it made no seals"
        with checking(r) as checker:
            checker.check(r.file("a.bin"))
            eventually(r.file("a.bin").cache.whole)
    with cache_at(directory, "changed") as cache, reading(tmp_path / "r", cache) as r:
        assert r.file("a.bin").cache.whole() and not r.file("b.bin").cache.whole()
        assert r.read(r.file("a.bin")) == FILES["a.bin"] and r.count("chunks_verified") == 0


class Watched:
    """A file, and its cache, that notes when the checker comes to it."""

    def __init__(self, file: ModelFile, log: list[str], broken: bool = False) -> None:
        self.version, self.entry, self.ref, self.cache = file.version, file.entry, file.ref, self
        self._file, self._log, self._broken = file, log, broken

    def unchecked(self) -> object:
        self._log.append(self.entry.path)
        if self._broken:
            raise ValueError("the cache has a fault")
        return self._file.cache.unchecked()

    def __getattr__(self, name: str) -> object:
        return getattr(self._file.cache, name)


def test_files_are_done_in_the_order_in_which_they_came_and_a_fault_in_one_is_not_the_next_ones(
        directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log: list[str] = []
    with cache_at(directory) as cache, reading(tmp_path / "r", cache) as r, checking(r) as checker:
        for path, broken in (("b.bin", True), ("a.bin", False), ("c.bin", False)):
            checker.check(Watched(r.file(path), log, broken))  # type: ignore[arg-type]
        eventually(r.file("c.bin").cache.whole)
        assert log == ["b.bin", "a.bin", "c.bin"]
        assert r.file("a.bin").cache.whole() and not r.file("b.bin").cache.whole()
    assert sum(record.getMessage() == "cache.broken" for record in caplog.records) == 1


def test_closing_does_not_wait_for_the_files_that_are_left(directory: Path, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    with cache_at(directory) as cache, reading(tmp_path / "r", cache) as r:
        checker = Checker(r.metrics)
        add = r.metrics.add

        def close_after_three(name: str, n: int = 1) -> None:
            add(name, n)
            if r.count("chunks_verified") == 3:
                checker._closed = True  # as `close` does first, which waits for this very thread

        monkeypatch.setattr(r.metrics, "add", close_after_three)
        for path in FILES:
            checker.check(r.file(path))
        eventually(lambda: r.count("chunks_verified") >= 3)
        checker.close()
        assert r.count("chunks_verified") == 3
        checker.check(r.file("b.bin"))
        assert r.count("chunks_verified") == 3
